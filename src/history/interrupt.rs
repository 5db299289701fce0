//! Ending what takes long, from a signal handler or another thread.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::HistoryError;

/// Asks a restore to end, and to leave what it has done so that it can go on.
#[derive(Debug, Default)]
pub struct Interrupt {
    signal: AtomicI32,
    pub(super) writing: AtomicBool,
}

impl Interrupt {
    /// Asks because of `signal`. Says whether there is a restore that will end by itself: nothing is left behind otherwise.
    pub fn ask(&self, signal: i32) -> bool {
        self.signal.store(signal, Ordering::SeqCst);
        self.writing.load(Ordering::SeqCst)
    }

    /// The signal because of which it was asked.
    pub fn asked(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    pub(super) fn check(&self) -> Result<(), HistoryError> {
        self.asked().map_or(Ok(()), |_| Err(HistoryError::Interrupted))
    }
}
