//! How products and other loops are split among the threads of the caller's pool.
//!
//! A split never changes a result: each part is computed as it would be without the others.

use std::ops::Range;

use super::panels::{Division, PanelRange};
#[cfg(feature = "rayon")]
use super::product::GROUP;
use super::vectorized;
#[cfg(feature = "rayon")]
use super::{grow, with_scratch};
use crate::scalar::Scalar;

/// Products with at least this many weights are split among the threads of the caller's pool.
pub(crate) const LARGE: usize = 1 << 20;
/// Products with at least this many multiply-adds are split by columns, unless this thread already
/// belongs to the pool: then the other threads have work of their own.
pub(super) const MANY: usize = 1 << 23;

/// The number of threads of the caller's pool.
pub(crate) fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Whether this thread does not belong to a pool of threads.
pub(super) fn is_free() -> bool {
    #[cfg(feature = "rayon")]
    return rayon::current_thread_index().is_none();
    #[cfg(not(feature = "rayon"))]
    false
}

/// The number of values that is worth a thread of its own.
pub(super) const PART: usize = 1 << 15;

/// Calls `f` for each chunk of `size` values, with the chunk's index. Many values are split among
/// the threads of the caller's pool, so the result for a chunk must not depend on other chunks.
pub(crate) fn each_chunk<E: Send>(
    values: &mut [E],
    size: usize,
    f: impl Fn(usize, &mut [E]) + Sync,
) {
    #[cfg(feature = "rayon")]
    if values.len() > 2 * PART {
        use rayon::prelude::*;
        let least = PART.div_ceil(size);
        return values
            .par_chunks_mut(size)
            .with_min_len(least)
            .enumerate()
            .for_each(|(chunk, values)| f(chunk, values));
    }
    values.chunks_mut(size).enumerate().for_each(|(chunk, values)| f(chunk, values));
}

/// Some lines of some planes of a value: all planes or all lines.
pub struct Band<'a, T> {
    pub planes: Range<usize>,
    pub lines: Range<usize>,
    values: BandValues<'a, T>,
}

enum BandValues<'a, T> {
    /// Whole planes of this size, which follow one another.
    Planes(&'a mut [T], usize),
    /// The lines of each plane.
    #[cfg(feature = "rayon")]
    Lines(Vec<&'a mut [T]>),
}

impl<T> Band<'_, T> {
    /// The band's lines of a plane.
    pub fn plane(&mut self, number: usize) -> &mut [T] {
        let number = number - self.planes.start;
        match &mut self.values {
            BandValues::Planes(values, plane) => &mut values[number * *plane..][..*plane],
            #[cfg(feature = "rayon")]
            BandValues::Lines(planes) => planes[number],
        }
    }
}

