//! The worked examples of `docs/format.md` are what the encoder writes and the parser reads.
//!
//! After a change of the format: `SALVOL_BLESS=1 cargo test --test golden` writes the examples into the document; then read
//! the difference.
#![allow(clippy::unwrap_used, reason = "a panic is the failure")]

#[path = "golden/limits.rs"]
mod limits;
#[path = "golden/walk.rs"]
mod walk;

use salvol::archive::{ForkRecord, PinRecord};
use salvol::format::*;

/// Hex lines of sixteen bytes, runs of equal lines as one `*`.
fn hex(bytes: &[u8]) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut last: &[u8] = &[];
    for (rank, row) in bytes.chunks(16).enumerate() {
        if row == last {
            if lines.last().is_none_or(|line| line != "*") {
                lines.push("*".to_owned());
            }
            continue;
        }
        last = row;
        let text: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("{:06x}  {}", rank * 16, text.join(" ")));
    }
    lines.join("\n")
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        segment: SegmentNumber(9),
        slot: Slot(2),
        epoch: 4,
        first_position: Position(700),
        predecessor: Checksum([0x44; 16]),
        oldest_needed: SegmentNumber(1),
        durable_through: Position(690),
        archived_through: SegmentNumber(7),
        volume_blocks: 200,
        working_set: 8,
        time_ns: 1_700_000_000_000_000_000,
    }
}

fn mark() -> SynchMark {
    SynchMark {
        point: 700,
        time_ns: 1_700_000_000_123_456_789,
        label: "before the upgrade".to_owned(),
        info: "wal 0/16B3748".to_owned(),
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(BLOCK_BYTES, 0);
    block
}

fn entries() -> Vec<Entry> {
    let data = vec![0x5a; BLOCK_BYTES];
    vec![
        Entry::write(Block(17), block_crc(&data)),
        Entry::copy(Block(5), block_crc(&data)),
        Entry::range(Block(100), 20, false),
        Entry::synch(700, block_crc(&padded(&mark().encode()))),
    ]
}

fn batch_header() -> BatchHeader {
    BatchHeader {
        segment: SegmentNumber(9),
        offset: Offset(1),
        position: Position(700),
        epoch: 4,
        wall_ns: 1_700_000_000_123_456_789,
        time_ns: 1_700_000_000_123_456_789,
        durable_through: Position(699),
        oldest_needed: SegmentNumber(1),
        archived_through: SegmentNumber(7),
        volume_blocks: 200,
        working_set: 8,
        predecessor: Checksum([0x44; 16]),
    }
}

fn summary(last_checksum: Checksum) -> Summary {
    let header = batch_header();
    Summary {
        segment: header.segment,
        epoch: header.epoch,
        first_position: header.position,
        oldest_needed: header.oldest_needed,
        predecessor: header.predecessor,
        last_checksum,
        volume_blocks: header.volume_blocks,
        batches: vec![BatchRecord::new(header.offset, 4, 3, header.epoch, header.time_ns, header.wall_ns)],
        entries: entries(),
        synchs: vec![mark()],
    }
}

fn fork_record(checksum: Checksum) -> ForkRecord {
    let volume = Superblock::example();
    ForkRecord {
        successor: Superblock {
            history: Uuid([0x66; 16]),
            parent_history: volume.history,
            fork_position: Position(700),
            ..volume
        },
        segment: SegmentNumber(9),
        checksum,
        epoch: 4,
        time_ns: 1_700_000_000_500_000_000,
    }
}

fn pin_record() -> PinRecord {
    PinRecord {
        history: Superblock::example().history,
        position: Position(700),
        point_time_ns: mark().time_ns,
        segment: SegmentNumber(9),
        oldest_needed: SegmentNumber(1),
        time_ns: 1_700_000_000_500_000_000,
    }
}

/// Each structure as bytes, under the name that stands in the document in front of its example.
fn examples() -> Vec<(&'static str, Vec<u8>)> {
    let volume = Superblock::example();
    let mut segment = vec![0; BLOCK_BYTES];
    segment_header().encode(&volume, &mut segment);
    let mut batch = vec![0; BLOCK_BYTES];
    let checksum = batch_header().encode(&volume, &entries(), &mut batch);
    let summary = summary(checksum);
    let mut tail = vec![0; summary.blocks() as usize * BLOCK_BYTES];
    summary.encode(&volume, &mut tail);
    vec![
        ("superblock", volume.encode().to_vec()),
        ("segment header", segment),
        ("batch", batch),
        ("synch mark", padded(&mark().encode())),
        ("summary", tail),
        ("fork record", fork_record(checksum).encode()),
        ("pin record", pin_record().encode(&volume)),
    ]
}

fn document() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md")
}

