//! The past of a volume whose store holds what anybody may have signed. Input: a section with numbers, a fork record, a pin
//! record, then the sections of one object after the other, as in `object.rs`.

use std::sync::Arc;

use salvol::archive::{ForkRecord, Lineage, MemoryStore, PinRecord, Pins, Store};
use salvol::history::{Moment, Progress, Source, dump, index_at, verify, verify_at};

use super::object::{Made, make, object_sections};
use super::seal::{Sections, grown, keyed, plain, volume};
use super::walk::{Start, batches, small};
use super::{Target, records};

pub const TARGET: Target = Target { name: "past", run, seeds, bytes_max: 4096, mutations: 40 };

/// Objects of an input at most.
const OBJECTS_MAX: usize = 5;

fn run(data: &[u8]) -> bool {
    let mut rest = Sections(data);
    let [numbers, fork, pin] = std::array::from_fn(|_| rest.next());
    let (memory, small) = (MemoryStore::new(), small());
    if !fork.is_empty() {
        let mut record = grown(fork, records::FORK_BYTES);
        plain(&mut record[240..240 + 4096], 4080);
        keyed(&mut record, records::FORK_BYTES - 16);
        memory.put(&ForkRecord::name_of(volume().history), &record).unwrap();
    }
    if !pin.is_empty() {
        let mut record = grown(pin, records::PIN_BYTES);
        keyed(&mut record, records::PIN_BYTES - 16);
        memory.put(&PinRecord::name_of(volume().history, 1), &record).unwrap();
    }
    let mut start = Start::FIRST;
    let mut count = 0;
    while !rest.is_empty() && count < OBJECTS_MAX {
        let Made { bytes, name, next, .. } = make(start, &mut rest);
        if let Some(name) = name {
            // Of two with one name the first stays.
            let _ = memory.put(&name, &bytes);
        }
        // A number that is not 0 lets the next object be of the same segment.
        if numbers.get(count).copied().unwrap_or(0) == 0 {
            start = next;
        }
        count += 1;
    }
    let store: Arc<dyn Store> = Arc::new(memory);
    let _ = Pins::read(&store, &small);
    let _ = Lineage::refuse_stranger(&store, &small);
    let newest = Lineage::newest(&store, small.clone());
    let volume = newest.unwrap_or(small);
    look(Source::open_store(volume, Some(store)).ok())
}

/// Asks for everything that can be asked for; says whether there was a moment.
fn look(source: Option<Source>) -> bool {
    let Some(source) = source else { return false };
    let mut known = false;
    let points = source.points();
    let mut names = vec!["latest".to_owned(), "1".to_owned(), "p4".to_owned(), "2023-11-14T22:13:20Z".to_owned()];
    for point in points.iter().flat_map(|points| &points.points) {
        names.push(point.id.clone());
    }
    for name in names.iter().take(6) {
        if let Ok(moment) = source.resolve(name) {
            at(&source, &moment);
            known = true;
        }
    }
    if let Ok(report) = verify(&source, &Progress::none()) {
        serde_json::to_string(&report).unwrap();
    }
    let _ = dump(&source, None, &mut |section| {
        serde_json::to_string(&section).unwrap();
        Ok(())
    });
    known
}

fn at(source: &Source, moment: &Moment) {
    let _ = index_at(source, source.volume(), moment.segment, moment.position);
    let _ = verify_at(source, moment, &Progress::none());
}

fn seeds() -> Vec<Vec<u8>> {
    let joined = |numbers: &[u8], fork: &[u8], pin: &[u8], objects: &[Vec<Vec<u8>>]| {
        let own = vec![numbers.to_vec(), fork.to_vec(), pin.to_vec()];
        let all: Vec<Vec<u8>> = own.into_iter().chain(objects.iter().flatten().cloned()).collect();
        Sections::join(&all.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let whole = object_sections([0, 0, 0], &[], &batches());
    let parts = [[0, 1, 0], [0, 2, 2]].map(|flags| object_sections(flags, &[], &batches()[..3]));
    let (fork, pin) = (&records::fork_of(&small()), &(records::PIN.seeds)()[0]);
    vec![
        joined(&[], &[], &[], &[whole.clone(), whole.clone()]),
        joined(&[0, 1], &[], pin, &[whole.clone(), parts[0].clone(), parts[1].clone()]),
        joined(&[], fork, &[], &[whole]),
    ]
}
