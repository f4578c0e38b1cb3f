//! PreFlight, beside the candidate's migrations: the upgrade of the data and its way back, on a copy. The live database is
//! read in one read-only transaction; snapshot, guard and restore are those of the upgrade itself, let loose on an ephemeral
//! server, or on a copy of the file. What fails here would fail there, with writers stopped. Nothing of it is kept.

mod copy;
mod file;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use memoria_runner::order::RunnerResult;
use sqlx::{Connection, PgConnection};
use tokio::sync::watch;
use tracing::info;

use super::{
    context::{Context, Places},
    exchange::{Shared, Waited},
    guard,
    protocol::{
        DatabaseTask, Facts, GuardOrder, JobInput, JobReport, RehearsalFacts, RehearsalOrder, RestoreOrder,
        SnapshotOrder,
    },
    reference::{self, Reference},
    report, restore,
    snapshot::{self, millis},
    sqlite,
};
use crate::{
    api::upgrade::{Category, Engine},
    snapshot::{
        Error, Result, archive::Part, digest::DataDigest, dump, identity, scratch::ScratchServer, session::open,
        sqlite::markers::Lock, tools::Tools,
    },
};

/// The step's name in `application_name`.
const STEP: &str = "rehearsal";
/// Where snapshot and failed state lie, below the copy's own storage.
const DIRECTORY: &str = "snapshot";
const FAILED: &str = "failed";
/// The copy's database, where the live one's name is no plain word.
const PLAIN: &str = "memoria";

pub async fn run(context: &Context, order: &RehearsalOrder, mut stop: watch::Receiver<bool>) -> Result<JobReport> {
    let shared = Shared::new(&context.places.shared);
    if let Some(report) = shared.verdict()? {
        return Ok(report);
    }
    let place = context.places.scratch.join("rehearsal");
    let _ = fs::remove_dir_all(&place);
    if shared.go()?.is_some_and(|go| go.proceed) {
        let message = "the copy that the migrations ran on was lost with its container; ask again";
        return Ok(report::refused(Category::Transient, "Interrupted", message));
    }
    let left = Duration::try_from(order.until.duration_since(jiff::Timestamp::now())).unwrap_or_default();
    let mut waiting = stop.clone();
    let done = tokio::select! {
        done = Rehearsal::new(context, order, &shared, &place).run(&mut waiting) => done,
        () = tokio::time::sleep(left) => Ok(report::refused(
            Category::Environment,
            "RehearsalTimedOut",
            "it did not end in its share of timeouts.preFlight; raise that, or set rollback.rehearse: Never",
        )),
        _ = stop.wait_for(|stopped| *stopped) => Ok(report::interrupted()),
    };
    for left in [&place, &shared.path(file::DIRECTORY)] {
        let _ = fs::remove_dir_all(left);
    }
    done
}

struct Rehearsal<'a> {
    context: &'a Context,
    order: &'a RehearsalOrder,
    shared: &'a Shared,
    /// Everything of it lies below.
    place: &'a Path,
    facts: RehearsalFacts,
}

/// The copy, and what to tell the upgrade's own steps so that they work on it.
struct Copy {
    /// With the name of the database in it; none for a file.
    server: Option<(ScratchServer, String)>,
    context: Context,
    task: DatabaseTask,
    url: String,
}

/// What is held while migrations run.
enum Held {
    Session(PgConnection),
    File(Lock),
}

impl<'a> Rehearsal<'a> {
    fn new(context: &'a Context, order: &'a RehearsalOrder, shared: &'a Shared, place: &'a Path) -> Self {
        Self { context, order, shared, place, facts: RehearsalFacts::default() }
    }

    async fn run(mut self, stop: &mut watch::Receiver<bool>) -> Result<JobReport> {
        let report = match self.rehearse(stop).await {
            Ok(report) => report,
            Err(error) => report::failed(&error),
        };
        Ok(JobReport { facts: Some(Facts::Rehearsal(self.facts)), ..report })
    }

