//! Fork and pin records. Input: the beginning of the record, zeros behind; the checksums are put right, of a fork record that of the
//! superblock in it too.

use salvol::archive::{FORK_RECORD_BYTES, ForkRecord, PIN_RECORD_BYTES, PinRecord};
use salvol::format::*;

use super::seal::{clear, grown, keyed, plain, volume};
use super::{Target, batch};

pub const FORK: Target = Target { name: "fork", run: fork, seeds: fork_seeds, bytes_max: 1700, mutations: 4000 };
pub const PIN: Target =
    Target { name: "pin", run: pin, seeds: pin_seeds, bytes_max: PIN_RECORD_BYTES + 1, mutations: 4000 };

pub const FORK_BYTES: usize = FORK_RECORD_BYTES;
pub const PIN_BYTES: usize = PIN_RECORD_BYTES;
const SUPERBLOCK_AT: usize = 240;

fn fork(data: &[u8]) -> bool {
    let volume = volume();
    assert!(data.len() == FORK_BYTES || ForkRecord::parse(data, volume).is_err());
    let mut bytes = grown(data, FORK_BYTES);
    let _ = ForkRecord::parse(&bytes, volume);
    plain(&mut bytes[SUPERBLOCK_AT..SUPERBLOCK_AT + BLOCK_BYTES], BLOCK_BYTES - 16);
    keyed(&mut bytes, FORK_BYTES - 16);
    let Ok(record) = ForkRecord::parse(&bytes, volume) else { return false };
    assert!(record.successor.uuid == volume.uuid && record.successor.history != record.parent());
    assert!(ForkRecord::is_name(&record.name()) && !PinRecord::is_name(&record.name()));
    assert!(!record.to_string().is_empty());
    assert!(record.epoch <= 1 << 62 && record.segment.0 <= 1 << 62, "what no log reaches");
    // Encoded it is canonical: without what changes from one opening to the next.
    let encoded = record.encode();
    let again = ForkRecord::parse(&encoded, volume).unwrap();
    let mut canonical = record.clone();
    (canonical.successor.generation, canonical.successor.epoch) = (0, 0);
    (canonical.successor.clean_close, canonical.successor.accepted_loss) = (None, None);
    assert_eq!(again, canonical);
    clear(&mut bytes, &[12..16, 24..32, 96..SUPERBLOCK_AT]);
    assert!(encoded[..SUPERBLOCK_AT] == bytes[..SUPERBLOCK_AT], "one record, two encodings");
    true
}

fn fork_seeds() -> Vec<Vec<u8>> {
    vec![fork_of(volume())]
}

/// An input that is the fork of `volume` at position 700.
pub fn fork_of(volume: &Superblock) -> Vec<u8> {
    let successor = Superblock {
        history: Uuid([0x66; 16]),
        parent_history: volume.history,
        fork_position: Position(700),
        ..volume.clone()
    };
    let (segment, checksum) = (batch::example().segment, Checksum([0x45; 16]));
    let record = ForkRecord { successor, segment, checksum, epoch: 4, time_ns: 1_700_000_000_500_000_000 };
    record.encode()[..SUPERBLOCK_AT + 1344].to_vec()
}

fn pin(data: &[u8]) -> bool {
    let volume = volume();
    assert!(data.len() == PIN_BYTES || PinRecord::parse(data, volume).is_err());
    let mut bytes = grown(data, PIN_BYTES);
    let _ = PinRecord::parse(&bytes, volume);
    keyed(&mut bytes, PIN_BYTES - 16);
    let Ok(record) = PinRecord::parse(&bytes, volume) else { return false };
    let kept = record.window().end().0 - record.window().start().0;
    assert!(kept <= u64::from(volume.geometry.working_set), "it keeps more than any scan needs");
    clear(&mut bytes, &[12..16, 24..32, 104..PIN_BYTES - 16]);
    keyed(&mut bytes, PIN_BYTES - 16);
    assert_eq!(PinRecord::parse(&bytes, volume), Ok(record), "what is not read says nothing");
    assert_eq!(record.encode(volume), bytes, "one record, two encodings");
    true
}

fn pin_seeds() -> Vec<Vec<u8>> {
    let record = PinRecord {
        history: volume().history,
        position: Position(700),
        point_time_ns: 1_700_000_000_123_456_789,
        segment: SegmentNumber(9),
        oldest_needed: SegmentNumber(1),
        time_ns: 1_700_000_000_500_000_000,
    };
    let one = PinRecord { segment: SegmentNumber(1), oldest_needed: SegmentNumber(1), ..record };
    [record, one].iter().map(|record| record.encode(volume())[..112].to_vec()).collect()
}
