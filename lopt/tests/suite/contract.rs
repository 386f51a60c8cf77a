//! The table of all optimizers: every one keeps the traits' invariants in f32 and f64, and its
//! derivative agrees with differences.

use outerloop_core::contract::{awkward_layout, check_learned_optimizer, check_optimizer, check_update_vjp};
use outerloop_core::{Float, Key, Layout, LearnedOptimizer, Optimizer};
use outerloop_lopt::hand::*;
use outerloop_lopt::wrap::{
    Combined, GroupRule, Grouped, LearnedWidthScaled, ParamsEma, SumOptimizer, WidthScaled,
};
use outerloop_lopt::{HandAsLearned, LearnableAdam, LearnableSgd, LearnableSgdm};
use std::sync::Arc;

fn hand_designed<E: Float>() -> Vec<Box<dyn Optimizer<E>>> {
    let adam = || -> Box<dyn Optimizer<E>> { Box::new(Adam::default()) };
    vec![
        Box::new(Sgd::new(Schedule::Linear { start: 0.1, end: 0.0 })),
        Box::new(Momentum::new(0.1, 0.9)),
        Box::new(Momentum::nesterov(0.1, 0.9)),
        adam(),
        Box::new(Adam { epsilon_root: 0.0, ..Adam::new(Cosine::default()) }),
        Box::new(AdamW::new(0.02, 0.1)),
        Box::new(RmsProp::default()),
        Box::new(RmsProp { momentum: 0.9, kind: MomentumKind::Nesterov, ..RmsProp::default() }),
        Box::new(NAdamW { learning_rate: 0.01.into(), weight_decay: 0.1, l2: 0.05, ..NAdamW::default() }),
        Box::new(NAdamW { kind: MomentumKind::Polyak, epsilon: 1e-3, ..NAdamW::default() }),
        Box::new(Clip::new(ClipRule::Value(0.5), adam())),
        Box::new(Clip::new(ClipRule::GlobalNorm(1.0), adam())),
        Box::new(Clip::new(ClipRule::GlobalNorm(1e3), adam())),
        Box::new(WeightDecay::new(0.1, LossTerm::Proper, adam())),
        Box::new(Accumulate::new(2, Box::new(Clip::new(ClipRule::Value(0.5), adam())))),
        Box::new(AdaBelief { epsilon: 1e-8, epsilon_root: 1e-8, ..AdaBelief::default() }),
        Box::new(Yogi::default()),
        Box::new(RAdam::default()),
        Box::new(RAdam { beta2: 0.9, epsilon_root: 1e-8, threshold: 4.0, ..RAdam::default() }),
        Box::new(AdaGrad::default()),
        Box::new(Lion { learning_rate: 0.01.into(), ..Lion::default() }),
        Box::new(ScheduleFreeAdamW { warmup_steps: 3, weight_decay: 0.1, ..ScheduleFreeAdamW::default() }),
        Box::new(ScheduleFreeAdamW { beta1: 0.0, ..ScheduleFreeAdamW::default() }),
        Box::new(Lamb { weight_decay: 0.1, epsilon_root: 1e-8, ..Lamb::default() }),
        Box::new(Lars { weight_decay: 0.1, trust_coefficient: 0.1, ..Lars::default() }),
        Box::new(Lars { kind: MomentumKind::Nesterov, epsilon: 1e-3, ..Lars::default() }),
        Box::new(Fromage::default()),
        Box::new(Sm3::default()),
        Box::new(Sm3 { beta2: 0.9, momentum: 0.5, ..Sm3::default() }),
        Box::new(Adafactor { factoring: Factoring::From(2), ..Adafactor::default() }),
        Box::new(Adafactor {
            momentum: Some(0.9),
            weight_decay_rate: Some(0.01),
            step_size: StepSize::Absolute,
            clipping_threshold: None,
            epsilon: 1e-8,
            ..Adafactor::default()
        }),
        Box::new(Shampoo { matrix_epsilon: 0.1, start_preconditioning_step: 2, ..Shampoo::default() }),
        Box::new(Shampoo {
            block_size: 3,
            merge_up_to: 6,
            matrix_epsilon: 0.1,
            weight_decay: 0.01,
            start_preconditioning_step: 0,
            preconditioning_compute_steps: 2,
            beta2: 1.0,
            ..Shampoo::default()
        }),
        Box::new(Muon { weight_decay: 0.1, ..Muon::default() }),
        Box::new(Graft::new(Box::new(Momentum::new(0.1, 0.9)), adam())),
        Box::new(Accumulate::new(3, Box::new(Accumulate::new(1, adam())))),
        Box::new(SumOptimizer::new(vec![adam(), Box::new(Momentum::new(0.1, 0.9)), Box::new(Sgd::new(0.2))])),
        Box::new(
            Grouped::new(GroupRule::matrices_and_vectors(), vec![adam(), Box::new(Momentum::new(0.1, 0.9))])
                .unwrap(),
        ),
        Box::new(WidthScaled::new(adam(), wider())),
        Box::new(ParamsEma::new(0.9, adam()).unwrap()),
        Box::new(Accumulate::new(
            2,
            Box::new(ParamsEma::new(0.5, Box::new(ScheduleFreeAdamW::default())).unwrap()),
        )),
    ]
}

