//! The faults of the matrix, each with the end that it must come to.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use memoria_operator::{
    api::{
        GoDuration, MemoriaRelease,
        release::{ClaimRef, DataLossBudget, Storage},
        upgrade::Category,
    },
    upgrade::phase::FORWARD,
};
use serde_json::json;

use super::during::{CLAIM, During, METRIC};
use crate::{
    config::{OUTPUT, OVERRIDES},
    good::demand_events,
    rollback::{ALTERS_THEN_CRASHES, BAD_MIGRATION, BOOTSTRAP_FAILS, SILENT_MIGRATION},
    site::{Options, TO},
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Database {
    Postgres15,
    Postgres17,
    Sqlite,
}

use Database::{Postgres15, Postgres17, Sqlite};

impl Database {
    pub const ALL: [Self; 3] = [Postgres15, Postgres17, Sqlite];

    pub fn name(self) -> &'static str {
        match self {
            Postgres15 => "postgresql-15",
            Postgres17 => "postgresql-17",
            Sqlite => "sqlite",
        }
    }

    pub fn options(self, fault: &Fault, seed: u32) -> Options {
        let options = Options { rows: fault.rows, seed, ..Options::default() };
        match self {
            Postgres15 => options,
            Postgres17 => Options { postgres: 17, ..options },
            Sqlite => Options { sqlite: true, ..options },
        }
    }
}

/// How it must end. In each case image, data, replicas, flags and settings are compared with what was before.
pub enum End {
    /// Refused before anything is touched; the message has these words.
    Refused(&'static [&'static str]),
    Succeeds,
    /// This phase failed for this reason before the image moved: what ran before runs again.
    Resumed(&'static str, Category),
    /// Image and data come back after this phase failed for this reason.
    Back(&'static str, Category),
    /// A person ended it: nothing was touched yet, or what ran before runs again, or image and data come back.
    Ordered,
}

pub struct Fault {
    pub name: String,
    /// The version that is asked for.
    pub version: &'static str,
    /// Its images get a tag that is made up for the run, and the upgrade is to that.
    pub under_a_random_tag: bool,
    /// How the release differs from the sample.
    pub release: fn(&mut MemoriaRelease) -> Result<()>,
    pub rows: u32,
    pub during: During,
    pub end: End,
    /// Why a cell makes no sense.
    pub not: BTreeMap<Database, String>,
    /// CI's sample may take it: it was seen on a cluster, and is quick enough.
    pub in_ci: bool,
}

impl Fault {
    fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: TO,
            under_a_random_tag: false,
            release: |_| Ok(()),
            rows: 2_000,
            during: During::Nothing,
            end: End::Succeeds,
            not: BTreeMap::new(),
            in_ci: false,
        }
    }

    fn not_on(mut self, database: Database, why: impl Into<String>) -> Self {
        self.not.insert(database, why.into());
        self
    }

    /// One upgrade for each of many phases is tried on one database.
    fn only_on(mut self, database: Database) -> Self {
        let others = Database::ALL.into_iter().filter(|other| *other != database);
        self.not = others.map(|other| (other, format!("phases take turns; this one on {}", database.name()))).collect();
        self
    }
}

pub fn all() -> Vec<Fault> {
    let mut all = vec![
        Fault {
            version: "1.0.9-never-built",
            end: End::Refused(&["1.0.9-never-built"]),
            in_ci: true,
            ..Fault::named("image missing")
        },
        Fault {
            version: "1.0.1-crash",
            end: End::Back("Start", Category::Candidate),
            in_ci: true,
            ..Fault::named("crash at start")
        },
        Fault {
            version: "1.0.1-never-ready",
            release: |release| {
                release.spec.timeouts.rollout = GoDuration::from_secs(45);
                Ok(())
            },
            end: End::Back("Start", Category::Environment),
            ..Fault::named("never ready")
        },
        Fault {
            version: BAD_MIGRATION,
            end: End::Back("Migrate", Category::Candidate),
            in_ci: true,
            ..Fault::named("migration exits 1 after half of its DDL")
        },
        Fault {
            version: BAD_MIGRATION,
            under_a_random_tag: true,
            end: End::Back("Migrate", Category::Candidate),
            in_ci: true,
            ..Fault::named("the same under a random tag")
        },
        Fault {
            version: SILENT_MIGRATION,
            end: End::Back("Migrate", Category::Candidate),
            in_ci: true,
            ..Fault::named("migration exits 0 with the schema wrong")
        },
        Fault { version: "1.0.1-loud-ok", ..Fault::named("migration prints a failure with the schema right") },
        Fault {
            version: "1.0.1-hang-migrate",
            release: |release| {
                release.spec.timeouts.migrate = GoDuration::from_secs(90);
                Ok(())
            },
            end: End::Back("Migrate", Category::Environment),
            ..Fault::named("migration hangs")
        },
        Fault {
            version: ALTERS_THEN_CRASHES,
            end: End::Back("Start", Category::Candidate),
            in_ci: true,
            ..Fault::named("server alters the schema and crashes")
        },
        Fault {
            during: During::OverridesBroken,
            release: with_settings,
            end: End::Refused(&["overrides", "line"]),
            ..Fault::named("override no longer parses")
        }
        .not_on(Sqlite, NO_SETTINGS),
        Fault {
            during: During::OverridesBreak,
            release: with_settings,
            end: End::Back("ConfigRefresh", Category::Conflict),
            ..Fault::named("override no longer parses from Migrate on")
        }
        .not_on(Sqlite, NO_SETTINGS),
    ];
    all.extend(of_ingestion());
    all.extend(of_surroundings());
    all.extend(of_orders());
    all
}

