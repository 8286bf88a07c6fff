//! Whether a push that a git host refused is to be sent once more: only where its report says that it could not move what it
//! had received to its place. Of several packs that are the same and come at once (runs that made the same commit) git refuses
//! some so, in repositories that keep packs (`receive.unpackLimit`), before it has looked at any ref; a little later it takes
//! each.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::sleep;

use super::Answer;
use super::pktline::Section;
use super::report::{Report, Verdict};
use crate::bounds::REPORT_BYTES;

/// What git says of each ref where it could not move the objects; no ref has been changed then.
///
/// Source: builtin/receive-pack.c, `execute_commands`, git 2.11 to 2.47.
const UNMOVED: &str = "unable to migrate objects to permanent storage";

/// Reads the answer to a push of one ref ahead, to its end or as far as [`REPORT_BYTES`], for `most` or until `gone`. Returns it
/// as it came, and whether its push is to be sent again.
pub(super) async fn look<G: Future<Output = ()> + Send>(
    (section, ref_name): (&Section, &str),
    answer: Answer,
    (most, gone): (Duration, G),
) -> (Answer, bool) {
    let Answer { chunks, encoding } = answer;
    let (mut chunks, mut report) = (chunks.fuse(), Report::of(section));
    let (mut held, mut bytes, mut ended) = (Vec::new(), 0, false);
    let enough = async {
        tokio::select! {
            () = sleep(most) => {}
            () = gone => {}
        }
    };
    tokio::pin!(enough);
    while bytes <= REPORT_BYTES {
        let chunk = tokio::select! {
            chunk = chunks.next() => chunk,
            () = &mut enough => break,
        };
        let Some(chunk) = chunk else {
            ended = true;
            break;
        };
        let is_broken = chunk.is_err();
        if let Ok(chunk) = &chunk {
            bytes += chunk.len();
            report.feed(chunk);
        }
        held.push(chunk);
        if is_broken {
            break;
        }
    }
    let is_unmoved = matches!(report.verdict(ref_name), Verdict::Refused(said) if said == UNMOVED);
    let chunks = stream::iter(held).chain(chunks).boxed();
    (Answer { chunks, encoding }, ended && is_unmoved)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::TryStreamExt;
    use tokio::time::Instant;

    use super::super::pktline::{FLUSH, write};
    use super::*;
    use crate::body::Chunks;

    const REF: &str = "refs/heads/x";
    const MOST: Duration = Duration::from_secs(1);

    fn report(lines: &[&str]) -> Bytes {
        let mut out = Vec::new();
        for line in lines {
            write(&mut out, line.as_bytes());
        }
        out.extend_from_slice(FLUSH);
        out.into()
    }

    fn unmoved() -> Bytes {
        report(&["unpack ok\n", &format!("ng {REF} {UNMOVED}\n")])
    }

    /// Whether it is sent again; what is passed on is what came.
    async fn judged(pieces: &[Bytes]) -> bool {
        let chunks: Chunks = stream::iter(pieces.to_vec()).map(Ok).boxed();
        let section = Section { commands: Vec::new(), capabilities: vec!["report-status".to_owned()] };
        let answer = Answer { chunks, encoding: None };
        let (answer, again) = look((&section, REF), answer, (MOST, std::future::pending())).await;
        let passed: Vec<Bytes> = answer.chunks.try_collect().await.unwrap();
        assert_eq!(passed.concat(), pieces.concat());
        again
    }

    #[tokio::test]
    async fn only_what_git_could_not_move_is_sent_again() {
        let whole = unmoved();
        assert!(judged(std::slice::from_ref(&whole)).await);
        let (first, second) = (whole.slice(..20), whole.slice(20..));
        assert!(judged(&[first.clone(), second]).await);
        assert!(!judged(&[first]).await, "a report that is cut says nothing");
        for other in [
            report(&["unpack ok\n", "ok refs/heads/x\n"]),
            report(&["unpack ok\n", "ng refs/heads/x pre-receive hook declined\n"]),
            report(&["unpack index-pack abnormal exit\n", "ng refs/heads/x unpacker error\n"]),
            report(&["unpack ok\n", &format!("ng refs/heads/y {UNMOVED}\n")]),
            report(&["unpack ok\n", &format!("ng {REF} {UNMOVED}, says a hook\n")]),
        ] {
            assert!(!judged(&[other]).await);
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_ahead_up_to_its_bounds_in_bytes_and_time() {
        let filler = |bytes: usize| {
            let line = "f".repeat(bytes - 4);
            let mut out = Vec::new();
            write(&mut out, line.as_bytes());
            Bytes::from(out)
        };
        let fits = REPORT_BYTES - unmoved().len();
        assert!(judged(&[filler(fits / 2), filler(fits / 2), unmoved()]).await);
        assert!(!judged(&[filler(REPORT_BYTES / 2), filler(REPORT_BYTES / 2 + 1), unmoved()]).await);

        let section = Section { commands: Vec::new(), capabilities: Vec::new() };
        let silent = || {
            let chunks = stream::iter([Ok(unmoved())]).chain(stream::pending()).boxed();
            Answer { chunks, encoding: None }
        };
        let began = Instant::now();
        let short = Duration::from_millis(30);
        let (answer, again) = look((&section, REF), silent(), (short, std::future::pending())).await;
        assert!(!again && began.elapsed() >= short, "it may say more");
        let (first, _) = answer.chunks.into_future().await;
        assert_eq!(first.unwrap().unwrap(), unmoved());
        let hour = Duration::from_hours(1);
        assert!(!look((&section, REF), silent(), (hour, std::future::ready(()))).await.1, "nobody waits");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_passed_on_broken() {
        let section = Section { commands: Vec::new(), capabilities: Vec::new() };
        let chunks = stream::iter([Ok(unmoved()), Err("cut".into())]).boxed();
        let answer = Answer { chunks, encoding: None };
        let (answer, again) = look((&section, REF), answer, (MOST, std::future::pending())).await;
        assert!(!again);
        assert!(answer.chunks.try_collect::<Vec<_>>().await.is_err());
    }
}
