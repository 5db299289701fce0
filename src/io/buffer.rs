//! Memory that a device can reach: anonymous, page-aligned, shared by reference count.
//!
//! A [`Buffer`] is a range of an [`Arena`]. Clones share the memory, so whoever still needs it (the ring, a reader, an
//! archiver thread) keeps it alive. The bytes are reached through copies, never through long-lived references, because
//! the kernel may be reading or writing them at the same time.
//!
//! **Discipline, upheld by the engine:** a range has one writer at a time (the owner while it builds a batch, or the
//! device while a read is in flight), and nobody looks at it while it is being written. A sealed segment has none.
#![expect(unsafe_code, reason = "memory that is shared with the kernel is reached by pointer")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// From this size on an arena is a mapping of its own, and a buffer asks for huge pages. Smaller ones are the allocator's, which
/// hands the same pages out again: mapping and unmapping them was half of the time of opening a small volume.
const MAPPED_BYTES: usize = 2 << 20;
/// The alignment that O_DIRECT wants of any disk.
const ALIGNMENT: usize = 4096;

/// Anonymous memory, aligned to pages.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is plain memory owned by the arena; who may touch which range when is the module's discipline.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `bytes` of zeros, at least one. Pages of a large arena cost nothing before they are touched.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let none = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|_| none())?;
        if layout.size() >= MAPPED_BYTES {
            return Self::mapped(layout);
        }
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(none)?;
        Ok(Self { start, layout })
    }

    fn mapped(layout: Layout) -> std::io::Result<Self> {
        let length = NonZeroUsize::new(layout.size()).ok_or(std::io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address the kernel chooses touches no memory of ours.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Self { start: start.cast(), layout })
    }

    /// Asks for huge pages, where it is a mapping: the kernel pins a buffer page by page for each transfer, which with small ones was
    /// a tenth of the owner's time. Best effort.
    fn prefer_huge_pages(&self) {
        if self.layout.size() >= MAPPED_BYTES {
            // SAFETY: the advice changes no content, and the range is our mapping.
            let _ = unsafe { madvise(self.start.cast(), self.layout.size(), MmapAdvise::MADV_HUGEPAGE) };
        }
    }

    /// Where the memory is.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.layout.size() >= MAPPED_BYTES {
            // SAFETY: the range was mapped in `mapped`, and the last reference to it is being dropped.
            let unmapped = unsafe { munmap(self.start.cast(), self.layout.size()) };
            debug_assert!(unmapped.is_ok());
        } else {
            // SAFETY: the memory is the allocator's, of this layout, and the last reference to it is being dropped.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

/// A range of an arena.
#[derive(Debug, Clone)]
pub struct Buffer {
    arena: Arc<Arena>,
    from: usize,
    bytes: usize,
}

impl Buffer {
    /// A new arena of `bytes` zeros, whole.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let arena = Arena::new(bytes)?;
        arena.prefer_huge_pages();
        Ok(Self { arena: Arc::new(arena), from: 0, bytes })
    }

    /// The part of the buffer from byte `from`, `bytes` long.
    ///
    /// # Panics
    /// When it reaches beyond the buffer.
    pub fn part(&self, from: usize, bytes: usize) -> Self {
        assert!(from.checked_add(bytes).is_some_and(|end| end <= self.bytes));
        Self { arena: Arc::clone(&self.arena), from: self.from + from, bytes }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether nobody else holds the memory.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.arena) == 1
    }

    /// Where the bytes are, for the kernel.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `from` lies in the arena, checked when the part was made.
        unsafe { self.arena.start.as_ptr().add(self.from) }
    }

    /// Looks at the bytes. By the module's discipline nobody writes them meanwhile.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the arena and lives as long as the buffer; no writer, by the discipline.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.bytes) }
    }

    /// Changes the bytes inside `change`. By the module's discipline nobody else looks meanwhile.
    pub fn write<T>(&self, change: impl FnOnce(&mut [u8]) -> T) -> T {
        // SAFETY: as for `bytes`, and the owner is the only writer, by the discipline.
        change(unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.bytes) })
    }

    /// Copies `source` to byte `at`.
    ///
    /// # Panics
    /// When it reaches beyond the buffer.
    pub fn copy_from(&self, at: usize, source: &[u8]) {
        assert!(at.checked_add(source.len()).is_some_and(|end| end <= self.bytes));
        // SAFETY: the range was just checked; `source` may not overlap it, since it is borrowed and we are written.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), self.as_ptr().add(at), source.len()) }
    }

    /// Fills the buffer with zeros.
    pub fn zero(&self) {
        // SAFETY: the range lies in the arena; we are its writer, by the discipline.
        unsafe { std::ptr::write_bytes(self.as_ptr(), 0, self.bytes) }
    }
}
