//! What one watcher has not read yet.
//!
//! At most one value and one error beside it: a newer one takes the place of an older one that was
//! not read, so a watcher that never reads costs no memory. Filled by the driver, emptied by the
//! application.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use super::{Done, News, ResourceEvent};

/// The driver's end. Dropping it ends the stream of events.
pub(crate) struct Teller<T>(Arc<Mutex<State<T>>>);

/// The application's end.
pub(crate) struct Slot<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    /// At most a value, and an error beside it behind that.
    unread: VecDeque<ResourceEvent<T>>,
    waker: Option<Waker>,
    is_closed: bool,
}

pub(crate) fn slot<T>() -> (Teller<T>, Slot<T>) {
    let state = Arc::new(Mutex::new(State {
        unread: VecDeque::new(),
        waker: None,
        is_closed: false,
    }));
    (Teller(Arc::clone(&state)), Slot(state))
}

/// The state is whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Teller<T> {
    /// Puts news in place of what they supersede.
    pub(crate) fn tell(&self, news: News<T>, done: Done) {
        let waker = {
            let mut state = lock(&self.0);
            match &news {
                News::Changed(_) => state.unread.clear(),
                News::AmbientError(_) => {
                    let is_value =
                        |event: &ResourceEvent<T>| matches!(event.news, News::Changed(_));
                    state.unread.retain(is_value);
                }
            }
            state.unread.push_back(ResourceEvent { news, done });
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Teller<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = lock(&self.0);
            state.is_closed = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Slot<T> {
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<ResourceEvent<T>>> {
        let mut state = lock(&self.0);
        if let Some(event) = state.unread.pop_front() {
            return Poll::Ready(Some(event));
        }
        if state.is_closed {
            return Poll::Ready(None);
        }
        let is_known = |waker: &Waker| waker.will_wake(cx.waker());
        if !state.waker.as_ref().is_some_and(is_known) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        // Tokens of what will not be read.
        let unread = std::mem::take(&mut lock(&self.0).unread);
        drop(unread);
    }
}

impl<T> fmt::Debug for Teller<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").finish_non_exhaustive()
    }
}
