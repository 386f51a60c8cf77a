//! Every method against closed forms, on quadratics.

use super::*;
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Mode, PutTape, Rank0, Rank1, Rank2, Tensor};
use outerloop_core::{contract, BatchKey, HyperProblem, HyperTask, Key};
use outerloop_lopt::hand::{Adam, Momentum, Sgd};
use std::sync::Arc;

const DIM: usize = 4;

/// `L_T = mean (x w − y)² + ½ Σ e^λ w²`, `L_V = mean (x' w − y')² + ½ e^0.1 Σ λ²`: a direct term, too.
struct Ridge;

type Column<E, B> = Tensor<Rank2<DIM, 1>, E, B>;

impl<E: Float, B: Backend<E>> HyperTask<E, B> for Ridge {
    type Params = Column<E, B>;
    type Hyper = Column<E, B>;
    type Batch = (Tensor<Rank2<12, DIM>, E, B>, Tensor<Rank2<12, 1>, E, B>);
    fn name(&self) -> String {
        "ridge".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        dev.normal(key)
    }
    fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
        dev.normal(key)
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let [x, y] = Key::new(3).fold_in(at.split as u64).split();
        (dev.normal(x), dev.normal(y))
    }
    fn train_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        hyper: &Self::Hyper,
        (x, y): &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let error = ops::mse(ops::matmul(x.clone().put_tape(m), w), y);
        ops::add(error, &ops::weight_decay(w.clone().put_tape(m), hyper))
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        hyper: &Self::Hyper,
        (x, y): &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let error = ops::mse(ops::matmul(x.clone().put_tape(m), w), y);
        let tenth = hyper.device().filled(*hyper.shape(), |x| x.fill(E::of(0.1)));
        ops::add(error, &ops::weight_decay(hyper.clone().put_tape(m), &tenth))
    }
    fn log_decays(&self) -> Vec<String> {
        vec!["params".into()]
    }
}

use outerloop_core::tensor::HasShape;

/// A symmetric matrix with the given eigenvalues, rotated by reflections.
struct Spectrum {
    values: Vec<f64>,
    mirror: Vec<f64>,
}

impl Spectrum {
    fn new(values: &[f64]) -> Self {
        let mut mirror = vec![0.0; values.len()];
        Key::new(5).fill_normal(&mut mirror);
        let norm = vector::norm(&mirror);
        mirror.iter_mut().for_each(|m| *m /= norm);
        Spectrum { values: values.to_vec(), mirror }
    }
    /// `x − 2 m ⟨m, x⟩`.
    fn reflect(&self, x: &[f64]) -> Vec<f64> {
        let c = 2.0 * vector::dot(&self.mirror, x);
        x.iter().zip(&self.mirror).map(|(x, m)| x - c * m).collect()
    }
    /// `f(A) x`.
    fn map(&self, x: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
        let x: Vec<f64> = self.reflect(x).iter().zip(&self.values).map(|(x, v)| x * f(*v)).collect();
        self.reflect(&x)
    }
}

impl LinearOperator<f64> for Spectrum {
    fn dim(&self) -> usize {
        self.values.len()
    }
    fn apply(&mut self, v: &[f64], out: &mut [f64]) {
        out.copy_from_slice(&self.map(v, |x| x));
    }
}

/// `‖a − b‖ / ‖b‖`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    vector::norm(&difference) / vector::norm(b)
}

fn all_methods() -> Vec<Box<dyn InverseHessian<f64>>> {
    let diagonal = Preconditioner::Diagonal(vec![0.5, 1.0, 2.0, 3.0, 4.0]);
    let cg = |preconditioner| ConjugateGradient { preconditioner, ..ConjugateGradient::default() };
    vec![
        Box::new(Neumann { terms: 400, ..Neumann::default() }),
        Box::new(cg(Preconditioner::None)),
        Box::new(cg(diagonal)),
        Box::new(cg(Preconditioner::Jacobi(3, Key::new(2)))),
        Box::new(NormalCg::default()),
        Box::new(MinRes::default()),
        Box::new(Exact::default()),
    ]
}

