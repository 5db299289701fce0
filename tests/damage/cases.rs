//! What is done to each structure. Full: every bit of what says something, every byte of all that is covered by a checksum.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use salvol::archive::{ForkRecord, ObjectName, PinRecord};
use salvol::format::BLOCK_BYTES;
use salvol::io::simulated::Dice;

use super::base::{Base, Objects};
use super::map::{self, Class, Map};

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Primary,
    Object(ObjectName),
    Ring,
}

/// How.
#[derive(Debug, Clone)]
pub enum Change {
    Xor {
        at: usize,
        mask: u8,
    },
    Set {
        at: usize,
        value: u8,
    },
    Fill {
        range: Range<usize>,
        value: u8,
    },
    Noise {
        range: Range<usize>,
        seed: u64,
    },
    Put {
        at: usize,
        bytes: Arc<Vec<u8>>,
    },
    /// So many bytes are left.
    Cut(usize),
    /// So many more bytes follow.
    Grow(usize),
    Remove,
    /// It is that of the other name, and the other way round.
    Swap(ObjectName),
    Rename(ObjectName),
    /// There under this name as well.
    Again(ObjectName),
}

#[derive(Debug, Clone)]
pub struct Case {
    pub structure: &'static str,
    pub damage: &'static str,
    pub target: Target,
    pub change: Change,
    /// Somebody must say that something is wrong: a checksum covers it.
    pub covered: bool,
    /// Judged by opening, reading and one restore only.
    pub light: bool,
    pub number: usize,
}

impl Change {
    /// The bytes that it leaves; of what concerns names, all of them.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Xor { at, mask } => bytes[*at] ^= mask,
            Self::Set { at, value } => bytes[*at] = *value,
            Self::Fill { range, value } => bytes[range.clone()].fill(*value),
            Self::Noise { range, seed } => {
                let mut dice = Dice::new(*seed);
                bytes[range.clone()].fill_with(|| dice.bits() as u8);
            }
            Self::Put { at, bytes: other } => bytes[*at..*at + other.len()].copy_from_slice(other),
            Self::Cut(length) => bytes.truncate(*length),
            Self::Grow(more) => bytes.resize(bytes.len() + more, 0x5a),
            Self::Remove | Self::Swap(_) | Self::Rename(_) | Self::Again(_) => {}
        }
    }

    /// Whether anything is another than in `bytes` then.
    fn changes(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Fill { range, value } => bytes[range.clone()].iter().any(|byte| byte != value),
            Self::Put { at, bytes: other } => bytes[*at..*at + other.len()] != other[..],
            Self::Set { at, value } => bytes[*at] != *value,
            _ => true,
        }
    }

    /// What it touches.
    pub fn range(&self, bytes: usize) -> Range<usize> {
        match self {
            Self::Xor { at, .. } | Self::Set { at, .. } => *at..*at + 1,
            Self::Fill { range, .. } | Self::Noise { range, .. } => range.clone(),
            Self::Put { at, bytes } => *at..*at + bytes.len(),
            Self::Cut(length) => *length..bytes,
            _ => 0..bytes,
        }
    }
}

