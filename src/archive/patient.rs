//! A store that need not be there yet. Attaching does not wait for the backing store, and a store that went away may come
//! back: each call opens it when it is not open, and lets go of it when it fails.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Ends, Fill, Lease, ObjectName, Spec, Store, StoreError, open_store};
use crate::format::Superblock;

/// A store that is opened when it can be.
pub struct PatientStore {
    spec: Spec,
    volume: Superblock,
    open: Mutex<Option<Arc<dyn Store>>>,
    forbidden: Mutex<Option<u64>>,
    lease: Mutex<Option<Lease>>,
}

impl PatientStore {
    /// The store of `volume` that `spec` names; `None` for [`Spec::None`].
    pub fn new(spec: Spec, volume: Superblock) -> Option<Self> {
        (spec != Spec::None).then(|| Self {
            spec,
            volume,
            open: Mutex::default(),
            forbidden: Mutex::default(),
            lease: Mutex::default(),
        })
    }

    fn with<T>(&self, call: impl FnOnce(&dyn Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let known = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let store = match known {
            Some(store) => store,
            None => self.reopen()?,
        };
        let result = call(&*store);
        if matches!(result, Err(StoreError::Io { .. } | StoreError::Refused { .. })) {
            *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    fn reopen(&self) -> Result<Arc<dyn Store>, StoreError> {
        let gone = || StoreError::Refused { store: self.spec.to_string(), what: "there is no store".to_owned() };
        let store = open_store(&self.spec, Some(&self.volume))?.ok_or_else(gone)?;
        // Held until the store is there for whoever forbids a device meanwhile.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = *self.forbidden.lock().unwrap_or_else(PoisonError::into_inner) {
            store.forbid_device(device);
        }
        if let Some(lease) = &*self.lease.lock().unwrap_or_else(PoisonError::into_inner) {
            store.lease(Arc::clone(lease));
        }
        *open = Some(Arc::clone(&store));
        Ok(store)
    }
}

impl Store for PatientStore {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.with(|store| store.put(name, bytes))
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.with(|store| store.get(name, range))
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.with(|store| store.length(name))
    }

    fn ends(&self, name: &ObjectName, head: u64, tail: u64) -> Result<Ends, StoreError> {
        self.with(|store| store.ends(name, head, tail))
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.with(|store| store.list())
    }

    fn names(&self) -> Result<Vec<ObjectName>, StoreError> {
        self.with(|store| store.names())
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.with(|store| store.delete(name))
    }

    fn fill(&self) -> Result<Option<Fill>, StoreError> {
        self.with(|store| store.fill())
    }

    fn audit(&self) -> Result<Vec<String>, StoreError> {
        self.with(|store| store.audit())
    }

    fn forbid_device(&self, device: u64) {
        *self.forbidden.lock().unwrap_or_else(PoisonError::into_inner) = Some(device);
        if let Some(store) = &*self.open.lock().unwrap_or_else(PoisonError::into_inner) {
            store.forbid_device(device);
        }
    }

    fn lease(&self, lease: Lease) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&lease));
        if let Some(store) = &*self.open.lock().unwrap_or_else(PoisonError::into_inner) {
            store.lease(lease);
        }
    }

    fn spec(&self) -> String {
        self.spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{DirectoryStore, create_store};

    #[test]
    fn a_store_that_comes_back_is_used_again() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("store");
        let volume = Superblock::example();
        let store = PatientStore::new(Spec::Directory(path.clone()), volume.clone()).unwrap();
        assert!(store.list().is_err(), "nothing is there yet");
        create_store(&Spec::Directory(path.clone()), &volume).unwrap();
        assert!(store.list().unwrap().is_empty());
        let aside = scratch.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        let name = ObjectName { history: volume.history, segment: crate::format::SegmentNumber(1), epoch: 1, part: 0 };
        assert!(store.put(&name, b"x").is_err(), "the directory is gone");
        std::fs::rename(&aside, &path).unwrap();
        store.put(&name, b"x").unwrap();
        assert_eq!(DirectoryStore::open(&path, Some(&volume)).unwrap().list().unwrap().len(), 1);
    }
}