const RIGHT: [f64; 5] = [1.0, -2.0, 0.5, 3.0, -1.5];

#[test]
fn every_method_finds_the_solution_of_a_definite_system() {
    let mut a = Spectrum::new(&[0.2, 0.7, 1.0, 2.5, 4.0]);
    let want = a.map(&RIGHT, |x| 1.0 / x);
    for method in all_methods() {
        method.validate(5).unwrap();
        let solution = method.solve(&mut a, &RIGHT, None);
        assert!(solution.status.is_good(), "{}: {:?}", method.name(), solution.status);
        assert!(distance(&solution.q, &want) < 1e-7, "{}: {:?}", method.name(), solution);
        assert_eq!(solution, method.solve(&mut a, &RIGHT, None), "{} is a function", method.name());
        // From the solution nothing is left to do.
        let again = method.solve(&mut a, &RIGHT, Some(solution.q));
        assert!(distance(&again.q, &want) < 1e-7, "{}: {:?}", method.name(), again);
        assert!(again.history.last().is_none_or(|r| *r < 1e-6), "{}: {:?}", method.name(), again);
    }
}

#[test]
fn a_start_that_is_worse_than_none_is_not_used() {
    let mut a = Spectrum::new(&[0.2, 0.7, 1.0, 2.5, 4.0]);
    for method in all_methods() {
        let none = method.solve(&mut a, &RIGHT, None);
        for far in [1e9, f64::NAN, f64::INFINITY] {
            let solution = method.solve(&mut a, &RIGHT, Some(vec![far; 5]));
            assert_eq!(solution.q, none.q, "{} from {far}", method.name());
            assert_eq!(solution.status, none.status, "{} from {far}", method.name());
        }
    }
}

#[test]
fn a_truncated_series_weighs_eigenvalues_as_its_formula_says() {
    let (alpha, terms) = (0.3, 7);
    let mut a = Spectrum::new(&[0.0, 0.1, 1.0, 2.5, 4.0]);
    let got = Neumann::new(terms, alpha).solve(&mut a, &RIGHT, None);
    let weight = |x: f64| {
        if x == 0.0 {
            alpha * (terms + 1) as f64
        } else {
            (1.0 - (1.0 - alpha * x).powi(terms as i32 + 1)) / x
        }
    };
    assert!(distance(&got.q, &a.map(&RIGHT, weight)) < 1e-12);
    assert_eq!((got.products, got.status), (terms, Status::Truncated));
}

#[test]
fn a_series_that_diverges_is_stopped_and_reported() {
    let mut a = Spectrum::new(&[0.2, 0.7, 1.0, 2.5, 4.0]);
    let fixed = Neumann::new(100, 0.51).solve(&mut a, &RIGHT, None);
    assert!(matches!(fixed.status, Status::Diverged(_)) && vector::norm(&fixed.q) < 100.0, "{fixed:?}");
    // The step of its own choice converges.
    assert_eq!(Neumann::default().solve(&mut a, &RIGHT, None).status, Status::Truncated);
    // Negative curvature makes any step diverge in the end.
    let mut saddle = Spectrum::new(&[-0.5, 0.7, 1.0, 2.5, 4.0]);
    let got = Neumann { terms: 100, ..Neumann::default() }.solve(&mut saddle, &RIGHT, None);
    assert!(matches!(got.status, Status::Diverged(_)), "{got:?}");
}