/// Gathers cases.
#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(
        &mut self,
        structure: &'static str,
        damage: &'static str,
        target: Target,
        change: Change,
        class: Class,
        full_every: usize,
    ) {
        let number = self.0.len();
        let light = !number.is_multiple_of(full_every);
        let covered = class != Class::Unused && !may_be_silent(structure, damage);
        self.0.push(Case { structure, damage, target, change, covered, light, number });
    }

    /// Bits and bytes.
    fn sweep(&mut self, target: Target, bytes: &[u8], map: &Map) {
        for region in &map.regions {
            let (structure, class) = (region.structure, region.class);
            for at in region.range.clone() {
                match class {
                    Class::Meta => {
                        for bit in 0..8 {
                            self.add(structure, "bit flipped", target, Change::Xor { at, mask: 1 << bit }, class, 5);
                        }
                        for (damage, value) in [("byte made 00", 0), ("byte made FF", 0xff)] {
                            if bytes[at] != value {
                                self.add(structure, damage, target, Change::Set { at, value }, class, 3);
                            }
                        }
                    }
                    // One bit each, the bit goes round.
                    Class::Padded | Class::Data => {
                        let mask = 1 << (at % 8);
                        self.add(structure, "bit flipped", target, Change::Xor { at, mask }, class, 33);
                    }
                    Class::Unused if at % 61 == 0 => {
                        self.add(structure, "bit flipped", target, Change::Xor { at, mask: 1 << (at % 8) }, class, 9);
                    }
                    Class::Unused => {}
                }
            }
        }
    }

    /// Structures as a whole; `others` have the same at another place, in another volume, at another time.
    fn wholes(&mut self, target: Target, bytes: &[u8], map: &Map, other: Option<(&[u8], &Map)>, stale: Option<&[u8]>) {
        for (rank, unit) in map.units.iter().enumerate() {
            let (structure, range) = (unit.structure, unit.range.clone());
            let mut add = |damage, change: Change| {
                if change.changes(bytes) {
                    self.add(structure, damage, target, change, Class::Meta, 1);
                }
            };
            add("zeroed", Change::Fill { range: range.clone(), value: 0 });
            add("all FF", Change::Fill { range: range.clone(), value: 0xff });
            add("noise", Change::Noise { range: range.clone(), seed: rank as u64 });
            for start in range.clone().step_by(512).take(24) {
                add("a sector zeroed", Change::Fill { range: start..(start + 512).min(range.end), value: 0 });
            }
            let same = |map: &Map| -> Vec<Range<usize>> {
                map.units.iter().filter(|unit| unit.structure == structure).map(|unit| unit.range.clone()).collect()
            };
            let fitted = |from: &[u8], there: &Range<usize>| {
                let mut taken = from[there.clone()].to_vec();
                taken.resize(range.len(), 0);
                Arc::new(taken)
            };
            for there in same(map).iter().filter(|there| **there != range).take(6) {
                add("another one's", Change::Put { at: range.start, bytes: fitted(bytes, there) });
            }
            if let Some((from, map)) = other {
                for there in same(map).iter().take(3) {
                    add("another volume's", Change::Put { at: range.start, bytes: fitted(from, there) });
                }
            }
            if let Some(from) = stale.filter(|from| from.len() >= range.end) {
                add("an older one", Change::Put { at: range.start, bytes: fitted(from, &range) });
            }
        }
    }
}

/// What befalls the primary of `base`; `other` is another volume.
pub fn of_primary(base: &Base, other: &Base) -> Vec<Case> {
    let mut cases = Cases::default();
    let map = map::primary(&base.primary, &base.volume);
    let theirs = map::primary(&other.primary, &other.volume);
    if base.closed {
        cases.sweep(Target::Primary, &base.primary, &map);
    } else {
        // Its last segment is what differs from the other base.
        let open = map.open_slot();
        let regions = map.regions.iter().filter(|region| open.contains(&region.range.start));
        let part = Map { regions: regions.cloned().collect(), ..Map::default() };
        cases.sweep(Target::Primary, &base.primary, &part);
    }
    cases.wholes(Target::Primary, &base.primary, &map, Some((&other.primary, &theirs)), Some(&base.stale));
    if !base.closed {
        // Behind what is known to be durable is a torn tail, whatever is there.
        let unknown = map.unknown();
        for case in &mut cases.0 {
            let hit = case.change.range(base.primary.len());
            case.covered &= !unknown.iter().any(|range| range.start <= hit.start && hit.end <= range.end);
        }
    }
    let blocks = base.primary.len() / BLOCK_BYTES;
    for left in 0..blocks {
        cases.add("primary", "cut short", Target::Primary, Change::Cut(left * BLOCK_BYTES), Class::Meta, 1);
    }
    // The disk has another size by now.
    cases.add("primary", "longer", Target::Primary, Change::Grow(64 * BLOCK_BYTES), Class::Unused, 1);
    cases.0
}

