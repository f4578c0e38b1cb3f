//! Times from recorded events: how long writers were stopped, and how much of an upgrade was the operator's own. Pure.
//!
//! All times are milliseconds of the recorder's clock, so an object's state begins when the watch told it.

use std::collections::BTreeMap;

use super::event::{Event, State, WORKLOADS, WRITERS};

/// The part of the clock that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub begin: u64,
    pub end: u64,
}

impl Window {
    pub fn millis(self) -> u64 {
        self.end.saturating_sub(self.begin)
    }
}

/// Until when a Job is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// Until Kubernetes says that it is over: the condition Complete or Failed.
    Condition,
    /// Until its pod has ended. What Kubernetes then takes to tell so, is held against the operator.
    Pod,
}

/// A stretch of the window in which nothing was under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub begin: u64,
    pub end: u64,
    /// What ended last before it, and what began first after it; `None` at the window's ends.
    pub after: Option<String>,
    pub before: Option<String>,
}

impl Gap {
    pub fn millis(&self) -> u64 {
        self.end - self.begin
    }
}

/// The operator's own share: the stretches of the window in which neither a Job nor a candidate nor a rollout, a change
/// of scale or the end of a workload's pod was under way.
pub fn gaps(events: &[Event], window: Window, job_end: JobEnd) -> Vec<Gap> {
    let mut busy = intervals(events, window, |state| under_way(state, job_end));
    busy.sort_by_key(|(begin, end, _)| (*begin, *end));
    let mut gaps = Vec::new();
    let (mut covered, mut last) = (window.begin, None);
    for (begin, end, object) in busy {
        if begin > covered {
            gaps.push(Gap { begin: covered, end: begin, after: last.clone(), before: Some(object.to_owned()) });
        }
        if end > covered || last.is_none() {
            covered = covered.max(end);
            last = Some(object.to_owned());
        }
    }
    if window.end > covered {
        gaps.push(Gap { begin: covered, end: window.end, after: last, before: None });
    }
    gaps
}

fn under_way(state: &State, job_end: JobEnd) -> bool {
    match state {
        State::Deployment { settled, .. } => !settled,
        State::WorkloadPod { terminating } => *terminating,
        State::CandidatePod { ready, terminating, ended } => *terminating || (!ready && !ended),
        State::JobPod { ended } => !ended,
        State::Job { begun, finished } => match job_end {
            JobEnd::Condition => !finished,
            JobEnd::Pod => !begun,
        },
        State::Gone | State::Flag { .. } | State::Release { .. } => false,
    }
}

/// When each object was in such a state, cut to the window: begin, end, object.
fn intervals(events: &[Event], window: Window, busy: impl Fn(&State) -> bool) -> Vec<(u64, u64, &str)> {
    let mut open: BTreeMap<&str, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        let object = event.object.as_str();
        match (busy(&event.state), open.contains_key(object)) {
            (true, false) => drop(open.insert(object, event.millis)),
            (false, true) => found.extend(open.remove(object).map(|begin| (begin, event.millis, object))),
            _ => {}
        }
    }
    found.extend(open.into_iter().map(|(object, begin)| (begin, u64::MAX, object)));
    let cut = found.into_iter().map(|(begin, end, object)| (begin.max(window.begin), end.min(window.end), object));
    cut.filter(|(begin, end, _)| begin < end).collect()
}

