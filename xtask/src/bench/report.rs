//! What the runs say: a table for people, one JSON object for programs. Pure but for printing.

use serde_json::{Map, Value, json};

use super::by_hand::{Migrations, Said};
use super::figures::{self, seconds, shown};
use super::timeline::Gap;
use super::upgrade::{Options, OwnShare, Way};

/// Gaps that are shorter than this are not listed one by one.
const WORTH_A_LINE: u64 = 100;
/// What was once measured of the original Memoria by hand: 44,000 rows, PostgreSQL 15, one server replica, twelve
/// migrations. How many pods those took is not known.
const ELSEWHERE: [(Way, &str); 2] = [
    (Way::Quiesced, "153 s wall, writers stopped for 152 s"),
    (Way::AsWritten, "188 s wall, no writer stopped, 0.6 s without an answer"),
];

/// One upgrade. Milliseconds where nothing else is said.
pub struct Run {
    pub way: Way,
    pub wall: u64,
    pub writers_stopped: u64,
    pub down_seconds: f64,
    pub polls: u64,
    /// Of the operator's.
    pub own: Option<OwnShare>,
    /// Of a person's.
    pub said: Option<Said>,
}

impl Run {
    pub fn in_short(&self) -> String {
        let mut text = format!(
            "{:.1} s, writers stopped for {:.1} s, no answer for {:.1} s ({} polls)",
            seconds(self.wall),
            seconds(self.writers_stopped),
            self.down_seconds,
            self.polls
        );
        if let Some(own) = &self.own {
            text.push_str(&format!(", own share {:.2} s", sum(&own.by_condition)));
        }
        text
    }
}

/// Prints the table, the gaps between the operator's steps, and what was measured elsewhere.
pub fn print(runs: &[Run], options: &Options) {
    println!("\nUpgrade of {} rows; medians, and every run in its order:", options.rows);
    println!("  {:<20} {:<34} {:<34} no answer (s)", "", "wall (s)", "writers stopped (s)");
    for way in Way::ALL {
        let cell = |pick: fn(&Run) -> f64| shown(&of(runs, way, pick));
        println!(
            "  {:<20} {:<34} {:<34} {}",
            way.title(),
            cell(wall),
            cell(writers_stopped),
            cell(|run| run.down_seconds)
        );
    }
    let ratio = |pick| ratio(runs, pick).map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
    println!("  operator over quiesced, by medians: wall {}, writers stopped {}", ratio(wall), ratio(writers_stopped));
    own_share(runs);
    for (way, said) in runs.iter().filter_map(|run| Some((run.way, run.said.as_ref()?))) {
        println!(
            "  {}: {} documented commands refused ({}), {} lines with a password, {} rows of {} tables exported",
            way.title(),
            said.failed_commands.len(),
            said.failed_commands.join(", "),
            said.passwords_printed,
            said.exported_rows,
            said.exported_tables
        );
    }
    let how = match options.by_hand_migrations {
        Migrations::Each => "each in a Job of its own",
        Migrations::One => "all in one pod",
    };
    println!("  migrations by hand: {how}");
    println!("Beside it, the original Memoria by hand, measured once elsewhere (1 server replica, 12 migrations):");
    for (way, figures) in ELSEWHERE {
        println!("  {:<20} {figures}", way.title());
    }
}

fn own_share(runs: &[Run]) {
    let shares: Vec<_> = runs.iter().filter_map(|run| run.own.as_ref()).collect();
    let by = |pick: fn(&OwnShare) -> &Vec<Gap>| shown(&shares.iter().map(|own| sum(pick(own))).collect::<Vec<_>>());
    println!("  own share of the operator (s): {}", by(|own| &own.by_condition));
    println!("  the same, with Jobs over when their pods are: {}", by(|own| &own.by_pod));
    for (number, own) in shares.iter().enumerate() {
        for gap in own.by_condition.iter().filter(|gap| gap.millis() >= WORTH_A_LINE) {
            let (after, before) = (gap.after.as_deref(), gap.before.as_deref());
            let (after, before) = (after.unwrap_or("the beginning"), before.unwrap_or("the end"));
            println!("    run {}: {} ms between {after} and {before}", number + 1, gap.millis());
        }
    }
}

