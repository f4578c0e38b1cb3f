//! The script: plain kubectl commands in the order of the operator's own way back. It may be run again at any time.

use std::fmt::{Display, Write as _};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Container, EnvVar},
};
use serde_json::{Value, json};

use super::{
    find::Found,
    shell::{plain, word},
    state::{RescueState, RescueTarget},
};
use crate::{
    api::{
        marks::{
            ATTEMPT_ANNOTATION, ATTEMPT_LABEL, GOES_BACK_ANNOTATION, GUARD_ANNOTATION, GUARD_LIFTED,
            KEDA_PAUSED_REPLICAS, PRIOR_PAUSED_REPLICAS_ANNOTATION, PRIOR_REPLICAS_ANNOTATION,
            PRIOR_SUSPEND_ANNOTATION, RESCUE_LABEL,
        },
        release::{MaintenanceFlag, Role, WorkerKind, WorkerRef, WorkloadKind, WorkloadRef},
        upgrade::PlannedWorker,
    },
    job::{
        manifest::{BadName, MAIN, job_name},
        protocol::{INPUT_ENV, JobInput},
    },
};

const FUNCTIONS: &str = include_str!("functions.sh");
/// Takes the place of the answer until the shell knows it.
const ACCEPT: &str = "@ACCEPT_DATA_LOSS@";
const DELIMITER: &str = "RESTORE_JOB";

/// Why no script can be made.
#[derive(Debug, thiserror::Error)]
pub enum Unwritable {
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("the restore Job in {file} cannot be read: {cause}; take the version of this program that made the snapshot", file = crate::snapshot::manifest::RESCUE)]
    Job { cause: String },
}

impl Unwritable {
    fn job(cause: impl Display) -> Self {
        Self::Job { cause: cause.to_string() }
    }
}

/// All commands, commented.
///
/// # Errors
/// [`Unwritable`] when what lies in storage makes no Job.
pub fn script(found: &Found) -> Result<String, Unwritable> {
    let state = &found.state;
    let mut script = Script { state, ns: word(&state.namespace), text: String::new() };
    script.header(found);
    script.text.push_str(FUNCTIONS);
    script.operator_is_away();
    script.stop_writers();
    script.stop_the_attempt();
    script.restore(&restore_job(found)?)?;
    script.settings();
    script.images();
    script.start();
    script.unmark();
    Ok(script.text)
}

struct Script<'a> {
    state: &'a RescueState,
    /// The namespace as a word.
    ns: String,
    text: String,
}

/// Something that is stopped and brought back.
struct Writer<'a> {
    reference: WorkerRef,
    replicas: i32,
    autoscaled: bool,
    suspend: bool,
    paused_replicas: Option<&'a str>,
    scales: Option<&'a WorkloadRef>,
}

impl<'a> From<&'a RescueTarget> for Writer<'a> {
    fn from(target: &'a RescueTarget) -> Self {
        Self {
            reference: WorkerRef::from(&target.workload),
            replicas: target.replicas,
            autoscaled: target.autoscaler.is_some(),
            suspend: false,
            paused_replicas: None,
            scales: None,
        }
    }
}

impl<'a> From<&'a PlannedWorker> for Writer<'a> {
    fn from(worker: &'a PlannedWorker) -> Self {
        Self {
            reference: worker.workload.clone(),
            replicas: worker.replicas,
            autoscaled: worker.autoscaler.is_some(),
            suspend: worker.suspend.unwrap_or_default(),
            paused_replicas: worker.paused_replicas.as_deref(),
            scales: worker.scales.as_ref(),
        }
    }
}

impl Writer<'_> {
    /// As kubectl takes it, as a word.
    fn object(&self) -> String {
        let name = &self.reference.name;
        word(&match self.reference.kind {
            WorkerKind::Deployment => format!("deployment.apps/{name}"),
            WorkerKind::StatefulSet => format!("statefulset.apps/{name}"),
            WorkerKind::CronJob => format!("cronjob.batch/{name}"),
            WorkerKind::Job => format!("job.batch/{name}"),
            WorkerKind::ScaledObject => format!("scaledobject.keda.sh/{name}"),
        })
    }
}

fn object(workload: &WorkloadRef) -> String {
    let kind = match workload.kind {
        WorkloadKind::Deployment => "deployment.apps",
        WorkloadKind::StatefulSet => "statefulset.apps",
    };
    word(&format!("{kind}/{}", workload.name))
}

