//! Parameters as tensors, and their passage to and from one flat buffer.

use super::{unique_id, Backend, Float, Gradients, Mode, Shape, Tensor, TensorCollection};
use crate::device::Movable;
use crate::Layout;
use dfdx::prelude::{
    HasShape, PutTape, RecursiveWalker, ReshapeTo, TensorFromVec, TensorOptions, TensorVisitor, UniqueId,
    ViewTensorMut, ViewTensorName, ViewTensorRef,
};
use std::sync::Arc;

/// A task's parameters: a dfdx tensor, module, tuple, a struct declared with
/// [`collection!`](crate::collection), or [`DynParams`] where shapes are known at run time only.
pub trait ParamTree<E: Float, B: Backend<E>>: Clone + Movable + 'static {
    /// Names and shapes, in the order of the flat buffer.
    fn layout(&self) -> Layout;
    /// Tensors to a flat buffer of the layout's length.
    fn write_flat(&self, out: &mut [E]);
    /// A flat buffer of the layout's length to the tensors.
    fn read_flat(&mut self, src: &[E]);
    /// Gradients of these tensors to a flat buffer; zeros where there is none. A shorter buffer takes the
    /// leading tensors' alone, up to its end, which is one of a tensor.
    fn read_grads(&self, dev: &B, grads: &mut Gradients<E, B>, out: &mut [E]);
    /// The tensors' ids, in layout order.
    fn ids(&self) -> Vec<UniqueId>;
    /// Length of the flat buffer.
    fn numel(&self) -> usize {
        self.layout().len()
    }
}

/// Calls `f` for every trainable tensor, with its name and position in the flat buffer.
struct Visit<F> {
    f: F,
    at: usize,
}

trait OnTensor<E: Float, B: Backend<E>> {
    fn on<S: Shape>(&mut self, at: usize, t: &Tensor<S, E, B>, name: &str);
}

impl<E: Float, B: Backend<E>, F: OnTensor<E, B>> TensorVisitor<E, B> for Visit<F> {
    type Viewer = (ViewTensorRef, ViewTensorName);
    type Err = B::Err;
    type E2 = E;
    type D2 = B;
    fn visit<S: Shape>(
        &mut self,
        o: TensorOptions<S, E, B>,
        (t, name): (&Tensor<S, E, B>, String),
    ) -> Result<Option<Tensor<S, E, B>>, B::Err> {
        if o.do_gradient_update {
            self.f.on(self.at, t, &name);
            self.at += t.shape().num_elements();
        }
        Ok(None)
    }
}

/// [`Visit`] without names, for the hot path.
struct VisitFast<F> {
    f: F,
    at: usize,
}
impl<E: Float, B: Backend<E>, F: OnTensor<E, B>> TensorVisitor<E, B> for VisitFast<F> {
    type Viewer = ViewTensorRef;
    type Err = B::Err;
    type E2 = E;
    type D2 = B;
    fn visit<S: Shape>(
        &mut self,
        o: TensorOptions<S, E, B>,
        t: &Tensor<S, E, B>,
    ) -> Result<Option<Tensor<S, E, B>>, B::Err> {
        if o.do_gradient_update {
            self.f.on(self.at, t, "");
            self.at += t.shape().num_elements();
        }
        Ok(None)
    }
}

struct ToLayout(Layout);
impl<E: Float, B: Backend<E>> OnTensor<E, B> for ToLayout {
    fn on<S: Shape>(&mut self, _: usize, t: &Tensor<S, E, B>, name: &str) {
        let shape: Vec<usize> = t.shape().concrete().into_iter().collect();
        // dfdx names tuple fields "0." and nested ones "0.weight".
        let name = name.trim_end_matches('.').replace('.', "/");
        let name = if name.is_empty() { "params".to_string() } else { name };
        self.0.push(name, shape);
    }
}

struct ToFlat<'a, E>(&'a mut [E]);
impl<E: Float, B: Backend<E>> OnTensor<E, B> for ToFlat<'_, E> {
    fn on<S: Shape>(&mut self, at: usize, t: &Tensor<S, E, B>, _: &str) {
        t.copy_into(&mut self.0[at..at + t.shape().num_elements()]);
    }
}

struct ToGrads<'a, E: Float, B: Backend<E>> {
    dev: &'a B,
    grads: &'a mut Gradients<E, B>,
    out: &'a mut [E],
}
impl<E: Float, B: Backend<E>> OnTensor<E, B> for ToGrads<'_, E, B> {
    fn on<S: Shape>(&mut self, at: usize, t: &Tensor<S, E, B>, _: &str) {
        if at >= self.out.len() {
            return;
        }
        let v = self.grads.get_or_alloc_mut(t).unwrap_or_else(|e| panic!("out of device memory: {e:?}"));
        self.dev.read_vec(v, &mut self.out[at..at + t.shape().num_elements()]);
    }
}

