//! Who takes part: hand-designed optimizers with their sweeps, and learned ones.

use crate::options::{quick_rates, Options};
use outerloop::lopt::baselines::{learning_rates, nadamw_decays, nadamw_list, opt_list, BASELINES};
use outerloop::outer::benchmark::{Contestant, Receipt, Role};
use outerloop::prelude::*;
use outerloop::pretrained::{Named, FAST, SMALL};

/// The published list of NAdamW configurations, on request.
const OPT_LIST: &str = "OptList";
/// A budget of ten runs of it.
const OPT_LIST_RUNS: usize = 10;

/// Peak rates of NAdamW with a cosine schedule and swept weight decay.
const DECAY_PEAKS: [f64; 5] = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1];
/// The same for a quick look.
const QUICK_PEAKS: [f64; 2] = [1e-2, 1e-1];

/// Adam first: it is the reference.
pub fn contestants(options: &Options) -> Result<(Vec<Contestant>, Receipt)> {
    let mut all = hand_designed(options)?;
    let data = Splits::digits();
    let pixels: Vec<u8> = data.data().images.iter().flat_map(|x| x.to_le_bytes()).collect();
    let labels: Vec<u8> = data.data().labels.iter().flat_map(|l| l.to_le_bytes()).collect();
    let mut receipt = Receipt::new()
        .with("kernels", kernel::path())
        .with_hash("digits, pixels and labels", &[pixels, labels].concat());
    for named in learned(options)? {
        let (name, opt) = (named.name.clone(), named.optimizer());
        let bytes: Vec<u8> = named.theta.iter().flat_map(|x| x.to_le_bytes()).collect();
        receipt = receipt.with(format!("architecture of {name}"), named.lopt.architecture());
        receipt = receipt.with_hash(format!("theta of {name}"), &bytes);
        all.push(Contestant::single(name, Role::Learned, opt));
    }
    if options.sweep_learned {
        for shipped in [SMALL, FAST] {
            let sweep = Contestant::labelled(format!("{}, swept", shipped.name), shipped.sweep()?);
            all.push(Contestant { role: Role::Learned, ..sweep });
        }
    }
    Ok((all, receipt))
}

fn boxed(opt: NAdamW) -> Box<dyn Optimizer> {
    Box::new(opt)
}

fn hand_designed(options: &Options) -> Result<Vec<Contestant>> {
    let rates = if options.quick { quick_rates() } else { learning_rates() };
    let mut all: Vec<Contestant> =
        BASELINES.iter().map(|b| Contestant::swept(b.name, &rates, b.make)).collect();
    all.push(Contestant::listed("NAdamW list", nadamw_list().into_iter().map(boxed).collect()));
    let peaks = if options.quick { &QUICK_PEAKS[..] } else { &DECAY_PEAKS };
    let decays = nadamw_decays(peaks).into_iter().map(|(label, opt)| (label, boxed(opt)));
    all.push(Contestant::labelled("NAdamW cosine decay", decays));
    let Some(wanted) = &options.baselines else { return Ok(all) };
    let first = (0..OPT_LIST_RUNS).map(|i| opt_list(i).map(boxed)).collect::<Result<_>>()?;
    all.push(Contestant::listed(OPT_LIST, first));
    let names: Vec<String> = all.iter().map(|c| c.name.clone()).collect();
    if let Some(got) = wanted.iter().find(|w| *w != "none" && !names.contains(w)) {
        return Err(Error::Unknown { what: "baseline", got: got.clone(), allowed: names });
    }
    let first = names[0].clone();
    all.retain(|c| c.name == first || wanted.contains(&c.name));
    Ok(all)
}

/// The learned contestants: the named ones and the given files, or the optimizers that are shipped.
fn learned(options: &Options) -> Result<Vec<Named>> {
    if options.contestants.is_empty() && options.theta.is_empty() {
        let shipped = |name| Ok(Named { name: format!("pretrained {name}"), ..Named::load(name)? });
        return [SMALL.name, FAST.name].into_iter().map(shipped).collect();
    }
    let mut all = Vec::new();
    for text in options.contestants.iter().flat_map(|list| items(list)) {
        all.push(Named::load(text)?);
    }
    for path in &options.theta {
        let file = theta::load(path)?;
        let lopt = registry::from_architecture::<f32>(&file.architecture)?;
        let class = file.architecture.split(' ').next().unwrap_or_default().to_string();
        // Several of one class are told apart by their files.
        let name = if options.theta.len() > 1 { format!("{class} {}", path.display()) } else { class };
        let theta = file.theta_for(&*lopt)?.to_vec();
        all.push(Named { name, lopt, theta });
    }
    Ok(all)
}

/// The items of a list with commas, but for those inside braces.
fn items(list: &str) -> Vec<&str> {
    let mut depth = 0i32;
    let is_comma = move |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    };
    list.split(is_comma).filter(|item| !item.is_empty()).collect()
}
