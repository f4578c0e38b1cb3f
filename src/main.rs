//! The binary's subcommands.

mod by_hand;

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use memoria_operator::{
    api::crds,
    config::Config,
    controller,
    job::protocol::{DATABASE_URL_ENV, STORAGE_MOUNT},
    rescue, telemetry,
};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.";

/// Upgrades Memoria on Kubernetes and, when an upgrade fails, takes image and data back.
#[derive(Parser)]
#[command(name = "memoria-operator", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator until it gets SIGTERM
    #[command(after_help = EXIT_CODES)]
    Run {
        /// The operator's configuration; without it all defaults hold
        #[arg(long, value_name = "FILE", env = "MEMORIA_OPERATOR_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Print the CustomResourceDefinitions as YAML
    #[command(after_help = EXIT_CODES)]
    Crds {
        /// Write one file a kind into this directory instead
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Work on the operator's configuration
    #[command(subcommand, after_help = EXIT_CODES)]
    Config(ConfigCommand),
    /// Print the commands that take an attempt back by hand, without the operator and its objects
    ///
    /// A shell script of plain kubectl commands goes to standard output, what was found to standard error. Nothing is
    /// changed. With the database's URL in MEMORIA_OPERATOR_DATABASE_URL its markers are looked at, too.
    #[command(after_help = EXIT_CODES)]
    Rescue {
        /// Where the volume with the snapshots, or a copy of it, is mounted
        #[arg(long, value_name = "DIR", default_value = STORAGE_MOUNT)]
        storage: PathBuf,
        /// The attempt, or its directory below the storage; without it the newest snapshot is taken
        #[arg(long, value_name = "NAME")]
        attempt: Option<String>,
    },
    /// Export, import and compare databases by hand, with no cluster
    #[command(subcommand)]
    Snapshot(by_hand::SnapshotCommand),
    /// Do the work of a Job that the operator created; its order comes from the environment
    #[command(hide = true)]
    Job,
    /// Print a completion script
    #[command(after_help = EXIT_CODES)]
    Completion {
        /// The shell that shall complete
        shell: Shell,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Validate a file and print the whole configuration that it stands for
    #[command(after_help = EXIT_CODES)]
    Check {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run { config } => run(config.as_deref()),
        Command::Crds { out: None } => print_crds(),
        Command::Crds { out: Some(dir) } => write_crds(&dir),
        Command::Config(ConfigCommand::Check { file }) => check_config(&file),
        Command::Rescue { storage, attempt } => rescue(&storage, attempt.as_deref()),
        Command::Snapshot(command) => return by_hand::run(&command),
        Command::Job => return job(),
        Command::Completion { shell } => completion(shell),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memoria-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: Option<&Path>) -> Result<(), Failure> {
    let config = match file {
        Some(file) => Config::load(file)?,
        None => Config::default(),
    };
    telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.block_on(controller::run(config))?)
}

fn rescue(storage: &Path, attempt: Option<&str>) -> Result<(), Failure> {
    let found = rescue::find(storage, attempt)?;
    let url = std::env::var(DATABASE_URL_ENV).ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let looked = runtime.block_on(rescue::look(&found.state, url.as_deref()));
    let script = rescue::script(&found)?;
    eprint!("{}", rescue::summary(storage, &found, &looked));
    print(&script)
}

/// The exit code speaks for the Job's report, which says the rest.
fn job() -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime.block_on(memoria_operator::job::run()),
        Err(error) => {
            eprintln!("memoria-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_crds() -> Result<(), Failure> {
    let documents: Result<Vec<_>, _> = crds::all().iter().map(crds::to_yaml).collect();
    print(&documents?.join("---\n"))
}

fn write_crds(dir: &Path) -> Result<(), Failure> {
    let cannot = |path: &Path, error: io::Error| format!("cannot write {}: {error}", path.display());
    fs::create_dir_all(dir).map_err(|e| cannot(dir, e))?;
    for crd in crds::all() {
        let path = dir.join(crds::file_name(&crd));
        fs::write(&path, crds::to_yaml(&crd)?).map_err(|e| cannot(&path, e))?;
    }
    Ok(())
}

fn check_config(file: &Path) -> Result<(), Failure> {
    print(&Config::load(file)?.to_yaml()?)
}

fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "memoria-operator", &mut script);
    print(&String::from_utf8(script)?)
}

/// A reader that went away (`… | head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("cannot print: {error}").into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn crds_and_the_charts_copies_are_what_the_types_say() {
        let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
        for dir in ["crds", "charts/memoria-operator/files/crds"] {
            let mut expected = Vec::new();
            for crd in crds::all() {
                let path = root.join(dir).join(crds::file_name(&crd));
                let found = fs::read_to_string(&path).unwrap_or_default();
                assert!(
                    found == crds::to_yaml(&crd).unwrap(),
                    "{} is not what src/api says: run `cargo run -- crds --out {dir}` and read the difference",
                    path.display()
                );
                expected.push(crds::file_name(&crd));
            }
            let mut files: Vec<_> =
                fs::read_dir(root.join(dir)).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            files.sort();
            assert_eq!(files, expected, "{dir} has other files than the kinds");
        }
    }
}
