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

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, Config};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{bounded, from_config};
    use crate::cluster::Kind;

    /// An API server that is overloaded for good, or (without an answer) hangs. Counts what it was asked.
    async fn broken(answer: Option<&'static str>) -> (kube::Client, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                assert!(String::from_utf8_lossy(&request[..read]).contains("user-agent: memoria-operator/"));
                count.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
                kept.push(stream);
            }
        });
        (from_config(Config::new(url)).unwrap(), asked)
    }

    async fn ask(client: kube::Client) -> Kind {
        let api: Api<ConfigMap> = Api::namespaced(client, "x");
        bounded("read", "configmap/y", api.get("y")).await.unwrap_err().kind
    }

    #[tokio::test]
    async fn a_refused_request_is_not_repeated() {
        let (client, asked) =
            broken(Some("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(ask(client).await, Kind::Unreachable);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_server_that_hangs_is_left_after_the_deadline() {
        let begun = std::time::Instant::now();
        let (client, asked) = broken(None).await;
        assert_eq!(ask(client).await, Kind::Unreachable);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(begun.elapsed() < super::REQUEST_DEADLINE * 2);
    }
}
