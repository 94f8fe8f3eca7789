//! Small operations on slices.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use pulp::{Simd, WithSimd};

use super::{Kernel, PART, Which};
use crate::scalar::Scalar;

/// `y += a x`.
pub(crate) fn add_scaled<T: Scalar>(a: T, x: &[T], y: &mut [T]) {
    super::zip_parts(y, x, |_, y, x| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    });
}

/// `y = a x`.
pub(crate) fn scaled<T: Scalar>(a: T, x: &[T], y: &mut [T]) {
    super::zip_parts(y, x, |_, y, x| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a * x;
        }
    });
}

/// `y = x`.
pub(crate) fn copy<T: Scalar>(x: &[T], y: &mut [T]) {
    super::zip_parts(y, x, |_, y, x| y.copy_from_slice(x));
}

/// Copies some rows of a column-major matrix of `rows` rows to a matrix of `size` rows: as many, from
/// row `first` on.
pub(crate) fn copy_part<T: Scalar>(
    (whole, rows): (&[T], usize),
    first: usize,
    (part, size): (&mut [T], usize),
) {
    for (whole, part) in whole.chunks_exact(rows).zip(part.chunks_exact_mut(size)) {
        copy(&whole[first..first + size], part);
    }
}

/// Copies rows of a column-major matrix of `rows` x `columns`, one after another. The k-th copy is
/// that of row `chosen(k)`, and `out` determines the number of copies.
pub(crate) fn copy_rows<T: Scalar>(
    values: &[T],
    rows: usize,
    columns: usize,
    chosen: impl Fn(usize) -> usize,
    out: &mut [T],
) {
    // Each cache line is completed before the next one is started.
    const BLOCK: usize = 16;
    for first in (0..columns).step_by(BLOCK) {
        let block = first..columns.min(first + BLOCK);
        for (k, out) in out.chunks_exact_mut(columns).enumerate() {
            let i = chosen(k);
            for (out, j) in out[block.clone()].iter_mut().zip(block.clone()) {
                *out = values[j * rows + i];
            }
        }
    }
}

/// Writes columns of `rows.len()` values to the given rows of `out`, and zeros to the other rows.
pub(super) fn spread<T: Scalar>(values: &[T], rows: &[usize], out: &mut [T]) {
    let columns = values.len().checked_div(rows.len()).unwrap_or(0);
    if columns == 0 {
        return out.fill(T::zero());
    }
    // Column by column, so that a column of zeros is still in the cache when its values are
    // written.
    for (values, out) in
        values.chunks_exact(rows.len()).zip(out.chunks_exact_mut(out.len() / columns))
    {
        out.fill(T::zero());
        // Four at a time: a loop over single values takes more time to branch than to write.
        let ((rows, last_rows), (values, last_values)) = (rows.as_chunks(), values.as_chunks());
        for (rows, values) in rows.iter().zip(values) {
            let [a, b, c, d]: [usize; 4] = *rows;
            [out[a], out[b], out[c], out[d]] = *values;
        }
        for (&row, &v) in last_rows.iter().zip(last_values) {
            out[row] = v;
        }
    }
}

/// Lists the rows of a column-major matrix that are not all zero, and returns their number. The
/// matrix has `list.len()` rows.
pub(crate) fn list_nonzero_rows<T: Scalar>(values: &[T], list: &mut [usize]) -> usize {
    let rows = list.len();
    list.fill(0);
    for column in values.chunks_exact(rows) {
        for (any, v) in list.iter_mut().zip(column) {
            *any |= usize::from(*v != T::zero());
        }
    }
    let mut count = 0;
    for i in 0..rows {
        // In place: `count` never passes i, so no flag is overwritten unread.
        let any = list[i];
        list[count] = i;
        count += any;
    }
    count
}

/// The number of entries that are not zero. Without an early exit, the loop is vectorized, which is
/// faster than a search.
#[inline(always)]
pub(super) fn count_nonzero<T: Scalar>(values: &[T]) -> usize {
    values.iter().map(|v| usize::from(*v != T::zero())).sum()
}

/// The largest magnitude, or NaN if any entry is NaN.
pub(super) struct MaxAbs<'a, T> {
    values: &'a [T],
    max: &'a mut T,
}

impl<T: Scalar> WithSimd for MaxAbs<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // Separate maxima, so that the loop is vectorized.
        const LANES: usize = 32;
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        let (mut lanes, mut not_a_number) = ([T::zero(); LANES], false);
        for chunk in chunks {
            for l in 0..LANES {
                let v = chunk[l].abs();
                not_a_number |= v.is_nan();
                // Comparisons with NaN are false, so a NaN needs a flag.
                lanes[l] = if v > lanes[l] { v } else { lanes[l] };
            }
        }
        let mut max = T::zero();
        for v in lanes.iter().chain(rest) {
            not_a_number |= v.is_nan();
            max = max.max(v.abs());
        }
        *self.max = if not_a_number { T::nan() } else { max };
    }
}