struct Count(usize);
impl<E: Float, B: Backend<E>> OnTensor<E, B> for Count {
    fn on<S: Shape>(&mut self, _: usize, t: &Tensor<S, E, B>, _: &str) {
        self.0 += t.shape().num_elements();
    }
}

struct ToIds(Vec<UniqueId>);
impl<E: Float, B: Backend<E>> OnTensor<E, B> for ToIds {
    fn on<S: Shape>(&mut self, _: usize, t: &Tensor<S, E, B>, _: &str) {
        self.0.push(unique_id(t));
    }
}

/// Copies numbers into a tensor, unless it holds them already: where a linearization shares its storage, that would
/// make a second one.
fn overwrite<S: Shape, E: Float, B: Backend<E>>(t: &mut Tensor<S, E, B>, src: &[E]) {
    let is_there =
        B::IN_HOST_MEMORY && B::host(t).iter().zip(src).all(|(t, s)| t.f64().to_bits() == s.f64().to_bits());
    if !is_there {
        t.copy_from(src);
    }
}

struct FromFlat<'a, E> {
    src: &'a [E],
    at: usize,
}
impl<E: Float, B: Backend<E>> TensorVisitor<E, B> for FromFlat<'_, E> {
    type Viewer = ViewTensorMut;
    type Err = B::Err;
    type E2 = E;
    type D2 = B;
    fn visit<S: Shape>(
        &mut self,
        o: TensorOptions<S, E, B>,
        t: &mut Tensor<S, E, B>,
    ) -> Result<Option<Tensor<S, E, B>>, B::Err> {
        if o.do_gradient_update {
            let n = t.shape().num_elements();
            overwrite(t, &self.src[self.at..self.at + n]);
            self.at += n;
        }
        Ok(None)
    }
}

fn walk<E: Float, B: Backend<E>, P, F>(p: &P, f: F) -> F
where
    P: TensorCollection<E, B>,
    F: OnTensor<E, B>,
{
    let mut f = VisitFast { f, at: 0 };
    P::iter_tensors(&mut RecursiveWalker { m: p, f: &mut f })
        .unwrap_or_else(|e| panic!("a visitor of ours failed: {e:?}"));
    f.f
}

impl<E: Float, B: Backend<E>, P> ParamTree<E, B> for P
where
    P: TensorCollection<E, B, To<E, B> = P> + Clone + Movable + 'static,
{
    fn layout(&self) -> Layout {
        let mut f = Visit { f: ToLayout(Layout::default()), at: 0 };
        P::iter_tensors(&mut RecursiveWalker { m: (self, String::new()), f: &mut f })
            .unwrap_or_else(|e| panic!("a visitor of ours failed: {e:?}"));
        f.f.0
    }
    fn write_flat(&self, out: &mut [E]) {
        walk(self, ToFlat(out));
    }
    fn read_flat(&mut self, src: &[E]) {
        let mut f = FromFlat { src, at: 0 };
        P::iter_tensors(&mut RecursiveWalker { m: self, f: &mut f })
            .unwrap_or_else(|e| panic!("a visitor of ours failed: {e:?}"));
    }
    fn read_grads(&self, dev: &B, grads: &mut Gradients<E, B>, out: &mut [E]) {
        walk(self, ToGrads { dev, grads, out });
    }
    fn ids(&self) -> Vec<UniqueId> {
        walk(self, ToIds(Vec::new())).0
    }
    fn numel(&self) -> usize {
        walk(self, Count(0)).0
    }
}

/// Parameters whose shapes are known at run time only: a [`Layout`] read as dynamically shaped
/// tensors. Families that sample widths and depths use it: `type Params = DynParams<E, B>`.
pub type DynParams<E, B> = <B as Backend<E>>::DynParams;

/// The methods of [`DynParams`].
pub trait DynTree<E: Float, B: Backend<E>>: ParamTree<E, B> {
    /// Parameters from a flat buffer of the layout's length.
    ///
    /// # Panics
    /// If the lengths differ.
    fn new(dev: &B, layout: Arc<Layout>, flat: &[E]) -> Self;

    /// The tensor at `index` of the layout, in the given shape. It keeps its identity, so its
    /// gradient arrives whatever shape it is read in.
    ///
    /// # Panics
    /// If the shape has another number of elements, or there is no such tensor.
    fn get<S: Shape>(&self, index: usize, shape: S) -> Tensor<S, E, B>;

    /// [`Self::get`], traced in mode `m`.
    fn traced<S: Shape, M: Mode<E, B>>(&self, index: usize, shape: S, m: M) -> Tensor<S, E, B, M> {
        self.get(index, shape).put_tape(m)
    }
}

/// The one implementation of [`DynParams`].
#[derive(Clone, Debug)]
pub struct DynTensors<E: Float, B: Backend<E>> {
    layout: Arc<Layout>,
    tensors: Vec<Tensor<(usize,), E, B>>,
}

