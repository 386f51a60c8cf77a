//! Our numbers against an independent implementation's, case by case.
//!
//! Reads every case file of a directory: `OUTERLOOP_GOLDEN`, by default the copies beside this file.
//! The kind of a case is the beginning of its name. Every case prints its largest error relative to
//! its tolerance; a kind that is not built is listed as skipped.

mod amortized;
mod amortized_control;
mod amortized_inference;
mod amortized_models;
mod amortized_posterior;
mod amortized_sphere;
mod celo_curves;
mod curves;
mod estimators;
mod fixed_points;
mod fixture;
mod gradients;
mod images;
mod implicit;
mod losses;
mod models;
mod optimizers;
mod ratio;
mod ratio_metrics;
mod ratio_net;
mod tasks;

use fixture::{Case, Outcome};
use std::path::PathBuf;
use std::process::ExitCode;

type Check = fn(&Case) -> Outcome;

/// Kinds by file name prefix, longest first where one contains another.
const KINDS: &[(&str, Check)] = &[
    ("B_schedules", optimizers::schedules),
    ("B_opt_", optimizers::hand_designed),
    ("C_lopt_init_theta_simple", optimizers::initial_theta),
    ("C_lopt_", optimizers::learned),
    ("D_quadratics", losses::quadratics),
    ("D_task_", losses::task),
    ("F_estimator_functions", estimators::functions),
    ("F_pes_", estimators::end_to_end),
    ("F_es_", estimators::end_to_end),
    ("F_fulles_", estimators::full),
    ("F_grad_", gradients::truncated),
    ("E_meta_", gradients::unrolled),
    ("G_distributions", curves::distributions),
    ("I_celo_curves", celo_curves::celo_curves),
    ("I_inner_curves", curves::inner_curves),
    ("I_meta_train_pes", curves::meta_train_pes),
    ("I_meta_train_unrolled", curves::meta_train_unrolled),
    ("J_implicit_", implicit::hypergradients),
    ("K_fixed_point_", fixed_points::fixed_points),
    ("H_perturbed_optimizers", amortized_models::perturbed),
    ("M_avf_update_", amortized_inference::filtering_update),
    ("M_iterative_encodings", amortized_inference::encodings),
    ("M_iterative_", amortized_inference::iterative),
    ("M_kalman_", amortized_posterior::kalman),
    ("M_vae_", amortized_posterior::vae),
    ("M_figure_control", amortized::control),
    ("M_figure_fixed_point", amortized::fixed_point),
    ("M_figure_imaml", amortized::imaml),
    ("M_figure_loss_comparison", amortized::loss_comparison),
    ("M_figure_main_example", amortized::main_example),
    ("M_figure_maxent_", amortized::maximum_entropy),
    ("M_figure_smoothed_loss", amortized::smoothed_loss),
    ("M_losses_quadratic_", amortized::losses_quadratic),
    ("M_lqr_", amortized_control::lqr),
    ("M_maml_", amortized_models::maml),
    ("M_pendulum_", amortized_control::pendulum),
    ("M_sparse_", amortized_models::sparse),
    ("M_sphere_functions_", amortized_sphere::functions),
    ("M_sphere_training", amortized_sphere::training),
    ("M_sphere_tutorial_functions", amortized_sphere::tutorial_functions),
    ("L_slcp_likelihood", ratio::slcp_likelihood),
    ("L_slcp_posterior_", ratio::slcp_posterior_case),
    ("L_slcp_bayes_loss", ratio::slcp_bayes_loss),
    ("L_aalr_mlp", ratio_net::mlp),
    ("L_aalr_losses", ratio_net::losses),
    ("L_aalr_train", ratio_net::train),
    ("L_aalr_mh", ratio_net::metropolis),
    ("L_aalr_metrics", ratio_metrics::metrics),
];

fn main() -> ExitCode {
    let dir = std::env::var_os("OUTERLOOP_GOLDEN")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases"), PathBuf::from);
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let listing = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<PathBuf> = listing.map(|f| f.expect("a readable directory").path()).collect();
    files.sort();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for path in files {
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let known = path.extension().is_some_and(|e| e == "json" || e == "safetensors");
        if !known
            || name == "digits"
            || !(filter.is_empty() || filter.iter().any(|f| name.contains(f.as_str())))
        {
            continue;
        }
        let run = KINDS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, run)| run);
        let outcome = match run {
            None => Outcome::skip("this kind is not built yet"),
            Some(run) => {
                let case = Case::open(&path);
                // A panic is a failed case, not the end of the report.
                std::panic::catch_unwind(|| run(&case)).unwrap_or_else(|_| Outcome::fail("panicked"))
            }
        };
        match &outcome {
            Outcome::Checked { .. } if outcome.passed() => passed += 1,
            Outcome::Skipped(_) => skipped += 1,
            _ => failed += 1,
        }
        println!("{name:<45} {outcome}");
    }
    println!("\nlargest error: relative to the case's tolerance (1 would fail)");
    println!("test result: {passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 || passed == 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