/// Multiplies each sample's columns of `rows` values by the sample's column of `by`. Where that is
/// 0, the product is 0, whatever the value.
pub(super) struct ScaleBy<'a, T> {
    pub values: &'a mut [T],
    pub by: &'a [T],
    pub rows: usize,
}

impl<T: Scalar> WithSimd for ScaleBy<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { values, by, rows } = self;
        let of_sample = values.len() / (by.len() / rows).max(1);
        for (values, by) in values.chunks_exact_mut(of_sample.max(1)).zip(by.chunks_exact(rows)) {
            for values in values.chunks_exact_mut(rows) {
                for (v, &by) in values.iter_mut().zip(by) {
                    *v = if by == T::zero() { by } else { *v * by };
                }
            }
        }
    }
}

/// The largest magnitude, or NaN if any entry is NaN.
pub(crate) fn max_abs<T: Scalar>(values: &[T]) -> T {
    let of_part = |values: &[T]| {
        let mut max = T::zero();
        super::run(Kernel(Which::MaxAbs(MaxAbs { values, max: &mut max })));
        max
    };
    #[cfg(feature = "rayon")]
    if values.len() > 2 * PART {
        use rayon::prelude::*;
        return values.par_chunks(PART).map(of_part).reduce(T::zero, larger);
    }
    of_part(values)
}

/// Σ f(a, b, c), in double precision except within short runs.
pub(crate) fn sum<T: Scalar>([a, b, c]: [&[T]; 3], f: impl Fn(T, T, T) -> T + Sync) -> f64 {
    const LANES: usize = 16;
    const RUN: usize = 512;
    let of_run = |((a, b), c): ((&[T], &[T]), &[T])| {
        let mut lanes = [T::zero(); LANES];
        let ((a, a_rest), (b, b_rest), (c, c_rest)) =
            (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
        for ((a, b), c) in a.iter().zip(b).zip(c) {
            for l in 0..LANES {
                lanes[l] += f(a[l], b[l], c[l]);
            }
        }
        let rest: T = a_rest.iter().zip(b_rest).zip(c_rest).map(|((&a, &b), &c)| f(a, b, c)).sum();
        (lanes.iter().copied().sum::<T>() + rest).as_f64()
    };
    // Runs are added in double precision, so the error hardly grows with the number of values.
    let of_part = |part: usize| -> f64 {
        let range = part * PART..a.len().min((part + 1) * PART);
        let [a, b, c] = [a, b, c].map(|values| &values[range.clone()]);
        a.chunks(RUN).zip(b.chunks(RUN)).zip(c.chunks(RUN)).map(of_run).sum()
    };
    sum_in_order(a.len().div_ceil(PART), a.len(), of_part)
}

/// The sum of `terms` terms, always added in the same order. If there is enough `work`, the terms
/// are computed on all threads of the caller's pool.
pub(crate) fn sum_in_order(terms: usize, work: usize, term: impl Fn(usize) -> f64 + Sync) -> f64 {
    #[cfg(feature = "rayon")]
    if work > 2 * PART {
        use rayon::prelude::*;
        let least = (terms * PART).div_ceil(work);
        return (0..terms)
            .into_par_iter()
            .with_min_len(least)
            .map(&term)
            // Collected first, because rayon's `sum` adds in an order that depends on the threads.
            .collect::<Vec<f64>>()
            .into_iter()
            .sum();
    }
    // Unused without the `rayon` feature.
    let _ = work;
    (0..terms).map(term).sum()
}

/// Σ a b, in double precision except within short runs.
pub(crate) fn dot<T: Scalar>(a: &[T], b: &[T]) -> f64 {
    sum([a, b, b], |a, b, _| a * b)
}

/// The first entry that is NaN or infinite.
pub(crate) fn first_non_finite<T: Scalar>(values: &[T]) -> Option<(usize, T)> {
    // Has no early exit, so that the loop is vectorized. There is nearly always nothing to find.
    let all_finite = |values: &[T]| values.iter().fold(true, |finite, v| finite & v.is_finite());
    #[cfg(feature = "rayon")]
    if values.len() > 2 * PART {
        use rayon::prelude::*;
        if values.par_chunks(PART).all(all_finite) {
            return None;
        }
    }
    if all_finite(values) {
        return None;
    }
    values.iter().copied().enumerate().find(|(_, v)| !v.is_finite())
}

/// The larger value, or NaN if either is NaN.
pub(super) fn larger<T: Scalar>(a: T, b: T) -> T {
    if a.is_nan() || b <= a { a } else { b }
}
