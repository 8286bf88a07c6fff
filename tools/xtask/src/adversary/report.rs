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

    /// Whether nothing got through, everything was told clearly, and at least so many separate attempts were made.
    pub(super) fn is_good(&self, least: usize) -> bool {
        self.through() == 0 && self.unclear() == 0 && self.idle.is_empty() && self.attempts() >= least
    }

    /// How many makings were refused by something else than their walls.
    fn unclear(&self) -> usize {
        self.tried.iter().filter(|tried| tried.judge() == Judgement::Inconclusive).count()
    }

    /// How many separate attempts were made, on however many sides each.
    fn attempts(&self) -> usize {
        distinct(self.tried.iter().map(|tried| tried.name))
    }

    /// How many of those got through, on whichever side.
    fn through(&self) -> usize {
        let through = self.tried.iter().filter(|tried| tried.judge() == Judgement::Through);
        distinct(through.map(|tried| tried.name))
    }

    /// Every attempt, then what else counts against success, and at the end the line that scripts look for, or of a run that is not
    /// good another one.
    pub(super) fn lines(&self, least: usize) -> Vec<String> {
        let mut lines = self.so_far();
        lines.push(self.last(least));
        lines
    }

    /// The same without the last line, for a run that broke off.
    pub(super) fn so_far(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.tried.iter().map(Tried::line).collect();
        lines.extend(self.skipped.iter().map(|(name, why)| format!("not tried: {name}: {why}")));
        lines.extend(self.idle.iter().map(|why| format!("IDLE control of {why}")));
        lines.push(format!(
            "{} makings on {} sides, {} unclear, {} skipped; {} controls, {} idle",
            self.tried.len(),
            distinct(self.tried.iter().map(|tried| tried.side.as_str())),
            self.unclear(),
            self.skipped.len(),
            self.controls,
            self.idle.len(),
        ));
        lines
    }

    /// The last line.
    fn last(&self, least: usize) -> String {
        let (tried, through) = (self.attempts(), self.through());
        if self.is_good(least) {
            return format!("adversary: {tried} tried, {through} through");
        }
        let others = [(self.unclear(), "unclear"), (self.idle.len(), "idle")];
        let others = others.into_iter().filter(|(count, _)| *count > 0);
        let others: Vec<_> = others.map(|(count, what)| format!("{count} {what}, ")).collect();
        let few = if tried < least { format!(", which is fewer than {least}") } else { String::new() };
        format!("adversary: failed: {}{through} through of {tried} tried{few}", others.concat())
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

    /// The last two lines.
    fn ends(report: &Report) -> String {
        let lines = report.lines(1);
        lines[lines.len() - 2..].join("; ")
    }

    #[test]
    fn only_a_refusal_of_the_wall_itself_is_good() {
        let good = report(refused("EROFS"));
        assert!(good.is_good(1));
        assert_eq!(
            good.lines(1)[0],
            "refused local-ordinary  host.write_agent (mounted read-only): EROFS no"
        );
        let zero =
            "1 makings on 1 sides, 0 unclear, 0 skipped; 0 controls, 0 idle; adversary: 1 tried, 0 through";
        assert_eq!(ends(&good), zero);
        let other = report(refused("EACCES"));
        assert!(!other.is_good(1) && ends(&other).starts_with("1 makings on 1 sides, 1 unclear, 0 skipped;"));
        let through = report(Verdict::Through(String::new()));
        assert!(!through.is_good(1) && ends(&through).starts_with("1 makings on 1 sides, 0 unclear"));
    }

    #[test]
    fn the_last_line_of_a_run_that_is_not_good_says_what_failed_and_is_not_that_of_a_good_one() {
        let last = |report: &Report, least: usize| report.lines(least).pop().unwrap();
        let mut many = report(refused("EACCES"));
        assert_eq!(last(&many, 1), "adversary: failed: 1 unclear, 0 through of 1 tried");
        many.tried.push(Tried { name: "another", ..report(Verdict::Through(String::new())).tried.remove(0) });
        assert_eq!(last(&many, 1), "adversary: failed: 1 unclear, 1 through of 2 tried");
        many.take(Shown::Nothing(vec!["why".to_owned(), "and why".to_owned()]));
        assert_eq!(last(&many, 1), "adversary: failed: 1 unclear, 2 idle, 1 through of 2 tried");
        let through = report(Verdict::Through(String::new()));
        assert_eq!(last(&through, 1), "adversary: failed: 1 through of 1 tried");

        let mut few = report(refused("EROFS"));
        while few.attempts() < LEAST_ATTEMPTS - 1 {
            let name = format!("attempt {}", few.attempts()).leak();
            few.tried.push(Tried { name, ..report(refused("EROFS")).tried.remove(0) });
        }
        let said = "adversary: failed: 0 through of 59 tried, which is fewer than 60";
        assert_eq!(last(&few, LEAST_ATTEMPTS), said);
        assert!(!few.is_good(LEAST_ATTEMPTS) && few.is_good(LEAST_ATTEMPTS - 1));
        few.tried.push(Tried { name: "one more", ..report(refused("EROFS")).tried.remove(0) });
        assert_eq!(last(&few, LEAST_ATTEMPTS), "adversary: 60 tried, 0 through");
        let said = "adversary: failed: 0 through of 0 tried, which is fewer than 1";
        assert_eq!(last(&Report::default(), 1), said, "who skips everything has shown nothing");
    }

    #[test]
    fn an_attempt_on_two_sides_is_one_and_through_if_it_is_on_one_of_them() {
        let docker = Side { engine: Engine::Docker, server: Server::Root };
        let mut twice = report(refused("EROFS"));
        twice.tried.push(Tried::of(write_agent(), docker, refused("EROFS")));
        let none =
            "2 makings on 2 sides, 0 unclear, 0 skipped; 0 controls, 0 idle; adversary: 1 tried, 0 through";
        assert_eq!(ends(&twice), none);
        for first in [refused("EROFS"), Verdict::Through(String::new())] {
            let mut through = report(first);
            through.tried.push(Tried::of(write_agent(), docker, Verdict::Through(String::new())));
            assert!(ends(&through).ends_with("adversary: failed: 1 through of 1 tried"));
        }
    }

    #[test]
    fn a_control_that_shows_nothing_is_no_success_and_a_skipped_attempt_is_counted_as_that() {
        let mut idle = report(refused("EROFS"));
        idle.take(Shown::Nothing(vec!["why".to_owned()]));
        assert!(!idle.is_good(1) && idle.lines(1).contains(&"IDLE control of why".to_owned()));
        let mut skipped = report(refused("EROFS"));
        skipped.skip(write_agent(), Shown::Absent("no such kernel".to_owned()));
        skipped.take(Shown::Real(2));
        assert!(skipped.is_good(1) && ends(&skipped).contains("0 unclear, 1 skipped; 2 controls, 0 idle;"));
    }
}
