//! Times and their percentiles.

use std::time::Duration;

/// Times in milliseconds, sorted.
pub(super) struct Times(Vec<f64>);

impl Times {
    pub(super) fn new(durations: impl Iterator<Item = Duration>) -> Self {
        Self::of_ms(durations.map(|time| time.as_secs_f64() * 1e3).collect())
    }

    pub(super) fn of_ms(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the smallest time that at least `percent` of all times do not exceed.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let index = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(index).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = Times::new((1..=200).rev().map(Duration::from_millis));
        assert_eq!(
            [50, 99, 100].map(|percent| times.percentile(percent).round()),
            [100.0, 198.0, 200.0]
        );
        assert!(Times::new(std::iter::empty()).percentile(50).is_nan());
    }
}