/// How long writers were stopped: from the moment when the first of them was told to (scaled below what it had, or
/// paused by the maintenance flag) until all of them had their replicas back, available, and the flag was off. A
/// rolling update stops nobody. When they are stopped again, the last return counts; writers that never came back count
/// until the window's end.
pub fn writers_stopped(events: &[Event], window: Window) -> u64 {
    let mut had: BTreeMap<&str, i64> = BTreeMap::new();
    let mut now: BTreeMap<&str, &State> = BTreeMap::new();
    let (mut stopped, mut back) = (None, None);
    for event in events.iter().filter(|event| event.millis <= window.end) {
        let object = event.object.as_str();
        if !is_writer(object) && !matches!(event.state, State::Flag { .. }) {
            continue;
        }
        if let (State::Deployment { wanted, .. }, true) = (&event.state, event.millis <= window.begin) {
            had.insert(object, *wanted);
        }
        now.insert(object, &event.state);
        if event.millis <= window.begin {
            continue;
        }
        let told = now.iter().any(|(object, state)| told_to_stop(state, had.get(object)));
        if told {
            stopped = stopped.or(Some(event.millis));
            back = None;
        } else if stopped.is_some() && now.values().all(|state| is_settled(state)) {
            back = back.or(Some(event.millis));
        }
    }
    stopped.map_or(0, |from| back.unwrap_or(window.end) - from)
}

/// When a pod of one of the operator's Jobs was first known to have ended, by a part of its name.
pub fn pod_ended(events: &[Event], name: &str) -> Option<u64> {
    let ended = |event: &&Event| event.object.contains(name) && event.state == State::JobPod { ended: true };
    events.iter().find(ended).map(|event| event.millis)
}

/// Since when, after `from`, every workload has had all its pods, available, and the maintenance flag was off. `None`
/// while one of them is at zero or not back. When they are stopped again, the last return counts.
pub fn serves_again(events: &[Event], from: u64) -> Option<u64> {
    let mut now: BTreeMap<&str, &State> = BTreeMap::new();
    let mut back = None;
    for event in events {
        now.insert(event.object.as_str(), &event.state);
        if event.millis <= from {
            continue;
        }
        let workloads = || WORKLOADS.iter().map(|name| now.get(format!("Deployment/{name}").as_str()));
        let wanted = |state: Option<&&State>| matches!(state, Some(State::Deployment { wanted, .. }) if *wanted > 0);
        let paused = now.values().any(|state| **state == State::Flag { maintenance: true });
        if paused || !workloads().all(wanted) {
            back = None;
        } else if workloads().flatten().all(|state| is_settled(state)) {
            back = back.or(Some(event.millis));
        }
    }
    back
}

fn is_writer(object: &str) -> bool {
    object.strip_prefix("Deployment/").is_some_and(|name| WRITERS.contains(&name))
}

fn told_to_stop(state: &State, had: Option<&i64>) -> bool {
    match state {
        State::Deployment { wanted, .. } => had.is_some_and(|had| wanted < had),
        State::Flag { maintenance } => *maintenance,
        _ => false,
    }
}

