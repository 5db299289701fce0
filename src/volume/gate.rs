//! The gate that every request passes. A rollback closes it: nobody sees the volume while it is neither now nor then.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::RequestError;
use crate::io::Signal;

#[derive(Default)]
pub(super) struct Gate {
    closed: Cell<bool>,
    /// Why nobody may pass until the volume has been opened again.
    broken: RefCell<Option<Arc<str>>>,
    inside: Cell<u32>,
    changed: Signal,
}

/// Somebody who has passed; gone when dropped.
pub(super) struct Inside<'a>(&'a Gate);

/// The gate is closed until this is dropped.
pub(super) struct Closed<'a>(&'a Gate);

impl Gate {
    /// Passes, when it is open.
    ///
    /// # Errors
    /// When it will not be opened any more.
    pub(super) async fn enter(&self) -> Result<Inside<'_>, RequestError> {
        if self.closed.get() {
            self.changed.until(|| (!self.closed.get()).then_some(())).await;
        }
        if let Some(cause) = &*self.broken.borrow() {
            return Err(RequestError::Stopped { cause: Arc::clone(cause) });
        }
        self.inside.set(self.inside.get() + 1);
        Ok(Inside(self))
    }

    /// Closes it and waits until nobody is inside. None when somebody else has closed it.
    pub(super) async fn close(&self) -> Option<Closed<'_>> {
        if self.closed.replace(true) {
            return None;
        }
        let closed = Closed(self);
        self.changed.until(|| (self.inside.get() == 0).then_some(())).await;
        Some(closed)
    }

    /// Lets nobody pass any more.
    pub(super) fn break_down(&self, cause: Arc<str>) {
        *self.broken.borrow_mut() = Some(cause);
    }

    /// Lets whoever comes pass again.
    pub(super) fn mend(&self) {
        *self.broken.borrow_mut() = None;
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        if self.0.closed.get() {
            self.0.changed.notify();
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.closed.set(false);
        self.0.changed.notify();
    }
}