impl<'a> Script<'a> {
    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.text, "{line}");
    }

    /// A command, after a line of its own for what it is about.
    fn kubectl(&mut self, rest: impl Display) {
        let ns = self.ns.clone();
        self.line(format_args!("kubectl -n {ns} {rest}"));
    }

    fn comment(&mut self, text: &str) {
        self.line(format_args!("# {}", plain(text)));
    }

    fn title(&mut self, text: &str) {
        self.line("");
        self.comment(text);
        self.line(format_args!("say {}", word(text)));
    }

    fn servers(&self) -> Vec<Writer<'a>> {
        let state = self.state;
        let mut targets: Vec<_> = state.targets.iter().filter(|target| !target.worker).collect();
        targets.sort_by_key(|target| target.role != Role::Server);
        let scalers = |target: &RescueTarget| {
            let workload = target.workload.clone();
            state.workers.iter().filter(move |worker| worker.scales.as_ref() == Some(&workload)).map(Writer::from)
        };
        targets.into_iter().flat_map(|target| scalers(target).chain([Writer::from(target)])).collect()
    }

    fn workers(&self) -> Vec<Writer<'a>> {
        let state = self.state;
        let of_servers = |worker: &PlannedWorker| {
            state.targets.iter().any(|target| !target.worker && worker.scales.as_ref() == Some(&target.workload))
        };
        let workers = state.workers.iter().filter(|worker| !of_servers(worker)).map(Writer::from);
        workers.chain(state.targets.iter().filter(|target| target.worker).map(Writer::from)).collect()
    }

    fn header(&mut self, found: &Found) {
        let state = self.state;
        self.line("#!/bin/sh");
        for text in [
            format!(
                "Takes attempt {} of MemoriaRelease {} in namespace {} back by hand: from {} to {}.",
                state.attempt, state.release, state.namespace, state.to, state.from
            ),
            format!(
                "Printed by memoria-operator {} from {} in {}, manifest SHA-256 {}.",
                env!("CARGO_PKG_VERSION"),
                state.storage.directory,
                state.storage,
                found.stored.sha256
            ),
            "It needs kubectl with the rights of the namespace's administrator, and neither the operator nor its objects."
                .to_owned(),
            "It can be run again at any time, from its beginning: what is done stays done.".to_owned(),
            String::new(),
            "Three choices, each a variable:".to_owned(),
            "ACCEPT_DATA_LOSS=yes  what was written to the database since the snapshot may be taken back. Without it the"
                .to_owned(),
            "                      restore stops and says what it found; the whole state is kept beside the snapshot.".to_owned(),
            "RESTORE=no            leave the database as it is: only where it holds the snapshot's data already.".to_owned(),
            "GO_ON=yes             although the attempt's object says that it is open, or ended well.".to_owned(),
        ] {
            self.line(format_args!("# {}", plain(&text)).to_string().trim_end());
        }
        self.line("set -eu");
        self.line("ACCEPT_DATA_LOSS=${ACCEPT_DATA_LOSS:-no}");
        self.line("RESTORE=${RESTORE:-yes}");
        self.line("GO_ON=${GO_ON:-no}");
        self.line(format_args!("namespace={}", word(&state.namespace)));
    }

    fn operator_is_away(&mut self) {
        let attempt = word(&format!("memoriaupgrade.memoria.arca.run/{}", self.state.attempt));
        self.title("0. Nobody else is at it");
        self.comment("It fails here where the cluster cannot be reached.");
        self.kubectl("get pods -o name >/dev/null");
        let template = "'{{with .status}}{{with .outcome}}{{.}}{{else}}open{{end}}{{else}}open{{end}}'";
        let ns = self.ns.clone();
        // Where the kind is gone, too, kubectl fails, and there is nothing to ask.
        self.line(format_args!(
            "outcome=$(kubectl -n {ns} get {attempt} --ignore-not-found -o go-template={template} 2>/dev/null) || outcome="
        ));
        self.line("case $outcome in");
        self.line("  '' | Halted | RollbackFailed | Unverified | Aborted) ;;");
        self.line("  open) [ \"$GO_ON\" = yes ] || stop \"the attempt is open, and a running operator works at it. Stop the operator (scale its Deployment to 0), then run this again with GO_ON=yes\" ;;");
        self.line("  *) [ \"$GO_ON\" = yes ] || stop \"the attempt ended as $outcome; run this again with GO_ON=yes to take it back all the same\" ;;");
        self.line("esac");
        self.comment("Where the chart's image guard is on, nobody but the operator may act on the attempt's workloads before this.");
        self.line(format_args!(
            "if [ -n \"$outcome\" ]; then kubectl -n {ns} annotate {attempt} {GUARD_ANNOTATION}={GUARD_LIFTED} --overwrite ||"
        ));
        self.line("  say 'the image guard was not lifted; if a policy refuses what comes now, have that command run by somebody who may'");
        self.line("fi");
    }

    fn stop_writers(&mut self) {
        self.title("1. Every writer stops");
        let writers: Vec<_> = self.workers().into_iter().chain(self.servers()).collect();
        for (number, writer) in writers.iter().enumerate() {
            if writer.autoscaled {
                self.line(format_args!("count_{number}=$(remembered {} {})", writer.object(), writer.replicas));
                // Kept on the object, so that a second run finds it at zero and still knows it.
                self.kubectl(format_args!(
                    "annotate {} {PRIOR_REPLICAS_ANNOTATION}=\"$count_{number}\" --overwrite",
                    writer.object()
                ));
            }
        }
        for writer in &writers {
            match writer.reference.kind {
                WorkerKind::Deployment | WorkerKind::StatefulSet => {
                    self.kubectl(format_args!("scale {} --replicas=0", writer.object()));
                }
                WorkerKind::CronJob | WorkerKind::Job => self.suspend(writer, true),
                WorkerKind::ScaledObject => {
                    self.kubectl(format_args!("annotate {} {KEDA_PAUSED_REPLICAS}=0 --overwrite", writer.object()));
                }
            }
        }
        for writer in &writers {
            let object = writer.object();
            let what = word(&format!("the pods of {}", writer.reference));
            match writer.reference.kind {
                WorkerKind::Deployment | WorkerKind::StatefulSet => {
                    self.line(format_args!("until_none {what} pods_of {object}"));
                }
                WorkerKind::CronJob => {
                    let what = word(&format!("the jobs of {}", writer.reference));
                    self.line(format_args!("until_none {what} jobs_of {}", word(&writer.reference.name)));
                }
                WorkerKind::Job => {
                    let selector = word(&format!("job-name={}", writer.reference.name));
                    self.line(format_args!("until_none {what} pods_with {selector}"));
                }
                WorkerKind::ScaledObject => {
                    if let Some(scaled) = writer.scales {
                        self.line(format_args!("until_none {what} pods_of {}", self::object(scaled)));
                    }
                }
            }
        }
    }

    /// Finished Jobs are collected: there is nothing of one that is gone.
    fn suspend(&mut self, writer: &Writer<'_>, suspend: bool) {
        let (ns, object) = (self.ns.clone(), writer.object());
        let patch = word(&json!({"spec": {"suspend": suspend}}).to_string());
        let command = format!("kubectl -n {ns} patch {object} --type=merge -p {patch}");
        match writer.reference.kind {
            WorkerKind::Job => self.line(format_args!("if there {object}; then {command}; fi")),
            _ => self.line(command),
        }
    }

    fn stop_the_attempt(&mut self) {
        self.title("2. What the attempt itself still runs ends");
        let label = word(&format!("{ATTEMPT_LABEL}={}", self.state.attempt));
        let candidates = word(&format!("{ATTEMPT_LABEL}={},!job-name", self.state.attempt));
        let ns = self.ns.clone();
        self.line(format_args!("running=$(running_jobs {label})"));
        self.line(format_args!("for job in $running; do kubectl -n {ns} delete \"job.batch/$job\"; done"));
        self.kubectl(format_args!("delete pods --selector={candidates}"));
        self.line(format_args!("until_none 'the pods of the attempt' pods_with {label}"));
    }

    fn restore(&mut self, job: &Job) -> Result<(), Unwritable> {
        let name = job.metadata.name.clone().unwrap_or_default();
        let (ns, object, name) = (self.ns.clone(), word(&format!("job.batch/{name}")), word(&name));
        self.title("3. The database goes back to the snapshot, in one transaction that proves itself");
        self.comment("Before it does, the Job keeps the state that it finds beside the snapshot.");
        self.line("if [ \"$RESTORE\" = yes ]; then");
        self.line("case $ACCEPT_DATA_LOSS in yes) accept=true ;; *) accept=false ;; esac");
        self.comment("One that failed in an earlier run is made anew; one that restored stands.");
        self.line(format_args!("state=$(job_state {name})"));
        self.line(format_args!(
            "if [ \"$state\" = failed ]; then kubectl -n {ns} delete {object} --cascade=foreground; state=; fi"
        ));
        self.line("if [ -z \"$state\" ]; then");
        self.line(format_args!("sed \"s/{ACCEPT}/$accept/\" <<'{DELIMITER}' | kubectl apply -f -"));
        let text = serde_json::to_string_pretty(job).map_err(Unwritable::job)?;
        self.line(text);
        self.line(DELIMITER);
        self.line("fi");
        let see = format!("waiting for the restore; to see what it does: kubectl -n {ns} logs -f {object}");
        self.line(format_args!("say {}", word(&see)));
        self.line(format_args!("while state=$(job_state {name}) || stop 'cannot ask for the restore Job'; do"));
        self.line("  if [ \"$state\" != running ]; then break; fi");
        self.line("  sleep 2");
        self.line("done");
        self.line(format_args!("report=$(report_of {name})"));
        self.line("say \"the restore says: $report\"");
        self.line("if [ \"$state\" != complete ]; then");
        self.line("case $report in");
        self.line("  *DataLossOverBudget* | *LateWritesUnknown*) stop \"nothing was restored, and writers stay stopped. If what was written since the snapshot may be taken back, run this again with ACCEPT_DATA_LOSS=yes\" ;;");
        self.line("  *DataChangedAfterRestore*) stop \"the snapshot was restored earlier, and written to since. If only the prior version has run on it since, run this again with RESTORE=no\" ;;");
        self.line("  *) stop \"the restore failed, and writers stay stopped; its report says why (docs/runbooks/restore.md). Mend that and run this again\" ;;");
        self.line("esac");
        self.line("fi");
        self.line("fi");
        Ok(())
    }

    fn settings(&mut self) {
        let Some(settings) = &self.state.settings else { return };
        let (output, kept) = (&settings.output, &settings.kept_in);
        let place = format!("configmap/{} key {}", output.name, output.key);
        // As sha256sum prints it of its standard input.
        let [prior, new] = [&settings.prior_sha256, &settings.new_sha256].map(|hash| word(&format!("{hash}  -")));
        self.title("4. Memoria's settings from before");
        self.comment("Only what the attempt wrote is overwritten. Settings of somebody else stay.");
        let (object, kept_object) = (word(&format!("configmap/{}", output.name)), word(&format!("configmap/{kept}")));
        let key = word(&format!("{{{{index .data {}}}}}", json!(output.key)));
        let ns = self.ns.clone();
        self.line("settings=$(mktemp)");
        self.line("trap 'rm -f \"$settings\"' EXIT");
        self.line(format_args!("kubectl -n {ns} get {object} -o go-template={key} >\"$settings\""));
        self.line("case $(sha256sum <\"$settings\") in");
        self.line(format_args!("  {prior}) say {} ;;", word(&format!("{place} is as it was before"))));
        self.line(format_args!("  {new})"));
        self.line(format_args!("    if there {kept_object}; then"));
        self.line(format_args!(
            "    kubectl -n {ns} get {kept_object} -o go-template='{{{{.data.prior}}}}' >\"$settings\""
        ));
        self.line(format_args!(
            "    case $(sha256sum <\"$settings\") in {prior}) ;; *) stop {} ;; esac",
            word(&format!("configmap/{kept} does not hold what was there before; bring it back from a backup"))
        ));
        let from_file = word(&format!("{}=", output.key));
        self.line(format_args!(
            "    kubectl -n {ns} create configmap {} --from-file={from_file}\"$settings\" --dry-run=client -o json |",
            word(&output.name)
        ));
        self.line(format_args!("      kubectl -n {ns} patch {object} --type=merge --patch-file=/dev/stdin"));
        self.line("    else");
        self.line(format_args!(
            "    say {}",
            word(&format!(
                "configmap/{kept} is gone, so {place} keeps the settings of {}; bring those of {} back from a backup",
                self.state.to, self.state.from
            ))
        ));
        self.line("    fi ;;");
        self.line(format_args!(
            "  *) say {} ;;",
            word(&format!("{place} was changed meanwhile by somebody else; it stays as it is"))
        ));
        self.line("esac");
    }

    fn images(&mut self) {
        self.title("5. The prior images, while nothing runs");
        for target in &self.state.targets {
            self.comment(&format!(
                "{} meant {} when the attempt began; if its tag was moved since, set that instead",
                target.from_image, target.from_digest
            ));
            let image = word(&format!("{}={}", target.container, target.from_image));
            self.kubectl(format_args!("set image {} {image}", object(&target.workload)));
        }
    }

    fn start(&mut self) {
        let (workers, servers) = (self.workers(), self.servers());
        self.title("6. Servers run again");
        self.back(&servers, workers.len());
        if let Some(MaintenanceFlag { config_map_key_ref: place, off_value, .. }) = &self.state.maintenance_flag {
            self.title("7. Maintenance ends");
            let patch = word(&json!({"data": {place.key.as_str(): off_value}}).to_string());
            let map = word(&format!("configmap/{}", place.name));
            self.kubectl(format_args!("patch {map} --type=merge -p {patch}"));
        }
        self.title("8. Ingestion runs again");
        self.back(&workers, 0);
    }

    fn back(&mut self, writers: &[Writer<'_>], first: usize) {
        for (number, writer) in (first..).zip(writers) {
            let object = writer.object();
            match writer.reference.kind {
                WorkerKind::Deployment | WorkerKind::StatefulSet if writer.autoscaled => {
                    self.kubectl(format_args!("scale {object} --replicas=\"$count_{number}\""));
                }
                WorkerKind::Deployment | WorkerKind::StatefulSet => {
                    self.kubectl(format_args!("scale {object} --replicas={}", writer.replicas));
                }
                WorkerKind::CronJob | WorkerKind::Job => self.suspend(writer, writer.suspend),
                WorkerKind::ScaledObject => {
                    let pause = match writer.paused_replicas {
                        Some(count) => {
                            format!("{} --overwrite", word(&format!("{KEDA_PAUSED_REPLICAS}={count}")))
                        }
                        None => format!("{KEDA_PAUSED_REPLICAS}-"),
                    };
                    self.kubectl(format_args!("annotate {object} {pause}"));
                }
            }
        }
        for writer in writers {
            let object = writer.object();
            match writer.reference.kind {
                WorkerKind::Deployment => self.kubectl(format_args!("rollout status {object} --timeout=10m")),
                WorkerKind::StatefulSet if !writer.autoscaled && writer.replicas > 0 => {
                    let ready = format!("--for=jsonpath='{{.status.readyReplicas}}'={}", writer.replicas);
                    self.kubectl(format_args!("wait {object} {ready} --timeout=10m"));
                }
                _ => {}
            }
        }
    }

    fn unmark(&mut self) {
        self.title("9. The attempt's marks go");
        let marks = [
            ATTEMPT_ANNOTATION,
            GOES_BACK_ANNOTATION,
            PRIOR_REPLICAS_ANNOTATION,
            PRIOR_SUSPEND_ANNOTATION,
            PRIOR_PAUSED_REPLICAS_ANNOTATION,
        ];
        let marks = marks.map(|mark| format!("{mark}-")).join(" ");
        for writer in self.servers().into_iter().chain(self.workers()) {
            let (ns, object) = (self.ns.clone(), writer.object());
            let command = format!("kubectl -n {ns} annotate {object} {marks}");
            match writer.reference.kind {
                WorkerKind::Job => self.line(format_args!("if there {object}; then {command}; fi")),
                _ => self.line(command),
            }
        }
        let text = format!(
            "done: {} runs again. The snapshot and what else lies beside it stay in {} in {}",
            self.state.from, self.state.storage.directory, self.state.storage
        );
        self.line(format_args!("say {}", word(&text)));
    }
}

