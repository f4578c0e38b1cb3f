//! `memoria-runner`: runs commands of Memoria's image for a Job. Static, no shell, no name resolution.

use std::{path::Path, process::ExitCode};

use memoria_runner::{
    order::{Category, ORDER_ENV, RunnerOrder},
    redact, url,
};

mod bootstrap;
mod command;
mod defaults;
mod guarded;
mod install;
mod output;
mod parity;
mod preload;
mod probe;
mod report;
mod supervise;

use self::{guarded::Work, supervise::Supervisor};

const USAGE: &str = "usage: memoria-runner install DESTINATION | probe | defaults | init-db | migrate | rehearse | bootstrap | parity\n\
                     All but install take their order as JSON from MEMORIA_RUNNER_ORDER.";

#[derive(Clone, Copy)]
enum Mode {
    Probe,
    Defaults,
    Guarded(Work),
    Bootstrap,
    Parity,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mode = match words.as_slice() {
        ["install", destination] => return install(Path::new(destination)),
        ["probe"] => Mode::Probe,
        ["defaults"] => Mode::Defaults,
        ["init-db"] => Mode::Guarded(Work::InitDb),
        ["migrate"] => Mode::Guarded(Work::Migrate),
        ["rehearse"] => Mode::Guarded(Work::Rehearse),
        ["bootstrap"] => Mode::Bootstrap,
        ["parity"] => Mode::Parity,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match carry_out(mode) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("memoria-runner: {message}");
            ExitCode::FAILURE
        }
    }
}

fn install(destination: &Path) -> ExitCode {
    match install::run(destination) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memoria-runner: {} cannot be installed: {error}", destination.display());
            ExitCode::FAILURE
        }
    }
}

fn carry_out(mode: Mode) -> Result<bool, String> {
    let unwritten = |error| format!("the answer cannot be written: {error}");
    let order = std::env::var(ORDER_ENV).map_err(|error| format!("{ORDER_ENV}: {error}\n{USAGE}"))?;
    let order: RunnerOrder = serde_json::from_str(&order).map_err(|error| format!("{ORDER_ENV}: {error}"))?;
    let answer = if order.v != 1 {
        let message = format!("the order has version {}, this runner knows 1; use images of one release", order.v);
        report::failed("BadOrder", Category::Environment, message)
    } else if order.cli.is_empty() {
        report::failed("BadOrder", Category::Environment, "cli.command is empty; set it".to_owned())
    } else {
        let mut supervisor = Supervisor::new().map_err(|error| error.to_string())?;
        match mode {
            Mode::Guarded(work) => return guarded::run(work, &order, &mut supervisor).map_err(unwritten),
            Mode::Probe => probe::run(&order, &mut supervisor),
            Mode::Defaults => defaults::run(&order),
            Mode::Bootstrap => bootstrap::run(&order, &mut supervisor),
            Mode::Parity => parity::run(&order, &mut supervisor),
        }
    };
    report::write(&order, &answer).map_err(unwritten)?;
    println!("{}", answer.message);
    Ok(answer.ok)
}
