//! `probe`: does an image run in the Jobs' shape, and what can its command line do?

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use memoria_runner::order::{Category, CommandResult, Facts, ProbeFacts, Report, RunnerOrder};

use crate::{
    command::cli,
    redact::Secrets,
    report::{failed, ok},
    supervise::{Ended, Supervisor},
};

pub fn run(order: &RunnerOrder, supervisor: &mut Supervisor) -> Report {
    let mut facts = ProbeFacts {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        ..ProbeFacts::default()
    };
    let mut report = look(order, supervisor, &mut facts);
    report.facts = Some(Facts::Probe(facts));
    report
}

fn look(order: &RunnerOrder, supervisor: &mut Supervisor, facts: &mut ProbeFacts) -> Report {
    for directory in [&order.private_directory, &order.shared_directory] {
        if let Err(error) = try_writing(Path::new(directory)) {
            let message = format!(
                "user {} cannot write {directory}: {error}; set runAsUser and fsGroup in the Server's pod template, or \
                 jobs.securityContext: AsServer",
                facts.uid
            );
            return failed("NotWritable", Category::Environment, message);
        }
    }
    if order.ask_cli {
        match ask(order, supervisor, facts) {
            Ok(()) => {
                let count = facts.migrations.len();
                ok(format!("the image runs as user {}, its command line lists {count} migrations", facts.uid))
            }
            Err(report) => report,
        }
    } else {
        ok(format!("the image runs as user {}", facts.uid))
    }
}

fn try_writing(directory: &Path) -> std::io::Result<()> {
    let path = directory.join(format!(".probe-{}", std::process::id()));
    fs::write(&path, b"probe")?;
    fs::remove_file(&path)
}

fn ask(order: &RunnerOrder, supervisor: &mut Supervisor, facts: &mut ProbeFacts) -> Result<(), Report> {
    let limit = Instant::now() + Duration::from_secs(order.limit_seconds);
    let mut question = |words: &[&str]| -> Ended {
        let arguments: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        supervisor.run(&words.join(" "), cli(order, &arguments, None), &Secrets::default(), limit)
    };
    let help = question(&["--help"]);
    facts.cli = Some(help.result.exited_well());
    let list = answered(order, help).map(|_| question(&["migrate", "list"]))?;
    let help_of_run = answered(order, list).map(|listing| (listing, question(&["migrate", "run", "--help"])));
    let (listing, run) = help_of_run?;
    facts.migrations = migrations(&listing)?;
    let run = answered(order, run)?;
    facts.runs_all = has_word(&run, "--all");
    if has_word(&run, "--database-url") {
        return Ok(());
    }
    let message = "the image's `migrate run` takes no --database-url, so nothing says which database it would change; \
                   use an image whose command line takes it"
        .to_owned();
    Err(failed("CliWithoutDatabaseUrl", Category::Candidate, message))
}

fn answered(order: &RunnerOrder, ended: Ended) -> Result<String, Report> {
    if ended.result.exited_well() {
        return Ok(ended.answer);
    }
    let words = &order.cli.join(" ");
    let message =
        format!("`{words} {}` {}; {}", ended.result.name, how_it_ended(&ended.result), advice(order, &ended.result));
    Err(failed("CliFailed", Category::Candidate, message))
}

/// The exit in words, with the last line of output.
pub fn how_it_ended(result: &CommandResult) -> String {
    let last: String = result.tail.lines().last().unwrap_or("no output").chars().take(300).collect();
    match (result.timed_out, result.exit_code, result.signal) {
        (true, ..) => format!("was ended after {} s ({last})", result.millis / 1000),
        (_, Some(code), _) => format!("ended with exit code {code} ({last})"),
        (_, _, Some(signal)) => format!("was ended by signal {signal} ({last})"),
        _ => last,
    }
}

fn advice(order: &RunnerOrder, result: &CommandResult) -> String {
    let program = order.cli.first().map(String::as_str).unwrap_or_default();
    let never_began = result.exit_code.is_none() && result.signal.is_none() && !result.timed_out;
    let other = match program {
        "python" => Some("python3"),
        "python3" => Some("python"),
        _ => None,
    };
    match other.filter(|other| never_began && in_path(other)) {
        Some(other) => {
            let rest: Vec<String> = order.cli.iter().skip(1).map(|word| format!("{word:?}")).collect();
            format!("the image has {other}: set cli.command: [\"{other}\", {}]", rest.join(", "))
        }
        None => "set cli.command to the words that call Memoria's command line in this image".to_owned(),
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Lines of the form `name<two or more spaces>description`. Other lines are talk, unless there is nothing else.
fn migrations(listing: &str) -> Result<Vec<String>, Report> {
    let mut names: Vec<String> = Vec::new();
    for name in listing.lines().filter_map(listed_name) {
        if names.iter().any(|known| known == name) {
            let message = format!("`migrate list` names {name} twice; use an image whose list is without doubles");
            return Err(failed("MigrationListUnclear", Category::Candidate, message));
        }
        names.push(name.to_owned());
    }
    if names.is_empty() && listing.lines().any(|line| !line.trim().is_empty()) {
        let message = "`migrate list` printed no line of the form `name  description`, so it is unknown what would \
                       run; set migrations.mode: Named with the names, or use another image"
            .to_owned();
        return Err(failed("MigrationListUnclear", Category::Candidate, message));
    }
    Ok(names)
}

fn listed_name(line: &str) -> Option<&str> {
    let (name, _) = line.split_once("  ")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    // `WARNING  …` is a log line.
    let level = name.chars().all(|c| c.is_ascii_uppercase());
    (begins_well && !level && name.chars().all(plain)).then_some(name)
}

/// Whether a help text has the flag itself, not only a longer one.
fn has_word(help: &str, flag: &str) -> bool {
    help.split(|c: char| c.is_whitespace() || matches!(c, '[' | ']' | ',' | '=' | '|' | '(' | ')'))
        .any(|word| word == flag)
}

#[cfg(test)]
mod tests {
    use super::{has_word, migrations};

    #[test]
    fn names_are_read_and_talk_is_passed_over() {
        let listing =
            "Available migrations:\nadd_cluster_centroids   Adds centroids\nadd_x.2  \nWARNING  x  y\n\n  hint  z\n";
        assert_eq!(migrations(listing).unwrap(), ["add_cluster_centroids", "add_x.2"]);
        assert_eq!(migrations("\n").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        assert_eq!(migrations("Nothing here\n").unwrap_err().reason, "MigrationListUnclear");
        assert!(migrations("a  x\na  y\n").unwrap_err().message.contains("a twice"));
    }

    #[test]
    fn a_flag_is_known_by_its_whole_word() {
        let help = "usage: run [-h] [--database-url U] [--all-in] name";
        assert!(has_word(help, "--database-url") && !has_word(help, "--all"));
    }
}
