//! The operator and the attempts' Jobs die at random instants, and every attempt comes to a correct end: upgraded, or
//! everything as before, decided by the independent checkers; never both, never stuck.
//!
//! `MEMORIA_TEST_KILLS` says how many kills, `MEMORIA_TEST_SEED` which. The seed, which is printed, decides databases,
//! versions, what is hunted and after how many seconds it dies. What a second of an attempt does is the cluster's, so the
//! same seed gives the same orders and not the same instants of the operator's.

use std::{collections::BTreeMap, convert::Infallible, env, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use memoria_operator::api::{
    MemoriaRelease, MemoriaUpgradeStatus, marks,
    upgrade::{Category, Outcome as Ended, PhaseState},
};

use crate::{
    Outcome,
    audit::Mark,
    checkers::Captured,
    dice::Dice,
    environment,
    failures::untouched,
    good::is_upgraded,
    killed,
    rollback::{ALTERS_THEN_CRASHES, BAD_MIGRATION, BOOTSTRAP_FAILS, SILENT_MIGRATION, journal, restored_exactly},
    site::{FROM, Options, SOON, Site, TO, UPGRADED, condition, ready, standing, with_site},
    sqlite::SQLITE,
};

/// Kills where nothing else is asked for: enough to see every database and both kinds of versions.
const FEW: u64 = 10;
/// Kills in one attempt, at most. Attempts of fewer kills are more attempts.
const IN_ONE: u64 = 8;
/// Attempts that even a few kills are spread over: both databases, a failing and a good version each.
const ATTEMPTS: u64 = 4;
/// Seconds before a kill, at least, and over how many on average all kills of one attempt are spread: about what one
/// lasts that nobody disturbs.
const PAUSE: u64 = 5;
const SPREAD: u64 = 80;
/// More rows than there are.
const BUDGET: i64 = 100_000;
/// Versions that fail, and the phase in which they do when nothing is killed.
const FAILING: [(&str, &str); 4] = [
    (BAD_MIGRATION, "Migrate"),
    (ALTERS_THEN_CRASHES, "Start"),
    (SILENT_MIGRATION, "Migrate"),
    (BOOTSTRAP_FAILS, "Verification"),
];

#[tokio::test]
async fn operator_and_jobs_killed_at_random_instants_leave_every_attempt_at_a_correct_end() -> Outcome {
    let kills = number("MEMORIA_TEST_KILLS")?.unwrap_or(FEW);
    let dice = Dice::new().map_err(anyhow::Error::msg)?;
    let again = format!("{dice} MEMORIA_TEST_KILLS={kills}");
    println!("{kills} kills; the same ones again: {again}");
    let mut hunt = Hunt { dice, left: kills, in_one: kills.div_ceil(ATTEMPTS).min(IN_ONE), tally: Tally::default() };
    let mut round = 0;
    while hunt.left > 0 {
        let options = if round % 2 == 0 { Options::default() } else { SQLITE };
        let (failing, phase) = FAILING[usize::try_from(hunt.dice.below(FAILING.len() as u64))?];
        let result = with_site(&format!("kills-{round}"), options, async |site| {
            adopt(site).await?;
            attempt(site, &mut hunt, failing, Some(phase)).await?;
            attempt(site, &mut hunt, TO, None).await?;
            environment::remove(&site.namespace).await
        })
        .await;
        hunt.tally.tell();
        result.with_context(|| again.clone())?;
        round += 1;
    }
    Ok(())
}

/// Adopts what runs. A failure after Start shall not wait for a person's word about the rows that starting servers rewrite.
async fn adopt(site: &Site) -> Outcome {
    let mut release = site.new_release()?;
    release.spec.rollback.data_loss_budget.rows = BUDGET;
    site.create(&release).await?;
    site.until("adopted", SOON, |release| ready(release).then_some(())).await
}

fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(name) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{name}={text} is no number"))
}

/// What is still to be killed, and what was.
struct Hunt {
    dice: Dice,
    left: u64,
    in_one: u64,
    tally: Tally,
}

