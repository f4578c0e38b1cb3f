//! Checks that run a CronJob's template: one that passes on the candidate, one that passes after ingestion, and one that
//! holds until it can run, and then fails.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::Secret,
};
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use memoria_operator::api::{
    marks,
    release::{Check, Verdict},
    upgrade::{Category, Outcome as Ended},
};
use serde_json::json;

use crate::{
    Outcome,
    checkers::Captured,
    failures::{next_action, untouched},
    site::{Options, SOON, Site, TO, UPGRADED, condition, ready, standing, with_site},
    sqlite::SQLITE,
};

/// A suspended CronJob that runs Python in the image that the server has now.
async fn cron_job(site: &Site, name: &str, script: &str) -> Outcome {
    let server = site.workloads().await?.into_iter().next().context("a server")?;
    let pod = server.spec.and_then(|spec| spec.template.spec).context("a pod template")?;
    let image = pod.containers.first().and_then(|container| container.image.clone()).context("an image")?;
    let optional = |key: &str| json!({"secretKeyRef": {"name": "memoria-checks", "key": key}});
    let env = match name {
        "waits" => json!([{"name": "EXIT_CODE", "valueFrom": optional("exit-code")}]),
        _ => json!([]),
    };
    let object = serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": {"template": {
            "metadata": {"labels": {"app.kubernetes.io/name": "memoria-checks"}},
            "spec": {
                "restartPolicy": "OnFailure",
                "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "script", "image": image, "command": ["python", "-c", script], "env": env,
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        }}}},
    }))?;
    site.api::<CronJob>().create(&PostParams::default(), &object).await.map(drop).context("the CronJob was refused")
}

fn check(name: &str, stage: &str) -> Result<Check> {
    serde_json::from_value(
        json!({"name": name, "stage": stage, "within": "3m", "job": {"templateRef": {"name": name}}}),
    )
    .context("a check")
}

/// What the release tells to type is run until pre-flight has nothing against the templates any more.
async fn allow(site: &Site, names: &[&str]) -> Outcome {
    let release = site
        .until("pre-flight to refuse templates that nobody let it run", UPGRADED, |release| {
            (condition(release, "Stalled").is_some() && standing(release).1 == "PreFlightFailed")
                .then(|| release.clone())
        })
        .await?;
    let message = standing(&release).2;
    for name in names {
        let command =
            format!("kubectl -n {} annotate cronjob/{name} {}=true", site.namespace, marks::CHECK_TEMPLATE_ANNOTATION);
        ensure!(message.contains(&command), "it does not say how to allow {name}: {message}");
        let patch = Patch::Merge(json!({"metadata": {"annotations": {marks::CHECK_TEMPLATE_ANNOTATION: "true"}}}));
        site.api::<CronJob>().patch(name, &PatchParams::default(), &patch).await?;
    }
    next_action(&release)?.run(site).await
}

#[tokio::test]
async fn the_end_of_a_cron_jobs_template_is_the_verdict_on_the_new_version() -> Outcome {
    with_site("checks-job", Options::default(), verdict_of_templates).await
}

#[tokio::test]
async fn the_end_of_a_cron_jobs_template_is_the_verdict_on_an_sqlite_upgrade() -> Outcome {
    with_site("checks-job-sqlite", SQLITE, verdict_of_templates).await
}

async fn verdict_of_templates(site: &Site) -> Outcome {
    let candidate = "import os, urllib.request; \
                     urllib.request.urlopen(f'http://{os.environ[\"MEMORIA_CANDIDATE\"]}:8000/openapi.json', timeout=20)";
    cron_job(site, "candidate", candidate).await?;
    cron_job(site, "passes", "print('all is well')").await?;
    cron_job(site, "waits", "import os, sys; sys.exit(int(os.environ['EXIT_CODE']))").await?;
    let mut release = site.new_release()?;
    release.spec.checks.push(check("candidate", "BeforeIngestion")?);
    release.spec.checks.push(check("passes", "AfterIngestion")?);
    release.spec.checks.push(check("waits", "AfterIngestion")?);
    // What the new servers write when they start is lost by going back: nobody has to be asked about it here.
    release.spec.rollback.data_loss_budget.rows = 1_000_000;
    site.create(&release).await?;
    site.until("adopted", SOON, |release| ready(release).then_some(())).await?;
    let before = Captured::now(site).await?;
    site.set_version(TO).await?;
    allow(site, &["candidate", "passes", "waits"]).await?;
    site.until("writers to be stopped", UPGRADED, |release| condition(release, "IngestionStopped")).await?;
    // The plan has the template as it was: what is changed now is for the next one.
    let fails = json!([{"name": "script", "command": ["python", "-c", "import sys; sys.exit(9)"]}]);
    let template = json!({"spec": {"template": {"spec": {"containers": fails}}}});
    let patch = Patch::Strategic(json!({"spec": {"jobTemplate": template}}));
    site.api::<CronJob>().patch("passes", &PatchParams::default(), &patch).await?;

    let hold = site
        .until("a hold of the check that cannot start", UPGRADED, |release| {
            release.status.as_ref()?.hold.clone().filter(|hold| hold.phase == "Verification")
        })
        .await?;
    next_action(&site.release().await?)?.run(site).await?;
    ensure!(hold.reason == "JobCannotRun" && hold.message.contains("memoria-checks"), "{hold:?}");
    let journal = site.attempt().await?.status.context("a journal")?;
    let told = journal.checks.iter().find(|check| check.name == "candidate").context("the candidate's check")?;
    ensure!(told.result == Verdict::Passed && told.message.contains("exit code 0"), "{told:?}");
    let secret =
        serde_json::from_value(json!({"metadata": {"name": "memoria-checks"}, "stringData": {"exit-code": "3"}}))?;
    site.api::<Secret>().create(&PostParams::default(), &secret).await?;

    site.until_ended(Ended::RolledBack).await?;
    let attempt = site.attempt().await?;
    let failure = attempt.status.as_ref().and_then(|journal| journal.failure.clone()).context("a failure")?;
    ensure!(failure.phase == "Verification" && failure.reason == "CheckFailed", "{failure:?}");
    ensure!(failure.category == Category::Candidate && failure.message.contains("exit code 3"), "{failure:?}");
    let passed: Job = site.api().get(&format!("{}-check-passes", attempt.name_any())).await?;
    ensure!(passed.status.as_ref().and_then(|status| status.succeeded) == Some(1), "{:?}", passed.status);
    ensure!(passed.owner_references().is_empty(), "the Job has an owner that could take it away");
    let spec = passed.spec.context("a spec")?;
    ensure!(spec.ttl_seconds_after_finished.is_some(), "nobody cleans it up");
    let pod = spec.template.spec.context("a pod")?;
    ensure!(pod.automount_service_account_token == Some(false), "its pod gets a token");
    untouched(site, &before).await
}
