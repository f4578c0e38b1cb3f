//! Where snapshots are kept, which of them stay, and what a plan says of both.

use super::*;

#[test]
fn a_claim_for_snapshots_that_the_release_names_must_be_there() {
    let mut case = case();
    case.spec(json!({"snapshot": {"storage": {"persistentVolumeClaim": {"claimName": "backup"}}}}));
    let (reason, message) = refused(case.ask());
    assert_eq!(reason, reason::PREFLIGHT_FAILED);
    for part in ["persistentvolumeclaim/backup does not exist", "spec.snapshot.storage.persistentVolumeClaim.claimName"]
    {
        assert!(message.contains(part), "{message}");
    }
    case.adopted.storage = Some(StorageFound { claim: "backup".into(), nodes: None });
    assert!(matches!(case.ask(), Answer::Checking { .. }));
}

#[test]
fn a_bucket_needs_no_claim_and_stands_in_plan_and_jobs_with_its_retention() {
    let mut case = case();
    case.spec(json!({"snapshot": {
        "storage": {"objectStore": {"url": "s3://backups/m", "credentialsSecretRef": {"name": "s3"}}},
        "encryption": {
            "recipientsFrom": {"secretKeyRef": {"name": "snap-key", "key": "age.pub"}},
            "identityFrom": {"secretKeyRef": {"name": "snap-key", "key": "age.key"}},
        },
    }}));
    case.inspected(|_| {});
    case.probed();
    let Answer::Checking { jobs, claim, .. } = case.ask() else { panic!() };
    assert_eq!(claim, None);
    let pod = jobs[0].spec.clone().unwrap().template.spec.unwrap();
    assert!(pod.volumes.unwrap().iter().all(|volume| volume.persistent_volume_claim.is_none()));
    let order = reference_order(&jobs[0]);
    assert_eq!(order.retention.map(|retention| retention.keep_last), Some(3));
    assert!(order.needed_bytes > 0, "the workplace must have the space");
    case.referenced();
    let Answer::DryRun { plan, .. } = case.ask() else { panic!("{:?}", case.ask()) };
    let storage = json!({"url": "s3://backups/m", "directory": plan.storage.directory, "encrypted": true});
    assert_eq!(serde_json::to_value(&plan.storage).unwrap(), storage);
    let text = |step: &str| plan.jobs.iter().find(|job| job.step == step).unwrap().manifest.to_string();
    for step in ["snapshot", "baseline", "restore"] {
        for part in ["s3://backups/m", "AWS_SECRET_ACCESS_KEY", "age.key", "age.pub"] {
            assert!(text(step).contains(part), "{step} lacks {part}");
        }
    }
    assert!(!text("fence").contains("s3://") && !text("bootstrap").contains("AWS_"));
}

#[test]
fn a_plan_only_run_touches_no_bucket_but_its_plan_does() {
    let mut case = case();
    case.spec(json!({"mode": "Plan", "snapshot": {"storage": {"objectStore": {"url": "s3://backups"}}}}));
    case.inspected(|_| {});
    case.probed();
    let Answer::Checking { jobs, .. } = case.ask() else { panic!() };
    assert!(!serde_json::to_string(&jobs[0]).unwrap().contains("s3://"));
    case.referenced();
    let Answer::DryRun { plan, .. } = case.ask() else { panic!("{:?}", case.ask()) };
    assert_eq!(plan.storage.to_string(), "s3://backups");
}

#[test]
fn a_plan_only_run_makes_no_claim_and_mounts_none() {
    let mut case = case();
    case.spec(json!({"mode": "Plan"}));
    case.inspected(|_| {});
    case.probed();
    let Answer::Checking { jobs, claim, .. } = case.ask() else { panic!() };
    assert_eq!(claim, None);
    let volumes = jobs[0].spec.clone().unwrap().template.spec.unwrap().volumes.unwrap();
    assert!(volumes.iter().all(|volume| volume.persistent_volume_claim.is_none()));
    assert_eq!(reference_order(&jobs[0]).retention, None);
}

fn reference_order(job: &Job) -> ReferenceOrder {
    let containers = job.spec.clone().unwrap().template.spec.unwrap().init_containers.unwrap();
    let mut variables = containers.into_iter().flat_map(|container| container.env.unwrap_or_default());
    let order = variables.find(|variable| variable.name == ORDER_ENV).unwrap().value.unwrap();
    match serde_json::from_str(&order).unwrap() {
        JobOrder::Reference(order) => order,
        other => panic!("{other:?}"),
    }
}

#[test]
fn which_snapshots_stay_is_in_the_order_of_the_job_that_measures_free_space() {
    let mut case = case();
    case.spec(json!({"snapshot": {"retention": {"keepLast": 7, "maxAge": "720h"}}}));
    case.known = vec!["memoria-0".into()];
    case.inspected(|_| {});
    case.probed();
    let Answer::Checking { jobs, .. } = case.ask() else { panic!() };
    let uid = case.release.metadata.uid.clone().unwrap();
    let expected = RetentionOrder {
        release_uid: uid,
        keep_last: 7,
        max_age_seconds: Some(720 * 3600),
        needed: vec!["memoria-0".into()],
    };
    assert_eq!(reference_order(&jobs[0]).retention, Some(expected));
}