/// The pinned Job under a name of its own, with its input, and without the marks by which an operator would take it for
/// its own or a garbage collector for an orphan.
fn restore_job(found: &Found) -> Result<Job, Unwritable> {
    let state = &found.state;
    let text = state.restore.to_string();
    if text.contains(ACCEPT) {
        return Err(Unwritable::job(format_args!("it contains {ACCEPT}")));
    }
    let mut job: Job = serde_json::from_value(state.restore.clone()).map_err(Unwritable::job)?;
    let label = || Some([(RESCUE_LABEL.to_owned(), state.attempt.clone())].into());
    job.metadata.name = Some(job_name(&state.attempt, "rescue")?);
    job.metadata.namespace = Some(state.namespace.clone());
    job.metadata.labels = label();
    job.metadata.owner_references = None;
    let template = &mut job.spec.as_mut().ok_or_else(|| Unwritable::job("it has no spec"))?.template;
    template.metadata.get_or_insert_default().labels = label();
    let input = JobInput {
        manifest_sha256: Some(found.stored.sha256.clone()),
        // Nobody is left who knows the contrary, or whether the baseline counts.
        late_writes_possible: true,
        ..JobInput::default()
    };
    let Ok(Value::Object(mut input)) = serde_json::to_value(input) else {
        return Err(Unwritable::job("its input is no object"));
    };
    input.insert("acceptDataLoss".to_owned(), json!(ACCEPT));
    let input = Value::Object(input).to_string().replace(&format!("\"{ACCEPT}\""), ACCEPT);
    let containers = template.spec.iter_mut().flat_map(|pod| &mut pod.containers);
    let main: &mut Container =
        containers.into_iter().find(|c| c.name == MAIN).ok_or_else(|| Unwritable::job("it has no container main"))?;
    main.env.get_or_insert_default().push(EnvVar { name: INPUT_ENV.to_owned(), value: Some(input), value_from: None });
    Ok(job)
}
