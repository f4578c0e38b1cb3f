//! Memoria's settings: merged from both images' defaults, pinned by hash, or refused with the fix.

use super::*;

#[test]
fn settings_are_merged_from_both_images_defaults_and_pinned_by_hash() {
    let mut case = case();
    let output = "agents: {max_parallel: 4}\nmemory: {team_mode: true, gone: 1}\ndatabase: {migration_auto: false}\n";
    case.configured(output);
    case.inspected(|_| {});
    case.probed();
    let Answer::Checking { jobs, .. } = case.ask() else { panic!() };
    let run = run_name(&case.release);
    assert_eq!(names(&jobs), ["reference", "defaults", "defaults-prior"].map(|step| format!("{run}-{step}")));
    let pod = jobs[1].spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let container = &pod.containers[0];
    assert_eq!(container.image.as_deref(), Some(format!("r/server:1.0.0@{DIGEST}").as_str()));
    assert!(!serde_json::to_string(container).unwrap().contains("secretKeyRef"), "it knows no database");
    case.referenced();
    assert!(matches!(case.ask(), Answer::Checking { .. }));
    case.told("defaults", DEFAULTS);
    case.told("defaults-prior", PRIOR_DEFAULTS);
    case.dry_run = Some(Vec::new());
    let Answer::Planned { plan, status } = case.ask() else { panic!("{:?}", case.ask()) };
    let config = plan.config.unwrap();
    assert_eq!((config.output_uid.as_str(), config.kept_in.as_str()), ("uid-config", "memoria-1-config"));
    let merged =
        "agents:\n  max_parallel: 8\nmemory:\n  team_mode: true\n  gone: 1\ndatabase:\n  migration_auto: false\n";
    assert_eq!(config.new_sha256, sha256(merged));
    let summary = "1 default adopted, 1 override kept, 1 obsolete: memory.gone";
    assert_eq!(status.plan.unwrap().config.as_deref(), Some(summary));
    assert!(status.checks.iter().any(|check| check.name == "config" && check.message.contains(summary)));
}

#[test]
fn a_prior_image_without_defaults_is_said_and_no_failure() {
    let mut case = case();
    case.configured("agents: {max_parallel: 6}\n");
    case.inspected(|_| {});
    case.probed();
    case.referenced();
    case.told("defaults", DEFAULTS);
    let report = JobReport {
        v: 1,
        ok: false,
        reason: "NoDefaults".into(),
        message: "the image has no config.example.yaml".into(),
        category: Some(Category::Environment),
        facts: None,
    };
    let state = JobState::Finished { succeeded: false, report: Some(report), detail: "exit 1".into() };
    case.jobs.insert("defaults-prior".into(), JobSeen { uid: "u".into(), state, image_id: None, ttl_armed: false });
    case.dry_run = Some(Vec::new());
    let Answer::Planned { status, .. } = case.ask() else { panic!("{:?}", case.ask()) };
    assert!(status.checks.iter().any(|check| check.message.contains("the prior image does not tell its defaults")));
}

#[test]
fn settings_that_cannot_be_written_are_refused_with_the_fix() {
    type Change = fn(&mut Case);
    let cases: [(Change, &str); 4] = [
        (|case| case.configured("agents: {max_parallel: 6}\n"), "sets agents.max_parallel, which are no defaults"),
        (|case| case.configured("a: [\n"), "configmap/memoria-config key \"config.yaml\": line "),
        (
            |case| case.adopted.targets[0].workload.template.spec.as_mut().unwrap().volumes = None,
            "no target reads configmap/memoria-config",
        ),
        (
            |case| case.adopted.config.as_mut().unwrap().overrides = Some("a: 1\na: 2\n".into()),
            "configmap/memoria-overrides key \"config.yaml\": line 2: the key a stands there twice",
        ),
    ];
    for (change, expected) in cases {
        let mut case = case();
        case.configured("agents: {max_parallel: 4}\n");
        change(&mut case);
        case.inspected(|_| {});
        case.probed();
        case.referenced();
        case.told("defaults", DEFAULTS);
        case.told("defaults-prior", PRIOR_DEFAULTS);
        let (reason, message) = refused(case.ask());
        assert_eq!(reason, reason::PREFLIGHT_FAILED);
        assert!(message.contains(expected), "{message}");
    }
}
