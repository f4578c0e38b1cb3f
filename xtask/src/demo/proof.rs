//! What decides whether the upgrade was good: the checkers of `tests/checkers`, which share no code with the operator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::clock::Clock;
use crate::cluster::{self, Target, command};
use crate::kube::Kube;
use crate::memoria::Database;
use crate::{checkers, operator, place};

/// The watch of command lines ends by itself after this many seconds, should nobody end it.
const WATCH_SECONDS: &str = "3600";
/// The control groups of everything that runs on the local cluster's nodes.
const NODES: &str = "/memoria-node-";

/// What was captured before the upgrade, and what the checkers said after it.
pub struct Proof {
    kube: Kube,
    namespace: String,
    database: Database,
    /// Where captures and answers are kept for whoever wants to look.
    directory: PathBuf,
    watch: Option<Child>,
    data: Option<Answer>,
    workloads: Option<Answer>,
    secrets: Option<Answer>,
    restored: Option<Answer>,
    back: Option<Answer>,
    back_workloads: Option<Answer>,
    /// Whether there was an upgrade to take back.
    taken_back: bool,
    /// Whether a row could be added afterwards.
    inserted: bool,
}

/// A checker's exit code and JSON.
struct Answer {
    code: i32,
    json: Value,
}

impl Proof {
    /// Captures data and workloads, and begins to watch the command lines of this machine's processes.
    pub fn begin(kube: Kube, namespace: &str, database: Database) -> Result<Self> {
        let directory = place::cache()?.join("demo");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let mut proof = Self {
            kube,
            namespace: namespace.into(),
            database,
            directory,
            watch: None,
            data: None,
            workloads: None,
            secrets: None,
            restored: None,
            back: None,
            back_workloads: None,
            taken_back: false,
            inserted: false,
        };
        proof.capture("before")?;
        if kube.target == Target::Local {
            let mut watch = proof.checker("secrets_leaked.py")?;
            watch.args(["--secrets-of", namespace, "--watch-argv", WATCH_SECONDS, "--only-cgroup", NODES]);
            for logs in pod_logs()? {
                watch.arg("--watch-logs").arg(logs);
            }
            watch.arg("--out").arg(proof.file("watched.json"));
            let log = fs::File::create(proof.file("watched.log"))?;
            watch.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            proof.watch = Some(watch.spawn().context("cannot start python3")?);
        }
        Ok(proof)
    }

    /// Captures again and asks the checkers of data and workloads.
    pub fn finish(&mut self, clock: &Clock, from: &str, to: &str) -> Result<()> {
        clock.say("  every row, sequence and grant");
        self.capture("after")?;
        let mut data = self.checker("data_expected.py")?;
        data.arg(self.file("before.capture")).arg(self.file("after.capture")).args(["--from", from, "--to", to]);
        if self.database == Database::Postgresql {
            data.args(["--probe-insert", "--psql", &self.psql()?]);
        }
        self.data = Some(self.ask("data", &mut data)?);
        clock.say("  replicas, images, flags");
        let mut workloads = self.checker("workloads.py")?;
        workloads.arg("check").arg(self.file("before.json")).arg(self.file("after.json"));
        for image in self.images_expected()? {
            workloads.arg("--image").arg(image);
        }
        self.workloads = Some(self.ask("workloads", &mut workloads)?);
        Ok(())
    }

    /// Looks for the installation's secrets in everything that the whole demo left behind.
    pub fn finish_secrets(&mut self, clock: &Clock) -> Result<()> {
        self.end_watch()?;
        clock.say("  secrets in objects, events, logs, termination messages, stored files, command lines");
        let mut secrets = self.checker("secrets_leaked.py")?;
        secrets.args(["--secrets-of", &self.namespace, "--namespace", &self.namespace, "--namespace", operator::NAME]);
        if self.kube.target == Target::Local {
            secrets.args(["--argv", "--only-cgroup", NODES, "--watched"]).arg(self.file("watched.json"));
            for volume in self.snapshot_volumes()? {
                secrets.arg("--extra-dir").arg(volume);
            }
        }
        self.secrets = Some(self.ask("secrets", &mut secrets)?);
        println!("  what was captured and answered: {}", self.directory.display());
        Ok(())
    }

    /// Captures once more, and asks whether not one bit differs from the capture of that name.
    pub fn compare_restored(&mut self, before: &str, now: &str) -> Result<()> {
        self.taken_back = true;
        self.capture(now)?;
        let mut identical = self.checker("identical.py")?;
        identical.arg(self.file(&format!("{before}.capture"))).arg(self.file(&format!("{now}.capture")));
        self.restored = Some(self.ask("restored", &mut identical)?);
        Ok(())
    }