/// The answer of `--json`.
pub fn json(runs: &[Run]) -> Value {
    let mut answer = Map::new();
    for (way, name) in Way::ALL.into_iter().zip(["operator", "quiesced", "asWritten"]) {
        let mut figures = json!({
            "wallSeconds": of(runs, way, wall),
            "writersStoppedSeconds": of(runs, way, writers_stopped),
            "downtimeSeconds": of(runs, way, |run| run.down_seconds),
        });
        let own: Vec<_> = runs.iter().filter(|run| run.way == way).filter_map(|run| run.own.as_ref()).collect();
        if !own.is_empty() {
            figures["ownShareSeconds"] = own.iter().map(|own| sum(&own.by_condition)).collect();
            figures["ownShareByPodsSeconds"] = own.iter().map(|own| sum(&own.by_pod)).collect();
        }
        let said: Vec<_> = runs.iter().filter(|run| run.way == way).filter_map(|run| run.said.as_ref()).collect();
        if !said.is_empty() {
            figures["failedCommands"] = said.iter().map(|said| said.failed_commands.len()).collect();
            figures["passwordsPrinted"] = said.iter().map(|said| said.passwords_printed).collect();
            figures["exportedTables"] = said.iter().map(|said| said.exported_tables).collect();
            figures["exportedRows"] = said.iter().map(|said| said.exported_rows).collect();
        }
        answer.insert(name.to_owned(), figures);
    }
    let ratios = json!({"wall": ratio(runs, wall), "writersStopped": ratio(runs, writers_stopped)});
    answer.insert("ratio".to_owned(), ratios);
    Value::Object(answer)
}

fn wall(run: &Run) -> f64 {
    seconds(run.wall)
}

fn writers_stopped(run: &Run) -> f64 {
    seconds(run.writers_stopped)
}

fn of(runs: &[Run], way: Way, pick: fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().filter(|run| run.way == way).map(pick).collect()
}

/// The operator's median over the quiesced one's.
fn ratio(runs: &[Run], pick: fn(&Run) -> f64) -> Option<f64> {
    figures::ratio(&of(runs, Way::Operator, pick), &of(runs, Way::Quiesced, pick))
}

fn sum(gaps: &[Gap]) -> f64 {
    seconds(gaps.iter().map(Gap::millis).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(way: Way, wall: u64, writers_stopped: u64) -> Run {
        let gap = Gap { begin: 100, end: 350, after: None, before: None };
        let own = OwnShare { by_condition: vec![gap.clone()], by_pod: vec![gap.clone(), gap] };
        let own = (way == Way::Operator).then_some(own);
        Run { way, wall, writers_stopped, down_seconds: 0.5, polls: 10, own, said: None }
    }

    #[test]
    fn the_answer_has_every_run_and_the_ratio_of_medians() {
        let runs = [
            run(Way::Operator, 60_000, 40_000),
            run(Way::Quiesced, 150_000, 100_000),
            run(Way::AsWritten, 180_000, 0),
            run(Way::Operator, 62_500, 41_000),
            run(Way::Quiesced, 100_000, 100_000),
            run(Way::AsWritten, 181_000, 0),
        ];
        let answer = json(&runs);
        assert_eq!(answer["operator"]["wallSeconds"], json!([60.0, 62.5]));
        assert_eq!(answer["operator"]["ownShareSeconds"], json!([0.25, 0.25]));
        assert_eq!(answer["operator"]["ownShareByPodsSeconds"], json!([0.5, 0.5]));
        assert_eq!(answer["asWritten"]["writersStoppedSeconds"], json!([0.0, 0.0]));
        assert_eq!(answer["quiesced"]["ownShareSeconds"], Value::Null);
        assert_eq!(answer["ratio"], json!({"wall": 0.49, "writersStopped": 0.41}));
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let runs = [run(Way::Operator, 1_000, 1_000), run(Way::Quiesced, 0, 0)];
        assert_eq!(json(&runs)["ratio"], json!({"wall": null, "writersStopped": null}));
    }
}
