//! The table: every operation, once per way of using it.

use super::{check, Case, Traced};
use crate::ops::{self, Activation, Padding};
use crate::tensor::*;

/// Keeps arguments 0.05 away from 0, where kinks lie.
fn off_zero(x: f64) -> f64 {
    x + 0.05f64.copysign(x)
}
fn positive(x: f64) -> f64 {
    x.abs() + 0.3
}

macro_rules! cases {
    ($($name:ident $domain:ident [$($shape:expr),+] |$x:ident| $body:expr;)+) => {$(
        #[test]
        fn $name() {
            struct This;
            impl Case for This {
                fn name(&self) -> &'static str {
                    stringify!($name)
                }
                fn inputs(&self) -> Vec<usize> {
                    vec![$($shape),+]
                }
                fn domain(&self, x: f64) -> f64 {
                    $domain(x)
                }
                fn in_f32(&self, x: &[Traced<f32>]) -> Traced<f32> {
                    run(x)
                }
                fn in_f64(&self, x: &[Traced<f64>]) -> Traced<f64> {
                    run(x)
                }
            }
            fn run<E: Float>(x: &[Traced<E>]) -> Traced<E>
            where
                Cpu: Host<E>,
            {
                let $x = |i: usize| x[i].clone();
                flatten($body)
            }
            check(&This);
        }
    )+};
}

fn any(x: f64) -> f64 {
    x
}

fn flatten<S: Shape, E: Float>(y: Tensor<S, E, Cpu, Rec>) -> Traced<E>
where
    Cpu: Host<E>,
{
    let n = y.shape().num_elements();
    ops::reshape(y, (n,))
}

/// Without its tape, as parameters are passed.
fn bare<S: Shape, E: Float, M: Mode<E, Cpu>>(x: Tensor<S, E, Cpu, M>) -> Tensor<S, E, Cpu>
where
    Cpu: Host<E>,
{
    use dfdx::prelude::SplitTape;
    x.split_tape().0
}

fn dev_zeros<S: Shape, E: Float, T>(like: &Tensor<(usize,), E, Cpu, T>, shape: S) -> Tensor<S, E, Cpu>
where
    Cpu: Host<E>,
    T: Tape<E, Cpu>,
{
    use dfdx::prelude::HasShape;
    let _ = like.shape();
    Cpu::default().filled(shape, |_| {})
}

use ops::reshape as to;

