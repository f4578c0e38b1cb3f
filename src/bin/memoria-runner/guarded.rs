//! `migrate`, `rehearse` and `init-db`: begin when the guard says so, leave it the result, hand on its verdict.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    io,
    time::{Duration, Instant},
};

use memoria_runner::order::{
    Category, DATABASE_URL_ENV, GO_FILE, Go, RESULT_FILE, Report, RunnerOrder, RunnerResult, VERDICT_FILE,
};
use serde_json::Value;

use crate::{
    command::{Access, cli},
    report::{Awaited, failed, shared, wait_shared, write, write_shared, write_value},
    supervise::{Ended, Supervisor},
};

/// By the runner, before its first command: a second runner in the same pod never begins.
const BEGUN_FILE: &str = "begun";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Migrate,
    /// The same commands, on the copy that the guard names and on nothing else.
    Rehearse,
    InitDb,
}

/// # Errors
/// When the answer cannot be written.
pub fn run(work: Work, order: &RunnerOrder, supervisor: &mut Supervisor) -> io::Result<bool> {
    if work == Work::Rehearse && std::env::var_os(DATABASE_URL_ENV).is_some() {
        let message = format!(
            "{DATABASE_URL_ENV} is set: a rehearsal must not know the database; this is a defect of the operator"
        );
        return end(order, &failed("BadOrder", Category::Bug, message));
    }
    let go = match go_ahead(order, supervisor) {
        Ok(go) => go,
        Err(report) => return end(order, &report),
    };
    if !go.proceed {
        let Some(report) = go.report else {
            let message = format!("the guard's {GO_FILE} refuses without a reason; this is a defect of the operator");
            return end(order, &failed("BadGoAhead", Category::Bug, message));
        };
        let ok = report.get("ok").and_then(Value::as_bool).unwrap_or_default();
        write_value(order, report)?;
        return Ok(ok);
    }
    if let Err(error) = OpenOptions::new().write(true).create_new(true).open(shared(order, BEGUN_FILE)) {
        let message = format!(
            "the commands are not begun: {} cannot be made ({error}); if it is there already, they ran before in this \
             pod and are never run twice",
            shared(order, BEGUN_FILE).display()
        );
        return end(order, &failed("NotBegun", Category::Environment, message));
    }
    let url = match work {
        Work::Migrate => std::env::var(DATABASE_URL_ENV).ok(),
        Work::Rehearse | Work::InitDb => go.database_url,
    };
    let result = commands(work, order, url, supervisor);
    if let Err(error) = write_shared(order, RESULT_FILE, &result) {
        let message = format!(
            "{} was done, but its result cannot be left for the guard: {error}; look into the database before anything \
             is run again",
            done(&result)
        );
        return end(order, &failed("ResultLost", Category::Environment, message));
    }
    hand_on_verdict(order, &result, supervisor)
}

fn end(order: &RunnerOrder, report: &Report) -> io::Result<bool> {
    write(order, report)?;
    Ok(report.ok)
}

fn go_ahead(order: &RunnerOrder, supervisor: &mut Supervisor) -> Result<Go, Report> {
    let text = match wait_shared(order, GO_FILE, order.go_seconds, supervisor) {
        Awaited::Text(text) => text,
        Awaited::TimeUp => {
            let message = format!(
                "the guard said nothing within {} s, so nothing was run; its container's log says why",
                order.go_seconds
            );
            return Err(failed("GuardSilent", Category::Environment, message));
        }
        Awaited::Stopped => {
            let message = "the pod was ended before anything was run".to_owned();
            return Err(failed("Interrupted", Category::Transient, message));
        }
    };
    let go: Go = serde_json::from_str(&text).map_err(|error| {
        let message = format!("the guard's {GO_FILE} cannot be read: {error}; this is a defect of the operator");
        failed("BadGoAhead", Category::Bug, message)
    })?;
    if go.v == 1 {
        return Ok(go);
    }
    let message = format!("the guard's {GO_FILE} has version {}, this runner knows 1; use images of one release", go.v);
    Err(failed("BadGoAhead", Category::Environment, message))
}

