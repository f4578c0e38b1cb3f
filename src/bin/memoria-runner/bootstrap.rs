//! `bootstrap`: a sample configuration by the candidate's own command, in a container that knows no database.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use memoria_runner::order::{Category, Report, RunnerOrder};

use crate::{
    command::{cli, database_variables},
    probe::how_it_ended,
    redact::Secrets,
    report::{failed, ok},
    supervise::Supervisor,
};

pub fn run(order: &RunnerOrder, supervisor: &mut Supervisor) -> Report {
    let variables = database_variables();
    if !variables.is_empty() {
        let message = format!(
            "the sample bootstrap is not run: a database is in its reach by {}; take it out of the image's environment",
            variables.join(", ")
        );
        return failed("DatabaseInReach", Category::Environment, message);
    }
    let directory = Path::new(&order.private_directory).join("bootstrap");
    if let Err(error) = fresh(&directory) {
        let message = format!("{} cannot be made: {error}; it needs an emptyDir", directory.display());
        return failed("NotWritable", Category::Environment, message);
    }
    let (config, env_file) = (directory.join("memoria.json"), directory.join(".env"));
    let arguments: [&OsStr; 6] = [
        "bootstrap".as_ref(),
        "--non-interactive".as_ref(),
        "--config".as_ref(),
        config.as_ref(),
        "--env-file".as_ref(),
        env_file.as_ref(),
    ];
    let limit = Instant::now() + Duration::from_secs(order.limit_seconds);
    let ended = supervisor.run("bootstrap", cli(order, &arguments, None), &Secrets::default(), limit).result;
    if supervisor.stopping() {
        return failed("Interrupted", Category::Transient, "the pod was ended during the sample bootstrap".to_owned());
    }
    if !ended.exited_well() {
        return bad(&format!("it {}", how_it_ended(&ended)));
    }
    match check(&config, &env_file) {
        Ok(()) => ok("the sample bootstrap wrote memoria.json and .env".to_owned()),
        Err(why) => bad(&why),
    }
}

fn bad(why: &str) -> Report {
    let message = format!("the sample bootstrap of the new version failed: {why}; report it with the Job's log");
    failed("BootstrapFailed", Category::Candidate, message)
}

/// An empty directory.
pub fn fresh(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(directory)
}

/// Never shows what is in the files: they may hold a generated key.
fn check(config: &PathBuf, env_file: &PathBuf) -> Result<(), String> {
    let text = fs::read(config).map_err(|error| format!("it exited 0, but memoria.json cannot be read: {error}"))?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| {
        format!("it exited 0, but memoria.json is no JSON at line {}, column {}", error.line(), error.column())
    })?;
    if !value.is_object() {
        return Err("it exited 0, but memoria.json holds no JSON object".to_owned());
    }
    match fs::metadata(env_file) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err("it exited 0, but .env is no file".to_owned()),
        Err(error) => Err(format!("it exited 0, but .env cannot be read: {error}")),
    }
}
