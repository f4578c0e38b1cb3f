//! The runner as a program, with Python programs in the place of Memoria's command line.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod place;
mod preload;

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::place::{PASSWORD, Place, URL, alive, done};

const RUNS: &str = r#"
import os, sys
name, flag, url = sys.argv[3:6]
assert sys.argv[1:3] == ["migrate", "run"] and flag == "--database-url", sys.argv
if name == "show":
    print(f"Executed migration 'show' against {url}.")
    for key in ("DATABASE_URL", "MEMORIA_DB_URL", "MEMORIA_DATABASE__CONNECTION_STRING", "PGAPPNAME", "PGOPTIONS"):
        print(key, os.environ[key])
    line = open(os.environ["PGPASSFILE"]).read()
    print("mode %o" % (os.stat(os.environ["PGPASSFILE"]).st_mode & 0o777), "fields", line.count(":"))
    secret = line.rstrip("\n").split(":", 4)[4]
    open(os.environ["SEEN"], "w").write(secret[::-1])
    print("names", sorted(k for k, v in os.environ.items() if secret in v or "MEMORIA_OPERATOR" in k or k == "PGPASSWORD"))
    for part in ("raw=" + secret[:4], secret[4:] + "\n"):
        sys.stdout.write(part); sys.stdout.flush()
    print("encoded p%40ss%25w%2ford%22%20x", file=sys.stderr)
elif name == "loud":
    print("Failed to add consent_scope to agents: no such column")
elif name == "bad":
    print("[parameters: {'user_input': 'private words'}]", file=sys.stderr)
    sys.exit(3)
elif name == "dies":
    os.kill(os.getpid(), 9)
else:
    print("ok", name)
"#;

#[test]
fn migrations_run_in_order_until_one_fails_and_the_guard_has_the_last_word() {
    let place = Place::new("order", RUNS).migrations(&["one", "loud", "bad", "never"]);
    let child = place.migrate();
    let verdict = json!({"v": 1, "ok": false, "reason": "MigrateFailed", "message": "m", "category": "Candidate"});
    let result = place.judge(&verdict);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(place.answer(), verdict);
    let fates: Vec<_> =
        result.commands.iter().map(|c| (c.name.as_str(), c.exit_code, c.signal, c.reported_failure)).collect();
    assert_eq!(fates, [("one", Some(0), None, false), ("loud", Some(0), None, true), ("bad", Some(3), None, false)]);
    assert!(result.commands[1].tail.contains("Failed to add consent_scope"));
    assert!(!place.all_text(&output).contains("never"));
    assert!(!result.commands[2].tail.contains("private words"));
}

#[test]
fn the_command_gets_its_database_and_nobody_sees_the_password() {
    let place = Place::new("secret", RUNS).migrations(&["show"]);
    place.go(&json!({"v": 1, "proceed": true}));
    let seen = place.root.join("seen");
    let child = place
        .command("migrate")
        .env("MEMORIA_OPERATOR_DATABASE_URL", URL)
        .env("SEEN", &seen)
        .env("PGPASSWORD", PASSWORD)
        .env("DB_PASSWORD", PASSWORD)
        .env("OTHER_URL", "postgresql://x:another-one@db/x")
        .spawn()
        .unwrap();
    let result = place.judge(&done());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let tail = &result.commands[0].tail;
    let without = "postgresql+psycopg2://memoria@db:5432/memoria?sslmode=disable";
    for expected in [
        format!("against {without}."),
        format!("\nDATABASE_URL {without}"),
        format!("\nMEMORIA_DB_URL {without}"),
        format!("\nMEMORIA_DATABASE__CONNECTION_STRING {without}"),
        "\nPGAPPNAME mop-memoria-7-migrate\n".to_owned(),
        "\nPGOPTIONS -c client_connection_check_interval=500ms -c lock_timeout=30s\n".to_owned(),
        "\nmode 600 fields 4\n".to_owned(),
        "\nnames []\n".to_owned(),
        "\nraw=[redacted]".to_owned(),
        "encoded [redacted]".to_owned(),
    ] {
        assert!(tail.contains(&expected), "{expected} not in {tail}");
    }
    // It did have the password: it wrote it down backwards.
    let backwards: String = PASSWORD.chars().rev().collect();
    assert_eq!(fs::read_to_string(&seen).unwrap(), backwards);
    let text = place.all_text(&output);
    for form in [PASSWORD, "p%40ss%25w%2Ford%22%20x", "p%40ss%25w%2ford%22%20x"] {
        assert!(!text.contains(form), "{form}");
    }
    assert!(fs::read_dir(place.root.join("private")).unwrap().next().is_none(), "the password file is still there");
    assert_eq!(place.answer(), done());
}

