//! Documents name the tests that prove what they say; each must be there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::place;

/// All that is written in Rust below a directory.
fn sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_fault_of_a_snapshot_is_proved_by_a_test_that_is_there() {
    let root = place::root().unwrap();
    let document = fs::read_to_string(root.join("docs/snapshots.md")).unwrap();
    let (_, table) = document.split_once("| fault | what happens | test |").unwrap();
    let mut text = String::new();
    for directory in ["src", "tests"] {
        sources(&root.join(directory), &mut text);
    }
    let mut named = BTreeSet::new();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cell = row.rsplit('|').nth(1).unwrap();
        let names = cell.split('`').skip(1).step_by(2);
        let is_test = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let tests: Vec<_> = names.filter(is_test).collect();
        assert!(!tests.is_empty(), "no test proves this: {row}");
        named.extend(tests);
    }
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(text.contains(&format!("fn {name}(")), "docs/snapshots.md names the test {name}, which is nowhere");
    }
}
