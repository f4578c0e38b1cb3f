//! The operator must not know the versions that it is tested with: no tag of the stand-in stands in its code or chart.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Done;
use crate::place;

pub fn check() -> Result<Done> {
    let root = place::root()?;
    let tags = tags(&root.join("tests/memoria/versions"))?;
    let mut found = Vec::new();
    for directory in ["src", "charts"] {
        for file in files(&root.join(directory))? {
            // The chart's CRDs are made from src, and hold its examples in their descriptions.
            if file.parent().is_some_and(|parent| parent.ends_with("files/crds")) {
                continue;
            }
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let examples = is_test_module(&file)? || shows_examples(&file);
            found.extend(hits(&text, &tags, examples).into_iter().map(|hit| format!("{}:{hit}", file.display())));
        }
    }
    if !found.is_empty() {
        bail!("the operator names versions that it is tested with:\n      {}", found.join("\n      "));
    }
    Ok(Done::Passed)
}

/// The stand-in's tags, from its version files.
fn tags(versions: &Path) -> Result<Vec<String>> {
    let names = files(versions)?.into_iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned()));
    let tags: Vec<_> = names.filter_map(|name| name.strip_suffix(".toml").map(str::to_owned)).collect();
    if tags.is_empty() {
        bail!("{} holds no version", versions.display());
    }
    Ok(tags)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(found) };
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

/// Whether a `#[cfg(test)] mod …;` beside the file declares it, or its name says so.
fn is_test_module(file: &Path) -> Result<bool> {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let beside = file.parent().context("a file is in a directory")?;
    if stem == "tests" || beside.file_name().is_some_and(|name| name == "tests" || name == "snapshots") {
        return Ok(true);
    }
    let parents = ["mod.rs", "lib.rs", "main.rs"].map(|name| beside.join(name));
    Ok(parents.iter().any(|parent| fs::read_to_string(parent).is_ok_and(|text| declares_for_tests(&text, stem))))
}

/// Whether a module is compiled for tests only, whoever may see it then.
fn declares_for_tests(text: &str, module: &str) -> bool {
    ["", "pub(super) ", "pub(crate) "]
        .iter()
        .any(|visibility| text.contains(&format!("#[cfg(test)]\n{visibility}mod {module};")))
}

/// The chart's texts for people, and its definitions: they are made from what is checked in `src`.
fn shows_examples(file: &Path) -> bool {
    let text = |extension| file.extension().is_some_and(|found| found == extension);
    text("md") || text("txt") || file.parent().is_some_and(|directory| directory.ends_with("files/crds"))
}

/// `line: tag` of each place that names one. A faulty version's tag may stand nowhere; a plain number only where it is an
/// example: in comments, within longer text, in unit tests.
fn hits(text: &str, tags: &[String], examples: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_tests = examples;
    for (n, line) in text.lines().enumerate() {
        in_tests |= line.trim() == "#[cfg(test)]";
        let comment = line.trim_start().starts_with("//") || line.trim_start().starts_with('#');
        for tag in tags {
            let plain = tag.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let named = match plain {
                true => !in_tests && !comment && line.contains(&format!("\"{tag}\"")),
                false => line.contains(tag.as_str()),
            };
            if named {
                found.push(format!("{}: {tag}", n + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> usize {
        hits(text, &["1.0.0".into(), "1.0.1-bad".into()], false).len()
    }

    #[test]
    fn a_module_for_tests_is_known_by_its_declaration_whoever_may_see_it() {
        let text = "#[cfg(test)]\nmod own;\n#[cfg(test)]\npub(crate) mod shared;\npub(crate) mod shipped;\n";
        assert!(declares_for_tests(text, "own") && declares_for_tests(text, "shared"));
        assert!(!declares_for_tests(text, "shipped"));
    }

    #[test]
    fn a_comparison_with_a_tag_is_found() {
        assert_eq!(found("if version == \"1.0.0\" {"), 1);
        assert_eq!(found("image: memoria:1.0.1-bad"), 1);
        assert_eq!(found("// 1.0.1-bad is special"), 1);
    }

    #[test]
    fn an_example_is_no_knowledge() {
        assert_eq!(found("/// Such as `1.0.0` or \"1.0.0\"."), 0);
        assert_eq!(found("message = \"write e.g. version: \\\"1.0.0\\\"\""), 0);
        assert_eq!(found("#[cfg(test)]\nlet from = \"1.0.0\";"), 0);
    }
}
