//! The executor: runs the owner's tasks on the owner's thread, in the order in which they became ready.
//!
//! A wake-up on the owner's thread is a push to a queue that only this thread touches. A wake-up from another thread (an
//! archiver that has finished, a control connection) goes through a locked queue and a bell that the owner waits on.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_task::{Runnable, Task};

/// The ready tasks of a thread.
type Queue = Rc<RefCell<VecDeque<Runnable>>>;

thread_local! {
    /// The executor that belongs to this thread, by its number, and its ready tasks.
    static HERE: RefCell<Vec<(u64, Queue)>> = const { RefCell::new(Vec::new()) };
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Rings when a task became ready on another thread.
pub(super) type Bell = Box<dyn Fn() + Send + Sync>;

struct Remote {
    ready: Mutex<VecDeque<Runnable>>,
    bell: Bell,
}

/// A queue of tasks that are ready to run, for one thread.
#[derive(Clone)]
pub struct Executor {
    number: u64,
    local: Queue,
    remote: Arc<Remote>,
    /// Tasks that have not ended, and some that have.
    tasks: Rc<RefCell<Vec<Task<()>>>>,
}

impl Executor {
    /// An executor of the calling thread. `bell` is rung on other threads, after they made a task ready.
    pub fn new(bell: Bell) -> Self {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let local = Rc::new(RefCell::new(VecDeque::new()));
        HERE.with_borrow_mut(|here| here.push((number, Rc::clone(&local))));
        let remote = Arc::new(Remote { ready: Mutex::default(), bell });
        Self { number, local, remote, tasks: Rc::default() }
    }

    /// Starts `future`; it runs until it ends or the executor is dropped.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let number = self.number;
        let remote = Arc::clone(&self.remote);
        let schedule = move |runnable: Runnable| {
            let local = HERE
                .with_borrow(|here| here.iter().find(|(found, _)| *found == number).map(|(_, queue)| Rc::clone(queue)));
            match local {
                Some(queue) => queue.borrow_mut().push_back(runnable),
                None => {
                    remote.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(runnable);
                    (remote.bell)();
                }
            }
        };
        let (runnable, task) = async_task::spawn_local(future, schedule);
        runnable.schedule();
        let mut tasks = self.tasks.borrow_mut();
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    /// Drops every task where it is.
    pub fn cancel_all(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        // A cancelled task is dropped when it is run once more.
        self.run();
    }

    /// Runs ready tasks until none is left. Returns how many times a task ran.
    pub fn run(&self) -> usize {
        let mut ran = 0;
        loop {
            self.take_remote();
            let Some(runnable) = self.pop() else { return ran };
            runnable.run();
            ran += 1;
            while let Some(runnable) = self.pop() {
                runnable.run();
                ran += 1;
            }
        }
    }

    /// Runs the ready task that `choose` picks out of so many; false when there is none. For simulations.
    pub fn run_one(&self, choose: impl FnOnce(usize) -> usize) -> bool {
        self.take_remote();
        let count = self.local.borrow().len();
        if count == 0 {
            return false;
        }
        let runnable = self.local.borrow_mut().remove(choose(count));
        runnable.is_some_and(|runnable| {
            runnable.run();
            true
        })
    }

    fn pop(&self) -> Option<Runnable> {
        self.local.borrow_mut().pop_front()
    }

    fn take_remote(&self) {
        let mut remote = self.remote.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !remote.is_empty() {
            self.local.borrow_mut().append(&mut remote);
        }
    }
}

/// Forgets the thread's queue when the last clone goes.
impl Drop for Executor {
    fn drop(&mut self) {
        if Rc::strong_count(&self.tasks) == 1 {
            let number = self.number;
            let _ = HERE.try_with(|here| here.borrow_mut().retain(|(found, _)| *found != number));
        }
    }
}
