//! Questions about displays that wait for a moment, because somebody is just finding out the answer: a driver that has been told of
//! a change asks once, and is not told again by whoever has told it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout_at;

#[derive(Debug, Default)]
struct State {
    /// Who is finding out, and until when that is waited for.
    holds: Vec<(Arc<()>, Instant)>,
    resets: u64,
}

/// All holds on the questions of one device's driver.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(Arc<watch::Sender<State>>);

/// Questions that come from now on wait until this is dropped, or its time is over.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    token: Arc<()>,
}

impl Holds {
    /// Holds up questions that come after this call, by any thread.
    #[cfg_attr(
        not(feature = "vhost-user"),
        expect(dead_code, reason = "a front-end's displays alone have to be asked for")
    )]
    pub(crate) fn hold(&self, at_most: Duration) -> Hold {
        let token = Arc::new(());
        self.0.send_modify(|state| state.holds.push((Arc::clone(&token), Instant::now() + at_most)));
        Hold { holds: self.clone(), token }
    }

    /// What a question that comes now is to wait for; `None` where the answer is known, as it mostly is.
    pub(super) fn wait(&self) -> Option<impl Future<Output = ()> + use<>> {
        let now = Instant::now();
        let (waited, resets) = {
            let State { holds, resets } = &*self.0.borrow();
            let waited: Vec<_> = holds.iter().filter(|(_, ends)| *ends > now).cloned().collect();
            (waited, *resets)
        };
        let ends = waited.iter().map(|(_, ends)| *ends).max()?;
        let mut states = self.0.subscribe();
        Some(async move {
            let is_held = |state: &State| {
                let is_waited_for = |token| waited.iter().any(|(waited, _)| Arc::ptr_eq(waited, token));
                state.resets == resets && state.holds.iter().any(|(token, _)| is_waited_for(token))
            };
            // Too late, and the answer is what was known before.
            let _ = timeout_at(ends.into(), states.wait_for(|state| !is_held(state))).await;
        })
    }

    /// The driver has gone: its questions wait for nothing any more. Those of the next one do.
    pub(super) fn reset(&self) {
        self.0.send_modify(|state| state.resets += 1);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.0.send_modify(|state| state.holds.retain(|(token, _)| !Arc::ptr_eq(token, &self.token)));
    }
}