/// Victims and ends, counted.
#[derive(Default)]
struct Tally {
    victims: BTreeMap<String, usize>,
    ends: BTreeMap<String, usize>,
}

impl Tally {
    fn tell(&self) {
        println!("killed: {:?}; ends: {:?}", self.victims, self.ends);
    }
}

/// Steps whose Jobs' pods were killed; the operator's kills are not in it.
type Killed = Vec<String>;

/// One attempt under fire, judged at its end; then the site runs the old version again, or the new one for good.
async fn attempt(site: &Site, hunt: &mut Hunt, version: &str, fails_in: Option<&str>) -> Outcome {
    if hunt.left == 0 {
        return Ok(());
    }
    let before = Captured::now(site).await?;
    let mark = Mark::now()?;
    // Where only the operator dies, the end must be that of an undisturbed attempt.
    let jobs_too = hunt.dice.below(3) > 0;
    let orders = orders(&mut hunt.dice, hunt.in_one.min(hunt.left), jobs_too);
    site.say(&format!("upgrade to {version}, to be disturbed by {orders:?}"));
    site.set_version(version).await?;
    let mut victims = Vec::new();
    let ended = tokio::select! {
        failed = carry_out(site, &orders, &mut victims) => match failed { Ok(never) => match never {}, Err(error) => return Err(error) },
        ended = ends(site, &before) => ended?,
    };
    hunt.left -= victims.len() as u64;
    let killed: Killed = victims.iter().flatten().cloned().collect();
    for victim in victims {
        *hunt.tally.victims.entry(victim.unwrap_or_else(|| "operator".to_owned())).or_default() += 1;
    }
    let journal = journal(site).await?;
    let outcome = journal.outcome.with_context(|| format!("it has no end: {:?}", standing(&ended.release)))?;
    site.say(&format!("ended as {outcome:?}, failure: {:?}", journal.failure));
    judged(&journal, outcome, fails_in, &killed)?;
    migrates_once(site, &mark)?;
    match outcome {
        Ended::Succeeded => is_upgraded(site, &ended.release, &before).await?,
        _ => {
            ensure!(ended.compared || outcome != Ended::RolledBack, "it went back before anybody could compare");
            untouched(site, &before).await?;
            site.set_version(FROM).await?;
            site.until("Ready", SOON, |release| ready(release).then_some(())).await?;
        }
    }
    *hunt.tally.ends.entry(format!("{outcome:?}")).or_default() += 1;
    Ok(())
}

/// How the attempt ended.
struct EndSeen {
    release: MemoriaRelease,
    /// The restored data was compared bit by bit before an old server started.
    compared: bool,
}

/// Waits for the end. On a way back it is held, and the data must then be that of before to the bit.
async fn ends(site: &Site, before: &Captured) -> Result<EndSeen> {
    let compared = site
        .until("the way back or the end", UPGRADED, |release| match standing(release).0.as_str() {
            "ImportSnapshot" => Some(true),
            _ => settled(release).then_some(false),
        })
        .await?;
    if compared {
        restored_exactly(site, before).await?;
    }
    Ok(EndSeen { release: site.until_settled(UPGRADED).await?, compared })
}

fn settled(release: &MemoriaRelease) -> bool {
    ready(release) || condition(release, "Stalled").is_some()
}

