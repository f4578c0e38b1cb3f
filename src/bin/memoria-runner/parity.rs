//! `parity`: what the candidate exports it must be able to import, and then export alike. On scratch SQLite files, in a
//! container that knows no other database.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use memoria_runner::order::{Category, Report, RunnerOrder};
use serde_json::{Value, json};

use crate::{
    bootstrap::fresh,
    command::{Access, cli, database_variables},
    probe::how_it_ended,
    report::{failed, ok},
    supervise::Supervisor,
};

/// Why there is no verdict, or a bad one.
struct Stopped(Report);

pub fn run(order: &RunnerOrder, supervisor: &mut Supervisor) -> Report {
    let variables = database_variables();
    if !variables.is_empty() {
        let message = format!(
            "export and import are not compared: a database is in their reach by {}; take it out of the image's \
             environment",
            variables.join(", ")
        );
        return failed("DatabaseInReach", Category::Environment, message);
    }
    let directory = Path::new(&order.private_directory).join("parity");
    if let Err(error) = fresh(&directory) {
        let message = format!("{} cannot be made: {error}; it needs an emptyDir", directory.display());
        return failed("NotWritable", Category::Environment, message);
    }
    let limit = Instant::now() + Duration::from_secs(order.limit_seconds);
    let mut trial = Trial { order, supervisor, directory, limit };
    match trial.compare() {
        Ok(message) => ok(message),
        Err(Stopped(report)) => report,
    }
}

struct Trial<'a> {
    order: &'a RunnerOrder,
    supervisor: &'a mut Supervisor,
    directory: PathBuf,
    limit: Instant,
}

impl Trial<'_> {
    fn compare(&mut self) -> Result<String, Stopped> {
        let (seed, first, second) = (self.path("seed.json"), self.path("first.json"), self.path("second.json"));
        fs::write(&seed, seed_rows().to_string()).map_err(|error| self.unwritable(&error.to_string()))?;
        let (one, two) = (self.access("one.db")?, self.access("two.db")?);
        self.must(&one, &["init-db"])?;
        // Rows of the release before. A schema that asks for more than they have is no fault of export and import.
        let seeded = self.command(&one, &["import-data", &seed])?;
        self.must(&one, &["export-data", &first])?;
        let exported = self.read(&first)?;
        self.must(&two, &["init-db"])?;
        self.must(&two, &["import-data", &first])?;
        self.must(&two, &["export-data", &second])?;
        let again = self.read(&second)?;
        let differing = differences(&exported, &again);
        if !differing.is_empty() {
            return Err(bad(&format!(
                "what was exported, imported and exported again differs in {}",
                differing.join(", ")
            )));
        }
        let (tables, rows) = size(&exported);
        if tables == 0 {
            return Err(bad("export-data ended well, but its file names no table"));
        }
        match seeded {
            Ok(()) if rows == 0 => Err(bad("import-data ended well, but export-data found no row of what it imported")),
            Ok(()) => Ok(format!("export and import agree: {rows} sample rows in {tables} tables came back alike")),
            Err(why) => Ok(format!(
                "export and import agree on {tables} tables, without rows: the sample could not be imported ({why})"
            )),
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn access(&self, name: &str) -> Result<Access, Stopped> {
        let url = format!("sqlite:///{}", self.path(name));
        Access::new(self.order, &url).map_err(|error| self.unwritable(&error.to_string()))
    }

    /// Runs a command on that database; what went wrong, in words.
    fn command(&mut self, access: &Access, words: &[&str]) -> Result<Result<(), String>, Stopped> {
        let name = words.first().copied().unwrap_or_default();
        let help = cli(self.order, &[name, "--help"].map(OsStr::new), Some(access));
        // Only init-db is known to differ between versions; without the flag it reads the environment.
        let flag = name != "init-db" || {
            let help = self.supervisor.run("init-db --help", help, &access.secrets, self.limit);
            !help.result.exited_well() || help.answer.contains("--database-url")
        };
        let url = ["--database-url", access.url()];
        let arguments: Vec<&OsStr> =
            words.iter().copied().chain(url.into_iter().filter(|_| flag)).map(OsStr::new).collect();
        let ended = self.supervisor.run(name, cli(self.order, &arguments, Some(access)), &access.secrets, self.limit);
        if self.supervisor.stopping() {
            let message = "the pod was ended while export and import were compared".to_owned();
            return Err(Stopped(failed("Interrupted", Category::Transient, message)));
        }
        Ok(match ended.result.exited_well() {
            true => Ok(()),
            false => Err(format!("{name} {}", how_it_ended(&ended.result))),
        })
    }

    fn must(&mut self, access: &Access, words: &[&str]) -> Result<(), Stopped> {
        self.command(access, words)?.map_err(|why| bad(&why))
    }

    fn read(&self, path: &str) -> Result<Value, Stopped> {
        let text = fs::read(path).map_err(|error| bad(&format!("export-data ended well without its file: {error}")))?;
        let value: Value = serde_json::from_slice(&text)
            .map_err(|error| bad(&format!("export-data wrote no JSON, line {}", error.line())))?;
        match value.get("data").is_some_and(Value::is_object) {
            true => Ok(value),
            false => Err(bad("export-data wrote no object \"data\"")),
        }
    }

    fn unwritable(&self, why: &str) -> Stopped {
        let message = format!("{} cannot be used: {why}; it needs an emptyDir", self.directory.display());
        Stopped(failed("NotWritable", Category::Environment, message))
    }
}

fn bad(why: &str) -> Stopped {
    let message = format!("the new version's export and import do not agree: {why}; report it with the Job's log");
    Stopped(failed("ParityFailed", Category::Candidate, message))
}

/// Tables whose rows are not the same.
fn differences(one: &Value, two: &Value) -> Vec<String> {
    let tables = |value: &Value| value.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
    let (one, two) = (tables(one), tables(two));
    let mut names: Vec<&String> = one.keys().chain(two.keys()).collect();
    names.sort();
    names.dedup();
    names.into_iter().filter(|name| one.get(*name) != two.get(*name)).take(10).cloned().collect()
}

fn size(document: &Value) -> (usize, usize) {
    let tables = document.get("data").and_then(Value::as_object);
    let rows = |rows: &Value| rows.as_array().map_or(0, Vec::len);
    tables.map_or((0, 0), |tables| (tables.len(), tables.values().map(rows).sum()))
}

/// A few rows in the documented format that break careless quoting, dates, numbers and JSON.
fn seed_rows() -> Value {
    let at = "2026-01-10T03:00:12.345678";
    json!({
        "data": {
            "agents": [
                {"agent_id": "parity-1", "name": "O'Brien \"% \\ ünï 😀", "role": null, "preferred_model": "m", "is_agent": true,
                 "metadata": {"deep": [1, 2.5, null, {"k": "line\nbreak"}]}, "created_at": at, "updated_at": at},
                {"agent_id": "parity-2", "name": "", "role": "r", "preferred_model": null, "is_agent": false,
                 "metadata": null, "created_at": at, "updated_at": at},
            ],
            "teams": [
                {"team_id": "parity-t", "name": "Parity", "slug": "parity", "description": "a; b -- c", "created_at": at,
                 "updated_at": at},
            ],
        },
        "metadata": {
            "dialect": "sqlite", "exported_at": at, "format": "json",
            "tables": [{"name": "agents", "row_count": 2}, {"name": "teams", "row_count": 1}],
        },
    })
}