#[test]
fn negative_curvature_is_detected_or_solved() {
    let mut a = Spectrum::new(&[-0.5, 0.7, 1.0, 2.5, -4.0]);
    let want = a.map(&RIGHT, |x| 1.0 / x);
    let cg = ConjugateGradient::default().solve(&mut a, &RIGHT, None);
    assert!(matches!(cg.status, Status::Indefinite(_)), "{cg:?}");
    for method in [&MinRes::default() as &dyn InverseHessian<f64>, &NormalCg::default()] {
        let got = method.solve(&mut a, &RIGHT, None);
        assert_eq!(got.status, Status::Converged, "{}", method.name());
        assert!(distance(&got.q, &want) < 1e-7, "{}: {got:?}", method.name());
        assert!(got.history.windows(2).all(|r| r[1] <= r[0] * (1.0 + 1e-12)), "{}", method.name());
    }
    let exact = Exact::default().solve(&mut a, &RIGHT, None);
    assert_eq!(exact.status, Status::Indefinite(5));
    assert!(distance(&exact.q, &want) < 1e-12);
}

#[test]
fn nan_is_a_value() {
    struct Broken;
    impl LinearOperator<f64> for Broken {
        fn dim(&self) -> usize {
            5
        }
        fn apply(&mut self, _: &[f64], out: &mut [f64]) {
            out.fill(f64::NAN);
        }
    }
    for method in all_methods() {
        let got = method.solve(&mut Broken, &RIGHT, None);
        assert_eq!(got.status, Status::NonFinite, "{}", method.name());
        assert!(got.q.iter().all(|q| q.is_finite()), "{}", method.name());
    }
    let zero = ConjugateGradient::default().solve(&mut Spectrum::new(&[1.0; 5]), &[0.0; 5], None);
    assert_eq!((zero.q, zero.status), (vec![0.0; 5], Status::Converged));
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused: Vec<Box<dyn InverseHessian<f64>>> = vec![
        Box::new(Neumann::new(3, 0.0)),
        Box::new(ConjugateGradient { tolerance: f64::NAN, ..ConjugateGradient::default() }),
        Box::new(ConjugateGradient {
            preconditioner: Preconditioner::Diagonal(vec![1.0]),
            ..ConjugateGradient::default()
        }),
        Box::new(MinRes { tolerance: -1.0, ..MinRes::default() }),
        Box::new(Exact { max_dim: 3 }),
        Box::new(Identity { scale: -1.0 }),
    ];
    for method in refused {
        assert!(method.validate(5).is_err(), "{}", method.describe());
    }
}

/// A diagonal plus some directions.
struct FewDirections {
    diagonal: Vec<f64>,
    directions: Vec<Vec<f64>>,
}

impl FewDirections {
    fn new(dim: usize, rank: usize) -> Self {
        let mut diagonal = vec![0.0f64; dim];
        Key::new(8).fill_normal(&mut diagonal);
        diagonal.iter_mut().for_each(|d| *d = (2.0 * *d - 3.0).exp());
        let direction = |i: usize| {
            let mut u = vec![0.0; dim];
            Key::new(9).fold_in(i as u64).fill_normal(&mut u);
            u
        };
        FewDirections { diagonal, directions: (0..rank).map(direction).collect() }
    }
}

impl LinearOperator<f64> for FewDirections {
    fn dim(&self) -> usize {
        self.diagonal.len()
    }
    fn apply(&mut self, v: &[f64], out: &mut [f64]) {
        out.iter_mut().zip(v.iter().zip(&self.diagonal)).for_each(|(o, (v, d))| *o = v * d);
        self.directions.iter().for_each(|u| vector::add_scaled(out, vector::dot(u, v), u));
    }
    fn diagonal(&self) -> Option<Vec<f64>> {
        Some(self.diagonal.clone())
    }
}

