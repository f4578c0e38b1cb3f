//! Images, built without a Docker engine: `images/README.md` says what they are.

mod binaries;
mod debian;
mod dockerfile;
mod hash;
pub mod layer;
mod memoria;
pub mod oci;
mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cluster::Target;
use crate::place;
use binaries::Binaries;
pub use binaries::Profile;
use debian::{Mirror, Suite};
use dockerfile::{Builder, Stage};
use hash::Key;
use layer::Entry;
use oci::Layout;
use progress::Progress;

/// Names of images, below the registry's.
pub const OPERATOR: &str = "memoria-operator/operator";
pub const TOOLS: &str = "memoria-operator/tools";
pub const POSTGRES: &str = "postgres";
pub const MEMORIA_SERVER: &str = "memoria/server";
pub const MEMORIA_DASHBOARD: &str = "memoria/dashboard";

/// The majors of PostgreSQL that there are tools and test servers for, and the Debian that has each.
const MAJORS: [(&str, Suite); 2] = [("15", Suite::Bookworm), ("17", Suite::Trixie)];

/// What builds and pushes, and the Debian package that each comes from.
const PROGRAMS: &[(&str, &str)] = &[
    ("buildah", "buildah"),
    ("curl", "curl"),
    ("mmdebstrap", "mmdebstrap"),
    ("skopeo", "skopeo"),
    ("strip", "binutils"),
    ("unshare", "util-linux"),
];

#[derive(clap::Args)]
pub struct Args {
    /// Build only these
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Push what the test cluster's registry lacks; the cluster must be up
    #[arg(long)]
    push: bool,
    /// Compile the operator as for users instead of quickly
    #[arg(long)]
    release: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    Operator,
    Tools,
    Postgres,
    Memoria,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Operator, Self::Tools, Self::Postgres, Self::Memoria];

    fn needs_binaries(self) -> bool {
        matches!(self, Self::Operator | Self::Tools)
    }
}

pub fn run(args: Args) -> Result<()> {
    let kinds = if args.only.is_empty() { Kind::ALL.to_vec() } else { args.only };
    let images = Images::build(&kinds, if args.release { Profile::Release } else { Profile::Dev })?;
    if args.push {
        images.push()?;
    }
    for (name, digest) in &images.digests {
        println!("{name}  {digest}");
    }
    Ok(())
}

/// Builds what changed and makes it available to the cluster: pushes what the local registry lacks, or tells the user what
/// a cluster of theirs must be able to pull. Returns name and tag (`postgres:15`) → digest. A local cluster must be up.
#[allow(dead_code, reason = "the demo and the cluster tests call it")]
pub fn ensure_available(target: Target, profile: Profile) -> Result<BTreeMap<String, String>> {
    let images = Images::build(&Kind::ALL, profile)?;
    match target {
        Target::Local => images.push()?,
        Target::CurrentContext => {
            let sources = images.digests.keys().map(|name| (images.layout.source(name), name.clone()));
            target.publish(&sources.collect::<Vec<_>>())?;
        }
    }
    Ok(images.digests)
}

/// The version in our own images' tags.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Where name → digest is written for whoever cannot ask this program.
pub fn index_file() -> Result<PathBuf> {
    Ok(place::cache()?.join("images/index.json"))
}

/// Built images.
struct Images {
    layout: Layout,
    progress: Progress,
    digests: BTreeMap<String, String>,
}

