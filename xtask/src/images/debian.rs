//! Debian as a base: the slim images that the Dockerfiles name, made from this machine's own package mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::hash::Key;
use super::oci::{Image, Layout};
use super::progress::Progress;

/// What a slim image leaves out of every package, now and when more are installed.
const LEFT_OUT: [&str; 7] = ["doc", "man", "info", "locale", "i18n", "lintian", "bug"];

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    Bookworm,
    Trixie,
}

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Packages of extensions that this release has for that major of PostgreSQL, as `images/tools.Dockerfile` takes them.
    pub fn extensions(self, major: &str) -> &'static str {
        match (self, major) {
            (Self::Trixie, "17") => "postgresql-17-pgvector",
            _ => "",
        }
    }

    /// The base image's name in the layout.
    pub fn base(self) -> String {
        format!("base/{}", self.name())
    }

    /// What Dockerfiles call it.
    pub fn image(self) -> String {
        format!("docker.io/library/debian:{}-slim", self.name())
    }
}

/// This machine's package mirror and what apt must be told to use it. Both are read anew each time and reach a build as
/// files that no layer keeps.
pub struct Mirror {
    directory: PathBuf,
    uris: Vec<Repository>,
}

#[derive(Debug, PartialEq, Eq)]
struct Repository {
    uri: String,
    /// `-updates`, `-security` or nothing.
    pocket: String,
}

impl Mirror {
    /// Reads apt's configuration and keeps what is written for the builds in `directory`.
    pub fn of_this_machine(directory: PathBuf) -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("cannot tell which system this is")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release names no VERSION_CODENAME: building the images needs Debian")?;
        let mut command = Command::new("apt-get");
        let printed = output(command.args(["update", "--print-uris"]))?;
        let uris = repositories(&printed, codename.trim_matches('"'));
        if uris.is_empty() {
            bail!("apt has no repository for {codename}: add Debian's to /etc/apt/sources.list.d");
        }
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, uris })
    }

    /// A sources file for that suite.
    pub fn sources(&self, suite: Suite) -> Result<PathBuf> {
        let file = self.directory.join(format!("{}.sources", suite.name()));
        fs::write(&file, deb822(&self.uris, suite.name()))?;
        Ok(file)
    }

    /// apt's settings for reaching the mirror (proxies, dates, certificates) for an apt of this machine, if there are any.
    pub fn settings(&self) -> Result<Option<PathBuf>> {
        self.write_settings("apt.conf", transport_settings(&output(Command::new("apt-config").arg("dump"))?))
    }

    /// The same for an apt in a build, as what to mount where: a new root has no certificates to trust a mirror by.
    pub fn mounts(&self, suite: Suite) -> Result<Vec<(PathBuf, &'static str)>> {
        let mut mounts = vec![(self.sources(suite)?, "/etc/apt/sources.list.d/debian.sources")];
        let mut settings = transport_settings(&output(Command::new("apt-config").arg("dump"))?);
        let trusted = Path::new("/etc/ssl/certs/ca-certificates.crt");
        if self.uris.iter().any(|r| r.uri.starts_with("https:")) && trusted.exists() {
            mounts.push((trusted.to_owned(), TRUSTED));
            settings.push_str(&format!("Acquire::https::CaInfo \"{TRUSTED}\";\n"));
        }
        if let Some(file) = self.write_settings("apt-in-builds.conf", settings)? {
            mounts.push((file, "/etc/apt/apt.conf.d/99-build-machine"));
        }
        Ok(mounts)
    }

    fn write_settings(&self, name: &str, settings: String) -> Result<Option<PathBuf>> {
        if settings.is_empty() {
            return Ok(None);
        }
        let file = self.directory.join(name);
        fs::write(&file, settings)?;
        Ok(Some(file))
    }
}

/// Where a build finds the authorities that this machine trusts. Of what is mounted, a layer keeps an empty file.
const TRUSTED: &str = "/run/build-machine.crt";

/// The repositories of Debian itself among what `apt-get update --print-uris` prints.
fn repositories(printed: &str, codename: &str) -> Vec<Repository> {
    let mut found = Vec::new();
    for line in printed.lines() {
        let Some(uri) = line.strip_prefix('\'').and_then(|l| l.split('\'').next()) else { continue };
        let Some((base, suite)) = uri.strip_suffix("/InRelease").and_then(|u| u.split_once("/dists/")) else {
            continue;
        };
        let Some(pocket) = suite.strip_prefix(codename) else { continue };
        // Other people's repositories use the codename too, but not Debian's directory.
        let directory = base.rsplit('/').next().unwrap_or_default();
        let ours = match pocket {
            "" | "-updates" => directory == "debian",
            "-security" => directory.starts_with("debian-security"),
            _ => false,
        };
        if ours {
            found.push(Repository { uri: base.to_owned(), pocket: pocket.to_owned() });
        }
    }
    found
}

