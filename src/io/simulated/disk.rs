//! A disk that outlives the machines that use it, forgets what was not flushed, fails, and lies.
//!
//! # Fault model
//!
//! **Power.** A write takes effect for readers when it ends. Until a flush that was started after that has ended, a power cut
//! may keep it, lose it, or tear it: any subset of its 512-byte sectors arrives, and what does not arrive is what was there before
//! or garbage. Writes in flight fare the same. Each write is decided on its own, so what arrives is any subset, in no order. A flush that is in flight
//! has made nothing durable, or everything it covers. Recovery must work all the same since nothing is promised of what no
//! flush covers, and no slot is written to that a durable header still needs.
//!
//! **Failures** ([`Faults`]). A read fails, once or for good. A write fails, and any of its sectors have arrived. A flush fails, and what it
//! covered is never made durable by a later one: the kernel takes such pages for clean. An I/O takes seconds. None of these
//! may lose anything that was durable.
//!
//! **Lies** ([`Faults`]). A write that is reported as done has one bit flipped, arrives elsewhere, arrives elsewhere as well, or not at all. A read
//! gives a flipped bit. What is at rest rots ([`SimulatedDisk::corrupt`]). These may lose data: what is read must be
//! right, or an error.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use super::Dice;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What goes wrong, in so many of 10 000 I/Os.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// A read fails; the next one may succeed.
    pub read_errors: u64,
    /// A read gives one flipped bit; the next one may not.
    pub read_flips: u64,
    /// Every read gets the beginning of its first block wrong, the same way each time.
    pub heads_misread: bool,
    /// A write fails.
    pub write_errors: u64,
    /// A flush fails.
    pub flush_errors: u64,
    /// A write has one bit flipped.
    pub flips: u64,
    /// A write arrives elsewhere.
    pub misdirected: u64,
    /// A write arrives elsewhere as well.
    pub duplicated: u64,
    /// A write arrives nowhere: what was there before stays.
    pub dropped: u64,
    /// An I/O takes up to two seconds.
    pub stalls: u64,
    /// What a power cut tears is garbage in one of two sectors that did not arrive.
    pub garbage: bool,
}

/// An I/O, as the disk got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Write {
        number: u64,
        offset: u64,
        bytes: Rc<[u8]>,
    },
    /// The write of this number has ended.
    Written(u64),
    /// A flush that covers every write that has ended.
    Flush(u64),
    Flushed(u64),
}

#[derive(Clone)]
struct Page {
    bytes: [u8; PAGE],
    hash: OnceCell<u64>,
}

impl Page {
    fn hash(&self, number: usize) -> u64 {
        *self.hash.get_or_init(|| {
            let words = self.bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
            let start = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            words.fold(start, |hash, word| (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29))
        })
    }
}

/// A write that no flush covers yet.
struct Volatile {
    offset: u64,
    bytes: Vec<u8>,
    /// The flush started last when the write ended; the largest number when a flush of it has failed.
    after_flush: u64,
}

pub(super) struct Disk {
    pub(super) bytes: u64,
    durable: Vec<Option<Rc<Page>>>,
    volatile: Vec<Volatile>,
    in_flight: BTreeMap<u64, (u64, Vec<u8>)>,
    flushes_started: u64,
    unreadable: Vec<(u64, u64)>,
    /// Bytes that the next read gets wrong.
    misread: Vec<u64>,
    faults: Faults,
    met: BTreeMap<&'static str, u64>,
    trace: u64,
    events: Option<Record>,
}

/// What is done to a disk, and what the recorder's clock showed then.
struct Record {
    clock: Box<dyn Fn() -> u64>,
    events: Vec<(Event, u64)>,
}

/// The disk; clones are the same one.
#[derive(Clone)]
pub struct SimulatedDisk(pub(super) Rc<RefCell<Disk>>);

