//! `memoria-operator snapshot` as people type it.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::site::{MEMORIA, Site};

struct Said {
    code: i32,
    output: String,
    error: String,
}

/// With the database's URL in the variable, where there is one.
fn snapshot(url: Option<&str>, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
    command.arg("snapshot").args(arguments).env_remove("MEMORIA_OPERATOR_DATABASE_URL");
    if let Some(url) = url {
        command.env("MEMORIA_OPERATOR_DATABASE_URL", url);
    }
    let output = command.output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        output: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_export_is_imported_and_verified_by_exit_codes_and_words() {
    let site = Site::with("wal", MEMORIA);
    let (url, directory) = (site.url(), site.storage.join("x"));
    let exported = snapshot(Some(&url), &["export", text(&directory)]);
    assert_eq!(exported.code, 0, "{}", exported.error);
    assert!(exported.output.starts_with("Exported 299 rows of 3 tables, "), "{}", exported.output);
    assert_eq!(exported.error, "", "no progress where nobody watches");

    let same = snapshot(Some(&url), &["verify", "-", text(&directory)]);
    assert_eq!((same.code, same.output.as_str()), (0, "The same: 299 rows in 3 tables\n"), "{}", same.error);

    site.execute("UPDATE agents SET name = 'secret text' WHERE agent_id = 'a1'");
    let different = snapshot(None, &["verify", text(&directory), &url, "--keys", "3"]);
    assert_eq!(different.code, 1);
    assert_eq!(
        different.output,
        "table agents: 0 rows only in A, 0 only in B, 1 changed\n  changed: {\"agent_id\": \"a1\"}\nNot the same: 1 of 3 tables differ\n"
    );
    let json: Value =
        serde_json::from_str(&snapshot(None, &["verify", text(&directory), &url, "--json"]).output).unwrap();
    assert_eq!((&json["same"], &json["tables"][0]["differing"]["changed"]), (&false.into(), &1.into()));

    let imported = snapshot(Some(&url), &["import", text(&directory), "--json"]);
    let json: Value = serde_json::from_str(&imported.output).unwrap();
    assert_eq!((imported.code, &json["proved"], &json["rows"]), (0, &true.into(), &299.into()), "{}", imported.error);
    assert_eq!(snapshot(Some(&url), &["verify", "-", text(&directory)]).code, 0);

    let shown = snapshot(None, &["show", text(&directory)]);
    assert!(shown.code == 0 && shown.output.contains("2 rows  agents (memoria.ndjson.zst)"), "{}", shown.output);
    assert_eq!(snapshot(None, &["list", text(&site.storage)]).output.lines().count(), 1);
}

#[test]
fn what_cannot_be_done_says_why_and_what_is_typed_wrongly_is_usage() {
    let site = Site::with("delete", MEMORIA);
    let (url, directory) = (site.url(), site.storage.join("x"));
    let unnamed = snapshot(None, &["export", text(&directory)]);
    assert!(unnamed.code == 1 && unnamed.error.contains("MEMORIA_OPERATOR_DATABASE_URL"), "{}", unnamed.error);
    assert_eq!(snapshot(Some(&url), &["export", text(&directory)]).code, 0);
    let occupied = snapshot(Some(&url), &["export", text(&directory)]);
    assert!(occupied.code == 1 && occupied.error.contains("manifest.json"), "{}", occupied.error);
    let missing = snapshot(Some("sqlite:////nowhere/memoria.db"), &["export", text(&site.storage.join("y"))]);
    assert!(missing.code == 1 && missing.error.contains("/nowhere/memoria.db"), "{}", missing.error);
    assert_eq!(snapshot(Some(&url), &["export"]).code, 2);
    assert_eq!(snapshot(Some(&url), &["export", "z", "--format", "xml"]).code, 2);
    assert_eq!(snapshot(None, &["prune", text(&site.storage), "--keep", "0"]).code, 2);
}
