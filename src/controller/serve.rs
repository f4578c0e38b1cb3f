//! The operator as a process: telemetry, leadership, watches, and the loop.

use std::sync::Arc;

use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    runtime::{
        Controller,
        controller::{self, Action as Requeue},
        reflector,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{error, info, warn};

use super::{
    dry_runs::DryRuns,
    metrics::Metrics,
    reconcile::{self, Context},
    retries::Retries,
};
use crate::{
    api::MemoriaRelease,
    cluster::{self, ClusterError, events::Events, lease, watches},
    config::Config,
    telemetry,
    upgrade::preflight::OperatorImages,
};

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot reach the Kubernetes API: {0}")]
    Client(#[from] ClusterError),
    #[error("toolImages has {0:?}, which is no PostgreSQL major version: write e.g. \"15\"")]
    Major(String),
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
    #[error("leadership was lost; the process ends so that nothing is done twice")]
    LeadershipLost,
    #[error("POD_NAMESPACE is not set and leaderElection.namespace is absent: set one of them")]
    NoNamespace,
    #[error("leaderElection: {0}")]
    Lease(#[from] lease::BadTimes),
}

/// Runs until a signal ends it, or until leadership is lost.
///
/// # Errors
/// [`RunError`] says what to mend.
pub async fn run(config: Config) -> Result<(), RunError> {
    let client = cluster::connect().await?;
    let identity = std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_default();
    let health = telemetry::Health::default();
    let leading_part = health.part("api", telemetry::Probe::Ready);
    let mut registry = telemetry::registry();
    let told = Metrics::new(&mut registry);
    let registry = Arc::new(registry);
    let (stop, stopped) = watch::channel(false);
    let metrics = telemetry::Server::metrics(config.metrics.listen, registry).await?;
    let probes = telemetry::Server::health(config.health.listen, health.clone()).await?;
    let servers = tokio::spawn({
        let stopped = stopped.clone();
        async move { tokio::try_join!(metrics.serve(stopped.clone()), probes.serve(stopped)) }
    });
    tokio::spawn({
        let stop = stop.clone();
        async move {
            signalled().await;
            info!("a signal ends the operator");
            // An error means that everything has ended already.
            let _ = stop.send(true);
        }
    });

    let (acting, idle) = watch::channel(());
    let election = lease_config(&config, &identity)?;
    let (mut leadership, elected) = lease::elect(client.clone(), election, async move {
        let mut idle = idle;
        // Ends when the controllers have dropped their side.
        while idle.changed().await.is_ok() {}
    })?;
    // A replica that waits for its turn is ready to take over.
    leading_part.well();
    info!(identity, "waiting for leadership");
    let mut ended = stopped.clone();
    let leads = tokio::select! {
        leads = leadership.wait_for(true) => leads,
        _ = ended.wait_for(|stop| *stop) => false,
    };
    let result = match leads {
        true => {
            info!(identity, "leading");
            let context = Arc::new(context(&config, client, identity, leadership.clone(), told)?);
            let mut lost = leadership.clone();
            tokio::select! {
                () = control(&config, context, stopped) => Ok(()),
                _ = lost.wait_for(false) => Err(RunError::LeadershipLost),
            }
        }
        false => Ok(()),
    };
    // Without this the servers would keep a process alive that has lost its leadership and does nothing more.
    let _ = stop.send(true);
    drop(acting);
    if elected.await.is_err() {
        warn!("the election ended badly; the lease expires by itself");
    }
    if let Ok(Err(error)) = servers.await
        && result.is_ok()
    {
        return Err(error.into());
    }
    result
}

fn context(
    config: &Config,
    client: kube::Client,
    identity: String,
    leadership: lease::Leadership,
    metrics: Metrics,
) -> Result<Context, RunError> {
    let tools = config
        .tool_images
        .iter()
        .map(|(major, image)| Ok((major.parse().map_err(|_| RunError::Major(major.clone()))?, image.clone())))
        .collect::<Result<_, RunError>>()?;
    Ok(Context {
        events: Events::new(client.clone(), &identity),
        client,
        images: OperatorImages { operator: config.operator_image.clone(), tools },
        open: watches::OpenAttempts::default(),
        retries: Retries::default(),
        dry_runs: DryRuns::default(),
        metrics,
        leadership,
    })
}

fn lease_config(config: &Config, identity: &str) -> Result<lease::LeaseConfig, RunError> {
    let election = &config.leader_election;
    let namespace = election.namespace.clone().or_else(|| std::env::var("POD_NAMESPACE").ok());
    Ok(lease::LeaseConfig {
        namespace: namespace.ok_or(RunError::NoNamespace)?,
        name: election.lease_name.clone(),
        identity: identity.to_owned(),
        lease_duration: election.lease_duration.get(),
        renew_deadline: election.renew_deadline.get(),
        retry_period: election.retry_period.get(),
    })
}

/// One controller for the whole cluster, or one for each watched namespace.
async fn control(config: &Config, context: Arc<Context>, stopped: watch::Receiver<bool>) {
    let scopes = match config.watch_namespaces.is_empty() {
        true => vec![watches::Namespaces::All],
        false => config.watch_namespaces.iter().map(|ns| watches::Namespaces::Only(vec![ns.clone()])).collect(),
    };
    let controllers = scopes.iter().flat_map(|scope| {
        scope
            .apis::<MemoriaRelease>(&context.client)
            .into_iter()
            .map(|api| one_controller(api, scope.clone(), context.clone(), stopped.clone()))
    });
    futures::future::join_all(controllers).await;
}

async fn one_controller(
    api: Api<MemoriaRelease>,
    scope: watches::Namespaces,
    context: Arc<Context>,
    mut stopped: watch::Receiver<bool>,
) {
    let (releases, writer) = reflector::store();
    let controller = Controller::for_stream(watches::asked(api, writer), releases);
    let metrics = context.clone();
    let triggers = watches::triggers(&context.client, &scope, &controller.store(), &context.open);
    controller
        .reconcile_on(triggers)
        .graceful_shutdown_on(async move {
            // An error means that the sender is gone, which is an end as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        })
        .run(look, look_again, context)
        .for_each(move |looked| {
            if let Err(controller::Error::ObjectNotFound(gone)) = looked {
                metrics.metrics.forget(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
            }
            std::future::ready(())
        })
        .await;
}

async fn look(release: Arc<MemoriaRelease>, context: Arc<Context>) -> Result<Requeue, ClusterError> {
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    if let Some(status) = &release.status {
        context.metrics.release(&namespace, &name, status);
    }
    let answer = reconcile::reconcile(&context, &namespace, &name).await;
    let answer = answer.map_err(|error| error.in_namespace(&namespace))?;
    context.retries.forget(&namespace, &name);
    Ok(answer)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that the controller takes")]
fn look_again(release: Arc<MemoriaRelease>, error: &ClusterError, context: Arc<Context>) -> Requeue {
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let wait = context.retries.next(&namespace, &name);
    if error.is_settled_by_observing_again() {
        info!(namespace, release = name, %error, ?wait, "looking again");
    } else {
        error!(namespace, release = name, %error, ?wait, "could not reconcile");
    }
    Requeue::requeue(wait)
}

async fn signalled() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        error!("no signal handler could be set; end the process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        // An error means that Ctrl-C cannot be listened for; SIGTERM still can.
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
}