#[test]
fn the_password_is_in_no_argument() {
    let place = Place::new("argv", "import time; time.sleep(2)").migrations(&["slow"]);
    let mut child = place.migrate();
    let mut seen = String::new();
    let until = Instant::now() + Duration::from_secs(10);
    while !seen.contains("migrate\0run\0slow") && Instant::now() < until {
        seen = all_arguments(&place.root);
        thread::sleep(Duration::from_millis(20));
    }
    assert!(seen.contains("--database-url\0postgresql+psycopg2://memoria@db:5432/memoria?sslmode=disable"), "{seen:?}");
    assert!(!seen.contains("ord%22") && !seen.contains("w/ord"));
    place.judge(&done());
    assert!(child.wait().unwrap().success());
}

/// Arguments of all processes that name this directory.
fn all_arguments(root: &Path) -> String {
    let name = root.display().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .filter(|arguments| arguments.contains(&name))
        .collect()
}

#[test]
fn nothing_runs_when_the_guard_refuses() {
    let place = Place::new("refused", RUNS).migrations(&["one"]);
    let report = json!({"v": 1, "ok": false, "reason": "Unknown", "message": "marker", "category": "Environment"});
    place.go(&json!({"v": 1, "proceed": false, "report": report}));
    let output = place.command("migrate").env("MEMORIA_OPERATOR_DATABASE_URL", URL).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(place.answer(), report);
    assert!(!place.shared("result.json").exists() && output.stdout.is_empty());
}

#[test]
fn nothing_runs_without_a_word_from_the_guard() {
    let mut place = Place::new("silent", RUNS).migrations(&["one"]);
    place.order.go_seconds = 1;
    let output = place.command("migrate").env("MEMORIA_OPERATOR_DATABASE_URL", URL).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(place.report().reason, "GuardSilent");
    assert!(!place.shared("result.json").exists());
}

#[test]
fn a_second_runner_in_the_same_pod_runs_nothing() {
    let place = Place::new("twice", RUNS).migrations(&["one"]);
    let first = place.migrate();
    place.judge(&done());
    assert!(first.wait_with_output().unwrap().status.success());
    let second = place.migrate().wait_with_output().unwrap();
    assert!(!second.status.success() && second.stdout.is_empty());
    assert_eq!(place.report().reason, "NotBegun");
}

#[test]
fn without_a_verdict_the_outcome_is_unknown() {
    let mut place = Place::new("no-verdict", RUNS).migrations(&["one"]);
    place.order.verdict_seconds = 1;
    let output = place.migrate().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = place.report();
    assert_eq!(report.reason, "NoVerdict");
    assert!(report.message.starts_with("1 of 1 commands"), "{}", report.message);
}

#[test]
fn a_command_that_dies_or_does_not_exist_is_told_apart() {
    let place = Place::new("dies", RUNS).migrations(&["dies", "one"]);
    let child = place.migrate();
    let result = place.judge(&done());
    child.wait_with_output().unwrap();
    assert_eq!(result.commands.len(), 1);
    assert_eq!((result.commands[0].exit_code, result.commands[0].signal), (None, Some(9)));

    let mut place = Place::new("absent", RUNS).migrations(&["one"]);
    place.order.cli = vec!["/no/such/program".to_owned()];
    let child = place.migrate();
    let result = place.judge(&done());
    child.wait_with_output().unwrap();
    assert_eq!((result.commands[0].exit_code, result.commands[0].signal), (None, None));
    assert!(result.commands[0].tail.contains("cannot be started"), "{}", result.commands[0].tail);
}

