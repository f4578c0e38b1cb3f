//! Every command that the operator tells people to type. They are made here and nowhere else, and `tests/effects/commands.rs`
//! runs each of them: a new one does not compile there before somebody has said what runs it.
//!
//! What `memoria-operator rescue` prints is a script of its own (`rescue/script.rs`), which `tests/e2e/rescue.rs` runs.

use std::fmt;

use crate::api::{
    decision::DecisionAction,
    marks::{
        ATTEMPT_ANNOTATION, ATTEMPT_LABEL, CHECK_TEMPLATE_ANNOTATION, GITOPS_IGNORES_ANNOTATION, OWNER_ANNOTATION,
        REQUESTED_AT_ANNOTATION, STEP_LABEL,
    },
};

/// Stands for the author's name until kubectl knows it.
const AUTHOR: &str = "@AUTHOR@";
/// The author's name in quotes, whatever is in it: kubectl's template writes them as JSON reads them.
const WHOAMI: &str = r#"{{printf "%q" .status.userInfo.username}}"#;

/// What a command does. Objects are named as kubectl does, `deployment/memoria`, where their kind is not fixed.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    /// Makes a MemoriaDecision about an attempt, in the name of whoever runs it.
    Decide { release: &'a str, attempt: &'a str, action: DecisionAction },
    /// Begins pre-flight anew, and with it the upgrade.
    AskAgain { release: &'a str },
    /// Ends `spec.suspend`.
    Unsuspend { release: &'a str },
    /// Sets `spec.version`.
    SetVersion { release: &'a str, version: &'a str },
    /// Shows why an attempt turned back.
    ShowFailure { attempt: &'a str },
    /// Shows the settings that an attempt found.
    ShowPriorSettings { config_map: &'a str },
    /// Shows these Jobs.
    ShowJobs { jobs: &'a [String] },
    /// Shows what a Job printed, and where nothing is left of it what Kubernetes says of the Job.
    ShowOutput { job: &'a str },
    /// Shows why the pod of a step does not start.
    ShowPods { attempt: &'a str, step: &'a str },
    /// Shows whether a node answers.
    ShowNode { node: &'a str },
    /// Shows a claim's volume and events.
    ShowClaim { claim: &'a str },
    /// Shows an object.
    Show { object: &'a str },
    /// Deletes a pod.
    DeletePod { pod: &'a str },
    /// Deletes a pod whose node will not confirm its end.
    ForceDeletePod { pod: &'a str },
    /// Lets a paused Deployment roll out again.
    ResumeRollout { workload: &'a str },
    /// Leaves a workload one replica.
    OneReplica { workload: &'a str },
    /// Takes the mark of an attempt from a workload.
    ForgetAttempt { workload: &'a str },
    /// Takes the mark of a release from a workload.
    ForgetOwner { workload: &'a str },
    /// Says which fields of a workload its GitOps source ignores.
    IgnoredByGitOps { workload: &'a str, fields: &'a str },
    /// Lets the checks of releases run a CronJob's template.
    AllowTemplate { cron_job: &'a str },
}

impl Command<'_> {
    /// As a person types it in `sh`.
    pub fn in_namespace(&self, namespace: &str) -> String {
        in_namespace(&self.to_string(), namespace)
    }
}

/// A text with that namespace in the commands that it names, where they name none.
pub fn in_namespace(text: &str, namespace: &str) -> String {
    let mut parts = text.split("kubectl ");
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        told.push_str("kubectl ");
        if !part.starts_with("-n ") && !part.starts_with("get node ") {
            told.push_str(&format!("-n {namespace} "));
        }
        told.push_str(part);
    }
    told
}

/// Without a namespace.
impl fmt::Display for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decide { release, attempt, action } => {
                let decision = serde_json::json!({
                    "apiVersion": "memoria.arca.run/v1alpha1",
                    "kind": "MemoriaDecision",
                    "metadata": {"generateName": format!("{attempt}-")},
                    "spec": {
                        "action": action, "attempt": attempt, "decidedBy": AUTHOR, "reason": "decided by hand",
                        "releaseName": release,
                    },
                });
                let template = decision.to_string().replace(&format!("\"{AUTHOR}\""), WHOAMI);
                write!(f, "kubectl auth whoami -o go-template='{template}' | kubectl create -f -")
            }
            Self::AskAgain { release } => {
                write!(f, "kubectl annotate mrel {release} {REQUESTED_AT_ANNOTATION}=\"$(date -Is)\" --overwrite")
            }
            Self::Unsuspend { release } => {
                write!(f, "kubectl patch mrel {release} --type merge -p '{{\"spec\":{{\"suspend\":false}}}}'")
            }
            Self::SetVersion { release, version } => {
                write!(f, "kubectl patch mrel {release} --type merge -p '{{\"spec\":{{\"version\":\"{version}\"}}}}'")
            }
            Self::ShowFailure { attempt } => {
                write!(f, "kubectl get mup {attempt} -o jsonpath='{{.status.failure.message}}'")
            }
            Self::ShowPriorSettings { config_map } => {
                write!(f, "kubectl get configmap {config_map} -o jsonpath='{{.data.prior}}'")
            }
            Self::ShowJobs { jobs } => {
                let named: Vec<_> = jobs.iter().map(|job| format!("job/{job}")).collect();
                write!(f, "kubectl get {}", named.join(" "))
            }
            Self::ShowOutput { job } => {
                write!(f, "kubectl logs job/{job} --all-containers || kubectl describe job/{job}")
            }
            Self::ShowPods { attempt, step } => {
                write!(f, "kubectl describe pods -l {ATTEMPT_LABEL}={attempt},{STEP_LABEL}={step}")
            }
            Self::ShowNode { node } => write!(f, "kubectl get node {node}"),
            Self::ShowClaim { claim } => write!(f, "kubectl describe persistentvolumeclaim/{claim}"),
            Self::Show { object } => write!(f, "kubectl get {object} -o yaml"),
            Self::DeletePod { pod } => write!(f, "kubectl delete pod {pod}"),
            Self::ForceDeletePod { pod } => write!(f, "kubectl delete pod {pod} --grace-period=0 --force"),
            Self::ResumeRollout { workload } => write!(f, "kubectl rollout resume {workload}"),
            Self::OneReplica { workload } => write!(f, "kubectl scale {workload} --replicas=1"),
            Self::ForgetAttempt { workload } => write!(f, "kubectl annotate {workload} {ATTEMPT_ANNOTATION}-"),
            Self::ForgetOwner { workload } => write!(f, "kubectl annotate {workload} {OWNER_ANNOTATION}-"),
            Self::IgnoredByGitOps { workload, fields } => {
                write!(f, "kubectl annotate {workload} {GITOPS_IGNORES_ANNOTATION}={fields} --overwrite")
            }
            Self::AllowTemplate { cron_job } => {
                write!(f, "kubectl annotate cronjob/{cron_job} {CHECK_TEMPLATE_ANNOTATION}=true --overwrite")
            }
        }
    }
}

/// The statement that closes what another attempt left unfinished in Memoria's database. It touches nothing that ended, and
/// no attempt of another release that had the same name.
pub fn abandon(release_uid: &str, attempt: &str) -> String {
    format!(
        "UPDATE memoria_operator.attempt_step SET finished_at = now(), outcome = 'Abandoned' WHERE finished_at IS NULL AND \
         release_uid = '{release_uid}' AND attempt = '{attempt}'"
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Command, in_namespace};

    #[test]
    fn a_namespace_is_named_once_in_every_command_and_never_of_a_node() {
        let show = Command::ShowOutput { job: "j" };
        let told = show.in_namespace("prod");
        assert_eq!(told, "kubectl -n prod logs job/j --all-containers || kubectl -n prod describe job/j");
        assert_eq!(in_namespace(&told, "other"), told);
        assert_eq!(Command::ShowNode { node: "b" }.in_namespace("prod"), "kubectl get node b");
    }

    /// Every other place names its commands by [`Command`]: only so are the tests of them complete.
    #[test]
    fn no_other_source_writes_a_command() {
        let root = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("src");
        let mut left = vec![root.clone()];
        let mut found = Vec::new();
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            let own = ["commands.rs", "rescue/"].iter().any(|own| name.starts_with(own));
            let tests = name.ends_with("tests.rs") || name.contains("/tests/") || name.starts_with("upgrade/world");
            if own || tests || !name.ends_with(".rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let verbs =
                ["-n", "annotate", "apply", "create", "delete", "describe", "get", "logs", "patch", "rollout", "scale"];
            let writes = |line: &str| {
                let code = !line.trim_start().starts_with("//");
                code && verbs.iter().any(|verb| line.contains(&format!("kubectl {verb} ")))
            };
            found.extend(shipped.lines().filter(|line| writes(line)).map(|line| format!("{name}: {}", line.trim())));
        }
        // Tests of the machine in files of their own.
        found.retain(|line| {
            !["upgrade/holds.rs", "upgrade/kinds.rs", "upgrade/job_checks.rs"].iter().any(|t| line.starts_with(t))
        });
        assert_eq!(found, [""; 0]);
    }
}