    /// Once everything runs again: workloads as before, data changed by nothing but starting servers, inserts work.
    pub fn finish_rollback(&mut self, before: &str, version: &str) -> Result<()> {
        self.taken_back = true;
        self.capture("back")?;
        let mut data = self.checker("data_expected.py")?;
        data.arg(self.file(&format!("{before}.capture"))).arg(self.file("back.capture"));
        data.args(["--from", version, "--to", version]);
        if self.database == Database::Postgresql {
            data.args(["--probe-insert", "--psql", &self.psql()?]);
        }
        self.back = Some(self.ask("back", &mut data)?);
        let mut workloads = self.checker("workloads.py")?;
        workloads.arg("check").arg(self.file(&format!("{before}.json"))).arg(self.file("back.json"));
        self.back_workloads = Some(self.ask("back-workloads", &mut workloads)?);
        self.inserted = match self.database {
            // The checker's own inserts, in a transaction that it took back.
            Database::Postgresql => self.back.as_ref().is_some_and(|answer| answer.json["asExpected"] == true),
            Database::Sqlite => self.store_one()?,
        };
        Ok(())
    }

    /// What the Server's pods ran at that capture.
    pub fn server_digest(&self, capture: &str) -> Result<Option<String>> {
        let text = fs::read_to_string(self.file(&format!("{capture}.json")))?;
        let state: Value = serde_json::from_str(&text).context("a capture of the workloads")?;
        let server = match self.database {
            Database::Postgresql => "memoria-server",
            Database::Sqlite => "memoria",
        };
        let running = state["workloads"][server]["running"].as_object();
        let image = running.and_then(|running| running.values().next()).and_then(|ids| ids[0].as_str());
        Ok(image.and_then(|image| image.rsplit_once('@')).map(|(_, digest)| digest.to_owned()))
    }

    pub fn data_identical(&self) -> bool {
        self.restored.as_ref().is_some_and(|answer| answer.code == 0 && answer.json["identical"] == true)
    }

    /// Data that was taken back can be added to.
    pub fn next_insert_works(&self) -> bool {
        self.inserted && self.back.as_ref().is_some_and(|answer| answer.code == 0)
    }

    /// Stores one memory through the server, as a client does: with a file there is no other way in beside it.
    fn store_one(&self) -> Result<bool> {
        let script = "import json, os, urllib.request\n\
                      body = json.dumps({'user_input': 'after the way back', 'ai_output': 'stored'}).encode()\n\
                      headers = {'X-API-Key': os.environ['MEMORIA_API_KEY'], 'Content-Type': 'application/json'}\n\
                      request = urllib.request.Request('http://127.0.0.1:8000/memory', body, headers)\n\
                      print(urllib.request.urlopen(request, timeout=60).status)\n";
        let exec = ["--namespace", &self.namespace, "exec", "deployment/memoria", "--", "python", "-c", script];
        Ok(self.kube.run(&exec)?.trim() == "201")
    }

