//! What a Job and its pod say, in the machine's words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::Pod,
};

use super::{error::cut, pods};
use crate::{
    api::{
        release::{CheckResult, Verdict},
        upgrade::Category,
    },
    job::{
        manifest::MAIN,
        protocol::{CheckFacts, Facts, JobReport},
    },
    upgrade::seen::{JobSeen, JobState, Trouble},
};

/// A Job of ours. `pods` are all pods that bear the attempt's label; those of other Jobs are passed over.
pub(crate) fn seen(job: &Job, pods: &[Pod]) -> JobSeen {
    let mut own: Vec<&Pod> = pods.iter().filter(|pod| belongs(pod, job)).collect();
    // Names of a Job's pods are random: the newest is the last. Times come from the apiserver alone.
    own.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
    JobSeen {
        uid: job.metadata.uid.clone().unwrap_or_default(),
        state: state(job, &own),
        image_id: own.iter().rev().find_map(|pod| pods::image_id_of(pod, MAIN)),
        ttl_armed: job.spec.as_ref().is_some_and(|s| s.ttl_seconds_after_finished.is_some()),
    }
}

/// The Job of a check that runs a CronJob's template: how it ended is the verdict, and what it prints is its own affair.
pub(crate) fn checked(check: &str, job: &Job, pods: &[Pod]) -> JobSeen {
    let mut seen = seen(job, pods);
    if let JobState::Finished { succeeded, report, detail } = &mut seen.state {
        let found = match *succeeded {
            true => (Verdict::Passed, "exit code 0".to_owned()),
            false => ending(job, pods, detail),
        };
        *report = Some(verdict(check, job, found));
    }
    seen
}

/// Failed where a container ended by itself with another exit code than 0 in the last pod that failed; Inconclusive where
/// time ran out or the pod was taken away.
fn ending(job: &Job, pods: &[Pod], detail: &str) -> (Verdict, String) {
    let out_of_time = condition(job, "Failed").is_some_and(|c| c.reason.as_deref() == Some("DeadlineExceeded"));
    let failed = pods.iter().filter(|pod| belongs(pod, job) && pods::has_failed(pod));
    let last = failed.max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
    match last.and_then(pods::own_failure) {
        Some(how) if !out_of_time => (Verdict::Failed, how),
        _ => (Verdict::Inconclusive, detail.to_owned()),
    }
}

/// What the Job would report if it were one of ours.
fn verdict(check: &str, job: &Job, (result, how): (Verdict, String)) -> JobReport {
    let end = condition(job, "Complete").or_else(|| condition(job, "Failed"));
    let at = end.and_then(|c| c.last_transition_time.as_ref());
    let at = at.map(|at| format!(" at {}", at.0.strftime("%Y-%m-%dT%H:%M:%SZ"))).unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let message = cut(&format!("{how}; job {name}{at}"), 900);
    let (reason, category, said) = match result {
        Verdict::Passed => ("Done", None, format!("check {check} passed: {message}")),
        Verdict::Failed => ("CheckFailed", Some(Category::Candidate), format!("check {check} failed: {message}")),
        Verdict::Inconclusive => {
            ("CheckInconclusive", Some(Category::Environment), format!("check {check} gave no verdict: {message}"))
        }
    };
    let checks = vec![CheckResult { name: check.to_owned(), result, message }];
    JobReport {
        v: 1,
        ok: category.is_none(),
        reason: reason.to_owned(),
        message: said,
        category,
        facts: Some(Facts::Check(CheckFacts { checks, baselines: BTreeMap::new() })),
    }
}

fn condition<'a>(job: &'a Job, type_: &str) -> Option<&'a JobCondition> {
    job.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True")
}

/// A Job that only has our name.
pub(crate) fn foreign(job: &Job, detail: String) -> JobSeen {
    JobSeen {
        uid: job.metadata.uid.clone().unwrap_or_default(),
        state: JobState::Foreign { detail },
        image_id: None,
        ttl_armed: false,
    }
}

pub(crate) fn belongs(pod: &Pod, job: &Job) -> bool {
    let uid = job.metadata.uid.as_deref();
    pod.metadata.owner_references.iter().flatten().any(|o| o.kind == "Job" && Some(o.uid.as_str()) == uid)
}

