//! Rollback, as far as the log knows of it: where it begins and ends. What lies between happens at once.
//!
//! A rollback appends what differs between now and then, as any writer does, so each block is switched when it is placed.
//! The begin entry says that this goes on until the commit entry, and is repeated at the start of each segment in between:
//! so the last segment alone tells whether a rollback is under way, and any segment whether its positions lie in one.

use super::{Keep, Log, LogError, State};
use crate::format::{Entry, EntryKind, Position, Summary};
use crate::io::Platform;

/// A rollback that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollback {
    /// The position of its first batch: the volume before it is that of the position before.
    pub begin: Position,
    /// The position to which the volume returns.
    pub to: Position,
}

impl Rollback {
    /// The rollback that was under way at `position` of the segment of `summary`: begun, and not committed.
    pub fn at(summary: &Summary, position: Position) -> Option<Self> {
        let mut under_way = None;
        for (at, _, entries) in summary.walk().take_while(|(at, ..)| *at <= position) {
            for entry in entries {
                match entry.kind() {
                    Ok(EntryKind::RollbackBegin) => {
                        let begin = Position(at.0.saturating_sub(u64::from(entry.rollback_since())));
                        under_way = Some(Self { begin, to: entry.rollback_to() });
                    }
                    Ok(EntryKind::RollbackCommit) => under_way = None,
                    _ => {}
                }
            }
        }
        under_way
    }
}

impl<P: Platform> Log<P> {
    /// The rollback that is under way: one that a crash has interrupted, too.
    pub fn rollback(&self) -> Option<Rollback> {
        self.0.state.borrow().rollback
    }

    /// Begins a rollback to `to`. Everything placed from now on belongs to it, until [`Self::commit_rollback`].
    ///
    /// # Errors
    /// When the log takes nothing more.
    pub async fn begin_rollback(&self, to: Position) -> Result<Rollback, LogError> {
        if self.0.state.borrow().fail_waiting {
            return Err(LogError::Closing);
        }
        self.control(
            0,
            0,
            Keep::Reserve,
            || true,
            |state| {
                state.rollback = Some(Rollback { begin: state.head.position(), to });
                state.note_rollback();
                state.rollback
            },
        )
        .await
    }

    /// Ends the rollback that is under way; durable when it returns.
    ///
    /// # Errors
    /// When the log takes nothing more: then it is still under way.
    pub async fn commit_rollback(&self) -> Result<Position, LogError> {
        let position = self
            .control(
                0,
                0,
                Keep::Reserve,
                || true,
                |state| {
                    let to = state.rollback.take().map_or(Position(0), |rollback| rollback.to);
                    state.head.place(Entry::rollback_commit(to));
                    Some(state.head.position())
                },
            )
            .await?;
        self.acknowledged(position).await?;
        self.flush().await?;
        Ok(position)
    }
}

impl State {
    /// Says in the open batch, the first of its rollback or of a segment, that a rollback is under way.
    pub(super) fn note_rollback(&mut self) {
        let Some(Rollback { begin, to }) = self.rollback else { return };
        let since = self.head.position().0.saturating_sub(begin.0);
        self.head.place(Entry::rollback_begin(to, u32::try_from(since).unwrap_or(u32::MAX)));
    }
}
