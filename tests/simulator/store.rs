//! A store that fails, spoils what it is given and reads wrong, by a seed. What it has taken and shown whole it keeps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use salvol::archive::{MemoryStore, ObjectName, Store, StoreError};
use salvol::format::{BLOCK_BYTES, Position, SegmentHeader, Slot, Superblock, walk_segment};
use salvol::io::simulated::{Dice, SimulatedDisk};

thread_local! {
    /// Where the volume is whose archive this thread's store is.
    static BENEATH: RefCell<Option<(SimulatedDisk, Superblock)>> = const { RefCell::new(None) };
}

/// From now on no power cut may take from the disk what a segment's object has.
pub fn never_ahead_of(beneath: Option<(SimulatedDisk, Superblock)>) {
    BENEATH.set(beneath);
}

fn check_durable(name: &ObjectName) {
    BENEATH.with_borrow(|beneath| {
        let Some((disk, volume)) = beneath.as_ref().filter(|_| name.part == 0) else { return };
        let geometry = volume.geometry;
        let mut image = vec![0; geometry.segment_bytes()];
        for slot in (0..geometry.slots).map(Slot) {
            let start = geometry.slot_place(slot).bytes();
            disk.peek(start, &mut image[..BLOCK_BYTES]);
            let header = SegmentHeader::parse(&image[..BLOCK_BYTES], volume).ok();
            let Some(header) = header.filter(|header| header.segment == name.segment) else { continue };
            disk.peek(start, &mut image);
            let walk = walk_segment(&image, volume, &header, Position(u64::MAX));
            let end = start + u64::from(walk.end.0) * BLOCK_BYTES as u64;
            assert!(
                walk.summary.epoch != name.epoch || disk.is_durable(start..end),
                "segment {} is archived before it is durable",
                name.segment
            );
        }
    });
}

/// What goes wrong, in so many of 1000 calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// A call fails, and nothing was done.
    pub fails: u64,
    /// A put or a delete fails, and was done.
    pub fails_late: u64,
    /// A put is reported as done, and what is kept differs, or is cut short.
    pub spoils: u64,
    /// A read gives a flipped bit, once.
    pub flips: u64,
}

#[derive(Default)]
struct Inside {
    trouble: Trouble,
    /// How often it was asked what about which object.
    calls: BTreeMap<(u8, Option<ObjectName>), u64>,
    met: BTreeMap<&'static str, u64>,
    trace: u64,
}

/// What happens to a call depends on what it is and on how often it was made before, not on the order in which several threads
/// make theirs.
pub struct UnreliableStore {
    pub inner: MemoryStore,
    seed: u64,
    inside: Mutex<Inside>,
}

/// The chances of one call.
struct Call<'a> {
    store: &'a UnreliableStore,
    dice: Dice,
}

impl UnreliableStore {
    pub fn new(seed: u64) -> Self {
        Self { inner: MemoryStore::new(), seed, inside: Mutex::default() }
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        self.inside.lock().unwrap().trouble = trouble;
    }

    /// What went wrong so far.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        self.inside.lock().unwrap().met.clone()
    }

    /// A number for everything that it was asked.
    pub fn trace(&self) -> u64 {
        self.inside.lock().unwrap().trace
    }

    /// A call begins; it may fail before anything is done.
    fn call(&self, kind: u8, name: Option<&ObjectName>, bytes: &[u8]) -> Result<Call<'_>, StoreError> {
        let mut inside = self.inside.lock().unwrap();
        let times = inside.calls.entry((kind, name.copied())).or_default();
        *times += 1;
        let object = name.map_or(0, |name| name.segment.0 << 20 | name.epoch << 8 | u64::from(name.part));
        let words = [u64::from(kind), object, *times, u64::from(salvol::format::block_crc(bytes))];
        let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
        inside.trace = inside.trace.wrapping_add(words.into_iter().fold(1, mix));
        let dice = Dice::new(words[..3].iter().copied().fold(self.seed, mix));
        drop(inside);
        let mut call = Call { store: self, dice };
        if call.strikes(|trouble| trouble.fails, "store failed") { Err(call.failure()) } else { Ok(call) }
    }
}

impl Call<'_> {
    fn strikes(&mut self, rate: impl Fn(&Trouble) -> u64, what: &'static str) -> bool {
        let mut inside = self.store.inside.lock().unwrap();
        let strikes = self.dice.below(1000) < rate(&inside.trouble);
        if strikes {
            *inside.met.entry(what).or_default() += 1;
        }
        strikes
    }

    fn failure(&mut self) -> StoreError {
        let store = self.store.spec();
        if self.dice.percent(50) {
            return StoreError::Refused { store, what: "it does not want to".to_owned() };
        }
        let source = std::io::Error::from_raw_os_error(self.dice.pick(&[5, 28, 110, 116]));
        StoreError::Io { store, what: "cannot".to_owned(), source }
    }

    /// What was done may be said to have failed.
    fn end(mut self) -> Result<(), StoreError> {
        let late = self.strikes(|trouble| trouble.fails_late, "store failed after it was done");
        if late { Err(self.failure()) } else { Ok(()) }
    }
}

impl Store for UnreliableStore {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let mut call = self.call(1, Some(name), bytes)?;
        let is_new = self.inner.length(name).is_err();
        self.inner.put(name, bytes)?;
        check_durable(name);
        if is_new && call.strikes(|trouble| trouble.spoils, "store spoiled what it was given") {
            let (at, cut) = (call.dice.below(bytes.len() as u64) as usize, call.dice.percent(30));
            self.inner.alter(name, |kept| if cut { kept.truncate(at) } else { kept[at] ^= 0x10 });
        }
        call.end()
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let mut call = self.call(2, Some(name), &[])?;
        let mut bytes = self.inner.get(name, range)?;
        if !bytes.is_empty() && call.strikes(|trouble| trouble.flips, "store read wrong") {
            let at = call.dice.below(bytes.len() as u64) as usize;
            bytes[at] ^= 0x20;
        }
        Ok(bytes)
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.call(3, Some(name), &[])?;
        self.inner.length(name)
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.call(4, None, &[])?;
        self.inner.list()
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let call = self.call(5, Some(name), &[])?;
        self.inner.delete(name)?;
        call.end()
    }

    fn spec(&self) -> String {
        "unreliable".to_owned()
    }
}