// Per dtype and device: a generic implementation would overlap with the one for collections.
macro_rules! dyn_tensors {
    ($t:ty, $b:ty) => {
        impl DynTree<$t, $b> for DynTensors<$t, $b> {
            #[track_caller]
            fn new(dev: &$b, layout: Arc<Layout>, flat: &[$t]) -> Self {
                assert_eq!(layout.len(), flat.len(), "DynParams: flat buffer of another length");
                let tensor = |e: &crate::Entry| dev.tensor_from_vec(flat[e.range()].to_vec(), (e.numel(),));
                let tensors = layout.entries().iter().map(tensor).collect();
                DynTensors { layout, tensors }
            }
            #[track_caller]
            fn get<S: Shape>(&self, index: usize, shape: S) -> Tensor<S, $t, $b> {
                self.tensors[index].clone().reshape_like(&shape)
            }
        }
        impl ParamTree<$t, $b> for DynTensors<$t, $b> {
            fn layout(&self) -> Layout {
                (*self.layout).clone()
            }
            fn write_flat(&self, out: &mut [$t]) {
                for (t, e) in self.tensors.iter().zip(self.layout.entries()) {
                    t.copy_into(&mut out[e.range()]);
                }
            }
            fn read_flat(&mut self, src: &[$t]) {
                for (t, e) in self.tensors.iter_mut().zip(self.layout.entries()) {
                    overwrite(t, &src[e.range()]);
                }
            }
            fn read_grads(&self, dev: &$b, grads: &mut Gradients<$t, $b>, out: &mut [$t]) {
                let mut f = ToGrads { dev, grads, out };
                // `ToGrads` leaves out what lies behind the end of `out`.
                for (t, e) in self.tensors.iter().zip(self.layout.entries()) {
                    f.on(e.offset, t, "");
                }
            }
            fn ids(&self) -> Vec<UniqueId> {
                self.tensors.iter().map(unique_id).collect()
            }
            fn numel(&self) -> usize {
                self.layout.len()
            }
        }
    };
}
dyn_tensors!(f32, super::Cpu);
dyn_tensors!(f64, super::Cpu);
#[cfg(feature = "cuda")]
dyn_tensors!(f32, super::Cuda);
#[cfg(feature = "cuda")]
dyn_tensors!(f64, super::Cuda);

/// Two trees of parameters in one flat buffer, the first's elements first; tensors are named
/// `params/...` and `hyper/...`.
pub trait PairTree<E: Float, B: Backend<E>, P, Q>: ParamTree<E, B> {
    /// The pair.
    fn pair(first: P, second: Q) -> Self;
    /// Both trees.
    fn parts(&self) -> (&P, &Q);
}

/// The one implementation of [`PairTree`].
#[derive(Clone, Debug)]
pub struct PairTensors<P, Q>(P, Q);

// Per dtype and device, as above.
macro_rules! pair_tensors {
    ($t:ty, $b:ty) => {
        impl<P: ParamTree<$t, $b>, Q: ParamTree<$t, $b>> PairTree<$t, $b, P, Q> for PairTensors<P, Q> {
            fn pair(first: P, second: Q) -> Self {
                PairTensors(first, second)
            }
            fn parts(&self) -> (&P, &Q) {
                (&self.0, &self.1)
            }
        }
        impl<P: ParamTree<$t, $b>, Q: ParamTree<$t, $b>> ParamTree<$t, $b> for PairTensors<P, Q> {
            fn layout(&self) -> Layout {
                let mut all = Layout::default();
                for (part, layout) in [("params", self.0.layout()), ("hyper", self.1.layout())] {
                    for e in layout.entries() {
                        all.push(format!("{part}/{}", e.name), e.shape.clone());
                    }
                }
                all
            }
            fn write_flat(&self, out: &mut [$t]) {
                let (first, second) = out.split_at_mut(self.0.numel());
                self.0.write_flat(first);
                self.1.write_flat(second);
            }
            fn read_flat(&mut self, src: &[$t]) {
                let (first, second) = src.split_at(self.0.numel());
                self.0.read_flat(first);
                self.1.read_flat(second);
            }
            fn read_grads(&self, dev: &$b, grads: &mut Gradients<$t, $b>, out: &mut [$t]) {
                let len = self.0.numel().min(out.len());
                let (first, second) = out.split_at_mut(len);
                self.0.read_grads(dev, grads, first);
                self.1.read_grads(dev, grads, second);
            }
            fn ids(&self) -> Vec<UniqueId> {
                let mut ids = self.0.ids();
                ids.extend(self.1.ids());
                ids
            }
            fn numel(&self) -> usize {
                self.0.numel() + self.1.numel()
            }
        }
    };
}
pair_tensors!(f32, super::Cpu);
pair_tensors!(f64, super::Cpu);
#[cfg(feature = "cuda")]
pair_tensors!(f32, super::Cuda);
#[cfg(feature = "cuda")]
pair_tensors!(f64, super::Cuda);
