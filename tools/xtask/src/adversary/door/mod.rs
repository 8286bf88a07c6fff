//! Attempts at the sandbox's one door: by the real agent, in sandboxes of a real server, on a real git host and at listeners of
//! this machine.
//!
//! Their controls stand on a server of a build that can leave checks out (`caisson-domain`'s `checks`): without its checks an
//! attempt gets through there, and where several are to stop it, with each of them alone it is refused in that one's words.

mod after;
mod held;
mod ledger;
mod record;
mod stage;
pub(super) mod table;

use std::path::Path;

use anyhow::ensure;
use caisson_domain::checks::Check;
use testkit::engine::Engine;
use testkit::parts::Parts;

use self::stage::Stage;
use self::table::{ALL, Attempt};
use super::control::Shown;
use super::report::{Report, Tried};
use super::say;
use super::surroundings::Surroundings;
use super::verdict::Verdict;
use super::world::{Server, Side};

/// Where the build that can leave checks out is.
pub(super) const WITHOUT_CHECKS: &str = ".caisson/bin/checks-off/caisson";

/// Whether an attempt at the door has this in its name.
pub(super) fn has(only: &str) -> bool {
    after::NAME.contains(only) || !chosen(only).is_empty()
}

/// Tries everything at the door of one side's sandboxes.
///
/// # Errors
/// A part does not start, or an attempt told nothing.
pub(super) async fn attack(
    parts: &Parts,
    side: Side,
    only: &str,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let chosen = chosen(only);
    say(&format!("{} attempts at the door of a sandbox of {}", chosen.len(), side.name()));
    let stage = Stage { parts, side, off: Vec::new(), surroundings };
    for attempts in runs(chosen.iter().copied()) {
        for (attempt, verdict) in stage.make(&attempts).await? {
            report.tried.push(Tried {
                name: attempt.name,
                walls: attempt.walls_text(),
                refusals: attempt.refusals(),
                side: side.name(),
                verdict,
            });
        }
    }
    if after::NAME.contains(only) {
        after::attack(parts, side, report).await?;
    }
    Ok(())
}

/// The attempts without their checks, and with each of several alone.
///
/// # Errors
/// As of [`attack`]; the build is missing.
pub(super) async fn controls(
    parts: &Parts,
    only: &str,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let chosen = chosen(only);
    if chosen.is_empty() {
        return Ok(());
    }
    let (parts, side) = (&without_checks(parts)?, CONTROLS);
    let grounds = grounds(&chosen);
    say(&format!(
        "{} attempts at the door of {} servers without some of the checks",
        chosen.len(),
        grounds.len()
    ));
    let mut told: Vec<(&Attempt, Option<Check>, Verdict)> = Vec::new();
    for Ground { off, made } in grounds {
        let stage = Stage { parts, side, off, surroundings };
        for attempts in runs(made.iter().map(|(attempt, _)| *attempt)) {
            for (attempt, verdict) in stage.make(&attempts).await? {
                let standing = made.iter().find(|(one, _)| one.name == attempt.name);
                told.push((attempt, standing.and_then(|(_, standing)| *standing), verdict));
            }
        }
    }
    for attempt in chosen {
        let of_it: Vec<_> = told.iter().filter(|(one, ..)| one.name == attempt.name).collect();
        let of_it: Vec<_> = of_it.iter().map(|(_, standing, verdict)| (*standing, verdict)).collect();
        report.take(judge(attempt, &of_it));
    }
    Ok(())
}

/// Where controls without a check of ours are made.
pub(super) const CONTROLS: Side = Side { engine: Engine::Local, server: Server::Root };

/// The parts with the build that can leave checks out.
///
/// # Errors
/// It is not built.
pub(super) fn without_checks(parts: &Parts) -> anyhow::Result<Parts> {
    let caisson = Path::new(super::WORKSPACE).canonicalize()?.join(WITHOUT_CHECKS);
    ensure!(caisson.is_file(), "\"{}\" is not built; run `make adversary`", caisson.display());
    Ok(Parts { caisson, ..parts.clone() })
}

/// Variables of a server that leaves a check out, and measures what its sessions hold, which is where some checks are.
pub(super) fn without(check: Check) -> Vec<(String, String)> {
    let off = ("CHECKS_OFF".to_owned(), check.name().to_owned());
    vec![off, ("LIMITS__VOLUMES".to_owned(), "false".to_owned())]
}

fn chosen(only: &str) -> Vec<&'static Attempt> {
    ALL.iter().filter(|attempt| attempt.name.contains(only)).collect()
}

/// A server for controls.
struct Ground<'a> {
    /// The checks that it leaves out.
    off: Vec<Check>,
    /// The attempts on it, and the one of their checks that stands.
    made: Vec<(&'a Attempt, Option<Check>)>,
}

