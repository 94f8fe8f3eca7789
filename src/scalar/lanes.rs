//! The SIMD vectors of the number types.

// Everything here must be inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use pulp::Simd;

/// The SIMD vectors of a number type.
pub trait Lanes: Copy + Default + 'static {
    /// A vector of the processor's full width.
    type Vector<S: Simd>: Copy;

    /// The slice as vectors, and the remaining values.
    fn vectors<S: Simd>(values: &[Self]) -> (&[Self::Vector<S>], &[Self]);
    /// The mutable slice as vectors, and the remaining values.
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> (&mut [Self::Vector<S>], &mut [Self]);
    /// A vector from fewer values, padded with zeros.
    fn load<S: Simd>(simd: S, values: &[Self]) -> Self::Vector<S>;
    /// Writes the first values of a vector.
    fn store<S: Simd>(simd: S, values: &mut [Self], vector: Self::Vector<S>);
    /// The value in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// a + b.
    fn add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a b + c.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// The sum of the lanes.
    fn sum<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;

    /// The number of lanes of a vector.
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Vector<S>>() / size_of::<Self>()
    }
}

macro_rules! lanes {
    (
        $number:ty, $vector:ident, $as:ident, $as_mut:ident, $load:ident, $store:ident,
        $splat:ident, $add:ident, $mul_add:ident, $sum:ident
    ) => {
        impl Lanes for $number {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn vectors<S: Simd>(values: &[Self]) -> (&[Self::Vector<S>], &[Self]) {
                S::$as(values)
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [Self]) -> (&mut [Self::Vector<S>], &mut [Self]) {
                S::$as_mut(values)
            }
            #[inline(always)]
            fn load<S: Simd>(simd: S, values: &[Self]) -> Self::Vector<S> {
                simd.$load(values)
            }
            #[inline(always)]
            fn store<S: Simd>(simd: S, values: &mut [Self], vector: Self::Vector<S>) {
                simd.$store(values, vector);
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S> {
                simd.$splat(value)
            }
            #[inline(always)]
            fn add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S> {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(
                simd: S,
                a: Self::Vector<S>,
                b: Self::Vector<S>,
                c: Self::Vector<S>,
            ) -> Self::Vector<S> {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn sum<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self {
                simd.$sum(vector)
            }
        }
    };
}
lanes!(
    f32,
    f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    partial_load_f32s,
    partial_store_f32s,
    splat_f32s,
    add_f32s,
    // Not `mul_add`, which calls a slow function on processors without a fused instruction.
    mul_add_e_f32s,
    reduce_sum_f32s
);
lanes!(
    f64,
    f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    partial_load_f64s,
    partial_store_f64s,
    splat_f64s,
    add_f64s,
    mul_add_e_f64s,
    reduce_sum_f64s
);