impl Images {
    fn build(kinds: &[Kind], profile: Profile) -> Result<Self> {
        prepare_machine()?;
        let cache = place::cache()?.join("images");
        let progress = Progress::new(cache.join("logs"))?;
        // Before the lock is taken: compiling is what takes long, and cargo has locks of its own.
        let binaries =
            kinds.iter().any(|k| k.needs_binaries()).then(|| binaries::build(&progress, profile)).transpose()?;
        let layout = Layout::open(cache.join("layout"))?;
        let mirror = Mirror::of_this_machine(cache.join("apt"))?;
        let root = place::root()?;
        let builder = Builder {
            progress: &progress,
            layout: &layout,
            mirror: &mirror,
            storage: cache.join("buildah"),
            context: root.clone(),
        };
        let work = Work { cache: cache.clone(), root, builder };
        let mut names = Vec::new();
        for kind in kinds {
            names.extend(work.ensure(*kind, binaries.as_ref())?);
        }
        if Kind::ALL.iter().all(|kind| kinds.contains(kind)) {
            layout.sweep(&names.iter().cloned().chain(work.bases()).collect::<BTreeSet<_>>())?;
        }
        let digests = names.into_iter().map(|name| match layout.digest(&name)? {
            Some(digest) => Ok((name, digest)),
            None => bail!("{name} was built and is not there"),
        });
        let digests = digests.collect::<Result<BTreeMap<_, _>>>()?;
        write_index(&digests)?;
        progress.say("images", "up to date");
        Ok(Self { layout, progress, digests })
    }

    fn push(&self) -> Result<()> {
        for (name, digest) in &self.digests {
            if crate::cluster::registry_digest(name)?.as_ref() != Some(digest) {
                self.progress.say(name, "pushing");
                crate::cluster::registry_push(&self.layout.source(name), name)?;
            }
        }
        Ok(())
    }
}

/// Everything that a build needs.
struct Work<'a> {
    cache: PathBuf,
    root: PathBuf,
    builder: Builder<'a>,
}

