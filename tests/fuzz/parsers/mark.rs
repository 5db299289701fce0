//! The mark of a synch point: a data block, whose checksum is in its entry. Input: the mark.

use salvol::format::*;

use super::Target;

pub const TARGET: Target = Target { name: "mark", run, seeds, bytes_max: BLOCK_BYTES, mutations: 4000 };

fn run(data: &[u8]) -> bool {
    let Ok((mark, used)) = SynchMark::parse(data) else { return false };
    assert!(mark.label.len() <= LABEL_BYTES_MAX && mark.info.len() <= INFO_BYTES_MAX && used <= data.len());
    let mut bytes = data[..used].to_vec();
    bytes[28..32].fill(0);
    assert_eq!(mark.encode(), bytes, "one mark, two encodings");
    assert_eq!(SynchMark::parse(&bytes), Ok((mark, used)));
    true
}

pub fn example() -> SynchMark {
    SynchMark {
        point: 700,
        time_ns: 1_700_000_000_123_456_789,
        label: "before the upgrade".to_owned(),
        info: "wal 0/16B3748".to_owned(),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let long = SynchMark { label: "x".repeat(LABEL_BYTES_MAX), info: "y".repeat(INFO_BYTES_MAX), ..example() };
    let none = SynchMark { label: String::new(), info: String::new(), ..example() };
    [example(), long, none].iter().map(SynchMark::encode).collect()
}