#[test]
fn a_url_that_would_show_its_password_is_not_handed_on() {
    let place = Place::new("driver", RUNS).migrations(&["one"]);
    place.go(&json!({"v": 1, "proceed": true}));
    let url = "postgresql+pg8000://u:secret-word@db/m";
    let child = place.command("migrate").env("MEMORIA_OPERATOR_DATABASE_URL", url).spawn().unwrap();
    let result = place.judge(&done());
    let output = child.wait_with_output().unwrap();
    assert_eq!(result.commands[0].exit_code, None);
    assert!(result.commands[0].tail.contains("pg8000"));
    assert!(!place.all_text(&output).contains("secret-word"));
}

const STUBBORN: &str = r#"
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {child.pid}")
print("begun", flush=True)
time.sleep(300)
"#;

/// A killed process that nobody has collected yet is as good as gone.
#[test]
fn at_its_limit_a_command_ends_with_all_that_it_started() {
    let mut place = Place::new("limit", STUBBORN).migrations(&["gentle", "next"]);
    place.order.limit_seconds = 1;
    place.go(&json!({"v": 1, "proceed": true}));
    let pids = place.root.join("pids");
    let child = place.command("migrate").env("MEMORIA_OPERATOR_DATABASE_URL", URL).env("PIDS", &pids).spawn().unwrap();
    let result = place.judge(&done());
    child.wait_with_output().unwrap();
    assert_eq!(result.commands.len(), 1);
    assert!(result.commands[0].timed_out && result.commands[0].signal == Some(15));
    for pid in fs::read_to_string(pids).unwrap().split(' ') {
        assert!(!alive(pid), "{pid} lives on");
    }
}

#[test]
fn a_signal_to_the_runner_reaches_the_command_and_its_end_is_still_reported() {
    for (name, signal) in [("gentle", 15), ("stubborn", 9)] {
        let place = Place::new(name, STUBBORN).migrations(&[name, "next"]);
        place.go(&json!({"v": 1, "proceed": true}));
        let pids = place.root.join("pids");
        let child =
            place.command("migrate").env("MEMORIA_OPERATOR_DATABASE_URL", URL).env("PIDS", &pids).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while fs::read_to_string(&pids).unwrap_or_default().is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let result = place.judge(&done());
        child.wait_with_output().unwrap();
        assert_eq!(result.commands.len(), 1, "nothing new may begin");
        assert_eq!(result.commands[0].signal, Some(signal));
        assert!(!result.commands[0].timed_out);
        for pid in fs::read_to_string(&pids).unwrap().split(' ') {
            assert!(!alive(pid), "{pid} lives on");
        }
    }
}

#[test]
fn a_daemon_that_keeps_the_pipes_open_holds_nothing_up() {
    let program = r#"
import subprocess, sys
if sys.argv[3] == "daemon":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(6); print('late')"], start_new_session=True)
print("ok", sys.argv[3])
"#;
    let place = Place::new("daemon", program).migrations(&["daemon", "after"]);
    let begun = Instant::now();
    let child = place.migrate();
    let result = place.judge(&done());
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let tails: Vec<_> = result.commands.iter().map(|c| c.tail.as_str()).collect();
    assert_eq!(tails, ["ok daemon", "ok after"]);
}

