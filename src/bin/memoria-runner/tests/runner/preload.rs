//! Migrations as forks of an interpreter that has imported what they need.

use std::fs;

use serde_json::json;

use crate::{
    RUNS, STUBBORN,
    place::{PASSWORD, Place, URL, alive, done},
};

/// Writes a line for each time that it is imported.
const COUNTED: &str = r#"
import os
with open("imports", "a") as file: file.write("once\n")
"#;

#[test]
fn what_a_module_needs_is_imported_once_and_each_migration_is_a_process_of_its_own() {
    const WHO: &str = "name = sys.argv[3]\nprint('group', os.getpgid(0) == os.getpid(), 'pid', os.getpid())\n\
                       print(name, sys.argv[1:3], os.path.basename(sys.argv[0]), __name__)\n\
                       heavy.state = getattr(heavy, 'state', 0) + 1\nprint('state', heavy.state)\n\
                       if name == 'raises': raise RuntimeError('no such column')\n\
                       if name == 'dies': os.kill(os.getpid(), 9)\n";
    for (last, fate) in [("raises", (Some(1), None)), ("dies", (None, Some(9)))] {
        let place = Place::new(&format!("once-{last}"), WHO).module(COUNTED).migrations(&["a", "b", last, "never"]);
        let child = place.migrate();
        let result = place.judge(&done());
        let output = child.wait_with_output().unwrap();
        assert_eq!(fs::read_to_string(place.root.join("imports")).unwrap().lines().count(), 1);
        let fates: Vec<_> = result.commands.iter().map(|c| (c.name.as_str(), (c.exit_code, c.signal))).collect();
        assert_eq!(fates, [("a", (Some(0), None)), ("b", (Some(0), None)), (last, fate)]);
        // Output and error come by two ways, and either may be the first.
        let pid = |tail: &str| tail.lines().find(|line| line.starts_with("group True pid ")).map(str::to_owned);
        let mut pids: Vec<_> = result.commands.iter().filter_map(|c| pid(&c.tail)).collect();
        pids.sort();
        pids.dedup();
        assert_eq!(pids.len(), 3, "each its own: {pids:?}");
        for command in &result.commands {
            assert!(
                command.tail.contains(&format!("{} ['migrate', 'run'] cli.py __main__", command.name)),
                "{command:?}"
            );
            assert!(command.tail.contains("state 1"), "what one left behind, the next one sees: {command:?}");
        }
        assert_eq!(result.commands[2].tail.contains("RuntimeError: no such column"), last == "raises");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(shown.contains("b ['migrate', 'run']"), "its output is shown as it comes: {shown}");
        assert!(fs::read_dir(place.root.join("private")).unwrap().next().is_none(), "the socket is still there");
    }
}

#[test]
fn the_libraries_of_one_migration_are_there_for_the_next_but_not_what_is_unfit_or_the_applications() {
    const NAMES: &str = "xml.dom.minidom, fit, own";
    let threads = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n";
    // Where one of them is unfit, nothing is learned.
    for (case, names, learned) in
        [("fit", NAMES.to_owned(), "['xml.dom.minidom', 'fit']"), ("unfit", format!("{NAMES}, threads"), "[]")]
    {
        let program = format!(
            "known = set(sys.modules)\nimport {names}\nprint([n for n in '{names}'.split(', ') if n in known])\n"
        );
        let place = Place::new(&format!("learns-{case}"), &program);
        let packages = place.root.join("site-packages");
        fs::create_dir(&packages).unwrap();
        fs::write(packages.join("fit.py"), "").unwrap();
        fs::write(packages.join("threads.py"), threads).unwrap();
        fs::write(place.root.join("own.py"), "").unwrap();
        let place =
            place.module(&format!("{COUNTED}import sys\nsys.path.append({packages:?})\n")).migrations(&["a", "b", "c"]);
        let child = place.migrate();
        let result = place.judge(&done());
        let output = child.wait_with_output().unwrap();
        let tails: Vec<_> = result.commands.iter().map(|c| c.tail.as_str()).collect();
        assert_eq!(tails, ["[]", learned, learned], "{output:?}");
        assert_eq!(fs::read_to_string(place.root.join("imports")).unwrap().lines().count(), 1);
    }
}

