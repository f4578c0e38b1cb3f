//! Builds a stage of a Dockerfile with buildah, without an engine or a daemon.
//!
//! The last stage of the Dockerfiles for users only copies our binaries in. That one is not run by buildah: its `COPY` lines
//! are read, and [`oci`](super::oci) writes the layers, so a changed binary costs a second instead of a compression of everything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::{Mirror, Suite};
use super::hash::Key;
use super::oci::Layout;
use super::progress::Progress;

/// What to build.
pub struct Stage<'a> {
    /// The result's name in the layout.
    pub name: &'a str,
    pub dockerfile: PathBuf,
    /// A stage's name; `None` is the last stage.
    pub target: Option<&'a str>,
    pub arguments: &'a [(&'a str, &'a str)],
    /// What `FROM` names.
    pub suite: Suite,
    /// The files that its `COPY` lines take from the build context.
    pub copies: &'a [&'a str],
}

/// buildah with a storage of its own, so that it neither meets nor leaves anything on the machine.
pub struct Builder<'a> {
    pub progress: &'a Progress,
    pub layout: &'a Layout,
    pub mirror: &'a Mirror,
    pub storage: PathBuf,
    pub context: PathBuf,
}

impl Builder<'_> {
    /// Makes sure that the layout has this stage. Returns the key of what it was built from.
    pub fn ensure(&self, stage: &Stage<'_>, base_key: &str) -> Result<String> {
        let text = fs::read_to_string(&stage.dockerfile)
            .with_context(|| format!("cannot read {}", stage.dockerfile.display()))?;
        let mut key =
            Key::new("stage 1").with(instructions(&text)).with(base_key).with(stage.target.unwrap_or_default());
        for (name, value) in stage.arguments {
            key = key.with(name).with(value);
        }
        for file in stage.copies {
            key = key.with_path(&self.context.join(file))?;
        }
        let key = key.finish();
        if self.layout.is_current(stage.name, &key)? {
            return Ok(key);
        }
        self.build(stage)?;
        self.layout.note_key(stage.name, &key)?;
        Ok(key)
    }

    fn build(&self, stage: &Stage<'_>) -> Result<()> {
        let tag = format!("localhost/{}", stage.name);
        self.progress.say(stage.name, "building with buildah");
        let storage =
            format!("[overlay@{}+{}]", self.storage.join("root").display(), self.storage.join("run").display());
        let mut import = detached("skopeo");
        import.args(["--insecure-policy", "copy", "--quiet", &self.layout.source(&stage.suite.base())]);
        self.progress.run(stage.name, import.arg(format!("containers-storage:{storage}{}", stage.suite.image())))?;

        let mut bud = self.buildah();
        bud.args(["bud", "--isolation=chroot", "--layers", "--pull-never", "--timestamp=0", "--format=oci"]);
        for (file, place) in self.mirror.mounts(stage.suite)? {
            bud.arg(format!("--volume={}:{place}:ro", file.display()));
        }
        for (name, value) in stage.arguments {
            bud.arg(format!("--build-arg={name}={value}"));
        }
        if let Some(target) = stage.target {
            bud.arg(format!("--target={target}"));
        }
        bud.arg(format!("--tag={tag}")).arg("--file").arg(&stage.dockerfile).arg(&self.context);
        self.progress.run(stage.name, &mut bud)?;
        self.progress.say(stage.name, "packing");
        self.progress.run(stage.name, self.buildah().args(["push", "--quiet", &tag, &self.layout.source(stage.name)]))
    }

    fn buildah(&self) -> Command {
        let mut command = detached("buildah");
        command.arg("--storage-driver=overlay").arg("--root").arg(self.storage.join("root"));
        command.arg("--runroot").arg(self.storage.join("run"));
        command
    }
}

/// A program in a mount namespace of its own: whatever ends it, none of its mounts stays behind.
fn detached(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=slave", program]);
    command
}

/// A `COPY --from=<stage> <source> <destination>` of one of our binaries.
#[derive(Debug, PartialEq, Eq)]
pub struct BinaryCopy {
    pub binary: String,
    /// The path in the image, without the leading slash.
    pub destination: String,
}

/// What the last stage copies in, in its order. An instruction other than `COPY` there would be lost, so it is an error.
pub fn binary_copies(dockerfile: &Path) -> Result<Vec<BinaryCopy>> {
    let text = fs::read_to_string(dockerfile).with_context(|| format!("cannot read {}", dockerfile.display()))?;
    last_stage_copies(&text).with_context(|| format!("the last stage of {}", dockerfile.display()))
}

fn last_stage_copies(text: &str) -> Result<Vec<BinaryCopy>> {
    let text = instructions(text);
    let last = text.rfind("FROM ").context("has no FROM")?;
    let mut lines = text[last..].lines();
    if lines.next() != Some("FROM runtime") {
        bail!("does not begin with `FROM runtime`");
    }
    lines
        .map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["COPY", from, source, destination] if from.starts_with("--from=") => {
                let binary = source.rsplit('/').next().unwrap_or_default().to_owned();
                Ok(BinaryCopy { binary, destination: destination.trim_start_matches('/').to_owned() })
            }
            _ => bail!("has `{line}`; only `COPY --from=<stage> <file> <path>` is understood there"),
        })
        .collect()
}

/// A Dockerfile without comments and empty lines, so that a better comment rebuilds nothing.
fn instructions(text: &str) -> String {
    let counts = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    text.lines().filter(counts).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKERFILE: &str =
        "FROM rust AS build\nRUN make\nFROM debian AS runtime\nCOPY a /a\n# The end.\nFROM runtime\n";

    #[test]
    fn the_last_stages_copies_are_read() {
        let copies =
            last_stage_copies(&format!("{DOCKERFILE}COPY --from=build /out/tool /usr/local/bin/tool\n")).unwrap();
        assert_eq!(copies, [BinaryCopy { binary: "tool".into(), destination: "usr/local/bin/tool".into() }]);
    }

    #[test]
    fn an_instruction_that_would_be_lost_is_an_error() {
        let error = format!("{:#}", last_stage_copies(&format!("{DOCKERFILE}RUN rm /a\n")).unwrap_err());
        assert!(error.contains("RUN rm /a"), "{error}");
    }

    #[test]
    fn a_comment_is_no_instruction() {
        assert_eq!(instructions("# why\nFROM a\n\n  # and\nRUN b\n"), "FROM a\nRUN b\n");
    }
}
