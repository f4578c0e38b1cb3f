//! Every command that the operator tells people to type is typed here, in `sh` with the real kubectl, and does what the
//! message that names it promises: the operator then goes on, by its own reads and decisions.

use std::{collections::BTreeMap, fs};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::{CronJob, Job},
    core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use memoria_operator::{
    api::{
        MemoriaRelease, MemoriaUpgrade, MemoriaUpgradeStatus,
        conditions::reason,
        decision::DecisionAction,
        release::Verdict,
        upgrade::{Category, Failure},
    },
    cluster::{Kind, adopt, observe::acknowledged},
    commands::Command,
    job::protocol::JobInput,
    upgrade::{
        Action, Decision, Prior, decide,
        preflight::{Answer, OperatorImages, Question, preflight, run_name},
    },
};
use serde_json::{Value, json};

use crate::{
    server::{read, server, text},
    world::{World, server_ref},
};

/// Which test types a command: a new one does not compile before it is named here. `tests/e2e` types what is on the screen
/// on a whole cluster: the next actions of holds (`holds.rs`, `checks.rs`), of failures (`failures.rs`, `rollback.rs`), and
/// the script of `memoria-operator rescue` (`rescue.rs`); `tests/postgres/guard.rs` runs the statement of `commands::abandon`.
fn typed_by(command: &Command<'_>) -> &'static str {
    match command {
        Command::Decide { action: DecisionAction::AcknowledgeRejection, .. } | Command::AskAgain { .. } => {
            "images_that_were_rejected_are_tried_again_after_both_commands"
        }
        Command::Decide { .. } => "a_decision_made_by_its_command_is_an_order_and_is_followed",
        Command::Unsuspend { .. } => "a_suspended_attempt_goes_on",
        Command::SetVersion { .. } => "a_release_at_its_old_version_is_settled",
        Command::ShowFailure { .. } | Command::ShowPriorSettings { .. } | Command::ShowJobs { .. } => {
            "what_is_to_be_shown_is_shown"
        }
        Command::ShowOutput { .. }
        | Command::ShowPods { .. }
        | Command::ShowNode { .. }
        | Command::ShowClaim { .. } => "what_is_to_be_shown_is_shown",
        Command::Show { .. } => "a_strangers_job_is_shown",
        Command::DeletePod { .. } => "a_pod_of_others_is_deleted",
        Command::ForceDeletePod { .. } => "a_pod_of_a_lost_node_is_deleted",
        Command::ResumeRollout { .. } | Command::OneReplica { .. } => "a_workload_becomes_one_that_can_be_upgraded",
        Command::ForgetAttempt { .. } => "a_mark_without_its_journal_is_taken_away",
        Command::ForgetOwner { .. } => "the_mark_of_another_release_is_taken_away",
        Command::IgnoredByGitOps { .. } => "a_gitops_source_is_said_to_ignore_what_changes",
        Command::AllowTemplate { .. } => "a_template_is_let_run",
    }
}

#[test]
fn every_command_is_typed_by_a_test_that_exists() {
    let source = read(crate::root().join("tests/effects/commands.rs"));
    let (release, attempt) = ("memoria", "memoria-1");
    for command in [
        Command::Decide { release, attempt, action: DecisionAction::Abort },
        Command::Decide { release, attempt, action: DecisionAction::AcknowledgeRejection },
        Command::Unsuspend { release },
        Command::SetVersion { release, version: "1" },
        Command::ShowOutput { job: "j" },
        Command::Show { object: "job/j" },
        Command::DeletePod { pod: "p" },
        Command::ForceDeletePod { pod: "p" },
        Command::OneReplica { workload: "deployment/d" },
        Command::ForgetAttempt { workload: "deployment/d" },
        Command::ForgetOwner { workload: "deployment/d" },
        Command::IgnoredByGitOps { workload: "deployment/d", fields: "image" },
        Command::AllowTemplate { cron_job: "c" },
    ] {
        let test = format!("async fn {}()", typed_by(&command));
        assert!(source.contains(&test), "{test}");
    }
    for (file, test) in [
        ("e2e/holds.rs", "a_suspension_is_a_hold_that_its_next_command_ends"),
        ("e2e/failures.rs", "a_failure_before_the_image_moves_resumes_what_ran_and_the_next_command_upgrades"),
        ("e2e/rescue.rs", "#[tokio::test]"),
        ("postgres/guard.rs", "commands::abandon"),
    ] {
        let source = fs::read_to_string(crate::root().join("tests").join(file)).unwrap();
        assert!(source.contains(test), "{test} is not in {file}");
    }
}

/// Types a command and gives what it printed.
fn typed(command: &str) -> String {
    let output = server().shell(command);
    assert!(output.status.success(), "$ {command}\n{}", text(&output.stderr));
    text(&output.stdout)
}

/// Types a command that stands in the message.
fn typed_from(message: &str, command: &str) -> String {
    assert!(message.contains(command), "{command}\nis not in\n{message}");
    typed(command)
}

async fn patch(world: &World, change: Value) {
    world.api::<Deployment>().patch("memoria", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

/// A world whose Server names its database, as pre-flight wants it.
async fn world(ns: &str) -> World {
    let world = World::new(ns).await;
    let url = json!({"name": "MEMORIA_DATABASE__CONNECTION_STRING",
        "valueFrom": {"secretKeyRef": {"name": "memoria-db", "key": "url"}}});
    let containers = json!([{"name": "server", "env": [url]}]);
    let change = Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": containers}}}}));
    world.api::<Deployment>().patch("memoria", &PatchParams::default(), &change).await.unwrap();
    world
}

/// One look of the controller: what it would decide now.
async fn decided(world: &mut World, journal: &MemoriaUpgradeStatus) -> Decision {
    world.release = world.get("memoria").await;
    let seen = world.observe().await;
    decide("memoria-1", &world.ns, &world.upgrade.spec, journal, &seen, Timestamp::now())
}

/// The first look of pre-flight.
async fn asked(world: &mut World) -> Answer {
    world.release = world.get("memoria").await;
    let adopted = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    let acknowledged = acknowledged(&world.client, &world.ns, "memoria").await.unwrap();
    let images = OperatorImages { operator: "memoria-operator:0.1.0".to_owned(), ..OperatorImages::default() };
    preflight(&Question {
        release: &world.release,
        adopted: &adopted,
        jobs: &BTreeMap::new(),
        images: &images,
        attempt: "memoria-2",
        known_attempts: &[],
        needed_attempts: &[],
        acknowledged: &acknowledged,
        dry_run: None,
        now: Timestamp::now(),
    })
}

/// Why it was refused for that reason, if it was.
fn refused(answer: &Answer, wanted: &str) -> Option<String> {
    match answer {
        Answer::Refused { reason, message, .. } | Answer::NotPassed { reason, message, .. } => {
            (*reason == wanted).then(|| message.clone())
        }
        _ => None,
    }
}

#[tokio::test]
async fn a_decision_made_by_its_command_is_an_order_and_is_followed() {
    let mut world = world("type-decide").await;
    let ns = world.ns.clone();
    let command = |action| Command::Decide { release: "memoria", attempt: "memoria-1", action }.in_namespace(&ns);
    let printed = typed(&command(DecisionAction::AcceptDataLoss));
    assert!(printed.contains("memoriadecision"), "{printed}");
    typed(&command(DecisionAction::Rollback));
    typed(&command(DecisionAction::Abort));
    let orders = world.observe().await.orders;
    assert!(orders.abort.is_some() && orders.rollback.is_some() && orders.accept_data_loss.is_some(), "{orders:?}");
    let decision = decided(&mut world, &MemoriaUpgradeStatus::default()).await;
    assert_eq!(decision.journal.outcome.map(|outcome| format!("{outcome:?}")).as_deref(), Some("Aborted"));
    let done = &decision.journal.decisions;
    assert_eq!((done.len(), Some(&done[0].name)), (1, orders.abort.as_ref()));
}

#[tokio::test]
async fn images_that_were_rejected_are_tried_again_after_both_commands() {
    let mut world = world("type-again").await;
    let ns = world.ns.clone();
    let run = run_name(&world.release);
    let action = DecisionAction::AcknowledgeRejection;
    let acknowledge = Command::Decide { release: "memoria", attempt: "memoria-7", action }.in_namespace(&ns);
    let again = Command::AskAgain { release: "memoria" }.in_namespace(&ns);
    assert_eq!(acknowledged(&world.client, &ns, "memoria").await.unwrap(), Vec::<String>::new());
    // As the check of rejected images prints them.
    typed(&format!("{acknowledge} && {again}"));
    assert_eq!(acknowledged(&world.client, &ns, "memoria").await.unwrap(), ["memoria-7"]);
    world.release = world.get("memoria").await;
    assert_ne!(run_name(&world.release), run, "pre-flight begins anew");

    // An image that nobody recorded is accepted by the same command.
    let current = json!({"version": "0.8.0", "requestedAt": world.release.annotations()["memoria.arca.run/requested-at"],
        "images": [{"target": "server", "image": "registry.arca.run/memoria/server:0.8.0"}]});
    world.set_status::<MemoriaRelease>("memoria", json!({"current": current, "conditions": []})).await;
    let message = refused(&asked(&mut world).await, reason::UNMANAGED_IMAGE_CHANGE).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    typed_from(&message, &again);
    assert_eq!(refused(&asked(&mut world).await, reason::UNMANAGED_IMAGE_CHANGE), None);
}

#[tokio::test]
async fn a_suspended_attempt_goes_on() {
    let mut world = world("type-suspend").await;
    let suspended = Patch::Merge(json!({"spec": {"suspend": true}}));
    world.api::<MemoriaRelease>().patch("memoria", &PatchParams::default(), &suspended).await.unwrap();
    let held = decided(&mut world, &MemoriaUpgradeStatus::default()).await.journal;
    let next = held.hold.clone().unwrap().next_command;
    assert_eq!(next, Command::Unsuspend { release: "memoria" }.in_namespace(&world.ns));
    typed(&next);
    let journal = decided(&mut world, &held).await.journal;
    assert_eq!((journal.phases[0].name.as_str(), journal.hold), ("Quiesce", None));
}

#[tokio::test]
async fn a_release_at_its_old_version_is_settled() {
    let mut world = world("type-version").await;
    assert!(!matches!(asked(&mut world).await, Answer::Settled(_)));
    typed(&Command::SetVersion { release: "memoria", version: "0.9.0" }.in_namespace(&world.ns));
    assert!(matches!(asked(&mut world).await, Answer::Settled(_)));
    let orders = {
        world.release = world.get("memoria").await;
        world.observe().await.orders
    };
    assert!(orders.returned, "an attempt that is open goes back");
}

#[tokio::test]
async fn what_is_to_be_shown_is_shown() {
    let world = world("type-show").await;
    let ns = world.ns.clone();
    let failure = Failure {
        phase: "Migrate".to_owned(),
        category: Category::Candidate,
        reason: "MigrateFailed".to_owned(),
        message: "it broke".to_owned(),
    };
    let journal = MemoriaUpgradeStatus { failure: Some(failure), ..MemoriaUpgradeStatus::default() };
    world.set_status::<MemoriaUpgrade>("memoria-1", serde_json::to_value(journal).unwrap()).await;
    let failure = Command::ShowFailure { attempt: "memoria-1" }.in_namespace(&ns);
    assert_eq!(typed(&failure), "it broke");

    world.create::<ConfigMap>(json!({"metadata": {"name": "memoria-1-config"}, "data": {"prior": "a: 1\n"}})).await;
    assert_eq!(typed(&Command::ShowPriorSettings { config_map: "memoria-1-config" }.in_namespace(&ns)), "a: 1\n");

    world.act(Action::CreateJob { step: "fence".to_owned(), input: JobInput::default() }).await.unwrap();
    world.act(Action::CreateJob { step: "migrate".to_owned(), input: JobInput::default() }).await.unwrap();
    let jobs = ["memoria-1-fence".to_owned(), "memoria-1-migrate".to_owned()];
    let shown = typed(&Command::ShowJobs { jobs: &jobs }.in_namespace(&ns));
    assert!(jobs.iter().all(|job| shown.contains(job)), "{shown}");

    // There is no pod and so no output; then at least the Job is described.
    let shown = typed(&Command::ShowOutput { job: "memoria-1-fence" }.in_namespace(&ns));
    assert!(shown.contains("memoria-1-fence") && shown.contains("Parallelism"), "{shown}");
    let job = world.get::<Job>("memoria-1-fence").await;
    let waiting = json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"x\" not found"}});
    let container =
        json!({"name": "main", "image": "m", "imageID": "", "ready": false, "restartCount": 0, "state": waiting});
    world.job_pod(&job, json!({"phase": "Pending", "containerStatuses": [container]})).await;
    let shown = typed(&Command::ShowPods { attempt: "memoria-1", step: "fence" }.in_namespace(&ns));
    assert!(shown.contains("CreateContainerConfigError"), "{shown}");

    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "type-show-node"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    assert!(typed(&Command::ShowNode { node: "type-show-node" }.in_namespace(&ns)).contains("type-show-node"));

    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    world.create::<PersistentVolumeClaim>(claim).await;
    assert!(typed(&Command::ShowClaim { claim: "data" }.in_namespace(&ns)).contains("Pending"));
}