#[test]
fn few_directions_beside_a_known_diagonal_are_solved_at_once() {
    let (dim, rank) = (60, 7);
    let mut a = FewDirections::new(dim, rank);
    let mut b = vec![0.0; dim];
    Key::new(10).fill_normal(&mut b);
    let want = Exact::default().solve(&mut a, &b, None).q;
    let woodbury = |rank| Woodbury { rank, ..Woodbury::default() };
    // More directions than there are do no harm, fewer do not suffice.
    for rank in [rank, rank + 5, dim] {
        let got = woodbury(rank).solve(&mut a, &b, None);
        assert_eq!((got.products, got.status), (rank, Status::Converged));
        assert!(distance(&got.q, &want) < 1e-9, "{rank}: {:e}", distance(&got.q, &want));
    }
    assert!(distance(&woodbury(rank - 1).solve(&mut a, &b, None).q, &want) > 1e-3);
    // Conjugate gradients that know the diagonal are there after one step more; others are not.
    let cg = |preconditioner| ConjugateGradient { steps: rank + 1, preconditioner, tolerance: 0.0 };
    let got = cg(Preconditioner::Decay).solve(&mut a, &b, None);
    assert!(distance(&got.q, &want) < 1e-9, "{got:?}");
    assert!(distance(&cg(Preconditioner::None).solve(&mut a, &b, None).q, &want) > 1e-3);
    let only_diagonal = woodbury(3).solve(&mut FewDirections::new(dim, 0), &b, None);
    assert_eq!(only_diagonal.status, Status::Converged);
    for rank in [0, dim + 1] {
        assert!(InverseHessian::<f64>::validate(&woodbury(rank), dim).is_err());
    }
}

#[test]
fn a_problem_knows_the_diagonal_of_its_decays() {
    let (problem, at) = (problem(), HyperBatches::at(0, Key::new(0)));
    let mut evaluator = HyperEvaluator::new(problem);
    let joint = optimum(&mut evaluator, &[-1.0, 0.3, -2.0, -0.5]);
    let mut of = |implicit: &Implicit<f64>| evaluator.hypergradient(implicit, &at, &joint, None);
    let woodbury = Implicit::new(Woodbury { rank: DIM, ..Woodbury::default() });
    let exact = of(&Implicit::new(Exact::default()).damped(0.1)).unwrap();
    for implicit in [woodbury.clone(), woodbury.clone().gauss_newton()] {
        let got = of(&implicit.damped(0.1)).unwrap();
        assert!(distance(&got.grad, &exact.grad) < 1e-9 && got.residual < 1e-9, "{got:?}");
    }
    // Without decays a damping is the diagonal; with neither there is none.
    let wave = Arc::new(HyperProblem::<f64>::new(Wave).unwrap());
    let (w, hyper) = wave.init(Key::new(1));
    let joint = [w.data, hyper.data].concat();
    let mut evaluator = HyperEvaluator::new(wave);
    let woodbury = Implicit::new(Woodbury { rank: 2, ..Woodbury::default() });
    let error = evaluator.hypergradient(&woodbury, &at, &joint, None).unwrap_err().to_string();
    assert!(error.contains("tensor `params`"), "{error}");
    let exact = Implicit::new(Exact::default()).damped(2.0);
    let exact = evaluator.hypergradient(&exact, &at, &joint, None).unwrap();
    let got = evaluator.hypergradient(&woodbury.damped(2.0), &at, &joint, None).unwrap();
    assert!(distance(&got.solution.q, &exact.solution.q) < 1e-9);
}

fn problem() -> Arc<HyperProblem<f64>> {
    Arc::new(HyperProblem::new(Ridge).unwrap())
}

/// `[w*, λ]`, by Newton steps.
fn optimum(evaluator: &mut HyperEvaluator<f64>, hyper: &[f64]) -> Vec<f64> {
    let at = HyperBatches::at(0, Key::new(0));
    let mut joint = [&[0.0; DIM][..], hyper].concat();
    for _ in 0..3 {
        let mut g = vec![0.0; DIM];
        evaluator.loss_and_grad(&joint, at.curvature, &mut g).unwrap();
        let mut columns = Columns(evaluator, joint.clone());
        let step = Exact::default().solve(&mut columns, &g, None).q;
        joint.iter_mut().zip(&step).for_each(|(w, s)| *w -= s);
    }
    joint
}

/// The Hessian by `w`, from the evaluator's own products.
struct Columns<'a>(&'a mut HyperEvaluator<f64>, Vec<f64>);