/// What befalls the objects of `base` in its store.
pub fn of_objects(base: &Base, other: &Base) -> Vec<Case> {
    let mut cases = Cases::default();
    let names: Vec<ObjectName> = base.objects.keys().copied().collect();
    let is_record = |name: &ObjectName| ForkRecord::is_name(name) || PinRecord::is_name(name);
    for (rank, (name, bytes)) in base.objects.iter().enumerate() {
        let target = Target::Object(*name);
        let newest = rank + 1 == names.len();
        let map = map::object(name, bytes, is_record(name) || newest || name.part > 0 || rank % 6 == 1);
        cases.sweep(target, bytes, &map);
        let kin: Vec<(&ObjectName, &Vec<u8>)> = base
            .objects
            .iter()
            .filter(|(other, _)| {
                (other.part > 0, is_record(other)) == (name.part > 0, is_record(name)) && *other != name
            })
            .collect();
        let foreign = same_kind(&other.objects, rank, name);
        let their_map = foreign.map(|(name, bytes)| map::object(name, bytes, false));
        let stale = base.stale_objects.get(name).filter(|stale| *stale != bytes);
        let foreign = foreign.zip(their_map.as_ref()).map(|((_, bytes), map)| (bytes.as_slice(), map));
        cases.wholes(target, bytes, &map, foreign, stale.map(Vec::as_slice));
        let structure = match name.part {
            _ if ForkRecord::is_name(name) => "fork record",
            _ if PinRecord::is_name(name) => "pin record",
            0 => "object",
            _ => "part",
        };
        let mut add = |damage, change| cases.add(structure, damage, target, change, Class::Meta, 1);
        for length in (0..bytes.len()).step_by(97).chain(bytes.len() - 60..bytes.len()) {
            add("cut short", Change::Cut(length));
        }
        add("longer", Change::Grow(1));
        add("longer", Change::Grow(4096));
        add("zeroed", Change::Fill { range: 0..bytes.len(), value: 0 });
        add("removed", Change::Remove);
        for (other, _) in kin.iter().take(6) {
            add("swapped", Change::Swap(**other));
        }
        for changed in [
            ObjectName { epoch: name.epoch + 1, ..*name },
            ObjectName { part: name.part + 7, ..*name },
            ObjectName { segment: name.segment.plus(100), ..*name },
            ObjectName { history: salvol::format::Uuid([0x77; 16]), ..*name },
        ] {
            add("renamed", Change::Rename(changed));
            add("there twice", Change::Again(changed));
        }
    }
    cases.0
}

/// An object of another volume that is like `name`.
fn same_kind<'a>(objects: &'a Objects, rank: usize, name: &ObjectName) -> Option<(&'a ObjectName, &'a Vec<u8>)> {
    let like = |other: &&ObjectName| {
        (ForkRecord::is_name(other), PinRecord::is_name(other)) == (ForkRecord::is_name(name), PinRecord::is_name(name))
            && (other.part > 0) == (name.part > 0)
    };
    let mut there = objects.keys().filter(like);
    let count = there.clone().count().max(1);
    there.nth(rank % count).and_then(|found| objects.get_key_value(found))
}

/// What befalls a ring with these bytes.
pub fn of_ring(bytes: &[u8], other: &[u8]) -> Vec<Case> {
    let mut cases = Cases::default();
    let (map, theirs) = (map::ring(bytes), map::ring(other));
    cases.sweep(Target::Ring, bytes, &map);
    cases.wholes(Target::Ring, bytes, &map, Some((other, &theirs)), None);
    let blocks = bytes.len() / BLOCK_BYTES;
    for left in 0..blocks {
        cases.add("ring", "cut short", Target::Ring, Change::Cut(left * BLOCK_BYTES), Class::Meta, 1);
    }
    cases.add("ring", "longer", Target::Ring, Change::Grow(64 * BLOCK_BYTES), Class::Unused, 1);
    cases.0
}

/// What nobody has to report: what was discarded, and what nothing says was ever there.
fn may_be_silent(structure: &str, damage: &str) -> bool {
    match damage {
        // Its slot is free.
        _ if structure.starts_with("old slot") => true,
        // Opening writes it again.
        "an older one" => structure.starts_with("superblock"),
        // Others may stand for it, or it was the newest, and only the primary knows that it was there.
        "removed" => structure != "fork record",
        // Its number says nothing.
        "renamed" | "there twice" => structure == "pin record",
        _ => false,
    }
}

/// So many of each kind of damage to each structure, evenly.
pub fn some(cases: Vec<Case>, each: usize) -> Vec<Case> {
    let mut groups: BTreeMap<(&str, &str), Vec<Case>> = BTreeMap::new();
    for case in cases {
        groups.entry((case.structure, case.damage)).or_default().push(case);
    }
    let chosen = groups.into_values().flat_map(|group| {
        let step = group.len().div_ceil(each).max(1);
        // An odd step meets every bit.
        group.into_iter().step_by(step | 1).map(|case| Case { light: false, ..case }).collect::<Vec<_>>()
    });
    chosen.collect()
}