fn marker(name: &str) -> String {
    format!("<!-- {name} -->\n")
}

/// The block of code behind the marker.
fn printed<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let after = &text[text.find(&marker(name))? + marker(name).len()..];
    after.strip_prefix("```text\n")?.split("\n```").next()
}

#[test]
fn the_worked_examples_are_what_the_encoder_writes() {
    let mut text = std::fs::read_to_string(document()).unwrap();
    if std::env::var_os("SALVOL_BLESS").is_some() {
        for (name, bytes) in examples() {
            let old = printed(&text, name).map(|old| format!("```text\n{old}\n```\n")).unwrap_or_default();
            let new = format!("```text\n{}\n```\n", hex(&bytes));
            text = text.replace(&format!("{}{old}", marker(name)), &format!("{}{new}", marker(name)));
        }
        std::fs::write(document(), &text).unwrap();
    }
    for (name, bytes) in examples() {
        assert_eq!(printed(&text, name), Some(hex(&bytes).as_str()), "the example of the {name} in docs/format.md");
    }
}

#[test]
fn the_worked_examples_are_read_back() {
    let volume = Superblock::example();
    let examples: std::collections::HashMap<_, _> = examples().into_iter().collect();
    assert_eq!(Superblock::parse(&examples["superblock"]).unwrap(), volume);
    assert_eq!(SegmentHeader::parse(&examples["segment header"], &volume).unwrap(), segment_header());
    let batch = BatchHeader::parse(&examples["batch"], &volume).unwrap();
    assert_eq!((batch.header, batch.entries.as_slice(), batch.data_blocks), (batch_header(), entries().as_slice(), 3));
    assert_eq!(SynchMark::parse(&examples["synch mark"]).unwrap().0, mark());
    assert_eq!(Summary::parse(&examples["summary"], &volume).unwrap(), summary(batch.checksum));
    let record = ForkRecord::parse(&examples["fork record"], &volume).unwrap();
    let mut written = fork_record(batch.checksum);
    written.successor.generation = 0;
    assert_eq!(record, written);
    assert_eq!(PinRecord::parse(&examples["pin record"], &volume).unwrap(), pin_record());
}

/// Every bit of every header matters, or is padding that nothing reads; a damaged one is refused, never taken for another.
#[test]
fn a_flipped_bit_is_found() {
    let volume = Superblock::example();
    for (name, bytes) in examples() {
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            let same = match name {
                "superblock" => Superblock::parse(&damaged).ok() == Some(volume.clone()),
                "segment header" => SegmentHeader::parse(&damaged, &volume).ok() == Some(segment_header()) && at >= 160,
                "batch" => BatchHeader::parse(&damaged, &volume).is_ok() && at >= 160 + 16 * entries().len(),
                "summary" => Summary::parse(&damaged, &volume).is_ok(),
                // A mark is a data block: its entry has its checksum.
                _ => block_crc(&damaged) == block_crc(&bytes),
            };
            let padding = matches!(name, "segment header" | "batch");
            let parsed = match name {
                "superblock" => Superblock::parse(&damaged).is_ok(),
                "segment header" => SegmentHeader::parse(&damaged, &volume).is_ok(),
                "batch" => BatchHeader::parse(&damaged, &volume).is_ok(),
                "summary" => Summary::parse(&damaged, &volume).is_ok(),
                "fork record" => ForkRecord::parse(&damaged, &volume).is_ok(),
                "pin record" => PinRecord::parse(&damaged, &volume).is_ok(),
                _ => false,
            };
            assert!(!parsed || (padding && same), "{name}: a flipped bit in byte {at} is not found");
        }
    }
}

/// Up to the fork any history is the volume's, behind it only its own.
#[test]
fn what_an_older_history_made_counts_up_to_the_fork() {
    let examples: std::collections::HashMap<_, _> = examples().into_iter().collect();
    for (fork, counts) in [(0, false), (699, false), (700, true), (u64::MAX >> 2, true)] {
        let volume = Superblock {
            history: Uuid([0x66; 16]),
            parent_history: Uuid([0x55; 16]),
            fork_position: Position(fork),
            ..Superblock::example()
        };
        let judged = |error: Option<FormatError>| match error {
            None => true,
            Some(error) => matches!(error, FormatError::Identity { .. }) && !counts,
        };
        assert!(judged(SegmentHeader::parse(&examples["segment header"], &volume).err()), "{fork}");
        assert!(judged(BatchHeader::parse(&examples["batch"], &volume).err()), "{fork}");
        assert!(judged(Summary::parse(&examples["summary"], &volume).err()), "{fork}");
        assert!(judged(SummaryTrailer::peek(&examples["summary"], &volume).err()), "{fork}");
        assert_eq!(SegmentHeader::parse(&examples["segment header"], &volume).is_ok(), counts);
        assert_eq!(BatchHeader::parse(&examples["batch"], &volume).is_ok(), counts);
        assert_eq!(Summary::parse(&examples["summary"], &volume).is_ok(), counts);
        let other = Superblock { uuid: Uuid([1; 16]), ..volume };
        assert!(BatchHeader::parse(&examples["batch"], &other).is_err());
    }
}

