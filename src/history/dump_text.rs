//! The text of a dump. Stable: documents quote it, tests compare it.

use std::fmt::{Display, Formatter, Result};

use super::dump::{BatchDump, DumpSection, EntryDump, SegmentDump, SummaryDump, SuperblockDump};

impl Display for DumpSection {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Superblock(superblock) => superblock.fmt(f),
            Self::Empty { slot, offset, why } => writeln!(f, "slot {slot} at {offset:#x}: no segment ({why})"),
            Self::Segment(segment) => segment.fmt(f),
        }
    }
}

impl Display for SuperblockDump {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "superblock at {}", self.at)?;
        writeln!(f, "  name            {}", self.name)?;
        writeln!(f, "  volume          {}", self.volume)?;
        writeln!(f, "  history         {}", self.history)?;
        writeln!(f, "  parent history  {}, fork position {}", self.parent_history, self.fork_position)?;
        writeln!(f, "  generation      {}", self.generation)?;
        writeln!(f, "  epoch           {}", self.epoch)?;
        writeln!(f, "  created         {}", self.created)?;
        writeln!(f, "  primary         {} blocks", self.primary_blocks)?;
        writeln!(f, "  volume          {} blocks", self.volume_blocks)?;
        writeln!(f, "  segment         {} blocks", self.segment_blocks)?;
        writeln!(f, "  slots           {}, working set {}", self.slots, self.working_set)?;
        writeln!(f, "  archive at      {}, compression {}", self.archive_at, self.compression)?;
        writeln!(f, "  backing         {}", self.backing.escape_debug())?;
        if let Some((segment, epoch)) = &self.accepted_loss {
            writeln!(f, "  accepted loss   from segment {segment}, epochs up to {epoch}")?;
        }
        match &self.clean_close {
            Some((segment, position, checksum)) => {
                writeln!(f, "  clean close     segment {segment}, position {position}, checksum {checksum}")
            }
            None => writeln!(f, "  clean close     none"),
        }
    }
}

impl Display for SegmentDump {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "{}: segment {}", self.at, self.segment)?;
        writeln!(
            f,
            "  header: slot {}, epoch {}, first position {}, oldest needed {}, durable through {}, archived through {}, \
             volume {} blocks, working set {}, time {}",
            self.slot,
            self.epoch,
            self.first_position,
            self.oldest_needed,
            self.durable_through,
            self.archived_through,
            self.volume_blocks,
            self.working_set,
            self.time
        )?;
        writeln!(f, "  predecessor {}", self.predecessor)?;
        for batch in &self.batches {
            batch.fmt(f)?;
        }
        writeln!(f, "  end at offset {}: {}", self.end, self.end_why)?;
        self.summary.fmt(f)
    }
}

impl Display for BatchDump {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(
            f,
            "  batch {} at offset {}: epoch {}, time {}, wall {}, durable through {}, oldest needed {}, archived through {}, \
             volume {} blocks, working set {}, entries {}, data {}",
            self.position,
            self.offset,
            self.epoch,
            self.time,
            self.wall,
            self.durable_through,
            self.oldest_needed,
            self.archived_through,
            self.volume_blocks,
            self.working_set,
            self.entries.len(),
            self.data_blocks
        )?;
        writeln!(f, "    predecessor {} checksum {}", self.predecessor, self.checksum)?;
        self.entries.iter().try_for_each(|entry| entry.fmt(f))
    }
}

impl Display for EntryDump {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "    {}", self.kind)?;
        match self.kind {
            "close" | "noop" => {}
            "rollback-begin" | "rollback-commit" => write!(f, " to position {}", self.block)?,
            "synch" => write!(f, " p{}", self.block)?,
            "open" => write!(f, " epoch {}", self.block)?,
            _ => write!(f, " {}", self.block)?,
        }
        if let (Some(since), "rollback-begin") = (self.count, self.kind) {
            write!(f, ", {since} batches ago")?;
        } else if let Some(count) = self.count {
            write!(f, "+{count}")?;
        }
        if let (Some(crc), Some(offset)) = (&self.crc, self.offset) {
            write!(f, " at offset {offset} crc {crc}")?;
        }
        if self.damaged {
            f.write_str(" DAMAGED")?;
        }
        if let (Some(label), Some(info), Some(time)) = (&self.label, &self.info, &self.time) {
            write!(f, " time {time} label {label:?} info {info:?}")?;
        }
        writeln!(f)
    }
}

impl Display for SummaryDump {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if !self.present {
            return writeln!(f, "  summary: {}", self.note);
        }
        writeln!(
            f,
            "  summary: {} blocks, epoch {}, first position {}, batches {}, entries {}, synch points {}, last checksum {}: {}",
            self.blocks,
            self.epoch,
            self.first_position,
            self.batches,
            self.entries,
            self.synchs,
            self.last_checksum,
            self.note
        )
    }
}
