//! A connection that is lost at COMMIT: nobody was told how it ended, and the marker knows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use memoria_operator::{
    api::upgrade::DatabaseIdentity,
    job::protocol::{Facts, JobInput, JobOrder, RestoreOrder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
};

use crate::{
    cluster::{Cluster, MEMORIA},
    restore::{FAILED, facts},
    site::{DIRECTORY, Site, snapshot_order, task},
};

/// Stands between Job and server, and once armed cuts the connection that says COMMIT, once.
struct Proxy {
    port: u16,
    armed: Arc<AtomicBool>,
}

impl Proxy {
    /// `told`: the server still hears the COMMIT.
    async fn start(server: u16, told: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::new(AtomicBool::new(false));
        let cut = armed.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                for side in [&client, &server] {
                    side.set_nodelay(true).unwrap();
                }
                let ((read, back), (answers, write)) = (client.into_split(), server.into_split());
                let (cut, silent) = (cut.clone(), AtomicBool::new(false));
                tokio::spawn(async move {
                    tokio::select! {
                        () = answer(answers, back, &silent) => {}
                        () = ask(read, write, &cut, told, &silent) => {}
                    }
                });
            }
        });
        Self { port, armed }
    }
}

/// Forwards what the server answers; once it is to be silent, the next answer ends both connections, unheard.
async fn answer(mut answers: OwnedReadHalf, mut back: OwnedWriteHalf, silent: &AtomicBool) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = answers.read(&mut piece).await {
        if silent.load(Ordering::SeqCst) || back.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

/// Forwards what the client says; ends when it ends or is cut off.
async fn ask(mut read: OwnedReadHalf, mut write: OwnedWriteHalf, armed: &AtomicBool, told: bool, silent: &AtomicBool) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = read.read(&mut piece).await {
        let said = &piece[..length];
        let is_commit = said.windows(7).any(|window| window == b"COMMIT\0") && armed.swap(false, Ordering::SeqCst);
        silent.fetch_or(is_commit, Ordering::SeqCst);
        if (!is_commit || told) && write.write_all(said).await.is_err() {
            return;
        }
        if is_commit && told {
            // A connection that is closed at once could take the COMMIT back before the server reads it.
            std::future::pending::<()>().await;
        }
        if is_commit {
            return;
        }
    }
}

async fn restored_although_cut(told: bool) {
    let (cluster, site) = (Cluster::start().await, Site::new());
    cluster.app(MEMORIA).await;
    let proxy = Proxy::start(cluster.port, told).await;
    let url = cluster.url_text().replace(&format!(":{}/", cluster.port), &format!(":{}/", proxy.port));
    let through = |identity: Option<DatabaseIdentity>| {
        identity.map(|identity| DatabaseIdentity { host: format!("127.0.0.1:{}", proxy.port), ..identity })
    };
    let mut order = snapshot_order(&cluster).await;
    order.database.identity = through(order.database.identity);
    let answer = site.run_with(&JobOrder::Snapshot(order), &url).await;
    let Some(Facts::Snapshot(snapshot)) = answer.report.facts else { panic!("{:?}", answer.report) };

    cluster.app("DELETE FROM teams WHERE team_id = 't5'").await;
    let mut database = task(&cluster, "prod-1").await;
    database.identity = through(database.identity);
    let order = RestoreOrder {
        database,
        directory: DIRECTORY.to_owned(),
        failed_directory: FAILED.to_owned(),
        baseline_directory: None,
        data_loss_budget_rows: 0,
        carry_forward: Vec::new(),
        limit_seconds: 100,
    };
    let input = JobInput { manifest_sha256: Some(snapshot.manifest_sha256), ..JobInput::default() };
    proxy.armed.store(true, Ordering::SeqCst);
    let mut running = site.other_pod().spawn_kept(&JobOrder::Restore(order), &input, &url);
    while !running.ended() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = running.output();
    let answer = running.end().await;
    assert!(!proxy.armed.load(Ordering::SeqCst), "no COMMIT was cut off");
    answer.is(true, "Done", None);
    assert!(facts(&answer).restored);
    let (teams,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM teams").fetch_one(&mut cluster.admin().await).await.unwrap();
    assert_eq!(teams, 5);
    // Where the COMMIT was heard it counts, and nothing was restored twice.
    let said = if told { "has restored already" } else { "nothing was restored; trying again" };
    assert!(output.contains(said) && output.contains("the marker decides"), "{output}");
}

#[tokio::test]
async fn a_commit_that_was_heard_and_not_answered_counts() {
    restored_although_cut(true).await;
}

#[tokio::test]
async fn a_commit_that_was_never_heard_is_done_again() {
    restored_although_cut(false).await;
}
