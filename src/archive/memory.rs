//! A store in memory, for tests and the simulator: it can be in every kind of trouble, spoil what it is given, and rot.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ObjectName, Store, StoreError};

type Corruption = Box<dyn FnMut(&ObjectName, &mut Vec<u8>) + Send>;

/// What a store is like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// Nothing of it can be reached.
    Absent,
    /// What it has can be read, and that is all.
    ReadOnly,
    /// It takes nothing that makes it larger than so many bytes.
    Full(u64),
    /// It turns out to be another volume's.
    Wrong,
}

/// Objects in memory; gone with the value.
#[derive(Default)]
pub struct MemoryStore(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    objects: BTreeMap<ObjectName, Vec<u8>>,
    error: Option<String>,
    corruption: Option<Corruption>,
    mood: Mood,
    /// What was put, in that order.
    puts: Vec<ObjectName>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every call fails with this text, until it is set to `None`.
    pub fn set_error(&self, error: Option<String>) {
        self.lock().error = error;
    }

    /// From now on the store is like this.
    pub fn set_mood(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    /// The objects that were put, in that order.
    pub fn puts(&self) -> Vec<ObjectName> {
        self.lock().puts.clone()
    }

    /// From now on `put` keeps what `corruption` makes of the bytes that it is given, and reports success.
    pub fn set_corruption(&self, corruption: Option<Corruption>) {
        self.lock().corruption = corruption;
    }

    /// Changes an object that is kept; says whether it is there.
    pub fn alter(&self, name: &ObjectName, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.lock().objects.get_mut(name).map(change).is_some()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.lock().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // A panic of another thread leaves the map whole: each change of it is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> Result<MutexGuard<'_, Inside>, StoreError> {
        let inside = self.lock();
        match (&inside.error, &inside.mood) {
            (Some(what), _) => Err(self.refused(what)),
            (None, Mood::Absent) => Err(self.refused("it is away")),
            (None, Mood::Wrong) => Err(self.refused("it belongs to another volume")),
            (None, Mood::Well | Mood::ReadOnly | Mood::Full(_)) => Ok(inside),
        }
    }

    fn refused(&self, what: &str) -> StoreError {
        StoreError::Refused { store: self.spec(), what: what.to_owned() }
    }

    fn missing(&self, name: &ObjectName) -> StoreError {
        StoreError::Missing { store: self.spec(), name: *name }
    }
}

impl Store for MemoryStore {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let mut inside = self.working()?;
        if let Some(there) = inside.objects.get(name) {
            let same = there == bytes;
            return if same { Ok(()) } else { Err(StoreError::Conflict { store: self.spec(), name: *name }) };
        }
        let held: usize = inside.objects.values().map(Vec::len).sum();
        match inside.mood {
            Mood::ReadOnly => return Err(self.refused("it is read-only")),
            Mood::Full(limit) if (held + bytes.len()) as u64 > limit => return Err(self.refused("it is full")),
            _ => {}
        }
        inside.puts.push(*name);
        let mut kept = bytes.to_vec();
        if let Some(corruption) = &mut inside.corruption {
            corruption(name, &mut kept);
        }
        inside.objects.insert(*name, kept);
        Ok(())
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let inside = self.working()?;
        let object = inside.objects.get(name).ok_or_else(|| self.missing(name))?;
        let length = object.len() as u64;
        let (start, end) = (range.start.min(length), range.end.min(length));
        Ok(object.get(start as usize..end as usize).unwrap_or_default().to_vec())
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.working()?.objects.get(name).map(|object| object.len() as u64).ok_or_else(|| self.missing(name))
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        Ok(self.working()?.objects.iter().map(|(name, object)| (*name, object.len() as u64)).collect())
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let mut inside = self.working()?;
        if inside.mood == Mood::ReadOnly {
            return Err(self.refused("it is read-only"));
        }
        inside.objects.remove(name);
        Ok(())
    }

    fn spec(&self) -> String {
        "memory".to_owned()
    }
}
