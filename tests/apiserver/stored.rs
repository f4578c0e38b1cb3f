//! Objects that were stored under an older version's schema are read by this one. `stored/README.md` says when to add.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kube::{Api, api::PostParams};
use memoria_operator::api::{
    MemoriaRelease, MemoriaUpgrade,
    release::{DEFAULT_URL_ENV, IngestionState},
    upgrade::{Category, MigrationState, Outcome, PhaseState},
};

use crate::server::{Server, server};

/// The directories of older versions, oldest first.
fn versions() -> Vec<PathBuf> {
    let dir = crate::root().join("tests/apiserver/stored");
    let mut versions: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    versions.sort();
    versions
}

fn namespace(version: &Path) -> String {
    format!("stored-{}", version.file_name().unwrap().to_string_lossy().replace('.', "-"))
}

/// Part of the server's start: afterwards the current CRDs are installed, as an operator's upgrade does.
pub fn before_the_upgrade(server: &Server) {
    for version in versions() {
        let path = |name: &str| version.join(name).display().to_string();
        let namespace = namespace(&version);
        server.install_crds(&version.join("crds"));
        server.kubectl_ok(&["create", "namespace", &namespace]);
        server.kubectl_ok(&["apply", "-n", &namespace, "--server-side", "-f", &path("objects.yaml")]);
        let status = ["apply", "-n", &namespace, "--server-side", "--subresource=status", "-f", &path("status.yaml")];
        server.kubectl_ok(&status);
    }
}

#[tokio::test]
async fn releases_of_older_versions_are_read_and_can_be_written_back() {
    let server = server();
    for version in versions() {
        let releases: Api<MemoriaRelease> = Api::namespaced(server.client(), &namespace(&version));
        let bare = releases.get("bare").await.unwrap();
        assert_eq!(bare.spec.database.url_from.env.as_deref(), Some(DEFAULT_URL_ENV));
        assert_eq!(bare.status, None);

        let release = releases.get("memoria").await.unwrap();
        assert_eq!((&release.spec.targets[0].container, &release.spec.database.url_from.env), (&None, &None));
        let limits = release.spec.jobs.resources.as_ref().unwrap().limits.as_ref().unwrap();
        assert_eq!(limits["cpu"].0, "1");
        let status = release.status.as_ref().unwrap();
        assert_eq!(status.conditions[0].reason, "Progressing");
        assert_eq!(status.ingestion.as_ref().unwrap().state, IngestionState::Stopped);
        assert_eq!(status.attempt.as_ref().unwrap().finished_at, None);
        for stored in [bare, release] {
            let name = stored.metadata.name.clone().unwrap();
            releases.replace(&name, &PostParams { dry_run: true, ..PostParams::default() }, &stored).await.unwrap();
        }
    }
}

#[tokio::test]
async fn attempts_of_older_versions_are_read_and_their_plan_is_still_the_same() {
    let server = server();
    for version in versions() {
        let upgrades: Api<MemoriaUpgrade> = Api::namespaced(server.client(), &namespace(&version));
        let upgrade = upgrades.get("memoria-1").await.unwrap();
        assert_eq!(upgrade.spec.targets[0].candidate["spec"]["containers"][0]["name"], "server");
        assert_eq!(upgrade.spec.jobs[0].manifest["metadata"]["name"], "memoria-1-snapshot");
        assert_eq!(upgrade.spec.timeouts.migrate.as_secs(), 1800);
        let status = upgrade.status.as_ref().unwrap();
        assert_eq!(status.outcome, Some(Outcome::Halted));
        assert_eq!(status.failure.as_ref().unwrap().category, Category::Candidate);
        assert_eq!(status.phases[1].state, PhaseState::Failed);
        assert_eq!(status.migrations[1].state, MigrationState::Failed);
        // The immutability rule compares with what is stored: writing back what was read is no change.
        upgrades.replace("memoria-1", &PostParams { dry_run: true, ..PostParams::default() }, &upgrade).await.unwrap();
    }
}