#[test]
fn init_db_uses_the_guards_server_by_flag_or_by_environment() {
    let program = |knows: bool| {
        format!(
            r#"
import os, sys
if "--help" in sys.argv:
    print("usage: init-db [-h]{}")
else:
    print("called", sys.argv[1:], os.environ["DATABASE_URL"], os.environ.get("PGPASSFILE"))
"#,
            if knows { " [--database-url U]" } else { "" }
        )
    };
    for (name, knows, expected) in [
        ("flag", true, "called ['init-db', '--database-url', 'postgresql://scratch@127.0.0.1:5433/x'] postgresql://"),
        ("env", false, "called ['init-db'] postgresql://scratch@127.0.0.1:5433/x None"),
    ] {
        let place = Place::new(name, &program(knows));
        place.go(&json!({"v": 1, "proceed": true, "databaseUrl": "postgresql://scratch@127.0.0.1:5433/x"}));
        let child = place.command("init-db").spawn().unwrap();
        let result = place.judge(&done());
        assert!(child.wait_with_output().unwrap().status.success());
        assert_eq!(result.commands.len(), 1);
        assert!(result.commands[0].tail.starts_with(expected), "{}", result.commands[0].tail);
    }
}

#[test]
fn a_rehearsal_works_on_the_guards_copy_and_never_knows_another() {
    let program = "import sys\nprint('called', sys.argv[1:])\n";
    let place = Place::new("rehearse", program).migrations(&["add_one", "add_two"]);
    let copy = "postgresql://app@127.0.0.1:5433/copy";
    place.go(&json!({"v": 1, "proceed": true, "databaseUrl": copy}));
    let refused = place.command("rehearse").env("MEMORIA_OPERATOR_DATABASE_URL", URL).output().unwrap();
    assert!(!refused.status.success() && !place.shared("result.json").exists());
    assert!(place.report().message.contains("a rehearsal must not know the database"));
    let child = place.command("rehearse").spawn().unwrap();
    let result = place.judge(&done());
    assert!(child.wait_with_output().unwrap().status.success());
    let tails: Vec<_> = result.commands.iter().map(|command| command.tail.as_str()).collect();
    let expected = |name| format!("called ['migrate', 'run', '{name}', '--database-url', '{copy}']");
    assert_eq!(tails, [expected("add_one"), expected("add_two")]);
}

const CLI: &str = r#"
import sys
print("UserWarning: something is old  and two spaces", file=sys.stderr)
if sys.argv[1:] == ["--help"]: print("usage: cli")
elif sys.argv[1:] == ["migrate", "list"]:
    print("add_one          Adds one")
    print("add_two  Adds two")
elif sys.argv[1:] == ["migrate", "run", "--help"]: print("usage: run [-h] [--database-url U] [--all] [name]")
else: sys.exit(2)
"#;

#[test]
fn a_probe_learns_what_the_image_can_do() {
    let mut place = Place::new("probe", CLI);
    place.order.ask_cli = true;
    let output = place.command("probe").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let facts = &place.answer()["facts"];
    assert_eq!(facts["of"], "probe");
    assert_eq!(facts["migrations"], json!(["add_one", "add_two"]));
    assert_eq!(facts["runsAll"], json!(true));
    assert_eq!(facts["cli"], json!(true));
    assert_eq!(facts["uid"], json!(rustix::process::getuid().as_raw()));
}

#[test]
fn a_probe_of_another_image_asks_nothing() {
    let mut place = Place::new("carrier", CLI);
    place.order.cli = vec!["/no/such/program".to_owned()];
    assert!(place.command("probe").output().unwrap().status.success());
    assert_eq!(place.answer()["facts"]["cli"], Value::Null);
}

