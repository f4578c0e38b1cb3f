//! Figures of several runs. Pure.

use std::time::Duration;

/// Of an even number of values, the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The median, and every run in its order.
pub fn shown(values: &[f64]) -> String {
    let all: Vec<_> = values.iter().map(|value| format!("{value:.1}")).collect();
    match median(values) {
        Some(median) => format!("{median:>6.1}   ({})", all.join(", ")),
        None => "–".to_owned(),
    }
}

/// The median of the ones over that of the others, to two places. `None` where there is nothing to divide by.
pub fn ratio(ones: &[f64], others: &[f64]) -> Option<f64> {
    let others = median(others).filter(|value| *value > 0.0)?;
    Some((median(ones)? / others * 100.0).round() / 100.0)
}

pub fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_there() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
