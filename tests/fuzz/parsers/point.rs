//! A POINT as a person writes it: an id, a label, `latest`, a time, a position. Asked of a volume with points.

use std::sync::Arc;

use salvol::archive::{Extent, MemoryStore, ObjectHeader, Packing, Store, encode_object};
use salvol::history::{Source, check_label, parse_time, rfc3339};

use super::Target;
use super::seal::Sections;
use super::walk::{Built, Start, batches, build, sections, small};

pub const TARGET: Target = Target { name: "point", run, seeds, bytes_max: 64, mutations: 300 };

thread_local! {
    static SOURCE: Source = source();
    static EMPTY: Source = Source::open_store(small(), None).unwrap();
}

/// A past of three segments with a point each, in memory.
fn source() -> Source {
    let (store, small) = (MemoryStore::new(), small());
    let sections = sections(true, &batches()[..4]);
    let bytes = Sections::join(&sections.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut start = Start::FIRST;
    for _ in 0..3 {
        let Built { image, walk, next, .. } = build(start, &mut Sections(&bytes));
        let object = encode_object(&small, &walk.summary, Extent::WHOLE, &image, Packing::Zstd(1)).unwrap();
        let name = ObjectHeader::new(&small, &walk.summary, Extent::WHOLE, small.geometry.segment_blocks).name;
        store.put(&name, &object).unwrap();
        start = next;
    }
    Source::open_store(small, Some(Arc::new(store))).unwrap()
}

fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    if let Some(time_ns) = parse_time(text) {
        assert_eq!(parse_time(&rfc3339(time_ns)), Some(time_ns));
    }
    let nothing = EMPTY.with(|empty| empty.resolve(text)).unwrap_err();
    assert!(nothing.is_no_point() || nothing.is_usage(), "{nothing}");
    let is_label = check_label(text).is_ok();
    let digits = text.strip_prefix('p').unwrap_or(text);
    // What means something else is no label; a number too large for one means nothing.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u64>().is_ok();
    assert_eq!(is_label, text != "latest" && !is_number);
    SOURCE.with(|source| {
        let _ = source.nearest(text);
        let Ok(moment) = source.resolve(text) else { return false };
        if let Some(mark) = moment.mark.as_ref().filter(|_| is_label && parse_time(text).is_none()) {
            assert_eq!(mark.label, text);
        }
        let again = source.resolve(&moment.name()).unwrap();
        assert_eq!((again.position, again.segment), (moment.position, moment.segment));
        true
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "p4",
        "p8",
        "latest",
        "before the upgrade",
        "1",
        "12",
        "18446744073709551615",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.123456789+01:00",
        "2023-11-14 22:13",
        "-9999-01-01T00:00:00Z",
        "",
        "p",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