#[test]
fn a_probe_says_what_is_wrong_and_what_to_do() {
    let mut place = Place::new("python", CLI);
    place.order.ask_cli = true;
    place.order.cli[0] = "python".to_owned();
    let only_python3 = place.root.join("bin");
    fs::create_dir(&only_python3).unwrap();
    fs::write(only_python3.join("python3"), "").unwrap();
    let output = place.command("probe").env("PATH", &only_python3).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = place.report();
    assert_eq!((report.reason.as_str(), place.answer()["category"].clone()), ("CliFailed", json!("Candidate")));
    assert!(report.message.contains("set cli.command: [\"python3\", "), "{}", report.message);

    let mut place = Place::new("import", "raise ImportError('no module named memoria')");
    place.order.ask_cli = true;
    assert!(!place.command("probe").output().unwrap().status.success());
    assert!(place.report().message.contains("exit code 1 (ImportError: no module named memoria)"));

    let mut place = Place::new("no-flag", &CLI.replace(" [--database-url U]", ""));
    place.order.ask_cli = true;
    assert!(!place.command("probe").output().unwrap().status.success());
    assert_eq!(place.report().reason, "CliWithoutDatabaseUrl");

    let mut place = Place::new("readonly", CLI);
    place.order.private_directory = "/no/such/directory".to_owned();
    assert!(!place.command("probe").output().unwrap().status.success());
    assert_eq!(place.report().reason, "NotWritable");
}

#[test]
fn the_images_defaults_are_packed_into_the_answer_and_not_logged() {
    let mut place = Place::new("defaults", CLI);
    let text = "memory:\n  team_mode: false # generated-value\n".repeat(30);
    fs::write(place.root.join("config.example.yaml"), &text).unwrap();
    let output = place.command("defaults").current_dir(&place.root).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let facts = &place.answer()["facts"];
    assert_eq!((&facts["of"], &facts["path"]), (&json!("defaults"), &json!("config.example.yaml")));
    let packed = facts["packed"].as_str().unwrap();
    assert_eq!(memoria_runner::pack::unpack(packed, 1 << 20).unwrap(), text);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("generated-value"));

    let named = place.root.join("other.yaml");
    place.order.baseline_path = Some(named.display().to_string());
    assert!(!place.command("defaults").current_dir(&place.root).output().unwrap().status.success());
    let report = place.report();
    assert_eq!(report.reason, "NoDefaults");
    assert!(report.message.contains("other.yaml") && report.message.contains("config.baselinePath"));

    // What cannot be made small: numbers without a pattern.
    let mut state = 1_u64;
    let noise: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("k{:x}: {:x}\n", state >> 40, state >> 20)
    })
    .take(400)
    .collect();
    fs::write(&named, &noise).unwrap();
    assert!(!place.command("defaults").output().unwrap().status.success());
    let report = place.report();
    assert_eq!(report.reason, "DefaultsTooLarge");
    assert!(report.message.contains(&format!("{} bytes", noise.len())), "{}", report.message);
}

const BOOTSTRAP: &str = r#"
import sys
assert sys.argv[1:3] == ["bootstrap", "--non-interactive"] and sys.argv[3] == "--config" and sys.argv[5] == "--env-file"
MODE = "good"
if MODE == "exit": print("bootstrap broke"); sys.exit(4)
open(sys.argv[4], "w").write('{"key": "generated-value"}' if MODE != "no-json" else '{"key": generated-value')
if MODE != "no-env": open(sys.argv[6], "w").write("A=b")
"#;

#[test]
fn a_sample_bootstrap_is_judged_by_its_files() {
    for (mode, expected) in [
        ("good", Ok(())),
        ("exit", Err("exit code 4 (bootstrap broke)")),
        ("no-json", Err("memoria.json is no JSON at line 1")),
        ("no-env", Err(".env cannot be read")),
    ] {
        let place = Place::new(&format!("bootstrap-{mode}"), &BOOTSTRAP.replace("good", mode));
        let output = place.command("bootstrap").output().unwrap();
        assert_eq!(output.status.success(), expected.is_ok(), "{mode}");
        let report = place.report();
        if let Err(why) = expected {
            assert_eq!(report.reason, "BootstrapFailed");
            assert!(report.message.contains(why), "{}", report.message);
        }
        assert!(!report.message.contains("generated-value"));
    }
}