/// Calls `f` for bands of planes of `height` x `width` values. If `worth_it` is set, they are split
/// among the threads of the caller's pool: each band except the last has a multiple of `together`
/// lines, or whole planes if these are small or have few lines. What all bands have in common, such
/// as a transformed source, is then computed for each of them. The result for a value must not depend on others.
pub(super) fn share_planes<T: Scalar>(
    values: &mut [T],
    [height, width]: [usize; 2],
    together: usize,
    worth_it: bool,
    f: impl Fn(Band<'_, T>) + Sync,
) {
    let plane = height * width;
    let planes = values.len() / plane;
    #[cfg(feature = "rayon")]
    if worth_it {
        use rayon::prelude::*;
        /// Planes with fewer values for each thread are not split: too few would fill a vector.
        const FEWEST: usize = 192;
        let threads = threads();
        let some = height.div_ceil(threads).next_multiple_of(together);
        if plane / threads < FEWEST || some >= height {
            // Whole groups of columns.
            let some = planes.div_ceil(threads).next_multiple_of(GROUP);
            let bands = values.par_chunks_mut(some * plane).enumerate();
            return bands.for_each(|(number, values)| {
                let first = number * some;
                let planes = first..first + values.len() / plane;
                f(Band { planes, lines: 0..height, values: BandValues::Planes(values, plane) });
            });
        }
        {
            let mut bands: Vec<Vec<&mut [T]>> =
                (0..height).step_by(some).map(|_| Vec::with_capacity(planes)).collect();
            for plane in values.chunks_exact_mut(plane) {
                let lines = plane.chunks_mut(some * width);
                bands.iter_mut().zip(lines).for_each(|(band, lines)| band.push(lines));
            }
            return bands.into_par_iter().enumerate().for_each(|(number, values)| {
                let lines = number * some..height.min((number + 1) * some);
                f(Band { planes: 0..planes, lines, values: BandValues::Lines(values) });
            });
        }
    }
    // Unused without the `rayon` feature.
    let _ = (together, worth_it);
    let values = BandValues::Planes(values, plane);
    f(Band { planes: 0..planes, lines: 0..height, values });
}

/// Calls `f` for parts of the values. The parts can have any size.
pub(crate) fn each_part<T: Scalar>(values: &mut [T], f: impl Fn(&mut [T]) + Sync) {
    each_chunk(values, PART, |_, values| vectorized(|| f(values)));
}

/// Calls `f` for parts of the values, with the index of the part's first value and the same part of
/// the others.
pub(crate) fn zip_parts<T: Scalar>(
    values: &mut [T],
    others: &[T],
    f: impl Fn(usize, &mut [T], &[T]) + Sync,
) {
    each_chunk(values, PART, |part, values| {
        let others = &others[part * PART..][..values.len()];
        vectorized(|| f(part * PART, values, others));
    });
}

/// Computes a result of this many rows: all panels at once, or some for each thread if there are
/// many weights. Each thread then reads only its own part of the weights, once.
pub(super) fn by_rows<T: Scalar>(
    division: Division,
    rows: usize,
    weights: usize,
    out: &mut [T],
    product: impl Fn(PanelRange, &mut [T]) + Sync,
) {
    let panels = division.panels();
    let some = |first: usize, end: usize| PanelRange { division, first, end, rows };
    if out.is_empty() {
        return;
    }
    #[cfg(feature = "rayon")]
    if weights >= LARGE {
        use rayon::prelude::*;
        let each = panels.div_ceil(threads());
        let columns = out.len() / rows;
        if each < panels {
            let ranges =
                || (0..panels).step_by(each).map(|first| some(first, panels.min(first + each)));
            let compute = |mut memory: &mut [T]| {
                let mut parts = Vec::with_capacity(panels.div_ceil(each));
                for range in ranges() {
                    let (part, rest) =
                        std::mem::take(&mut memory).split_at_mut(range.height() * columns);
                    parts.push((range, part));
                    memory = rest;
                }
                parts.into_par_iter().for_each(|(range, part)| product(range, part));
            };
            if columns == 1 {
                return compute(out);
            }
            // Each part is a column-major matrix of its own rows, because rows of several columns
            // of `out` are not contiguous. The memory is taken out instead of borrowed: while this
            // thread waits, rayon may run another product on it.
            let mut memory = with_scratch::<T, _>(|scratch| std::mem::take(&mut scratch.parts));
            grow(&mut memory, out.len());
            compute(&mut memory[..out.len()]);
            let mut parts = &memory[..out.len()];
            for range in ranges() {
                let (part, rest) = parts.split_at(range.height() * columns);
                let of_part = range.first_row()..range.first_row() + range.height();
                for (part, out) in part.chunks_exact(range.height()).zip(out.chunks_exact_mut(rows))
                {
                    out[of_part.clone()].copy_from_slice(part);
                }
                parts = rest;
            }
            return with_scratch::<T, _>(|scratch| scratch.parts = memory);
        }
    }
    // Unused without the `rayon` feature.
    let _ = weights;
    product(some(0, panels), out);
}

/// Calls `f` for parts of the columns, with the index of a part's first column, and joins the results.
/// If `worth_it` is set, they are split among the threads of the caller's pool, and each part
/// except the last is a multiple of `together` columns. The result for a column must not depend on
/// others.
pub(super) fn join_parts<T: Scalar, R: Default + Send>(
    values: &mut [T],
    (height, together): (usize, usize),
    worth_it: bool,
    f: impl Fn(usize, &mut [T]) -> R + Sync,
    join: impl Fn(R, R) -> R + Sync + Send,
) -> R {
    #[cfg(feature = "rayon")]
    if worth_it {
        use rayon::prelude::*;
        let columns = values.len() / height;
        let some = columns.div_ceil(threads()).next_multiple_of(together);
        return values
            .par_chunks_mut(some * height)
            .enumerate()
            .map(|(part, values)| f(part * some, values))
            .reduce(R::default, join);
    }
    // Unused without the `rayon` feature.
    let _ = (height, together, worth_it, join);
    f(0, values)
}
