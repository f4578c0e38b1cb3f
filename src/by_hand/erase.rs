//! `memoria-operator snapshot erase`: the data of one stored snapshot, on a person's request.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use clap::Args;
use memoria_operator::snapshot::{
    erase::{self, Plan, Record},
    store::Place,
};
use serde::Serialize;

use super::{DEFAULT_PART_MIB, Failure, on_a_thread, place, say};

#[derive(Args)]
pub struct Erase {
    /// The snapshot's own directory, as `list` names it, or s3://bucket/prefix
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Why. It is kept, so name a request and no person
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Who lets it be erased
    #[arg(long, value_name = "NAME", env = "USER", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    by: String,
    /// Do not ask. Needed where nobody can answer
    #[arg(long)]
    yes: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What became of a snapshot.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Erased {
    directory: Place,
    /// Those that were there.
    files: Vec<PathBuf>,
    dry_run: bool,
    /// Files beside an export that are not its own; they stay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    strangers: Vec<PathBuf>,
    /// That of the directory; of a dry run only where an erasure began before.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Record>,
}

pub async fn carry_out(command: &Erase) -> Result<bool, Failure> {
    let place = place(&command.directory, DEFAULT_PART_MIB)?;
    let plan = on_a_thread(&place, |place| erase::plan(&place)).await?;
    let (files, strangers) = (plan.files(), plan.strangers.clone());
    let record = if command.dry_run {
        plan.begun().cloned()
    } else {
        if !command.yes && !files.is_empty() {
            ask(&place, &plan)?;
        }
        let (reason, by) = (command.reason.clone(), command.by.clone());
        Some(on_a_thread(&place, move |_| plan.carry_out(&reason, &by)).await?)
    };
    let erased = Erased { directory: place, files, dry_run: command.dry_run, strangers, record };
    say(command.json, &erased, in_words);
    Ok(true)
}

/// Goes on only after a plain yes on a terminal.
fn ask(place: &Place, plan: &Plan) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure(
            "nobody can be asked here, and nothing brings erased data back; look at what --dry-run says, and give --yes"
                .to_owned(),
        ));
    }
    eprint!(
        "{} files go from {place} and what lies below it, and nothing brings them back. An attempt that is open loses its way \
         back with them. Type yes to erase them: ",
        plan.files().len()
    );
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().read_line(&mut answer));
    read.map_err(|error| Failure(format!("the answer cannot be read: {error}")))?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure("nothing was erased".to_owned())) }
}

fn in_words(erased: &Erased) -> String {
    let did = if erased.dry_run { "would go" } else { "erased  " };
    let mut lines: Vec<_> = erased.files.iter().map(|file| format!("{did} {}", file.display())).collect();
    lines.extend(erased.strangers.iter().map(|file| format!("stays    {}: no file of this export", file.display())));
    if let Some(record) = &erased.record {
        lines.push(format!("{}: {}", erased.directory, told(record)));
    } else if lines.is_empty() {
        lines.push(format!("{}: nothing is there to be erased", erased.directory));
    }
    lines.join("\n")
}

/// A record in one line.
pub fn told(record: &Record) -> String {
    format!("erased at {} by {}: {}", record.at.strftime("%Y-%m-%dT%H:%M:%SZ"), record.by, record.reason)
}

/// Shows the record of an erased snapshot, whose bytes cannot be compared with anything any more; false of another.
pub async fn shown(place: &Place, json: bool) -> Result<bool, Failure> {
    let Some(record) = on_a_thread(place, |place| erase::read(&place)).await? else { return Ok(false) };
    say(json, &Shown { erased: &record }, |shown| {
        let files = shown.erased.files.iter();
        let files = files.map(|(name, file)| format!("  {:>12} bytes {name} sha256 {}", file.bytes, file.sha256));
        std::iter::once(told(shown.erased)).chain(files).collect::<Vec<_>>().join("\n")
    });
    Ok(true)
}

#[derive(Serialize)]
struct Shown<'a> {
    erased: &'a Record,
}
