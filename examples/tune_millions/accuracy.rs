//! Every method against the exact hypergradient.

use crate::problem::{Classifier, Set, Tuned};
use crate::{Options, Table};
use outerloop::outer::implicit::{Exact, HyperBatches, HyperEvaluator, Identity, NormalCg, Preconditioner};
use outerloop::prelude::*;
use std::sync::Arc;
use std::time::Instant;

/// A method with its number of steps.
type Method = (&'static str, fn(usize) -> Implicit);

const METHODS: &[Method] = &[
    ("identity", |_| Implicit::new(Identity::default())),
    ("neumann, step 1/λ̂", |terms| Implicit::new(Neumann { terms, ..Neumann::default() })),
    ("cg", |steps| Implicit::new(ConjugateGradient { steps, ..ConjugateGradient::default() })),
    ("cg, jacobi by 8 probes", |steps| {
        let preconditioner = Preconditioner::Jacobi(8, Key::new(0));
        Implicit::new(ConjugateGradient { steps, preconditioner, ..ConjugateGradient::default() })
    }),
    ("cg, preconditioned by the decays", |steps| {
        let preconditioner = Preconditioner::Decay;
        Implicit::new(ConjugateGradient { steps, preconditioner, ..ConjugateGradient::default() })
    }),
    ("cg, preconditioned by layers", |steps| {
        let preconditioner = Preconditioner::Layers(Key::new(0));
        Implicit::new(ConjugateGradient { steps, preconditioner, ..ConjugateGradient::default() })
    }),
    ("minres", |steps| Implicit::new(MinRes { steps, ..MinRes::default() })),
    ("normal cg", |steps| Implicit::new(NormalCg { steps, ..NormalCg::default() })),
];

/// Errors of softmax regression's hypergradient with a decay per weight.
pub fn accuracy(options: &Options) -> Result<()> {
    let dir = options.out.join("accuracy");
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let parts = Set::parts([50, 50], Key::new(options.seed).named("digits"));
    let sets = <[Set; 3]>::try_from(parts).map_err(|_| Error::invalid("digits", "expected three parts"))?;
    let task =
        Classifier { widths: vec![64, 10], tuned: Tuned::Decays(-4.0), decay: 0.0, sets, batch: usize::MAX };
    let problem = Arc::new(HyperProblem::<f32>::new(task)?);
    let mut evaluator = HyperEvaluator::new(problem.clone());
    let at = HyperBatches::at(0, Key::new(0));
    let (w, hyper) = problem.init(Key::new(options.seed));
    let n = w.data.len();
    let mut joint = [w.data, hyper.data].concat();
    // λ uneven, as tuning leaves it.
    let mut spread = vec![0.0f32; n];
    Key::new(options.seed).named("spread").fill_normal(&mut spread);
    joint[n..].iter_mut().zip(&spread).for_each(|(l, z)| *l += z);
    let mut grad = vec![0.0; n];
    for _ in 0..options.steps.unwrap_or(3000) {
        evaluator.loss_and_grad(&joint, at.curvature, &mut grad)?;
        joint.iter_mut().zip(&grad).for_each(|(w, g)| *w -= 0.3 * g);
    }
    let exact = evaluator.hypergradient(&Implicit::new(Exact::default()), &at, &joint, None)?;
    println!("{n} weights, {n} hyperparameters, gradient of the training loss {:.1e}", exact.inner_grad_norm);
    let relative = |grad: &[f32]| {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let error = norm(&mut grad.iter().zip(&exact.grad).map(|(g, e)| g - e));
        error / norm(&mut exact.grad.iter().copied())
    };
    let head = ["method", "steps", "products", "cosine", "relative error", "residual", "status", "ms"];
    let mut table = Table::new("Hypergradients against the exact one", &head);
    let mut series = Vec::new();
    for (name, method) in METHODS {
        let mut points = Vec::new();
        for steps in [0usize, 1, 2, 3, 4, 5, 7, 10, 20, 50] {
            if (*name == "identity") != (steps == 0) {
                continue;
            }
            let began = Instant::now();
            let h = evaluator.hypergradient(&method(steps), &at, &joint, None)?;
            let ms = 1e3 * began.elapsed().as_secs_f64();
            table.row([
                name.to_string(),
                steps.to_string(),
                h.solution.products.to_string(),
                format!("{:.3}", h.cosine(&exact.grad)),
                format!("{:.2e}", relative(&h.grad)),
                format!("{:.1e}", h.residual),
                format!("{:?}", h.solution.status),
                format!("{ms:.1}"),
            ]);
            points.push((h.solution.products.max(1) as f64, relative(&h.grad)));
        }
        series.push(Series::line(*name, points));
    }
    let mut points = Vec::new();
    for steps in [1, 2, 5, 10, 20, 50] {
        let began = Instant::now();
        let unrolled = Unrolled::new(Sgd::new(0.3), steps);
        let h = evaluator.unrolled_hypergradient(&unrolled, Key::new(0), at.valid, &joint)?;
        let ms = 1e3 * began.elapsed().as_secs_f64();
        let cosine = {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            dot(&h.grad, &exact.grad) / (dot(&h.grad, &h.grad) * dot(&exact.grad, &exact.grad)).sqrt()
        };
        table.row([
            "unrolled sgd, lr 0.3".to_string(),
            steps.to_string(),
            steps.to_string(),
            format!("{cosine:.3}"),
            format!("{:.2e}", relative(&h.grad)),
            String::new(),
            String::new(),
            format!("{ms:.1}"),
        ]);
        points.push((steps as f64, relative(&h.grad)));
    }
    series.push(Series::line("unrolled sgd", points));
    let plot = Plot {
        title: "Error of hypergradients".into(),
        x_label: "products with the Hessian".into(),
        y_label: "relative error".into(),
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        series,
        ..Plot::default()
    };
    plot.save(dir.join("error.svg"))?;
    table.save(&dir)
}
