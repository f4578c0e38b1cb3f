//! Releases that cannot be carried out: refused with what is wrong and what to do, and Memoria is left alone.

use anyhow::{Context, ensure};
use kube::{Api, api::DeleteParams};
use memoria_operator::api::{
    GoDuration, MemoriaRelease,
    release::{MigrationMode, WorkerKind, WorkerRef},
};

use crate::{
    Outcome,
    checkers::Captured,
    failures::untouched,
    site::{Options, RELEASE, Site, TO, UPGRADED, standing, with_site},
};

/// What is wrong with a release, the reason that it must get, and words of the message.
struct Wrong {
    what: &'static str,
    change: fn(&mut MemoriaRelease),
    reason: &'static str,
    words: &'static [&'static str],
}

const WRONG: &[Wrong] = &[
    Wrong {
        what: "an older version",
        change: |release| release.spec.version = "0.8.0".into(),
        reason: "DowngradeUnsupported",
        words: &["0.8.0", "0.9.0"],
    },
    Wrong {
        what: "a workload that is not there",
        change: |release| release.spec.targets[0].workload_ref.name = "memoria-servre".into(),
        reason: "InvalidSpec",
        words: &["memoria-servre"],
    },
    Wrong {
        what: "a container that is not there",
        change: |release| release.spec.targets[0].container = Some("sidecar".into()),
        reason: "InvalidSpec",
        words: &["sidecar", "server"],
    },
    Wrong {
        what: "a worker that is not there",
        change: |release| {
            release.spec.ingestion.workers.push(WorkerRef { kind: WorkerKind::StatefulSet, name: "ingest".into() })
        },
        reason: "InvalidSpec",
        words: &["ingest"],
    },
    Wrong {
        what: "an image that does not exist",
        change: |release| release.spec.version = "9.9.9".into(),
        reason: "PreFlightFailed",
        words: &["9.9.9"],
    },
    Wrong {
        what: "a migration that the version does not have",
        change: |release| {
            release.spec.migrations.mode = MigrationMode::Named;
            release.spec.migrations.names = vec!["add_everything".into()];
        },
        reason: "PreFlightFailed",
        words: &["add_everything"],
    },
    Wrong {
        what: "a check that does not compile",
        change: |release| release.spec.checks[0].pass_when = "body.depth <= ".into(),
        reason: "PreFlightFailed",
        words: &["passWhen", "queue-depth"],
    },
];

#[tokio::test]
async fn wrong_releases_are_refused_with_what_to_do() -> Outcome {
    with_site("wrong", Options { rows: 300, ..Options::default() }, async |site| {
        let before = Captured::now(site).await?;
        for wrong in WRONG {
            refuse(site, wrong).await.with_context(|| format!("with {}", wrong.what))?;
        }
        untouched(site, &before).await
    })
    .await
}

async fn refuse(site: &Site, wrong: &Wrong) -> Outcome {
    site.say(&format!("a release with {}", wrong.what));
    let mut release = site.new_release()?;
    release.spec.version = TO.to_owned();
    release.spec.timeouts.pre_flight = GoDuration::from_mins(4);
    (wrong.change)(&mut release);
    site.create(&release).await?;
    let release = site.until_settled(UPGRADED).await?;
    let (phase, reason, message) = standing(&release);
    ensure!(reason == wrong.reason, "{phase}/{reason}, not {}: {message}", wrong.reason);
    for word in wrong.words {
        ensure!(message.contains(word), "the message does not name {word:?}: {message}");
    }
    delete(site, RELEASE).await
}

async fn delete(site: &Site, name: &str) -> Outcome {
    let api: Api<MemoriaRelease> = site.api();
    api.delete(name, &DeleteParams::default()).await?;
    for _ in 0..60 {
        if api.get_opt(name).await?.is_none() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    anyhow::bail!("the release {name} does not go; its finalizers: {:?}", api.get(name).await?.metadata.finalizers)
}
