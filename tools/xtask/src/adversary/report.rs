//! What came of everything; pure.

use std::collections::HashSet;

use super::control::Shown;
use super::table::Attempt;
use super::verdict::{Judgement, Verdict};
use super::world::Side;

/// An attempt in a sandbox.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) name: &'static str,
    /// What was to stop it, for people.
    pub(super) walls: String,
    /// The errors by which that refuses.
    pub(super) refusals: Vec<&'static str>,
    /// Whose sandbox it was.
    pub(super) side: String,
    pub(super) verdict: Verdict,
}

/// Fewest separate attempts of a whole run.
pub(super) const LEAST_ATTEMPTS: usize = 60;

/// Everything that was tried, and what the controls showed.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) tried: Vec<Tried>,
    /// Attempts that this machine cannot make, and why.
    skipped: Vec<(&'static str, String)>,
    /// Controls that showed nothing.
    idle: Vec<String>,
    /// Number of those that showed something.
    controls: usize,
}

impl Report {
    /// Notes an attempt that was not made.
    pub(super) fn skip(&mut self, attempt: &Attempt, shown: Shown) {
        if let Shown::Absent(why) = shown {
            self.skipped.push((attempt.name, why));
        }
    }

    /// Notes what an attempt's controls showed.
    pub(super) fn take(&mut self, shown: Shown) {
        match shown {
            Shown::Real(number) => self.controls += number,
            Shown::Nothing(why) => self.idle.extend(why),
            Shown::Absent(why) => self.idle.push(why),
        }
    }

    /// Whether nothing got through, and everything was told clearly.
    pub(super) fn is_good(&self) -> bool {
        self.idle.is_empty() && self.tried.iter().all(|tried| tried.judge() == Judgement::Refused)
    }

    /// How many separate attempts were made, on however many sides each.
    pub(super) fn attempts(&self) -> usize {
        distinct(self.tried.iter().map(|tried| tried.name))
    }

    /// How many of those got through, on whichever side.
    fn through(&self) -> usize {
        let through = self.tried.iter().filter(|tried| tried.judge() == Judgement::Through);
        distinct(through.map(|tried| tried.name))
    }

    /// Every attempt, then what else counts against success, and at the end the line that scripts look for.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.tried.iter().map(Tried::line).collect();
        lines.extend(self.skipped.iter().map(|(name, why)| format!("not tried: {name}: {why}")));
        lines.extend(self.idle.iter().map(|why| format!("IDLE control of {why}")));
        let unclear = self.tried.iter().filter(|tried| tried.judge() == Judgement::Inconclusive).count();
        lines.push(format!(
            "{} makings on {} sides, {unclear} unclear, {} skipped; {} controls, {} idle",
            self.tried.len(),
            distinct(self.tried.iter().map(|tried| tried.side.as_str())),
            self.skipped.len(),
            self.controls,
            self.idle.len(),
        ));
        lines.push(format!("adversary: {} tried, {} through", self.attempts(), self.through()));
        lines
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.collect::<HashSet<_>>().len()
}

impl Tried {
    /// An attempt in the sandbox of a side.
    pub(super) fn of(attempt: &Attempt, side: Side, verdict: Verdict) -> Self {
        let (walls, refusals) = (attempt.walls_text(side.engine), attempt.refusals(side.engine));
        Self { name: attempt.name, walls, refusals, side: side.name(), verdict }
    }

    fn judge(&self) -> Judgement {
        self.verdict.judge(&self.refusals)
    }

    fn line(&self) -> String {
        let Self { name, walls, side, verdict, .. } = self;
        format!("{} {side:15} {name} ({walls}): {verdict}", self.judge().mark())
    }
}

#[cfg(test)]
mod tests {
    use testkit::engine::Engine;

    use super::super::table;
    use super::super::world::Server;
    use super::*;

    fn write_agent() -> &'static Attempt {
        table::all().find(|found| found.name == "host.write_agent").unwrap()
    }

    fn report(verdict: Verdict) -> Report {
        let side = Side { engine: Engine::Local, server: Server::Ordinary };
        Report { tried: vec![Tried::of(write_agent(), side, verdict)], ..Report::default() }
    }

    fn refused(error: &str) -> Verdict {
        Verdict::Refused { error: error.to_owned(), said: "no".to_owned() }
    }

    #[test]
    fn only_a_refusal_of_the_wall_itself_is_good() {
        let good = report(refused("EROFS"));
        assert!(good.is_good());
        assert_eq!(good.lines()[0], "refused local-ordinary  host.write_agent (mounted read-only): EROFS no");
        let ends = |report: &Report| {
            let lines = report.lines();
            lines[lines.len() - 2..].join("; ")
        };
        let zero =
            "1 makings on 1 sides, 0 unclear, 0 skipped; 0 controls, 0 idle; adversary: 1 tried, 0 through";
        assert_eq!(ends(&good), zero);
        let other = report(refused("EACCES"));
        assert!(!other.is_good() && ends(&other) == zero.replace("0 unclear", "1 unclear"));
        let through = report(Verdict::Through(String::new()));
        assert!(!through.is_good() && ends(&through) == zero.replace("0 through", "1 through"));
    }

    #[test]
    fn an_attempt_on_two_sides_is_one_and_through_if_it_is_on_one_of_them() {
        let docker = Side { engine: Engine::Docker, server: Server::Root };
        let ends = |verdict: Verdict| {
            let mut twice = report(refused("EROFS"));
            twice.tried.push(Tried::of(write_agent(), docker, verdict));
            let lines = twice.lines();
            lines[lines.len() - 2..].join("; ")
        };
        let none =
            "2 makings on 2 sides, 0 unclear, 0 skipped; 0 controls, 0 idle; adversary: 1 tried, 0 through";
        assert_eq!(ends(refused("EROFS")), none);
        assert_eq!(ends(Verdict::Through(String::new())), none.replace("0 through", "1 through"));
        let mut both = report(Verdict::Through(String::new()));
        both.tried.push(Tried::of(write_agent(), docker, Verdict::Through(String::new())));
        assert_eq!(both.lines().pop().unwrap(), "adversary: 1 tried, 1 through");
    }

    #[test]
    fn a_control_that_shows_nothing_is_no_success_and_a_skipped_attempt_is_counted_as_that() {
        let mut idle = report(refused("EROFS"));
        idle.take(Shown::Nothing(vec!["why".to_owned()]));
        assert!(!idle.is_good() && idle.lines().contains(&"IDLE control of why".to_owned()));
        let mut skipped = report(refused("EROFS"));
        skipped.skip(write_agent(), Shown::Absent("no such kernel".to_owned()));
        skipped.take(Shown::Real(2));
        let lines = skipped.lines();
        assert!(
            skipped.is_good() && lines[lines.len() - 2].ends_with("0 unclear, 1 skipped; 2 controls, 0 idle")
        );
    }
}
