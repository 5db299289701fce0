//! What a volume reports of itself: the fields of `salvol status --json`.

use serde::{Deserialize, Serialize};

use super::Volume;
use crate::archive::Packing;
use crate::format::{ArchiveAt, BLOCK_BYTES};
use crate::history::rfc3339;
use crate::io::Platform;
use crate::log::{Life, Table};

/// Segments by state. `archived` counts a property beside the states.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentCounts {
    pub current: u64,
    pub active: u64,
    pub inactive: u64,
    pub archived: u64,
    pub recycle: u64,
}

/// The archiver.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// Segments that wait for the archiver or are with it.
    pub queue: u64,
    pub lag_bytes: u64,
    /// Age of the oldest segment that is not archived yet.
    pub lag_seconds: f64,
    /// Age of the oldest change that is not in the archive: what losing the primary now would lose.
    pub exposed_seconds: f64,
    /// The log position up to which the archive alone can restore the volume.
    pub position: u64,
    /// Bytes of the store that are in use, and that it has: a ring's own, or those of a directory's file system. As they were at
    /// the last put.
    #[serde(default)]
    pub store_used_bytes: Option<u64>,
    #[serde(default)]
    pub store_capacity_bytes: Option<u64>,
    /// The store's SPEC.
    pub store: String,
    /// What keeps the archiver from archiving, when something does; since when, RFC 3339; and for how long.
    pub error: Option<String>,
    #[serde(default)]
    pub error_since: Option<String>,
    #[serde(default)]
    pub error_seconds: Option<f64>,
    /// The level of zstd that the last segment got, or is getting; none when it is stored as it is, or there was none yet.
    #[serde(default)]
    pub level: Option<i32>,
    /// Segments that are archived at once, at most.
    #[serde(default)]
    pub threads: u64,
    /// Bytes a second that the store is given, at most.
    #[serde(default)]
    pub rate_limit: Option<u64>,
}

/// An agent that has asked for points since the volume was attached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub name: String,
    /// How often it means to mark a point; 0 when it does not say.
    pub every_seconds: f64,
    /// Its last point, when that was marked, RFC 3339, and how long ago; none when none was.
    pub point: Option<String>,
    pub last_success: Option<String>,
    pub last_success_seconds: Option<f64>,
    /// Why it has marked none since, and how often it failed in a row.
    pub error: Option<String>,
    pub failures: u64,
}

/// A volume at a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub uuid: String,
    /// The device, when there is one.
    pub device: Option<String>,
    /// `live`, `throttled`, `waiting`, `stopped`, `read-only`, `rolling-back`, `detached`; `past` or `past, writable` for a view of the past.
    pub state: String,
    /// The moment that a view of the past shows.
    #[serde(default)]
    pub at: Option<String>,
    pub size_bytes: u64,
    pub block_size: u64,
    pub segment_size: u64,
    pub slots: u64,
    pub working_set_segments: u64,
    pub segments: SegmentCounts,
    pub archive_at: String,
    pub archive: ArchiveStatus,
    /// Data blocks appended for each block that users wrote.
    pub write_amplification: f64,
    pub user_bytes_written: u64,
    pub user_bytes_read: u64,
    /// Everything appended: headers, data, summaries.
    pub log_bytes_written: u64,
    pub bytes_archived: u64,
    pub compression_ratio: f64,
    /// Synch points that can be restored: of those on the primary at attach, and marked since.
    pub points: u64,
    /// RFC 3339 times of the oldest and the newest position that can be restored, from primary and archive.
    pub oldest_restorable: Option<String>,
    pub newest_restorable: Option<String>,
    /// The log position of the newest batch, and of the newest that is known to be durable.
    pub position: u64,
    pub durable_position: u64,
    pub epoch: u64,
    /// Segment number of the current segment: how often the log has turned over is this over the slots.
    pub current_segment: u64,
    pub throttled_seconds: f64,
    pub read_errors: u64,
    pub mapped_bytes: u64,
    /// Counters behind the amplification, in blocks: user data, copies, headers and summaries.
    pub user_blocks: u64,
    pub copied_blocks: u64,
    pub overhead_blocks: u64,
    #[serde(default)]
    pub agents: Vec<AgentStatus>,
}

