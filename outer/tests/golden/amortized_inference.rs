//! Iterative inference: encodings, updates, unrolls.

use crate::amortized::{check_both, put, Named};
use crate::amortized_models::{differentiate, put_tree, tensor};
use crate::fixture::{array, get, Case, Errors, Outcome};
use outerloop_amortized::inference::elbo::Likelihood;
use outerloop_amortized::inference::encoding;
use outerloop_amortized::inference::iterative::{
    prior, Decode, Encoding, Flow, Iterative, Parts, Share, Visit,
};
use outerloop_amortized::inference::update::{Clamp, Rule, UpdateNet};
use outerloop_amortized::net::{Act, Mlp};
use outerloop_amortized::problem::Rows;
use outerloop_core::ops::{self, Through};
use outerloop_core::tensor::{
    host_data, Backend, Cpu, DynParams, HasShape, Host, Mode, PutTape, Rec, SplitTape, Tensor,
};
use outerloop_core::{Float, Layout};
use serde_json::Value;

pub fn encodings(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E>
    where
        Cpu: Host<E>,
    {
        let (g, h) = (tensor::<E>(case.get("g")), tensor::<E>(case.get("h")));
        let all = |t: Rows<E, Cpu>| host_data(&t).to_vec();
        let [size, sign] = encoding::log_and_sign(g.clone(), 10.0);
        let v = tensor::<E>(case.get("v"));
        // The gradient of ⟨v, LN(h)⟩.
        let vjp = ops::gradient(h.clone(), Vec::new(), Through::Stopped, move |h: Rows<E, Cpu, Rec>, _| {
            ops::sum(ops::mul(encoding::layer_norm(h), &v))
        });
        vec![
            ("log_gradient".into(), all(encoding::log(g.clone()))),
            ("scaled_log_gradient".into(), all(encoding::scaled_log(g.clone()))),
            ("sign_gradient".into(), all(encoding::sign(g))),
            ("andrychowicz_log".into(), all(size)),
            ("andrychowicz_sign".into(), all(sign)),
            ("avf_layer_norm".into(), all(encoding::layer_norm(h.clone()))),
            ("avf_layer_norm_vjp".into(), all(vjp)),
            ("iterative_batch_norm_called_layer_norm".into(), all(encoding::batch_norm(h.clone()))),
            ("l2_norm".into(), all(encoding::l2_norm(h))),
        ]
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    errors.done()
}

/// The network of a tree of layers, its layout and its weights.
fn net_of<E: Float>(phi: &Value) -> (UpdateNet, Layout, Vec<E>) {
    let shape = |name: &str| crate::fixture::shape(get(get(phi, name), "w"));
    let (init, mean) = (shape("init"), shape("mean"));
    let net = UpdateNet::new(init[0], init[1], mean[1]);
    let mut layout = Layout::default();
    net.push(&mut layout, "");
    let weights = leaves(phi, &layout);
    (net, layout, weights)
}

/// The leaves of a tree by paths.
fn leaves<E: Float>(tree: &Value, layout: &Layout) -> Vec<E> {
    layout
        .entries()
        .iter()
        .flat_map(|e| crate::fixture::inputs(crate::amortized::at(tree, &e.name)))
        .collect()
}

pub fn filtering_update(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E>
    where
        Cpu: Host<E>,
    {
        let (mut net, layout, weights) = net_of::<E>(case.get("phi"));
        net.clamp = Clamp { low: -15.0, high: 5.0, inner: false };
        let t = |key: &str| tensor::<E>(case.get(key));
        let (mu, v, g_mu, g_v) = (t("mu"), t("logvar"), t("grad_mu"), t("grad_logvar"));
        let (c_mu, c_v) = (t("cot_mu"), t("cot_logvar"));
        let parts = [&g_mu, &g_v, &mu, &v].map(|x| encoding::layer_norm(x.clone()));
        let encoded = parts.into_iter().reduce(|a, b| ops::concat(a, &b)).expect("four parts");
        let mut out = Vec::new();
        put(&mut out, "encoding", host_data(&encoded).to_vec());
        for (name, rule) in [("highway", Rule::Gated), ("learned_sgd", Rule::LearnedSgd)] {
            let net = UpdateNet { rule, ..net };
            let mut seen = Vec::new();
            let (_, grad) = differentiate(&layout, &weights, |p, m| {
                let on = |x: &Rows<E, Cpu>| x.clone().put_tape(m);
                let gradient = Some([on(&g_mu), on(&g_v)]);
                let [mu, v] = net.update(p, 0, on(&encoded), [on(&mu), on(&v)], gradient);
                seen = [&mu, &v].map(|x| host_data(x).to_vec()).to_vec();
                let normed = encoding::layer_norm(mu.clone());
                seen.push(host_data(&normed).to_vec());
                ops::add(ops::sum(ops::mul(mu, &c_mu)), &ops::sum(ops::mul(v, &c_v)))
            });
            for (field, values) in ["mu", "logvar", "mu_layer_normalised"].into_iter().zip(seen) {
                put(&mut out, format!("{name}/{field}"), values);
            }
            put_tree(&mut out, &format!("{name}/grad_phi"), &layout, &grad);
        }
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    errors.done()
}

/// A decoder behind the network's tensors.
#[derive(Clone)]
struct Decoder(Mlp);

impl<E: Float, B: Backend<E>> Decode<E, B> for Decoder {
    fn run<M: Mode<E, B>>(&self, params: &DynParams<E, B>, z: Rows<E, B, M>) -> Rows<E, B, M> {
        self.0.forward(params, UpdateNet::TENSORS, z)
    }
}

struct Unroll<E: Float>
where
    Cpu: Host<E>,
{
    settings: Iterative,
    layout: Layout,
    values: Vec<E>,
    decoder: Decoder,
    x: Rows<E, Cpu>,
    eps: Vec<Rows<E, Cpu>>,
}

type Scalar<E> = Tensor<(), E, Cpu, Rec>;

impl<E: Float> Unroll<E>
where
    Cpu: Host<E>,
{
    fn new(case: &Case) -> Self {
        let (net, mut layout, mut values) = net_of::<E>(case.get("phi"));
        let theta = case.get("theta");
        let shape = |name: &str| crate::fixture::shape(get(get(theta, name), "w"));
        let (h, o) = (shape("h"), shape("out"));
        for name in ["h/w", "h/b", "out/w", "out/b"] {
            let v = crate::amortized::at(theta, name);
            layout.push(format!("theta/{name}"), crate::fixture::shape(v));
            values.extend(crate::fixture::inputs::<E>(v));
        }
        let decoder = Decoder(Mlp::new([h[0], h[1], o[1]]).with_act(Act::Elu));
        let name = case.get("case").as_str().unwrap_or_default();
        let encoding = match name {
            n if n.contains("norm_error") => Encoding::VarianceError,
            n if n.contains("error") => Encoding::Error,
            _ => Encoding::Gradient,
        };
        // [T + 1][B][S][Z], each as [B S, Z]
        let latent = net.latent;
        let noise = |v: &Value| {
            let all: Vec<E> = crate::fixture::inputs(v);
            Backend::<E>::filled(&Cpu::default(), (all.len() / latent, latent), |o| o.copy_from_slice(&all))
        };
        let eps = array(case.get("eps")).iter().map(noise).collect();
        let likelihood = Likelihood::BernoulliFloor(1e-7);
        let settings =
            Iterative { net, encoding, share: Share::BatchMean, flow: Flow::Iteration, likelihood };
        Unroll { settings, layout, values, decoder, x: tensor(case.get("x")), eps }
    }

    fn visits(&self, flow: Flow, p: &DynParams<E, Cpu>) -> Vec<Visit<E, Cpu, Rec>> {
        let settings = Iterative { flow, ..self.settings };
        let start = prior(&self.x, settings.net.latent);
        let parts = Parts { params: p, early: p, first: 0, decode: self.decoder.clone() };
        settings.run(&self.x, start, &self.eps, &parts)
    }

    /// The gradient of the negative mean bounds, of all iterations or the last.
    fn gradient(&self, flow: Flow, is_sum: bool) -> Vec<E> {
        let loss = |p: &DynParams<E, Cpu>, _: Rec| -> Scalar<E> {
            let visits = self.visits(flow, p);
            let from = if is_sum { 1 } else { visits.len() - 1 };
            let means = visits[from..].iter().map(|v| v.elbo.mean());
            ops::neg(means.reduce(|a, b| ops::add(a, &b)).expect("at least one iteration"))
        };
        differentiate(&self.layout, &self.values, loss).1
    }

    /// The gradient of the last negative bound in the decoder, with the last λ constant.
    fn decoder_gradient(&self) -> Vec<E> {
        let loss = |p: &DynParams<E, Cpu>, _: Rec| -> Scalar<E> {
            let visits = self.visits(Flow::Iteration, p);
            let last = &visits[visits.len() - 1];
            let lambda = ops::stop_gradient(last.lambda.clone());
            let bound = outerloop_amortized::inference::elbo::elbo(
                &self.x,
                &lambda,
                &self.eps[visits.len() - 1],
                |z| self.decoder.run(p, z),
                |x, o| self.settings.likelihood.log_density(x, o),
            );
            ops::neg(bound.mean())
        };
        differentiate(&self.layout, &self.values, loss).1
    }

    fn trajectory(&self, out: &mut Named<E>) {
        let mut seen: Vec<(String, Vec<E>)> = Vec::new();
        differentiate(&self.layout, &self.values, |p, _| {
            let visits = self.visits(Flow::Lambda, p);
            let parts = Parts { params: p, early: p, first: 0, decode: self.decoder.clone() };
            for (t, v) in visits.iter().enumerate() {
                let mut add = |field: &str, x: Vec<E>| seen.push((format!("trajectory/{t}/{field}"), x));
                let bare = v.lambda.clone().split_tape().0;
                let g = self.settings.gradient(&self.x, &bare, &self.eps[t], &parts);
                let z = bare.shape().1 / 2;
                let cut = |x: &Rows<E, Cpu>, at| host_data(&ops::columns(x.clone(), at, z)).to_vec();
                add("mu", cut(&bare, 0));
                add("logvar", cut(&bare, z));
                add("grad_mu", cut(&g, 0));
                add("grad_logvar", cut(&g, z));
                add("elbo", host_data(&v.elbo.value).to_vec());
                add("elbo_mean", host_data(&v.elbo.mean()).to_vec());
                if let Some(e) = &v.encoding {
                    add("encoding", host_data(e).to_vec());
                }
            }
            visits[visits.len() - 1].elbo.mean()
        });
        out.extend(seen);
    }
}

pub fn iterative(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E>
    where
        Cpu: Host<E>,
    {
        let unroll = Unroll::<E>::new(case);
        let results = case.get("results_f64").as_object().expect("results by name");
        let phi: Vec<_> = unroll.layout.entries().iter().filter(|e| !e.name.starts_with("theta/")).collect();
        let mut out = Vec::new();
        for name in results.keys() {
            let Some(rest) = name.strip_prefix("grad_phi_") else { continue };
            let (which, flow) = rest.split_once('_').expect("sum or final, and a flow");
            let flow = match flow {
                "code" => Flow::Iteration,
                "code_sample_detached" => Flow::Horizon1,
                "lambda" => Flow::Lambda,
                "full" => Flow::Full,
                other => panic!("unknown flow {other}"),
            };
            let grad = unroll.gradient(flow, which == "sum");
            for e in &phi {
                put(&mut out, format!("{name}/{}", e.name), grad[e.range()].to_vec());
            }
        }
        let grad = unroll.decoder_gradient();
        for e in unroll.layout.entries() {
            if let Some(name) = e.name.strip_prefix("theta/") {
                put(&mut out, format!("grad_theta_final_elbo_code/{name}"), grad[e.range()].to_vec());
            }
        }
        unroll.trajectory(&mut out);
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    errors.done()
}