impl SimulatedDisk {
    /// A disk of `bytes` zeros.
    pub fn new(bytes: u64) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            bytes,
            durable: vec![None; bytes.div_ceil(PAGE as u64) as usize],
            volatile: Vec::new(),
            in_flight: BTreeMap::new(),
            flushes_started: 0,
            unreadable: Vec::new(),
            misread: Vec::new(),
            faults: Faults::default(),
            met: BTreeMap::new(),
            trace: 0,
            events: None,
        })))
    }

    /// A copy with a life of its own.
    pub fn fork(&self) -> Self {
        let disk = self.0.borrow();
        assert!(disk.volatile.is_empty() && disk.in_flight.is_empty(), "a disk is copied when it is at rest");
        let copy = Self::new(disk.bytes);
        copy.0.borrow_mut().durable.clone_from(&disk.durable);
        copy
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// What went wrong so far, and how often.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        self.0.borrow().met.clone()
    }

    /// How often the disk lied so far: see the module.
    pub fn lies(&self) -> u64 {
        let lies = ["bit flipped", "write misdirected", "write duplicated", "write dropped", "read flipped"];
        let disk = self.0.borrow();
        lies.iter().filter_map(|lie| disk.met.get(lie)).sum()
    }

    /// A number for everything that was done to the disk so far, and when: the same history gives the same.
    pub fn trace(&self) -> u64 {
        self.0.borrow().trace
    }

    /// A number for what the disk holds, at rest.
    pub fn fingerprint(&self) -> u64 {
        let disk = self.0.borrow();
        let pages = disk.durable.iter().enumerate();
        pages.filter_map(|(number, page)| Some(page.as_ref()?.hash(number))).fold(0, |sum, hash| sum ^ hash)
    }

    /// Keeps what is done to the disk from now on, with what `clock` shows each time.
    pub fn record(&self, clock: impl Fn() -> u64 + 'static) {
        self.0.borrow_mut().events = Some(Record { clock: Box::new(clock), events: Vec::new() });
    }

    /// How much has been recorded so far.
    pub fn events(&self) -> usize {
        self.0.borrow().events.as_ref().map_or(0, |record| record.events.len())
    }

    /// What has been recorded; recording ends.
    pub fn take_events(&self) -> Vec<(Event, u64)> {
        self.0.borrow_mut().events.take().map_or_else(Vec::new, |record| record.events)
    }

    /// The power goes: what no flush covered is kept, lost or torn as `dice` decides.
    pub fn lose_power(&self, dice: &mut Dice) {
        let mut disk = self.0.borrow_mut();
        let writes = disk.take_unflushed();
        let mood = dice.below(4);
        for (offset, bytes) in writes {
            let (keep, tear) = match mood {
                0 => (0, 0),
                1 => (100, 0),
                2 => (50, 20),
                _ => (80, 60),
            };
            if !dice.percent(keep) {
                disk.meet("unflushed write lost");
                continue;
            }
            let torn = dice.percent(tear);
            if torn {
                disk.meet("unflushed write torn");
            }
            for (rank, sector) in bytes.chunks(SECTOR).enumerate() {
                let offset = offset + (rank * SECTOR) as u64;
                if !torn || dice.percent(50) {
                    disk.put(offset, sector);
                } else if disk.faults.garbage && dice.percent(50) {
                    disk.meet("sector of garbage");
                    let garbage: Vec<u8> = (0..SECTOR / 8).flat_map(|_| dice.bits().to_le_bytes()).collect();
                    disk.put(offset, &garbage);
                }
            }
        }
    }

    /// The machine stops, the disk goes on: everything that was sent arrives.
    pub fn stop_machine(&self) {
        let mut disk = self.0.borrow_mut();
        let writes = disk.take_unflushed();
        writes.into_iter().for_each(|(offset, bytes)| disk.put(offset, &bytes));
    }

    /// Whether a power cut now would leave these bytes as they are.
    pub fn is_durable(&self, bytes: Range<u64>) -> bool {
        let disk = self.0.borrow();
        let volatile = disk.volatile.iter().map(|write| (write.offset, write.bytes.len()));
        let mut unflushed = volatile.chain(disk.in_flight.values().map(|(offset, written)| (*offset, written.len())));
        !unflushed.any(|(offset, length)| offset < bytes.end && bytes.start < offset + length as u64)
    }

    /// Flips bits of the byte at `offset`.
    pub fn corrupt(&self, offset: u64, mask: u8) {
        let mut disk = self.0.borrow_mut();
        let mut sector = vec![0; SECTOR];
        let start = offset / SECTOR as u64 * SECTOR as u64;
        disk.get(start, &mut sector);
        sector[(offset - start) as usize] ^= mask;
        disk.put(start, &sector);
    }

    /// Makes reads that touch the range fail, until it is written.
    pub fn fail_reads(&self, offset: u64, bytes: u64) {
        self.0.borrow_mut().unreadable.push((offset, bytes));
    }

    /// Makes the next read of the byte at `offset` get it wrong; what is on the disk stays right.
    pub fn misread_once(&self, offset: u64) {
        self.0.borrow_mut().misread.push(offset);
    }

    /// What a reader sees now.
    pub fn peek(&self, offset: u64, into: &mut [u8]) {
        self.0.borrow().get(offset, into);
    }

    /// Writes durably, as a tool would on a disk at rest.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        self.0.borrow_mut().put(offset, bytes);
    }
}

