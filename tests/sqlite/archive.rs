//! Jobs whose snapshots stay elsewhere: in a bucket, encrypted, or both. Each pod has a workplace of its own, so what a Job
//! finds is what an earlier one kept.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use age::{secrecy::ExposeSecret, x25519::Identity};
use http::{Method, StatusCode};
use memoria_operator::{
    api::upgrade::{Category, Engine},
    job::protocol::{Facts, GuardOrder, JobInput, JobOrder, ReferenceOrder, RetentionOrder},
};

use crate::{
    dice::Dice,
    reference,
    restore::{FAILED, Failed},
    s3::{Fault, S3, url},
    site::{DIRECTORY, MEMORIA, RELEASE, Site, command},
    snapshot,
};

/// A value that nothing but the rows holds.
const PERSONAL: &str = "Ada Lovelace";
const DUMPED: &str = "memoria/prod-0b8ff1f4/prod-1";

/// An archive, and the keys to it.
struct Desk {
    s3: S3,
    keys: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        for name in ["right", "wrong"] {
            let identity = Identity::generate();
            fs::write(keys.path().join(name), format!("{}\n", identity.to_string().expose_secret())).unwrap();
            fs::write(keys.path().join(format!("{name}.pub")), format!("{}\n", identity.to_public())).unwrap();
        }
        Self { s3: S3::start(), keys }
    }

    fn key(&self, name: &str) -> String {
        self.keys.path().join(name).display().to_string()
    }

    /// The environment of a Job whose archive is this; what is kept there is encrypted.
    fn archive(&self, place: &str, identity: &str) -> Vec<(String, String)> {
        let mut variables = self.s3.environment();
        for (name, value) in [
            ("MEMORIA_OPERATOR_ARCHIVE", place.to_owned()),
            ("MEMORIA_OPERATOR_RECIPIENTS_FILE", self.key("right.pub")),
            ("MEMORIA_OPERATOR_IDENTITY_FILE", self.key(identity)),
        ] {
            variables.push((name.to_owned(), value));
        }
        variables
    }

    /// A database whose snapshots are kept encrypted in the bucket.
    fn site(&self) -> Site {
        let mut site = Site::with("wal", MEMORIA);
        site.execute(&format!("UPDATE agents SET name = '{PERSONAL}' WHERE agent_id = 'a1'"));
        site.archive = self.archive(&url("memoria"), "right");
        site
    }

    fn by_hand(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
        command.arg("snapshot").args(arguments).env_remove("MEMORIA_OPERATOR_IDENTITY_FILE");
        self.s3.name_to(&mut command);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }
}

