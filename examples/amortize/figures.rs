//! The tutorial's figures, with the slips of the published programs mended and said.

use crate::{table, Options};
use outerloop::amortized::figures::{
    control_q, control_stationary, fixed_point_map, fixed_points, iterate, loss_comparison,
    marked_fixed_point, maxent, newton, rough, smoothed, Cubic, MainExample,
};
use outerloop::core::Result;
use outerloop::outer::plot::{Plot, Series, Style};

/// Points of a line.
fn line(name: &str, [low, high]: [f64; 2], f: impl Fn(f64) -> f64) -> Series {
    let points = (0..=400).map(|i| low + (high - low) * f64::from(i) / 400.0).map(|x| (x, f(x)));
    Series::line(name, points.collect())
}

fn points(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series { style: Style::Points, ..Series::line(name, points) }
}

pub fn run(o: &Options) -> Result<()> {
    std::fs::create_dir_all(&o.dir).map_err(|e| outerloop::core::Error::io(&o.dir, e))?;
    let save = |name: &str, plot: Plot| plot.save(o.dir.join(format!("{name}.svg")));
    let plot = |title: &str, x: &str, y: &str, series: Vec<Series>| Plot {
        title: title.into(),
        x_label: x.into(),
        y_label: y.into(),
        series,
        ..Plot::default()
    };
    let mut said = Vec::new();

    // Main example: solutions, the drawn model, and one step of each loss.
    let span = [-5.0, 5.0];
    let step = |x: f64, f: MainExample| {
        let y = MainExample::drawn_model(x);
        y - 60.0 * f.at(x, y).grad_y
    };
    save(
        "main_example",
        plot(
            "main example",
            "context x",
            "solution y",
            vec![
                line("optimum y*(x)", span, MainExample::optimum),
                line("drawn model", span, MainExample::drawn_model),
                line("after a step on the objective", span, |x| step(x, MainExample::Contour)),
                line("after a step of the published arrows", span, |x| step(x, MainExample::Arrow)),
                line("after a step on the regression loss", span, |x| {
                    0.6 * MainExample::drawn_model(x) + 0.4 * MainExample::optimum(x)
                }),
            ],
        ),
    )?;
    let apart = (0..=100)
        .map(|i| -5.0 + 0.1 * f64::from(i))
        .map(|x| (step(x, MainExample::Contour) - step(x, MainExample::Arrow)).abs())
        .fold(0.0, f64::max);
    said.push((
        "main example".into(),
        format!("published arrows belong to another function; steps differ by {apart:.2}"),
    ));

    // Maximum entropy.
    let phi = [0.0, 0.7, 4.0];
    let (full, _) = maxent::ascend(&phi, 1.0, 20, maxent::Jacobian::Full);
    let (clean, path) = maxent::ascend(&phi, 1.0, 20, maxent::Jacobian::Clean);
    let curve = |name: &str, h: &[f64]| {
        Series::line(name, h.iter().enumerate().map(|(t, h)| (t as f64, *h)).collect())
    };
    save(
        "maxent_entropy",
        plot(
            "entropy over updates",
            "update",
            "entropy (nats)",
            vec![
                curve("published (mass is not 1)", &full),
                curve("normalized", &clean),
                line("normal distribution", [0.0, 20.0], |_| 1.418_938_533_204_672_7),
            ],
        ),
    )?;
    for t in [0, 2, 5, 10, 20] {
        let d = maxent::standardized(&path[t], maxent::Jacobian::Clean);
        let shown = d.x.iter().zip(&d.y).map(|(x, y)| (*x, *y)).filter(|p| p.0.abs() < 4.0).collect();
        save(
            &format!("maxent_frame_{t:02}"),
            plot(
                &format!("after {t} updates"),
                "x",
                "density",
                vec![
                    Series::line("density", shown),
                    line("normal", [-4.0, 4.0], |x| {
                        (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
                    }),
                ],
            ),
        )?;
    }
    said.push((
        "maximum entropy".into(),
        format!(
            "published density ends at {:.4}, above the most there is (1.4189); normalized {:.4}",
            full[20], clean[20]
        ),
    ));

    // Fixed points.
    let roots = fixed_points();
    save(
        "fixed_point",
        plot(
            "fixed points of g",
            "y",
            "g(y)",
            vec![
                line("g", span, |y| fixed_point_map(y)[0]),
                line("y", span, |y| y),
                points("fixed points", roots.iter().map(|y| (*y, *y)).collect()),
                points("iteration from 3", iterate(3.0, 10).windows(2).map(|w| (w[0], w[1])).collect()),
                points(
                    "Newton from 3",
                    newton(3.0, 8).into_iter().map(|y| (y, fixed_point_map(y)[0])).collect(),
                ),
            ],
        ),
    )?;
    said.push((
        "fixed point".into(),
        format!(
            "the marked {:.3} has slope {:.2}: iteration leaves it",
            marked_fixed_point(),
            fixed_point_map(roots[2])[1]
        ),
    ));

    // Implicit MAML.
    let y0 = -1.199_199_199_676_513_7;
    let cubic = |lambda: f64| Cubic { lambda, y0 };
    let of = |lambda: f64| line(&format!("lambda {lambda}"), [-2.0, 6.0], move |y| cubic(lambda).value(y));
    save("imaml", plot("penalized cubic", "y", "F(y)", [0.0, 4.0, 6.0, 9.0, 12.0].map(of).to_vec()))?;
    said.push((
        "implicit MAML".into(),
        "no global minimum for any lambda; a local one from lambda 5.911 on".into(),
    ));

    // Smoothed loss.
    let shown =
        [0.5, 1.0, 1.5, 2.5].map(|s| line(&format!("sigma {s}"), [-6.0, 6.0], move |x| smoothed(x, s)[0]));
    let mut series = vec![line("f", [-6.0, 6.0], rough)];
    series.extend(shown);
    save("smoothed_loss", plot("smoothed loss", "x", "E f(x + sigma e)", series))?;

    // Losses compared on the circle of equal regression loss.
    let value = |angle: f64| loss_comparison([3.0 * angle.cos(), 3.0 * angle.sin()]).0;
    save(
        "loss_comparison",
        plot(
            "objective where the regression loss is 9",
            "angle",
            "objective",
            vec![line("objective", [0.0, std::f64::consts::TAU], value)],
        ),
    )?;

    // Control.
    let best = control_stationary().into_iter().map(|u| (u, control_q(u)[0])).collect();
    save(
        "control",
        plot(
            "Q over actions",
            "u",
            "Q(u)",
            vec![line("Q", [-7.0, 7.0], |u| control_q(u)[0]), points("stationary points", best)],
        ),
    )?;
    table("figures: what is mended", &said);
    Ok(())
}
