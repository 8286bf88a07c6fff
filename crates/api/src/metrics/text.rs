//! The text format of Prometheus, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), as far as it is used here.

use std::fmt::Write as _;

use caisson_store::meters::{FAMILIES, METER_CLASSES_MS, Series, Value};

/// What kind of metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// A page that is being written.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Begins a family; its numbers follow at once.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.line(&format!("# HELP {name} {}", help.replace('\\', "\\\\").replace('\n', "\\n")));
        self.line(&format!("# TYPE {name} {}", kind.name()));
    }

    /// One number.
    pub(super) fn number(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut shown = String::new();
        for (label, text) in labels {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let comma = if shown.is_empty() { "" } else { "," };
            write!(shown, "{comma}{label}=\"{text}\"").ok();
        }
        let shown = if shown.is_empty() { shown } else { format!("{{{shown}}}") };
        self.line(&format!("{name}{shown} {value}"));
    }

    /// Everything that the process has counted; a family without labels that has counted nothing stands at zero.
    pub(super) fn counted(&mut self, all: &[Series]) {
        for family in FAMILIES {
            let kind = if family.timed { Kind::Histogram } else { Kind::Counter };
            self.family(family.name, kind, family.help);
            if !family.timed && !family.labelled && all.iter().all(|series| series.family != family) {
                self.number(family.name, &[], 0.0);
            }
            for series in all.iter().filter(|series| series.family == family) {
                let labels: Vec<_> =
                    series.labels.iter().map(|(label, text)| (*label, text.as_str())).collect();
                match &series.value {
                    Value::Sum(sum) => {
                        self.number(family.name, &labels, float(*sum) / f64::from(family.parts));
                    }
                    Value::Times { classes, sum_ms } => self.times(family.name, &labels, classes, *sum_ms),
                }
            }
        }
    }

    fn times(&mut self, name: &str, labels: &[(&str, &str)], classes: &[u64], sum_ms: u64) {
        let mut below = 0;
        let bounds = METER_CLASSES_MS.iter().map(|ms| (float(*ms) / 1000.0).to_string());
        for (count, bound) in classes.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            below += count;
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.number(&format!("{name}_bucket"), &labels, float(below));
        }
        self.number(&format!("{name}_sum"), labels, float(sum_ms) / 1000.0);
        self.number(&format!("{name}_count"), labels, float(below));
    }

    /// The page.
    pub(super) fn done(self) -> String {
        self.0
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 of anything is far beyond what there is")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use caisson_store::meters::{MODEL_COST, MODEL_FIRST_BYTE, Meters};

    use super::*;

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        let mut page = Page::default();
        page.number("x", &[("a", "\"\\\n"), ("b", "c")], 1.5);
        assert_eq!(page.done(), "x{a=\"\\\"\\\\\\n\",b=\"c\"} 1.5\n");
    }

    #[test]
    fn times_are_told_as_a_histogram_and_money_in_dollars() {
        let meters = Meters::default();
        meters.add(&MODEL_FIRST_BYTE, vec![("way", "x".to_owned())], 7);
        meters.add(&MODEL_FIRST_BYTE, vec![("way", "x".to_owned())], 70_000);
        meters.add(&MODEL_COST, Vec::new(), 1_500_000);
        let mut page = Page::default();
        page.counted(&meters.read());
        let text = page.done();
        for line in [
            "# TYPE caisson_model_first_byte_seconds histogram",
            "caisson_model_first_byte_seconds_bucket{way=\"x\",le=\"0.005\"} 0",
            "caisson_model_first_byte_seconds_bucket{way=\"x\",le=\"0.01\"} 1",
            "caisson_model_first_byte_seconds_bucket{way=\"x\",le=\"60\"} 1",
            "caisson_model_first_byte_seconds_bucket{way=\"x\",le=\"+Inf\"} 2",
            "caisson_model_first_byte_seconds_sum{way=\"x\"} 70.007",
            "caisson_model_first_byte_seconds_count{way=\"x\"} 2",
            "caisson_model_cost_usd_total 1.5",
            "caisson_denials_total 0",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} in {text}");
        }
    }
}
