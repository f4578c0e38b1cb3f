//! When the upgrade of the data is rehearsed, and what each answer makes of the plan.

use serde_json::json;

use super::{Case, case, names, refused};
use crate::{
    api::{
        conditions::reason,
        release::{CheckResult, Verdict},
        upgrade::{Category, Estimates},
    },
    job::{
        manifest::{GUARD, MAIN},
        protocol::{DATABASE_URL_ENV, Facts, JobReport, RehearsalFacts},
    },
    upgrade::{
        preflight::Answer,
        seen::{JobSeen, JobState, Trouble},
    },
};

/// Everything but the rehearsal has passed.
fn ready(rehearse: &str) -> Case {
    let mut case = case();
    case.spec(json!({"rollback": {"rehearse": rehearse}}));
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    case
}

impl Case {
    pub(super) fn rehearsed(&mut self, ok: bool, reason: &str, conclusive: bool) {
        let facts = RehearsalFacts {
            conclusive,
            rows: 558,
            tables: 5,
            copy_millis: 900,
            snapshot_millis: 4_001,
            migrate_millis: 3_000,
            restore_millis: 10,
        };
        let report = JobReport {
            v: 1,
            ok,
            reason: reason.into(),
            message: format!("rehearsed: {reason}"),
            category: (!ok).then_some(Category::Environment),
            facts: Some(Facts::Rehearsal(facts)),
        };
        let state = JobState::Finished { succeeded: ok, report: Some(report), detail: "Complete".into() };
        self.seen(state);
    }

    fn seen(&mut self, state: JobState) {
        self.jobs.insert("rehearsal".into(), JobSeen { uid: "r".into(), state, image_id: None, ttl_armed: false });
    }
}

#[test]
fn it_comes_last_and_memorias_container_knows_nothing_of_the_database() {
    let mut case = ready("WhenPossible");
    case.dry_run = Some(Vec::new());
    let Answer::Checking { jobs, .. } = case.ask() else { panic!() };
    assert!(names(&jobs)[0].ends_with("-rehearsal") && jobs.len() == 1);
    let pod = jobs[0].spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let text = serde_json::to_string(&pod.containers).unwrap();
    assert!(pod.containers[0].name == MAIN && !text.contains(DATABASE_URL_ENV) && !text.contains("memoria-db"));
    let guard = pod.init_containers.iter().flatten().find(|container| container.name == GUARD).unwrap();
    let guard = serde_json::to_string(guard).unwrap();
    assert!(guard.contains(DATABASE_URL_ENV) && guard.contains("memoria-db"));
    // 13.5 of 15 minutes after the run began.
    assert!(guard.contains("2026-11-22T01:13:30Z"), "{guard}");
    assert!(guard.contains(&format!("\\\"neededBytes\\\":{}", (4 * 64 + 512) << 20)), "{guard}");
}

#[test]
fn none_is_made_where_none_is_wanted_or_nothing_would_run() {
    assert!(matches!(ready("Never").ask(), Answer::DryRun { .. }));
    let mut case = ready("Required");
    case.spec(json!({"migrations": {"mode": "None"}}));
    assert!(matches!(case.ask(), Answer::DryRun { .. }));
}

#[test]
fn what_would_not_be_admitted_is_not_rehearsed() {
    for result in [Verdict::Failed, Verdict::Inconclusive] {
        let mut case = ready("Required");
        case.dry_run = Some(vec![CheckResult { name: "admit-job-migrate".into(), result, message: "quota".into() }]);
        assert_eq!(refused(case.ask()).1, "admit-job-migrate: quota");
    }
}

#[test]
fn what_it_measured_becomes_the_plans_estimates_and_nothing_else_of_the_plan_changes() {
    let mut case = ready("Required");
    let Answer::DryRun { plan: mut before, .. } = case.ask() else { panic!("{:?}", case.ask()) };
    case.rehearsed(true, "Done", false);
    case.dry_run = Some(Vec::new());
    let Answer::Planned { status, plan } = case.ask() else { panic!("{:?}", case.ask()) };
    let estimates = Estimates { snapshot_seconds: 5, migrate_seconds: 3, restore_seconds: 1 };
    assert_eq!(plan.estimates, Some(estimates));
    let summary = status.plan.unwrap();
    assert_eq!((summary.estimates, summary.warnings), (Some(estimates), Vec::new()));
    assert!(status.checks.iter().any(|check| check.name == "rehearsal" && check.result == Verdict::Passed));
    before.estimates = plan.estimates;
    before.checks.clone_from(&plan.checks);
    before.plan_hash.clone_from(&plan.plan_hash);
    assert_eq!(before, plan);
}

#[test]
fn one_that_fails_for_certain_refuses_the_version() {
    for rehearse in ["WhenPossible", "Required"] {
        let mut case = ready(rehearse);
        case.rehearsed(false, "SchemaMismatch", true);
        let (reason, message) = refused(case.ask());
        assert_eq!((reason, message.as_str()), (reason::PREFLIGHT_FAILED, "rehearsal: rehearsed: SchemaMismatch"));
    }
}

#[test]
fn one_without_a_result_is_a_warning_or_where_it_is_required_a_wait() {
    type Change = fn(&mut Case);
    let cases: [(Change, &str); 5] = [
        (|c| c.rehearsed(false, "ExtensionMissing", false), "ExtensionMissing"),
        (
            |c| c.seen(JobState::Finished { succeeded: false, report: None, detail: "exit code 137".into() }),
            "ended without a result: exit code 137",
        ),
        (
            |c| {
                let trouble = Trouble { reason: "ImagePullBackOff".into(), message: "no such image".into() };
                c.seen(JobState::Running { trouble: Some(trouble) });
            },
            "ImagePullBackOff: no such image",
        ),
        (|c| c.seen(JobState::Foreign { detail: "another hash".into() }), "is not ours (another hash)"),
        (
            |c| {
                let Answer::Checking { status, .. } = c.ask() else { panic!() };
                c.release.status.get_or_insert_default().pre_flight = Some(status);
                c.seen(JobState::Running { trouble: None });
                assert!(matches!(c.ask(), Answer::Checking { .. }));
                c.now = "2026-11-22T01:15:00Z".parse().unwrap();
            },
            "it still ran after 15m",
        ),
    ];
    for (change, words) in cases {
        let mut case = ready("WhenPossible");
        case.dry_run = Some(Vec::new());
        change(&mut case);
        let Answer::Planned { status, plan } = case.ask() else { panic!("{words}: {:?}", case.ask()) };
        let warnings = status.plan.unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{warnings:?}");
        assert!(plan.checks.iter().any(|check| check.result == Verdict::Inconclusive) && plan.estimates.is_none());

        case.spec(json!({"rollback": {"rehearse": "Required"}}));
        let run = super::run_name(&case.release);
        if let Some(status) = case.release.status.as_mut().and_then(|status| status.pre_flight.as_mut()) {
            // Another spec is another run, which began as the first did.
            status.run = run;
        }
        let (reason, message) = refused(case.ask());
        assert_eq!(reason, reason::INCONCLUSIVE);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn nothing_is_rehearsed_of_a_version_that_is_refused_anyway() {
    let mut case = ready("Required");
    case.spec(json!({"migrations": {"mode": "Named", "names": ["add_everything"]}}));
    let (_, message) = refused(case.ask());
    assert!(message.contains("add_everything"), "{message}");
}