impl LinearOperator<f64> for Columns<'_> {
    fn dim(&self) -> usize {
        DIM
    }
    fn apply(&mut self, v: &[f64], out: &mut [f64]) {
        let padded = [v, &[0.0; DIM]].concat();
        let (mut g, mut h) = (vec![0.0; 2 * DIM], vec![0.0; 2 * DIM]);
        let at = HyperBatches::at(0, Key::new(0)).curvature;
        self.0.evaluator.loss_grad_hvp(&self.1, &[], at, &padded, &mut g, &mut h);
        out.copy_from_slice(&h[..DIM]);
    }
}

#[test]
fn the_ridge_passes_its_contract() {
    contract::check_hyper_task(&Arc::new(Ridge)).unwrap();
}

#[test]
fn the_hypergradient_is_the_slope_of_the_validation_loss_at_the_optimum() {
    let (problem, at) = (problem(), HyperBatches::at(0, Key::new(0)));
    let mut evaluator = HyperEvaluator::new(problem.clone());
    let hyper = [-1.0, 0.3, -2.0, -0.5];
    let joint = optimum(&mut evaluator, &hyper);
    let slope: Vec<f64> = (0..DIM)
        .map(|i| {
            let mut at_shift = |h: f64| {
                let mut shifted = hyper;
                shifted[i] += h;
                let joint = optimum(&mut evaluator, &shifted);
                evaluator.loss(&joint, at.valid).unwrap()
            };
            (at_shift(1e-5) - at_shift(-1e-5)) / 2e-5
        })
        .collect();
    let methods = all_methods();
    let methods = methods.into_iter().filter(|m| m.validate(DIM).is_ok());
    for (i, solver) in methods.enumerate() {
        let name = solver.name();
        let implicit = Implicit { solver: solver.into(), damping: 0.0, curvature: Default::default() };
        let h = evaluator.hypergradient(&implicit, &at, &joint, None).unwrap();
        assert!(distance(&h.grad, &slope) < 1e-6, "{name}: {:?} and {slope:?}", h.grad);
        assert!(h.residual < 1e-6 && h.inner_grad_norm < 1e-12 && h.is_good(), "{name}: {h:?}");
        // The Gauss-Newton matrix of a linear model is its Hessian.
        let g = evaluator.hypergradient(&implicit.gauss_newton(), &at, &joint, None).unwrap();
        assert!(distance(&g.grad, &h.grad) < 1e-12, "{name} {i}");
    }
    // The same batch under another name is another product, and the same result.
    let mixed = BatchKey::train(7, Key::new(1));
    let implicit = Implicit::new(Exact::default());
    let one = evaluator.hypergradient(&implicit, &at, &joint, None).unwrap();
    let other = evaluator.hypergradient(&implicit, &HyperBatches { mixed, ..at }, &joint, None).unwrap();
    assert!(distance(&other.grad, &one.grad) < 1e-14);
}

#[test]
fn an_unroll_from_the_optimum_is_a_neumann_series() {
    let (problem, at, key) = (problem(), HyperBatches::at(0, Key::new(0)), Key::new(0));
    let mut evaluator = HyperEvaluator::new(problem);
    let joint = optimum(&mut evaluator, &[-1.0, 0.3, -2.0, -0.5]);
    for steps in [1, 2, 9] {
        let unrolled = Unrolled::new(Sgd::new(0.2), steps);
        let by_steps = evaluator.unrolled_hypergradient(&unrolled, key, at.valid, &joint).unwrap();
        let series = Implicit::new(Neumann::new(steps - 1, 0.2));
        let by_series = evaluator.hypergradient(&series, &at, &joint, None).unwrap();
        assert!(distance(&by_steps.grad, &by_series.grad) < 1e-12, "{steps}");
    }
}

