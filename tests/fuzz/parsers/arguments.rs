//! Sizes, durations and SPECs as people write them, and the geometry that they ask for. What parses them is the command's, so it is
//! compiled here once more.

#[path = "../../../src/cli/geometry.rs"]
#[allow(dead_code, reason = "compiled for its arithmetic")]
mod geometry;
#[path = "../../../src/cli/parse.rs"]
#[allow(dead_code, reason = "compiled for its parsers")]
mod parse;

use std::time::Duration;

use geometry::{Wish, solve};
use parse::{Size, Source, age, compression, duration, limit, name, size, spec, utilisation};
use salvol::archive::Spec;
use salvol::format::{SPEC_BYTES_MAX, Superblock, is_name};

use super::Target;
use super::seal::volume;

pub const SIZE: Target = Target { name: "size", run: run_size, seeds: size_seeds, bytes_max: 64, mutations: 4000 };
pub const DURATION: Target =
    Target { name: "duration", run: run_duration, seeds: duration_seeds, bytes_max: 64, mutations: 4000 };
pub const SPEC: Target = Target { name: "spec", run: run_spec, seeds: spec_seeds, bytes_max: 1200, mutations: 4000 };

pub const GEOMETRY: Target =
    Target { name: "geometry", run: run_geometry, seeds: geometry_seeds, bytes_max: 41, mutations: 4000 };

/// What a size that is a float may have at most.
const FLOAT_MAX: u64 = 9_000_000_000_000_000_000;

fn run_size(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    if let Ok(share) = utilisation(text) {
        assert!((0.05..=0.95).contains(&share));
    }
    let Ok(found) = size(text) else { return false };
    assert!(found.0 > 0, "a size of nothing");
    assert!(!Size::of_blocks(found.0).to_string().is_empty());
    assert_eq!(size(&found.0.to_string()), Ok(found));
    if found.0 < FLOAT_MAX {
        let Size(shown) = size(&found.to_string()).expect("what is shown can be given");
        assert!(shown.abs_diff(found.0) <= found.0 / 19, "{text} is shown as {found}");
    }
    true
}

fn run_duration(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let found = duration(text);
    if let Ok(found) = found {
        let same = jiff::SignedDuration::try_from(found).unwrap();
        assert_eq!(duration(&format!("{same:#}")), Ok(found));
        let in_bounds = (Duration::from_millis(1)..=Duration::from_secs(366 * 24 * 3600)).contains(&found);
        assert_eq!(limit(text), if in_bounds { Ok(found) } else { limit(text).and(Err(String::new())) });
    } else {
        assert!(limit(text).is_err());
    }
    if let Ok(found) = age(text) {
        assert!(found > Duration::ZERO);
    }
    found.is_ok()
}

fn run_spec(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let _ = compression(text);
    assert_eq!(name(text).is_ok(), is_name(text));
    if let Ok(Source::Name(found)) = Source::parse(text) {
        assert!(is_name(found.split('@').next().unwrap()), "{found:?} would name a file");
    }
    if let Ok(known) = Spec::parse(text) {
        assert_eq!(known.to_string(), text);
    }
    let Ok(found) = spec(text) else { return false };
    assert_eq!(spec(&found), Ok(found.clone()), "a SPEC that is absolute stays what it is");
    assert_eq!(Spec::parse(&found).map(|spec| spec.to_string()), Ok(found.clone()));
    assert!(found.len() <= SPEC_BYTES_MAX);
    let kept = Superblock { backing: found.clone(), ..volume().clone() };
    assert_eq!(Superblock::parse(&kept.encode()).unwrap().backing, found, "the superblock cannot remember it");
    true
}

/// Input: which of the wishes there are, then the wishes, eight bytes each.
fn run_geometry(data: &[u8]) -> bool {
    let bytes = super::seal::grown(data, 41);
    let number = |rank: usize| {
        let at = 1 + rank * 8;
        (bytes[0] >> rank & 1 == 1).then(|| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()))
    };
    let [primary_blocks, volume_bytes, segment_bytes, utilisation, segments] = std::array::from_fn(number);
    let wish = Wish {
        // What a device or file can have.
        primary_blocks: primary_blocks.map(|blocks| blocks % (1 << 51)),
        volume_bytes,
        segment_bytes,
        utilisation: utilisation.map(|part| 0.05 + 0.9 * (part % 1000) as f64 / 999.0),
        working_set: segments.map(|segments| segments as u32),
        spare: segments.filter(|_| bytes[0] & 32 != 0).map(|segments| (segments >> 32) as u32),
        archived: bytes[0] & 64 != 0,
    };
    let plan = match solve(&wish) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let geometry = &plan.geometry;
    assert!(geometry.check().is_ok() && wish.primary_blocks.is_none_or(|blocks| geometry.primary_blocks == blocks));
    assert!(volume_bytes.is_none_or(|bytes| geometry.volume_blocks * 4096 == bytes), "a volume of another size");
    assert!(wish.working_set.is_none_or(|segments| geometry.working_set == segments));
    assert!(wish.spare.is_none_or(|spare| plan.spare == spare) && plan.utilisation <= 0.95);
    let used = 257 + u64::from(geometry.slots) * u64::from(geometry.segment_blocks) + plan.unused_blocks;
    assert_eq!(used, geometry.primary_blocks);
    true
}

fn geometry_seeds() -> Vec<Vec<u8>> {
    let wish = |which: u8, numbers: [u64; 5]| {
        [&[which][..], &numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>()].concat()
    };
    vec![
        wish(2, [0, 10 << 30, 0, 0, 0]),
        wish(1 | 64, [4 << 18, 0, 0, 0, 0]),
        wish(31 | 32 | 64, [8 << 18, 1 << 30, 1 << 20, 500, 40 | 9 << 32]),
    ]
}

fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn size_seeds() -> Vec<Vec<u8>> {
    bytes(&["512M", "10G", "4096", "1.5T", " 7 KiB", "18446744073709551615", "0.67", "1e3K", "8191.9PB", "-1G", "infT"])
}

fn duration_seeds() -> Vec<Vec<u8>> {
    bytes(&["30s", "500ms", "1h30m", "0", "7d", "2w", "1d 12h", "PT5M", "-3s", "1 month", "584542046090y", "1.5h ago"])
}

fn spec_seeds() -> Vec<Vec<u8>> {
    bytes(&[
        "dir:/backup/db",
        "file:ring",
        "dev:/dev/sdb",
        "none",
        "s3://b/p",
        "dir:",
        "zstd:7",
        "db@p42",
        "./x",
        "dir:../a//b/.",
    ])
}
