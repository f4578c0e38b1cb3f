//! Snapshots that stay in a bucket, and encrypted: an attempt finds them there and goes back from them, and nobody without
//! the identity reads a row.

use std::{collections::BTreeSet, fs, path::Path};

use age::{secrecy::ExposeSecret, x25519::Identity};
use anyhow::{Context, Result, ensure};
use memoria_operator::api::upgrade::Outcome as Ended;
use serde_json::{Value, json};

use crate::{
    Outcome,
    checkers::Captured,
    environment,
    failures::{next_action, untouched},
    good::is_upgraded,
    rollback::{BAD_MIGRATION, journal, restored_exactly},
    s3::{KEY, S3, SECRET, url},
    site::{Options, SOON, Site, TO, UPGRADED, condition, ready, standing, with_site},
    sqlite::SQLITE,
};

/// What may lie open: names, counts and hashes.
const NOTES: [&str; 6] =
    ["baseline.json", "late.json", "manifest.json", "reference.json", "rescue.json", "schema.json"];

#[tokio::test]
async fn an_attempt_goes_back_from_an_encrypted_bucket() -> Outcome {
    with_site("archive-bucket", Options::default(), async |site| {
        let s3 = S3::start_at(host().await?);
        let secret = json!({"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET});
        apply_secret(site, "bucket", &secret).await?;
        keys(site, &Identity::generate(), None).await?;
        let bucket = json!({
            "url": url("memoria"), "region": "eu-central-1", "endpoint": s3.endpoint(), "credentialsSecretRef": {"name": "bucket"}
        });
        site.adopt().await?;
        let before = Captured::now(site).await?;
        let snapshot = json!({"storage": {"objectStore": bucket}, "encryption": encryption()});
        site.patch(json!({"spec": {"version": BAD_MIGRATION, "snapshot": snapshot}})).await?;
        restored_exactly(site, &before).await?;
        let release = site.until_ended(Ended::RolledBack).await?;
        ensure!(standing(&release).2.contains("restored and proved"), "{:?}", standing(&release));
        untouched(site, &before).await?;

        let kept = journal(site).await?.snapshot.context("a snapshot")?;
        let described = serde_json::to_string(&kept)?;
        ensure!(described.contains(&url("memoria")), "it does not say where the snapshot is: {described}");
        let found = only_notes_lie_open(&s3.object("memoria"))?;
        for name in ["database.dump.age", "failed/database.dump.age", "failed/evidence-restore.json.age", "manifest.json"] {
            let name = format!("{}/{name}", kept.directory);
            ensure!(found.contains(&name), "{name} is not among {found:?}");
        }
        let claims = environment::kubectl(&["-n", &site.namespace, "get", "pvc", "-o", "name"]).await?;
        ensure!(!claims.contains("snapshots"), "a claim was made that nobody needs: {claims}");
        no_pod_of_memoria_sees_the_keys(site).await?;
        next_action(&release)?.run(site).await?;
        site.until("Ready", SOON, |release| ready(release).then_some(())).await
    })
    .await
}

#[tokio::test]
async fn a_wrong_key_is_refused_in_pre_flight_and_the_right_one_upgrades() -> Outcome {
    with_site("archive-volume", SQLITE, async |site| {
        let right = Identity::generate();
        keys(site, &right, Some(&Identity::generate())).await?;
        site.adopt().await?;
        let before = Captured::now(site).await?;
        site.patch(json!({"spec": {"version": TO, "snapshot": {"encryption": encryption()}}})).await?;
        let release = site.until_settled(UPGRADED).await?;
        let (phase, reason, message) = standing(&release);
        ensure!(reason == "PreFlightFailed", "{phase}/{reason}: {message}");
        ensure!(message.contains("could not be read again"), "it does not say what is wrong: {message}");
        ensure!(message.contains("spec.snapshot.encryption"), "it does not name the field: {message}");
        untouched(site, &before).await?;

        keys(site, &right, None).await?;
        next_action(&release)?.run(site).await?;
        site.until("the checks to begin again", SOON, |release| condition(release, "Reconciling")).await?;
        let release = site.until_ended(Ended::Succeeded).await?;
        is_upgraded(site, &release, &before).await?;
        let kept = journal(site).await?.snapshot.context("a snapshot")?;
        let found = only_notes_lie_open(&site.volume("memoria-snapshots").await?)?;
        for name in ["database.sqlite.age", "baseline/database.sqlite.age", "manifest.json"] {
            let name = format!("{}/{name}", kept.directory);
            ensure!(found.contains(&name), "{name} is not among {found:?}");
        }
        Ok(())
    })
    .await
}

/// This machine, as pods reach it: where the API server is.
async fn host() -> Result<std::net::IpAddr> {
    let config = kube::Config::infer().await.context("the kubeconfig")?;
    let host = config.cluster_url.host().context("the API server's address")?;
    host.parse().with_context(|| format!("{host} is no address of this machine; these tests need the local cluster"))
}

fn encryption() -> Value {
    let key = |key: &str| json!({"secretKeyRef": {"name": "snapshot-keys", "key": key}});
    json!({"recipientsFrom": key("recipients"), "identityFrom": key("identity")})
}

/// The recipient is this one's, the identity another's where there is one.
async fn keys(site: &Site, recipient: &Identity, other: Option<&Identity>) -> Outcome {
    let identity = other.unwrap_or(recipient).to_string();
    let keys = json!({"recipients": recipient.to_public().to_string(), "identity": identity.expose_secret()});
    apply_secret(site, "snapshot-keys", &keys).await
}

async fn apply_secret(site: &Site, name: &str, data: &Value) -> Outcome {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": site.namespace}, "stringData": data
    });
    let mut apply = tokio::process::Command::new("kubectl");
    apply.args(["apply", "-f", "-"]);
    environment::run(&mut apply, Some(&secret.to_string())).await.map(drop)
}

/// Every file below a place that is no note is an age file. Gives all names, relative to the place.
fn only_notes_lie_open(place: &Path) -> Result<BTreeSet<String>> {
    let (mut found, mut open) = (BTreeSet::new(), vec![place.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let sealed = fs::read(&path)?.starts_with(b"age-encryption.org/v1\n");
            ensure!(sealed || NOTES.contains(&name.as_str()), "{} can be read by everybody", path.display());
            ensure!(sealed == name.ends_with(".age"), "{} is not what its name says", path.display());
            found.insert(path.strip_prefix(place)?.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Containers of Memoria's images, in Jobs of the operator as well, have neither the bucket's credentials nor the keys.
async fn no_pod_of_memoria_sees_the_keys(site: &Site) -> Outcome {
    for job in site.jobs().await? {
        let pod = job.spec.and_then(|spec| spec.template.spec).context("a pod template")?;
        for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
            let of_memoria = container.image.as_ref().is_some_and(|image| image.contains("/memoria/"));
            let text = serde_json::to_string(container)?;
            let sees = text.contains("AWS_") || text.contains("memoria-keys") || text.contains("IDENTITY_FILE");
            ensure!(!(of_memoria && sees), "{} of {:?} sees them", container.name, job.metadata.name);
        }
    }
    Ok(())
}
