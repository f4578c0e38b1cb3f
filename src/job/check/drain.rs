//! Whether a number that is still too high falls fast enough: a straight line through its last samples.

use std::{collections::VecDeque, time::Duration};

/// Samples that the line is drawn through.
const MOST: usize = 12;
/// Fewer say nothing about a direction.
const LEAST: usize = 3;
/// How finely the time to come is searched.
const STEPS: u32 = 24;

/// The last samples of one check.
#[derive(Clone, Default)]
pub struct Drain(VecDeque<(Duration, f64)>);

/// Where a falling number goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Projection {
    /// By how much it falls in a second.
    pub per_second: f64,
    /// Until it passes.
    pub passes_in: Duration,
}

impl Drain {
    /// A number and when it was seen, counted from the check's begin.
    pub fn add(&mut self, at: Duration, value: f64) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back((at, value));
    }

    /// Forgets what was seen: there is a gap, or it passes.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// When, within `room`, a number that goes on falling as it does will pass. `None`: it does not fall, or not fast
    /// enough, or too little was seen.
    pub fn projection(&self, room: Duration, passes: impl Fn(f64) -> bool) -> Option<Projection> {
        let (now, slope) = self.line()?;
        if slope >= 0.0 {
            return None;
        }
        let in_time = |step: u32| room * step / STEPS;
        let step = (1..=STEPS).find(|step| passes((now + slope * in_time(*step).as_secs_f64()).max(0.0)))?;
        Some(Projection { per_second: -slope, passes_in: in_time(step) })
    }

    /// Least squares: the line's height at the last sample, and its slope by the second.
    fn line(&self) -> Option<(f64, f64)> {
        let (last, _) = *self.0.back()?;
        if self.0.len() < LEAST {
            return None;
        }
        let points = || self.0.iter().map(|(at, value)| (at.as_secs_f64() - last.as_secs_f64(), *value));
        #[expect(clippy::cast_precision_loss, reason = "at most a dozen")]
        let count = self.0.len() as f64;
        let mean = |of: fn((f64, f64)) -> f64| points().map(of).sum::<f64>() / count;
        let (mean_t, mean_v) = (mean(|p| p.0), mean(|p| p.1));
        let spread = points().map(|(t, _)| (t - mean_t).powi(2)).sum::<f64>();
        if spread <= 0.0 {
            return None;
        }
        let slope = points().map(|(t, v)| (t - mean_t) * (v - mean_v)).sum::<f64>() / spread;
        Some((mean_v - slope * mean_t, slope))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Drain;

    fn drain(values: &[f64]) -> Drain {
        let mut drain = Drain::default();
        for (at, value) in values.iter().enumerate() {
            drain.add(Duration::from_secs(at as u64), *value);
        }
        drain
    }

    #[test]
    fn a_falling_number_is_projected_to_where_it_passes() {
        let found = drain(&[100.0, 90.0, 80.0, 70.0]).projection(Duration::from_secs(24), |v| v <= 10.0).unwrap();
        assert!((found.per_second - 10.0).abs() < 1e-9);
        assert_eq!(found.passes_in, Duration::from_secs(6));
    }

    #[test]
    fn one_that_rises_stands_still_or_falls_too_slowly_is_not() {
        let room = Duration::from_secs(24);
        assert_eq!(drain(&[70.0, 80.0, 90.0]).projection(room, |v| v <= 100.0), None);
        assert_eq!(drain(&[70.0, 70.0, 70.0]).projection(room, |v| v <= 10.0), None);
        assert_eq!(drain(&[100.0, 99.0, 98.0]).projection(room, |v| v <= 10.0), None);
        assert_eq!(drain(&[100.0, 50.0]).projection(room, |v| v <= 10.0), None, "two samples are no direction");
    }

    #[test]
    fn a_number_is_not_projected_below_nothing() {
        assert_eq!(drain(&[9.0, 6.0, 3.0]).projection(Duration::from_secs(24), |v| v < 0.0), None);
    }
}
