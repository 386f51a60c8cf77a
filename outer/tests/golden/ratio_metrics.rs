//! Kind L, what is measured: two-sample tests, calibration, chains, importance weights.

use crate::fixture::{array, get, inputs, number, numbers, shape, Case, Errors, Outcome};
use crate::ratio::workers;
use crate::ratio_net::flag;
use outerloop_amortized::ratio::metrics::chains::{
    autocorrelation, effective_sample_size, importance_weights, split_rhat,
};
use outerloop_amortized::ratio::metrics::{c2st, calibration, special, two_sample};
use outerloop_core::Key;
use serde_json::Value;
use two_sample::{auc, mmd2, Bandwidth, TwoSample};

/// Two-sample tests, calibration, chains, weights.
pub fn metrics(case: &Case) -> Outcome {
    let mut e = Errors::default();
    for c in array(case.get("two_sample")) {
        two_sample_case(&mut e, c);
    }
    for c in array(case.get("c2st_limits")) {
        let shift = number(get(c, "shift"));
        e.check(
            "Bayes accuracy",
            special::normal_cdf(0.5 * shift),
            number(get(c, "bayes_accuracy_f64")),
            1e-10,
        );
        e.check(
            "Bayes AUC",
            special::normal_cdf(shift / 2f64.sqrt()),
            number(get(c, "bayes_auc_f64")),
            1e-10,
        );
        shifted_gaussians(&mut e, shift, number(get(c, "bayes_accuracy_f64")));
    }
    let ties = case.get("auc_ties");
    let labels: Vec<bool> = array(get(ties, "labels")).iter().map(flag).collect();
    e.check(
        "AUC with ties",
        auc(&inputs::<f64>(get(ties, "scores")), &labels),
        number(get(ties, "auc_f64")),
        1e-10,
    );
    calibration_case(&mut e, case);

    let chains = array(get(case.get("chains"), "chains"));
    let chains: Vec<Vec<f64>> = chains.iter().map(inputs).collect();
    let views: Vec<&[f64]> = chains.iter().map(|c| &c[..]).collect();
    let want = |key: &str| number(get(case.get("chains"), key));
    e.check("split R-hat", split_rhat(&views), want("split_rhat_f64"), 1e-10);
    e.check("effective sample size", effective_sample_size(&views), want("ess_f64"), 1e-8);
    let want = numbers(get(case.get("chains"), "autocorrelation_combined_first8_f64"));
    let got: Vec<f64> = autocorrelation(&views, want.len())
        .iter()
        .enumerate()
        .map(|(t, r)| if t == 0 { 1.0 } else { *r })
        .collect();
    e.check_all("autocorrelation", &got, &want, 1e-10);

    let w = case.get("importance");
    let got = importance_weights(&inputs::<f64>(get(w, "log_weights")));
    e.check("effective weights", got.ess, number(get(w, "ess_f64")), 1e-10);
    e.check("log mean weight", got.log_mean, number(get(w, "log_mean_weight_f64")), 1e-10);
    e.check_all("weights", &got.normalized, &numbers(get(w, "normalised_weights_f64")), 1e-10);
    e.done()
}

fn two_sample_case(e: &mut Errors, c: &Value) {
    let name = c.get("name").and_then(Value::as_str).unwrap_or("?");
    let (x, y): (Vec<f64>, Vec<f64>) = (inputs(get(c, "X")), inputs(get(c, "Y")));
    let d = shape(get(c, "X"))[1];
    let folds: Vec<usize> = numbers(get(c, "folds")).iter().map(|f| *f as usize).collect();
    let test = TwoSample::new(&x, &y, d, folds).expect("the case's sets are valid");
    for (key, want) in c.as_object().expect("a case has entries") {
        let k = key.strip_prefix("c2st_").and_then(|k| k.strip_suffix("nn")).and_then(|k| k.parse().ok());
        let Some(k) = k else { continue };
        let got = test.nearest_neighbours(k);
        e.check(&format!("{name} {key}"), got.mean, number(want), 1e-10);
        e.check_all(
            &format!("{name} {key} folds"),
            &got.folds,
            &numbers(get(c, &format!("{key}_per_fold"))),
            1e-10,
        );
    }
    let got = test.logistic();
    e.check(&format!("{name} logistic"), got.accuracy.mean, number(get(c, "c2st_logreg")), 1e-10);
    let want = numbers(get(c, "c2st_logreg_per_fold"));
    e.check_all(&format!("{name} logistic folds"), &got.accuracy.folds, &want, 1e-10);
    e.check_all(&format!("{name} logits"), &got.logits, &numbers(get(c, "logreg_heldout_logits_f64")), 1e-8);
    e.check_all(
        &format!("{name} weights"),
        &got.weights.concat(),
        &numbers(get(c, "logreg_weights_f64")),
        1e-8,
    );
    let labels: Vec<bool> = (0..got.logits.len()).map(|i| i >= x.len() / d).collect();
    e.check(&format!("{name} AUC"), auc(&got.logits, &labels), number(get(c, "auc_logreg_f64")), 1e-10);
    for (key, want) in get(c, "mmd").as_object().expect("bandwidths have names") {
        let bandwidth = match key.strip_prefix("bandwidth_") {
            Some("X") => Bandwidth::MedianOfFirst,
            Some("XY") => Bandwidth::MedianOfBoth,
            _ => Bandwidth::Fixed(number(get(want, "sigma"))),
        };
        let got = mmd2(&x, &y, d, bandwidth);
        for (what, got) in
            [("sigma", got.sigma), ("mmd2_unbiased_f64", got.unbiased), ("mmd2_biased_f64", got.biased)]
        {
            e.check(&format!("{name} {key} {what}"), got, number(get(want, what)), 1e-10);
        }
    }
    // Another program's perceptron: means of a few seeds, within their scatter and a point in a hundred.
    let seeds = 8;
    let mean = (0..seeds)
        .map(|s| c2st::c2st(&x, &y, d, Key::new(s), &workers()).expect("the case's sets are valid").mean)
        .sum::<f64>()
        / seeds as f64;
    let std = number(get(c, "c2st_sklearn_mlp_std"));
    let want = number(get(c, "c2st_sklearn_mlp_mean_8_seeds"));
    e.check(&format!("{name} perceptron"), mean, want, 4.0 * std * (2.0 / seeds as f64).sqrt() + 0.01);
}

