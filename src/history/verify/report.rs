//! What a verify says: the JSON of `salvol verify`.

use serde::Serialize;

/// Something that is wrong, where, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyFinding {
    /// Slot and byte of the primary, or the name of the object.
    #[serde(rename = "where")]
    pub place: String,
    pub segment: Option<u64>,
    /// Rank of the frame in the archive object.
    pub frame: Option<u32>,
    /// First damaged block of the segment's slot, and the one behind the last.
    pub offset: Option<u32>,
    pub offset_end: Option<u32>,
    /// First block of the volume whose data is hit, and all of them.
    pub block: Option<u64>,
    pub blocks: Vec<u64>,
    /// The log positions that wrote what is hit, first and last.
    pub position: Option<u64>,
    pub position_end: Option<u64>,
    pub what: String,
    /// Whether everything that is hit has another good copy: it is repaired on read.
    pub covered: bool,
    /// The synch points that do not come back bit for bit because of this.
    pub points: Vec<String>,
    /// The segment cannot be read at all, so nobody knows which points were marked in it: none of them comes back.
    pub points_unknown: bool,
}

impl std::fmt::Display for VerifyFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.covered { "covered: " } else { "damage: " })?;
        f.write_str(&self.place)?;
        if let Some(segment) = self.segment {
            write!(f, ", segment {segment}")?;
        }
        if let Some(frame) = self.frame {
            write!(f, ", frame {frame}")?;
        }
        span(f, "offset", self.offset.map(u64::from), self.offset_end.map(|end| u64::from(end).saturating_sub(1)))?;
        span(f, "position", self.position, self.position_end)?;
        write!(f, ": {}", self.what)?;
        if let Some(block) = self.block {
            match self.blocks.len() {
                0 | 1 => write!(f, " (block {block})")?,
                count => write!(f, " ({count} blocks, the first is block {block})")?,
            }
        }
        if self.covered {
            f.write_str("; another good copy is there")?;
        }
        match self.points.as_slice() {
            [] if self.covered => Ok(()),
            [] if self.points_unknown => f.write_str("; the points inside it are unknown"),
            [] => f.write_str("; no synch point needs it"),
            points if self.points_unknown => {
                write!(f, "; affects {} and the points inside it, which are unknown", points.join(" "))
            }
            points => write!(f, "; affects {}", points.join(" ")),
        }
    }
}

fn span(f: &mut std::fmt::Formatter<'_>, what: &str, first: Option<u64>, last: Option<u64>) -> std::fmt::Result {
    match (first, last) {
        (Some(first), Some(last)) if last > first => write!(f, ", {what}s {first} to {last}"),
        (Some(first), _) => write!(f, ", {what} {first}"),
        _ => Ok(()),
    }
}

/// The outcome of a verify.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Whether nothing was found.
    pub ok: bool,
    pub name: String,
    pub uuid: String,
    /// The point that alone was verified.
    pub at: Option<String>,
    /// Segments of which a copy was read, and archive objects.
    pub segments: u64,
    pub objects: u64,
    /// Bytes that were read from primary and archive, and data blocks that were held against their checksums.
    pub bytes: u64,
    pub blocks: u64,
    /// Synch points that are proven to come back: all their segments are there, chained and sound.
    pub points: u64,
    pub points_affected: Vec<String>,
    /// Segments that cannot be read, or are missing: which points were marked in them nobody knows, and they are affected too.
    pub segments_unknown: Vec<u64>,
    /// Objects that no reader takes: of a past that was given up.
    pub objects_unused: Vec<String>,
    /// Damage is so large that the points were not told apart: all that reach into a segment with damage are listed.
    pub cut: bool,
    pub seconds: f64,
    pub findings: Vec<VerifyFinding>,
}
