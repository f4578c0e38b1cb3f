//! Checks that run a CronJob's template: what keeps one from being run, those of stage PreFlight, and what the plan pins.

use serde_json::{Value, json};

use super::{Case, case, names, refused};
use crate::{
    api::{
        conditions::reason,
        release::{CheckResult, Stage, Verdict},
        upgrade::{Category, PlannedCheck},
    },
    cluster::adopt::{CheckTemplate, ServiceSelector},
    job::protocol::{CheckFacts, Facts, JobReport},
    upgrade::{
        preflight::{Answer, run_name},
        seen::{JobSeen, JobState, Trouble},
    },
};

fn template(pod: Value) -> CheckTemplate {
    let template = serde_json::from_value(json!({"spec": {"template": pod}})).unwrap();
    CheckTemplate { allowed: true, template }
}

fn plain() -> Value {
    json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "smoke", "image": "r/smoke:1"}]}})
}

/// One check of that stage, and its CronJob.
fn with(stage: &str, required: bool, found: Option<CheckTemplate>) -> Case {
    let mut case = case();
    let job = json!({"templateRef": {"name": "memoria-smoke"}});
    case.spec(json!({"checks": [{"name": "smoke", "stage": stage, "required": required, "job": job}]}));
    case.adopted.check_templates.extend(found.map(|found| ("memoria-smoke".to_owned(), found)));
    case
}

#[test]
fn a_template_that_may_not_be_run_is_refused_with_the_field_and_the_fix() {
    let entry = |value: &str| json!({"name": "smoke", "image": "i", "env": [{"name": "DATABASE", "value": value}]});
    let labelled = |labels: Value| template(json!({"metadata": {"labels": labels}, "spec": plain()["spec"]}));
    let cases: Vec<(Option<CheckTemplate>, &str)> = vec![
        (None, "checks[smoke].job.templateRef.name: cronjob/memoria-smoke does not exist in this namespace; create it"),
        (
            Some(CheckTemplate { allowed: false, ..template(plain()) }),
            "kubectl -n ns annotate cronjob/memoria-smoke memoria.arca.run/check-template=true --overwrite",
        ),
        (Some(labelled(json!({"app": "memoria-server"}))), "labels by which deployment/memoria-server finds its own"),
        (Some(labelled(json!({"tier": "web", "a": "b"}))), "labels by which service/web finds its own"),
        (
            Some(template(json!({"spec": {"containers": [entry("postgresql://m:secret@db/memoria")]}}))),
            "has a password in environment entry DATABASE of container smoke",
        ),
    ];
    for (found, words) in cases {
        let mut case = with("AfterIngestion", true, found);
        let selector = [("tier".to_owned(), "web".to_owned())].into();
        case.adopted.services.push(ServiceSelector { name: "web".into(), selector });
        let (reason, message) = refused(case.ask());
        assert_eq!(reason, reason::PREFLIGHT_FAILED);
        assert!(message.contains(words) && !message.contains("secret@"), "{words}: {message}");
    }
    for value in ["postgresql://m@db/memoria", "postgresql://m:$(PASSWORD)@db/memoria", "not a URL: a:b@c"] {
        let case = with("AfterIngestion", true, Some(template(json!({"spec": {"containers": [entry(value)]}}))));
        assert!(matches!(case.ask(), Answer::Checking { .. }), "{value}");
    }
}

#[test]
fn a_worker_is_no_check() {
    let mut case = with("AfterIngestion", true, Some(template(plain())));
    case.spec(json!({"ingestion": {"workers": [{"kind": "CronJob", "name": "memoria-smoke"}]}}));
    assert!(refused(case.ask()).1.contains("is one of ingestion.workers"));
}

fn ended(case: &mut Case, result: Verdict) {
    let checks = vec![CheckResult { name: "smoke".into(), result, message: "container smoke: exit code 3".into() }];
    let ok = result == Verdict::Passed;
    let report = JobReport {
        v: 1,
        ok,
        reason: if ok { "Done" } else { "CheckFailed" }.into(),
        message: "the report".into(),
        category: (!ok).then_some(Category::Candidate),
        facts: Some(Facts::Check(CheckFacts { checks, baselines: Default::default() })),
    };
    let state = JobState::Finished { succeeded: ok, report: Some(report), detail: String::new() };
    case.jobs.insert("check-smoke".into(), JobSeen { uid: "u".into(), state, image_id: None, ttl_armed: true });
}

