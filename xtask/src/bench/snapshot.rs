//! `cargo xtask bench snapshot`: the portable export and import beside PostgreSQL's own tools and Memoria's own command
//! line, on one private server with the same data. No cluster.

mod child;
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::figures;
use crate::clock::Clock;
use crate::place;
use child::{Cost, measure};
use server::Server;

#[derive(clap::Args)]
pub struct Options {
    /// Rows of the smaller of the two databases; the larger one has ten times as many
    #[arg(long, default_value_t = 44_000, value_parser = clap::value_parser!(u32).range(100..))]
    rows: u32,
    /// Measure the smaller database only
    #[arg(long)]
    small_only: bool,
    /// How often each way is measured; medians are compared
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// A released binary that is there already; otherwise it is built
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// What is measured, in the order in which it runs: imports need what the exports wrote.
const EXPORT: &str = "export, NDJSON with zstd";
const EXPORT_PROVED: &str = "the same, proved by the server";
const EXPORT_PLAIN: &str = "export, NDJSON uncompressed";
const DUMP_CUSTOM: &str = "pg_dump -Fc";
const DUMP_PLAIN: &str = "pg_dump -a, plain";
const THEIRS_EXPORT: &str = "export-data of Memoria, NDJSON";
const THEIRS_NOTHING: &str = "export-data of Memoria, nothing to export";
const IMPORT: &str = "import, NDJSON with zstd";
const RESTORE: &str = "pg_restore";
const THEIRS_IMPORT: &str = "import-data of Memoria";
const VERIFY: &str = "verify, database and export";

/// Every run of every way, by its name.
type Measured = BTreeMap<&'static str, Vec<Cost>>;

pub fn run(options: &Options) -> Result<()> {
    let clock = Clock::start();
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => build(&clock)?,
    };
    let python = python()?;
    let server = Server::start()?;
    clock.say(&format!("a private server of PostgreSQL {}", server.version));
    let sizes = if options.small_only { vec![options.rows] } else { vec![options.rows, options.rows * 10] };
    let mut results = Vec::new();
    for rows in sizes {
        let bench = Bench { server: &server, binary: &binary, python: &python, rows };
        results.push((rows, bench.run(options.runs, &clock)?));
    }
    results.iter().for_each(|(rows, measured)| print(*rows, measured));
    if options.json {
        println!("{}", document(&server, &results));
    }
    Ok(())
}

fn build(clock: &Clock) -> Result<PathBuf> {
    clock.say("the released binary");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = place::target()?;
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--quiet", "--bin", "memoria-operator"])
        .current_dir(place::root()?)
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    Ok(target.join("release/memoria-operator"))
}

