//! Writes an image of a single static program as an OCI layout: the pause image, without which no pod starts.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Makes the layout `dir` with one image named `latest`, whose only file and entrypoint is `/name`.
/// The same program gives the same bytes.
pub fn write_single_program(dir: &Path, name: &str, program: &Path) -> Result<()> {
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content.as_slice())?;
    let layer = archive.into_inner()?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    gzip.write_all(&layer)?;
    let compressed = gzip.finish()?;

    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let image = "application/vnd.oci.image";
    let layer_blob = blob(dir, &format!("{image}.layer.v1.tar+gzip"), &compressed)?;
    let config = json!({
        "architecture": architecture()?,
        "os": "linux",
        "config": {"Entrypoint": [format!("/{name}")]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = blob(dir, &format!("{image}.config.v1+json"), &serde_json::to_vec(&config)?)?;
    let manifest_type = format!("{image}.manifest.v1+json");
    let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer_blob]});
    let mut manifest = blob(dir, &manifest_type, &serde_json::to_vec(&manifest)?)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    fs::write(dir.join("index.json"), serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [manifest]}))?)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", super::hex(&Sha256::digest(content)))
}

/// Stores a blob and returns its descriptor.
fn blob(dir: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = digest(content);
    fs::write(dir.join("blobs").join(digest.replace(':', "/")), content)?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
}

/// What images call this machine's processor.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no images are built for {other} processors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_leads_to_its_blob_and_the_layout_is_reproducible() {
        let dir = std::env::temp_dir().join(format!("memoria-oci-{}", std::process::id()));
        let write = |name: &str| {
            write_single_program(&dir.join(name), "pause", Path::new("/bin/true")).unwrap();
            let index: Value = serde_json::from_slice(&fs::read(dir.join(name).join("index.json")).unwrap()).unwrap();
            index["manifests"][0].clone()
        };
        let read = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let content = fs::read(dir.join("one/blobs").join(digest.replace(':', "/"))).unwrap();
            assert_eq!(super::digest(&content), digest);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let first = write("one");
        assert_eq!(first, write("two"));
        let manifest: Value = serde_json::from_slice(&read(&first)).unwrap();
        let config: Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/pause"]));
        let mut layer = flate2::read::GzDecoder::new(std::io::Cursor::new(read(&manifest["layers"][0])));
        let mut plain = Vec::new();
        std::io::copy(&mut layer, &mut plain).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&plain));
        fs::remove_dir_all(dir).unwrap();
    }
}