impl<P: Platform> Volume<P> {
    /// The volume as it is now.
    pub fn status(&self) -> Status {
        let log = &self.0.log;
        let volume = self.superblock();
        let geometry = &volume.geometry;
        let counters = log.counters();
        let window = self.window();
        let (completed, durable) = log.positions();
        let (segments, mapped) = log.look(|index, table| (counts(table), index.mapped()));
        let user = counters.user_blocks.max(1) as f64;
        let logged = counters.user_blocks + counters.copied_blocks + counters.overhead_blocks;
        let ratio = counters.archived_image_bytes as f64 / counters.archived_bytes.max(1) as f64;
        Status {
            name: volume.name.clone(),
            uuid: volume.uuid.to_string(),
            device: None,
            state: self.state().to_owned(),
            at: None,
            size_bytes: bytes(geometry.volume_blocks),
            block_size: BLOCK_BYTES as u64,
            segment_size: geometry.segment_bytes() as u64,
            slots: u64::from(geometry.slots),
            working_set_segments: u64::from(geometry.working_set),
            segments,
            archive_at: match volume.archive_at {
                ArchiveAt::Seal => "seal".to_owned(),
                ArchiveAt::Inactive => "inactive".to_owned(),
            },
            archive: self.archive_status(),
            write_amplification: (counters.user_blocks + counters.copied_blocks) as f64 / user,
            user_bytes_written: bytes(counters.user_blocks),
            user_bytes_read: self.0.read_bytes.get(),
            log_bytes_written: bytes(logged),
            bytes_archived: counters.archived_bytes,
            compression_ratio: if counters.archived_bytes == 0 { 0.0 } else { ratio },
            points: log.points(),
            oldest_restorable: window.map(|(oldest, _)| rfc3339(oldest)),
            newest_restorable: window.map(|(_, newest)| rfc3339(newest)),
            position: completed.0,
            durable_position: durable.0,
            epoch: log.epoch(),
            current_segment: log.current_segment().0,
            throttled_seconds: counters.throttled.as_secs_f64(),
            read_errors: self.0.read_errors.get(),
            mapped_bytes: bytes(mapped),
            user_blocks: counters.user_blocks,
            copied_blocks: counters.copied_blocks,
            overhead_blocks: counters.overhead_blocks,
            agents: Vec::new(),
        }
    }

    /// The times between which any moment can be restored. What is in the archive stays there, but for pruning.
    fn window(&self) -> Option<(i64, i64)> {
        let (oldest, newest) = self.0.log.window()?;
        Some((self.0.archived_from_ns.get().map_or(oldest, |archived| archived.min(oldest)), newest))
    }

    fn state(&self) -> &'static str {
        let log = &self.0.log;
        if self.0.read_only {
            "read-only"
        } else if log.stopped().is_some() {
            "stopped"
        } else if log.rollback().is_some() {
            "rolling-back"
        } else if log.is_out_of_slots() && log.archive_state(|archive| archive.trouble.is_some()) {
            "waiting"
        } else if log.is_throttling() {
            "throttled"
        } else {
            "live"
        }
    }

    fn archive_status(&self) -> ArchiveStatus {
        let log = &self.0.log;
        let segment = self.geometry().segment_bytes() as u64;
        let (queue, oldest) = log.archive_queue();
        let now = log.platform().elapsed();
        let exposed_seconds = log.exposed().as_secs_f64();
        let position = if log.has_store() { log.archived_position().0 } else { 0 };
        log.archive_state(|archive| {
            let trouble = archive.trouble.as_ref();
            ArchiveStatus {
                queue,
                lag_bytes: queue * segment,
                lag_seconds: oldest.as_secs_f64(),
                exposed_seconds,
                position,
                store_used_bytes: archive.fill.map(|fill| fill.used),
                store_capacity_bytes: archive.fill.map(|fill| fill.capacity),
                store: self.superblock().backing.clone(),
                error: trouble.map(|trouble| trouble.what.clone()),
                error_since: trouble.map(|trouble| rfc3339(trouble.since_ns)),
                error_seconds: trouble.map(|trouble| now.saturating_sub(trouble.since).as_secs_f64()),
                level: match archive.packing {
                    Some(Packing::Zstd(level)) => Some(level),
                    Some(Packing::Raw) | None => None,
                },
                threads: archive.options.threads as u64,
                rate_limit: archive.options.rate,
            }
        })
    }
}

fn bytes(blocks: u64) -> u64 {
    blocks * BLOCK_BYTES as u64
}

fn counts(table: &Table) -> SegmentCounts {
    let mut counts = SegmentCounts { recycle: table.free_slots() as u64, ..SegmentCounts::default() };
    for (_, info) in table.segments() {
        match info.life {
            Life::Current => counts.current += 1,
            Life::Active => counts.active += 1,
            Life::Inactive => counts.inactive += 1,
            Life::Leaving | Life::Recycle => counts.recycle += 1,
        }
        counts.archived += u64::from(info.archived);
    }
    counts
}
