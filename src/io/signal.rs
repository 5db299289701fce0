//! A signal: tasks of the owner wait for something to change, and look again when it may have.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes every waiting task at once. Belongs to one thread.
#[derive(Debug, Default)]
pub struct Signal {
    waiting: RefCell<Vec<Waker>>,
    /// The memory of those that were woken last.
    spare: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Waits until `ready` gives a value; asked at once, and again after each [`Self::notify`].
    pub async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match ready() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// Lets every waiting task look again.
    pub fn notify(&self) {
        let mut waiting = std::mem::replace(&mut *self.waiting.borrow_mut(), self.spare.take());
        waiting.drain(..).for_each(Waker::wake);
        self.spare.replace(waiting);
    }

    /// Whether a task waits.
    pub fn is_waited_for(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }
}
