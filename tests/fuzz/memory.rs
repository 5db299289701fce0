//! Counts the memory that a thread has, the most that it had, and how often it asked for some.
#![expect(unsafe_code, reason = "an allocator is unsafe to write; this one passes everything on")]
#![allow(dead_code, reason = "each of its users asks for one of the figures")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
    static TIMES: Cell<u64> = const { Cell::new(0) };
}

pub struct Counting;

/// How often the thread has asked for memory.
pub fn allocations() -> u64 {
    TIMES.with(Cell::get)
}

fn count(bytes: isize) {
    if bytes > 0 {
        let _ = TIMES.try_with(|times| times.set(times.get() + 1));
    }
    // At the end of a thread there is nobody to count for.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: every call is the system allocator's, whose promises are passed on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

/// The bytes that `job` took at its fullest, beside what the thread had before.
pub fn most(job: impl FnOnce()) -> usize {
    let before = NOW.get();
    MOST.set(before);
    job();
    (MOST.get() - before).unsigned_abs()
}
