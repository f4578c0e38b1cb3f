//! `memoria-operator snapshot`: exports, imports and comparisons by hand, with no cluster. It runs the same code as the
//! library; here are the command line, the progress bars and the words about how it ended.

mod erase;
mod fetch;
mod late;

use std::{
    collections::HashMap,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::{Arc, Mutex},
};

use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use memoria_operator::{
    job::protocol::DATABASE_URL_ENV,
    snapshot::{
        Error, Result,
        archive::IDENTITY_FILE_ENV,
        manifest::StoredFile,
        portable::{
            self, Compression, Form, Imported, Keys, Manifest, Options, Progress, Proof, Recipients, Source,
            manifest::Table,
            postgres,
            shelf::{self, Fate},
            silent, sqlite,
            verify::{self, Change, Report, Side},
        },
        sqlite::{blocking, url::SqliteUrl},
        store::{
            Place,
            s3::{DEFAULT_PART_MIB, PART_MIB, SCHEME},
        },
        url::DatabaseUrl,
    },
};
use serde::Serialize;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.";
const VERIFY_EXIT_CODES: &str =
    "Exit codes: 0 both are the same, 1 they differ or could not be compared, 2 wrong usage.";
/// `application_name` of our sessions, so that whoever looks at the server knows them.
const APPLICATION: &str = "memoria-operator-by-hand";
/// Stands for the database that is named otherwise.
const THE_DATABASE: &str = "-";

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Export a database into a directory or bucket: every table, column and sequence of one moment, with a manifest that
    /// proves it
    ///
    /// memoria.ndjson.zst holds the tables that Memoria's own `import-data` reads (decompress it with `zstd -d`, or
    /// export with --compress none), others.ndjson.zst all other tables. Memoria may go on working meanwhile. It takes two
    /// sessions, and memory that does not grow with the data.
    #[command(after_help = EXIT_CODES)]
    Export {
        /// Made where it is missing; must be empty. Or s3://bucket/prefix
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[command(flatten)]
        database: Database,
        /// One line a row, or one document
        #[arg(long, value_enum, default_value_t, value_name = "FORM")]
        format: Form,
        #[arg(long, value_enum, default_value_t, value_name = "HOW")]
        compress: Compression,
        /// Read what this exported snapshot of PostgreSQL shows; whoever exported it must still hold it
        #[arg(long, value_name = "ID")]
        snapshot: Option<String>,
        /// Who computes the digests of PostgreSQL's rows
        #[arg(long, value_enum, default_value_t, value_name = "WHO")]
        proof: Proof,
        /// Encrypt it to this public key of age, age1…; may be given several times, and an identity of any of them reads it
        #[arg(long = "recipient", value_name = "KEY")]
        recipients: Vec<String>,
        /// The same, from a file with one key a line
        #[arg(long, value_name = "FILE")]
        recipients_file: Option<PathBuf>,
        /// Into a bucket: size of an upload's parts. It takes memory of four of them; a file has 10,000 parts at most
        #[arg(long, value_name = "MIB", default_value_t = DEFAULT_PART_MIB,
            value_parser = clap::value_parser!(u32).range(i64::from(*PART_MIB.start())..=i64::from(*PART_MIB.end())))]
        part_size: u32,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace a database's rows by those of an export, in one transaction and only if all of it proves right
    ///
    /// The tables must exist, with the same columns. Stop Memoria first: what it writes meanwhile waits and then meets other
    /// rows. A single file, such as Memoria's own `export-data` writes, is imported too; of that nothing can be proved.
    #[command(after_help = EXIT_CODES)]
    Import {
        /// The export's directory or s3://bucket/prefix, or one file of NDJSON or JSON, zstd or not
        #[arg(value_name = "DIR")]
        source: PathBuf,
        #[command(flatten)]
        database: Database,
        #[command(flatten)]
        identities: Identities,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare any two of: a database, a portable export, an exact snapshot
    ///
    /// Every row's hash counts. Says which tables differ, in how many rows, and what of the schema; sequences of the second
    /// may be ahead of the first's. Of an exact snapshot of PostgreSQL rows are not compared one by one.
    #[command(after_help = VERIFY_EXIT_CODES)]
    Verify {
        /// A database URL, a directory or s3://bucket/prefix with a manifest, or - for the database of --database-url
        #[arg(value_name = "A")]
        first: String,
        /// The same
        #[arg(value_name = "B")]
        second: String,
        #[command(flatten)]
        database: Database,
        #[command(flatten)]
        identities: Identities,
        /// Of each table that differs show the keys of up to so many rows; other values are never shown
        #[arg(long, value_name = "N", default_value_t = 0)]
        keys: usize,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the exports and snapshots below a directory or s3://bucket/prefix, the newest last
    #[command(after_help = EXIT_CODES)]
    List {
        /// Or s3://bucket/prefix
        #[arg(value_name = "DIR")]
        storage: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what an export holds, after every byte of it was compared with its manifest
    ///
    /// That needs no identity where it is encrypted; with one all of it is decrypted, too. Of an erased snapshot, also an
    /// exact one, it shows the record.
    #[command(after_help = EXIT_CODES)]
    Show {
        /// Or s3://bucket/prefix
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[command(flatten)]
        identities: Identities,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy what an attempt kept, decrypted, into a directory of this machine
    ///
    /// For snapshots that a release keeps in a bucket or encrypted: what is to be read by other commands or tools then lies
    /// as on a volume, with failed state, evidence and rows that were set aside. Exports stay encrypted; their commands read
    /// them so. DIR then holds people's data: remove it when it is not needed any more.
    #[command(after_help = EXIT_CODES)]
    Fetch {
        /// The attempt's directory, or s3://bucket/prefix; one that holds several attempts brings them all
        #[arg(value_name = "FROM")]
        from: PathBuf,
        /// Made where it is missing; must be empty
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[command(flatten)]
        identities: Identities,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the rows that clients wrote after an upgrade, and that its way back set aside
    #[command(subcommand)]
    LateWrites(late::LateWrites),
    /// Erase the data of one export or snapshot, and of all that an attempt keeps below it
    ///
    /// The files with rows go: of the snapshot, its portable export, the failed state, the baseline, the rows that were set
    /// aside. Manifests stay, and a record erased.json in each directory says when, why, by whom, and which files with their
    /// hashes. An erasure that was killed is finished by the same command; the first reason stays.
    #[command(after_help = EXIT_CODES)]
    Erase(erase::Erase),
    /// Remove old exports below a directory or s3://bucket/prefix
    ///
    /// The newest N whose bytes are as their manifests say stay, and so does every exact snapshot: those belong to attempts.
    /// In a bucket, uploads that began more than a day ago and had no end are ended.
    #[command(after_help = EXIT_CODES)]
    Prune {
        /// Or s3://bucket/prefix
        #[arg(value_name = "DIR")]
        storage: PathBuf,
        /// How many stay
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
        /// Say what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub struct Database {
    /// As Memoria has it: postgresql://user:password@host/db or sqlite:////data/memoria.db. Others on this machine see what
    /// stands on a command line; the variable they do not
    #[arg(long, value_name = "URL", env = DATABASE_URL_ENV, hide_env_values = true)]
    database_url: Option<String>,
}

#[derive(Args)]
pub struct Identities {
    /// What an encrypted export is read with: a file as age-keygen writes it
    #[arg(long, value_name = "FILE", env = IDENTITY_FILE_ENV)]
    identity_file: Option<PathBuf>,
}

/// A database that was named.
enum Target {
    Postgres(Box<DatabaseUrl>),
    Sqlite(PathBuf),
}

/// A failure whose text holds no password.
struct Failure(String);

pub fn run(command: &SnapshotCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(carry_out(command)),
        Err(error) => Err(Failure(error.to_string())),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure(why)) => {
            eprintln!("memoria-operator: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(command: &SnapshotCommand) -> Result<bool, Failure> {
    match command {
        SnapshotCommand::Export {
            directory,
            database,
            format,
            compress,
            snapshot,
            proof,
            recipients,
            recipients_file,
            part_size,
            json,
        } => {
            let (target, place) = (Target::of(database)?, place(directory, *part_size)?);
            let recipients = Recipients::read(recipients, recipients_file.as_deref()).map_err(failure)?;
            let options = Options { form: *format, compression: *compress, recipients };
            let exported = export(&target, &place, options, (snapshot.as_deref(), *proof)).await;
            let manifest = exported.map_err(|error| target.failure(&error))?;
            say(*json, &Exported::of(&place, &manifest), |told| {
                format!(
                    "Exported {} rows of {} tables, {} bytes, into {place}{}",
                    told.rows,
                    told.tables,
                    told.bytes,
                    if manifest.engine == postgres::ENGINE && manifest.proof == Proof::Server {
                        "; every digest is the server's"
                    } else {
                        ""
                    }
                )
            });
            Ok(true)
        }
        SnapshotCommand::Import { source, database, identities, json } => {
            let (target, place) = (Target::of(database)?, place(source, DEFAULT_PART_MIB)?);
            let imported = import(&target, place, identities.keys()?).await.map_err(|error| target.failure(&error))?;
            say(*json, &imported, |told| {
                let proof = if told.proved {
                    "every digest is the export's"
                } else {
                    "nothing could be proved: there is no manifest beside the file"
                };
                format!("Imported {} rows of {} tables; {proof}", told.rows, told.tables)
            });
            Ok(true)
        }
        SnapshotCommand::Verify { first, second, database, identities, keys, json } => {
            let identities = identities.keys()?;
            let sides = [side(first, database, &identities)?, side(second, database, &identities)?];
            let [(before, first_target), (after, second_target)] = &sides;
            let progress = bars();
            let compared = verify::compare(before, after, *keys, &progress.hear).await;
            progress.clear();
            let hidden =
                |text: String| [first_target, second_target].iter().fold(text, |text, target| redact(target, &text));
            let report = compared.map_err(|error| Failure(hidden(error.to_string())))?;
            say(*json, &report, in_words);
            Ok(report.same)
        }
        SnapshotCommand::List { storage, json } => {
            let place = place(storage, DEFAULT_PART_MIB)?;
            let entries = on_a_thread(&place, |place| shelf::list(&place)).await?;
            say(*json, &entries, |entries| entries.iter().map(listed).collect::<Vec<_>>().join("\n"));
            Ok(true)
        }
        SnapshotCommand::Show { directory, identities, json } => {
            let (place, keys) = (place(directory, DEFAULT_PART_MIB)?, identities.keys()?);
            if erase::shown(&place, *json).await? {
                return Ok(true);
            }
            let manifest = on_a_thread(&place, move |place| portable::inspect(&place, &keys)).await?;
            say(*json, &manifest, |manifest| shown(manifest));
            Ok(true)
        }
        SnapshotCommand::Fetch { from, directory, identities, json } => {
            let brought = fetch::fetch(place(from, DEFAULT_PART_MIB)?, directory, identities.keys()?).await?;
            say(*json, &brought, |told| {
                format!("Fetched {} files, {} bytes, into {}", told.files, told.bytes, directory.display())
            });
            Ok(true)
        }
        SnapshotCommand::LateWrites(command) => late::carry_out(command).await,
        SnapshotCommand::Erase(command) => erase::carry_out(command).await,
        SnapshotCommand::Prune { storage, keep, dry_run, json } => {
            let (keep, dry, place) = (*keep as usize, *dry_run, place(storage, DEFAULT_PART_MIB)?);
            let pruned = on_a_thread(&place, move |place| shelf::prune(&place, keep, dry)).await?;
            say(*json, &pruned, |pruned| {
                let line = |shelf::Pruned { directory, fate }: &shelf::Pruned| match fate {
                    Fate::Kept => format!("kept     {directory}"),
                    Fate::Damaged(why) => format!("damaged  {directory}: {why}"),
                    Fate::Erased => format!("erased   {directory}"),
                    Fate::Removed if dry => format!("would go {directory}"),
                    Fate::Removed => format!("removed  {directory}"),
                    Fate::UploadEnded(file) if dry => format!("would go {directory}: the unfinished upload of {file}"),
                    Fate::UploadEnded(file) => format!("removed  {directory}: the unfinished upload of {file}"),
                };
                pruned.iter().map(line).collect::<Vec<_>>().join("\n")
            });
            Ok(true)
        }
    }
}

/// Work on files that blocks, in a directory or another place.
async fn on_a_thread<P: Clone + Send + 'static, T: Send + 'static>(
    place: &P,
    work: impl FnOnce(P) -> Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let place = place.clone();
    blocking(move || work(place)).await.map_err(failure)
}

fn failure(error: Error) -> Failure {
    Failure(error.to_string())
}

/// Where an export is or shall be.
fn place(path: &Path, part_mib: u32) -> Result<Place, Failure> {
    Place::named(path, part_mib).map_err(failure)
}

fn listed(entry: &shelf::Entry) -> String {
    let place = &entry.directory;
    match (&entry.fault, entry.read_at) {
        (Some(fault), _) => format!("unreadable {place}: {fault}"),
        (None, at) => format!(
            "{:<24} {:<12} {:>4} tables {:>12} rows {:>14} bytes  {place}{}{}",
            at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default(),
            entry.kind,
            entry.tables,
            entry.rows,
            entry.bytes,
            if entry.encrypted { " (encrypted)" } else { "" },
            entry.erased.as_ref().map(|record| format!(" ({})", erase::told(record))).unwrap_or_default()
        ),
    }
}

fn shown(manifest: &Manifest) -> String {
    let mut lines = vec![
        format!(
            "{} {}, read at {}, {}",
            manifest.engine, manifest.server_version, manifest.read_at, manifest.read_point
        ),
        format!("data digest {}, schema {}", manifest.data_digest, manifest.schema_fingerprint),
    ];
    lines.extend(manifest.encryption.iter().map(|how| format!("encrypted to {}", how.recipients.join(", "))));
    let table =
        |(name, table): (&String, &Table)| format!("  {:>12} rows  {name} ({})", table.content.rows, table.file);
    lines.extend(manifest.tables.iter().map(table));
    let file =
        |(name, file): (&String, &StoredFile)| format!("  {:>12} bytes {name} sha256 {}", file.bytes, file.sha256);
    lines.extend(manifest.files.iter().map(file));
    lines.join("\n")
}

impl Identities {
    fn keys(&self) -> Result<Keys, Failure> {
        self.identity_file.as_deref().map_or_else(|| Ok(Keys::default()), |path| Keys::read(path).map_err(failure))
    }
}

impl Target {
    fn of(database: &Database) -> Result<Self, Failure> {
        let missing = format!("no database is named; give --database-url or set {DATABASE_URL_ENV}");
        Self::parse(database.database_url.as_deref().filter(|url| !url.is_empty()).ok_or(Failure(missing))?)
    }

    fn parse(url: &str) -> Result<Self, Failure> {
        if !SqliteUrl::is_meant(url) {
            let parsed = DatabaseUrl::from_str(url).map_err(Error::from);
            return parsed.map(Box::new).map(Self::Postgres).map_err(|error| Failure(error.to_string()));
        }
        let here = std::env::current_dir().map_err(|error| Failure(error.to_string()))?;
        let path = SqliteUrl::parse(url).and_then(|url| url.resolve(here.to_str()));
        path.map(Self::Sqlite).map_err(|error| Failure(Error::from(error).to_string()))
    }

    fn failure(&self, error: &Error) -> Failure {
        Failure(redact(&Some(self), &error.to_string()))
    }
}

/// `text` without any form of the password.
fn redact<T: std::borrow::Borrow<Target>>(target: &Option<T>, text: &str) -> String {
    match target.as_ref().map(std::borrow::Borrow::borrow) {
        Some(Target::Postgres(url)) => url.redact(text),
        _ => text.to_owned(),
    }
}

fn side(name: &str, database: &Database, keys: &Keys) -> Result<(Side, Option<Target>), Failure> {
    let target = match name {
        THE_DATABASE => Target::of(database)?,
        url if url.contains("://") && !url.starts_with(SCHEME) => Target::parse(url)?,
        stored => return Ok((Side::Stored(place(stored.as_ref(), DEFAULT_PART_MIB)?, keys.clone()), None)),
    };
    let side = match &target {
        Target::Postgres(url) => Side::Postgres { url: url.clone(), application: APPLICATION.to_owned() },
        Target::Sqlite(path) => Side::Sqlite(path.clone()),
    };
    Ok((side, Some(target)))
}

async fn export(
    target: &Target,
    directory: &Place,
    options: Options,
    (snapshot, proof): (Option<&str>, Proof),
) -> Result<Manifest> {
    let bars = bars();
    let exported = match target {
        Target::Postgres(url) => {
            let (digests, progress) = (postgres::Digests::of(proof), bars.hear.clone());
            let request =
                postgres::Export { url, application: APPLICATION, directory, options, snapshot, digests, progress };
            postgres::export(&request).await
        }
        Target::Sqlite(path) => {
            let (path, directory, progress) = (path.clone(), directory.clone(), bars.hear.clone());
            blocking(move || {
                sqlite::export(&sqlite::Export {
                    database: &path,
                    copy: false,
                    directory: &directory,
                    options,
                    progress,
                })
            })
            .await
        }
    };
    bars.clear();
    exported
}

async fn import(target: &Target, place: Place, keys: Keys) -> Result<Imported> {
    let source = blocking(move || Source::open(&place, &keys)).await?;
    let bars = bars();
    let progress = bars.hear.clone();
    let imported = match target {
        Target::Postgres(url) => {
            postgres::import(&postgres::Import { url, application: APPLICATION, source: &source, progress }).await
        }
        Target::Sqlite(path) => {
            let path = path.clone();
            blocking(move || sqlite::import(&sqlite::Import { database: &path, source: &source, progress })).await
        }
    };
    bars.clear();
    imported
}

/// What an export came to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Exported<'a> {
    directory: &'a Place,
    tables: usize,
    rows: i64,
    bytes: u64,
    data_digest: &'a str,
    schema_fingerprint: &'a str,
    read_at: jiff::Timestamp,
}

impl<'a> Exported<'a> {
    fn of(directory: &'a Place, manifest: &'a Manifest) -> Self {
        Self {
            directory,
            tables: manifest.tables.len(),
            rows: manifest.data().rows(),
            bytes: manifest.files.values().map(|file| file.bytes).sum(),
            data_digest: &manifest.data_digest,
            schema_fingerprint: &manifest.schema_fingerprint,
            read_at: manifest.read_at,
        }
    }
}

/// Prints the result. A reader that went away is no failure.
fn say<T: Serialize>(json: bool, result: &T, words: impl Fn(&T) -> String) {
    use std::io::Write;
    let text = if json { serde_json::to_string_pretty(result).unwrap_or_default() } else { words(result) };
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn in_words(report: &Report) -> String {
    let mut lines = Vec::new();
    for table in &report.tables {
        lines.push(match (table.rows, &table.differing) {
            ([Some(rows), None], _) => format!("table {}: only in A, {rows} rows", table.table),
            ([None, Some(rows)], _) => format!("table {}: only in B, {rows} rows", table.table),
            (_, Some(found)) => format!(
                "table {}: {} rows only in A, {} only in B, {} changed",
                table.table, found.only_first, found.only_second, found.changed
            ),
            ([first, second], None) => format!(
                "table {}: {} rows in A, {} in B, not the same; which ones cannot be told here",
                table.table,
                first.unwrap_or_default(),
                second.unwrap_or_default()
            ),
        });
        for (change, key) in table.differing.iter().flat_map(|differing| &differing.keys) {
            let what = match change {
                Change::OnlyFirst => "only in A",
                Change::OnlySecond => "only in B",
                Change::Changed => "changed",
            };
            lines.push(format!("  {what}: {key}"));
        }
    }
    lines.extend(report.sequences.iter().cloned());
    lines.extend(report.schema.iter().map(|line| format!("schema: {line}")));
    if report.same {
        lines.push(format!("The same: {} rows in {} tables", report.rows_compared, report.tables_compared));
    } else {
        lines.push(format!("Not the same: {} of {} tables differ", report.tables.len(), report.tables_compared));
    }
    lines.join("\n")
}

/// One bar for each table that is under way, on a terminal only.
struct Bars {
    hear: Progress,
    all: Option<MultiProgress>,
}

impl Bars {
    fn clear(&self) {
        if let Some(all) = &self.all {
            let _ = all.clear();
        }
    }
}

fn bars() -> Bars {
    if !std::io::stderr().is_terminal() {
        return Bars { hear: silent(), all: None };
    }
    let all = MultiProgress::new();
    let open: Mutex<HashMap<String, ProgressBar>> = Mutex::new(HashMap::new());
    let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let counted = style("{msg:40} {bar:30} {pos}/{len} rows {per_sec}");
    let uncounted = style("{msg:40} {pos} rows {per_sec}");
    let shown = all.clone();
    let hear: Progress = Arc::new(move |table: &str, rows: i64, of: Option<i64>| {
        let Ok(mut open) = open.lock() else { return };
        let rows = rows.unsigned_abs();
        let bar = open.entry(table.to_owned()).or_insert_with(|| {
            let bar = shown.add(match of {
                Some(of) => ProgressBar::new(of.unsigned_abs()).with_style(counted.clone()),
                None => ProgressBar::no_length().with_style(uncounted.clone()),
            });
            bar.set_message(table.to_owned());
            bar
        });
        bar.set_position(rows);
        if of.is_none_or(|of| rows >= of.unsigned_abs()) {
            bar.finish_and_clear();
            open.remove(table);
        }
    });
    Bars { hear, all: Some(all) }
}