#[test]
fn a_sample_bootstrap_never_starts_beside_a_database() {
    for (name, value) in [("DATABASE_URL", "sqlite:///x"), ("PGHOST", "db"), ("ANY", "postgresql://u@db/m")] {
        let place = Place::new(&format!("reach-{name}"), BOOTSTRAP);
        let output = place.command("bootstrap").env(name, value).output().unwrap();
        assert!(!output.status.success());
        let report = place.report();
        assert_eq!(report.reason, "DatabaseInReach");
        assert!(report.message.contains(name) && !place.root.join("private/bootstrap").exists());
    }
}

#[test]
fn it_installs_itself_so_that_any_user_can_run_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new("install", "");
    let destination = place.shared("memoria-runner");
    let installed = Command::new(env!("CARGO_BIN_EXE_memoria-runner")).arg("install").arg(&destination).status();
    assert!(installed.unwrap().success());
    assert_eq!(fs::metadata(&destination).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(Command::new(&destination).output().unwrap().status.code(), Some(2), "usage");
}

/// Keeps rows in a file as JSON, as the documented commands do.
const PARITY: &str = r#"
import json, os, sys
MODE = "good"
words = sys.argv[1:]
if "--help" in words: print("usage: [--database-url U]" if MODE != "env" else "usage:"); sys.exit(0)
url = words[words.index("--database-url") + 1] if "--database-url" in words else os.environ["DATABASE_URL"]
assert url.startswith("sqlite:////"), url
path = url[len("sqlite:///"):]
def rows(): return json.load(open(path))
def keep(data): json.dump(data, open(path, "w"))
if words[0] == "init-db":
    keep({"agents": [], "teams": [], "clusters": []})
elif words[0] == "import-data":
    data = json.load(open(words[1]))["data"]
    if MODE == "strict" and data.get("agents") and "tier" not in data["agents"][0]: sys.exit("NOT NULL tier")
    if MODE == "noimport": sys.exit(1)
    if MODE == "loses": data["teams"] = []
    if MODE == "ignores": data = {}
    keep({**rows(), **data})
elif words[0] == "export-data":
    if MODE == "noexport": sys.exit(3)
    data = rows()
    json.dump({"data": data, "metadata": {}}, open(words[1], "w"))
"#;

#[test]
fn export_and_import_are_compared_on_scratch_files() {
    for (mode, expected) in [
        ("good", Ok("3 sample rows in 3 tables came back alike")),
        ("env", Ok("3 sample rows in 3 tables came back alike")),
        ("strict", Ok("agree on 3 tables, without rows")),
        ("noimport", Err("import-data ended with exit code 1")),
        ("noexport", Err("export-data ended with exit code 3")),
        ("ignores", Err("found no row of what it imported")),
    ] {
        let place = Place::new(&format!("parity-{mode}"), &PARITY.replace("\"good\"", &format!("\"{mode}\"")));
        let output = place.command("parity").output().unwrap();
        let report = place.report();
        match expected {
            Ok(said) => assert!(report.ok && report.message.contains(said), "{mode}: {}", report.message),
            Err(why) => {
                assert_eq!((report.ok, report.reason.as_str()), (false, "ParityFailed"), "{mode}: {}", report.message);
                assert!(report.message.contains(why), "{mode}: {}", report.message);
            }
        }
        assert_eq!(output.status.success(), report.ok);
    }
}

#[test]
fn a_table_that_an_import_loses_is_named() {
    // The first import, of the sample, is whole; the second is not.
    let program = PARITY
        .replace("\"good\"", "\"loses\"")
        .replace("MODE == \"loses\"", "MODE == \"loses\" and \"first\" in words[1]");
    let place = Place::new("parity-loses", &program);
    place.command("parity").output().unwrap();
    let report = place.report();
    assert!(!report.ok && report.message.contains("differs in teams"), "{}", report.message);
}

#[test]
fn a_comparison_never_starts_beside_a_database() {
    let place = Place::new("parity-url", PARITY);
    place.command("parity").env("DATABASE_URL", URL).output().unwrap();
    let report = place.report();
    assert_eq!((report.ok, report.reason.as_str()), (false, "DatabaseInReach"));
    assert!(!place.root.join("private/parity").exists());
}