/// Names name files that root makes: one that leads elsewhere, or steers a terminal, is no name, however well it is signed.
#[test]
fn a_superblock_with_a_name_that_is_a_path_is_refused() {
    for name in ["", "..", "../../etc/cron.d/x", "a/b", ".hidden", "-rf", "a\u{1b}[2J", "a\nb", "\u{fc}"] {
        let block = Superblock { name: name.to_owned(), ..Superblock::example() }.encode();
        let refused = Superblock::parse(&block);
        assert!(matches!(refused, Err(FormatError::Field { field: "name", .. })), "{name:?}: {refused:?}");
    }
}

/// A key of one's own signs any header. No number in one leads to an overflow, in whatever profile.
#[test]
fn numbers_that_no_log_can_reach_are_refused() {
    let volume = Superblock::example();
    for huge in [0, u64::MAX - 1, u64::MAX] {
        let mut block = vec![0; BLOCK_BYTES];
        for header in [
            SegmentHeader { segment: SegmentNumber(huge), oldest_needed: SegmentNumber(0), ..segment_header() },
            SegmentHeader { first_position: Position(huge), ..segment_header() },
            SegmentHeader { epoch: huge, ..segment_header() },
        ] {
            header.encode(&volume, &mut block);
            assert!(matches!(SegmentHeader::parse(&block, &volume), Err(FormatError::Field { .. })), "{header:?}");
        }
        for header in [
            BatchHeader { segment: SegmentNumber(huge), ..batch_header() },
            BatchHeader { position: Position(huge), ..batch_header() },
            BatchHeader { epoch: huge, ..batch_header() },
        ] {
            header.encode(&volume, &entries(), &mut block);
            assert!(matches!(BatchHeader::parse(&block, &volume), Err(FormatError::Field { .. })), "{header:?}");
        }
        let mut tail = vec![0; BLOCK_BYTES];
        let hostile = Summary { first_position: Position(huge), ..summary(Checksum::default()) };
        hostile.encode(&volume, &mut tail);
        assert!(matches!(Summary::parse(&tail, &volume), Err(FormatError::Field { field: "first position", .. })));
        for record in [
            PinRecord { position: Position(huge), ..pin_record() },
            PinRecord { segment: SegmentNumber(huge), ..pin_record() },
            PinRecord { oldest_needed: SegmentNumber(huge), ..pin_record() },
        ] {
            let parsed = PinRecord::parse(&record.encode(&volume), &volume);
            assert!(matches!(parsed, Err(FormatError::Field { .. })), "{record:?}");
        }
        assert_eq!(Position(huge).next().0, huge.saturating_add(1));
        if huge > 0 {
            let superblock = Superblock { epoch: huge, ..volume.clone() }.encode();
            assert!(matches!(Superblock::parse(&superblock), Err(FormatError::Field { field: "epoch", .. })));
        }
    }
}

/// A pin keeps no more than a scan may need, and is of one volume; what is cut short or long is none.
#[test]
fn a_pin_that_no_point_can_have_is_refused() {
    let volume = Superblock::example();
    for (oldest, segment) in [(10, 9), (1, 10), (1, u64::MAX >> 2)] {
        let record =
            PinRecord { oldest_needed: SegmentNumber(oldest), segment: SegmentNumber(segment), ..pin_record() };
        let parsed = PinRecord::parse(&record.encode(&volume), &volume);
        assert!(matches!(parsed, Err(FormatError::Field { field: "oldest needed segment", .. })), "{record:?}");
    }
    let bytes = pin_record().encode(&volume);
    for length in (0..bytes.len()).chain([bytes.len() + 1]) {
        let mut cut = bytes.clone();
        cut.resize(length, 0);
        assert!(matches!(PinRecord::parse(&cut, &volume), Err(FormatError::Length { .. })), "{length}");
    }
    let other = Superblock { uuid: Uuid([0x12; 16]), ..volume.clone() };
    assert!(matches!(PinRecord::parse(&bytes, &other), Err(FormatError::Identity { .. })));
    let other = Superblock { key: Key([0x12; 32]), ..volume };
    assert!(matches!(PinRecord::parse(&bytes, &other), Err(FormatError::Checksum { .. })));
}
