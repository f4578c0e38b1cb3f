//! Memoria's own command line, as the stand-in speaks it.

use std::{path::PathBuf, process::Command, sync::OnceLock};

/// Asked of cargo at run time: checkouts that share its target directory share one binary.
fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/memoria")
}

/// Python with what the stand-in needs; made once.
fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let output = Command::new("sh").arg(root().join("conformance/venv.sh")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

/// Runs a module of the stand-in's, which must succeed; gives what it printed.
pub fn run(arguments: &[&str]) -> String {
    let output = Command::new(python())
        .arg("-m")
        .args(arguments)
        .env("PYTHONPATH", root().join("app"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("MEMORIA_VERSION_FILE", root().join("versions/0.9.0.toml"))
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the schema and fills it.
pub fn fill(url: &str, rows: usize) {
    run(&["memoria_generate", "--rows", &rows.to_string(), "--database-url", url]);
}

/// What `export-data` writes, without the moment.
pub fn exported(url: &str) -> serde_json::Value {
    let mut document: serde_json::Value =
        serde_json::from_str(&run(&["memoria.cli", "export-data", "-", "--database-url", url])).unwrap();
    document["metadata"]["exported_at"] = serde_json::Value::Null;
    document
}