/// The servers that the attempts need: without all of an attempt's checks, and where it has several, with each of them alone.
fn grounds<'a>(attempts: &[&'a Attempt]) -> Vec<Ground<'a>> {
    let mut grounds: Vec<Ground<'a>> = Vec::new();
    for attempt in attempts {
        let checks: Vec<Check> = attempt.walls.iter().map(|wall| wall.check).collect();
        let alone = checks.iter().filter(|_| checks.len() > 1).copied().map(Some);
        for standing in std::iter::once(None).chain(alone) {
            let off: Vec<Check> = Check::ALL
                .into_iter()
                .filter(|check| checks.contains(check) && Some(*check) != standing)
                .collect();
            match grounds.iter_mut().find(|ground| ground.off == off) {
                Some(ground) => ground.made.push((attempt, standing)),
                None => grounds.push(Ground { off, made: vec![(attempt, standing)] }),
            }
        }
    }
    grounds
}

/// What is made in one run: those that leave it in order together, each of the others by itself.
fn runs<'a>(attempts: impl IntoIterator<Item = &'a Attempt>) -> Vec<Vec<&'a Attempt>> {
    let (alone, others): (Vec<&'a Attempt>, Vec<&'a Attempt>) =
        attempts.into_iter().partition(|attempt| attempt.is_alone());
    // Only these have a server that asks another resolver, or a machine with other addresses.
    let (moving, others): (Vec<&'a Attempt>, Vec<&'a Attempt>) =
        others.into_iter().partition(|attempt| attempt.needs_names());
    let (held, together): (Vec<_>, Vec<_>) = others.into_iter().partition(|attempt| attempt.needs_held());
    let runs = [together, moving, held].into_iter().chain(alone.into_iter().map(|attempt| vec![attempt]));
    runs.filter(|run| !run.is_empty()).collect()
}

/// What the verdicts of an attempt's controls show; pure. Of one check alone the attempt in the sandbox says that it stops it.
fn judge(attempt: &Attempt, told: &[(Option<Check>, &Verdict)]) -> Shown {
    let mut idle = Vec::new();
    for (standing, verdict) in told {
        let shows = match (standing, verdict) {
            (None, verdict) => verdict.is_through(),
            (Some(_), Verdict::Through(_)) => false,
            (Some(check), Verdict::Refused { error, .. }) => {
                let wall = attempt.walls.iter().find(|wall| wall.check == *check);
                wall.is_some_and(|wall| wall.refuses.contains(&error.as_str()))
            }
        };
        if !shows {
            let stands = standing
                .map_or("without its checks".to_owned(), |check| format!("with {} alone", check.name()));
            let end = if verdict.is_through() { "through" } else { "refused" };
            idle.push(format!("{} {stands}: {end}: {verdict}", attempt.name));
        }
    }
    if idle.is_empty() { Shown::Real(told.len()) } else { Shown::Nothing(idle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> &'static Attempt {
        ALL.iter().find(|attempt| attempt.name == name).unwrap()
    }

    #[test]
    fn of_two_checks_each_stands_alone_on_a_server_of_its_own() {
        let two = named("pushes.two_refs");
        let off: Vec<_> = grounds(&[two]).into_iter().map(|ground| (ground.off, ground.made[0].1)).collect();
        assert_eq!(
            off,
            [
                (vec![Check::OwnBranch, Check::OneRef], None),
                (vec![Check::OneRef], Some(Check::OwnBranch)),
                (vec![Check::OwnBranch], Some(Check::OneRef)),
            ]
        );
        let both = grounds(&[named("pushes.tag"), named("pushes.another_branch")]);
        assert_eq!((both.len(), both[0].made.len()), (1, 2));
    }

    #[test]
    fn a_control_shows_something_only_if_the_right_check_refuses() {
        let (two, through) = (named("pushes.two_refs"), Verdict::Through(String::new()));
        let refused = |error: &str| Verdict::Refused { error: error.to_owned(), said: String::new() };
        let (own, one) = (refused("own_branch"), refused("one_ref"));
        let told = [(None, &through), (Some(Check::OwnBranch), &own), (Some(Check::OneRef), &one)];
        assert_eq!(judge(two, &told), Shown::Real(3));
        let other = [(None, &through), (Some(Check::OwnBranch), &one)];
        assert!(matches!(judge(two, &other), Shown::Nothing(why) if why[0].contains("own_branch alone")));
        assert!(matches!(judge(two, &[(None, &own)]), Shown::Nothing(_)));
    }

    #[test]
    fn without_its_checks_a_control_has_to_get_through_whatever_else_refuses_it() {
        for name in ["pushes.remove_own_branch", "pushes.remove_another_branch", "pushes.with_delta_bomb"] {
            for error in ["pack", "file_size", "STANDS"] {
                let refused = Verdict::Refused { error: error.to_owned(), said: String::new() };
                assert!(matches!(judge(named(name), &[(None, &refused)]), Shown::Nothing(_)), "{name}");
            }
        }
    }

    #[test]
    fn what_breaks_its_run_has_one_of_its_own() {
        let made =
            runs([named("pushes.tag"), named("record.claim_of_a_push"), named("door.model_without_grant")]);
        let names: Vec<Vec<_>> = made.iter().map(|run| run.iter().map(|one| one.name).collect()).collect();
        assert_eq!(names, [vec!["pushes.tag", "door.model_without_grant"], vec!["record.claim_of_a_push"]]);
        let apart = runs([
            named("egress.metadata_address"),
            named("pushes.tag"),
            named("pushes.branch_that_becomes_default"),
            named("egress.metadata_address_by_name"),
        ]);
        let sizes: Vec<_> = apart.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 2, 1]);
    }
}