#[test]
fn an_unroll_is_the_slope_of_the_validation_loss_after_training() {
    let (problem, at, key) = (problem(), HyperBatches::at(0, Key::new(0)), Key::new(0));
    let mut evaluator = HyperEvaluator::new(problem);
    let joint = [0.5, -1.0, 2.0, 0.1, -1.0, 0.3, -2.0, -0.5];
    let all: [Arc<dyn Optimizer<f64>>; 3] =
        [Arc::new(Sgd::new(0.1)), Arc::new(Momentum::default()), Arc::new(Adam::new(0.05))];
    for optimizer in all {
        let name = optimizer.name();
        let unrolled = Unrolled { optimizer, steps: 6, truncate: None };
        let mut run =
            |joint: &[f64]| evaluator.unrolled_hypergradient(&unrolled, key, at.valid, joint).unwrap();
        let got = run(&joint);
        let got = [got.initial.unwrap(), got.grad].concat();
        let slope: Vec<f64> = (0..joint.len())
            .map(|i| {
                let mut at_shift = |h: f64| {
                    let mut shifted = joint;
                    shifted[i] += h;
                    run(&shifted).valid_loss
                };
                (at_shift(1e-5) - at_shift(-1e-5)) / 2e-5
            })
            .collect();
        assert!(distance(&got, &slope) < 1e-7, "{name}: {got:?} and {slope:?}");
    }
    // Truncated to no step at all, the direct term is left.
    let optimizer: Arc<dyn Optimizer<f64>> = Arc::new(Sgd::new(0.1));
    let short = Unrolled { optimizer, steps: 6, truncate: Some(0) };
    let got = evaluator.unrolled_hypergradient(&short, key, at.valid, &joint).unwrap();
    let direct: Vec<f64> = joint[DIM..].iter().map(|l| 0.1f64.exp() * l).collect();
    assert!(distance(&got.grad, &direct) < 1e-12 && got.initial.is_none());
}

use outerloop_core::Optimizer;

/// `T(z, θ) = tanh(a z) + b`, elementwise, as `⟨T, u⟩`; `θ = (a, b)`.
struct Wave;

impl<E: Float, B: Backend<E>> HyperTask<E, B> for Wave {
    type Params = Tensor<Rank1<2>, E, B>;
    type Hyper = (Tensor<Rank1<2>, E, B>, Tensor<Rank1<2>, E, B>, Tensor<Rank1<2>, E, B>);
    type Batch = ();
    fn name(&self) -> String {
        "wave".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        dev.normal(key)
    }
    fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
        let [a, b, u] = key.split();
        (dev.normal(a), dev.normal(b), dev.normal(u))
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn train_loss<M: Mode<E, B>>(
        &self,
        z: &Self::Params,
        (a, b, u): &Self::Hyper,
        (): &(),
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let t = ops::add(ops::tanh(ops::mul(z.clone().put_tape(m), a)), b);
        ops::sum(ops::mul(t, u))
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        z: &Self::Params,
        _: &Self::Hyper,
        (): &(),
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        ops::sum(z.clone().put_tape(m))
    }
}

#[test]
fn a_fixed_point_moves_with_its_parameters_as_its_derivatives_say() {
    let at = BatchKey::train(0, Key::new(0));
    let mut map = FixedPointMap::new(Arc::new(HyperProblem::<f64>::new(Wave).unwrap()), at).unwrap();
    let theta = [0.5, -0.8, 0.3, 1.0];
    let mut solve = |theta: &[f64]| {
        let found = map.iterate(&[0.0; 2], theta, Iterations::default()).unwrap();
        assert_eq!(found.status, Status::Converged);
        found.z
    };
    let z = solve(&theta);
    let (c, tangent) = ([0.7, -1.1], [0.2, 0.4, -0.3, 0.9]);
    let along = |h: f64| -> Vec<f64> { theta.iter().zip(&tangent).map(|(t, d)| t + h * d).collect() };
    let (plus, minus) = (solve(&along(1e-5)), solve(&along(-1e-5)));
    let moved: Vec<f64> = plus.iter().zip(&minus).map(|(p, m)| (p - m) / 2e-5).collect();
    let slope: Vec<f64> = (0..4)
        .map(|i| {
            let mut at_shift = |h: f64| {
                let mut shifted = theta;
                shifted[i] += h;
                vector::dot(&solve(&shifted), &c)
            };
            (at_shift(1e-5) - at_shift(-1e-5)) / 2e-5
        })
        .collect();
    let series = Neumann { terms: 200, step: Step::Fixed(1.0), tolerance: 1e-13, patience: 10 };
    let methods: [&dyn InverseHessian<f64>; 3] = [&series, &NormalCg::default(), &Exact::default()];
    for method in methods {
        let vjp = map.vjp(method, &z, &theta, &c).unwrap();
        assert!(distance(&vjp.grad, &slope) < 1e-7, "{}: {vjp:?} and {slope:?}", method.name());
        let jvp = map.jvp(method, &z, &theta, &tangent).unwrap();
        assert!(distance(&jvp.q, &moved) < 1e-7, "{}: {jvp:?} and {moved:?}", method.name());
    }
    // Through many repetitions, the same.
    let (grad, initial, last) = map.unrolled_vjp(&[0.0; 2], &theta, &c, 200).unwrap();
    assert!(distance(&grad, &slope) < 1e-7 && vector::norm(&initial) < 1e-12 && distance(&last, &z) < 1e-9);
}

