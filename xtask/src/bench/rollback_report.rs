//! What the ways back say: a table for people, one JSON object for programs. Pure but for printing.

use serde_json::{Map, Value, json};

use super::figures::{self, median, seconds, shown};
use super::remains::Remains;
use super::rollback::Way;

/// How many of the differences are printed.
const SHOWN: usize = 12;

/// One way back.
pub struct Run {
    pub way: Way,
    pub rows: u32,
    /// Milliseconds.
    pub wall: u64,
    pub peak_mib: f64,
    /// Seconds of its parts, as the way itself tells them.
    pub parts: Vec<(String, f64)>,
    /// Where it was compared.
    pub remains: Option<Remains>,
}

impl Run {
    pub fn in_short(&self) -> String {
        let parts: Vec<_> = self.parts.iter().map(|(name, seconds)| format!("{name} {seconds:.1}")).collect();
        let mut text = format!(
            "{:.1} s, peak {:.1} MiB; in its own words: {}",
            seconds(self.wall),
            self.peak_mib,
            parts.join(", ")
        );
        if let Some(remains) = &self.remains {
            text.push_str(&format!("; {} differences left", remains.reasons.len()));
        }
        text
    }
}

pub fn print(runs: &[Run]) {
    println!("\nThe way back; medians, and every run in its order:");
    println!("  {:>8} rows  {:<10} {:<34} peak memory (MiB)", "", "", "wall (s)");
    for rows in sizes(runs) {
        for way in Way::ALL {
            let cell = |pick| shown(&of(runs, way, rows, pick));
            println!("  {rows:>8} rows  {:<10} {:<34} {}", way.title(), cell(wall), cell(peak));
        }
        if let Some(ratio) = ratio(runs, rows) {
            println!("  {rows:>8} rows  operator over by hand, by medians: {ratio:.2}");
        }
    }
    for (run, remains) in runs.iter().filter_map(|run| Some((run, run.remains.as_ref()?))) {
        println!("  left behind, {}: {}", run.way.title(), in_words(remains));
        remains.reasons.iter().take(SHOWN).for_each(|reason| println!("    {reason}"));
    }
}

fn in_words(remains: &Remains) -> String {
    match (remains.as_expected, remains.reasons.len()) {
        (true, _) => "nothing but what a starting server changes".to_owned(),
        (false, count) => format!("{count} differences"),
    }
}

/// The answer of `--json`.
pub fn json(runs: &[Run]) -> Value {
    let mut answer = Map::new();
    let mut peaks = Map::new();
    for way in Way::ALL {
        let mut figures = Map::new();
        let mut peaks_of_way = Map::new();
        for rows in sizes(runs) {
            let (walls, memory) = (of(runs, way, rows, wall), of(runs, way, rows, peak));
            peaks_of_way.insert(rows.to_string(), json!(median(&memory)));
            figures.insert(rows.to_string(), json!({"wallSeconds": walls, "peakRssMiB": memory}));
        }
        let remains = runs.iter().filter(|run| run.way == way).find_map(|run| run.remains.as_ref());
        figures.insert("remains".to_owned(), json!(remains));
        answer.insert(way.name().to_owned(), Value::Object(figures));
        peaks.insert(way.name().to_owned(), Value::Object(peaks_of_way));
    }
    let last = sizes(runs).pop();
    answer.insert("ratio".to_owned(), json!({"rows": last, "wall": last.and_then(|rows| ratio(runs, rows))}));
    answer.insert("peakRssMiB".to_owned(), Value::Object(peaks));
    Value::Object(answer)
}

/// Numbers of rows, in the order in which they were measured.
fn sizes(runs: &[Run]) -> Vec<u32> {
    let mut sizes: Vec<u32> = Vec::new();
    for run in runs {
        if !sizes.contains(&run.rows) {
            sizes.push(run.rows);
        }
    }
    sizes
}

fn ratio(runs: &[Run], rows: u32) -> Option<f64> {
    figures::ratio(&of(runs, Way::Operator, rows, wall), &of(runs, Way::ByHand, rows, wall))
}

fn of(runs: &[Run], way: Way, rows: u32, pick: fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().filter(|run| run.way == way && run.rows == rows).map(pick).collect()
}

fn wall(run: &Run) -> f64 {
    seconds(run.wall)
}

fn peak(run: &Run) -> f64 {
    run.peak_mib
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_every_run_peaks_per_size_and_the_ratio_at_the_last_size() {
        let run = |way, rows, wall, peak_mib| Run { way, rows, wall, peak_mib, parts: Vec::new(), remains: None };
        let mut runs = vec![
            run(Way::Operator, 44_000, 20_000, 30.0),
            run(Way::ByHand, 44_000, 30_000, 300.0),
            run(Way::Operator, 440_000, 40_000, 31.0),
            run(Way::ByHand, 440_000, 200_000, 3_000.0),
            run(Way::Operator, 440_000, 60_000, 33.0),
            run(Way::ByHand, 440_000, 200_000, 3_000.0),
        ];
        runs[1].remains = Some(Remains { as_expected: false, reasons: vec!["a column is left".into()] });
        let answer = json(&runs);
        assert_eq!(answer["operator"]["440000"]["wallSeconds"], json!([40.0, 60.0]));
        assert_eq!(answer["ratio"], json!({"rows": 440_000, "wall": 0.25}));
        assert_eq!(answer["peakRssMiB"]["operator"], json!({"44000": 30.0, "440000": 32.0}));
        assert_eq!(answer["peakRssMiB"]["byHand"]["440000"], json!(3000.0));
        assert_eq!(answer["byHand"]["remains"]["reasons"], json!(["a column is left"]));
        assert_eq!(answer["operator"]["remains"], Value::Null);
    }
}
