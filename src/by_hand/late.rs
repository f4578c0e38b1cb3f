//! `memoria-operator snapshot late-writes`: the rows that clients wrote after an upgrade, and that its way back set aside.

use std::path::PathBuf;

use clap::Subcommand;
use memoria_operator::snapshot::{
    late::{
        self, Reapply,
        reapplied::{Report, Table},
        set_aside::{self, Change, Late},
    },
    sqlite::{blocking, reapply},
};
use serde_json::json;

use super::{APPLICATION, Database, EXIT_CODES, Failure, Target, on_a_thread, say};

const REAPPLY_EXIT_CODES: &str =
    "Exit codes: 0 every row is in the database, 1 some stay aside or it failed, 2 wrong usage.";

#[derive(Subcommand)]
pub enum LateWrites {
    /// Count them by table
    #[command(after_help = EXIT_CODES)]
    List {
        /// The failed state's directory: `status.rollback.failedState` of the MemoriaUpgrade, on the snapshots' volume
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show which rows they are: how each was changed, and its key
    #[command(after_help = EXIT_CODES)]
    Show {
        /// As for `list`
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Only those of this table, as `list` names it; may be given several times
        #[arg(long = "table", value_name = "NAME")]
        tables: Vec<String>,
        /// Show all values of each row, too: they may be personal data
        #[arg(long)]
        rows: bool,
        /// Print one JSON a line
        #[arg(long)]
        json: bool,
    },
    /// Put them back into the restored database, as far as that is provable
    ///
    /// In one transaction, and each table's rows all or none: they stay aside where the table has other columns or no primary
    /// key, where a key is taken, where a changed row is not what it was before the change, or where a constraint would break.
    /// Every table's digest must be the one that was predicted. Stop Memoria first. May be repeated: rows that are in already
    /// are left alone.
    #[command(after_help = REAPPLY_EXIT_CODES)]
    Reapply {
        /// As for `list`
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[command(flatten)]
        database: Database,
        /// Try it, say what would come of it, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

/// True where all that was asked for was done.
pub async fn carry_out(command: &LateWrites) -> Result<bool, Failure> {
    match command {
        LateWrites::List { directory, json } => {
            let late = on_a_thread(directory, |directory| set_aside::open(&directory)).await?;
            say(*json, &late, in_words);
            Ok(true)
        }
        LateWrites::Show { directory, tables, rows, json } => {
            let late = on_a_thread(directory, |directory| set_aside::open(&directory)).await?;
            let files = wanted(&late, tables)?;
            let (rows, json) = (*rows, *json);
            let printing = move |directory: PathBuf| {
                files.iter().try_for_each(|(table, file)| {
                    set_aside::visit(&directory, file, |line, change| {
                        println!("{}", shown(table, (line, change), rows, json));
                        Ok(())
                    })
                })
            };
            on_a_thread(directory, printing).await.map(|()| true)
        }
        LateWrites::Reapply { directory, database, dry_run, json } => {
            let target = Target::of(database)?;
            let late = on_a_thread(directory, |directory| set_aside::open(&directory)).await?;
            let (directory, dry_run) = (directory.clone(), *dry_run);
            let report = match &target {
                Target::Postgres(url) => {
                    let (directory, late) = (&directory, &late);
                    late::reapply(&Reapply { url, application: APPLICATION, directory, late, dry_run }).await
                }
                Target::Sqlite(path) => {
                    let path = path.clone();
                    blocking(move || {
                        reapply::reapply(&reapply::Request {
                            database: &path,
                            directory: &directory,
                            late: &late,
                            dry_run,
                        })
                    })
                    .await
                }
            };
            let report = report.map_err(|error| target.failure(&error))?;
            say(*json, &report, reapplied);
            Ok(report.complete())
        }
    }
}

fn reapplied(report: &Report) -> String {
    let (did, stays) = if report.dry_run { ("would go in", "would stay") } else { ("in", "stays") };
    let line = |table: &Table| match &table.aside {
        None => format!(
            "{did:<11} {}: {} inserted, {} updated, {} deleted; {} were in already",
            table.table, table.inserted, table.updated, table.deleted, table.already
        ),
        Some(aside) => {
            let conflicts = aside.conflicts.iter().map(|conflict| {
                format!("\n              {:<8} {}: {}", conflict.change, conflict.key, conflict.why.words())
            });
            format!("{stays:<11} {}: {}{}", table.table, aside.why, conflicts.collect::<String>())
        }
    };
    let lines: Vec<_> = report.tables.iter().map(line).collect();
    if lines.is_empty() { "nothing was set aside".to_owned() } else { lines.join("\n") }
}

/// Tables and their files.
fn wanted(late: &Late, tables: &[String]) -> Result<Vec<(String, String)>, Failure> {
    if let Some(unknown) = tables.iter().find(|table| !late.files.contains_key(*table)) {
        let known: Vec<_> = late.files.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "no table".to_owned() } else { known.join(", ") };
        return Err(Failure(format!("nothing of {unknown} was set aside, only of {known}")));
    }
    let chosen = late.files.iter().filter(|(table, _)| tables.is_empty() || tables.contains(table));
    Ok(chosen.map(|(table, file)| (table.clone(), file.clone())).collect())
}

fn in_words(late: &Late) -> String {
    let line = |name: &str, [inserted, updated, deleted]: [i64; 3], file: &str| {
        format!("{inserted:>9} inserted {updated:>9} updated {deleted:>9} deleted  {name}{file}")
    };
    let of_table = late.tables.iter().map(|table| {
        let file = late.files.get(&table.table).map(|file| format!(" ({file})")).unwrap_or_default();
        line(&table.table, [table.inserted, table.updated, table.deleted], &file)
    });
    let all = line("in all", [late.inserted, late.updated, late.deleted], "");
    of_table.chain([all]).collect::<Vec<_>>().join("\n")
}

fn shown(table: &str, (line, change): (&str, &Change), rows: bool, json: bool) -> String {
    // The line as it lies there: a number that was parsed and written again might be another one.
    if rows {
        return if json {
            format!("{{\"table\":{},\"late\":{line}}}", json!(table))
        } else {
            format!("{table} {line}")
        };
    }
    let Change { change, times, key, row_hash, before: _ } = change;
    if json {
        return json!({"table": table, "change": change, "times": times.unwrap_or(1), "key": key, "rowHash": row_hash})
            .to_string();
    }
    let times = times.map(|times| format!(" ({times} equal rows)")).unwrap_or_default();
    let which = match (key, row_hash) {
        (Some(key), _) => key.to_string(),
        (None, Some(hash)) => format!("row with hash {hash}"),
        (None, None) => "a row without a key; --rows shows it".to_owned(),
    };
    format!("{change:<8} {table} {which}{times}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(text: &str) -> Change {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn values_are_shown_only_when_they_are_asked_for() {
        let line = r#"{"change":"updated","key":{"agent_id":"a1"},"row":{"agent_id":"a1","name":"Ada","n":1.10}}"#;
        let told = |rows, json| shown("public.agents", (line, &change(line)), rows, json);
        assert_eq!(told(false, false), r#"updated  public.agents {"agent_id":"a1"}"#);
        assert!(!told(false, true).contains("Ada") && told(false, true).contains("a1"));
        assert_eq!(told(true, false), format!("public.agents {line}"));
        let whole: serde_json::Value = serde_json::from_str(&told(true, true)).unwrap();
        assert_eq!((&whole["table"], &whole["late"]["row"]["name"]), (&json!("public.agents"), &json!("Ada")));
    }

    #[test]
    fn rows_without_a_key_are_counted() {
        let line = r#"{"change":"inserted","times":2,"row":{"t":"x"}}"#;
        let told = shown("loose", (line, &change(line)), false, false);
        assert_eq!(told, "inserted loose a row without a key; --rows shows it (2 equal rows)");
        let line = r#"{"change":"deleted","rowHash":"00ff"}"#;
        assert_eq!(shown("loose", (line, &change(line)), false, false), "deleted  loose row with hash 00ff");
    }

    #[test]
    fn a_table_that_has_none_is_refused_by_name() {
        let late = Late { files: [("agents".to_owned(), "late-0001.ndjson".to_owned())].into(), ..Late::default() };
        let Err(Failure(why)) = wanted(&late, &["teams".to_owned()]) else { panic!("not refused") };
        assert_eq!(why, "nothing of teams was set aside, only of agents");
        assert!(wanted(&late, &[]).is_ok_and(|files| files.len() == 1));
    }
}