mod learner {
    use super::*;
    use crate::run::{train, RunConfig, RunDir, Trainable};
    use crate::Workers;

    fn config() -> HyperConfig {
        HyperConfig { hyper_steps: 40, warm_up: 50, lanes: 3, ..HyperConfig::default() }
    }

    fn learner(config: HyperConfig) -> HyperLearner {
        let problem = Arc::new(HyperProblem::new(Ridge).unwrap());
        let implicit = Implicit::new(ConjugateGradient::default());
        HyperLearner::new(problem, Box::new(Sgd::new(0.3)), Box::new(Adam::new(0.1)), implicit, config)
            .unwrap()
    }

    fn run(learner: &HyperLearner, threads: usize) -> (HyperState, Vec<Vec<HyperReport>>) {
        let workers = Workers::new(threads).unwrap();
        let mut state = learner.init(Key::new(5)).unwrap();
        let reports = (0..learner.num_steps()).map(|_| learner.step(&mut state, &workers)).collect();
        (state, reports)
    }

    #[test]
    fn it_lowers_the_validation_loss_to_where_its_slope_vanishes() {
        let learner = learner(HyperConfig { hyper_steps: 300, inner_steps: 20, ..config() });
        let (state, reports) = run(&learner, 2);
        for (i, lane) in state.lanes.iter().enumerate() {
            let (first, last) = (&reports[0][i], &reports[299][i]);
            assert!(last.valid_loss < first.valid_loss, "{first:?} {last:?}");
            assert!(last.grad_norm < 0.05 * first.grad_norm, "{first:?} {last:?}");
            assert!(last.residual < 1e-4 && last.inner_grad_norm < 1e-2, "{last:?}");
            assert_eq!((lane.skipped, lane.resets, lane.indefinite), (0, 0, 0));
        }
    }

    #[test]
    fn threads_change_nothing() {
        let learner = learner(config());
        let (one, _) = run(&learner, 1);
        assert_ne!(one.lanes[0].hyper.params, one.lanes[1].hyper.params);
        for threads in [2, 4] {
            assert_eq!(run(&learner, threads).0, one);
        }
    }