#[test]
fn a_module_whose_fork_would_not_be_like_a_new_process_is_started_anew_each_time() {
    let threads = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n";
    let connects = "import socket\nkept = socket.socketpair()\n";
    let raises = "import __main__\nif not hasattr(__main__, 'heavy') and '-c' in __import__('sys').argv[0]: raise ImportError('not so')\n";
    let forks_fail = "import sys\nif '-c' not in sys.argv[0]: assert '--help' not in sys.argv\nsys.modules['runpy'].run_module = None\n";
    for (name, import) in [("threads", threads), ("connects", connects), ("raises", raises), ("help", forks_fail)] {
        let place = Place::new(&format!("anew-{name}"), "print('ran', sys.argv[3])")
            .module(&format!("{COUNTED}{import}"))
            .migrations(&["a", "b"]);
        let child = place.migrate();
        let result = place.judge(&done());
        let output = child.wait_with_output().unwrap();
        let fates: Vec<_> = result.commands.iter().map(|c| (c.exit_code, c.tail.as_str())).collect();
        assert_eq!(fates, [(Some(0), "ran a"), (Some(0), "ran b")], "{name}: {output:?}");
        assert_eq!(fs::read_to_string(place.root.join("imports")).unwrap().lines().count(), 3, "{name}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("each command"), "{name}: why is not said: {said}");
    }
}

#[test]
fn a_preloaded_migration_ends_at_its_limit_with_all_that_it_started() {
    let mut place = Place::new("preloaded-limit", STUBBORN).module(COUNTED).migrations(&["gentle", "next"]);
    place.order.limit_seconds = 3;
    place.go(&json!({"v": 1, "proceed": true}));
    let pids = place.root.join("pids");
    let child = place.command("migrate").env("MEMORIA_OPERATOR_DATABASE_URL", URL).env("PIDS", &pids).spawn().unwrap();
    let result = place.judge(&done());
    child.wait_with_output().unwrap();
    assert_eq!(fs::read_to_string(place.root.join("imports")).unwrap().lines().count(), 1);
    assert_eq!(result.commands.len(), 1);
    assert!(result.commands[0].timed_out && result.commands[0].signal == Some(15), "{:?}", result.commands);
    for pid in fs::read_to_string(pids).unwrap().split(' ') {
        assert!(!alive(pid), "{pid} lives on");
    }
}

#[test]
fn a_preloaded_migration_gets_its_database_and_nobody_sees_the_password() {
    let place = Place::new("preloaded-secret", RUNS).module(COUNTED).migrations(&["show", "bad"]);
    place.go(&json!({"v": 1, "proceed": true}));
    let seen = place.root.join("seen");
    let mut command = place.command("migrate");
    command.env("MEMORIA_OPERATOR_DATABASE_URL", URL).env("SEEN", &seen).env("PGPASSWORD", PASSWORD);
    let child = command.spawn().unwrap();
    let result = place.judge(&done());
    let output = child.wait_with_output().unwrap();
    assert_eq!(fs::read_to_string(place.root.join("imports")).unwrap().lines().count(), 1);
    let tail = &result.commands[0].tail;
    assert!(tail.contains("\nPGAPPNAME mop-memoria-7-migrate\n") && tail.contains("\nnames []\n"), "{tail}");
    assert!(tail.contains("raw=[redacted]") && tail.contains("encoded [redacted]"), "{tail}");
    assert_eq!(fs::read_to_string(&seen).unwrap().chars().rev().collect::<String>(), PASSWORD);
    let text = place.all_text(&output);
    for form in [PASSWORD, "p%40ss%25w%2Ford%22%20x", "p%40ss%25w%2ford%22%20x"] {
        assert!(!text.contains(form), "{form}");
    }
    assert_eq!(result.commands[1].exit_code, Some(3));
}

#[test]
fn a_migration_whose_interpreter_is_killed_is_a_failure_and_leaves_nothing_behind() {
    const LINGERS: &str = "import time\nopen('pid', 'w').write(str(os.getpid()))\n\
                           if sys.argv[3] == 'first': os.kill(os.getppid(), 9)\ntime.sleep(600)\n";
    let place = Place::new("lost", LINGERS).module(COUNTED).migrations(&["first", "next"]);
    let child = place.migrate();
    let result = place.judge(&done());
    child.wait_with_output().unwrap();
    assert_eq!(result.commands.len(), 1, "{:?}", result.commands);
    assert!(!result.commands[0].exited_well() && result.commands[0].signal == Some(9));
    assert!(!alive(&fs::read_to_string(place.root.join("pid")).unwrap()));
}
