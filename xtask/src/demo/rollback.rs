//! The second half of the demo: an upgrade to a version whose server spoils the data and then dies is taken back, and the checkers
//! prove it before the old servers start, because those rewrite data by themselves.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{NAMESPACE, RELEASE, TO, UPGRADED, proof::Proof, view};
use crate::clock::Clock;
use crate::kube::Kube;

/// Its server changes schema and data while it loads, and then dies.
pub const BAD: &str = "1.0.1-alters-then-crashes";

/// How the bad upgrade ended, and what the checkers say of it.
pub struct TakenBack {
    pub phase: String,
    pub message: String,
    cause: String,
    seconds: Option<i64>,
    writers_stopped_seconds: Option<i64>,
    digest_before: Option<String>,
    digest_after: Option<String>,
}

/// Upgrades to [`BAD`], and waits until everything is back.
pub fn show(kube: &Kube, clock: &mut Clock, proof: &mut Proof) -> Result<TakenBack> {
    clock.part("the state before the bad version, captured by the checkers", |_| proof.capture("good"))?;
    clock.say(&format!(
        "kubectl -n {NAMESPACE} patch mrel {RELEASE} --type=merge -p '{{\"spec\":{{\"version\":\"{BAD}\"}}}}'"
    ));
    let digest_before = proof.server_digest("good")?;
    let ended = clock.part(&format!("the upgrade to {BAD}, whose server dies, and the way back"), |clock| {
        patch(kube, &json!({"version": BAD}))?;
        let (mut held, mut compared) = (false, false);
        view::follow_with(kube, NAMESPACE, RELEASE, UPGRADED, &mut |release| {
            let phase = release["status"]["phase"].as_str().unwrap_or_default();
            if !held && phase == "ImportSnapshot" {
                held = true;
                return patch(kube, &json!({"suspend": true}));
            }
            if held && !compared && view::ready_message(release).contains("suspended before RestoreConfig") {
                clock
                    .say("  held before the old servers start: every row, sequence and grant against the state before");
                compared = true;
                proof.compare_restored("good", "restored")?;
                return patch(kube, &json!({"suspend": false}));
            }
            Ok(())
        })
    })?;
    clock.part("the proof of the way back", |_| proof.finish_rollback("good", TO))?;
    let attempts = kube.list(NAMESPACE, "memoriaupgrades")?;
    let Some(attempt) = attempts.iter().find(|attempt| attempt["spec"]["to"] == BAD) else {
        bail!("there was no attempt to upgrade to {BAD}");
    };
    Ok(TakenBack {
        phase: ended.phase,
        message: ended.message,
        cause: attempt["status"]["failure"]["message"].as_str().unwrap_or_default().to_owned(),
        seconds: ended.seconds,
        writers_stopped_seconds: ended.writers_stopped_seconds,
        digest_before,
        digest_after: proof.server_digest("back")?,
    })
}

fn patch(kube: &Kube, spec: &Value) -> Result<()> {
    let patch = json!({"spec": spec}).to_string();
    kube.run(&["--namespace", NAMESPACE, "patch", "memoriarelease", RELEASE, "--type=merge", "-p", &patch]).map(drop)
}

impl TakenBack {
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.phase != "RolledBack" {
            problems.push(format!("the bad upgrade ended as {}: {}", self.phase, self.message));
        }
        if self.digest_before.is_none() || self.digest_before != self.digest_after {
            problems.push(format!("the servers ran {:?} before and {:?} after", self.digest_before, self.digest_after));
        }
        problems
    }

    pub fn answer(&self, proof: &Proof) -> Value {
        json!({
            "phase": self.phase,
            "cause": self.cause,
            "seconds": self.seconds,
            "writersStoppedSeconds": self.writers_stopped_seconds,
            "dataIdentical": proof.data_identical(),
            "nextInsertWorks": proof.next_insert_works(),
            "imageDigestBefore": self.digest_before,
            "imageDigestAfter": self.digest_after,
        })
    }
}