impl Work<'_> {
    fn ensure(&self, kind: Kind, binaries: Option<&Binaries>) -> Result<Vec<String>> {
        let binaries = || binaries.context("the binaries are compiled for this kind");
        match kind {
            Kind::Operator => Ok(vec![self.operator(binaries()?)?]),
            Kind::Tools => {
                let binaries = binaries()?;
                MAJORS.iter().map(|(major, suite)| self.tools(major, *suite, binaries)).collect()
            }
            Kind::Postgres => MAJORS.iter().map(|(major, suite)| self.postgres(major, *suite)).collect(),
            Kind::Memoria => self.memoria(),
        }
    }

    /// What the images are built upon; it stays in the layout and is not pushed.
    fn bases(&self) -> Vec<String> {
        let mut names = vec![OPERATOR_STAGE.to_owned(), MEMORIA_STAGE.to_owned()];
        for (major, suite) in MAJORS {
            names.extend([suite.base(), postgresql_stage(major), tools_stage(major)]);
        }
        names
    }

    fn stage(&self, stage: &Stage<'_>) -> Result<String> {
        let Builder { progress, layout, mirror, .. } = self.builder;
        let base_key = debian::ensure_base(progress, layout, mirror, stage.suite, &self.cache)?;
        self.builder.ensure(stage, &base_key)
    }

    fn operator(&self, binaries: &Binaries) -> Result<String> {
        let dockerfile = self.root.join("images/Dockerfile");
        let key = self.stage(&Stage {
            name: OPERATOR_STAGE,
            dockerfile: dockerfile.clone(),
            target: Some("runtime"),
            arguments: &[],
            suite: Suite::Bookworm,
            copies: &[],
        })?;
        let name = format!("{OPERATOR}:{}", version());
        self.with_binaries(&name, OPERATOR_STAGE, &key, &dockerfile, binaries)?;
        Ok(name)
    }

    fn tools(&self, major: &str, suite: Suite, binaries: &Binaries) -> Result<String> {
        let stage = tools_stage(major);
        let key = self.postgresql_stage(&stage, "runtime", major, suite)?;
        let name = format!("{TOOLS}:{}-pg{major}", version());
        self.with_binaries(&name, &stage, &key, &self.root.join("images/tools.Dockerfile"), binaries)?;
        Ok(name)
    }

    fn postgresql_stage(&self, name: &str, target: &str, major: &str, suite: Suite) -> Result<String> {
        self.stage(&Stage {
            name,
            dockerfile: self.root.join("images/tools.Dockerfile"),
            target: Some(target),
            arguments: &[("DEBIAN", suite.name()), ("POSTGRESQL", major), ("EXTENSIONS", suite.extensions(major))],
            suite,
            copies: &["images/initdb"],
        })
    }

    /// A server for tests: the tools' PostgreSQL with an entrypoint.
    fn postgres(&self, major: &str, suite: Suite) -> Result<String> {
        let stage = postgresql_stage(major);
        let stage_key = self.postgresql_stage(&stage, "postgresql", major, suite)?;
        let name = format!("{POSTGRES}:{major}");
        let source = self.root.join("tests/memoria/image/postgres-entrypoint.sh");
        let key = Key::new("postgres 1").with(&stage_key).with_path(&source)?.finish();
        let layout = self.builder.layout;
        if !layout.is_current(&name, &key)? {
            self.builder.progress.say(&name, "packing");
            let path = "usr/local/bin/postgres-entrypoint.sh";
            let entries = [Entry::File { path: path.into(), source, mode: 0o755 }];
            let mut image = layout.read(&stage)?;
            layout.add_layer(&mut image, &entries, &format!("COPY postgres-entrypoint.sh /{path}"))?;
            let image = image
                .set("User", "999:999")
                .set("Entrypoint", json!([format!("/{path}")]))
                .set("Cmd", json!([]))
                .set("ExposedPorts", json!({"5432/tcp": {}}));
            layout.write(&name, &key, &image)?;
        }
        Ok(name)
    }

    fn memoria(&self) -> Result<Vec<String>> {
        let stand_in = self.root.join("tests/memoria");
        let packages = memoria::packages(&stand_in)?;
        let key = self.stage(&Stage {
            name: MEMORIA_STAGE,
            dockerfile: self.root.join("images/memoria.Dockerfile"),
            target: None,
            arguments: &[("PACKAGES", &packages)],
            suite: Suite::Trixie,
            copies: &[],
        })?;
        memoria::ensure(self.builder.progress, self.builder.layout, &stand_in, MEMORIA_STAGE, &key)
    }

    /// The last stage of a Dockerfile: one layer for each binary, so that images which share a binary share its layer.
    fn with_binaries(
        &self,
        name: &str,
        stage: &str,
        stage_key: &str,
        dockerfile: &std::path::Path,
        binaries: &Binaries,
    ) -> Result<()> {
        let copies = dockerfile::binary_copies(dockerfile)?;
        let mut key = Key::new("binaries 1").with(stage_key);
        for copy in &copies {
            key = key.with(&copy.destination).with_path(binaries.path(&copy.binary)?)?;
        }
        let key = key.finish();
        let layout = self.builder.layout;
        if layout.is_current(name, &key)? {
            return Ok(());
        }
        self.builder.progress.say(name, "packing");
        let mut image = layout.read(stage)?;
        for copy in &copies {
            let source = binaries.path(&copy.binary)?.clone();
            let entries = [Entry::File { path: copy.destination.clone(), source, mode: 0o755 }];
            layout.add_layer(&mut image, &entries, &format!("COPY {} /{}", copy.binary, copy.destination))?;
        }
        layout.write(name, &key, &image)?;
        Ok(())
    }
}

const OPERATOR_STAGE: &str = "stage/operator";
const MEMORIA_STAGE: &str = "stage/memoria";

fn postgresql_stage(major: &str) -> String {
    format!("stage/postgresql-{major}")
}

fn tools_stage(major: &str) -> String {
    format!("stage/tools-{major}")
}

/// Adds these digests to the index file.
fn write_index(digests: &BTreeMap<String, String>) -> Result<()> {
    let file = index_file()?;
    let mut index: BTreeMap<String, String> = match fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => BTreeMap::new(),
    };
    index.extend(digests.iter().map(|(name, digest)| (name.clone(), digest.clone())));
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(&index)?).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
}

/// Checks that images can be built here, and installs the programs for it.
fn prepare_machine() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "building the images needs root, to make root file systems with their owners: sudo -E cargo xtask images"
        );
    }
    crate::cluster::ensure_programs(PROGRAMS)
}