    async fn rehearse(&mut self, stop: &mut watch::Receiver<bool>) -> Result<JobReport> {
        let reference = self.reference().await?;
        for directory in [&self.context.places.scratch, &self.context.places.shared] {
            let free = reference::free_bytes(directory)?;
            if free < self.order.needed_bytes {
                return Ok(too_small(free, self.order.needed_bytes));
            }
        }
        let started = Instant::now();
        let copied = match self.context.engine() {
            Engine::Postgresql => self.copy().await,
            Engine::Sqlite => self.copy_file().await.map(Ok),
        };
        self.facts.copy_millis = millis(started);
        let copy = match copied {
            Ok(Ok(copy)) => copy,
            Ok(Err(report)) => return Ok(*report),
            Err(error) => return Ok(self.not_restorable(&error)),
        };
        let done = self.on_the_copy(&copy, &reference, stop).await;
        if let Some((server, _)) = copy.server {
            server.stop().await;
        }
        done
    }

    /// The live database in an ephemeral server; the inner error says why there is none.
    async fn copy(&mut self) -> Result<Result<Copy, Box<JobReport>>> {
        let (order, places) = (self.order, &self.context.places);
        let mut session = self.context.patient_session(&order.database, STEP, Duration::from_secs(60)).await?;
        let tools = Tools::of(session.server_version_num().unwrap_or_default() / 10_000).await?;
        let dumped = self.place.join("live");
        let live = copy::read(self.context, order, &tools, &mut session, &dumped).await?;
        let _ = session.close().await;
        self.count(&live.data);
        info!(rows = self.facts.rows, "the live database was read and let go of");
        let user = &self.context.url()?.user;
        let server = ScratchServer::start(&tools, &self.place.join("server"), Some(user)).await?;
        let missing = live.missing_extensions(&server).await?;
        if !missing.is_empty() {
            server.stop().await;
            return Ok(Err(Box::new(no_extension(&missing, tools.major))));
        }
        let url = self.context.url()?;
        let plain = url.database.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && url.database != "postgres";
        let database = if plain { url.database.clone() } else { PLAIN.to_owned() };
        live.restore(&server, &tools, (&dumped, &places.scratch), (&url.user, &database)).await?;
        // Its place is needed.
        fs::remove_dir_all(&dumped).map_err(Error::io("removing", &dumped))?;
        let text = url.on_this_host(server.port, &database);
        let context = Context::of(self.inside(), &text);
        let mut session = open(context.url()?, STEP).await?;
        let identity = Some(identity::read(&mut session, context.url()?).await?);
        let _ = session.close().await;
        let task = DatabaseTask { identity, ..order.database.clone() };
        Ok(Ok(Copy { server: Some((server, database)), context, task, url: text }))
    }

    async fn copy_file(&mut self) -> Result<Copy> {
        let made = file::take(self.context, self.order, self.shared, self.inside()).await?;
        self.count(&made.content.data);
        Ok(Copy { server: None, context: made.context, task: made.task, url: made.url })
    }

    /// Mounts as the steps find them, with a storage of its own.
    fn inside(&self) -> Places {
        Places { storage: self.place.join("storage"), ..self.context.places.clone() }
    }

    fn count(&mut self, data: &DataDigest) {
        self.facts.rows = data.rows();
        self.facts.tables = i32::try_from(data.tables.len()).unwrap_or(i32::MAX);
    }

