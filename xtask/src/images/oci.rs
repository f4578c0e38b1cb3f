//! An OCI image layout on disk: the one place where images are put together, kept and handed to skopeo.
//!
//! A layout holds many images and every blob once. An image's name (`postgres:15`) is its `ref.name`; beside it stands the
//! key of what it was built from, so that nothing is built twice.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::hash::{self, Key};
use super::layer::{self, Entry, Layer};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const KEY: &str = "run.arca.memoria.built-from";
/// The time of everything: a clock in an image would give every build another digest.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// A layout directory. Whoever has it open holds its lock, so two builds cannot overwrite each other's index.
pub struct Layout {
    root: PathBuf,
    _lock: File,
}

/// An image in the making: its whole configuration document and its layers' descriptors.
#[derive(Debug, Clone)]
pub struct Image {
    config: Value,
    layers: Vec<Value>,
}

impl Image {
    /// An image without layers, for this machine's architecture.
    pub fn empty() -> Self {
        let config = json!({
            "created": CREATED,
            "architecture": architecture(),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [],
        });
        Self { config, layers: Vec::new() }
    }

    /// Sets one member of the runtime configuration, as the image specification names it: `Entrypoint`, `Cmd`, `User`,
    /// `WorkingDir`, `Env` …
    pub fn set(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.config["config"][member] = value.into();
        self
    }

    fn push(&mut self, layer: &Layer) -> Result<()> {
        self.layers.push(json!({"mediaType": LAYER, "digest": layer.digest, "size": layer.size}));
        let diff_ids = self.config["rootfs"]["diff_ids"].as_array_mut().context("the configuration has no diff_ids")?;
        diff_ids.push(json!(layer.diff_id));
        // buildah refuses an image whose history does not explain every layer.
        if !self.config["history"].is_array() {
            self.config["history"] = json!([]);
        }
        let history = self.config["history"].as_array_mut().context("the history is a list")?;
        history.push(json!({"created": CREATED, "created_by": layer.created_by}));
        Ok(())
    }
}

