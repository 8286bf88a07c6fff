//! A figure and what it must be; pure.

use super::table::Table;

/// What a figure must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// No more than this.
    AtMost(f64),
    /// Less than this.
    Below(f64),
    /// No less than this.
    AtLeast(f64),
}

/// A figure and its bound.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bar {
    /// What it is called in the last lines of the task.
    pub(crate) name: &'static str,
    /// What was measured.
    pub(crate) figure: f64,
    /// What it must be.
    pub(crate) bound: Bound,
    /// Digits behind the point.
    pub(crate) digits: usize,
}

impl Bar {
    /// A bar on a figure; one that is missing misses it.
    #[must_use]
    pub(crate) fn new(name: &'static str, figure: Option<f64>, bound: Bound, digits: usize) -> Self {
        let missing = match bound {
            Bound::AtMost(_) | Bound::Below(_) => f64::INFINITY,
            Bound::AtLeast(_) => f64::NEG_INFINITY,
        };
        Self { name, figure: figure.unwrap_or(missing), bound, digits }
    }

    /// Whether the figure is within the bound.
    #[must_use]
    pub(crate) fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.figure <= most,
            Bound::Below(most) => self.figure < most,
            Bound::AtLeast(least) => self.figure >= least,
        }
    }

    /// The line that tells a missed bar, without the task's name.
    #[must_use]
    pub(crate) fn short(&self) -> String {
        let (Bound::AtMost(bound) | Bound::Below(bound) | Bound::AtLeast(bound)) = self.bound;
        format!("{} {:.*} {:.*}", self.name, self.digits, self.figure, self.digits, bound)
    }

    fn row(&self) -> Vec<String> {
        let digits = self.digits;
        let bound = match self.bound {
            Bound::AtMost(most) => format!("at most {most:.digits$}"),
            Bound::Below(most) => format!("below {most:.digits$}"),
            Bound::AtLeast(least) => format!("at least {least:.digits$}"),
        };
        let verdict = if self.is_met() { "met" } else { "SHORT" };
        vec![self.name.to_owned(), format!("{:.digits$}", self.figure), bound, verdict.to_owned()]
    }
}

/// All bars as a table.
#[must_use]
pub(crate) fn table(bars: &[Bar]) -> Table {
    Table {
        title: "Bars".to_owned(),
        head: ["bar", "figure", "must be", ""].map(str::to_owned).to_vec(),
        rows: bars.iter().map(Bar::row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_met_at_it_but_for_one_that_must_be_stayed_below() {
        let met = |bound, figure| Bar::new("x", Some(figure), bound, 1).is_met();
        assert!(met(Bound::AtMost(2.0), 2.0) && !met(Bound::AtMost(2.0), 2.1));
        assert!(met(Bound::Below(2.0), 1.9) && !met(Bound::Below(2.0), 2.0));
        assert!(met(Bound::AtLeast(2.0), 2.0) && !met(Bound::AtLeast(2.0), 1.9));
    }

    #[test]
    fn a_missing_figure_misses_every_bar() {
        for bound in [Bound::AtMost(1e9), Bound::Below(1e9), Bound::AtLeast(-1e9)] {
            assert!(!Bar::new("x", None, bound, 1).is_met(), "{bound:?}");
            assert!(!Bar::new("x", Some(f64::NAN), bound, 1).is_met(), "{bound:?}");
        }
    }

    #[test]
    fn a_missed_bar_is_told_in_a_line_and_in_the_table() {
        let bar = Bar::new("wall_ratio", Some(1.25), Bound::AtMost(1.1), 2);
        assert_eq!(bar.short(), "wall_ratio 1.25 1.10");
        assert_eq!(table(&[bar]).rows, [["wall_ratio", "1.25", "at most 1.10", "SHORT"]]);
    }
}