/// At many samples the accuracy approaches the limit.
fn shifted_gaussians(e: &mut Errors, shift: f64, limit: f64) {
    let n = 2000;
    let (mut x, mut y) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
    Key::new(1).fill_normal(&mut x);
    Key::new(2).fill_normal(&mut y);
    y.iter_mut().step_by(2).for_each(|y| *y += shift);
    let test = TwoSample::new(&x, &y, 2, (0..2 * n).map(|i| i % 5).collect()).expect("the sets are valid");
    let se = (limit * (1.0 - limit) / (2 * n) as f64).sqrt();
    e.check(&format!("shift {shift}"), test.logistic().accuracy.mean, limit, 4.0 * se + 1e-3);
}

fn calibration_case(e: &mut Errors, case: &Case) {
    let sbc = case.get("sbc");
    let theta: Vec<Vec<f64>> = array(get(sbc, "theta_true")).iter().map(inputs).collect();
    let samples: Vec<Vec<f64>> = array(get(sbc, "samples")).iter().map(inputs).collect();
    let draws = shape(get(sbc, "samples"))[1];
    let ranks: Vec<Vec<usize>> =
        theta.iter().zip(&samples).map(|(t, s)| calibration::sbc_ranks(s, t)).collect();
    let flat: Vec<f64> = ranks.iter().flatten().map(|r| *r as f64).collect();
    e.check_all("ranks", &flat, &numbers(get(sbc, "ranks")), 1e-9);
    for k in 0..theta[0].len() {
        let column: Vec<usize> = ranks.iter().map(|r| r[k]).collect();
        let got = calibration::uniformity(&column, draws);
        let want = |key: &str| number(&array(get(sbc, key))[k]);
        e.check(&format!("KS {k}"), got.ks, want("ks_statistic_f64"), 1e-10);
        e.check(&format!("KS p-value {k}"), got.ks_p_value, want("ks_pvalue_scipy_f64"), 1e-10);
        e.check(&format!("chi2 {k}"), got.chi2, want("chi2_statistic_f64"), 1e-10);
        let histogram: Vec<f64> = got.histogram.iter().map(|h| *h as f64).collect();
        e.check_all(
            &format!("histogram {k}"),
            &histogram,
            &numbers(&array(get(sbc, "rank_histogram"))[k]),
            1e-9,
        );
    }
    let c = case.get("expected_coverage");
    let (of_samples, of_truth) = (array(get(c, "log_q_samples")), inputs::<f64>(get(c, "log_q_true")));
    let got: Vec<f64> = of_samples
        .iter()
        .zip(&of_truth)
        .map(|(s, t)| calibration::credibility(&inputs::<f64>(s), *t))
        .collect();
    e.check_all("credibility", &got, &numbers(get(c, "credibility_of_true_f64")), 1e-10);
    let levels = numbers(get(c, "levels"));
    let curve: Vec<f64> = calibration::expected_coverage(&got, &levels).iter().map(|p| p.coverage).collect();
    e.check_all("coverage", &curve, &numbers(get(c, "coverage_f64")), 1e-10);
    let bias = curve.iter().zip(&levels).map(|(c, l)| c - l).sum::<f64>() / levels.len() as f64;
    e.check("mean coverage minus level", bias, number(get(c, "mean_coverage_minus_level_f64")), 1e-10);
    let c = case.get("tarp");
    let references: Vec<Vec<f64>> = array(get(c, "references")).iter().map(inputs).collect();
    let got: Vec<f64> = samples
        .iter()
        .zip(&theta)
        .zip(&references)
        .map(|((s, t), r)| calibration::distance_fraction(s, t, r))
        .collect();
    e.check_all("distance fraction", &got, &numbers(get(c, "distance_fraction_f64")), 1e-10);
    let levels = numbers(get(c, "levels"));
    let curve: Vec<f64> = levels.iter().map(|l| calibration::coverage(&got, *l)).collect();
    e.check_all("expected coverage probability", &curve, &numbers(get(c, "ecp_f64")), 1e-10);
}
