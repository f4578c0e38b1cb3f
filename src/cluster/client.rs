//! The connection to the Kubernetes API: one client, without retries of its own, and a deadline for each request.

use std::{fmt::Display, future::Future, time::Duration};

use kube::{Client, Config};

use super::error::ClusterError;

/// How long one request may take. Together with the time after which a leader that cannot renew gives up, this stays
/// below the lease's duration: no write of a former leader is under way when the next one begins.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Connects as the kubeconfig says (`KUBECONFIG` or `~/.kube/config`), else as the pod's ServiceAccount.
pub async fn connect() -> Result<Client, ClusterError> {
    let config = Config::infer()
        .await
        .map_err(|e| ClusterError::local("read the configuration of", "the Kubernetes client", &e))?;
    from_config(config)
}

/// A client for this configuration. kube installs the aws-lc-rs provider of rustls when the process has none yet.
pub fn from_config(mut config: Config) -> Result<Client, ClusterError> {
    let local = |e: &dyn std::error::Error| ClusterError::local("set up", "the Kubernetes client", e);
    // kube repeats refused writes up to 15 times by default. A write that was decided on an observation must not be
    // repeated after that observation has aged.
    config.default_retry = false;
    config.connect_timeout = Some(REQUEST_DEADLINE);
    let agent = concat!("memoria-operator/", env!("CARGO_PKG_VERSION"));
    config.headers.push(("user-agent".parse().map_err(|e| local(&e))?, agent.parse().map_err(|e| local(&e))?));
    Client::try_from(config).map_err(|e| local(&e))
}

/// Awaits one request, at most [`REQUEST_DEADLINE`]. When the time is up, whether a write happened is unknown: the
/// caller observes again.
pub async fn bounded<T>(
    doing: &'static str,
    object: impl Display,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ClusterError::from_kube(doing, object.to_string(), &error)),
        Err(_) => Err(ClusterError::timeout(doing, object.to_string(), REQUEST_DEADLINE)),
    }
}
