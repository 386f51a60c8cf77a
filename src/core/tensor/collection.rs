/// Declares a struct whose fields are dfdx tensors or modules, usable as a task's parameters.
///
/// ```
/// use outerloop_core::{collection, tensor::{Rank1, Rank2, Tensor}};
/// collection! {
///     /// A linear model.
///     pub struct Line<E, B> { pub w: Tensor<Rank2<4, 2>, E, B>, pub b: Tensor<Rank1<2>, E, B> }
/// }
/// collection! {
///     /// One of any size.
///     pub struct Lines<const I: usize, const O: usize; E, B> { pub w: Tensor<Rank2<I, O>, E, B> }
/// }
/// ```
#[macro_export]
macro_rules! collection {
    ($(#[$m:meta])* $v:vis struct $name:ident<$(const $C:ident: usize),+; $E:ident, $B:ident> $fields:tt) => {
        $crate::collection!(@ [$(#[$m])*] $v $name [$($C)+] $E $B $fields);
    };
    ($(#[$m:meta])* $v:vis struct $name:ident<$E:ident, $B:ident> $fields:tt) => {
        $crate::collection!(@ [$(#[$m])*] $v $name [] $E $B $fields);
    };
    (@ [$(#[$m:meta])*] $v:vis $name:ident [$($C:ident)*] $E:ident $B:ident {
        $($(#[$fm:meta])* $fv:vis $f:ident : $t:ty),+ $(,)?
    }) => {
        $(#[$m])* #[derive(Clone, Debug)]
        $v struct $name<$(const $C: usize,)* $E: $crate::tensor::Dtype, $B: $crate::tensor::Device<$E>> {
            $($(#[$fm])* $fv $f: $t),+
        }
        impl<$(const $C: usize,)* $E, $B> $crate::tensor::TensorCollection<$E, $B> for $name<$($C,)* $E, $B>
        where
            $E: $crate::Float,
            $B: $crate::tensor::Backend<$E>,
        {
            type To<E2: $crate::tensor::Dtype, D2: $crate::tensor::Device<E2>> = $name<$($C,)* E2, D2>;
            fn iter_tensors<Visitor: $crate::tensor::ModuleVisitor<Self, $E, $B>>(
                v: &mut Visitor,
            ) -> ::std::result::Result<::std::option::Option<Self::To<Visitor::E2, Visitor::D2>>, Visitor::Err> {
                v.visit_fields(
                    ($(Self::module(stringify!($f), |s| &s.$f, |s| &mut s.$f),)+),
                    |($($f,)+)| $name { $($f),+ },
                )
            }
        }
    };
}
