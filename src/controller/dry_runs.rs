//! What the API server said to dry runs of plans, kept for a while: a plan is dry-run before its rehearsal, which may take
//! long, and opened after it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    api::{
        MemoriaUpgradeSpec,
        release::{CheckResult, Verdict},
    },
    upgrade::preflight::digest_plan,
};

/// A quota or a policy may have changed by then.
const KEPT: Duration = Duration::from_secs(600);

/// The latest that passed, by UID of the release.
#[derive(Default)]
pub struct DryRuns(Mutex<HashMap<String, Passed>>);

struct Passed {
    plan: String,
    at: Instant,
    results: Vec<CheckResult>,
}

impl DryRuns {
    /// What was said to the same plan.
    pub fn of(&self, plan: &MemoriaUpgradeSpec) -> Option<Vec<CheckResult>> {
        let key = key(plan)?;
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = all.get(&plan.release_uid)?;
        (passed.plan == key && passed.at.elapsed() < KEPT).then(|| passed.results.clone())
    }

    /// Keeps what was said, if it was good throughout.
    pub fn keep(&self, plan: &MemoriaUpgradeSpec, results: &[CheckResult]) {
        let Some(plan_key) = key(plan).filter(|_| results.iter().all(|check| check.result == Verdict::Passed)) else {
            return;
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, passed| passed.at.elapsed() < KEPT);
        let passed = Passed { plan: plan_key, at: Instant::now(), results: results.to_vec() };
        all.insert(plan.release_uid.clone(), passed);
    }
}

/// The same before and after a rehearsal, which changes nothing of what is written to the API server but the plan itself.
fn key(plan: &MemoriaUpgradeSpec) -> Option<String> {
    let mut plan = plan.clone();
    plan.checks.clear();
    plan.estimates = None;
    digest_plan(&plan).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::upgrade::Estimates, upgrade::world::World};

    #[test]
    fn what_passed_is_good_for_the_same_plan_rehearsed_and_for_no_other() {
        let check = |result| CheckResult { name: "admit-job-fence".into(), result, message: String::new() };
        let mut plan = World::new().plan;
        let runs = DryRuns::default();
        assert_eq!(runs.of(&plan), None);
        for bad in [Verdict::Failed, Verdict::Inconclusive] {
            runs.keep(&plan, &[check(Verdict::Passed), check(bad)]);
            assert_eq!(runs.of(&plan), None);
        }
        runs.keep(&plan, &[check(Verdict::Passed)]);
        plan.estimates = Some(Estimates::default());
        plan.checks.push(check(Verdict::Passed));
        assert_eq!(runs.of(&plan), Some(vec![check(Verdict::Passed)]));
        plan.jobs.pop();
        assert_eq!(runs.of(&plan), None);
    }
}
