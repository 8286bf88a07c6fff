//! Whether runs can be taken, as it is told to whoever asks without a key: looked at once in a while, however many ask.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use caisson_domain::server::{PlacementProblem, ProblemCode};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::problem::ApiError;
use crate::runs::{check_placeable, sound_servers};
use crate::state::App;

/// How much shorter than a yes a no is good for: whoever waits for the server to be ready is told soon.
const NO_PART: u32 = 10;

/// Whether runs can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ready {
    /// A living server takes them.
    Yes,
    /// None does, for these reasons.
    No(Vec<PlacementProblem>),
}

impl Ready {
    /// Looks at the store.
    pub(crate) async fn look(app: &App) -> Result<Self, ApiError> {
        app.prove_writable().await?;
        let placeable = check_placeable(app.store()).await;
        if let Err(ApiError::Unplaceable(problems)) = placeable {
            return Ok(Self::No(problems));
        }
        placeable?;
        let drained = app.store().drained().await?;
        let sound = sound_servers(app.store()).await?;
        if sound.iter().any(|server| !drained.has(&server.id)) {
            return Ok(Self::Yes);
        }
        let problems = sound.into_iter().map(|server| PlacementProblem {
            code: ProblemCode::Drained,
            message: format!(
                "server {} is drained: it keeps the runs that it has and takes no other; `caisson resume` ends that",
                server.id
            ),
        });
        Ok(Self::No(problems.collect()))
    }
}

/// The last answer, for as long as it is good.
#[derive(Debug)]
pub(crate) struct Answers {
    good_for: Duration,
    turn: Semaphore,
    last: Mutex<Option<(Instant, Ready)>>,
}

impl Answers {
    /// A yes is good for so long; a no for a part of it.
    pub(crate) fn good_for(good_for: Duration) -> Self {
        Self { good_for, turn: Semaphore::new(1), last: Mutex::default() }
    }

    /// The last answer if it is still good, else what `look` finds. One looks at a time: whoever waited for it finds its
    /// answer. A look that failed is not remembered.
    pub(crate) async fn tell(
        &self,
        look: impl Future<Output = Result<Ready, ApiError>>,
    ) -> Result<Ready, ApiError> {
        if let Some(ready) = self.last() {
            return Ok(ready);
        }
        let _turn = self.turn.acquire().await.map_err(ApiError::internal)?;
        if let Some(ready) = self.last() {
            return Ok(ready);
        }
        let ready = look.await?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ready.clone()));
        Ok(ready)
    }

    fn last(&self) -> Option<Ready> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, ready) = last.as_ref()?;
        let good_for = match ready {
            Ready::Yes => self.good_for,
            Ready::No(_) => self.good_for / NO_PART,
        };
        (at.elapsed() < good_for).then(|| ready.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::READY_FOR;

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_one_looks_and_a_no_is_good_for_less_than_a_yes() {
        let answers = Answers::good_for(READY_FOR);
        let looks = AtomicUsize::new(0);
        let find = async |ready: Ready| {
            looks.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(ready)
        };
        assert!(answers.tell(async { Err(ApiError::QueueFull) }).await.is_err());
        let at_once = (answers.tell(find(Ready::Yes)), answers.tell(find(Ready::Yes)));
        let (one, two) = tokio::join!(at_once.0, at_once.1);
        assert_eq!((one.unwrap(), two.unwrap(), looks.load(Ordering::SeqCst)), (Ready::Yes, Ready::Yes, 1));
        let no = Ready::No(Vec::new());
        tokio::time::advance(READY_FOR * 19 / 20).await;
        assert_eq!(answers.tell(find(no.clone())).await.unwrap(), Ready::Yes);
        tokio::time::advance(READY_FOR / 20).await;
        assert_eq!(answers.tell(find(no.clone())).await.unwrap(), no);
        tokio::time::advance(READY_FOR / NO_PART / 2).await;
        assert_eq!(answers.tell(find(Ready::Yes)).await.unwrap(), no);
        tokio::time::advance(READY_FOR / NO_PART / 2).await;
        assert_eq!(answers.tell(find(Ready::Yes)).await.unwrap(), Ready::Yes);
        assert_eq!(looks.load(Ordering::SeqCst), 3);
    }
}