#[tokio::test]
async fn a_strangers_job_is_shown() {
    let world = world("type-foreign").await;
    let stranger = json!({"metadata": {"name": "memoria-1-fence"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "main", "image": "busybox"}]}}}});
    world.create::<Job>(stranger).await;
    let error =
        world.act(Action::CreateJob { step: "fence".to_owned(), input: JobInput::default() }).await.unwrap_err();
    assert_eq!(error.kind, Kind::Foreign);
    let message = error.in_namespace(&world.ns).to_string();
    let show = Command::Show { object: "job/memoria-1-fence" }.in_namespace(&world.ns);
    assert!(typed_from(&message, &show).contains("image: busybox"));
}

#[tokio::test]
async fn a_pod_of_others_is_deleted() {
    let mut world = world("type-delete").await;
    let stray = json!({"metadata": {"name": "stray", "labels": {"app": "memoria"}},
        "spec": {"containers": [{"name": "server", "image": "m"}]}});
    world.create::<Pod>(stray).await;
    let message = refused(&asked(&mut world).await, reason::PREFLIGHT_FAILED).unwrap();
    typed_from(&message, &Command::DeletePod { pod: "stray" }.in_namespace(&world.ns));
    assert_eq!(refused(&asked(&mut world).await, reason::PREFLIGHT_FAILED), None);
}