cases! {
    exp any [5] |x| ops::exp(x(0));
    ln positive [5] |x| ops::ln(x(0));
    sqrt positive [5] |x| ops::sqrt(x(0));
    square any [5] |x| ops::square(x(0));
    tanh any [5] |x| ops::tanh(x(0));
    sigmoid any [5] |x| ops::sigmoid(x(0));
    relu off_zero [9] |x| ops::relu(x(0));
    leaky_relu off_zero [9] |x| ops::leaky_relu(x(0), 0.1);
    relu6 off_zero [9] |x| ops::relu6(ops::scale(x(0), 7.0));
    clip off_zero [9] |x| ops::clip(x(0), -0.02, 0.03);
    selu off_zero [9] |x| ops::selu(x(0));
    elu off_zero [9] |x| ops::elu(x(0));
    silu any [9] |x| ops::silu(x(0));
    gelu any [9] |x| ops::gelu(x(0));
    softplus any [9] |x| ops::softplus(x(0));
    sin any [5] |x| ops::sin(x(0));
    cos any [5] |x| ops::cos(x(0));
    abs off_zero [5] |x| ops::abs(x(0));
    neg any [5] |x| ops::neg(x(0));
    affine any [5] |x| ops::affine(x(0), -2.0, 0.5);
    scale any [5] |x| ops::scale(x(0), 3.0);
    shift any [5] |x| ops::shift(x(0), 3.0);

    add any [6, 6] |x| ops::add(x(0), &x(1));
    sub any [6, 6] |x| ops::sub(x(0), &x(1));
    mul any [6, 6] |x| ops::mul(x(0), &x(1));
    div positive [6, 6] |x| ops::div(x(0), &x(1));
    add_row any [6, 3] |x| ops::add(to(x(0), (2, 3)), &x(1));
    sub_row any [6, 3] |x| ops::sub(to(x(0), (2, 3)), &x(1));
    mul_row any [6, 3] |x| ops::mul(to(x(0), (2, 3)), &x(1));
    div_row positive [6, 3] |x| ops::div(to(x(0), (2, 3)), &x(1));
    mul_scalar any [6, 1] |x| ops::mul(x(0), &to(x(1), ()));
    div_scalar positive [6, 1] |x| ops::div(x(0), &to(x(1), ()));
    mul_untraced any [6, 3] |x| ops::mul(to(x(0), (2, 3)), &bare(x(1)));
    repeated any [4] |x| ops::mul(x(0), &x(0));
    repeated_thrice any [4] |x| ops::div(ops::mul(x(0), &x(0)), &ops::shift(ops::square(x(0)), 1.0));
    used_twice any [4] |x| ops::add(ops::tanh(x(0)), &ops::exp(x(0)));

    sum any [5] |x| ops::sum(x(0));
    sum_long any [200] |x| ops::sum(x(0));
    mean any [5] |x| ops::mean(to(x(0), (5, 1)));
    sum_axis0 any [6] |x| ops::sum_axis0(to(x(0), (2, 3)));
    sum_axis1 any [6] |x| ops::sum_axis1(to(x(0), (2, 3)));
    mean_axis0 any [6] |x| ops::mean_axis0(to(x(0), (2, 3)));
    mean_axis1 any [6] |x| ops::mean_axis1(to(x(0), (2, 3)));
    max_axis1 any [6] |x| ops::max_axis1(to(x(0), (2, 3)));

    mse any [6, 6] |x| ops::mse(x(0), &x(1));
    mse_long any [150, 150] |x| ops::mse(x(0), &x(1));
    mse_itself any [6] |x| ops::mse(x(0), &x(0));
    sigmoid_cross_entropy any [6, 6] |x| ops::sigmoid_cross_entropy(x(0), &ops::sigmoid(x(1)));
    softmax_cross_entropy any [12] |x| ops::softmax_cross_entropy(to(x(0), (3, 4)), &[1, 0, 3]);
    weighted_softmax_cross_entropy any [12] |x| ops::weighted_softmax_cross_entropy(
        to(x(0), (3, 4)), &[1, 0, 3], &[1.0, 0.0, 2.5].map(E::of));

    softmax_cross_entropies any [12] |x| ops::softmax_cross_entropies(to(x(0), (3, 4)), &[1, 0, 3]);
    weight_decay any [6, 6] |x| ops::weight_decay(x(0), &x(1));
    weight_decay_scalar any [130, 1] |x| ops::weight_decay(x(0), &x(1));
    weight_decay_itself any [6] |x| ops::weight_decay(x(0), &x(0));

    // z = 0.4 tanh(z a) + b, a row at a time: every derivative of the fixed point.
    fixed_point any [9, 6] |x| ops::fixed_point(
        dev_zeros(&x(0), (2, 3)), vec![x(0), x(1)], ops::Equilibrium::default(), |z, theta| {
            let a = ops::scale(ops::tanh(to(theta[0].clone(), (3, 3))), 0.5);
            ops::add(ops::scale(ops::tanh(ops::matmul(z, &a)), 0.6), &to(theta[1].clone(), (2, 3)))
        });

    softmax any [6] |x| ops::softmax(to(x(0), (2, 3)));
    layer_norm any [8, 4, 4] |x| ops::layer_norm(to(x(0), (2, 1, 4)), &bare(x(1)), &bare(x(2)));
    batch_norm any [15, 3, 3] |x| ops::batch_norm(to(x(0), (5, 3)), &bare(x(1)), &bare(x(2))).0;
    batch_norm_images any [24, 3, 3] |x|
        ops::batch_norm(to(x(0), (2, 2, 2, 3)), &bare(x(1)), &bare(x(2))).0;

    embedding any [8] |x| ops::embedding(to(x(0), (4, 2)), &[3, 0, 3, 1]);
    repeat_row any [3] |x| ops::repeat_row(x(0), 4);
    columns any [10] |x| ops::columns(to(x(0), (2, 5)), 1, 3);
    transpose any [6] |x| ops::mul(ops::transpose(to(x(0), (2, 3))), &to(x(0), (3, 2)));
    swap_middle any [24] |x| ops::mul(ops::swap_middle(to(x(0), (1, 2, 3, 4))), &to(x(0), (1, 3, 2, 4)));
    concat any [6, 4] |x| ops::concat(to(x(0), (2, 3)), &to(x(1), (2, 2)));
    concat_rows any [6, 3] |x| ops::concat_rows(vec![to(x(0), (2, 3)), to(x(1), (1, 3)), to(x(0), (2, 3))]);

    matmul any [6, 12] |x| ops::matmul(to(x(0), (2, 3)), &to(x(1), (3, 4)));
    matmul_itself any [9] |x| ops::matmul(to(x(0), (3, 3)), &to(x(0), (3, 3)));
    batch_matmul any [12, 12] |x| ops::batch_matmul(to(x(0), (2, 2, 3)), &to(x(1), (2, 3, 2)));
    batch_matmul_transposed any [12, 24] |x|
        ops::batch_matmul_transposed(to(x(0), (2, 2, 3)), &to(x(1), (2, 4, 3)));
    linear any [6, 12, 4] |x|
        ops::linear(to(x(0), (2, 3)), &bare(to(x(1), (3, 4))), &bare(x(2)), Activation::Identity);
    linear_relu any [6, 12, 4] |x|
        ops::linear(to(x(0), (2, 3)), &bare(to(x(1), (3, 4))), &bare(x(2)), Activation::Relu);
    linear_tanh any [6, 12, 4] |x|
        ops::linear(to(x(0), (2, 3)), &bare(to(x(1), (3, 4))), &bare(x(2)), Activation::Tanh);
    linear_sigmoid any [6, 12, 4] |x|
        ops::linear(to(x(0), (2, 3)), &bare(to(x(1), (3, 4))), &bare(x(2)), Activation::Sigmoid);

    conv2d_same any [40, 36, 2] |x| ops::conv2d(
        to(x(0), (1, 4, 5, 2)), &bare(to(x(1), (3, 3, 2, 2))), &bare(x(2)), [2, 1], Padding::Same, Activation::Tanh);
    conv2d_valid any [40, 24, 2] |x| ops::conv2d(
        to(x(0), (2, 5, 2, 2)), &bare(to(x(1), (3, 2, 2, 2))), &bare(x(2)), [1, 2], Padding::Valid, Activation::Identity);
    max_pool any [40] |x| ops::max_pool(to(x(0), (2, 5, 2, 2)), [2, 2], [2, 1], Padding::Same);
    avg_pool any [40] |x| ops::avg_pool(to(x(0), (2, 5, 2, 2)), [2, 2], [2, 1], Padding::Same);
    avg_pool_valid any [40] |x| ops::avg_pool(to(x(0), (1, 5, 4, 2)), [2, 3], [1, 1], Padding::Valid);
    global_max_pool any [24] |x| ops::global_max_pool(to(x(0), (2, 2, 3, 2)));
    global_avg_pool any [24] |x| ops::global_avg_pool(to(x(0), (2, 2, 3, 2)));
}