/// A base model's layout: the awkward one with every axis longer by one.
fn wider() -> Arc<Layout> {
    let longer = |shape: &[usize]| shape.iter().map(|d| d + 1).collect::<Vec<_>>();
    let layout = awkward_layout();
    Arc::new(Layout::new(layout.entries().iter().map(|e| (e.name.clone(), longer(&e.shape)))))
}

fn learned<E: Float>() -> Vec<Box<dyn LearnedOptimizer<E>>> {
    vec![
        Box::new(LearnableSgd::default()),
        Box::new(LearnableSgdm::default()),
        Box::new(LearnableAdam::default()),
        Box::new(HandAsLearned::<E>::new(Adam::default())),
        Box::new(Combined::sum(vec![Box::new(LearnableAdam::default()), Box::new(LearnableSgdm::default())])),
        Box::new(
            Combined::grouped(
                GroupRule::matrices_vectors_and_embeddings(),
                vec![
                    Box::new(LearnableSgdm::default()),
                    Box::new(HandAsLearned::<E>::new(Adam::default())),
                    Box::new(LearnableSgd::default()),
                ],
            )
            .unwrap(),
        ),
        Box::new(LearnedWidthScaled::new(Box::new(LearnableAdam::default()), wider())),
    ]
}

#[test]
fn every_optimizer_keeps_the_contract() {
    for (a, b) in hand_designed::<f32>().iter().zip(&hand_designed::<f64>()) {
        check_optimizer(&**a).unwrap();
        check_optimizer(&**b).unwrap();
    }
    for (a, b) in learned::<f32>().iter().zip(&learned::<f64>()) {
        check_learned_optimizer(&**a).unwrap();
        check_learned_optimizer(&**b).unwrap();
    }
}

#[test]
fn every_derivative_agrees_with_differences() {
    for (i, opt) in hand_designed::<f64>().iter().enumerate() {
        // SM3's accumulators tie by construction, so no difference along one of them exists; its
        // own test moves them together.
        if opt.name() == "sm3" {
            continue;
        }
        check_update_vjp(|_| hand_designed().swap_remove(i), &[]).unwrap();
    }
    for lopt in learned::<f64>() {
        check_update_vjp(|theta| lopt.opt_fn(theta), &lopt.init(Key::new(0))).unwrap();
    }
}

/// The loss passes through wrappers to an optimizer that reads it.
#[test]
fn wrappers_differentiate_the_loss() {
    use outerloop_core::{OptState, Params, UpdateAdjoint, UpdateVjp};

    /// p ← p − 0.01 loss g
    #[derive(Debug)]
    struct LossScaled;
    impl Optimizer<f64> for LossScaled {
        fn name(&self) -> String {
            "loss_scaled".into()
        }
        fn init(&self, params: &Params<f64>, num_steps: Option<u64>, _: Key) -> OptState<f64> {
            OptState::new(params, num_steps)
        }
        fn update(&self, state: &mut OptState<f64>, grad: &[f64], loss: f64, _: Key) {
            state.params.iter_mut().zip(grad).for_each(|(p, g)| *p -= 0.01 * loss * g);
            state.step += 1;
        }
        fn update_vjp(&self) -> Option<&dyn UpdateVjp<f64>> {
            Some(self)
        }
    }
    impl UpdateVjp<f64> for LossScaled {
        fn vjp(
            &self,
            _: &OptState<f64>,
            grad: &[f64],
            loss: f64,
            _: Key,
            after: &OptState<f64>,
            _: &mut [f64],
        ) -> UpdateAdjoint<f64> {
            UpdateAdjoint {
                state: after.clone(),
                grad: after.params.iter().map(|a| -0.01 * loss * a).collect(),
                loss: -0.01 * after.params.iter().zip(grad).map(|(a, g)| a * g).sum::<f64>(),
            }
        }
    }
    check_update_vjp(|_| Box::new(LossScaled), &[]).unwrap();
    for term in [LossTerm::Proper, LossTerm::Reference, LossTerm::None] {
        check_update_vjp(|_| Box::new(WeightDecay::new(0.1, term, Box::new(LossScaled))), &[]).unwrap();
    }
    check_update_vjp(|_| Box::new(Accumulate::new(2, Box::new(LossScaled))), &[]).unwrap();
}
