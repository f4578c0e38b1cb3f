//! Erasure on request: the data of a stored snapshot goes, a record of it stays, and whoever needs the data is told.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use http::{Method, StatusCode};
use memoria_operator::{
    api::upgrade::Category,
    job::protocol::JobOrder,
    snapshot::{
        erase::{self, ERASED, Record},
        portable::shelf::{self, Fate},
        sha256_hex,
    },
};
use serde_json::Value;

use crate::{
    restore::Failed,
    s3::{Fault, S3, url},
    site::{DIRECTORY, MEMORIA, Site},
};

/// A value that nothing but the rows holds.
const PERSONAL: &str = "Ada Lovelace";
const REASON: &str = "request 4711";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
    command.arg("snapshot").args(arguments).env("USER", "ada").stdin(Stdio::null());
    command.env_remove("MEMORIA_OPERATOR_DATABASE_URL");
    command
}

fn said(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn run(arguments: &[&str]) -> (i32, String) {
    said(command(arguments))
}

#[track_caller]
fn done(arguments: &[&str]) -> String {
    let (code, text) = run(arguments);
    assert_eq!(code, 0, "{arguments:?}: {text}");
    text
}

#[track_caller]
fn refused(arguments: &[&str], reason: &str) {
    let (code, text) = run(arguments);
    assert!(code == 1 && text.contains(reason), "{arguments:?}: {code}: {text}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file below a directory.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

/// Which of them hold the value, packed or not.
fn holding(files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<&PathBuf> {
    let holds = |bytes: &[u8]| bytes.windows(PERSONAL.len()).any(|window| window == PERSONAL.as_bytes());
    files
        .iter()
        .filter(|(_, bytes)| holds(bytes) || zstd::decode_all(bytes.as_slice()).is_ok_and(|all| holds(&all)))
        .map(|(path, _)| path)
        .collect()
}

/// An attempt that was taken back, with all that it keeps: snapshot, export, baseline, failed state and late rows.
async fn taken_back() -> Failed {
    let failed = Failed::new("wal", &format!("UPDATE agents SET name = '{PERSONAL}' WHERE agent_id = 'a1';")).await;
    let baseline = failed.baseline().await;
    failed.site.execute(&format!("INSERT INTO teams VALUES ('t9', '{PERSONAL}', 'a1')"));
    let answer = failed.spawn(&failed.site.other_pod(), |input| {
        (input.late_writes_possible, input.baseline_sha256) = (true, Some(baseline));
    });
    answer.end().await.is(true, "Done", None);
    failed
}

#[tokio::test]
async fn an_attempts_data_goes_with_all_that_lies_below_it_and_is_recorded() {
    let failed = taken_back().await;
    let directory = failed.site.storage.join(DIRECTORY);
    let before = files(&directory);
    assert_eq!(holding(&before).len(), 5, "snapshot, export, baseline, failed state and late rows");

    // Nothing goes where nobody is asked, and nothing in a dry run.
    refused(&["erase", text(&directory), "--reason", REASON], "give --yes");
    let would = done(&["erase", text(&directory), "--reason", REASON, "--dry-run"]);
    assert_eq!(would.matches("would go ").count(), would.lines().count(), "{would}");
    assert_eq!(files(&directory), before);

    let output = done(&["erase", text(&directory), "--reason", REASON, "--yes", "--json"]);
    let erased: Value = serde_json::from_str(&output).unwrap();
    let after = files(&directory);
    assert_eq!(holding(&after), Vec::<&PathBuf>::new());
    // What stays is as it was; what went stands in the record of its directory.
    let mut recorded = 0;
    for (path, bytes) in &before {
        if after.get(path) == Some(bytes) {
            continue;
        }
        assert!(!path.exists(), "{}", path.display());
        let record = erase::read(path.parent().unwrap()).unwrap().unwrap();
        assert_eq!((record.reason.as_str(), record.by.as_str()), (REASON, "ada"));
        let stored = &record.files[path.file_name().unwrap().to_str().unwrap()];
        assert_eq!((stored.bytes, &stored.sha256), (bytes.len() as u64, &sha256_hex(bytes)));
        recorded += 1;
    }
    assert_eq!(erased["files"].as_array().unwrap().len(), recorded);
    for name in ["manifest.json", "portable/manifest.json", "failed/manifest.json", "failed/late.json"] {
        assert_eq!(after[&directory.join(name)], before[&directory.join(name)]);
    }

    // Everybody is told.
    let listed = done(&["list", text(&failed.site.storage)]);
    assert_eq!(listed.matches(&format!(" by ada: {REASON})")).count(), listed.lines().count(), "{listed}");
    for place in [directory.clone(), directory.join("portable")] {
        assert!(done(&["show", text(&place)]).contains(&format!("by ada: {REASON}")));
        refused(&["verify", text(&place), &failed.site.url()], "was erased at");
    }
    refused(&["import", text(&directory.join("portable")), "--database-url", &failed.site.url()], "was erased at");
    refused(&["late-writes", "list", text(&directory.join("failed"))], "was erased at");
    let erased = Some(Category::Environment);
    failed.spawn(&failed.site.other_pod(), |_| {}).end().await.is(false, "SnapshotErased", erased);
    let again = failed.site.run(&JobOrder::Snapshot(failed.site.snapshot_order())).await;
    again.is(false, "SnapshotErased", erased);
    assert!(again.report.message.contains(REASON), "{}", again.report.message);

    // Repeating it is harmless, and the first reason stays.
    let said = done(&["erase", text(&directory), "--reason", "another", "--by", "bob"]);
    assert!(said.contains(&format!("by ada: {REASON}")), "{said}");
    assert_eq!(files(&directory), after);
}

#[tokio::test]
async fn an_erasure_that_was_killed_is_known_and_ends_by_being_repeated() {
    let failed = taken_back().await;
    let directory = failed.site.storage.join(DIRECTORY);
    let before = files(&directory);
    done(&["erase", text(&directory), "--reason", REASON, "--yes"]);
    let after = files(&directory);
    let records: Vec<_> = after.iter().filter(|(path, _)| path.ends_with(ERASED)).collect();
    assert_eq!(records.len(), 4, "snapshot, export, baseline and failed state");
    let gone: Vec<_> = before.iter().filter(|(path, _)| !after.contains_key(*path)).collect();
    let own = directory.join(ERASED);
    // After the first record, after all records, and between any two files.
    let instants = [(1, 0), (records.len(), 0)].into_iter().chain((1..gone.len()).map(|n| (records.len(), n)));
    for (written, removed) in instants {
        for (path, _) in &records {
            fs::remove_file(path).unwrap();
        }
        let first = records.iter().filter(|(path, _)| **path == own);
        for (path, bytes) in first.chain(records.iter().filter(|(path, _)| **path != own)).take(written) {
            fs::write(path, bytes).unwrap();
        }
        for (number, (path, bytes)) in gone.iter().enumerate() {
            if number >= removed {
                fs::write(path, bytes).unwrap();
            }
        }
        // What is half gone is gone for everybody.
        failed.spawn(&failed.site.other_pod(), |_| {}).end().await.is(
            false,
            "SnapshotErased",
            Some(Category::Environment),
        );
        let said = done(&["erase", text(&directory), "--reason", "another", "--yes"]);
        assert!(said.contains(&format!("by ada: {REASON}")), "{said}");
        let now = files(&directory);
        assert_eq!(now.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{written} {removed}");
        for (path, _) in &records {
            let (was, is): (Record, Record) =
                (serde_json::from_slice(&after[*path]).unwrap(), serde_json::from_slice(&now[*path]).unwrap());
            assert_eq!((is.files, is.reason, is.by), (was.files, was.reason, was.by));
        }
    }
}

#[tokio::test]
async fn what_is_no_snapshot_or_another_attempts_or_came_later_is_not_touched() {
    let failed = Failed::new("delete", "").await;
    let directory = failed.site.storage.join(DIRECTORY);
    let erase = |place: &Path| run(&["erase", text(place), "--reason", REASON, "--yes"]);
    let before = files(&failed.site.storage);
    let (code, said) = erase(&failed.site.storage);
    assert!(code == 1 && said.contains("it has no manifest.json"), "{said}");
    let other = directory.join("copied");
    fs::create_dir(&other).unwrap();
    let manifest = fs::read_to_string(directory.join("manifest.json")).unwrap();
    fs::write(other.join("manifest.json"), manifest.replace("\"prod-1\"", "\"prod-2\"")).unwrap();
    let (code, said) = erase(&directory);
    assert!(code == 1 && said.contains("of attempt prod-2") && said.contains("nothing was removed"), "{said}");
    fs::remove_dir_all(other).unwrap();
    assert_eq!(files(&failed.site.storage), before);

    assert_eq!(erase(&directory).0, 0);
    let late = directory.join("copy.sqlite");
    fs::write(&late, "another copy").unwrap();
    let (code, said) = erase(&directory);
    assert!(code == 1 && said.contains("it came after the erasure of") && said.contains(text(&late)), "{said}");
    assert!(late.exists());
    for arguments in [["erase", text(&directory), "--reason", ""].as_slice(), &["erase", text(&directory), "--yes"]] {
        assert_eq!(run(arguments).0, 2);
    }
    let mut nobody = command(&["erase", text(&directory), "--reason", REASON, "--yes"]);
    nobody.env_remove("USER");
    let (code, said) = self::said(nobody);
    assert!(code == 2 && said.contains("--by"), "{said}");
}

#[test]
fn on_a_terminal_it_asks_and_only_a_plain_yes_goes_on() {
    let site = Site::with("delete", MEMORIA);
    let directory = site.storage.join("x");
    done(&["export", text(&directory), "--database-url", &site.url()]);
    let answer = |words: &str| {
        let typed = format!(
            "{} snapshot erase {} --reason '{REASON}' --by ada",
            env!("CARGO_BIN_EXE_memoria-operator"),
            directory.display()
        );
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &typed, "/dev/null"]);
        let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{words}").unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for words in ["", "y", "no", "yes please"] {
        let (done, said) = answer(words);
        assert!(!done && said.contains("Type yes") && said.contains("nothing was erased"), "{words}: {said}");
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 4);
    let (done, said) = answer("yes");
    assert!(done && said.contains(&format!("by ada: {REASON}")), "{said}");
    assert_eq!(files(&directory).len(), 3, "manifest, schema and record");
}

#[test]
fn an_export_loses_its_own_files_only_and_is_pruned_in_its_turn() {
    let site = Site::with("delete", MEMORIA);
    for name in ["1", "2", "3"] {
        done(&["export", text(&site.storage.join(name)), "--database-url", &site.url()]);
    }
    let (old, new) = (site.storage.join("1"), site.storage.join("3"));
    fs::write(new.join("notes.txt"), "a person's").unwrap();
    let said = done(&["erase", text(&new), "--reason", REASON, "--yes"]);
    assert!(said.contains("notes.txt: no file of this export"), "{said}");
    let left: Vec<_> = files(&new).into_keys().collect();
    assert_eq!(left, ["erased.json", "manifest.json", "notes.txt", "schema.json"].map(|name| new.join(name)));
    // It counts for none, and its record stays while younger than those that do.
    let fates: Vec<_> = shelf::prune(&site.storage, 1, false).unwrap().into_iter().map(|pruned| pruned.fate).collect();
    assert_eq!(fates, [Fate::Erased, Fate::Kept, Fate::Removed]);
    assert!(!old.exists() && new.join(ERASED).exists());
    done(&["export", text(&site.storage.join("4")), "--database-url", &site.url()]);
    shelf::prune(&site.storage, 1, false).unwrap();
    assert_eq!(files(&new).into_keys().collect::<Vec<_>>(), [new.join("notes.txt")]);
}

#[test]
fn an_export_in_a_bucket_is_erased_too_and_a_refusal_in_the_middle_is_made_good() {
    let (s3, site) = (S3::start(), Site::with("delete", MEMORIA));
    let in_bucket = |arguments: &[&str]| {
        let mut command = command(arguments);
        s3.name_to(&mut command);
        command.env("MEMORIA_OPERATOR_DATABASE_URL", site.url());
        said(command)
    };
    let place = url("memoria/x");
    let erase = ["erase", &place, "--reason", REASON, "--yes"];
    assert_eq!(in_bucket(&["export", &place]).0, 0);
    let denied = Fault::Answer(StatusCode::FORBIDDEN, "AccessDenied");
    s3.wrong(Method::DELETE, "x/others.ndjson.zst", usize::MAX, denied);
    let (code, text) = in_bucket(&erase);
    assert!(code == 1 && text.contains("x/others.ndjson.zst: AccessDenied"), "{text}");
    let left = ["erased.json", "manifest.json", "others.ndjson.zst", "schema.json"];
    assert_eq!(s3.names("memoria/x"), left);
    let (code, text) = in_bucket(&["import", &place]);
    assert!(code == 1 && text.contains("was erased at"), "{text}");
    s3.right();
    let (code, text) = in_bucket(&erase);
    assert!(code == 0 && text.contains(&format!("by ada: {REASON}")), "{text}");
    assert_eq!(s3.names("memoria/x"), ["erased.json", "manifest.json", "schema.json"]);
    let record: Record = serde_json::from_slice(&fs::read(s3.object("memoria/x/erased.json")).unwrap()).unwrap();
    assert_eq!(record.files.keys().collect::<Vec<_>>(), ["memoria.ndjson.zst", "others.ndjson.zst"]);
    let (code, text) = in_bucket(&["list", &url("memoria")]);
    assert!(code == 0 && text.contains(&format!("by ada: {REASON})")), "{text}");
    for arguments in [["verify", "-", &place].as_slice(), &["import", &place]] {
        let (code, text) = in_bucket(arguments);
        assert!(code == 1 && text.contains("was erased at"), "{text}");
    }
}
