//! The table can fail: what is forged as far as a checksum without a key goes is detected, and a judge that is told other data than what
//! was written calls it wrong.

use std::sync::Arc;

use salvol::format::{BLOCK_BYTES, BatchHeader, block_crc};

use super::base::bases;
use super::cases::{Case, Change, Target};
use super::judge::Bench;
use super::map;
use super::run::{ring_of, scratch};

fn case(at: usize, bytes: Vec<u8>, number: usize) -> Case {
    let change = Change::Put { at, bytes: Arc::new(bytes) };
    Case {
        structure: "data block",
        damage: "forged",
        target: Target::Primary,
        change,
        covered: true,
        light: false,
        number,
    }
}

#[test]
fn what_is_forged_without_the_key_is_detected_and_with_it_the_judge_sees_it() {
    let [base, _] = bases(1, None);
    let (ring, directory) = (ring_of(&base), scratch());
    let bench = Bench::new(&base, &ring, directory.path().to_owned());
    // The last batch with one write in the open segment: header, then its data.
    let open = map::primary(&base.primary, &base.volume).open_slot();
    let header = open.start + BLOCK_BYTES;
    let batch = BatchHeader::parse(&base.primary[header..], &base.volume).unwrap();
    let mut run = base.primary[header..header + 2 * BLOCK_BYTES].to_vec();
    run[BLOCK_BYTES + 100] ^= 1;
    let crc = block_crc(&run[BLOCK_BYTES..]);
    // Data and its CRC32C, and the header's keyed checksum as it was.
    let mut patched = run.clone();
    patched[160 + 4..160 + 8].copy_from_slice(&crc.to_le_bytes());
    for number in [2, 3] {
        let verdict = bench.judge(&case(header, patched.clone(), number));
        assert!(verdict.wrong.is_none() && !verdict.is_harmless(), "{verdict:?}");
        assert_eq!(verdict.verified, Some(true), "{verdict:?}");
        assert_eq!(verdict.checked, Some(true), "{verdict:?}");
    }
    // Whoever has the key can make the header, and the batch behind it names another: the chain is broken.
    let entries: Vec<_> = batch.entries.iter().map(|entry| salvol::format::Entry::write(entry.block(), crc)).collect();
    batch.header.encode(&base.volume, &entries, &mut run[..BLOCK_BYTES]);
    let verdict = bench.judge(&case(header, run.clone(), 3));
    assert!(verdict.wrong.is_none() && !verdict.is_harmless(), "{verdict:?}");
    // And all that follows is forged as well: nothing in the log can tell, the model does.
    let second = header + 2 * BLOCK_BYTES;
    let mut next = BatchHeader::parse(&base.primary[second..], &base.volume).unwrap();
    next.header.predecessor = BatchHeader::chain_in(&run).1;
    let mut last = vec![0; BLOCK_BYTES];
    next.header.encode(&base.volume, &next.entries, &mut last);
    run.extend(last);
    let forged = case(header, run, 3);
    let mut unclosed = base.volume.clone();
    unclosed.clean_close = None;
    unclosed.generation += 1;
    let mut primary = base.primary.clone();
    for at in [0, base.volume.geometry.copy_at() as usize] {
        primary[at..at + BLOCK_BYTES].copy_from_slice(&unclosed.encode());
    }
    forged.change.apply(&mut primary);
    let forged = case(0, primary, 3);
    let verdict = bench.judge(&forged);
    assert!(verdict.wrong.is_some_and(|what| what.contains("nobody wrote")), "the model knows better");
}

#[test]
fn a_judge_that_is_told_other_data_calls_it_wrong() {
    let [base, _] = bases(1, None);
    let (ring, directory) = (ring_of(&base), scratch());
    let mut bench = Bench::new(&base, &ring, directory.path().to_owned());
    // A bit that nobody reads.
    let harmless = |number| Case {
        structure: "reserved blocks",
        damage: "bit flipped",
        target: Target::Primary,
        change: Change::Xor { at: 5000, mask: 1 },
        covered: false,
        light: false,
        number,
    };
    for number in [0, 1] {
        assert!(bench.judge(&harmless(number)).is_harmless());
    }
    bench.lie();
    for number in [0, 1] {
        assert!(bench.judge(&harmless(number)).wrong.is_some());
    }
}
