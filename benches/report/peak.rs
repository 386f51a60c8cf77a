//! What this machine can do, measured: multiply-adds, matrix products, copies.

use pulp::{Arch, Simd, WithSimd};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Best rates of several short samples: what the kernels of this process are compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// f32 fused multiply-adds from registers on one core, GFLOP/s (two per multiply-add).
    pub fma: f64,
    /// The same on all threads at once, GFLOP/s together.
    pub fma_all: f64,
    /// Product of two 256 x 256 f32 matrices by the `gemm` crate on one core, GFLOP/s.
    pub gemm: f64,
    /// Copy of 64 MiB on one core, GB/s read plus written.
    pub copy: f64,
}

impl Peak {
    /// Measures for about a third of a second.
    pub fn measure() -> Self {
        Peak {
            fma: best(20, fma_rate),
            fma_all: best(10, fma_rate_all),
            gemm: best(20, gemm_rate()),
            copy: best(5, copy_rate()),
        }
    }
}

fn best(samples: usize, mut rate: impl FnMut() -> f64) -> f64 {
    (0..samples).map(|_| rate()).fold(0.0, f64::max)
}

/// Independent chains: enough to hide the latency of two units, few enough for 16 registers.
const CHAINS: usize = 12;

/// `x ← m x + a` in every chain.
struct Fma {
    rounds: usize,
}

impl WithSimd for Fma {
    /// Multiply-adds done, and a number that depends on all of them.
    type Output = (usize, f32);
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> (usize, f32) {
        let (m, a) = (s.splat_f32s(black_box(0.5)), s.splat_f32s(black_box(0.25)));
        let mut x = [a; CHAINS];
        for _ in 0..self.rounds {
            for x in &mut x {
                *x = s.mul_add_e_f32s(*x, m, a);
            }
        }
        let sum = x.into_iter().reduce(|a, b| s.add_f32s(a, b)).unwrap_or(a);
        (self.rounds * CHAINS * S::F32_LANES, s.reduce_sum_f32s(sum))
    }
}

fn run_fma() -> usize {
    let (done, sum) = Arch::new().dispatch(Fma { rounds: 300_000 });
    black_box(sum);
    done
}

fn fma_rate() -> f64 {
    let start = Instant::now();
    let done = run_fma();
    2.0 * done as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Hardware threads of this process.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

fn fma_rate_all() -> f64 {
    let barrier = Barrier::new(threads());
    let work = || {
        barrier.wait();
        let start = Instant::now();
        let done: usize = (0..4).map(|_| run_fma()).sum();
        (done, start, Instant::now())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads()).map(|_| scope.spawn(work)).collect();
        let runs = workers.into_iter().map(|w| w.join().expect("it only multiplies"));
        let all = runs.reduce(|a, b| (a.0 + b.0, a.1.min(b.1), a.2.max(b.2)));
        let (done, start, end) = all.expect("at least one thread");
        2.0 * done as f64 / (end - start).as_secs_f64() / 1e9
    })
}

fn gemm_rate() -> impl FnMut() -> f64 {
    const N: usize = 256;
    const ROUNDS: usize = 5;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    move || {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let n = N as isize;
            // SAFETY: three row-major N x N buffers; the destination is borrowed mutably.
            unsafe {
                gemm::gemm(
                    N,
                    N,
                    N,
                    c.as_mut_ptr(),
                    1,
                    n,
                    false,
                    a.as_ptr(),
                    1,
                    n,
                    b.as_ptr(),
                    1,
                    n,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
            black_box(&mut c);
        }
        (2 * N * N * N * ROUNDS) as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

fn copy_rate() -> impl FnMut() -> f64 {
    const BYTES: usize = 64 << 20;
    let (from, mut to) = (vec![1u8; BYTES], vec![0u8; BYTES]);
    move || {
        let start = Instant::now();
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        (2 * BYTES) as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}