fn files_below(place: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

fn holds(path: &Path, text: &str) -> bool {
    fs::read(path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

fn preflight(retention: Option<RetentionOrder>) -> JobOrder {
    JobOrder::Reference(ReferenceOrder {
        attempt: "run-1".to_owned(),
        directory: DIRECTORY.to_owned(),
        needed_bytes: 1,
        limit_seconds: 60,
        engine: Engine::Sqlite,
        retention,
    })
}

fn retention(keep_last: u32) -> Option<RetentionOrder> {
    Some(RetentionOrder { release_uid: RELEASE.to_owned(), keep_last, max_age_seconds: None, needed: Vec::new() })
}

#[tokio::test]
async fn an_attempt_is_kept_encrypted_in_a_bucket_and_taken_back_from_there() {
    let desk = Desk::new();
    let mut failed = Failed::of(desk.site()).await;
    let before = failed.manifest(DIRECTORY);
    assert_eq!(
        desk.s3.names(DUMPED),
        ["database.sqlite.age", "manifest.json", "portable", "schema.json"],
        "only what tells of others lies open"
    );
    let sha256 = failed.baseline().await;
    failed.site.execute(&format!("INSERT INTO teams VALUES ('t9', '{PERSONAL}', 'a1')"));
    let pod = failed.site.other_pod();
    let spawn = |failed: &Failed, accept| {
        failed.spawn(&pod, |input| {
            input.late_writes_possible = true;
            input.baseline_sha256 = Some(sha256.clone());
            input.accept_data_loss = accept;
        })
    };
    failed.budget = 0;
    let asked = spawn(&failed, false).end().await;
    asked.is(false, "DataLossOverBudget", Some(Category::Decision));
    assert!(
        desk.s3
            .names(&format!("{DUMPED}/failed"))
            .iter()
            .any(|name| name.starts_with("late-") && name.ends_with(".age"))
    );
    let answer = spawn(&failed, true).end().await;
    answer.is(true, "Done", None);
    assert_eq!(failed.digest(), before.data_digest);

    for path in files_below(&desk.s3.object("memoria")) {
        assert!(!holds(&path, PERSONAL), "{} can be read by everybody", path.display());
    }
    // What was kept is what lay in the pod, and whoever has the identity gets it.
    let fetched = tempfile::tempdir().unwrap();
    let (from, to) = (url(DUMPED), fetched.path().join("all").display().to_string());
    let (done, text) = desk.by_hand(&["fetch", &from, &to]);
    assert!(!done && text.contains("no identity is given"), "{text}");
    let (done, text) = desk.by_hand(&["fetch", &from, &to, "--identity-file", &desk.key("right")]);
    assert!(done && text.contains("Fetched"), "{text}");
    let (done, text) = desk.by_hand(&["fetch", &from, &to, "--identity-file", &desk.key("right")]);
    assert!(!done && text.contains("already"), "a directory that is not empty was taken: {text}");
    assert!(holds(&Path::new(&to).join("database.sqlite"), PERSONAL));
    let (same, text) = desk.by_hand(&["verify", &to, &failed.site.url()]);
    assert!(same, "{text}");
    let (done, text) = desk.by_hand(&["late-writes", "list", &format!("{to}/failed")]);
    assert!(done && text.contains("teams"), "{text}");
    assert!(Path::new(&to).join("failed/evidence-restore.json").exists());
    // As it is kept it is no directory for other commands, and they say so.
    let (done, text) = desk.by_hand(&["verify", &from, &failed.site.url()]);
    assert!(!done && text.contains("snapshot fetch"), "{text}");
    assert!(!fs::exists(failed.site.storage.join(FAILED)).unwrap(), "the pods share a workplace");
}

#[tokio::test]
async fn a_wrong_identity_is_found_in_pre_flight_and_never_changes_anything() {
    let desk = Desk::new();
    let failed = Failed::of(desk.site()).await;
    let before = failed.digest();
    let mut pod = failed.site.other_pod();
    pod.archive = desk.archive(&url("memoria"), "wrong");
    let running = pod.spawn(&preflight(retention(3)), &JobInput::default(), "");
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    let looked = running.terminate().await;
    looked.is(false, "KeyRefused", Some(Category::Environment));
    assert!(looked.report.message.contains("could not be read again"), "{}", looked.report.message);
    failed.spawn(&pod, |_| {}).end().await.is(false, "KeyRefused", Some(Category::Environment));
    assert_eq!(failed.digest(), before);
    // A snapshot that nobody could read is none.
    let mut pod = failed.site.other_pod();
    pod.archive = desk.archive(&url("others"), "wrong");
    let taken = pod.run(&JobOrder::Snapshot(pod.snapshot_order())).await;
    taken.is(false, "KeyRefused", Some(Category::Environment));
    assert!(!desk.s3.names("others/prod-0b8ff1f4/prod-1").contains(&"manifest.json".to_owned()));
}

#[tokio::test]
async fn the_guard_reads_the_kept_snapshot_and_refuses_a_damaged_one() {
    let desk = Desk::new();
    let site = desk.site();
    let tables = MEMORIA.split("INSERT").next().unwrap();
    reference::build(&site.other_pod(), tables).await.is(true, "Done", None);
    assert_eq!(desk.s3.names(DUMPED), ["reference.json"]);
    let answer = site.other_pod().run(&JobOrder::Snapshot(site.snapshot_order())).await;
    let input = JobInput { manifest_sha256: Some(snapshot::facts(&answer).manifest_sha256), ..JobInput::default() };
    let order = JobOrder::Guard(GuardOrder {
        database: site.task("prod-1"),
        directory: DIRECTORY.to_owned(),
        reference_directory: DIRECTORY.to_owned(),
        limit_seconds: 60,
    });
    let kept = desk.s3.object(&format!("{DUMPED}/database.sqlite.age"));
    let whole = fs::read(&kept).unwrap();
    for bytes in crate::s3::damage(&kept) {
        fs::write(&kept, bytes).unwrap();
        let pod = site.other_pod();
        let running = pod.spawn(&order, &input, &site.url());
        assert!(!pod.go().await.proceed);
        let _: serde_json::Value = pod.wait_for("verdict.json").await;
        assert!(!running.terminate().await.report.ok);
    }
    fs::write(&kept, whole).unwrap();
    let pod = site.other_pod();
    let mut running = pod.spawn(&order, &input, &site.url());
    assert!(pod.go().await.proceed);
    running.kill();
}

#[tokio::test]
async fn a_snapshot_killed_at_any_time_is_made_anew_or_found_whole() {
    let desk = Desk::new();
    let mut dice = Dice::new().unwrap();
    let site = desk.site();
    let order = JobOrder::Snapshot(site.snapshot_order());
    let digest = snapshot::facts(&site.other_pod().run(&order).await).data_digest;
    for number in 0..6 {
        let mut site = site.other_pod();
        site.archive = desk.archive(&url(&format!("killed-{number}")), "right");
        let mut running = site.spawn(&order, &JobInput::default(), &site.url());
        tokio::time::sleep(Duration::from_millis(dice.below(700))).await;
        running.kill_if_running();
        let answer = site.other_pod().run(&order).await;
        answer.is(true, "Done", None);
        assert_eq!(snapshot::facts(&answer).data_digest, digest, "{dice}");
        let again = site.other_pod().run(&order).await;
        assert_eq!(again.report, answer.report, "another one was made");
    }
}

#[tokio::test]
async fn nothing_is_restored_before_the_failed_state_is_kept() {
    let desk = Desk::new();
    let failed = Failed::of(desk.site()).await;
    let before = failed.digest();
    let refused = Fault::Answer(StatusCode::FORBIDDEN, "AccessDenied");
    desk.s3.wrong(Method::PUT, "failed/database.sqlite.age", usize::MAX, refused);
    let answer = failed.spawn(&failed.site.other_pod(), |_| {}).end().await;
    assert!(!answer.report.ok && answer.report.message.contains("AccessDenied"), "{}", answer.report.message);
    assert_eq!(failed.digest(), before);
    desk.s3.right();
    failed.spawn(&failed.site.other_pod(), |_| {}).end().await.is(true, "Done", None);
    assert_ne!(failed.digest(), before);
}

/// A pre-flight in this pod: what it removed.
async fn looked(pod: &Site, retention: Option<RetentionOrder>) -> Vec<String> {
    let JobOrder::Reference(order) = preflight(retention) else { unreachable!() };
    let order = ReferenceOrder { directory: "prod-0b8ff1f4/run-1".to_owned(), ..order };
    let running = pod.spawn(&JobOrder::Reference(order), &JobInput::default(), "");
    // A second one finds the reference of the first, and lets nothing run.
    if pod.go().await.proceed {
        pod.result(vec![command("init-db", Some(1), "")]);
    }
    let _: serde_json::Value = pod.wait_for("verdict.json").await;
    let answer = running.terminate().await;
    answer.is(true, "Done", None);
    let Some(Facts::Reference(found)) = answer.report.facts else { panic!("{}", answer.report.message) };
    found.removed
}

#[tokio::test]
async fn old_snapshots_go_from_a_bucket_and_from_an_encrypted_volume() {
    let desk = Desk::new();
    let volume = tempfile::tempdir().unwrap();
    for place in [url("memoria"), volume.path().display().to_string()] {
        let mut site = desk.site();
        site.archive = desk.archive(&place, "right");
        // The first one finds nothing at all.
        assert!(looked(&site.other_pod(), retention(1)).await.is_empty());
        for number in 1..=3 {
            let mut order = site.snapshot_order();
            order.database.attempt = format!("prod-{number}");
            order.directory = format!("prod-0b8ff1f4/prod-{number}");
            site.other_pod().run(&JobOrder::Snapshot(order)).await.is(true, "Done", None);
        }
        assert_eq!(looked(&site.other_pod(), retention(1)).await, ["prod-1", "prod-2"]);
        let left = match place.strip_prefix("s3://") {
            Some(_) => desk.s3.object("memoria/prod-0b8ff1f4"),
            None => volume.path().join("prod-0b8ff1f4"),
        };
        let all = files_below(&left);
        assert!(all.iter().all(|path| path.starts_with(left.join("prod-3")) || path.starts_with(left.join("run-1"))));
        assert!(all.len() > 4, "{all:?}");
    }
}