#[tokio::test]
async fn a_pod_of_a_lost_node_is_deleted() {
    let world = world("type-force").await;
    let pod = json!({"metadata": {"name": "memoria-a", "labels": {"app": "memoria"}},
        "spec": {"nodeName": "lost", "terminationGracePeriodSeconds": 1, "containers": [{"name": "server", "image": "m"}]}});
    world.create::<Pod>(pod).await;
    patch(&world, json!({"spec": {"replicas": 0}})).await;
    world.api::<Pod>().delete("memoria-a", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let seen = world.observe().await.targets.remove("server").unwrap();
    assert!(!seen.is_gone() && seen.pods[0].terminating.is_some(), "its node does not confirm its end: {seen:?}");
    typed(&Command::ForceDeletePod { pod: "memoria-a" }.in_namespace(&world.ns));
    assert!(world.observe().await.targets["server"].is_gone());
}

#[tokio::test]
async fn a_workload_becomes_one_that_can_be_upgraded() {
    let mut world = world("type-workload").await;
    patch(&world, json!({"spec": {"paused": true}})).await;
    let message = refused(&asked(&mut world).await, reason::INVALID_SPEC).unwrap();
    typed_from(&message, &Command::ResumeRollout { workload: "deployment/memoria" }.in_namespace(&world.ns));
    assert_eq!(refused(&asked(&mut world).await, reason::INVALID_SPEC), None);
    typed(&Command::OneReplica { workload: "deployment/memoria" }.in_namespace(&world.ns));
    assert_eq!(world.get::<Deployment>("memoria").await.spec.unwrap().replicas, Some(1));
}

fn mark(uid: String) -> Action {
    Action::Mark { workload: server_ref().into(), uid, prior: Prior::Replicas(2), back: false }
}

#[tokio::test]
async fn a_mark_without_its_journal_is_taken_away() {
    let mut world = world("type-forget").await;
    let uid = world.precondition(&server_ref()).await.uid;
    world.act(mark(uid.clone())).await.unwrap();
    let message = refused(&asked(&mut world).await, reason::JOURNAL_LOST).unwrap();
    typed_from(&message, &Command::ForgetAttempt { workload: "deployment/memoria" }.in_namespace(&world.ns));
    assert_eq!(refused(&asked(&mut world).await, reason::JOURNAL_LOST), None);
    world.act(mark(uid)).await.expect("a later attempt can mark it");
}

#[tokio::test]
async fn the_mark_of_another_release_is_taken_away() {
    let world = world("type-owner").await;
    let uid = world.precondition(&server_ref()).await.uid;
    world.act(mark(uid.clone())).await.unwrap();
    let other: MemoriaRelease = world.create(serde_json::to_value(crate::world::release("other")).unwrap()).await;
    let error = world.act_for(&other, mark(uid.clone())).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Claimed { .. }), "{error}");
    let message = error.in_namespace(&world.ns).to_string();
    typed_from(&message, &Command::ForgetOwner { workload: "deployment/memoria" }.in_namespace(&world.ns));
    // The mark of the attempt stays until that one is looked for, too.
    typed(&Command::ForgetAttempt { workload: "deployment/memoria" }.in_namespace(&world.ns));
    world.act_for(&other, Action::Unmark { workload: server_ref().into(), uid }).await.unwrap();
}

