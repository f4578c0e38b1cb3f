//! Shows what the cluster knows about a failed test: objects, events, logs.

use crate::environment::{OPERATOR, kubectl};

/// Prints what helps to see why. Nothing here can fail the test again.
pub async fn namespace(namespace: &str) {
    show(&["-n", namespace, "describe", "mrel,mup"]).await;
    show(&["-n", namespace, "get", "deployments,statefulsets,jobs,pods,pvc,mdec", "-o", "wide"]).await;
    show(&["-n", namespace, "get", "events", "--sort-by=.metadata.creationTimestamp"]).await;
    let jobs = kubectl(&["-n", namespace, "get", "jobs", "-o", "name"]).await.unwrap_or_default();
    for job in jobs.lines() {
        show(&["-n", namespace, "logs", job, "--all-containers", "--prefix", "--tail=40"]).await;
    }
    show(&["-n", OPERATOR, "get", "pods", "-o", "wide"]).await;
    show(&["-n", OPERATOR, "logs", &format!("deployment/{OPERATOR}"), "--tail=150"]).await;
}

async fn show(args: &[&str]) {
    println!("----- kubectl {}", args.join(" "));
    match kubectl(args).await {
        Ok(text) => println!("{text}"),
        Err(error) => println!("{error:#}"),
    }
}
