//! What must hold when an upgrade with a fault has ended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memoria_operator::{
    api::{
        MemoriaRelease, MemoriaUpgradeStatus,
        upgrade::{Category, Failure, Outcome as Ended},
    },
    upgrade::phase::{FORWARD, IMAGE_BUMP},
};

use super::{
    during::{During, LATE, disturb},
    faults::{End, Fault},
};
use crate::{
    Outcome,
    audit::Mark,
    checkers::Captured,
    failures::untouched,
    rollback::{journal, restored_but_for_sequences, restored_exactly},
    site::{FROM, RELEASE, Site, TO, UPGRADED, condition, standing},
};

/// How long nothing may be written once it is settled.
const SILENCE: Duration = Duration::from_secs(10);

/// Lets the fault happen, waits for the end, and looks at everything.
pub async fn meet(site: &Site, fault: &Fault, before: &Captured) -> Outcome {
    match &fault.end {
        End::Refused(words) => {
            disturb(site, fault.during).await?;
            refused(site, before, words).await?;
        }
        End::Succeeds => {
            disturb(site, fault.during).await?;
            site.until_ended(Ended::Succeeded).await?;
            Captured::now(site).await?.is_what_an_upgrade_makes_of(before, site, FROM, TO).await?;
            site.maintenance_is_off().await?;
        }
        End::Resumed(phase, category) => {
            disturb(site, fault.during).await?;
            let release = site.until_ended(Ended::Resumed).await?;
            ensure!(standing(&release).1 == "Resumed", "{:?}", standing(&release));
            failed(&journal(site).await?, phase, *category)?;
            untouched(site, before).await?;
        }
        End::Back(phase, category) => {
            comes_back(site, fault.during, before).await?;
            let release = site.until_ended(Ended::RolledBack).await?;
            ensure!(standing(&release).1 == "RolledBack", "{:?}", standing(&release));
            let journal = journal(site).await?;
            failed(&journal, phase, *category)?;
            is_proved(&journal)?;
            is_told(&journal, fault.during)?;
            untouched(site, before).await?;
        }
        End::Ordered => ordered(site, fault.during, before).await?,
    }
    is_silent(site).await
}

/// Lets the fault happen, and proves the restore, which must not need a person.
async fn comes_back(site: &Site, during: During, before: &Captured) -> Outcome {
    let restored = async {
        match during {
            During::Ingestion | During::LateWrites => restored_but_for_sequences(site, before).await,
            _ => restored_exactly(site, before).await,
        }
    };
    let back = async { tokio::try_join!(restored, disturb(site, during)).map(drop) };
    tokio::select! {
        done = back => done,
        asked = is_asked(site) => bail!("a person is asked: {}", asked?),
    }
}

/// Waits for a question; a release that is gone has none.
async fn is_asked(site: &Site) -> Result<String> {
    loop {
        let release = site.api::<MemoriaRelease>().get_opt(RELEASE).await?;
        if let Some(question) = release.as_ref().and_then(|release| condition(release, "AwaitingDecision")) {
            return Ok(question);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn refused(site: &Site, before: &Captured, words: &[&str]) -> Outcome {
    let release =
        site.until("a verdict", UPGRADED, |release| condition(release, "Stalled").map(|_| release.clone())).await?;
    let (phase, reason, message) = standing(&release);
    ensure!(reason == "PreFlightFailed", "{phase}/{reason}: {message}");
    for word in words {
        ensure!(message.contains(word), "the message does not name {word:?}: {message}");
    }
    untouched(site, before).await
}

fn failed<'a>(journal: &'a MemoriaUpgradeStatus, phase: &str, category: Category) -> Result<&'a Failure> {
    let failure = journal.failure.as_ref().context("a failure")?;
    ensure!(failure.phase == phase && failure.category == category, "{failure:?}");
    Ok(failure)
}

/// What was restored, or found to be unchanged, has the snapshot's digest.
fn is_proved(journal: &MemoriaUpgradeStatus) -> Result<()> {
    let rollback = journal.rollback.as_ref().context("a rollback record")?;
    let digest = journal.snapshot.as_ref().map(|snapshot| snapshot.data_digest.clone());
    ensure!(digest.is_some() && rollback.data_digest == digest, "{rollback:?} is not {digest:?}");
    Ok(())
}

/// The journal knows what was done to the attempt.
fn is_told(journal: &MemoriaUpgradeStatus, during: During) -> Result<()> {
    let rollback = journal.rollback.as_ref().context("a rollback record")?;
    match during {
        During::LateWrites => {
            let counted = [rollback.late_inserted, rollback.late_updated, rollback.late_deleted];
            let all = counted.iter().zip(LATE).all(|(counted, written)| *counted >= i64::from(written));
            ensure!(all, "{counted:?} rows are counted, {LATE:?} were written");
        }
        During::RestoreKilled { times } => {
            let restore = journal.phases.iter().find(|record| record.name == "ImportSnapshot").context("the phase")?;
            let lost = restore.done.keys().filter(|key| key.starts_with("lost-")).count();
            ensure!(lost >= times, "the journal knows of {lost} lost restores, {times} were killed");
        }
        _ => {}
    }
    Ok(())
}

/// A person ends it: what comes back depends on how far it came.
async fn ordered(site: &Site, during: During, before: &Captured) -> Outcome {
    let (phase, deleted) = match during {
        During::Abort(phase) => (phase, false),
        During::Deletion(phase) => (phase, true),
        _ => bail!("nobody orders anything"),
    };
    let place = |name: &str| FORWARD.iter().position(|phase| phase.name == name);
    let moved = place(phase) >= place(IMAGE_BUMP);
    if moved {
        comes_back(site, during, before).await?;
    } else {
        disturb(site, during).await?;
    }
    let expected = if moved { Ended::RolledBack } else { Ended::Resumed };
    match deleted {
        false => site.until_ended(expected).await.map(drop)?,
        true => gone(site).await?,
    }
    if place(phase).is_none() {
        ensure!(site.attempt().await.is_err(), "an attempt was opened");
        return untouched(site, before).await;
    }
    let journal = journal(site).await?;
    ensure!(journal.outcome == Some(expected), "it ended as {:?}: {:?}", journal.outcome, journal.message);
    let failure = journal.failure.as_ref().context("why it ended")?;
    let who = if deleted { "deleted" } else { "enough" };
    ensure!(failure.category == Category::Decision && failure.message.contains(who), "{failure:?}");
    if moved {
        is_proved(&journal)?;
    }
    untouched(site, before).await
}

async fn gone(site: &Site) -> Outcome {
    let end = Instant::now() + UPGRADED;
    while let Some(release) = site.api::<MemoriaRelease>().get_opt(RELEASE).await? {
        ensure!(Instant::now() < end, "the release stays: {:?}", standing(&release));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// Nothing is written once it is settled.
async fn is_silent(site: &Site) -> Outcome {
    let mark = Mark::now()?;
    tokio::time::sleep(SILENCE).await;
    let mut writes = mark.since()?;
    writes.retain(|write| write.is_the_operators() && write.succeeded());
    writes.retain(|write| write.object_ref.as_ref().is_some_and(|object| object.namespace == site.namespace));
    ensure!(writes.is_empty(), "{} writes although it is settled: {writes:#?}", writes.len());
    Ok(())
}
