//! What a Job and its pod say, in the machine's words. Pure.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};

use super::{error::cut, pods};
use crate::{
    job::{manifest::MAIN, protocol::JobReport},
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
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let is = |type_: &str| conditions.iter().find(|c| c.type_ == type_ && c.status == "True");
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

    use super::seen;
    use crate::upgrade::seen::JobState;

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
}
