//! Images of Memoria's stand-in: one runtime, one application, and as the last layer the file that makes it a version.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

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
    let server = command(stand_in, "server", json!(["gunicorn", "--bind=0.0.0.0:8000", "memoria.server:app"]))?;
    let dashboard = command(stand_in, "dashboard", json!(["python3", "-m", "memoria_dashboard"]))?;
    let app = stand_in.join("app");
    let app_key = Key::new("memoria 1").with(base_key).with_path(&app)?;
    let mut names = Vec::new();
    let mut with_app = None;
    for version in layer::children(&stand_in.join("versions"))? {
        let Some(tag) = version.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".toml")) else {
            continue;
        };
        for (repository, command) in [(MEMORIA_SERVER, &server), (MEMORIA_DASHBOARD, &dashboard)] {
            let name = format!("{repository}:{tag}");
            let key = app_key.clone().with(command.to_string()).with_path(&version)?.finish();
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
            let entries = [Entry::File { path: "app/version.toml".into(), source: version.clone(), mode: 0o644 }];
            layout.add_layer(&mut image, &entries, &format!("COPY versions/{tag}.toml /app/version.toml"))?;
            let image = image.set("Cmd", command.clone()).set("ExposedPorts", json!({"8000/tcp": {}}));
            layout.write(&name, &key, &image)?;
        }
    }
    Ok(names)
}

/// A command line that the stand-in's files may set.
fn command(stand_in: &Path, part: &str, default: Value) -> Result<Value> {
    let file = stand_in.join(format!("image/{part}-command.json"));
    if !file.exists() {
        return Ok(default);
    }
    let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let words: Vec<String> =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a list of words", file.display()))?;
    Ok(json!(words))
}
