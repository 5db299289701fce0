//! Flushing: one device flush for everybody who waits, submitted after everything had ended that was acknowledged when they asked.

use super::limits::IDLE_RECORD;
use super::{Flushes, Keep, Log, LogError, State};
use crate::format::{Entry, Position, Slot};
use crate::io::{Device, Platform};

impl<P: Platform> Log<P> {
    /// Makes everything durable that has been acknowledged so far.
    ///
    /// When nothing has been acknowledged since the last flush was submitted there is nothing to do but to wait for that one.
    ///
    /// # Errors
    /// When the flush failed, now or before: a failed flush is never retried into success.
    pub async fn flush(&self) -> Result<(), LogError> {
        let asked = {
            let state = self.0.state.borrow();
            state.check_stopped()?;
            let Flushes { started, through, .. } = state.flushes;
            // A failed flush has stopped the log, so what one was submitted for is durable or about to be.
            let next = started + u64::from(through < state.completed);
            (state.durable < state.completed).then_some(next)
        };
        match asked {
            Some(number) => self.flush_number(number).await,
            None => Ok(()),
        }
    }

    /// Makes everything durable that has been written so far, summaries included.
    pub(super) async fn flush_everything(&self) -> Result<(), LogError> {
        let number = self.0.state.borrow().flushes.started + 1;
        self.flush_number(number).await
    }

    /// Waits until flush `number` has ended; leads one when none is running.
    async fn flush_number(&self, number: u64) -> Result<(), LogError> {
        loop {
            let lead = self
                .0
                .flushed
                .until(|| {
                    let mut state = self.0.state.borrow_mut();
                    if let Err(error) = state.check_stopped() {
                        return Some(Err(error));
                    }
                    let Flushes { started, ended, .. } = state.flushes;
                    if ended >= number {
                        return Some(Ok(false));
                    }
                    if started > ended {
                        return None;
                    }
                    state.flushes.started += 1;
                    state.flushes.through = state.completed;
                    Some(Ok(true))
                })
                .await?;
            if !lead {
                return Ok(());
            }
            self.lead_flush().await?;
        }
    }

    async fn lead_flush(&self) -> Result<(), LogError> {
        let (through, sealed) = {
            let mut state = self.0.state.borrow_mut();
            let through = state.flushes.through;
            (through, state.sealed_through(through))
        };
        let result = self.0.device.flush().await;
        {
            let mut state = self.0.state.borrow_mut();
            state.flushes.ended += 1;
            if result.is_ok() {
                state.durable = state.durable.max(through);
                let durable = state.durable;
                state.claims.durable(durable);
                for slot in sealed {
                    state.table.get_mut(slot).durable = true;
                }
            }
        }
        if let Err(error) = result {
            self.stop(&format!("flushing the primary failed: {error}"));
        } else {
            self.recycle();
            self.0.drain.notify();
        }
        self.0.flushed.notify();
        Ok(())
    }

    /// Twice a second: an idle volume flushes what is not durable yet, and records in the log how far it is, so that
    /// rot can be told from a torn tail.
    pub(super) async fn record_when_idle(self) {
        let mut before = Position(0);
        loop {
            self.0.platform.sleep(IDLE_RECORD).await;
            let (idle, flush, record) = {
                let state = self.0.state.borrow();
                if state.ended() {
                    return;
                }
                let position = state.head.last_position();
                let idle = position == before && !state.head.has_open() && state.completed == position;
                before = position;
                let unflushed = state.durable < state.completed || state.has_volatile_summary();
                (idle, unflushed, state.record_is_due())
            };
            if !idle {
                continue;
            }
            let flushed = if flush { self.flush_everything().await } else { Ok(()) };
            // Without a free slot the room belongs to headers that free one.
            let (slots, stuck) = {
                let state = self.0.state.borrow();
                (state.table.free_slots(), state.waits_for_record(&self.0.volume))
            };
            if flushed.is_ok() && (stuck || (flush || record) && slots > 0) {
                self.record_durable().await;
            }
            before = self.0.state.borrow().head.last_position();
        }
    }

    pub(super) async fn record_durable(&self) {
        // When there is no room, or the log stops meanwhile, the claim is simply not recorded.
        let fits = {
            let state = self.0.state.borrow();
            let promise = state.control_promise(&self.0.volume, Keep::Blocks(0));
            state.check().is_ok() && state.head.room_for_control(0, 0, promise)
        };
        if !fits {
            return;
        }
        if let Ok(position) = self.place_control(Entry::noop(), Keep::Blocks(0)).await
            && self.acknowledged(position).await.is_ok()
        {
            let _ = self.flush().await;
        }
    }
}

impl State {
    fn check_stopped(&self) -> Result<(), LogError> {
        match self.check() {
            Err(LogError::Closing) | Ok(()) => Ok(()),
            stopped => stopped,
        }
    }

    /// Sealed segments whose every byte has been written, so that a flush submitted now makes them durable.
    fn sealed_through(&mut self, through: Position) -> Vec<Slot> {
        let written = |info: &super::SlotInfo| info.sealed && !info.durable && info.last_position <= through;
        let found = self.table.volatile().filter(|(_, info)| written(info)).map(|(segment, _)| segment);
        let found: Vec<_> = found.collect();
        found.into_iter().filter_map(|segment| self.table.slot_of(segment)).collect()
    }

    fn has_volatile_summary(&self) -> bool {
        self.table.segments().rev().take(4).any(|(_, info)| info.sealed && !info.durable)
    }

    /// Whether something durable has happened that no header tells of. A noop of ours is not something.
    fn record_is_due(&self) -> bool {
        self.recorded < self.eventful && self.eventful <= self.durable
    }
}