    /// Snapshot, migrations and the way back, as the upgrade does them.
    async fn on_the_copy(
        &mut self,
        copy: &Copy,
        reference: &Reference,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<JobReport> {
        let started = Instant::now();
        let taken = match copy.snapshot(&self.snapshot_order(copy)).await {
            Ok(report) => report,
            Err(error) => return Ok(self.not_restorable(&error)),
        };
        self.facts.snapshot_millis = millis(started);
        let Some(Facts::Snapshot(facts)) = &taken.facts else { return Ok(taken) };
        let input = JobInput { manifest_sha256: Some(facts.manifest_sha256.clone()), ..JobInput::default() };
        let context = copy.context.with_input(input);
        let before = copy.beyond_restore().await?;

        let started = Instant::now();
        let order = self.guard_order(copy);
        let held = match begin(&context, &order, self.shared.token()?).await? {
            Ok(held) => held,
            Err(report) => return Ok(*report),
        };
        self.shared.proceed(Some(copy.url.clone()))?;
        info!("the copy is ready; the runner may begin");
        let limit = Duration::from_secs(self.order.limit_seconds) + guard::GRACE;
        let result = match self.shared.wait(limit, stop).await? {
            Waited::Result(result) => result,
            Waited::TimeUp => {
                let message = "the runner left no result of the migrations in time; its container's log says why";
                return Ok(report::refused(Category::Environment, "RehearsalTimedOut", message));
            }
            Waited::Stopped => return Ok(report::interrupted()),
        };
        let judged = finish(&context, &order, reference, &result, held).await?;
        self.facts.migrate_millis = millis(started);
        if !judged.ok {
            return Ok(self.migrations_failed(&judged, &result));
        }

        let started = Instant::now();
        let order = self.restore_order(copy);
        let restored = match context.engine() {
            Engine::Postgresql => restore::run(&context, &order).await,
            Engine::Sqlite => sqlite::restore::run(&context, &order).await,
        };
        self.facts.restore_millis = millis(started);
        match restored {
            Ok(report) if report.ok => {}
            Ok(report) if report.reason == "RestoreTimedOut" => return Ok(report),
            Ok(report) => return Ok(self.irreversible(&result, &report.message)),
            Err(error) if is_for_lack(&error) => return Err(error),
            Err(error) => return Ok(self.irreversible(&result, &error.to_string())),
        }
        let after = copy.beyond_restore().await?;
        let left: Vec<_> = after.difference(&before).cloned().collect();
        if !left.is_empty() {
            let what = format!("the restore does not take back what lies outside of tables: {}", dump::first(&left));
            return Ok(self.irreversible(&result, &what));
        }
        let message = format!(
            "on a copy of {} rows: {}; restored, it was the copy again in every digest",
            self.facts.rows, judged.message
        );
        Ok(report::done(message, Facts::Rehearsal(self.facts.clone())))
    }

    async fn reference(&self) -> Result<Reference> {
        match &self.order.reference_directory {
            Some(directory) => {
                self.context.bring(directory, Part::Notes).await?;
                Reference::read(&self.context.below_storage(directory)?)
            }
            None => Ok(Reference::none(&self.order.database.attempt, "mode Plan keeps no reference schema")),
        }
    }

    fn snapshot_order(&self, copy: &Copy) -> SnapshotOrder {
        SnapshotOrder {
            database: copy.task.clone(),
            release: self.order.release.clone(),
            from_version: self.order.from_version.clone(),
            directory: DIRECTORY.to_owned(),
            operator_version: self.order.operator_version.clone(),
            portable: self.order.portable,
            rescue: None,
        }
    }

    fn guard_order(&self, copy: &Copy) -> GuardOrder {
        GuardOrder {
            database: copy.task.clone(),
            directory: DIRECTORY.to_owned(),
            reference_directory: String::new(),
            limit_seconds: self.order.limit_seconds,
        }
    }

    fn restore_order(&self, copy: &Copy) -> RestoreOrder {
        let left = self.order.until.duration_since(jiff::Timestamp::now());
        RestoreOrder {
            database: copy.task.clone(),
            directory: DIRECTORY.to_owned(),
            failed_directory: FAILED.to_owned(),
            baseline_directory: None,
            data_loss_budget_rows: 0,
            carry_forward: Vec::new(),
            limit_seconds: u64::try_from(left.as_secs()).unwrap_or_default(),
        }
    }

    fn conclusive(&mut self, category: Category, reason: &str, message: String) -> JobReport {
        self.facts.conclusive = true;
        report::refused(category, reason, message)
    }

    fn not_restorable(&mut self, error: &Error) -> JobReport {
        match error {
            Error::Portable(cause) if matches!(**cause, Error::Uncovered { .. } | Error::Unportable { .. }) => {
                let message = format!("{error}. An upgrade would stop at its snapshot");
                self.conclusive(Category::Environment, cause.reason(), message)
            }
            Error::NotRestorable { .. } | Error::NotUnderstood { .. } | Error::DatabaseDamaged { .. }
                if !is_for_lack(error) =>
            {
                let message =
                    format!("{error}. An upgrade would stop at its snapshot; mend that object, then ask again");
                self.conclusive(Category::Environment, "SnapshotNotRestorable", message)
            }
            _ => report::failed(error),
        }
    }

    fn migrations_failed(&mut self, judged: &JobReport, result: &RunnerResult) -> JobReport {
        if judged.category != Some(Category::Candidate) {
            return judged.clone();
        }
        let message = format!(
            "rehearsed on a copy of the data ({}): {}. Nothing of Memoria was touched; set spec.version to a version \
             whose migrations do what they say",
            ran(result),
            judged.message
        );
        self.conclusive(Category::Candidate, &judged.reason, message)
    }

    fn irreversible(&mut self, result: &RunnerResult, why: &str) -> JobReport {
        let message = format!(
            "rehearsed on a copy of the data ({}): the migrations cannot be taken back, {why}. Nothing of Memoria was \
             touched; set spec.version to another version, or remove what stands in the way",
            ran(result)
        );
        self.conclusive(Category::Candidate, "MigrationIrreversible", message)
    }
}

impl Copy {
    async fn snapshot(&self, order: &SnapshotOrder) -> Result<JobReport> {
        match self.context.engine() {
            Engine::Postgresql => snapshot::run(&self.context, order).await,
            Engine::Sqlite => sqlite::snapshot::run(&self.context, order).await,
        }
    }