/// The interpreter of the stand-in's conformance tests.
fn python() -> Result<PathBuf> {
    let script = place::root()?.join("tests/memoria/conformance/venv.sh");
    let output = Command::new("sh").arg(&script).output().context("cannot start sh")?;
    if !output.status.success() {
        bail!("{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

struct Bench<'a> {
    server: &'a Server,
    binary: &'a Path,
    python: &'a Path,
    rows: u32,
}

impl Bench<'_> {
    fn run(&self, runs: u32, clock: &Clock) -> Result<Measured> {
        clock.say(&format!("{} rows are generated", self.rows));
        self.server.make("memoria")?;
        let url = self.server.url("memoria");
        let generate = ["memoria_generate", "--rows", &self.rows.to_string(), "--database-url", &url];
        measure(&mut self.memoria(&generate)?)?;
        self.server.make("empty")?;
        measure(&mut self.memoria(&["memoria.cli", "init-db", "--database-url", &self.server.url("empty")])?)?;
        self.server.run("memoria", "VACUUM ANALYZE")?;
        let mut measured = Measured::new();
        for run in 1..=runs {
            clock.say(&format!("run {run} of {runs} with {} rows", self.rows));
            self.once(&mut measured)?;
        }
        Ok(measured)
    }

    fn once(&self, measured: &mut Measured) -> Result<()> {
        let scratch = self.server.scratch("files")?;
        let at = |name: &str| scratch.join(name).to_string_lossy().into_owned();
        let mut take = |name, command: &mut Command| -> Result<()> {
            // What an earlier way left to be written is not this one's to wait for.
            self.server.run("postgres", "CHECKPOINT")?;
            let cost = measure(command).with_context(|| format!("measuring: {name}"))?;
            measured.entry(name).or_default().push(cost);
            Ok(())
        };
        // Once before anything is measured, so that every way finds the rows in the same caches.
        measure(self.server.tool("pg_dump", "memoria").args(["-a", "-f", &at("sql")]))?;
        let rows = ["export", "--proof", "rows"];
        take(EXPORT, self.ours("memoria").args(rows).arg(at("ours")))?;
        take(EXPORT_PROVED, self.ours("memoria").args(["export", &at("proved")]))?;
        take(EXPORT_PLAIN, self.ours("memoria").args(rows).args(["--compress", "none", &at("plain")]))?;
        fs::remove_dir_all(at("proved"))?;
        fs::remove_dir_all(at("plain"))?;
        take(VERIFY, self.ours("memoria").args(["verify", "-", &at("ours")]))?;
        take(DUMP_CUSTOM, self.server.tool("pg_dump", "memoria").args(["-Fc", "-f", &at("dump")]))?;
        take(DUMP_PLAIN, self.server.tool("pg_dump", "memoria").args(["-a", "-f", &at("sql")]))?;
        fs::remove_file(at("sql"))?;
        let (from, nothing) = (self.server.url("memoria"), self.server.url("empty"));
        let export = |url: &str| {
            self.memoria(&["memoria.cli", "export-data", &at("theirs"), "--format", "ndjson", "--database-url", url])
        };
        take(THEIRS_NOTHING, &mut export(&nothing)?)?;
        take(THEIRS_EXPORT, &mut export(&from)?)?;

        self.server.make("target")?;
        take(RESTORE, self.server.tool("pg_restore", "target").args(["--exit-on-error", "-d", "target", &at("dump")]))?;
        // The same tables, keys and indexes, without rows.
        self.server.make("target")?;
        let schema = ["--schema-only", "--exit-on-error", "-d", "target", &at("dump")];
        measure(self.server.tool("pg_restore", "target").args(schema))?;
        take(IMPORT, self.ours("target").args(["import", &at("ours")]))?;
        let to = self.server.url("target");
        self.server.make("target")?;
        measure(self.server.tool("pg_restore", "target").args(schema))?;
        take(THEIRS_IMPORT, &mut self.memoria(&["memoria.cli", "import-data", &at("theirs"), "--database-url", &to])?)?;
        fs::remove_dir_all(&scratch)?;
        Ok(())
    }

    fn ours(&self, database: &str) -> Command {
        let mut command = Command::new(self.binary);
        command.arg("snapshot").env("MEMORIA_OPERATOR_DATABASE_URL", self.server.url(database));
        command
    }

    fn memoria(&self, arguments: &[&str]) -> Result<Command> {
        let root = place::root()?.join("tests/memoria");
        let mut command = Command::new(self.python);
        command
            .arg("-m")
            .args(arguments)
            .current_dir(std::env::temp_dir())
            .env("PYTHONPATH", root.join("app"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("MEMORIA_VERSION_FILE", root.join("versions/0.9.0.toml"));
        Ok(command)
    }
}

fn seconds(measured: &Measured, name: &str) -> Vec<f64> {
    measured.get(name).into_iter().flatten().map(|cost| cost.seconds).collect()
}

fn peak(measured: &Measured, name: &str) -> f64 {
    measured.get(name).into_iter().flatten().map(|cost| cost.peak_mib).fold(0.0, f64::max)
}

fn print(rows: u32, measured: &Measured) {
    println!("\n{rows} rows{:>45}{:>34}", "seconds, median (runs)", "peak MiB");
    for name in [
        EXPORT,
        EXPORT_PROVED,
        EXPORT_PLAIN,
        DUMP_CUSTOM,
        DUMP_PLAIN,
        THEIRS_EXPORT,
        THEIRS_NOTHING,
        IMPORT,
        RESTORE,
        THEIRS_IMPORT,
        VERIFY,
    ] {
        let shown = figures::shown(&seconds(measured, name));
        println!("  {name:<42} {shown:<34} {:>8.1}", peak(measured, name));
    }
}

/// Median seconds of the SQLAlchemy-based export without its start, over ours: how many times as fast ours is.
fn over_sqlalchemy(measured: &Measured) -> Option<f64> {
    let whole = figures::median(&seconds(measured, THEIRS_EXPORT))?;
    let start = figures::median(&seconds(measured, THEIRS_NOTHING))?;
    figures::ratio(&[whole - start], &seconds(measured, EXPORT))
}

fn document(server: &Server, results: &[(u32, Measured)]) -> Value {
    let of = |measured: &Measured| {
        let ways = measured.keys().map(|name| {
            let costs = json!({"seconds": seconds(measured, name), "peakMib": peak(measured, name)});
            ((*name).to_owned(), costs)
        });
        ways.collect::<serde_json::Map<_, _>>()
    };
    // The goals are about the larger database.
    let ratios = results.last().map(|(_, measured)| {
        json!({
            "exportVsSqlalchemy": over_sqlalchemy(measured),
            "exportVsPgDumpPlain": figures::ratio(&seconds(measured, EXPORT), &seconds(measured, DUMP_PLAIN)),
            "provedExportVsPgDumpPlain": figures::ratio(&seconds(measured, EXPORT_PROVED), &seconds(measured, DUMP_PLAIN)),
            "plainExportVsPgDumpPlain": figures::ratio(&seconds(measured, EXPORT_PLAIN), &seconds(measured, DUMP_PLAIN)),
            "importVsPgRestore": figures::ratio(&seconds(measured, IMPORT), &seconds(measured, RESTORE)),
        })
    });
    let peaks = results.iter().map(|(rows, measured)| {
        (rows.to_string(), json!({"export": peak(measured, EXPORT_PROVED), "import": peak(measured, IMPORT)}))
    });
    json!({
        "bench": "snapshot",
        "postgres": server.version,
        "ratio": ratios,
        "peakRssMiB": peaks.collect::<serde_json::Map<_, _>>(),
        "rows": results.iter().map(|(rows, measured)| (rows.to_string(), Value::Object(of(measured)))).collect::<serde_json::Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_and_the_start_of_python_does_not_count() {
        let cost = |seconds| vec![Cost { seconds, peak_mib: 10.0 }];
        let measured: Measured = [
            (EXPORT, cost(2.0)),
            (EXPORT_PLAIN, cost(1.0)),
            (DUMP_PLAIN, cost(1.0)),
            (THEIRS_EXPORT, cost(42.0)),
            (THEIRS_NOTHING, cost(2.0)),
            (IMPORT, cost(6.0)),
            (RESTORE, cost(4.0)),
        ]
        .into();
        assert_eq!(over_sqlalchemy(&measured), Some(20.0));
        assert_eq!(figures::ratio(&seconds(&measured, IMPORT), &seconds(&measured, RESTORE)), Some(1.5));
        assert!((peak(&measured, EXPORT) - 10.0).abs() < f64::EPSILON);
    }
}
