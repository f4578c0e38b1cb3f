//! Exports in S3-compatible storage, as people type it, and what goes wrong there.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    s3::{BUCKET, Fault, S3, SECRET, damage, url},
    site::{MEMORIA, Site},
};

/// Rows that nothing compresses: more than two parts of 5 MiB, once they are hex digits.
const LARGE: &str = "CREATE TABLE large (b BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6) INSERT INTO large SELECT randomblob(1048576) FROM n;";
/// In parts as small as S3 takes them.
const IN_PARTS: [&str; 4] = ["--compress", "none", "--part-size", "5"];
const FOR_EVER: usize = usize::MAX;
const UNAVAILABLE: Fault = Fault::Answer(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");

struct Said {
    code: i32,
    output: String,
    error: String,
}

fn command(s3: &S3, site: &Site, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memoria-operator"));
    command.arg("snapshot").args(arguments).env("MEMORIA_OPERATOR_DATABASE_URL", site.url());
    s3.name_to(&mut command);
    command
}

/// Whatever is said, the secret key is not in it.
fn said(mut command: Command) -> Said {
    let output = command.output().unwrap();
    let said = Said {
        code: output.status.code().unwrap(),
        output: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!said.output.contains(SECRET) && !said.error.contains(SECRET), "{}{}", said.output, said.error);
    said
}

fn snapshot(s3: &S3, site: &Site, arguments: &[&str]) -> Said {
    said(command(s3, site, arguments))
}

#[track_caller]
fn done(s3: &S3, site: &Site, arguments: &[&str]) -> String {
    let said = snapshot(s3, site, arguments);
    assert_eq!(said.code, 0, "{arguments:?}: {}", said.error);
    said.output
}

#[track_caller]
fn refused(s3: &S3, site: &Site, arguments: &[&str], reasons: &[&str]) {
    let said = snapshot(s3, site, arguments);
    assert_eq!(said.code, 1, "{arguments:?}: {}", said.output);
    for reason in reasons {
        assert!(said.error.contains(reason), "{reason}: {}", said.error);
    }
}

fn export(s3: &S3, site: &Site, prefix: &str) -> Said {
    snapshot(s3, site, &[["export", &url(prefix)].as_slice(), &IN_PARTS].concat())
}

fn large() -> Site {
    let site = Site::with("wal", MEMORIA);
    site.execute(LARGE);
    site
}

#[test]
fn an_export_goes_to_a_bucket_and_comes_back() {
    let (s3, site) = (S3::start(), large());
    let exported = export(&s3, &site, "memoria/x");
    assert_eq!(exported.code, 0, "{}", exported.error);
    assert!(exported.output.starts_with("Exported 305 rows of 4 tables, "), "{}", exported.output);
    assert!(exported.output.ends_with(", into s3://backups/memoria/x\n"), "{}", exported.output);
    assert!(s3.count(Method::PUT, "partNumber=3") == 1 && s3.count(Method::PUT, "partNumber=4") == 0);
    assert_eq!(s3.names("memoria/x"), ["manifest.json", "memoria.ndjson", "others.ndjson", "schema.json"]);
    assert_eq!(s3.parts(), 0);

    let place = url("memoria/x");
    assert_eq!(done(&s3, &site, &["verify", "-", &place]), "The same: 305 rows in 4 tables\n");
    assert!(done(&s3, &site, &["show", &place]).contains("2 rows  agents (memoria.ndjson)"));
    site.execute("DELETE FROM large; DELETE FROM teams");
    assert_eq!(snapshot(&s3, &site, &["verify", "-", &place]).code, 1);
    let imported: Value = serde_json::from_str(&done(&s3, &site, &["import", &place, "--json"])).unwrap();
    assert_eq!(imported, json!({"tables": 4, "rows": 305, "proved": true}));
    assert_eq!(snapshot(&s3, &site, &["verify", &place, "-"]).code, 0);
    // A file by itself proves nothing, as everywhere.
    assert!(done(&s3, &site, &["import", &url("memoria/x/memoria.ndjson")]).contains("nothing could be proved"));
    // Nothing is overwritten.
    refused(&s3, &site, &["export", &place], &["s3://backups/memoria/x holds \"manifest.json\"", "never overwritten"]);

    // What lies in a directory is the same.
    let directory = site.storage.join("x");
    done(&s3, &site, &["export", directory.to_str().unwrap()]);
    assert_eq!(snapshot(&s3, &site, &["verify", &place, directory.to_str().unwrap()]).code, 0);
    let small = url("memoria/small");
    done(&s3, &site, &["export", &small, "--format", "json"]);
    assert_eq!(snapshot(&s3, &site, &["verify", &place, &small]).code, 0);
}

/// The most memory that a command had, in KiB, as the kernel counts it for as long as it runs.
fn peak(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
        peak = line.and_then(|number| number.trim().parse().ok()).unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn an_upload_and_a_download_take_no_more_memory_for_more_data() {
    let s3 = S3::start();
    let [small, large] = [(1, "small"), (5, "large")].map(|(times, prefix)| {
        let site = large();
        for _ in 1..times {
            site.execute("INSERT INTO large SELECT randomblob(1048576) FROM large LIMIT 6");
        }
        let place = url(prefix);
        let up = peak(command(&s3, &site, &[["export", &place].as_slice(), &IN_PARTS].concat()));
        (up, peak(command(&s3, &site, &["verify", "-", &place])))
    });
    // Five times the data, 60 MiB; four parts of 5 MiB, and the program itself, which is not optimized here.
    println!("KiB up and down: {small:?}, {large:?}");
    assert!(large.0 < small.0 * 5 / 4 && large.1 < small.1 * 5 / 4, "{small:?}, {large:?}");
    assert!(large.0.max(large.1) < 96 * 1024, "{large:?}");
}

#[test]
fn the_newest_exports_of_a_bucket_stay() {
    let (s3, site) = (S3::start(), Site::with("delete", MEMORIA));
    for name in ["a", "b", "c", "d"] {
        done(&s3, &site, &["export", &url(&format!("memoria/{name}"))]);
    }
    fs::create_dir(s3.object("memoria/strange")).unwrap();
    fs::write(s3.object("memoria/strange/file"), "x").unwrap();
    let listed: Value = serde_json::from_str(&done(&s3, &site, &["list", &url("memoria"), "--json"])).unwrap();
    let places: Vec<_> = listed.as_array().unwrap().iter().map(|entry| entry["directory"].as_str().unwrap()).collect();
    assert_eq!(places, ["a", "b", "c", "d"].map(|name| url(&format!("memoria/{name}"))));

    let object = s3.object("memoria/d/memoria.ndjson.zst");
    fs::write(&object, &damage(&object)[1]).unwrap();
    let would = done(&s3, &site, &["prune", &url("memoria"), "--keep", "1", "--dry-run"]);
    assert!(would.contains("would go s3://backups/memoria/a\n") && s3.names("memoria/a").len() == 4, "{would}");
    let pruned = done(&s3, &site, &["prune", &url("memoria"), "--keep", "1"]);
    assert!(pruned.contains("damaged  s3://backups/memoria/d: "), "{pruned}");
    for (fate, name) in [("kept    ", "c"), ("removed ", "b"), ("removed ", "a")] {
        assert!(pruned.contains(&format!("{fate} s3://backups/memoria/{name}\n")), "{pruned}");
    }
    assert_eq!(["a", "b", "c", "d"].map(|name| s3.names(&format!("memoria/{name}")).len()), [0, 0, 4, 4]);
    assert_eq!(s3.names("memoria/strange"), ["file"]);
    // A storage that does not answer is no damage, and nothing is removed for it.
    s3.wrong(Method::GET, "memoria/c/memoria.ndjson.zst", FOR_EVER, UNAVAILABLE);
    refused(&s3, &site, &["prune", &url("memoria"), "--keep", "1"], &["SlowDown", "memoria/c/memoria.ndjson.zst"]);
    assert_eq!(s3.names("memoria/c").len(), 4);
}

#[test]
fn a_part_that_fails_once_is_sent_again() {
    let (s3, site) = (S3::start(), large());
    s3.wrong(Method::PUT, "partNumber=3", 1, UNAVAILABLE);
    // What the client would take for final, but says nothing of the part.
    s3.wrong(Method::PUT, "partNumber=2", 1, Fault::Answer(StatusCode::BAD_REQUEST, "RequestTimeout"));
    let exported = export(&s3, &site, "x");
    assert_eq!(exported.code, 0, "{}", exported.error);
    for part in ["partNumber=2", "partNumber=3"] {
        assert_eq!(s3.count(Method::PUT, part), 2);
    }
    assert_eq!(snapshot(&s3, &site, &["verify", "-", &url("x")]).code, 0);
}

#[test]
fn a_part_that_fails_for_ever_ends_the_upload_and_is_said() {
    let (s3, site) = (S3::start(), large());
    s3.wrong(Method::PUT, "partNumber=3", FOR_EVER, UNAVAILABLE);
    let exported = export(&s3, &site, "x");
    assert_eq!(exported.code, 1);
    for words in ["writing a part of s3://backups/x/others.ndjson: SlowDown", "tried several times", "run it again"] {
        assert!(exported.error.contains(words), "{}", exported.error);
    }
    assert_eq!((s3.names("x"), s3.parts()), (vec!["memoria.ndjson".to_owned()], 0));
    assert!(s3.count(Method::PUT, "partNumber=3") > 3);
    // Once it works, the same command does.
    s3.right();
    assert_eq!(export(&s3, &site, "x").code, 0);
}

#[test]
fn an_export_that_was_killed_between_parts_is_cleared_away_by_the_next() {
    let (s3, site) = (S3::start(), large());
    s3.wrong(Method::PUT, "partNumber=2", FOR_EVER, Fault::Silence);
    let kill = |prefix: &str| {
        let place = url(prefix);
        let arguments = [["export", &place].as_slice(), &IN_PARTS].concat();
        let mut child = command(&s3, &site, &arguments).stderr(Stdio::null()).spawn().unwrap();
        s3.wait_for(Method::PUT, &format!("{prefix}/others.ndjson?partNumber=2"));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = ["memoria.ndjson", "others.ndjson.upload"];
        assert_eq!(s3.names(prefix), left, "the upload is named before its first part");
    };
    kill("x");
    assert_eq!(s3.parts(), 1);
    kill("y");
    assert_eq!(s3.parts(), 2);
    s3.right();
    assert_eq!(export(&s3, &site, "x").code, 0);
    assert_eq!((s3.names("x").len(), s3.parts()), (4, 1), "of the next export's own prefix");

    // Somebody may be at work on what is young; nobody is on what is older than a day.
    let prune = ["prune", &url(""), "--keep", "1"];
    assert_eq!(done(&s3, &site, &prune), "kept     s3://backups/x\n");
    let named = s3.object("y/others.ndjson.upload");
    let mut journal: Value = serde_json::from_slice(&fs::read(&named).unwrap()).unwrap();
    assert_eq!(journal["v"], 1);
    journal["startedAt"] = "2026-01-10T03:00:00Z".into();
    fs::write(&named, journal.to_string()).unwrap();
    let would = done(&s3, &site, &[prune.as_slice(), &["--dry-run"]].concat());
    assert!(would.contains("would go s3://backups/y: the unfinished upload of others.ndjson\n"), "{would}");
    assert_eq!(s3.parts(), 1);
    let pruned = done(&s3, &site, &prune);
    assert!(pruned.contains("removed  s3://backups/y: the unfinished upload of others.ndjson\n"), "{pruned}");
    assert_eq!((s3.names("y"), s3.parts()), (vec!["memoria.ndjson".to_owned()], 0));
    // One that cannot be told is not guessed at.
    fs::write(&named, "{}").unwrap();
    refused(&s3, &site, &prune, &["s3://backups/y/others.ndjson.upload names no upload", "list-multipart-uploads"]);
}

#[test]
fn an_erasure_ends_the_uploads_of_its_place_too() {
    let (s3, site) = (S3::start(), large());
    assert_eq!(export(&s3, &site, "whole").code, 0);
    s3.wrong(Method::PUT, "x/others.ndjson?partNumber=2", FOR_EVER, Fault::Silence);
    let place = url("x");
    let arguments = [["export", &place].as_slice(), &IN_PARTS].concat();
    let mut child = command(&s3, &site, &arguments).stderr(Stdio::null()).spawn().unwrap();
    s3.wait_for(Method::PUT, "x/others.ndjson?partNumber=2");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(s3.parts(), 1);
    s3.right();
    // As if it had been killed over an export that was whole.
    fs::copy(s3.object("whole/manifest.json"), s3.object("x/manifest.json")).unwrap();
    done(&s3, &site, &["erase", &place, "--reason", "request 4711", "--by", "ada", "--yes"]);
    assert_eq!((s3.names("x"), s3.parts()), (vec!["erased.json".to_owned(), "manifest.json".to_owned()], 0));
    assert_eq!(s3.names("whole").len(), 4);
}

#[test]
fn credentials_that_do_not_fit_are_refused_before_anything_long_begins() {
    let (s3, site) = (S3::start(), Site::with("delete", MEMORIA));
    let (place, here) = (url("x"), site.storage.join("x"));
    done(&s3, &site, &["export", here.to_str().unwrap()]);
    let with = |arguments: &[&str], name: &str, value: &str| {
        let mut command = command(&s3, &site, arguments);
        command.env(name, value);
        said(command)
    };
    for (name, value) in [("AWS_ACCESS_KEY_ID", "AKIDOTHER"), ("AWS_SECRET_ACCESS_KEY", "not the secret")] {
        for arguments in [["export", &place], ["import", &place], ["show", &place], ["list", &place]] {
            let wrong = with(&arguments, name, value);
            assert!(wrong.code == 1 && wrong.error.contains("correct AWS_ACCESS_KEY_ID"), "{}", wrong.error);
            assert!(!wrong.error.contains("not the secret"), "{}", wrong.error);
        }
    }
    let half = with(&["export", &place], "AWS_SECRET_ACCESS_KEY", "");
    assert_eq!(half.code, 1, "{}", half.error);
    let endpoint = with(&["export", &place], "AWS_ENDPOINT_URL", "http://me:secret@127.0.0.1:1");
    assert!(endpoint.code == 1 && endpoint.error.contains("holds a user"), "{}", endpoint.error);
    assert!(!endpoint.error.contains("me:secret"), "{}", endpoint.error);
    let nobody = with(&["list", &place], "AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    assert!(nobody.code == 1 && nobody.error.contains("AWS_ENDPOINT_URL"), "{}", nobody.error);

    // Who may only read, or not remove, is told which right is missing, and where.
    for (method, doing) in [(Method::PUT, "trying to write"), (Method::DELETE, "trying to remove")] {
        s3.right();
        s3.wrong(method, "/x/", FOR_EVER, Fault::Answer(StatusCode::FORBIDDEN, "AccessDenied"));
        let denied = [doing, "s3://backups/x/write-probe: AccessDenied", "s3:DeleteObject"];
        refused(&s3, &site, &["export", &place], &denied);
    }
    assert_eq!(s3.names("x"), ["write-probe"]);
    // What that left is in nobody's way.
    s3.right();
    done(&s3, &site, &["export", &place]);
    assert_eq!(s3.names("x").len(), 4);
    for usage in [["export", &place, "--part-size", "4"], ["export", &place, "--part-size", "5121"]] {
        assert_eq!(snapshot(&s3, &site, &usage).code, 2);
    }
    refused(&s3, &site, &["show", "s3://key:secret@backups/x"], &["s3://bucket/prefix"]);
}

#[test]
fn damage_in_a_bucket_is_refused_and_nothing_is_changed() {
    let (s3, site) = (S3::start(), Site::with("delete", MEMORIA));
    let place = url("x");
    done(&s3, &site, &["export", &place]);
    site.execute("UPDATE agents SET name = 'since then'");
    let before = fs::read(site.database()).unwrap();
    for name in ["memoria.ndjson.zst", "others.ndjson.zst", "schema.json"] {
        let object = s3.object(&format!("x/{name}"));
        let whole = fs::read(&object).unwrap();
        for damaged in damage(&object) {
            fs::write(&object, damaged).unwrap();
            for arguments in [["import", &place].as_slice(), &["show", &place], &["verify", &place, &place]] {
                refused(&s3, &site, arguments, &["s3://backups/x is damaged", name]);
            }
        }
        fs::remove_file(&object).unwrap();
        refused(&s3, &site, &["import", &place], &[&format!("s3://backups/x/{name}"), "somebody removed"]);
        fs::write(&object, whole).unwrap();
    }
    let manifest = s3.object("x/manifest.json");
    let whole = fs::read(&manifest).unwrap();
    fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    refused(&s3, &site, &["import", &place], &["s3://backups/x", "manifest.json"]);
    fs::remove_file(&manifest).unwrap();
    refused(&s3, &site, &["import", &place], &["it has no manifest.json"]);
    assert_eq!(fs::read(site.database()).unwrap(), before);
    fs::write(&manifest, whole).unwrap();
    // A connection that ends in the middle is another matter: the rest is asked for.
    s3.wrong(Method::GET, "x/memoria.ndjson.zst", 1, Fault::Cut);
    done(&s3, &site, &["import", &place]);
    assert!(s3.count(Method::GET, "x/memoria.ndjson.zst") > 2);
}

#[test]
fn what_the_storage_made_of_the_bytes_is_read_back_before_the_manifest() {
    let (s3, site) = (S3::start(), Site::with("delete", MEMORIA));
    let object = s3.object("x/others.ndjson.zst");
    // The schema comes last of the files; by then somebody has another mind about the one before.
    let mut export = command(&s3, &site, &["export", &url("x")]);
    s3.wrong(Method::PUT, "x/schema.json", 1, UNAVAILABLE);
    let child = export.stderr(Stdio::piped()).spawn().unwrap();
    s3.wait_for(Method::PUT, "x/schema.json");
    fs::write(&object, &damage(&object)[0]).unwrap();
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success() && error.contains("others.ndjson.zst"), "{error}");
    assert!(!s3.names("x").contains(&"manifest.json".to_owned()));
}

#[test]
fn a_storage_without_conditions_takes_a_manifest_too_but_never_over_another() {
    let (s3, site) = (S3::start(), Site::with("delete", MEMORIA));
    s3.wrong_where(FOR_EVER, Fault::Answer(StatusCode::NOT_IMPLEMENTED, "NotImplemented"), |request| {
        request.headers().contains_key("if-none-match")
    });
    done(&s3, &site, &["export", &url("x")]);
    assert_eq!(s3.names("x").len(), 4);
    s3.right();
    // Where there are conditions, one that another put there meanwhile stays.
    s3.wrong(Method::PUT, "y/manifest.json", 1, UNAVAILABLE);
    let child = command(&s3, &site, &["export", &url("y")]).stderr(Stdio::piped()).spawn().unwrap();
    s3.wait_for(Method::PUT, "y/manifest.json");
    fs::write(s3.object("y/manifest.json"), "another's").unwrap();
    let error = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(error.contains("s3://backups/y/manifest.json holds other bytes already"), "{error}");
    assert_eq!(fs::read(s3.object("y/manifest.json")).unwrap(), b"another's");
    assert!(s3.object("").ends_with(BUCKET));
}