fn deb822(repositories: &[Repository], suite: &str) -> String {
    let stanza =
        |r: &Repository| format!("Types: deb\nURIs: {}\nSuites: {suite}{}\nComponents: main\n", r.uri, r.pocket);
    repositories.iter().map(stanza).collect::<Vec<_>>().join("\n")
}

/// The lines of `apt-config dump` that say how to reach a mirror.
fn transport_settings(dump: &str) -> String {
    let wanted = |line: &&str| {
        let name = line.split([' ', ';']).next().unwrap_or_default().to_ascii_lowercase();
        let told = ["acquire::http::", "acquire::https::", "acquire::check-"].iter().any(|p| name.starts_with(p));
        // Programs of this machine are not in the image.
        told && !name.contains("auto-detect") && !name.contains("proxyautodetect") && !line.contains(" \"\"")
    };
    dump.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
}

/// Makes sure that the layout has the base image of this suite. Returns the key of what it was built from.
pub fn ensure_base(progress: &Progress, layout: &Layout, mirror: &Mirror, suite: Suite, work: &Path) -> Result<String> {
    let name = suite.base();
    let key = Key::new("base 2").with(suite.name()).with(LEFT_OUT.join(" ")).finish();
    if layout.is_current(&name, &key)? {
        return Ok(key);
    }
    let tar = work.join(format!("{}.tar", suite.name()));
    progress.say(&name, "making the root file system");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--mode=root", "--variant=minbase", "--quiet"]);
    // Bookworm's essential packages ask for usrmerge, which brings Perl, unless the directories are merged beforehand.
    mmdebstrap.arg("--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr");
    for directory in LEFT_OUT {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{directory}/*"));
    }
    if let Some(settings) = mirror.settings()? {
        mmdebstrap.arg(format!("--aptopt={}", settings.display()));
    }
    mmdebstrap.arg(format!("--customize-hook={}", leave_no_trace(suite)));
    mmdebstrap.arg(suite.name()).arg(&tar).arg(mirror.sources(suite)?);
    mmdebstrap.env("SOURCE_DATE_EPOCH", "0");
    progress.run(&name, &mut mmdebstrap)?;
    progress.say(&name, "packing");
    let mut image =
        Image::empty().set("Env", json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]));
    image = image.set("Cmd", json!(["bash"]));
    layout.add_tar(&mut image, &tar, &format!("mmdebstrap --variant=minbase {}", suite.name()))?;
    fs::remove_file(&tar)?;
    layout.write(&name, &key, &image)?;
    Ok(key)
}

/// Removes this machine's mirror from the new root and names Debian's own, as the official image does.
fn leave_no_trace(suite: Suite) -> String {
    let public = |uri: &str, suites: &str| {
        format!(
            "Types: deb\\nURIs: http://deb.debian.org/{uri}\\nSuites: {suites}\\nComponents: main\\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\\n"
        )
    };
    let name = suite.name();
    let sources =
        [public("debian", &format!("{name} {name}-updates")), public("debian-security", &format!("{name}-security"))]
            .join("\\n");
    format!(
        "cd \"$1\" && rm -f etc/apt/apt.conf.d/99mmdebstrap etc/apt/sources.list etc/apt/sources.list.d/* \
         etc/resolv.conf etc/hostname var/log/*.log var/log/apt/* \
         && printf '{sources}' > etc/apt/sources.list.d/debian.sources"
    )
}

/// What a small command prints.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
'https://mirror.example/debian/dists/bookworm/InRelease' a 0 \n\
'https://mirror.example/debian/dists/bookworm-updates/InRelease' b 0 \n\
'https://mirror.example/debian/dists/bookworm-backports/InRelease' b 0 \n\
'https://mirror.example/debian-security/dists/bookworm-security/InRelease' c 0 \n\
'https://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' d 0 \n\
'https://packages.example/linux/apt/dists/bookworm/InRelease' e 0 \n";

    #[test]
    fn only_debians_own_repositories_count_and_the_suite_is_replaced() {
        let found = repositories(PRINTED, "bookworm");
        let written = deb822(&found, "trixie");
        let of = |start: &str| written.lines().filter_map(|l| l.strip_prefix(start)).map(str::trim).collect::<Vec<_>>();
        assert_eq!(of("Suites:"), ["trixie", "trixie-updates", "trixie-security"]);
        assert_eq!(
            of("URIs:"),
            [
                "https://mirror.example/debian",
                "https://mirror.example/debian",
                "https://mirror.example/debian-security"
            ]
        );
    }

    #[test]
    fn only_settings_about_reaching_a_mirror_are_taken_along() {
        let dump = "Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://proxy.example:3128\";\n\
                    Acquire::http::Proxy-Auto-Detect \"/usr/bin/detect\";\nAcquire::Check-Date \"false\";\n\
                    APT::Update::Post-Invoke:: \"rm -f /x\";\n";
        let expected = "Acquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(transport_settings(dump), expected);
    }
}