#[tokio::test]
async fn a_gitops_source_is_said_to_ignore_what_changes() {
    let mut world = world("type-gitops").await;
    let annotations = json!({"argocd.argoproj.io/tracking-id": "memoria:apps/Deployment:x/memoria",
        "memoria.arca.run/gitops-ignores": "replicas"});
    patch(&world, json!({"metadata": {"annotations": annotations}})).await;
    let message = refused(&asked(&mut world).await, reason::PREFLIGHT_FAILED).unwrap();
    let say = Command::IgnoredByGitOps { workload: "deployment/memoria", fields: "image,replicas" };
    typed_from(&message, &say.in_namespace(&world.ns));
    assert_eq!(refused(&asked(&mut world).await, reason::PREFLIGHT_FAILED), None);
}

#[tokio::test]
async fn a_template_is_let_run() {
    let mut world = world("type-template").await;
    let template = json!({"spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "smoke", "image": "smoke:1"}]}}}});
    let cron = json!({"metadata": {"name": "smoke", "annotations": {"memoria.arca.run/check-template": "no"}},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": template}});
    world.create::<CronJob>(cron).await;
    let check = json!({"name": "smoke", "stage": "AfterIngestion", "job": {"templateRef": {"name": "smoke"}}});
    let change = Patch::Merge(json!({"spec": {"checks": [check]}}));
    world.api::<MemoriaRelease>().patch("memoria", &PatchParams::default(), &change).await.unwrap();
    let message = refused(&asked(&mut world).await, reason::PREFLIGHT_FAILED).unwrap();
    typed_from(&message, &Command::AllowTemplate { cron_job: "smoke" }.in_namespace(&world.ns));
    let answer = asked(&mut world).await;
    assert!(matches!(answer, Answer::Checking { .. }), "{answer:?}");
    let found = adopt(&world.client, &world.ns, &world.release).await.unwrap();
    assert!(found.findings.iter().all(|finding| finding.result == Verdict::Passed), "{:?}", found.findings);
}