/// This machine's architecture in the image specification's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Layout {
    /// Opens the layout, makes it when there is none, and waits for another process that has it open.
    pub fn open(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(root.join("blobs/sha256")).with_context(|| format!("cannot create {}", root.display()))?;
        let lock = File::create(root.join(".lock"))?;
        lock.lock().with_context(|| format!("cannot lock {}", root.display()))?;
        let layout = Self { root, _lock: lock };
        if !layout.root.join("index.json").exists() {
            write(&layout.root.join("oci-layout"), &json!({"imageLayoutVersion": "1.0.0"}))?;
            layout.write_index(&[])?;
        }
        Ok(layout)
    }

    /// What skopeo and buildah call this image.
    pub fn source(&self, name: &str) -> String {
        format!("oci:{}:{name}", self.root.display())
    }

    /// The digest of an image, if it is here.
    pub fn digest(&self, name: &str) -> Result<Option<String>> {
        Ok(self.find(name)?.and_then(|m| m["digest"].as_str().map(str::to_owned)))
    }

    /// Whether the image is here and was built from this.
    pub fn is_current(&self, name: &str, key: &str) -> Result<bool> {
        let Some(manifest) = self.find(name)? else { return Ok(false) };
        Ok(manifest["annotations"][KEY] == key && self.blob(&manifest)?.exists())
    }

    /// Notes what an image was built from that another program put here.
    pub fn note_key(&self, name: &str, key: &str) -> Result<()> {
        let mut manifest = self.find(name)?.with_context(|| format!("{name} is not in {}", self.root.display()))?;
        manifest["annotations"][KEY] = json!(key);
        self.put(name, manifest)
    }

    /// An image, to build upon.
    pub fn read(&self, name: &str) -> Result<Image> {
        let descriptor = self.find(name)?.with_context(|| format!("{name} is not in {}", self.root.display()))?;
        let manifest: Value = read(&self.blob(&descriptor)?)?;
        let config = read(&self.blob(&manifest["config"])?)?;
        let layers = manifest["layers"].as_array().context("the manifest has no layers")?.clone();
        Ok(Image { config, layers })
    }

    /// Adds a layer with these entries to the image.
    pub fn add_layer(&self, image: &mut Image, entries: &[Entry], created_by: &str) -> Result<()> {
        self.adopt(image, layer::write(&self.scratch(), entries, created_by)?)
    }

    /// Adds a tar that another program wrote.
    pub fn add_tar(&self, image: &mut Image, tar: &Path, created_by: &str) -> Result<()> {
        self.adopt(image, layer::from_tar(&self.scratch(), tar, created_by)?)
    }

    /// A place for a blob before its hash is known; the lock makes one enough.
    fn scratch(&self) -> PathBuf {
        self.root.join("blobs/layer.new")
    }

    fn adopt(&self, image: &mut Image, layer: Layer) -> Result<()> {
        let (file, digest) = (&layer.file, &layer.digest);
        fs::rename(file, self.blob_file(digest)?).with_context(|| format!("cannot keep {}", file.display()))?;
        image.push(&layer)
    }

    /// Stores the image under its name and returns its digest.
    pub fn write(&self, name: &str, key: &str, image: &Image) -> Result<String> {
        let config = self.write_blob(&image.config, CONFIG)?;
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": image.layers});
        let mut descriptor = self.write_blob(&manifest, MANIFEST)?;
        let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?.to_owned();
        descriptor["annotations"] = json!({REF_NAME: name, KEY: key});
        self.put(name, descriptor)?;
        Ok(digest)
    }

    /// Forgets all images but these, and every blob that none of them needs.
    pub fn sweep(&self, names: &BTreeSet<String>) -> Result<()> {
        let mut manifests = self.manifests()?;
        manifests.retain(|m| m["annotations"][REF_NAME].as_str().is_some_and(|name| names.contains(name)));
        self.write_index(&manifests)?;
        let mut needed = BTreeSet::new();
        for descriptor in &manifests {
            let manifest: Value = read(&self.blob(descriptor)?)?;
            needed.insert(self.blob(descriptor)?);
            needed.insert(self.blob(&manifest["config"])?);
            for layer in manifest["layers"].as_array().into_iter().flatten() {
                needed.insert(self.blob(layer)?);
            }
        }
        for file in layer::children(&self.root.join("blobs/sha256"))? {
            if !needed.contains(&file) {
                fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
            }
        }
        Ok(())
    }

    fn write_blob(&self, content: &Value, media_type: &str) -> Result<Value> {
        let bytes = serde_json::to_vec(content)?;
        let digest = hash::digest(&bytes);
        fs::write(self.blob_file(&digest)?, &bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }

    fn blob(&self, descriptor: &Value) -> Result<PathBuf> {
        self.blob_file(descriptor["digest"].as_str().context("a descriptor has no digest")?)
    }

    fn blob_file(&self, digest: &str) -> Result<PathBuf> {
        match digest.strip_prefix("sha256:") {
            Some(hash) if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(self.root.join("blobs/sha256").join(hash))
            }
            _ => bail!("{digest:?} is no SHA-256 digest"),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Value>> {
        Ok(self.manifests()?.into_iter().find(|m| m["annotations"][REF_NAME] == name))
    }

    fn put(&self, name: &str, descriptor: Value) -> Result<()> {
        let mut manifests = self.manifests()?;
        manifests.retain(|m| m["annotations"][REF_NAME] != name);
        manifests.push(descriptor);
        self.write_index(&manifests)
    }

    fn manifests(&self) -> Result<Vec<Value>> {
        let index: Value = read(&self.root.join("index.json"))?;
        Ok(index["manifests"].as_array().cloned().unwrap_or_default())
    }

    fn write_index(&self, manifests: &[Value]) -> Result<()> {
        write(&self.root.join("index.json"), &json!({"schemaVersion": 2, "manifests": manifests}))
    }
}

/// Makes an image of files alone, unless it is here already: for what needs no distribution underneath.
pub fn from_files(
    layout: &Layout,
    name: &str,
    entries: &[Entry],
    configure: impl Fn(Image) -> Image,
) -> Result<String> {
    let mut key = Key::new("files").with(configure(Image::empty()).config.to_string());
    for entry in entries {
        key = key.with_entry(entry)?;
    }
    let key = key.finish();
    if layout.is_current(name, &key)?
        && let Some(digest) = layout.digest(name)?
    {
        return Ok(digest);
    }
    let mut image = configure(Image::empty());
    layout.add_layer(&mut image, entries, "files")?;
    layout.write(name, &key, &image)
}

fn read(file: &Path) -> Result<Value> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", file.display()))
}

/// Replaces the file in one step.
fn write(file: &Path, content: &Value) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(content)?).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &Path, content: &str) -> Vec<Entry> {
        let source = directory.join("hello");
        fs::write(&source, content).unwrap();
        vec![Entry::File { path: "hello".into(), source, mode: 0o755 }]
    }

    #[test]
    fn skopeo_reads_what_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path().join("layout")).unwrap();
        let entries = file(directory.path(), "hello");
        let digest = from_files(&layout, "a/b:1.0", &entries, |image| image.set("Cmd", json!(["/hello"]))).unwrap();
        let inspected =
            std::process::Command::new("skopeo").args(["inspect", &layout.source("a/b:1.0")]).output().unwrap();
        let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!(inspected["Digest"], digest);
        assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn an_image_is_current_until_what_it_is_built_from_changes() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path().join("layout")).unwrap();
        let build = |content| from_files(&layout, "a:1", &file(directory.path(), content), |image| image).unwrap();
        let first = build("one");
        assert_eq!(first, build("one"));
        assert_ne!(first, build("two"));
        assert_eq!(first, build("one"));
    }

    #[test]
    fn images_share_layers_and_a_sweep_keeps_what_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path().join("layout")).unwrap();
        let mut base = Image::empty();
        layout.add_layer(&mut base, &file(directory.path(), "base"), "base").unwrap();
        for name in ["a:1", "a:2"] {
            let mut image = base.clone();
            layout.add_layer(&mut image, &file(directory.path(), name), "name").unwrap();
            layout.write(name, "key", &image).unwrap();
        }
        let blobs = || layer::children(&directory.path().join("layout/blobs/sha256")).unwrap().len();
        assert_eq!(blobs(), 1 + 2 * 3);
        layout.sweep(&["a:2".to_owned()].into()).unwrap();
        assert_eq!(blobs(), 4);
        assert_eq!(layout.read("a:2").unwrap().layers.len(), 2);
        assert!(layout.read("a:1").is_err());
    }
}