    #[test]
    fn a_resumed_run_ends_with_the_same_bytes() {
        let (root, learner) = (tempfile::tempdir().unwrap(), learner(config()));
        let workers = Workers::new(2).unwrap();
        let settings = |resume| RunConfig { seed: 5, resume, progress: false, ..RunConfig::default() };
        let straight = RunDir::new(root.path().join("straight"));
        let all = train(&learner, &workers, &straight, &settings(false)).unwrap();
        assert_eq!(all, run(&learner, 1).0);
        let stopped = RunDir::new(root.path().join("stopped"));
        let mut state = learner.init(Key::new(5)).unwrap();
        for _ in 0..7 {
            learner.step(&mut state, &workers);
        }
        stopped.create().unwrap();
        stopped.save_state::<HyperLearner>(&state).unwrap();
        train(&learner, &Workers::new(1).unwrap(), &stopped, &settings(true)).unwrap();
        let bytes = |dir: &RunDir| std::fs::read(dir.checkpoint()).unwrap();
        assert!(bytes(&straight) == bytes(&stopped));
        // Another configuration is refused, by what differs.
        let other = super::learner::learner(HyperConfig { inner_steps: 6, ..config() });
        let error = train(&other, &workers, &straight, &settings(true)).unwrap_err().to_string();
        assert!(error.contains("inner_steps: 6"), "{error}");
        let rows = std::fs::read_to_string(straight.metrics()).unwrap();
        assert_eq!(rows.lines().count(), 41);
        assert!(rows.starts_with("step,valid_loss,train_loss,inner_grad_norm"), "{rows}");
    }

    #[test]
    fn decays_stay_where_training_is_stable_and_without_a_limit_nan_does_not_spread() {
        let hot = |decay_limit| HyperConfig {
            candidates: vec![vec![6.0, -1.0, -1.0, -1.0]],
            warm_up: 200,
            decay_limit,
            ..config()
        };
        let limited = learner(hot(DecayLimit::Measured));
        assert!((limited.decay_limit() - (1.0f32 / 0.3).ln()).abs() < 1e-6);
        let (state, _) = run(&limited, 1);
        assert!(state.lanes.iter().all(|l| l.resets == 0 && l.skipped == 0));
        assert!(state.lanes.iter().all(|l| limited.hyper(l)[0] <= limited.decay_limit()));
        let free = learner(hot(DecayLimit::Off));
        let (state, reports) = run(&free, 1);
        for lane in &state.lanes {
            assert!(lane.resets > 0 && lane.skipped >= lane.resets, "{lane:?}");
            assert!(free.joint(lane).iter().all(|x| x.is_finite()));
        }
        assert!(reports[0].iter().all(|r| r.valid_loss.is_nan()));
    }

    #[test]
    fn constraints_hold_throughout() {
        let within = Constraint::Between { low: -2.0, high: 0.5 };
        let learner = learner(HyperConfig {
            constraints: vec![("params".into(), within)],
            candidates: vec![vec![0.0, 0.1, -1.0, -1.9]],
            ..config()
        });
        let (state, _) = run(&learner, 1);
        for lane in &state.lanes {
            let lambda = learner.hyper(lane);
            assert!(lambda.iter().all(|l| (-2.0..=0.5).contains(l)), "{lambda:?}");
            assert!(lambda != [0.0, 0.1, -1.0, -1.9]);
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let refused = |config: HyperConfig| {
            let problem = Arc::new(HyperProblem::new(Ridge).unwrap());
            let implicit = Implicit::new(ConjugateGradient::default());
            HyperLearner::new(problem, Box::new(Sgd::new(0.3)), Box::new(Adam::new(0.1)), implicit, config)
                .err()
        };
        for (config, say) in [
            (HyperConfig { lanes: 0, ..config() }, "lanes"),
            (HyperConfig { inner_steps: 0, ..config() }, "inner steps"),
            (HyperConfig { candidates: vec![vec![1.0]], ..config() }, "expected 4, got 1"),
            (HyperConfig { decay_limit: DecayLimit::Rate(0.0), ..config() }, "decay limit"),
            (HyperConfig { constraints: vec![("x".into(), Constraint::Positive)], ..config() }, "`x`"),
        ] {
            let error = refused(config).expect("an error").to_string();
            assert!(error.contains(say), "{error}");
        }
        let outside = HyperConfig {
            constraints: vec![("params".into(), Constraint::Positive)],
            candidates: vec![vec![1.0, 1.0, -1.0, 1.0]],
            ..config()
        };
        let error = learner(outside).init(Key::new(0)).unwrap_err().to_string();
        assert!(error.contains("element 2"), "{error}");
    }
}