fn state(job: &Job, own: &[&Pod]) -> JobState {
    let is = |type_: &str| condition(job, type_);
    // A pod that outlives its Job's end may still hold the database.
    let lingering = own.iter().find(|pod| !pods::has_ended(pod));
    let end = is("Complete").or_else(|| is("Failed"));
    match (end, lingering) {
        (Some(end), None) => {
            let succeeded = end.type_ == "Complete";
            let mut detail = vec![cause(end.reason.as_deref(), end.message.as_deref(), &end.type_)];
            if let Some(pod) = own.last() {
                detail.push(pods::ending_in_words(pod));
            } else {
                detail.push("its pod is gone".to_owned());
            }
            JobState::Finished {
                succeeded,
                report: own.iter().rev().find_map(|pod| report(pod)),
                detail: cut(&detail.join("; "), 900),
            }
        }
        (Some(end), Some(pod)) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            JobState::Running {
                trouble: Some(pods::told(&end.type_, &format!("the Job ended but its pod {name} has not"))),
            }
        }
        (None, _) => {
            let ending = is("FailureTarget")
                .map(|c| pods::told("FailureTarget", &cause(c.reason.as_deref(), c.message.as_deref(), "")));
            let suspended = is("Suspended").map(|_| pods::told("Suspended", "somebody suspended the Job"));
            if let (None, None, Some(report)) = (&ending, lingering, own.last().and_then(|pod| done(pod))) {
                let detail = "its pod succeeded".to_owned();
                return JobState::Finished { succeeded: true, report: Some(report), detail };
            }
            let trouble: Option<Trouble> =
                ending.or(suspended).or_else(|| own.last().and_then(|pod| pods::trouble(pod)));
            JobState::Running { trouble }
        }
    }
}

fn cause(reason: Option<&str>, message: Option<&str>, otherwise: &str) -> String {
    match (reason.filter(|r| !r.is_empty()), message.filter(|m| !m.is_empty())) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (Some(text), None) | (None, Some(text)) => text.to_owned(),
        (None, None) => otherwise.to_owned(),
    }
}

/// The good report of a pod that succeeded. Kubernetes counts such a pod a second or two later and then calls the Job
/// complete; it never makes another one after it, and keeps the pod until it was counted, so there is nothing to wait for.
fn done(pod: &Pod) -> Option<JobReport> {
    let succeeded = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded");
    report(pod).filter(|report| succeeded && report.ok)
}

