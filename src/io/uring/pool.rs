//! Threads for jobs that block: the store's, which may be slow, or hang.
//!
//! Two kinds, so that what a request waits for (a block that is read from the archive because the primary lost it) is
//! neither behind a segment nor as slow: *archivers* are background, *readers* are not. The owner's thread, the control
//! socket's and the signals' are none of these and have the priority that the process was started with.

use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

type Job = Box<dyn FnOnce() + Send>;

/// Threads for blocking jobs: the archiver's, and those for what requests wait for.
pub(super) struct Pool {
    threads: usize,
    name: &'static str,
    /// What each thread does first.
    prepare: fn(),
    /// Without a bound, so that the owner never waits for a store: jobs are as many as requests and segments in flight.
    sender: RefCell<Option<Sender<Job>>>,
}

impl Pool {
    pub(super) fn new(name: &'static str, threads: usize, prepare: fn()) -> Self {
        Self { threads, name, prepare, sender: RefCell::default() }
    }

    /// Runs `job` on one of the threads and waits for it.
    pub(super) async fn answer<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let answer = Arc::new(Mutex::new((None, None::<Waker>)));
        let slot = Arc::clone(&answer);
        self.run(Box::new(move || {
            // Its panic is the owner's: nobody would ever hear of it in this thread.
            let value = catch_unwind(AssertUnwindSafe(job));
            let waker = {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                slot.0 = Some(value);
                slot.1.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }));
        poll_fn(move |context| {
            let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
            match answer.0.take() {
                Some(Ok(value)) => Poll::Ready(value),
                Some(Err(panic)) => resume_unwind(panic),
                None => {
                    answer.1 = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn run(&self, job: Job) {
        let mut sender = self.sender.borrow_mut();
        let sender = sender.get_or_insert_with(|| self.start());
        sender.send(job).expect("the threads end only with the sender");
    }

    fn start(&self) -> Sender<Job> {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..self.threads.max(1) {
            let receiver = Arc::clone(&receiver);
            let prepare = self.prepare;
            let work = move || {
                prepare();
                loop {
                    let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    job();
                }
            };
            std::thread::Builder::new()
                .name(format!("{}-{number}", self.name))
                .spawn(work)
                .expect("the system has room for the pool's threads");
        }
        sender
    }
}

/// Writes of this thread must not wait for write-back of the volume's users.
pub(super) fn be_io_flusher() {
    const PR_SET_IO_FLUSHER: i32 = 57;
    // SAFETY: the call changes only an attribute of this thread; failing (no privilege) costs only the attribute.
    unsafe {
        libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    }
}

/// The archiver's threads, and only they, yield to everything else: they are nice, and last among those whose I/O is done
/// at all. With the idle class a disk that is never idle would archive nothing until its writers have to wait.
pub(super) fn be_background() {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    const IOPRIO_CLASS_BEST_EFFORT: i32 = 2;
    const IOPRIO_CLASS_SHIFT: i32 = 13;
    const LOWEST: i32 = 7;
    be_io_flusher();
    // SAFETY: 0 is this thread in all calls, whose attributes they change; failing costs only the attribute.
    unsafe {
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0).max(0) + 10;
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        let priority = IOPRIO_CLASS_BEST_EFFORT << IOPRIO_CLASS_SHIFT | LOWEST;
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of the thread that runs it: niceness, I/O priority.
    fn priorities() -> (i32, i64) {
        // SAFETY: both calls only ask.
        unsafe { (libc::getpriority(libc::PRIO_PROCESS, 0), libc::syscall(libc::SYS_ioprio_get, 1, 0)) }
    }

    #[test]
    fn only_archivers_yield() {
        let before = priorities();
        let of = |prepare: fn()| {
            let pool = Pool::new("test", 1, prepare);
            let (sender, receiver) = channel();
            pool.run(Box::new(move || sender.send(priorities()).expect("somebody listens")));
            receiver.recv().expect("the job runs")
        };
        assert_eq!(of(be_background), ((before.0.max(0) + 10).min(19), (2 << 13) | 7));
        assert_eq!(of(be_io_flusher), before);
        assert_eq!(priorities(), before);
    }
}