    /// A file holds nothing but its tables.
    async fn beyond_restore(&self) -> Result<BTreeSet<String>> {
        match &self.server {
            Some((server, database)) => copy::beyond_restore(server, database).await,
            None => Ok(BTreeSet::new()),
        }
    }
}

async fn begin(context: &Context, order: &GuardOrder, token: String) -> Result<Result<Held, Box<JobReport>>> {
    Ok(match context.engine() {
        Engine::Postgresql => guard::begin(context, order, &token).await?.map(Held::Session),
        Engine::Sqlite => sqlite::guard::begin(context, order, token).await?.map(Held::File),
    })
}

async fn finish(
    context: &Context,
    order: &GuardOrder,
    reference: &Reference,
    result: &RunnerResult,
    held: Held,
) -> Result<JobReport> {
    match held {
        Held::Session(session) => {
            // Its lock is taken once more.
            drop(session);
            guard::finish(context, order, reference, result, false).await
        }
        Held::File(lock) => {
            sqlite::guard::finish(context, order, reference.clone(), result.clone(), false, Some(lock)).await
        }
    }
}

fn ran(result: &RunnerResult) -> String {
    let names: Vec<_> = result.commands.iter().map(|command| command.name.clone()).collect();
    if names.is_empty() { "no migration ran".to_owned() } else { format!("ran {}", dump::first(&names)) }
}

/// What tools say when their server or its disk fails them.
const LACKS: [&str; 6] = [
    "No space left on device",
    "disk is full",
    "disk I/O error",
    "out of memory",
    "server closed the connection",
    "terminating connection",
];

/// It says something of this Job's means and nothing of the upgrade.
fn is_for_lack(error: &Error) -> bool {
    error.category() == Category::Transient
        || error.is_busy()
        || matches!(error, Error::Io { .. } | Error::Scratch { .. } | Error::ToolMissing { .. } | Error::Order { .. })
        || error.sqlstate().is_some_and(|code| code.starts_with("53"))
        || LACKS.iter().any(|words| error.to_string().contains(words))
}

fn too_small(free: i64, needed: i64) -> JobReport {
    let message = format!(
        "the Job's scratch space has {free} bytes free, {needed} are needed for copies of the database; let it run on a \
         node with more (jobs.nodeSelector), or set rollback.rehearse: Never"
    );
    report::refused(Category::Environment, "ScratchTooSmall", message)
}

fn no_extension(missing: &[String], major: u32) -> JobReport {
    let message = format!(
        "the tool image has no extension {}, which the database uses, so no copy can be made, and an upgrade would stop at \
         its snapshot; name an image that has it in toolImages.\"{major}\" of the operator's configuration",
        dump::first(missing)
    );
    report::refused(Category::Environment, "ExtensionMissing", message)
}