fn is_settled(state: &State) -> bool {
    !matches!(state, State::Deployment { settled: false, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { begin: 1_000, end: 10_000 };

    fn event(millis: u64, object: &str, state: State) -> Event {
        Event { millis, object: object.into(), state }
    }

    fn deployment(millis: u64, name: &str, wanted: i64, settled: bool) -> Event {
        event(millis, &format!("Deployment/{name}"), State::Deployment { wanted, settled })
    }

    fn job(millis: u64, begun: bool, finished: bool) -> Event {
        event(millis, "Job/j", State::Job { begun, finished })
    }

    fn own(events: &[Event], job_end: JobEnd) -> u64 {
        gaps(events, WINDOW, job_end).iter().map(Gap::millis).sum()
    }

    #[test]
    fn without_anything_under_way_all_of_it_is_the_operators() {
        let steady = [deployment(0, "memoria-server", 2, true)];
        assert_eq!(
            gaps(&steady, WINDOW, JobEnd::Condition),
            [Gap { begin: 1_000, end: 10_000, after: None, before: None }]
        );
    }

    #[test]
    fn what_overlaps_is_counted_once_and_gaps_know_their_neighbours() {
        let events = [
            deployment(0, "memoria-server", 2, true),
            job(1_100, false, false),
            job(1_200, true, false),
            // Begins while the Job runs, ends after it.
            deployment(3_000, "memoria-server", 0, false),
            job(4_000, true, true),
            deployment(5_000, "memoria-server", 0, true),
            deployment(5_300, "memoria-server", 2, false),
            deployment(10_500, "memoria-server", 2, true),
        ];
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(
            gaps(&events, WINDOW, JobEnd::Condition),
            [
                Gap { begin: 1_000, end: 1_100, after: None, before: name("Job/j") },
                Gap {
                    begin: 5_000,
                    end: 5_300,
                    after: name("Deployment/memoria-server"),
                    before: name("Deployment/memoria-server")
                },
            ]
        );
    }

    #[test]
    fn an_interval_within_another_ends_nothing() {
        let events = [
            deployment(1_000, "memoria-server", 0, false),
            job(2_000, true, false),
            job(3_000, true, true),
            deployment(9_000, "memoria-server", 0, true),
        ];
        let gaps = gaps(&events, WINDOW, JobEnd::Condition);
        assert_eq!(gaps.len(), 1);
        assert_eq!((gaps[0].begin, gaps[0].after.as_deref()), (9_000, Some("Deployment/memoria-server")));
    }

    #[test]
    fn between_a_pods_end_and_its_jobs_condition_the_two_rules_differ() {
        let pod = |millis, ended| event(millis, "Pod/j-1", State::JobPod { ended });
        let events = [
            job(1_000, false, false),
            job(1_500, true, false),
            pod(1_450, false),
            pod(8_000, true),
            job(9_000, true, true),
            event(9_500, "Job/j", State::Gone),
        ];
        let mut events = events.to_vec();
        events.sort_by_key(|event| event.millis);
        assert_eq!(own(&events, JobEnd::Condition), 1_000);
        assert_eq!(own(&events, JobEnd::Pod), 2_000);
    }

    #[test]
    fn a_terminating_pod_is_under_way_until_it_is_gone() {
        let pod = |millis, state| event(millis, "Pod/memoria-server-1", state);
        let events = [
            pod(0, State::WorkloadPod { terminating: false }),
            pod(1_000, State::WorkloadPod { terminating: true }),
            pod(9_000, State::Gone),
        ];
        assert_eq!(own(&events, JobEnd::Condition), 1_000);
    }

    #[test]
    fn a_candidate_is_under_way_until_it_is_ready_and_while_it_goes() {
        let pod = |millis, ready, terminating| {
            event(millis, "Pod/candidate", State::CandidatePod { ready, terminating, ended: false })
        };
        let events = [
            pod(1_000, false, false),
            pod(4_000, true, false),
            pod(4_200, true, true),
            event(10_000, "Pod/candidate", State::Gone),
        ];
        assert_eq!(own(&events, JobEnd::Condition), 200);
    }

    #[test]
    fn what_began_before_the_window_and_ends_after_it_covers_all_of_it() {
        let events = [job(200, true, false), job(20_000, true, true)];
        assert_eq!(own(&events, JobEnd::Condition), 0);
        assert_eq!(own(&[job(200, true, false), job(900, true, true)], JobEnd::Condition), 9_000);
    }

    #[test]
    fn writers_are_stopped_from_the_first_stop_to_the_last_return() {
        let events = [
            deployment(0, "memoria-server", 2, true),
            deployment(0, "memoria-worker", 2, true),
            deployment(2_000, "memoria-worker", 0, false),
            deployment(2_500, "memoria-server", 0, false),
            deployment(3_000, "memoria-worker", 0, true),
            deployment(6_000, "memoria-server", 2, false),
            deployment(7_000, "memoria-server", 2, true),
            deployment(7_500, "memoria-worker", 2, false),
            deployment(8_000, "memoria-worker", 2, true),
            deployment(8_100, "memoria-worker", 2, true),
        ];
        assert_eq!(writers_stopped(&events, WINDOW), 6_000);
    }

    #[test]
    fn paused_workers_are_stopped_writers() {
        let flag = |millis, maintenance| event(millis, "ConfigMap/memoria-flags", State::Flag { maintenance });
        let events = [flag(0, false), deployment(0, "memoria-worker", 2, true), flag(1_500, true), flag(4_000, false)];
        assert_eq!(writers_stopped(&events, WINDOW), 2_500);
    }

    #[test]
    fn a_rolling_update_stops_nobody_and_dashboards_do_not_write() {
        let events = [
            deployment(0, "memoria-server", 2, true),
            deployment(0, "memoria-dashboard", 1, true),
            deployment(2_000, "memoria-server", 2, false),
            deployment(2_100, "memoria-dashboard", 0, false),
            deployment(9_000, "memoria-server", 2, true),
        ];
        assert_eq!(writers_stopped(&events, WINDOW), 0);
    }

    #[test]
    fn an_unready_pod_after_the_return_is_no_second_stop() {
        let events = [
            deployment(0, "memoria-server", 2, true),
            deployment(2_000, "memoria-server", 0, true),
            deployment(3_000, "memoria-server", 2, true),
            deployment(5_000, "memoria-server", 2, false),
            deployment(6_000, "memoria-server", 2, true),
        ];
        assert_eq!(writers_stopped(&events, WINDOW), 1_000);
        let again = [deployment(7_000, "memoria-server", 1, true), deployment(8_000, "memoria-server", 2, true)];
        assert_eq!(writers_stopped(&[events.as_slice(), &again].concat(), WINDOW), 6_000);
    }

    #[test]
    fn writers_that_stay_away_count_to_the_end() {
        let events = [deployment(0, "memoria-server", 2, true), deployment(4_000, "memoria-server", 0, false)];
        assert_eq!(writers_stopped(&events, WINDOW), 6_000);
    }

    #[test]
    fn replicas_from_before_the_window_are_what_must_come_back() {
        let events = [
            deployment(0, "memoria-server", 2, true),
            deployment(2_000, "memoria-server", 0, false),
            deployment(3_000, "memoria-server", 1, false),
            deployment(4_000, "memoria-server", 1, true),
            deployment(5_000, "memoria-server", 2, false),
            deployment(6_000, "memoria-server", 2, true),
        ];
        assert_eq!(writers_stopped(&events, WINDOW), 4_000);
    }

    #[test]
    fn a_version_serves_again_when_all_workloads_are_back_and_the_flag_is_off() {
        let flag = |millis, maintenance| event(millis, "ConfigMap/memoria-flags", State::Flag { maintenance });
        let mut events = vec![
            deployment(0, "memoria-server", 0, true),
            deployment(0, "memoria-worker", 0, true),
            deployment(0, "memoria-dashboard", 0, true),
            flag(0, true),
            deployment(2_000, "memoria-server", 2, false),
            deployment(4_000, "memoria-server", 2, true),
            deployment(4_500, "memoria-dashboard", 1, true),
            deployment(5_000, "memoria-worker", 2, true),
        ];
        assert_eq!(serves_again(&events, 1_000), None);
        events.push(flag(5_500, false));
        assert_eq!(serves_again(&events, 1_000), Some(5_500));
        // A pod that is unready for a moment is no second stop; a scale to zero is.
        events.push(deployment(6_000, "memoria-server", 2, false));
        events.push(deployment(6_500, "memoria-server", 2, true));
        assert_eq!(serves_again(&events, 1_000), Some(5_500));
        events.push(deployment(7_000, "memoria-server", 0, true));
        assert_eq!(serves_again(&events, 1_000), None);
    }

    #[test]
    fn a_failed_steps_pod_is_found_by_its_name() {
        let pod = |millis, name: &str, ended| event(millis, &format!("Pod/{name}"), State::JobPod { ended });
        let events = [
            pod(1, "memoria-1-snapshot-abcde", true),
            pod(2, "memoria-1-migrate-abcde", false),
            pod(3, "memoria-1-migrate-abcde", true),
            pod(4, "memoria-1-migrate-abcde", true),
        ];
        assert_eq!(pod_ended(&events, "-migrate-"), Some(3));
        assert_eq!(pod_ended(&events, "-restore-"), None);
    }
}
