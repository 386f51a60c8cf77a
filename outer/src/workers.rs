//! Worker threads. Work is cut into items; an item is computed on one thread, and results come back
//! in item order, so nothing depends on the number of threads.

use crate::episode::Episode;
use outerloop_core::{Error, Evaluator, FlatTask, Float, Result};
use std::sync::{
    atomic::{AtomicUsize, Ordering},
    Arc, Mutex, PoisonError,
};

/// What one thread owns: the evaluator of the task it worked on last, and scratch.
pub struct Worker<E: Float = f32> {
    cached: Option<Cached<E>>,
    /// Gradient buffer.
    pub grad: Vec<E>,
    /// Buffer for a perturbed theta.
    pub(crate) theta: Vec<E>,
}

type Cached<E> = (Arc<dyn FlatTask<E>>, Box<dyn Evaluator<E>>);

impl<E: Float> Default for Worker<E> {
    fn default() -> Self {
        Worker { cached: None, grad: Vec::new(), theta: Vec::new() }
    }
}

impl<E: Float> Worker<E> {
    /// This thread's evaluator of a task (made anew if the last one was for another task), and a
    /// gradient buffer of the right length.
    pub fn evaluator(&mut self, task: &Arc<dyn FlatTask<E>>) -> (&mut dyn Evaluator<E>, &mut [E]) {
        self.fit(task);
        if self.grad.is_empty() {
            self.grad.resize(task.layout().len(), E::of(0.0));
        }
        let (_, evaluator) = self.cached.as_mut().expect("just filled");
        (evaluator.as_mut(), &mut self.grad)
    }

    /// [`Self::evaluator`] without the buffer, for those to whom its memory is too much.
    pub(crate) fn evaluator_alone(&mut self, task: &Arc<dyn FlatTask<E>>) -> &mut dyn Evaluator<E> {
        self.fit(task);
        self.grad = Vec::new();
        let (_, evaluator) = self.cached.as_mut().expect("just filled");
        evaluator.as_mut()
    }

    /// Makes the evaluator one of this task.
    fn fit(&mut self, task: &Arc<dyn FlatTask<E>>) {
        let fits = self.cached.as_ref().is_some_and(|(have, _)| Arc::ptr_eq(have, task));
        if !fits {
            self.cached = Some((task.clone(), task.evaluator()));
            self.grad.clear();
        }
    }
}

/// More than any machine has cores: a mistake.
const MAX_THREADS: usize = 4096;

/// A fixed set of worker threads.
pub struct Workers<E: Float = f32> {
    pool: Option<rayon::ThreadPool>,
    scratch: Vec<Mutex<Worker<E>>>,
    lanes: Mutex<Vec<LaneBuffers<E>>>,
}

/// What the work on one lane leaves behind for the next work on it: buffers, to be overwritten.
#[derive(Default)]
pub(crate) struct LaneBuffers<E: Float> {
    /// The lane's perturbation of theta.
    pub eps: Vec<E>,
    /// The sum of all perturbations that act on its run.
    pub sum: Vec<E>,
    /// The run that it was in.
    pub episode: Option<Episode<E>>,
}

/// An item and its result, in cache lines of their own (some CPUs fetch two at a time). The mutex shows
/// the compiler that a thread has them for itself; nobody ever waits for it.
#[repr(align(128))]
struct Cell<'a, T, R>(Mutex<(&'a mut T, Option<R>)>);

impl<E: Float> Workers<E> {
    /// `threads` workers, at most 4096; 0 means one per available core.
    pub fn new(threads: usize) -> Result<Self> {
        if threads > MAX_THREADS {
            return Err(Error::mismatch("worker threads", 0..=MAX_THREADS, threads));
        }
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let pool = if threads == 1 {
            None
        } else {
            let built = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("lane-worker-{i}"))
                .build();
            Some(built.map_err(|e| Error::invalid(format!("{threads} threads"), e.to_string()))?)
        };
        Ok(Workers {
            pool,
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            lanes: Mutex::default(),
        })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// Calls `f` with the buffers of lanes `0..lanes`, which hold what the last call left there.
    pub(crate) fn with_lane_buffers<R>(&self, lanes: usize, f: impl FnOnce(&mut [LaneBuffers<E>]) -> R) -> R {
        let lock = || self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = std::mem::take(&mut *lock());
        buffers.resize_with(buffers.len().max(lanes), LaneBuffers::default);
        let result = f(&mut buffers[..lanes]);
        *lock() = buffers;
        result
    }

    /// Applies `f` to every item, each on one thread; results in item order. Threads come to the items by an
    /// atomic counter and never wait for each other.
    pub fn map<T: Send, R: Send>(
        &self,
        items: &mut [T],
        f: impl Fn(&mut Worker<E>, usize, &mut T) -> R + Sync,
    ) -> Vec<R> {
        let lock = |i: usize| self.scratch[i].lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pool) = self.pool.as_ref().filter(|_| items.len() > 1) else {
            let mut w = lock(0);
            return items.iter_mut().enumerate().map(|(i, item)| f(&mut w, i, item)).collect();
        };
        let cells: Vec<Cell<'_, T, R>> =
            items.iter_mut().map(|item| Cell(Mutex::new((item, None)))).collect();
        let next = AtomicUsize::new(0);
        pool.broadcast(|ctx| {
            let mut w = lock(ctx.index());
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(cell) = cells.get(i) else { break };
                let mut cell = cell.0.try_lock().expect("the counter gives each cell to one thread");
                let (item, result) = &mut *cell;
                *result = Some(f(&mut w, i, item));
            }
        });
        let results = cells.into_iter().map(|c| c.0.into_inner().unwrap_or_else(PoisonError::into_inner).1);
        results.map(|r| r.expect("every item was computed")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_any_machine_has_are_refused() {
        let error = Workers::<f32>::new(usize::MAX).err().unwrap().to_string();
        assert!(error.contains("expected 0..=4096, got"), "{error}");
    }

    #[test]
    fn results_keep_item_order_for_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let workers = Workers::<f32>::new(threads).unwrap();
            let mut items: Vec<u64> = (0..100).collect();
            let squares = workers.map(&mut items, |_, i, x| {
                *x += 1;
                (i as u64) * (i as u64)
            });
            assert_eq!(squares, (0..100).map(|i| i * i).collect::<Vec<u64>>());
            assert_eq!(items, (1..101).collect::<Vec<u64>>());
        }
    }
}