impl Disk {
    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    /// Whether a fault of so many in 10 000 happens now; it is counted.
    fn strikes(&mut self, dice: &mut Dice, rate: u64, what: &'static str) -> bool {
        let strikes = rate > 0 && dice.below(10_000) < rate;
        if strikes {
            self.meet(what);
        }
        strikes
    }

    /// Microseconds that the next I/O takes longer than others.
    pub(super) fn stall(&mut self, dice: &mut Dice) -> u64 {
        let rate = self.faults.stalls;
        if self.strikes(dice, rate, "stall") { dice.below(2_000_000) } else { 0 }
    }

    fn note(&mut self, kind: u64, now_ns: u64, offset: u64, bytes: &[u8]) {
        for word in [kind, now_ns, offset, bytes.len() as u64, u64::from(crc_fast::crc32_iscsi(bytes))] {
            self.trace = (self.trace ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
        }
    }

    fn tell(&mut self, event: impl FnOnce() -> Event) {
        if let Some(Record { clock, events }) = &mut self.events {
            let now = clock();
            events.push((event(), now));
        }
    }

    fn take_unflushed(&mut self) -> Vec<(u64, Vec<u8>)> {
        let volatile = std::mem::take(&mut self.volatile).into_iter().map(|write| (write.offset, write.bytes));
        volatile.chain(std::mem::take(&mut self.in_flight).into_values()).collect()
    }

    pub(super) fn end_read(&mut self, dice: &mut Dice, now_ns: u64, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        assert!(end <= self.bytes, "the engine reads inside the device");
        self.note(1, now_ns, offset, &[]);
        let bad = self.unreadable.iter().any(|(from, bytes)| *from < end && offset < from + bytes);
        if bad || self.strikes(dice, self.faults.read_errors, "read failed") {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.get(offset, into);
        for wrong in self.misread.extract_if(.., |wrong| (offset..end).contains(wrong)) {
            into[(wrong - offset) as usize] ^= 0x40;
        }
        if self.faults.heads_misread {
            into[224] ^= 0x40;
        }
        if self.strikes(dice, self.faults.read_flips, "read flipped") {
            into[dice.below(end - offset) as usize] ^= 1 << dice.below(8);
        }
        Ok(())
    }

    pub(super) fn begin_write(&mut self, number: u64, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.bytes, "the engine writes inside the device");
        self.in_flight.insert(number, (offset, bytes.to_vec()));
        self.tell(|| Event::Write { number, offset, bytes: bytes.into() });
    }

    pub(super) fn end_write(&mut self, dice: &mut Dice, now_ns: u64, number: u64) -> io::Result<()> {
        // None when the power went meanwhile: then nobody hears of it.
        let Some((offset, mut bytes)) = self.in_flight.remove(&number) else { return Ok(()) };
        self.note(2, now_ns, offset, &bytes);
        let faults = self.faults;
        if self.strikes(dice, faults.write_errors, "write failed") {
            self.fail_write(dice, offset, &bytes);
            return Err(io::Error::from_raw_os_error(dice.pick(&[libc::EIO, libc::ENOSPC, libc::ETIMEDOUT])));
        }
        let elsewhere = dice.below((self.bytes - bytes.len() as u64) / PAGE as u64) * PAGE as u64;
        if self.strikes(dice, faults.flips, "bit flipped") {
            let at = dice.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << dice.below(8);
        }
        if self.strikes(dice, faults.dropped, "write dropped") {
            return Ok(());
        }
        if self.strikes(dice, faults.duplicated, "write duplicated") {
            self.arrive(elsewhere, bytes.clone());
        }
        let misdirected = self.strikes(dice, faults.misdirected, "write misdirected");
        self.arrive(if misdirected { elsewhere } else { offset }, bytes);
        self.tell(|| Event::Written(number));
        Ok(())
    }

    /// Any of the sectors of a write that fails have arrived.
    pub(super) fn fail_write(&mut self, dice: &mut Dice, offset: u64, bytes: &[u8]) {
        for (rank, sector) in bytes.chunks(SECTOR).enumerate() {
            if dice.percent(50) {
                self.arrive(offset + (rank * SECTOR) as u64, sector.to_vec());
            }
        }
    }

    /// A write of this number fails without being tried any further.
    pub(super) fn abandon_write(&mut self, dice: &mut Dice, number: u64) {
        if let Some((offset, bytes)) = self.in_flight.remove(&number) {
            self.fail_write(dice, offset, &bytes);
        }
    }

    fn arrive(&mut self, offset: u64, bytes: Vec<u8>) {
        let end = offset + bytes.len() as u64;
        self.unreadable.retain(|(from, length)| !(*from < end && offset < from + length));
        self.volatile.push(Volatile { offset, bytes, after_flush: self.flushes_started });
    }

    pub(super) fn begin_flush(&mut self) -> u64 {
        self.flushes_started += 1;
        let number = self.flushes_started;
        self.tell(|| Event::Flush(number));
        number
    }

    pub(super) fn end_flush(&mut self, dice: &mut Dice, now_ns: u64, number: u64) -> io::Result<()> {
        self.note(3, now_ns, number, &[]);
        if self.strikes(dice, self.faults.flush_errors, "flush failed") {
            self.fail_flush(number);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.volatile).into_iter().partition(|write| write.after_flush < number);
        done.into_iter().for_each(|write| self.put(write.offset, &write.bytes));
        self.volatile = left;
        self.tell(|| Event::Flushed(number));
        Ok(())
    }

    /// What the flush covered is never made durable by another.
    pub(super) fn fail_flush(&mut self, number: u64) {
        let covered = self.volatile.iter_mut().filter(|write| write.after_flush < number);
        covered.for_each(|write| write.after_flush = u64::MAX);
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset as usize, bytes);
        while !rest.is_empty() {
            let (number, from) = (at / PAGE, at % PAGE);
            let (now, later) = rest.split_at(rest.len().min(PAGE - from));
            let page =
                self.durable[number].get_or_insert_with(|| Rc::new(Page { bytes: [0; PAGE], hash: OnceCell::new() }));
            let page = Rc::make_mut(page);
            page.bytes[from..from + now.len()].copy_from_slice(now);
            page.hash.take();
            (at, rest) = (at + now.len(), later);
        }
    }

    fn get(&self, offset: u64, into: &mut [u8]) {
        let (mut at, mut rest) = (offset as usize, &mut *into);
        while !rest.is_empty() {
            let (number, from) = (at / PAGE, at % PAGE);
            let now = rest.len().min(PAGE - from);
            let (part, later) = rest.split_at_mut(now);
            match &self.durable[number] {
                Some(page) => part.copy_from_slice(&page.bytes[from..from + now]),
                None => part.fill(0),
            }
            (at, rest) = (at + now, later);
        }
        for write in &self.volatile {
            let (from, to) =
                (write.offset.max(offset), (write.offset + write.bytes.len() as u64).min(offset + into.len() as u64));
            if from < to {
                let source = &write.bytes[(from - write.offset) as usize..(to - write.offset) as usize];
                into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
    }
}