/// Whether such an end may follow from what was killed.
fn judged(journal: &MemoriaUpgradeStatus, outcome: Ended, fails_in: Option<&str>, killed: &Killed) -> Outcome {
    let failure = journal.failure.as_ref();
    let moved = journal.phases.iter().any(|record| record.name == "ImageBump");
    match outcome {
        Ended::Succeeded => {
            ensure!(fails_in.is_none() && failure.is_none(), "a version that fails succeeded: {failure:?}");
            ensure!(journal.rollback.is_none(), "it succeeded and went back: {:?}", journal.rollback);
        }
        Ended::RolledBack => {
            ensure!(moved && journal.rollback.is_some(), "there was nothing to take back: {failure:?}")
        }
        Ended::Resumed => ensure!(!moved, "it resumed although the image had moved: {failure:?}"),
        other => bail!("nothing that was killed may end as {other:?}: {failure:?}"),
    }
    if killed.is_empty() {
        let expected = if fails_in.is_some() { Ended::RolledBack } else { Ended::Succeeded };
        let phase = failure.map(|failure| failure.phase.as_str());
        ensure!(
            outcome == expected && phase == fails_in,
            "undisturbed it ends as {expected:?}: {outcome:?}, {failure:?}"
        );
        ensure!(failure.is_none_or(|failure| failure.category == Category::Candidate), "{failure:?}");
    }
    // A migration that died may have done anything, unless the guard's verdict stood already; what it did is looked at then.
    let judged = journal.phases.iter().any(|record| record.name == "Migrate" && record.state == PhaseState::Passed);
    if killed.iter().any(|step| step == "migrate") && !judged {
        ensure!(outcome == Ended::RolledBack, "its migration was killed, and it ended as {outcome:?}");
        let surroundings = failure.is_some_and(|failure| failure.category == Category::Environment);
        ensure!(fails_in == Some("Migrate") || surroundings, "the version is blamed for the kill: {failure:?}");
    }
    Ok(())
}

/// At most one migrate effect an attempt: whatever was killed, its Job was made once.
fn migrates_once(site: &Site, mark: &Mark) -> Outcome {
    let created = killed::created(site, mark)?;
    let again: Vec<_> = created.iter().filter(|(name, times)| name.ends_with("-migrate") && **times > 1).collect();
    ensure!(again.is_empty(), "a migration was started again: {again:?}");
    Ok(())
}

/// After so many seconds: a running Job of the attempt dies where there is one, else (or instead) the operator.
#[derive(Debug, Clone, Copy)]
struct Order {
    after: u64,
    job: bool,
    /// Which of several running pods.
    which: usize,
}

fn orders(dice: &mut Dice, count: u64, jobs_too: bool) -> Vec<Order> {
    let longest = (2 * SPREAD / count).saturating_sub(PAUSE).max(PAUSE);
    let order = |_| {
        let after = PAUSE + dice.below(longest - PAUSE + 1);
        let (job, which) = (dice.below(2) == 0, usize::try_from(dice.next()).unwrap_or_default());
        Order { after, job: job && jobs_too, which }
    };
    (0..count).map(order).collect()
}

/// Kills without grace, one order after the other, and then waits for ever. A step is noted before its pod dies, `None`
/// for the operator.
async fn carry_out(site: &Site, orders: &[Order], victims: &mut Vec<Option<String>>) -> Result<Infallible> {
    for order in orders {
        tokio::time::sleep(Duration::from_secs(order.after)).await;
        let running = if order.job { running(site).await? } else { Vec::new() };
        match running.get(order.which.checked_rem(running.len()).unwrap_or_default()) {
            Some(pod) => {
                let step = pod.labels().get(marks::STEP_LABEL).cloned().unwrap_or_default();
                site.say(&format!("killing {} in {}", pod.name_any(), standing(&site.release().await?).0));
                victims.push(Some(step));
                let gone = site.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
                match gone {
                    // It ended and was cleaned up in between: nothing was killed.
                    Err(kube::Error::Api(error)) if error.code == 404 => drop(victims.pop()),
                    other => drop(other?),
                }
            }
            None => {
                victims.push(None);
                killed::kill(site, &standing(&site.release().await?).0).await?;
            }
        }
    }
    std::future::pending().await
}

/// Pods of the latest attempt's Jobs that run, by name.
async fn running(site: &Site) -> Result<Vec<Pod>> {
    let Ok(attempt) = site.attempt().await else { return Ok(Vec::new()) };
    let of_jobs = format!("{}={},job-name", marks::ATTEMPT_LABEL, attempt.name_any());
    let mut pods = site.api::<Pod>().list(&ListParams::default().labels(&of_jobs)).await?.items;
    pods.retain(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    });
    pods.sort_by_key(ResourceExt::name_any);
    Ok(pods)
}
