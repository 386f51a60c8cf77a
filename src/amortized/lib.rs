//! Learning to solve: a model predicts the solution of a problem from its context, so that solving
//! many related problems costs one training instead of many searches.
//!
//! Three choices make such a system: the *problem* (contexts `x`, an objective `f(y; x)`, a domain), the *model*
//! `ŷ(x; θ)` (fully amortized: it never asks the objective; semi-amortized: it starts somewhere and asks it on the
//! way), and the *loss* (the objective itself; the distance to solutions that a solver found; or the objective's
//! values alone). Reference: Amos 2022, arXiv:2202.00665.
//!
//! | module | owns |
//! |---|---|
//! | [`problem`] | problems, and single contexts of them as tasks for any solver |
//! | [`problems`] | problems with known solutions: sphere, control, sparse coding, fixed points, MAML, transport, programs |
//! | [`model`] | full and semi-amortized models |
//! | [`task`] | problem, model and loss as one task over the model's parameters |
//! | [`train`] | any flat task trained by the learner and runs of meta-training |
//! | [`evaluate`] | amortization gap and speed against a solver |
//! | [`loss`] | losses; the losses of a quadratic in closed form |
//! | [`solve`] | optimizers, the cross-entropy method and Anderson mixing as solvers |
//! | [`report`] | tables and means of examples |
//! | [`perturbed`] | discrete solvers under noise, with a derivative |
//! | [`inference`] | amortized inference: bounds, iterative inference, Kalman filters |
//! | [`net`] | fully connected networks on a buffer of parameters |
//! | [`rows`] | operations on rows as one pass over memory |
//! | [`ratio`] | inference without a likelihood: ratio estimators, samplers, diagnostics |
//! | [`figures`] | the functions of the tutorial's figures |
//! | [`matrix`], [`quadrature`] | small dense matrices and integrals, for oracles |

pub mod evaluate;
pub mod figures;
pub mod inference;
pub mod loss;
pub mod matrix;
pub mod model;
pub mod net;
pub mod perturbed;
pub mod problem;
pub mod problems;
pub mod quadrature;
pub mod ratio;
pub mod report;
pub mod rows;
pub mod solve;
pub mod task;
pub mod train;