fn commands(work: Work, order: &RunnerOrder, url: Option<String>, supervisor: &mut Supervisor) -> RunnerResult {
    let names = match work {
        Work::Migrate | Work::Rehearse => order.migrations.clone(),
        Work::InitDb => vec!["init-db".to_owned()],
    };
    let mut result = RunnerResult { v: 1, commands: Vec::new() };
    let Some(first) = names.first() else { return result };
    let access = url
        .ok_or_else(|| format!("there is no database URL; set {DATABASE_URL_ENV}"))
        .and_then(|url| Access::new(order, &url).map_err(|error| error.to_string()));
    let access = match access {
        Ok(access) => access,
        Err(why) => {
            result.commands.push(Ended::never_began(first, &why).result);
            return result;
        }
    };
    let limit = Instant::now() + Duration::from_secs(order.limit_seconds);
    let mut preloaded = match work {
        // Importing takes longer than most migrations, and writers are stopped meanwhile.
        Work::Migrate | Work::Rehearse if names.len() > 1 => supervisor.preload(order, &access, limit),
        _ => None,
    };
    for name in &names {
        let ended = match work {
            _ if supervisor.stopping() => Ended::never_began(name, "the pod is being ended"),
            Work::InitDb => init_db(order, &access, supervisor, limit),
            Work::Migrate | Work::Rehearse if name.starts_with('-') => {
                Ended::never_began(name, "a migration's name cannot begin with '-': it would be read as a flag")
            }
            Work::Migrate | Work::Rehearse => {
                let arguments = ["migrate", "run", name, "--database-url", access.url()].map(OsStr::new);
                match &mut preloaded {
                    Some(module) => supervisor.run_preloaded(module, name, &arguments, &access.secrets, limit),
                    None => supervisor.run(name, cli(order, &arguments, Some(&access)), &access.secrets, limit),
                }
            }
        };
        let go_on = ended.result.exited_well();
        result.commands.push(ended.result);
        if !go_on {
            break;
        }
    }
    result
}

/// `init-db` takes `--database-url` in some versions and reads the environment in others: its help says which.
fn init_db(order: &RunnerOrder, access: &Access, supervisor: &mut Supervisor, limit: Instant) -> Ended {
    let help = cli(order, &["init-db", "--help"].map(OsStr::new), Some(access));
    let help = supervisor.run("init-db --help", help, &access.secrets, limit);
    let knows = !help.result.exited_well() || help.answer.contains("--database-url");
    let flag = ["--database-url", access.url()];
    let arguments: Vec<&OsStr> =
        std::iter::once("init-db").chain(flag.into_iter().filter(|_| knows)).map(OsStr::new).collect();
    supervisor.run("init-db", cli(order, &arguments, Some(access)), &access.secrets, limit)
}

fn hand_on_verdict(order: &RunnerOrder, result: &RunnerResult, supervisor: &mut Supervisor) -> io::Result<bool> {
    let why = match wait_shared(order, VERDICT_FILE, order.verdict_seconds, supervisor) {
        Awaited::Text(text) => match serde_json::from_str::<Value>(&text) {
            Ok(report) => {
                let ok = report.get("ok").and_then(Value::as_bool).unwrap_or_default();
                write_value(order, report)?;
                return Ok(ok);
            }
            Err(error) => format!("the guard's verdict cannot be read: {error}"),
        },
        Awaited::TimeUp => format!("the guard gave no verdict within {} s", order.verdict_seconds),
        Awaited::Stopped => "the pod was ended before the guard gave its verdict".to_owned(),
    };
    let message = format!("{}, but {why}; what became of the schema is unknown: do not run it again", done(result));
    end(order, &failed("NoVerdict", Category::Environment, message))
}

fn done(result: &RunnerResult) -> String {
    let well = result.commands.iter().filter(|command| command.exited_well()).count();
    format!("{well} of {} commands ended with exit code 0", result.commands.len())
}
