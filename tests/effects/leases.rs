//! One leader at a time, and soon another when it dies.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use memoria_operator::cluster::lease::{Leadership, LeaseConfig, elect};
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::server::server;

fn config(ns: &str, identity: &str) -> LeaseConfig {
    LeaseConfig {
        lease_duration: Duration::from_secs(7),
        renew_deadline: Duration::from_secs(2),
        retry_period: Duration::from_millis(300),
        ..LeaseConfig::new(ns.to_owned(), "memoria-operator".to_owned(), identity.to_owned())
    }
}

/// A contender; dropping the sender asks it to stop.
fn contender(ns: &str, identity: &str) -> (Leadership, JoinHandle<()>, oneshot::Sender<()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let (leadership, task) = elect(server().client(), config(ns, identity), shutdown).unwrap();
    (leadership, task, stop)
}

async fn lease(ns: &str) -> Lease {
    Api::<Lease>::namespaced(server().client(), ns).get("memoria-operator").await.unwrap()
}

async fn within(seconds: u64, leadership: &mut Leadership) {
    tokio::time::timeout(Duration::from_secs(seconds), leadership.wait_for(true)).await.expect("nobody leads");
    assert!(leadership.is_leading());
}

#[tokio::test]
async fn one_leads_and_another_takes_over_when_it_dies() {
    server().namespace("lease-death").await;
    let (mut first, first_task, _keep) = contender("lease-death", "first");
    within(10, &mut first).await;
    let (mut second, second_task, stop) = contender("lease-death", "second");
    let quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(9) {
        assert!(first.is_leading() && !second.is_leading(), "while the first renews");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(lease("lease-death").await.spec.unwrap().lease_transitions, Some(0));

    // It dies without giving anything back.
    first_task.abort();
    let died = Instant::now();
    while !second.is_leading() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!(first.is_leading() && second.is_leading()), "two leaders");
        assert!(died.elapsed() < Duration::from_secs(20), "no takeover");
    }
    assert!(!first.is_leading(), "its time is up by its own clock");
    assert!(died.elapsed() >= Duration::from_secs(6), "taken over after {:?}", died.elapsed());
    within(1, &mut second).await;
    let spec = lease("lease-death").await.spec.unwrap();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("second"), Some(1)));

    // It goes in order: the lease is free at once.
    drop(stop);
    second_task.await.unwrap();
    assert!(!second.is_leading());
    assert_eq!(lease("lease-death").await.spec.unwrap().holder_identity, None);
    let (mut third, third_task, _keep) = contender("lease-death", "third");
    within(3, &mut third).await;
    third_task.abort();
}

#[tokio::test]
async fn a_leader_whose_lease_was_taken_stops_leading() {
    server().namespace("lease-taken").await;
    let (mut first, task, _keep) = contender("lease-taken", "first");
    within(10, &mut first).await;
    let taken = Patch::Merge(json!({"spec": {"holderIdentity": "a-person", "leaseDurationSeconds": 30}}));
    Api::<Lease>::namespaced(server().client(), "lease-taken")
        .patch("memoria-operator", &PatchParams::default(), &taken)
        .await
        .unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), first.wait_for(false)).await.unwrap());
    assert!(!first.is_leading());
    // The holder's own duration is respected, and a timestamp that is long past is not believed.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!first.is_leading());
    assert_eq!(lease("lease-taken").await.spec.unwrap().holder_identity.as_deref(), Some("a-person"));
    task.abort();
}

#[tokio::test]
async fn times_with_which_two_could_act_at_once_are_refused() {
    let tight = LeaseConfig { lease_duration: Duration::from_secs(6), ..config("default", "x") };
    let error = elect(server().client(), tight, std::future::pending()).unwrap_err();
    assert!(error.to_string().contains("15s, 10s, 2s"), "{error}");
}