const NO_SETTINGS: &str = "this installation mounts no settings";
const NO_QUEUE: &str = "one server alone has no queue and no workers";

/// What shows once clients and workers are let in again.
fn of_ingestion() -> Vec<Fault> {
    vec![
        Fault {
            during: During::QueueStuck,
            release: |release| {
                release.spec.checks.iter_mut().filter(|check| check.name == QUEUE).for_each(|check| {
                    check.within = GoDuration::from_secs(30);
                });
                without_asking(release)
            },
            end: End::Back("IngestionReenable", Category::Candidate),
            ..Fault::named("queue never drains")
        }
        .not_on(Sqlite, NO_QUEUE),
        Fault {
            during: During::MetricStale,
            release: |release| {
                let queue = release.spec.checks.iter_mut().find(|check| check.name == QUEUE).context("the check")?;
                queue.within = GoDuration::from_secs(20);
                queue.http.as_mut().context("it asks by http")?.url = format!("http://{METRIC}:8080/depth");
                Ok(())
            },
            ..Fault::named("queue metric stale until somebody mends it")
        }
        .not_on(Sqlite, NO_QUEUE),
        Fault {
            version: BOOTSTRAP_FAILS,
            release: without_asking,
            end: End::Back("Verification", Category::Candidate),
            ..Fault::named("bootstrap fails")
        },
        Fault {
            version: "1.0.1-telemetry-silent",
            during: During::Ingestion,
            release: |release| {
                demand_events(release);
                without_asking(release)
            },
            end: End::Back("Verification", Category::Candidate),
            ..Fault::named("telemetry silent")
        }
        .not_on(Sqlite, NO_QUEUE),
        Fault {
            version: BOOTSTRAP_FAILS,
            during: During::LateWrites,
            rows: 6_000,
            release: without_asking,
            end: End::Back("Verification", Category::Candidate),
            ..Fault::named("verification fails after 1,000 late writes of all three kinds")
        },
    ]
}

/// The sample's check of the queue.
const QUEUE: &str = "queue-depth";

fn of_surroundings() -> Vec<Fault> {
    vec![
        Fault {
            during: During::StorageFull,
            rows: 300,
            release: |release| {
                let claim = ClaimRef { claim_name: CLAIM.to_owned() };
                release.spec.snapshot.storage =
                    Some(Storage { persistent_volume_claim: Some(claim), object_store: None });
                release.spec.snapshot.capacity_factor = 2;
                Ok(())
            },
            end: End::Resumed("SnapshotExport", Category::Environment),
            in_ci: true,
            ..Fault::named("snapshot storage full")
        },
        Fault {
            version: ALTERS_THEN_CRASHES,
            during: During::PodOf("restore"),
            end: End::Back("Start", Category::Candidate),
            ..Fault::named("restore killed once")
        },
        Fault {
            version: ALTERS_THEN_CRASHES,
            during: During::RestoreKilled { times: 10 },
            rows: 12_000,
            end: End::Back("Start", Category::Candidate),
            ..Fault::named("restore killed 10 times inside the transaction")
        }
        .not_on(Sqlite, "a file is swapped by one rename; tests/sqlite/restore.rs kills before and after it"),
        Fault {
            version: ALTERS_THEN_CRASHES,
            during: During::DatabaseRestarts,
            end: End::Back("Start", Category::Candidate),
            ..Fault::named("database restarted in mid-restore")
        }
        .not_on(Sqlite, "a file has no server"),
        Fault {
            during: During::PodOf("migrate"),
            end: End::Back("Migrate", Category::Environment),
            ..Fault::named("pod evicted in mid-migration")
        },
        Fault {
            during: During::ImageFlipped,
            end: End::Back("Start", Category::Conflict),
            in_ci: true,
            ..Fault::named("image flipped back")
        },
    ]
}

/// What a person may order at any time.
fn of_orders() -> Vec<Fault> {
    let before = Fault {
        during: During::Deletion("PreFlight"),
        end: End::Ordered,
        ..Fault::named("deletion in PreFlight").only_on(Sqlite)
    };
    let turns = || (0..).map(|n| Database::ALL[n % Database::ALL.len()]);
    let aborts = FORWARD.iter().zip(turns()).map(|(phase, database)| Fault {
        during: During::Abort(phase.name),
        release: without_asking,
        end: End::Ordered,
        ..Fault::named(format!("abort in {}", phase.name)).only_on(database)
    });
    let deletions = FORWARD.iter().zip(turns().skip(1)).map(|(phase, database)| Fault {
        during: During::Deletion(phase.name),
        release: without_asking,
        end: End::Ordered,
        ..Fault::named(format!("deletion in {}", phase.name)).only_on(database)
    });
    aborts.chain([before]).chain(deletions).collect()
}

/// Rows that were written since clients were let in may be set aside without a person's word. Old and new servers rewrite
/// some whenever they start, so without it every way back from here on asks first.
fn without_asking(release: &mut MemoriaRelease) -> Result<()> {
    release.spec.rollback.data_loss_budget = DataLossBudget { rows: 5_000 };
    Ok(())
}

fn with_settings(release: &mut MemoriaRelease) -> Result<()> {
    let place = |name: &str| json!({"configMapKeyRef": {"name": name, "key": "config.yaml"}});
    release.spec.config =
        Some(serde_json::from_value(json!({"output": place(OUTPUT), "overrides": place(OVERRIDES)}))?);
    Ok(())
}
