//! What the operator tells about itself: logs on standard error, metrics, and the probes that Kubernetes asks.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text, metrics::info::Info, registry::Registry};
use tokio::{net::TcpListener, sync::watch};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level is no list of levels: {0}; write e.g. info, or info,kube=debug")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging was already set up in this process: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    #[error("cannot listen at {address}: {source}; set {field} to a free address of this host")]
    Listen { field: &'static str, address: SocketAddr, source: io::Error },
    #[error("the server at {address} ended: {source}")]
    Serve { address: SocketAddr, source: io::Error },
}

/// Sends log lines to standard error from here on. Once a process.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder().parse(&log.level)?;
    let lines = fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_current_span(true)).try_init()?,
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init()?,
    }
    Ok(())
}

/// A registry whose metrics all begin with `memoria_operator_`; it already tells the build.
pub fn registry() -> Registry {
    let mut registry = Registry::with_prefix("memoria_operator");
    registry.register("build", "Version of this operator", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    registry
}

/// What the probes answer, kept by the parts of the operator themselves. Clones share it.
#[derive(Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Part>>>,
}

#[derive(Clone)]
struct Part {
    probe: Probe,
    problem: Option<String>,
}

/// Which probe a part belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: a problem ends the container.
    Live,
    /// `/readyz`: a problem takes the pod out of its Service and stops a rollout.
    Ready,
}

impl Health {
    /// Announces a part. It has a problem until it says otherwise, unless it belongs to the live probe: a process
    /// that starts is alive.
    pub fn part(&self, name: &'static str, probe: Probe) -> HealthPart {
        let problem = (probe == Probe::Ready).then(|| "starting".to_owned());
        self.set(name, probe, problem);
        HealthPart { health: self.clone(), name, probe }
    }

    fn set(&self, name: &'static str, probe: Probe, problem: Option<String>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(name, Part { probe, problem });
    }

    /// One line a part, and whether none has a problem.
    fn answer(&self, probe: Probe) -> (bool, String) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all_well = true;
        let mut text = String::new();
        for (name, part) in parts.iter().filter(|(_, part)| part.probe == probe) {
            all_well &= part.problem.is_none();
            text.push_str(&format!("{name}: {}\n", part.problem.as_deref().unwrap_or("ok")));
        }
        if text.is_empty() {
            text.push_str("ok\n");
        }
        (all_well, text)
    }
}

/// One part's say in a probe.
pub struct HealthPart {
    health: Health,
    name: &'static str,
    probe: Probe,
}

impl HealthPart {
    pub fn well(&self) {
        self.health.set(self.name, self.probe, None);
    }

    /// `problem` is shown to whoever asks the probe: no secrets.
    pub fn ill(&self, problem: impl Into<String>) {
        self.health.set(self.name, self.probe, Some(problem.into()));
    }
}

/// A server that has its address and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
}

impl Server {
    /// `/metrics` in OpenMetrics text.
    pub async fn metrics(address: SocketAddr, registry: Arc<Registry>) -> Result<Self, TelemetryError> {
        let router = Router::new().route("/metrics", get(metrics)).with_state(registry);
        Self::bind("metrics.listen", address, router).await
    }

    /// `/healthz` and `/readyz`: 200 or 503, with one line for each part.
    pub async fn health(address: SocketAddr, health: Health) -> Result<Self, TelemetryError> {
        let router = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(health);
        Self::bind("health.listen", address, router).await
    }

    async fn bind(field: &'static str, address: SocketAddr, router: Router) -> Result<Self, TelemetryError> {
        let failed = |source| TelemetryError::Listen { field, address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, router })
    }

    /// The address it got: another than asked for when the port was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` becomes true or its sender is gone.
    pub async fn serve(self, mut stop: watch::Receiver<bool>) -> Result<(), TelemetryError> {
        let Self { listener, address, router } = self;
        let stopped = async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        axum::serve(listener, router)
            .with_graceful_shutdown(stopped)
            .await
            .map_err(|source| TelemetryError::Serve { address, source })
    }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")).into_response()
        }
    }
}

async fn healthz(State(health): State<Health>) -> Response {
    probe(&health, Probe::Live)
}

async fn readyz(State(health): State<Health>) -> Response {
    probe(&health, Probe::Ready)
}

fn probe(health: &Health, probe: Probe) -> Response {
    let (well, text) = health.answer(probe);
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("http://{address}{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn metrics_carry_the_prefix_and_the_build() {
        let mut registry = registry();
        let reconciles = Counter::<u64>::default();
        registry.register("reconciles", "Reconciles", reconciles.clone());
        reconciles.inc();
        let (_stop, stopped) = watch::channel(false);
        let server = Server::metrics(ANY_PORT, Arc::new(registry)).await.unwrap();
        let address = server.address();
        tokio::spawn(server.serve(stopped));
        let (status, body) = ask(address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("memoria_operator_reconciles_total 1"), "{body}");
        assert!(body.contains(concat!("memoria_operator_build_info{version=\"", env!("CARGO_PKG_VERSION"))), "{body}");
        assert_eq!(ask(address, "/readyz").await.0, 404);
    }

    #[tokio::test]
    async fn probes_follow_the_parts_and_say_which_one_has_a_problem() {
        let health = Health::default();
        let caches = health.part("caches", Probe::Ready);
        let lease = health.part("lease", Probe::Live);
        let (stop, stopped) = watch::channel(false);
        let server = Server::health(ANY_PORT, health).await.unwrap();
        let address = server.address();
        let serving = tokio::spawn(server.serve(stopped));

        assert_eq!(ask(address, "/readyz").await, (503, "caches: starting\n".to_owned()));
        assert_eq!(ask(address, "/healthz").await, (200, "lease: ok\n".to_owned()));
        caches.well();
        lease.ill("not renewed for 30s");
        assert_eq!(ask(address, "/readyz").await, (200, "caches: ok\n".to_owned()));
        assert_eq!(ask(address, "/healthz").await, (503, "lease: not renewed for 30s\n".to_owned()));

        stop.send(true).unwrap();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_taken_address_is_named_with_its_field() {
        let first = Server::health(ANY_PORT, Health::default()).await.unwrap();
        let Err(error) = Server::health(first.address(), Health::default()).await else { panic!("bound twice") };
        assert!(error.to_string().contains("health.listen"), "{error}");
    }
}