    /// Everything that a checker did not find as expected.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut asked = vec![("data", &self.data), ("workloads", &self.workloads), ("secrets", &self.secrets)];
        if self.taken_back {
            asked.push(("restored data", &self.restored));
            asked.push(("data after the way back", &self.back));
            asked.push(("workloads after the way back", &self.back_workloads));
        }
        for (what, answer) in asked {
            match answer {
                Some(Answer { code: 0, .. }) => {}
                Some(Answer { json, .. }) => problems.push(format!("{what}: {json}")),
                None => problems.push(format!("{what}: not checked")),
            }
        }
        problems
    }

    pub fn data_as_expected(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.code == 0 && data.json["asExpected"] == true)
    }

    /// Pairs of place and secret; `null` when nothing could be searched.
    pub fn secrets_leaked(&self) -> Value {
        self.secrets.as_ref().map(|secrets| secrets.json["secretsLeaked"].clone()).unwrap_or_default()
    }

    /// Reads data and workloads into files of that name.
    pub fn capture(&self, name: &str) -> Result<()> {
        let mut data = self.checker("capture.py")?;
        match self.database {
            Database::Postgresql => data.args(["--psql", &self.psql()?]),
            Database::Sqlite => data.arg("--sqlite").arg(self.copy(&format!("{name}.db"))?),
        };
        command::run(data.arg("--out").arg(self.file(&format!("{name}.capture"))))?;
        let mut workloads = self.checker("workloads.py")?;
        workloads.args(["capture", "--kubectl", &self.kubectl()?, "--namespace", &self.namespace, "--out"]);
        command::run(workloads.arg(self.file(&format!("{name}.json")))).map(drop)
    }

    /// Runs a checker and keeps its answer; exit code 2 is an error, because then the question was not even asked.
    fn ask(&self, name: &str, checker: &mut Command) -> Result<Answer> {
        let output = checker.stdin(Stdio::null()).output().context("cannot start python3")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let (Some(code @ (0 | 1 | 3)), Ok(json)) =
            (output.status.code(), serde_json::from_slice::<Value>(&output.stdout))
        else {
            bail!("the checker of {name} could not answer: {}", said.trim());
        };
        fs::write(self.file(&format!("{name}-answer.json")), &output.stdout)?;
        println!("    {name}: {}", in_short(&json));
        Ok(Answer { code, json })
    }

    /// `workload/container=image` of each target, by the digest in the plan.
    fn images_expected(&self) -> Result<Vec<String>> {
        let attempts = self.kube.list(&self.namespace, "memoriaupgrades")?;
        let attempt = attempts.last().context("there was no attempt")?;
        let targets = attempt["spec"]["targets"].as_array().context("the plan has no targets")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(targets
            .iter()
            .map(|t| format!("{}/{}={}", text(&t["workload"]["name"]), text(&t["container"]), text(&t["toImage"])))
            .collect())
    }

    /// Where the snapshots lie on this machine's nodes.
    fn snapshot_volumes(&self) -> Result<Vec<PathBuf>> {
        self.volumes(|claim| claim.ends_with("-snapshots"))
    }

    /// The directories of the volumes whose claims are wanted.
    fn volumes(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let claims = self.kube.list(&self.namespace, "persistentvolumeclaims")?;
        let names = claims.iter().filter(|claim| claim["metadata"]["name"].as_str().is_some_and(&wanted));
        let volumes: Vec<_> =
            names.filter_map(|claim| claim["spec"]["volumeName"].as_str()).map(str::to_owned).collect();
        let mut paths = Vec::new();
        for volume in volumes {
            let Some(object) = self.kube.get("default", "persistentvolume", &volume)? else { continue };
            let node =
                object["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"][0]
                    .as_str();
            let path = object["spec"]["local"]["path"].as_str();
            if let (Some(node), Some(path)) = (node, path) {
                let name = Path::new(path).file_name().context("a volume has a path")?;
                paths.push(cluster::state_dir()?.join("nodes").join(node).join("volumes").join(name));
            }
        }
        if paths.is_empty() {
            bail!("no volume of that kind was found");
        }
        Ok(paths)
    }

    fn end_watch(&mut self) -> Result<()> {
        let Some(mut watch) = self.watch.take() else { return Ok(()) };
        kill_process(Pid::from_child(&watch), Signal::TERM)?;
        let status =
            command::wait_for("the watch of command lines to end", Duration::from_secs(30), || Ok(watch.try_wait()?))?;
        // 1: it found something, which the search after the upgrade takes up.
        if !matches!(status.code(), Some(0 | 1 | 3)) {
            let log = fs::read_to_string(self.file("watched.log")).unwrap_or_default();
            bail!("the watch of command lines ended with {status}: {}", log.trim());
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn checker(&self, program: &str) -> Result<Command> {
        let mut python = checkers::program(&self.kube, program)?;
        if program == "secrets_leaked.py" {
            python.args(["--kubectl", &self.kubectl()?]);
        }
        Ok(python)
    }

    fn kubectl(&self) -> Result<String> {
        checkers::kubectl(&self.kube)
    }

    /// A copy of the SQLite file: by Python in the server's own container while one has it open, else of the files as
    /// they lie on the node.
    fn copy(&self, name: &str) -> Result<PathBuf> {
        let path = self.file(name);
        let server = self.kube.get(&self.namespace, "deployment", "memoria")?.unwrap_or_default();
        if server["spec"]["replicas"] == 0 {
            let volumes = self.volumes(|claim| claim == "memoria-data")?;
            let volume = volumes.first().context("the claim memoria-data has a volume")?;
            for suffix in ["", "-wal", "-journal"] {
                let file = volume.join(format!("memoria.db{suffix}"));
                if file.exists() {
                    fs::copy(&file, self.file(&format!("{name}{suffix}")))?;
                }
            }
            return Ok(path);
        }
        let script = place::root()?.join("tests/checkers/copy_sqlite.py");
        let mut exec = self.kube.kubectl(&["--namespace", &self.namespace, "exec", "--stdin", "deployment/memoria"])?;
        exec.args(["--", "python", "-", "/data/memoria.db"]);
        exec.stdin(fs::File::open(script)?).stdout(fs::File::create(&path)?).stderr(Stdio::piped());
        let output = exec.spawn().context("cannot start kubectl")?.wait_with_output()?;
        if !output.status.success() {
            bail!("the SQLite file could not be copied: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(path)
    }

    fn psql(&self) -> Result<String> {
        checkers::psql(&self.kube, &self.namespace)
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        if let Some(watch) = &mut self.watch {
            let _ = watch.kill();
            let _ = watch.wait();
        }
    }
}

/// Where the nodes keep the logs of their pods; those of Jobs vanish with them.
fn pod_logs() -> Result<Vec<PathBuf>> {
    let nodes = cluster::state_dir()?.join("nodes");
    let entries = fs::read_dir(&nodes).with_context(|| format!("cannot read {}", nodes.display()))?;
    entries.map(|node| Ok(node?.path().join("log/pods"))).collect()
}

/// The answer without its long lists.
fn in_short(json: &Value) -> String {
    let text = json.to_string();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
