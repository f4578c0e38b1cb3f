//! Images of Memoria's stand-in: one runtime, one application, and as the last layer the file that makes it a version.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::hash::Key;
use super::layer::{self, Entry};
use super::oci::Layout;
use super::progress::Progress;
use super::{MEMORIA_DASHBOARD, MEMORIA_SERVER};

/// The packages that the stand-in needs, as one argument for the Dockerfile.
pub fn packages(stand_in: &Path) -> Result<String> {
    let file = stand_in.join("image/packages.txt");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let names = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|n| !n.is_empty());
    Ok(names.collect::<Vec<_>>().join(" "))
}

/// Builds server and dashboard of every version file. Returns the images' names.
pub fn ensure(
    progress: &Progress,
    layout: &Layout,
    stand_in: &Path,
    base: &str,
    base_key: &str,
) -> Result<Vec<String>> {
    let server = json!(["gunicorn", "--bind=0.0.0.0:8000", "memoria.server:app"]);
    let dashboard = json!(["python3", "-m", "memoria_dashboard"]);
    let parts = [(MEMORIA_SERVER, &server, "8000/tcp"), (MEMORIA_DASHBOARD, &dashboard, "8501/tcp")];
    let app = stand_in.join("app");
    let app_key = Key::new("memoria 2").with(base_key).with_path(&app)?;
    let mut names = Vec::new();
    let mut with_app = None;
    for version in layer::children(&stand_in.join("versions"))? {
        let Some(tag) = version.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".toml")) else {
            continue;
        };
        let last = last_layer(&version, tag);
        for (repository, command, port) in parts {
            let name = format!("{repository}:{tag}");
            let mut key = app_key.clone().with(command.to_string()).with(port);
            for entry in &last {
                key = key.with_entry(entry)?;
            }
            let key = key.finish();
            names.push(name.clone());
            if layout.is_current(&name, &key)? {
                continue;
            }
            progress.say(&name, "packing");
            if with_app.is_none() {
                let mut image = layout.read(base)?;
                let entries = [Entry::Tree { path: "app".into(), source: app.clone() }];
                layout.add_layer(&mut image, &entries, "COPY app /app")?;
                with_app = Some(image);
            }
            let mut image = with_app.clone().context("the application's layer was just made")?;
            layout.add_layer(&mut image, &last, &format!("COPY versions/{tag}.toml /app/version.toml"))?;
            let image = image.set("Cmd", command.clone()).set("ExposedPorts", json!({port: {}}));
            layout.write(&name, &key, &image)?;
        }
    }
    Ok(names)
}

/// What makes the application a version: its file and, where it has one, its own baseline of the configuration.
fn last_layer(version: &Path, tag: &str) -> Vec<Entry> {
    let file = |path: &str, source: PathBuf| Entry::File { path: path.into(), source, mode: 0o644 };
    let mut entries = vec![file("app/version.toml", version.to_owned())];
    let baseline = version.with_file_name(format!("{tag}.config.example.yaml"));
    if baseline.exists() {
        entries.push(file("app/config.example.yaml", baseline));
    }
    entries
}
