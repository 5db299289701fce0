//! The executor: runs the owner's tasks on the owner's thread, in the order in which they became ready.
//!
//! A wake-up on the owner's thread is a push to a queue that only this thread touches. A wake-up from another thread (an
//! archiver that has finished, a control connection) goes through a locked queue and a bell that the owner waits on.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use async_task::{Runnable, Task};

/// The ready tasks of a thread.
#[derive(Default)]
struct Ready {
    /// Run before all others: what keeps the device busy.
    urgent: VecDeque<Runnable>,
    others: VecDeque<Runnable>,
    /// Woken when nothing is ready any more.
    settling: Vec<Waker>,
}

type Queue = Rc<RefCell<Ready>>;

thread_local! {
    /// The executor that belongs to this thread, by its number, and its ready tasks.
    static HERE: RefCell<Vec<(u64, Queue)>> = const { RefCell::new(Vec::new()) };
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Rings when a task became ready on another thread.
pub(super) type Bell = Box<dyn Fn() + Send + Sync>;

struct Remote {
    ready: Mutex<VecDeque<(Runnable, bool)>>,
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
        let local = Queue::default();
        HERE.with_borrow_mut(|here| here.push((number, Rc::clone(&local))));
        let remote = Arc::new(Remote { ready: Mutex::default(), bell });
        Self { number, local, remote, tasks: Rc::default() }
    }

    /// Starts `future`; it runs until it ends or the executor is dropped.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.start(future, false);
    }

    /// The same; whenever it is ready it goes before those that are not urgent.
    pub fn spawn_urgent(&self, future: impl Future<Output = ()> + 'static) {
        self.start(future, true);
    }

    fn start(&self, future: impl Future<Output = ()> + 'static, urgent: bool) {
        let number = self.number;
        let remote = Arc::clone(&self.remote);
        let schedule = move |runnable: Runnable| {
            let local = HERE
                .with_borrow(|here| here.iter().find(|(found, _)| *found == number).map(|(_, queue)| Rc::clone(queue)));
            match local {
                Some(queue) => queue.borrow_mut().push(runnable, urgent),
                None => {
                    remote.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back((runnable, urgent));
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

    /// Waits until nothing else is ready.
    pub async fn settle(&self) {
        let mut settled = false;
        poll_fn(|context| {
            if std::mem::replace(&mut settled, true) {
                return Poll::Ready(());
            }
            self.local.borrow_mut().settling.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether a task is ready.
    pub fn has_ready(&self) -> bool {
        self.local.borrow().len() > 0
    }

    /// Runs ready tasks until none is left. Returns how many times a task ran.
    pub fn run(&self) -> usize {
        let mut ran = 0;
        loop {
            self.take_remote();
            while let Some(runnable) = self.pop() {
                runnable.run();
                ran += 1;
            }
            let settled = std::mem::take(&mut self.local.borrow_mut().settling);
            if settled.is_empty() {
                return ran;
            }
            settled.into_iter().for_each(Waker::wake);
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
        self.local.borrow_mut().pop()
    }

    fn take_remote(&self) {
        let mut remote = self.remote.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !remote.is_empty() {
            let mut local = self.local.borrow_mut();
            remote.drain(..).for_each(|(runnable, urgent)| local.push(runnable, urgent));
        }
    }
}

impl Ready {
    fn push(&mut self, runnable: Runnable, urgent: bool) {
        if urgent { self.urgent.push_back(runnable) } else { self.others.push_back(runnable) }
    }

    fn pop(&mut self) -> Option<Runnable> {
        self.urgent.pop_front().or_else(|| self.others.pop_front())
    }

    fn len(&self) -> usize {
        self.urgent.len() + self.others.len()
    }

    /// Takes the task at `rank`, in the order in which they would run.
    fn remove(&mut self, rank: usize) -> Option<Runnable> {
        match rank.checked_sub(self.urgent.len()) {
            Some(rank) => self.others.remove(rank),
            None => self.urgent.remove(rank),
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
