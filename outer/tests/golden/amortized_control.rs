//! LQR, the pendulum, sparse coding and MAML.

use crate::amortized::{check_both, close, matrix, put, rows, Named};
use crate::fixture::{get, number, numbers, Case, Errors, Outcome};
use outerloop_amortized::matrix::Matrix;
use outerloop_amortized::problems::lqr::Lqr;
use outerloop_amortized::problems::pendulum::rollout;
use outerloop_amortized::solve::{minimize, CrossEntropy};
use outerloop_core::{Float, Key};
use outerloop_lopt::hand::Adam;
use serde_json::Value;
use std::f64::consts::PI;

/// Adam as torch has it: nothing inside the root.
pub fn torch_adam(learning_rate: f64) -> Adam {
    Adam { epsilon_root: 0.0, ..Adam::new(learning_rate) }
}

pub fn lqr(case: &Case) -> Outcome {
    let of = |key: &str| -> Matrix { matrix(case.get(key)) };
    let lqr = Lqr::new(of("A"), of("B"), of("Q"), of("R"));
    let mut errors = Errors::default();
    close(&mut errors, "P", &lqr.p.data, case.get("P_f64"), 1e-9);
    close(&mut errors, "K", &lqr.k.data, case.get("K_f64"), 1e-9);
    let radius = case.get("closed_loop_spectral_radius_f64");
    close(&mut errors, "closed loop", &[lqr.closed_loop_radius()], radius, 1e-9);
    let states: Vec<Vec<f64>> = rows(case.get("x"));
    let costs: Vec<f64> = states.iter().map(|x| lqr.optimal_cost(x)).collect();
    close(&mut errors, "optimal cost", &costs, case.get("optimal_cost_f64"), 1e-9);
    let actions: Vec<f64> = states.iter().flat_map(|x| lqr.optimal_action(x)).collect();
    close(&mut errors, "optimal action", &actions, case.get("optimal_action_f64"), 1e-9);
    fn run<E: Float>(case: &Case, lqr: &Lqr<E>) -> Named<E> {
        let (x, u): (Vec<Vec<E>>, Vec<Vec<E>>) = (rows(case.get("x")), rows(case.get("u")));
        let gain: Matrix<E> = matrix(case.get("Kt"));
        let at: Vec<(E, Vec<E>)> = x.iter().zip(&u).map(|(x, u)| lqr.q_value(x, u)).collect();
        let mut out = Vec::new();
        put(&mut out, "Q_value", at.iter().map(|q| q.0).collect::<Vec<E>>());
        put(&mut out, "grad_u", at.iter().flat_map(|q| q.1.clone()).collect::<Vec<E>>());
        put(&mut out, "hessian_u", lqr.q_hessian().data);
        let (expected, batch) = (lqr.expected_q(&gain), lqr.batch_q(&gain, &x));
        put(&mut out, "expected_Q_of_policy", vec![expected.0]);
        put(&mut out, "grad_K_of_expected_Q", expected.1.data);
        put(&mut out, "batch_Q_of_policy", vec![batch.0]);
        put(&mut out, "grad_K_of_batch_Q", batch.1.data);
        out
    }
    let single = lqr.cast::<f32>();
    check_both(&mut errors, &run(case, &lqr), &run(case, &single), &case.json);
    let shooting = case.json.as_object().expect("a case").iter().find(|(k, _)| k.starts_with("shooting_H"));
    let (_, parts) = shooting.expect("a shooting problem");
    for (_, part) in parts.as_object().expect("terminal costs by name") {
        check_shooting(&mut errors, &lqr, &states[0], part);
    }
    errors.done()
}

