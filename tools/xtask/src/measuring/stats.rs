//! What a series of figures comes to; pure.

/// A series in five figures, in the unit of the series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// How many figures there are.
    pub(crate) count: usize,
    /// The least.
    pub(crate) min: f64,
    /// The median.
    pub(crate) p50: f64,
    /// The figure that 99 of 100 do not exceed.
    pub(crate) p99: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Summary {
    /// Sums up a series; none if it is empty or has something in it that is no number.
    #[must_use]
    pub(crate) fn of(figures: &[f64]) -> Option<Self> {
        let sorted = sorted(figures)?;
        Some(Self {
            count: sorted.len(),
            min: *sorted.first()?,
            p50: median(figures)?,
            p99: percentile(&sorted, 99)?,
            max: *sorted.last()?,
        })
    }
}

/// The middle of a series; between the two in the middle where their number is even.
#[must_use]
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let sorted = sorted(figures)?;
    let (low, high) = (sorted.get((sorted.len().checked_sub(1)?) / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// The nearest-rank percentile of a sorted series: the least figure that `percent` of 100 do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn sorted(figures: &[f64]) -> Option<Vec<f64>> {
    if figures.iter().any(|figure| !figure.is_finite()) {
        return None;
    }
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(left: Option<f64>, right: f64) -> bool {
        left.is_some_and(|left| (left - right).abs() < 1e-9)
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert!(is(median(&[3.0, 1.0, 2.0]), 2.0));
        assert!(is(median(&[4.0, 1.0, 2.0, 3.0]), 2.5));
        assert!(is(median(&[7.0]), 7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn percentiles_are_figures_of_the_series() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!(is(percentile(&hundred, 99), 99.0));
        assert!(is(percentile(&hundred, 100), 100.0));
        assert!(is(percentile(&hundred[..10], 99), 10.0));
        let many: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert!(is(percentile(&many, 99), 990.0));
        assert!(is(percentile(&[5.0], 1), 5.0));
        assert_eq!(percentile(&[], 99), None);
    }

    #[test]
    fn a_summary_wants_numbers() {
        let summary = Summary::of(&[2.0, 1.0, 4.0]).unwrap();
        assert_eq!(summary.count, 3);
        assert!(is(Some(summary.min), 1.0) && is(Some(summary.p50), 2.0));
        assert!(is(Some(summary.p99), 4.0) && is(Some(summary.max), 4.0));
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }
}