/// The report that the main container left, if it can be read.
fn report(pod: &Pod) -> Option<JobReport> {
    let message = pods::ending_of(pod, MAIN)?.message.as_deref()?;
    serde_json::from_str(message).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
    use serde_json::{Value, json};

    use super::{checked, seen};
    use crate::{api::release::Verdict, job::protocol::Facts, upgrade::seen::JobState};

    fn job(conditions: Value) -> Job {
        serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j1"}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn pod(owner: &str, created: &str, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("p-{owner}"), "creationTimestamp": created, "ownerReferences":
                [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": owner}]},
            "status": status}))
        .unwrap()
    }

    fn ended(code: i32, reason: &str, message: &str) -> Value {
        json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [{"name": "main", "image": "", "ready": false,
            "imageID": "r/m@sha256:cd", "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "reason": reason, "message": message}}}]})
    }

    const REPORT: &str = r#"{"v":1,"ok":true,"reason":"Done","message":"Fenced."}"#;

    #[test]
    fn a_finished_job_gives_the_report_of_its_own_newest_pod() {
        let pods = [
            pod("j1", "2026-01-01T00:00:00Z", ended(1, "Error", "not json")),
            pod("j1", "2026-01-01T00:01:00Z", ended(0, "Completed", REPORT)),
            pod(
                "other",
                "2026-01-01T00:02:00Z",
                ended(0, "Completed", r#"{"v":1,"ok":false,"reason":"No","message":""}"#),
            ),
        ];
        let s = seen(&job(json!([{"type": "Complete", "status": "True"}])), &pods);
        assert_eq!((s.uid.as_str(), s.image_id.as_deref(), s.ttl_armed), ("j1", Some("r/m@sha256:cd"), false));
        let JobState::Finished { succeeded: true, report: Some(report), detail } = s.state else {
            panic!("{:?}", s.state)
        };
        assert_eq!(report.message, "Fenced.");
        assert_eq!(detail, "Complete; container main: exit code 0");
    }

    #[test]
    fn a_killed_container_leaves_no_report_but_its_exit_code() {
        let failed = job(
            json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "reached the limit"}]),
        );
        let s = seen(&failed, &[pod("j1", "2026-01-01T00:00:00Z", ended(137, "OOMKilled", ""))]);
        assert_eq!(
            s.state,
            JobState::Finished {
                succeeded: false,
                report: None,
                detail: "BackoffLimitExceeded: reached the limit; container main: exit code 137 (OOMKilled)".to_owned(),
            }
        );
        let JobState::Finished { detail, .. } = seen(&failed, &[]).state else { panic!("not finished") };
        assert!(detail.ends_with("its pod is gone"), "{detail}");
    }

    #[test]
    fn a_pod_that_succeeded_with_a_good_report_is_not_waited_for_to_be_counted() {
        let good = |message| [pod("j1", "2026-01-01T00:00:00Z", ended(0, "Completed", message))];
        let finished =
            |job: &Job, pods: &[Pod]| matches!(seen(job, pods).state, JobState::Finished { succeeded: true, .. });
        assert!(finished(&job(json!([])), &good(REPORT)));
        assert!(!finished(&job(json!([])), &good("not json")), "without a report the Job's own end decides");
        let bad = r#"{"v":1,"ok":false,"reason":"No","message":""}"#;
        assert!(!finished(&job(json!([])), &good(bad)));
        assert!(!finished(&job(json!([])), &[pod("j1", "2026-01-01T00:00:00Z", ended(1, "Error", REPORT))]));
        let ending = job(json!([{"type": "FailureTarget", "status": "True"}]));
        assert!(!finished(&ending, &good(REPORT)), "a Job that is being failed is not a success");
        let mut sidecar = ended(0, "Completed", REPORT);
        sidecar["initContainerStatuses"] = json!([{"name": "guard", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "state": {"running": {}}}]);
        assert!(!finished(&job(json!([])), &[pod("j1", "2026-01-01T00:00:00Z", sidecar)]), "a sidecar still works");
    }

    #[test]
    fn a_job_has_not_finished_while_one_of_its_pods_still_runs() {
        let running = [pod("j1", "2026-01-01T00:00:00Z", json!({"phase": "Running"}))];
        let target = job(
            json!([{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}]),
        );
        let JobState::Running { trouble: Some(t) } = seen(&target, &running).state else { panic!("finished") };
        assert_eq!((t.reason.as_str(), t.message.as_str()), ("FailureTarget", "DeadlineExceeded: too long"));
        let failed = job(json!([{"type": "Failed", "status": "True"}]));
        assert!(matches!(seen(&failed, &running).state, JobState::Running { trouble: Some(_) }));
    }

    /// The verdict on a check whose Job ended like this, and its message.
    fn judged(conditions: Value, pods: &[Pod]) -> (Verdict, String) {
        let s = checked("smoke", &job(conditions), pods);
        let JobState::Finished { report: Some(report), .. } = s.state else { panic!("{:?}", s.state) };
        let Some(Facts::Check(facts)) = report.facts else { panic!("no facts") };
        assert_eq!((facts.checks.len(), facts.checks[0].name.as_str()), (1, "smoke"));
        assert_eq!(report.ok, facts.checks[0].result == Verdict::Passed);
        (facts.checks[0].result, facts.checks[0].message.clone())
    }

    fn failed_by(reason: &str) -> Value {
        json!([{"type": "Failed", "status": "True", "reason": reason, "lastTransitionTime": "2026-01-01T00:01:00Z"}])
    }

    #[test]
    fn the_end_of_a_checks_job_is_its_verdict_whatever_its_container_prints() {
        let at = "2026-01-01T00:00:00Z";
        let (result, message) =
            judged(json!([{"type": "Complete", "status": "True"}]), &[pod("j1", at, ended(0, "Completed", "hello"))]);
        assert_eq!((result, message.as_str()), (Verdict::Passed, "exit code 0; job j"));
        // A report of ours that a stranger's container wrote is no report.
        let (result, message) = judged(failed_by("BackoffLimitExceeded"), &[pod("j1", at, ended(3, "Error", REPORT))]);
        assert_eq!(result, Verdict::Failed);
        assert_eq!(message, "container main: exit code 3; job j at 2026-01-01T00:01:00Z");
    }

    #[test]
    fn a_check_that_was_cut_short_proves_nothing() {
        let at = "2026-01-01T00:00:00Z";
        let by_backoff = || failed_by("BackoffLimitExceeded");
        let mut evicted = ended(137, "Error", "");
        evicted["reason"] = json!("Evicted");
        let mut drained = ended(143, "Error", "");
        drained["conditions"] =
            json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
        let mut deleted = pod("j1", at, ended(143, "Error", ""));
        deleted.metadata.deletion_timestamp = serde_json::from_value(json!(at)).unwrap();
        let mut late = ended(137, "Error", "");
        late["reason"] = json!("DeadlineExceeded");
        for (conditions, pods, word) in [
            (by_backoff(), vec![pod("j1", at, late)], "DeadlineExceeded"),
            (failed_by("DeadlineExceeded"), vec![pod("j1", at, ended(1, "Error", ""))], "DeadlineExceeded"),
            (by_backoff(), vec![], "its pod is gone"),
            (by_backoff(), vec![pod("j1", at, evicted)], "Evicted"),
            (by_backoff(), vec![pod("j1", at, drained)], "DisruptionTarget"),
            (by_backoff(), vec![deleted], "exit code 143"),
            (by_backoff(), vec![pod("j1", at, ended(137, "OOMKilled", ""))], "OOMKilled"),
            (by_backoff(), vec![pod("j1", at, ended(128, "StartError", ""))], "StartError"),
            (by_backoff(), vec![pod("other", at, ended(1, "Error", ""))], "its pod is gone"),
        ] {
            let (result, message) = judged(conditions, &pods);
            assert_eq!(result, Verdict::Inconclusive, "{message}");
            assert!(message.contains(word), "{message}");
        }
    }
}
