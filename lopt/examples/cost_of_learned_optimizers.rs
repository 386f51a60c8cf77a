//! Prints what every learned optimizer costs, as a table: `cargo run --release -p outerloop-lopt
//! --example cost_of_learned_optimizers`. Parameters: a 64-32-10 network (2410 in four tensors).

use outerloop_core::{Key, Layout, Params, Result};
use outerloop_lopt::{kernel, registry};
use std::{sync::Arc, time::Instant};

/// Repetitions of the measurement; the fastest counts.
const REPEATS: usize = 7;

fn main() -> Result<()> {
    println!("f32, one thread, {}\n", kernel::path());
    println!(
        "| optimizer | weights | state bytes per parameter | ns per parameter and step | of its derivative |"
    );
    println!("|---|---|---|---|---|");
    let layout = Arc::new(Layout::new([
        ("b0", vec![32]),
        ("b1", vec![10]),
        ("w0", vec![64, 32]),
        ("w1", vec![32, 10]),
    ]));
    let mut params = Params::<f32>::zeros(layout.clone());
    Key::new(1).fill_normal(&mut params.data);
    let mut grad = vec![0.0; layout.len()];
    Key::new(2).fill_normal(&mut grad);
    let key = Key::new(3);
    for class in registry::LEARNED {
        let learned = registry::learned::<f32>(class, &serde_json::json!({}))?;
        let theta = learned.init(key);
        let opt = learned.opt_fn(&theta);
        let mut state = opt.init(&params, Some(1_000_000), key);
        let bytes = state.slot_bytes() as f64 / layout.len() as f64;
        let update = nanoseconds(&mut || opt.update(&mut state, &grad, 1.0, key));
        let adjoint = state.zeros_like();
        let mut theta_adjoint = vec![0.0; theta.len()];
        let vjp = opt.update_vjp().map(|vjp| {
            nanoseconds(&mut || {
                vjp.vjp(&state, &grad, 1.0, key, &adjoint, &mut theta_adjoint);
            })
        });
        let per_parameter = |ns: f64| format!("{:.1}", ns / layout.len() as f64);
        println!(
            "| {} | {} | {bytes:.1} | {} | {} |",
            learned.name(),
            theta.len(),
            per_parameter(update),
            vjp.map_or("none".into(), per_parameter)
        );
    }
    Ok(())
}

/// The shortest mean time of one call, over about 20 ms each.
fn nanoseconds(call: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    call();
    let calls = (0.02 / start.elapsed().as_secs_f64().max(1e-7)).ceil() as usize;
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        for _ in 0..calls {
            call();
        }
        best = best.min(start.elapsed().as_secs_f64() / calls as f64);
    }
    best * 1e9
}