fn check_shooting(errors: &mut Errors, lqr: &Lqr, x: &[f64], part: &Value) {
    let wide = numbers(get(part, "terminal_matrix_f64"));
    let terminal = Matrix::new(lqr.a.rows, lqr.a.rows, wide);
    let actions: Vec<Vec<f64>> = rows(get(part, "actions"));
    let (horizon, m) = (actions.len(), lqr.b.cols);
    let gains = lqr.gains(&terminal, horizon);
    let best = lqr.follow(&gains, x);
    let zero = vec![vec![0.0; m]; horizon];
    let cost = |actions: &[Vec<f64>]| lqr.shooting(x, actions, &terminal).0;
    let all: Vec<f64> = gains.iter().flat_map(|k| k.data.clone()).collect();
    close(errors, "gains", &all, get(part, "gains_f64"), 1e-9);
    close(errors, "actions", &best.concat(), get(part, "optimal_actions_f64"), 1e-9);
    close(errors, "cost", &[cost(&best)], get(part, "optimal_cost_f64"), 1e-9);
    close(errors, "zero cost", &[cost(&zero)], get(part, "cost_of_zero_actions_f64"), 1e-9);
    let (value, grad) = lqr.shooting(x, &actions, &terminal);
    close(errors, "cost at actions", &[value], get(part, "cost_at_actions_f64"), 1e-9);
    close(errors, "grad at actions", &grad.concat(), get(part, "grad_at_actions_f64"), 1e-9);
    close(errors, "hessian", &lqr.shooting_hessian(horizon, &terminal).data, get(part, "hessian_f64"), 1e-9);
    let table = part.as_object().expect("a part").iter().find(|(k, _)| k.starts_with("adam_lr_"));
    let table = table.expect("Adam's table").1.as_object().expect("costs by step");
    let steps: Vec<u64> = table.keys().map(|k| k.parse().expect("a step")).collect();
    let last = steps.iter().copied().max().unwrap_or(0);
    let cut = |u: &[f64]| u.chunks(m).map(<[f64]>::to_vec).collect::<Vec<_>>();
    let f = |u: &[f64], g: &mut [f64]| {
        let (cost, grad) = lqr.shooting(x, &cut(u), &terminal);
        g.copy_from_slice(&grad.concat());
        cost
    };
    minimize(&torch_adam(5e-3), &vec![0.0; horizon * m], last, f, |step, u| {
        if let Some(want) = table.get(&step.to_string()) {
            let now = cost(&cut(u));
            close(errors, "Adam's cost", &[now], get(want, "cost"), 1e-9);
            let normalised = (cost(&best) - now) / (cost(&zero) - cost(&best));
            errors.check("normalised", normalised, number(get(want, "normalised")), 1e-9);
        }
    });
}

pub fn pendulum(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E> {
        let (x0, u): (Vec<Vec<E>>, Vec<Vec<E>>) = (rows(case.get("x0")), rows(case.get("u")));
        let all: Vec<_> = x0.iter().zip(&u).map(|(x, u)| rollout([x[0], x[1]], u)).collect();
        let mut out = Vec::new();
        put(&mut out, "states", all.iter().flat_map(|r| r.states.concat()).collect::<Vec<E>>());
        put(&mut out, "costs", all.iter().flat_map(|r| r.costs.clone()).collect::<Vec<E>>());
        put(&mut out, "total_cost", all.iter().map(|r| r.total()).collect::<Vec<E>>());
        put(&mut out, "grad_u", all.iter().flat_map(|r| r.grad.clone()).collect::<Vec<E>>());
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    let part = case.get("swing_up");
    let horizon = number(get(part, "horizon")) as usize;
    let cost = |u: &[f64]| rollout([PI, 0.0], u).total();
    close(
        &mut errors,
        "zero cost",
        &[cost(&vec![0.0; horizon])],
        get(part, "cost_of_zero_actions_f64"),
        1e-9,
    );
    let best = number(get(part, "best_known_cost_f64"));
    let actions = numbers(get(part, "best_known_actions_f64"));
    errors.check("best known cost", cost(&actions), best, 1e-9 * best);
    let Some(want) = part.get("cem") else { return errors.done() };
    let seeds = 20;
    let found: Vec<f64> = (0..seeds)
        .map(|i| cost(&CrossEntropy::default().minimize(horizon, cost, Key::new(5).fold_in(i))))
        .collect();
    // Few seeds end far above the others: medians compare, means do not.
    let mut sorted = found.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[seeds as usize / 2];
    let (mean, std) = (number(get(want, "mean_f64")), number(get(want, "std_f64")));
    errors.check("median of the cross-entropy method", median, mean, 4.0 * std);
    let least = found.iter().copied().fold(f64::INFINITY, f64::min);
    errors.check("nothing beats the best known", (best - least).max(0.0), 0.0, 1e-6 * best);
    errors.done()
}
