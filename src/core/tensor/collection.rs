/// Declares a struct whose fields are dfdx tensors or modules, usable as a task's parameters.
///
/// ```
/// use outerloop_core::{collection, tensor::{Rank1, Rank2, Tensor}};
/// collection! {
///     /// A linear model.
///     pub struct Line<E, B> { pub w: Tensor<Rank2<4, 2>, E, B>, pub b: Tensor<Rank1<2>, E, B> }
/// }
/// ```
#[macro_export]
macro_rules! collection {
    ($(#[$m:meta])* $v:vis struct $name:ident<$E:ident, $B:ident> {
        $($(#[$fm:meta])* $fv:vis $f:ident : $t:ty),+ $(,)?
    }) => {
        $(#[$m])* #[derive(Clone, Debug)]
        $v struct $name<$E: $crate::tensor::Dtype, $B: $crate::tensor::Device<$E>> {
            $($(#[$fm])* $fv $f: $t),+
        }
        impl<$E, $B> $crate::tensor::TensorCollection<$E, $B> for $name<$E, $B>
        where
            $E: $crate::Float,
            $B: $crate::tensor::Backend<$E>,
        {
            type To<E2: $crate::tensor::Dtype, D2: $crate::tensor::Device<E2>> = $name<E2, D2>;
            fn iter_tensors<V: $crate::tensor::ModuleVisitor<Self, $E, $B>>(
                v: &mut V,
            ) -> ::std::result::Result<::std::option::Option<Self::To<V::E2, V::D2>>, V::Err> {
                v.visit_fields(
                    ($(Self::module(stringify!($f), |s| &s.$f, |s| &mut s.$f),)+),
                    |($($f,)+)| $name { $($f),+ },
                )
            }
        }
    };
}
