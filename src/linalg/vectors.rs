//! Small operations on slices.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use super::threads::{PART, zip_parts};
use super::vectorized;
use crate::scalar::Scalar;

/// `y += a x`.
pub(crate) fn add_scaled<T: Scalar>(a: T, x: &[T], y: &mut [T]) {
    zip_parts(y, x, |_, y, x| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    });
}

/// `y = a x`.
pub(crate) fn scaled<T: Scalar>(a: T, x: &[T], y: &mut [T]) {
    zip_parts(y, x, |_, y, x| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a * x;
        }
    });
}

/// `y = x`.
pub(crate) fn copy<T: Scalar>(x: &[T], y: &mut [T]) {
    zip_parts(y, x, |_, y, x| y.copy_from_slice(x));
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
    // Counted in 32 bits, so that a vector has as many counts as values of `f32`.
    const MOST: usize = 1 << 20;
    vectorized(|| {
        values
            .chunks(MOST)
            .map(|values| values.iter().map(|v| u32::from(*v != T::zero())).sum::<u32>() as usize)
            .sum()
    })
}

/// Lists the indices at which any of some columns is not zero, and returns their number.
#[inline(always)]
pub(super) fn list_nonzero<T: Scalar>(columns: &[&[T]], list: &mut [usize]) -> usize {
    /// The number of values that are compared at once.
    const BITS: usize = 32;
    let length = columns[0].len();
    let mut count = 0;
    for first in (0..length).step_by(BITS) {
        let mut found = 0_u32;
        for column in columns {
            if let Some(values) = column[first..].first_chunk::<BITS>() {
                for (bit, v) in values.iter().enumerate() {
                    found |= u32::from(*v != T::zero()) << bit;
                }
            } else {
                for (bit, v) in column[first..].iter().enumerate() {
                    found |= u32::from(*v != T::zero()) << bit;
                }
            }
        }
        while found != 0 {
            list[count] = first + found.trailing_zeros() as usize;
            count += 1;
            found &= found - 1;
        }
    }
    count
}

/// Multiplies each sample's columns of `rows` values by the sample's column of `by`. Where that is
/// 0, the product is 0, whatever the value.
pub(super) fn scale_by<T: Scalar>(values: &mut [T], by: &[T], rows: usize) {
    let of_sample = values.len() / (by.len() / rows).max(1);
    for (values, by) in values.chunks_exact_mut(of_sample.max(1)).zip(by.chunks_exact(rows)) {
        for values in values.chunks_exact_mut(rows) {
            vectorized(|| {
                for (v, &by) in values.iter_mut().zip(by) {
                    *v = if by == T::zero() { by } else { *v * by };
                }
            });
        }
    }
}

/// The largest magnitude, or NaN if any entry is NaN.
pub(crate) fn max_abs<T: Scalar>(values: &[T]) -> T {
    let of_part = |values: &[T]| vectorized(|| largest(values));
    #[cfg(feature = "rayon")]
    if values.len() > 2 * PART {
        use rayon::prelude::*;
        return values.par_chunks(PART).map(of_part).reduce(T::zero, larger);
    }
    of_part(values)
}

/// Σ f(a, b, c), in double precision except within short runs.
pub(crate) fn sum<T: Scalar>([a, b, c]: [&[T]; 3], f: impl Fn(T, T, T) -> T + Sync) -> f64 {
    const RUN: usize = 512;
    // Runs are added in double precision, so the error hardly grows with the number of values.
    let of_part = |part: usize| -> f64 {
        let range = part * PART..a.len().min((part + 1) * PART);
        let [a, b, c] = [a, b, c].map(|values| &values[range.clone()]);
        vectorized(|| {
            let mut sum = 0.0;
            for ((a, b), c) in a.chunks(RUN).zip(b.chunks(RUN)).zip(c.chunks(RUN)) {
                sum += sum_of_run([a, b, c], &f);
            }
            sum
        })
    };
    sum_in_order(a.len().div_ceil(PART), a.len(), of_part)
}

#[inline(always)]
fn sum_of_run<T: Scalar>([a, b, c]: [&[T]; 3], f: impl Fn(T, T, T) -> T) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [T::zero(); LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for l in 0..LANES {
            lanes[l] += f(a[l], b[l], c[l]);
        }
    }
    let rest: T = a_rest.iter().zip(b_rest).zip(c_rest).map(|((&a, &b), &c)| f(a, b, c)).sum();
    (lanes.iter().copied().sum::<T>() + rest).as_f64()
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
    let all_finite = |values: &[T]| vectorized(|| are_finite(values));
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

#[inline(always)]
fn largest<T: Scalar>(values: &[T]) -> T {
    const LANES: usize = 32;
    let (chunks, rest) = values.as_chunks::<LANES>();
    // Separate maxima, so that the loop is vectorized. Comparisons with NaN are false, so NaN needs
    // a sum that it spoils.
    let (mut lanes, mut spoiled) = ([T::zero(); LANES], [T::zero(); LANES]);
    for chunk in chunks {
        for l in 0..LANES {
            let v = chunk[l].abs();
            spoiled[l] += v * T::zero();
            lanes[l] = if v > lanes[l] { v } else { lanes[l] };
        }
    }
    // Halved again and again, so that the maxima of a half are taken side by side.
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = if lanes[l + half] > lanes[l] { lanes[l + half] } else { lanes[l] };
            spoiled[l] += spoiled[l + half];
        }
        half /= 2;
    }
    let (mut max, mut is_spoiled) = (lanes[0], spoiled[0].is_nan());
    for v in rest {
        is_spoiled |= v.is_nan();
        max = max.max(v.abs());
    }
    // Infinity spoils the sum as well, but is the largest magnitude.
    if is_spoiled && values.iter().any(|v| v.is_nan()) { T::nan() } else { max }
}

#[inline(always)]
fn are_finite<T: Scalar>(values: &[T]) -> bool {
    // Has no early exit, so that the loop is vectorized. There is nearly always nothing to find.
    // Infinity and NaN times 0 are NaN, and a sum with NaN is NaN.
    const LANES: usize = 32;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [T::zero(); LANES];
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] += chunk[l] * T::zero();
        }
    }
    lanes.iter().all(|v| *v == T::zero()) && rest.iter().all(|v| v.is_finite())
}

/// The larger value, or NaN if either is NaN.
pub(super) fn larger<T: Scalar>(a: T, b: T) -> T {
    if a.is_nan() || b <= a { a } else { b }
}