#[test]
fn one_of_stage_pre_flight_runs_before_anything_is_stopped_and_its_end_decides() {
    let mut case = with("PreFlight", true, Some(template(plain())));
    let Answer::Checking { jobs, .. } = case.ask() else { panic!() };
    assert!(names(&jobs).contains(&format!("{}-check-smoke", run_name(&case.release))));
    ended(&mut case, Verdict::Failed);
    let (reason, message) = refused(case.ask());
    assert_eq!((reason, message.as_str()), (reason::PREFLIGHT_FAILED, "smoke: container smoke: exit code 3"));
    ended(&mut case, Verdict::Passed);
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    let Answer::DryRun { plan, .. } = case.ask() else { panic!("{:?}", case.ask()) };
    assert!(plan.jobs.iter().all(|job| job.check.is_none()), "it is not asked twice");
    assert!(plan.checks.iter().any(|check| check.name == "smoke" && check.result == Verdict::Passed));
    ended(&mut case, Verdict::Inconclusive);
    assert_eq!(refused(case.ask()).0, reason::INCONCLUSIVE);
}

#[test]
fn one_that_is_not_required_is_only_told_even_when_it_cannot_start() {
    let mut case = with("PreFlight", false, Some(template(plain())));
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    let trouble = Some(Trouble { reason: "ErrImagePull".into(), message: "r/smoke:1: not found".into() });
    let state = JobState::Running { trouble };
    case.jobs.insert("check-smoke".into(), JobSeen { uid: "u".into(), state, image_id: None, ttl_armed: true });
    let told = |case: &Case| {
        let Answer::DryRun { status, .. } = case.ask() else { panic!("{:?}", case.ask()) };
        status.checks.iter().find(|check| check.name == "smoke").unwrap().clone()
    };
    let found = told(&case);
    assert_eq!(found.result, Verdict::Passed);
    assert!(found.message.contains("not required") && found.message.contains("r/smoke:1: not found"), "{found:?}");
    ended(&mut case, Verdict::Failed);
    let found = told(&case);
    assert!(found.result == Verdict::Passed && found.message.contains("exit code 3"), "{found:?}");
}

#[test]
fn the_plan_pins_the_template_as_it_was_read() {
    let mut case = with("BeforeIngestion", true, Some(template(plain())));
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    let Answer::DryRun { plan, .. } = case.ask() else { panic!("{:?}", case.ask()) };
    let planned = plan.jobs.iter().find(|job| job.step == "check-smoke").unwrap();
    assert_eq!(planned.check, Some(PlannedCheck { stage: Stage::BeforeIngestion, required: true }));
    assert_eq!(planned.manifest["metadata"]["name"], "memoria-1-check-smoke");
    let pod = &planned.manifest["spec"]["template"]["spec"];
    assert_eq!((&pod["restartPolicy"], &pod["automountServiceAccountToken"]), (&json!("Never"), &json!(false)));
    assert_eq!(pod["containers"][0]["env"][0]["name"], "MEMORIA_CANDIDATE");
    assert_eq!((planned.manifest["spec"]["backoffLimit"].as_i64(), plan.candidate_seconds), (Some(0), 660));
    assert!(plan.jobs.iter().all(|job| job.step != "candidate"), "nothing else is asked");
    // Another template is another plan.
    let mut other = plain();
    other["spec"]["containers"][0]["image"] = json!("r/smoke:2");
    other["spec"]["automountServiceAccountToken"] = json!(true);
    case.adopted.check_templates.insert("memoria-smoke".into(), template(other));
    let Answer::DryRun { plan: next, .. } = case.ask() else { panic!() };
    assert_ne!(plan.plan_hash, next.plan_hash);
    let planned = next.jobs.iter().find(|job| job.step == "check-smoke").unwrap();
    let pod = &planned.manifest["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], json!(true), "its author asked for a token in so many words");
}
