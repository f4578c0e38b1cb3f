//! What the metrics tell of each release: where it stands, how long its phases took, and whether it holds. The labels are
//! the release and words from closed lists; what a release told goes with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::api::{MemoriaReleaseStatus, MemoriaUpgradeStatus, conditions, release::IngestionState, upgrade::TableLate};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Release {
    namespace: String,
    release: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct InPhase {
    namespace: String,
    release: String,
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Because {
    namespace: String,
    release: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Ended {
    namespace: String,
    release: String,
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Checked {
    namespace: String,
    release: String,
    check: String,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct WrittenLate {
    namespace: String,
    release: String,
    table: String,
    change: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// Everything that is told of releases.
#[derive(Default)]
pub struct Metrics {
    ready: Family<Release, Gauge>,
    phase: Family<InPhase, Gauge>,
    held: Family<Because, Gauge>,
    stopped: Family<Release, Gauge>,
    stopped_seconds: Family<Release, Seconds>,
    phase_seconds: Family<InPhase, Seconds>,
    checks: Family<Checked, Gauge>,
    attempts: Family<Ended, Counter>,
    late: Family<WrittenLate, Gauge>,
    estimate: Family<Release, Seconds>,
    at_risk: Family<Release, Gauge>,
    known: Mutex<BTreeMap<Release, Known>>,
}

/// The label sets that a release has, to take them away again.
#[derive(Default)]
struct Known {
    phase: Option<InPhase>,
    held: Option<Because>,
    durations: BTreeSet<InPhase>,
    checks: BTreeSet<Checked>,
    ended: BTreeSet<Ended>,
    late: BTreeSet<WrittenLate>,
}

impl Metrics {
    /// Registers all of it.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("release_ready", "1 while the desired version runs and was verified", metrics.ready.clone());
        registry.register("release_phase", "1 for the phase that a release is in", metrics.phase.clone());
        registry.register("release_held", "1 while a release holds, with the reason", metrics.held.clone());
        registry.register(
            "release_writers_stopped",
            "1 while an attempt keeps the writers of a release stopped",
            metrics.stopped.clone(),
        );
        registry.register_with_unit(
            "attempt_writers_stopped",
            "How long the latest attempt kept writers stopped",
            Unit::Seconds,
            metrics.stopped_seconds.clone(),
        );
        registry.register_with_unit(
            "phase_duration",
            "How long a phase of the latest attempt took that ran it",
            Unit::Seconds,
            metrics.phase_seconds.clone(),
        );
        registry.register("check_result", "1 for what a check said last", metrics.checks.clone());
        registry.register("attempts", "Attempts that ended while this operator led", metrics.attempts.clone());
        registry.register(
            "attempt_late_rows",
            "Rows that clients wrote after the latest attempt let them in, as its way back found and kept them aside",
            metrics.late.clone(),
        );
        registry.register_with_unit(
            "rollback_estimate",
            "How long writers would be stopped by taking the open attempt back now",
            Unit::Seconds,
            metrics.estimate.clone(),
        );
        registry.register(
            "rollback_rows_at_risk",
            "Rows that taking the open attempt back would lose, as counted last",
            metrics.at_risk.clone(),
        );
        metrics
    }

    /// Where a release stands.
    pub fn release(&self, namespace: &str, name: &str, status: &MemoriaReleaseStatus) {
        let key = Release { namespace: namespace.to_owned(), release: name.to_owned() };
        let ready = status.conditions.iter().any(|c| c.type_ == conditions::READY && c.status == "True");
        self.ready.get_or_create(&key).set(ready.into());
        let stopped = status.ingestion.as_ref().is_some_and(|ingestion| ingestion.state == IngestionState::Stopped);
        self.stopped.get_or_create(&key).set(stopped.into());
        if let Some(seconds) = status.attempt.as_ref().and_then(|attempt| attempt.writers_stopped_seconds) {
            #[expect(clippy::cast_precision_loss, reason = "seconds of an upgrade")]
            self.stopped_seconds.get_or_create(&key).set(seconds as f64);
        }
        let rollback = status.rollback.as_ref();
        match rollback.and_then(|rollback| rollback.estimate_seconds) {
            #[expect(clippy::cast_precision_loss, reason = "seconds of a restore")]
            Some(seconds) => {
                self.estimate.get_or_create(&key).set(seconds as f64);
            }
            None => {
                self.estimate.remove(&key);
            }
        }
        match rollback.and_then(|rollback| rollback.rows_at_risk) {
            Some(rows) => {
                self.at_risk.get_or_create(&key).set(rows);
            }
            None => {
                self.at_risk.remove(&key);
            }
        }
        let in_phase = |phase: String| {
            let (namespace, release) = (namespace.to_owned(), name.to_owned());
            InPhase { namespace, release, phase }
        };
        let phase = status.phase.clone().map(in_phase);
        let held = status.hold.as_ref().map(|hold| Because {
            namespace: namespace.to_owned(),
            release: name.to_owned(),
            reason: hold.reason.clone(),
        });
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(key).or_default();
        if known.phase != phase {
            if let Some(old) = &known.phase {
                self.phase.remove(old);
            }
            if let Some(new) = &phase {
                self.phase.get_or_create(new).set(1);
            }
            known.phase = phase;
        }
        if known.held != held {
            if let Some(old) = &known.held {
                self.held.remove(old);
            }
            if let Some(new) = &held {
                self.held.get_or_create(new).set(1);
            }
            known.held = held;
        }
    }

    /// What changed in an attempt's journal.
    pub fn journal(&self, namespace: &str, name: &str, before: &MemoriaUpgradeStatus, after: &MemoriaUpgradeStatus) {
        let own = || (namespace.to_owned(), name.to_owned());
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(Release { namespace: own().0, release: own().1 }).or_default();
        for (at, record) in after.phases.iter().enumerate() {
            let ended_before = before.phases.get(at).is_some_and(|old| old.finished_at.is_some());
            let Some(finished) = record.finished_at.as_ref().filter(|_| !ended_before) else { continue };
            let (namespace, release) = own();
            let labels = InPhase { namespace, release, phase: record.name.clone() };
            let took = finished.0.duration_since(record.started_at.0).as_secs_f64();
            self.phase_seconds.get_or_create(&labels).set(took);
            known.durations.insert(labels);
        }
        if before.checks != after.checks {
            for old in std::mem::take(&mut known.checks) {
                self.checks.remove(&old);
            }
            for check in &after.checks {
                let (namespace, release) = own();
                let result = format!("{:?}", check.result);
                let labels = Checked { namespace, release, check: check.name.clone(), result };
                self.checks.get_or_create(&labels).set(1);
                known.checks.insert(labels);
            }
        }
        let late = |journal: &MemoriaUpgradeStatus| journal.rollback.clone().unwrap_or_default().late_tables;
        if late(before) != late(after) {
            for old in std::mem::take(&mut known.late) {
                self.late.remove(&old);
            }
            for TableLate { table, inserted, updated, deleted, .. } in late(after) {
                for (change, rows) in [("inserted", inserted), ("updated", updated), ("deleted", deleted)] {
                    let (namespace, release) = own();
                    let labels = WrittenLate { namespace, release, table: table.clone(), change };
                    self.late.get_or_create(&labels).set(rows);
                    known.late.insert(labels);
                }
            }
        }
        if let (None, Some(outcome)) = (before.outcome, after.outcome) {
            let (namespace, release) = own();
            let labels = Ended { namespace, release, outcome: format!("{outcome:?}") };
            self.attempts.get_or_create(&labels).inc();
            known.ended.insert(labels);
        }
    }

    /// A release that is gone tells nothing more.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = Release { namespace: namespace.to_owned(), release: name.to_owned() };
        let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&key) else { return };
        self.ready.remove(&key);
        self.stopped.remove(&key);
        self.stopped_seconds.remove(&key);
        self.estimate.remove(&key);
        self.at_risk.remove(&key);
        if let Some(labels) = &known.phase {
            self.phase.remove(labels);
        }
        if let Some(labels) = &known.held {
            self.held.remove(labels);
        }
        for labels in &known.durations {
            self.phase_seconds.remove(labels);
        }
        for labels in &known.checks {
            self.checks.remove(labels);
        }
        for labels in &known.ended {
            self.attempts.remove(labels);
        }
        for labels in &known.late {
            self.late.remove(labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Metrics;
    use crate::{
        api::{MemoriaReleaseStatus, MemoriaUpgradeStatus},
        telemetry,
    };

    #[test]
    fn a_release_tells_where_it_stands_and_nothing_once_it_is_gone() {
        let mut registry = telemetry::registry();
        let metrics = Metrics::new(&mut registry);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let at = "2026-11-22T01:00:00Z";
        let held: MemoriaReleaseStatus = serde_json::from_value(json!({
            "phase": "Start", "ingestion": {"state": "Stopped", "stoppedSince": at},
            "hold": {"since": at, "phase": "Start", "reason": "CheckInconclusive", "message": "m", "outcome": "Keep"},
            "rollback": {"toVersion": "0.9.0", "estimateSeconds": 90, "rowsAtRisk": 1204},
        }))
        .unwrap();
        metrics.release("ns", "memoria", &held);
        let labels = "namespace=\"ns\",release=\"memoria\"";
        for line in [
            format!("memoria_operator_release_ready{{{labels}}} 0"),
            format!("memoria_operator_release_writers_stopped{{{labels}}} 1"),
            format!("memoria_operator_release_phase{{{labels},phase=\"Start\"}} 1"),
            format!("memoria_operator_release_held{{{labels},reason=\"CheckInconclusive\"}} 1"),
            format!("memoria_operator_rollback_estimate_seconds{{{labels}}} 90.0"),
            format!("memoria_operator_rollback_rows_at_risk{{{labels}}} 1204"),
        ] {
            assert!(text().contains(&line), "{line}\n{}", text());
        }
        let journal = |finished: Option<&str>, outcome: Option<&str>| -> MemoriaUpgradeStatus {
            serde_json::from_value(json!({
                "phases": [{"name": "Start", "state": "Passed", "startedAt": at, "finishedAt": finished}],
                "checks": [{"name": "queue-depth", "result": "Passed", "message": "value 3"}],
                "outcome": outcome,
            }))
            .unwrap()
        };
        metrics.journal("ns", "memoria", &journal(None, None), &journal(Some("2026-11-22T01:00:42Z"), None));
        metrics.journal("ns", "memoria", &MemoriaUpgradeStatus::default(), &journal(None, Some("Succeeded")));
        metrics.release(
            "ns",
            "memoria",
            &MemoriaReleaseStatus { phase: Some("Succeeded".into()), ..Default::default() },
        );
        for line in [
            format!("memoria_operator_phase_duration_seconds{{{labels},phase=\"Start\"}} 42.0"),
            format!("memoria_operator_check_result{{{labels},check=\"queue-depth\",result=\"Passed\"}} 1"),
            format!("memoria_operator_attempts_total{{{labels},outcome=\"Succeeded\"}} 1"),
            format!("memoria_operator_release_phase{{{labels},phase=\"Succeeded\"}} 1"),
        ] {
            assert!(text().contains(&line), "{line}\n{}", text());
        }
        assert!(
            !text().contains("release_held{")
                && !text().contains("rollback_estimate_seconds{")
                && !text().contains("rollback_rows_at_risk{")
                && !text().contains("release_phase{namespace=\"ns\",release=\"memoria\",phase=\"Start\"")
        );
        let late = |inserted: i64| -> MemoriaUpgradeStatus {
            let table = json!({"table": "public.agents", "inserted": inserted, "updated": 0, "deleted": 1});
            serde_json::from_value(json!({"rollback": {"lateTables": [table]}})).unwrap()
        };
        metrics.journal("ns", "memoria", &MemoriaUpgradeStatus::default(), &late(7));
        let line = |change: &str, rows: u32| {
            format!("memoria_operator_attempt_late_rows{{{labels},table=\"public.agents\",change=\"{change}\"}} {rows}")
        };
        assert!(text().contains(&line("inserted", 7)) && text().contains(&line("deleted", 1)), "{}", text());
        metrics.journal("ns", "memoria", &late(7), &MemoriaUpgradeStatus::default());
        assert!(!text().contains("late_rows{"), "the next attempt has none: {}", text());
        metrics.journal("ns", "memoria", &MemoriaUpgradeStatus::default(), &late(8));
        metrics.forget("ns", "memoria");
        assert!(!text().contains("release=\"memoria\""), "{}", text());
    }
}
