//! The meta-loss on a line or a plane through theta.

use crate::plot::Surface;
use crate::validation::Validation;
use crate::workers::Workers;
use outerloop_core::{Error, Key, LearnedOptimizer, Result};

/// A plane through theta, by two directions of length 1 that stand at right angles.
///
/// Everything is measured with theta itself, on the same tasks, initial parameters and batches at every point
/// ([`Validation::score`]): what is rough here is the meta-loss, no noise of sampling. Perturbations of `P`
/// meta-parameters by σ lie about `σ √P` from theta, mostly across any plane.
///
/// Reference: Li et al. 2018, arXiv:1712.09913 (slices of losses); Metz et al. 2019, arXiv:1810.10180, figure 1
/// (meta-losses of unrolls).
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    theta: Vec<f32>,
    directions: [Vec<f64>; 2],
}

impl Slice {
    /// The plane of `towards`, usually a descent direction, and of a random direction made orthogonal to it. Errors if
    /// there are less than two meta-parameters, or `towards` has another length than theta, or none.
    pub fn new(theta: &[f32], towards: &[f64], key: Key) -> Result<Self> {
        if towards.len() != theta.len() {
            return Err(Error::mismatch("length of the slice's direction", theta.len(), towards.len()));
        }
        if theta.len() < 2 {
            return Err(Error::mismatch("meta-parameters of a slice, at least", 2, theta.len()));
        }
        let first = unit(towards.to_vec())?;
        let mut random = vec![0.0f64; theta.len()];
        key.fill_normal(&mut random);
        let along: f64 = random.iter().zip(&first).map(|(r, f)| r * f).sum();
        random.iter_mut().zip(&first).for_each(|(r, f)| *r -= along * f);
        Ok(Slice { theta: theta.to_vec(), directions: [first, unit(random)?] })
    }

    /// Theta moved by `x` along the first direction and `y` along the second.
    pub fn point(&self, x: f64, y: f64) -> Vec<f32> {
        let [first, second] = &self.directions;
        let moved = self.theta.iter().zip(first.iter().zip(second));
        moved.map(|(t, (a, b))| (f64::from(*t) + x * a + y * b) as f32).collect()
    }

    /// The meta-loss at so many points from `-radius` to `radius` along the first direction.
    pub fn line(&self, radius: f64, points: usize, at: &Measure<'_>) -> Vec<(f64, f64)> {
        ticks(radius, points).into_iter().map(|x| (x, at(&self.point(x, 0.0)))).collect()
    }

    /// The meta-loss on a square grid of so many points per side.
    pub fn surface(&self, radius: f64, points: usize, at: &Measure<'_>) -> Surface {
        let ticks = ticks(radius, points);
        let heights = ticks.iter().flat_map(|y| ticks.iter().map(|x| at(&self.point(*x, *y))));
        Surface { heights: heights.collect(), x: ticks.clone(), y: ticks }
    }

    /// The measurement by whole runs.
    pub fn by_runs<'a>(
        validation: &'a Validation,
        lopt: &'a dyn LearnedOptimizer,
        workers: &'a Workers,
    ) -> impl Fn(&[f32]) -> f64 + 'a {
        move |theta| validation.score(&*lopt.opt_fn(theta), workers)
    }
}

/// The meta-loss of a theta.
type Measure<'a> = dyn Fn(&[f32]) -> f64 + 'a;

fn unit(mut v: Vec<f64>) -> Result<Vec<f64>> {
    let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !(norm > 0.0 && norm.is_finite()) {
        let why = format!("expected a finite direction of some length, got length {norm}");
        return Err(Error::invalid("direction of a slice", why));
    }
    v.iter_mut().for_each(|x| *x /= norm);
    Ok(v)
}

/// From `-radius` to `radius`; one point is the middle.
fn ticks(radius: f64, points: usize) -> Vec<f64> {
    let half = points.saturating_sub(1) as f64 / 2.0;
    (0..points).map(|i| if half == 0.0 { 0.0 } else { radius * (i as f64 - half) / half }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_are_those_of_the_moved_theta() {
        let theta = [1.0f32, -2.0, 0.5];
        let slice = Slice::new(&theta, &[0.0, 3.0, -4.0], Key::new(1)).unwrap();
        let [a, b] = &slice.directions;
        assert_eq!(a[..], [0.0, 0.6, -0.8]);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert!(dot(a, b).abs() < 1e-12 && (dot(b, b) - 1.0).abs() < 1e-12, "{b:?}");
        // A bowl around theta: equal heights at equal distances.
        let bowl = |t: &[f32]| t.iter().zip(theta).map(|(t, o)| f64::from(t - o).powi(2)).sum::<f64>();
        let line = slice.line(2.0, 5, &bowl);
        for (x, height) in &line {
            assert!((height - x * x).abs() < 1e-5, "{line:?}");
        }
        assert_eq!(line.iter().map(|p| p.0).collect::<Vec<_>>(), [-2.0, -1.0, 0.0, 1.0, 2.0]);
        let s = slice.surface(2.0, 3, &bowl);
        for (i, y) in s.y.iter().enumerate() {
            for (j, x) in s.x.iter().enumerate() {
                assert!((s.heights[3 * i + j] - x * x - y * y).abs() < 1e-5, "{s:?}");
            }
        }
        assert_eq!(slice.surface(2.0, 1, &bowl).heights, [0.0]);
    }

    #[test]
    fn directions_that_are_none_are_refused() {
        let errors = [
            Slice::new(&[1.0, 2.0], &[0.0, 0.0], Key::new(0)),
            Slice::new(&[1.0, 2.0], &[f64::NAN, 0.0], Key::new(0)),
            Slice::new(&[1.0, 2.0], &[1.0], Key::new(0)),
            Slice::new(&[1.0], &[1.0], Key::new(0)),
        ];
        assert!(errors.iter().all(Result::is_err), "{errors:?}");
    }
}
