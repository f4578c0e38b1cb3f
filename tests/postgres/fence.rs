//! The fence Job: ends the application's sessions, and says who is left.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use memoria_operator::{
    api::upgrade::Category,
    job::protocol::{Facts, FenceOrder, JobOrder},
};
use sqlx::{Connection, PgConnection};

use crate::{
    cluster::{Cluster, MEMORIA, run},
    site::{Site, task},
};

async fn order(cluster: &Cluster, quiet_seconds: u64, limit_seconds: u64) -> JobOrder {
    JobOrder::Fence(FenceOrder { database: task(cluster, "prod-1").await, quiet_seconds, limit_seconds })
}

#[tokio::test]
async fn sessions_of_the_application_end_and_others_are_listed() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    let mut held = cluster.session("app", "memoria").await;
    let mut visitor = cluster.session("visitor", "memoria").await;
    let answer = site.run(&order(&cluster, 2, 30).await, &cluster).await;
    answer.is(true, "Done", None);
    let Some(Facts::Fence(facts)) = &answer.report.facts else { panic!() };
    assert_eq!((facts.terminated, facts.others.as_slice()), (1, ["visitor@test".to_owned()].as_slice()));
    assert!(held.ping().await.is_err());
    assert!(visitor.ping().await.is_ok());
}

#[tokio::test]
async fn a_writer_that_comes_back_fails_the_fence_by_name() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    let stop = Arc::new(AtomicBool::new(false));
    let url = cluster.url();
    let writer = tokio::spawn({
        let stop = stop.clone();
        async move {
            let options = url.connect_options().unwrap().application_name("stubborn");
            while !stop.load(Ordering::Relaxed) {
                if let Ok(mut session) = PgConnection::connect_with(&options).await {
                    while !stop.load(Ordering::Relaxed) && session.ping().await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
    });
    let answer = site.run(&order(&cluster, 2, 6).await, &cluster).await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    answer.is(false, "WritersRemain", Some(Category::Environment));
    assert!(answer.report.message.contains("keep coming back"), "{}", answer.report.message);
}

#[tokio::test]
async fn another_roles_open_write_is_no_quiet() {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    cluster.app("GRANT ALL ON agents TO visitor").await;
    let mut visitor = cluster.session("visitor", "memoria").await;
    run(&mut visitor, "BEGIN; DELETE FROM agents WHERE agent_id = 'a50'").await;
    let answer = site.run(&order(&cluster, 1, 3).await, &cluster).await;
    answer.is(false, "ForeignWriter", Some(Category::Environment));
    assert!(answer.report.message.contains("visitor@test"), "{}", answer.report.message);
    run(&mut visitor, "ROLLBACK").await;
    site.run(&order(&cluster, 1, 10).await, &cluster).await.is(true, "Done", None);
    cluster.app("BEGIN; DELETE FROM teams WHERE team_id = 't5'; PREPARE TRANSACTION 'hidden'").await;
    let answer = site.run(&order(&cluster, 1, 3).await, &cluster).await;
    answer.is(false, "PreparedTransactions", Some(Category::Environment));
}
