//! The one seam to matrix products.
//!
//! All matrices are slices in column-major order. A layer's products come with a scaling of its inputs, W diag(u) X and
//! diag(u) Wᵀ Y, because that is what share matrices are made of, and because it says what costs nothing: where u_i is 0,
//! the column i of W is not even read. After a ReLU that is about half of the work, at the zeros of an image more.
//!
//! A result depends on its own column alone, bit for bit: not on the columns beside it, how many they are or which thread
//! works on them.

// Inlined into the function that the processor's features were switched on for.
#![allow(clippy::inline_always)]

mod kernel;

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::scalar::Scalar;

pub use kernel::Lanes;

/// So many inputs are combined at once; the sums of such blocks are added up.
const DEPTH: usize = 256;
/// So many outputs of a scalar product are summed at once.
const LENGTH: usize = 2048;
/// So many weights stay in the cache while all right hand sides meet them.
const CACHED: usize = 32_768;
/// So many right hand sides are prepared at once.
const SLAB: usize = 66;
/// So many samples of one column each go together.
const TOGETHER: usize = 15;
/// At most so many columns share what is read of W.
const GROUP: usize = 6;
/// Below this density each column goes by itself, as columns of different patterns would fill up each other's zeros.
const SPARSE: f64 = 0.4;

/// What the products prepare of their right hand sides, kept by each thread.
#[derive(Debug, Default)]
pub struct Scratch<T> {
    groups: Vec<Group>,
    columns: Vec<usize>,
    offsets: Vec<usize>,
    /// How many of the offsets are in use.
    listed: usize,
    x: Vec<T>,
    panel: Vec<T>,
}

/// Columns that are combined together.
#[derive(Debug, Clone, Copy)]
struct Group {
    width: usize,
    /// Where each column begins in y.
    columns: [usize; GROUP],
    /// Where its entries begin in the scratch's offsets, how many they are, and how far its x is: in [`apply`] where its
    /// values begin, in [`apply_transposed`] how many of the entries are done.
    first: usize,
    count: usize,
    x: usize,
}

/// The matrix W, outputs x inputs.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub outputs: usize,
    pub inputs: usize,
}

/// `y = W diag(u) x` for any number of columns; `u` has one column for each sample, and each sample as many columns of `x`
/// as any other. Cost: outputs x inputs x columns multiply-adds, less what is zero.
pub(crate) fn apply<T: Scalar>(w: Matrix<'_, T>, u: Option<&[T]>, x: &[T], y: &mut [T]) {
    let per_sample = u.map_or(1, |u| x.len() / u.len().max(1));
    T::with_scratch(|scratch| Arch::new().dispatch(Apply { w, u, per_sample, x, y, scratch }));
}

/// `x = diag(u) Wᵀ y` for any number of columns; `u` as in [`apply`].
/// Cost: outputs x inputs x columns multiply-adds, less the rows where u is zero.
pub(crate) fn apply_transposed<T: Scalar>(w: Matrix<'_, T>, y: &[T], u: Option<&[T]>, x: &mut [T]) {
    let per_sample = u.map_or(1, |u| x.len() / u.len().max(1));
    T::with_scratch(|scratch| Arch::new().dispatch(ApplyTransposed { w, u, per_sample, x, y, scratch }));
}

struct Apply<'a, T> {
    w: Matrix<'a, T>,
    u: Option<&'a [T]>,
    per_sample: usize,
    x: &'a [T],
    y: &'a mut [T],
    scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for Apply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w: Matrix { values: w, outputs, inputs }, u, per_sample, x, y, scratch } = self;
        y.fill(T::zero());
        let columns = x.len() / inputs;
        let height = 8 * T::lanes::<S>();
        for slab in (0..columns).step_by(SLAB) {
            let slab = slab..columns.min(slab + SLAB);
            for first in (0..inputs).step_by(DEPTH) {
                let depth = first..inputs.min(first + DEPTH);
                scratch.prepare(x, u, per_sample, (inputs, outputs), slab.clone(), depth.clone());
                // Columns far apart in memory share few cache lines and no page: copied closely together they do.
                let apart = outputs * size_of::<T>() >= 4096;
                let Scratch { groups, offsets, listed, x, panel, .. } = &mut *scratch;
                if apart {
                    grow(panel, height * DEPTH);
                }
                if !apart || groups.len() < 3 {
                    for at in &mut offsets[..*listed] {
                        *at = (first + *at) * outputs;
                    }
                    for group in groups.iter() {
                        group.combine(simd, w, 0..outputs, offsets, x, y, 0);
                    }
                    continue;
                }
                for at in &mut offsets[..*listed] {
                    *at *= height;
                }
                for top in (0..outputs).step_by(height) {
                    let rows = top..outputs.min(top + height);
                    for (i, packed) in depth.clone().zip(panel.chunks_exact_mut(height)) {
                        packed[..rows.len()].copy_from_slice(&w[i * outputs + rows.start..i * outputs + rows.end]);
                    }
                    for group in groups.iter() {
                        group.combine(simd, panel, 0..rows.len(), offsets, x, y, top);
                    }
                }
            }
        }
    }
}

impl<T: Scalar> Scratch<T> {
    /// Lists, for the inputs in `depth`, what of the columns in `slab` is not zero: in `offsets` the input's place within
    /// the depth, in `x` the values of a group's columns side by side.
    #[inline(always)]
    fn prepare(
        &mut self,
        x: &[T],
        u: Option<&[T]>,
        per_sample: usize,
        (inputs, outputs): (usize, usize),
        slab: Range<usize>,
        depth: Range<usize>,
    ) {
        let Self { groups, columns, offsets, x: prepared, .. } = self;
        groups.clear();
        columns.clear();
        // Room for the most that there can be: memory does not depend on the values, and the loops below need not ask.
        groups.reserve(SLAB);
        columns.reserve(SLAB);
        grow(offsets, (SLAB + 1) * DEPTH);
        grow(prepared, (SLAB + GROUP) * DEPTH);
        let values = |c: usize| &x[c * inputs + depth.start..c * inputs + depth.end];
        let mut entries = 0;
        for c in slab {
            let nonzero = count_nonzero(values(c));
            if nonzero > 0 {
                entries += nonzero;
                columns.push(c);
            }
        }
        let density = entries as f64 / (columns.len() * depth.len()).max(1) as f64;
        // The columns of one sample have their zeros in common.
        let alone = per_sample == 1 && density < SPARSE;
        let (mut first, mut at) = (0, 0);
        let mut rest = &columns[..];
        while !rest.is_empty() {
            let width = if alone { 1 } else { [6, 4, 2, 1].into_iter().find(|&width| width <= rest.len()).unwrap_or(1) };
            let (group, others) = rest.split_at(width);
            rest = others;
            let mut starts = [0; GROUP];
            for (start, &c) in starts.iter_mut().zip(group) {
                *start = c * outputs;
            }
            let scale = u.map(|u| &u[group[0] / per_sample * inputs + depth.start..]);
            let one_sample = group[0] / per_sample == group[width - 1] / per_sample;
            let (offsets, x) = (&mut offsets[first..], &mut prepared[at..]);
            let count = match (width, scale) {
                (1, None) => list::<T, 1>([values(group[0])], None, offsets, x),
                (1, scale) => list::<T, 1>([values(group[0])], scale, offsets, x),
                (2, scale) if one_sample || scale.is_none() => {
                    list::<T, 2>([values(group[0]), values(group[1])], scale, offsets, x)
                }
                (4, scale) if one_sample || scale.is_none() => {
                    list::<T, 4>([values(group[0]), values(group[1]), values(group[2]), values(group[3])], scale, offsets, x)
                }
                (6, scale) if one_sample || scale.is_none() => {
                    let [a, b, c, d, e, f] = [group[0], group[1], group[2], group[3], group[4], group[5]].map(values);
                    list::<T, 6>([a, b, c, d, e, f], scale, offsets, x)
                }
                _ => {
                    // The columns of two samples, each with its own scale.
                    let mut count = 0;
                    for i in 0..depth.len() {
                        let mut any = false;
                        for (k, &c) in group.iter().enumerate() {
                            let u = u.map_or(T::one(), |u| u[c / per_sample * inputs + depth.start + i]);
                            x[count * width + k] = u * values(c)[i];
                            any |= x[count * width + k] != T::zero();
                        }
                        offsets[count] = i;
                        count += usize::from(any);
                    }
                    count
                }
            };
            groups.push(Group { width, columns: starts, first, count, x: at });
            (first, at) = (first + count, at + count * width);
        }
        self.listed = first;
    }
}

/// Makes a slice at least this long.
fn grow<E: Copy + Default>(values: &mut Vec<E>, size: usize) {
    if values.len() < size {
        values.resize(size, E::default());
    }
}

/// Lists where any of N columns is not zero, and the columns' values there side by side, times `scale`. Gives how often.
#[inline(always)]
fn list<T: Scalar, const N: usize>(columns: [&[T]; N], scale: Option<&[T]>, offsets: &mut [usize], x: &mut [T]) -> usize {
    let length = columns[0].len();
    let (x, _) = x.as_chunks_mut::<N>();
    let mut count = 0;
    for i in 0..length {
        let scale = scale.map_or(T::one(), |scale| scale[i]);
        let mut any = false;
        for c in 0..N {
            let v = columns[c][i] * scale;
            x[count][c] = v;
            any |= v != T::zero();
        }
        // Written in any case and counted where it holds: no branch to mispredict.
        offsets[count] = i;
        count += usize::from(any);
    }
    count
}

impl Group {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // one call of the kernel, with the scratch's parts
    fn combine<S: Simd, T: Scalar>(
        &self,
        simd: S,
        w: &[T],
        rows: Range<usize>,
        offsets: &[usize],
        x: &[T],
        y: &mut [T],
        top: usize,
    ) {
        macro_rules! of_width {
            ($($n:literal),*) => {
                match self.width {
                    $($n => {
                        let x = x[self.x..][..self.count * $n].as_chunks::<$n>().0;
                        let mut columns = [top; $n];
                        for c in 0..$n {
                            columns[c] += self.columns[c];
                        }
                        kernel::combine::<S, T, $n>(simd, w, rows, (&offsets[self.first..][..self.count], x), y, columns);
                    })*
                    _ => {}
                }
            };
        }
        of_width!(1, 2, 4, 6);
    }
}

struct ApplyTransposed<'a, T> {
    w: Matrix<'a, T>,
    u: Option<&'a [T]>,
    per_sample: usize,
    x: &'a mut [T],
    y: &'a [T],
    scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for ApplyTransposed<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w: Matrix { values: w, outputs, inputs }, u, per_sample, x, y, scratch } = self;
        x.fill(T::zero());
        let samples = y.len() / outputs / per_sample.max(1);
        let Scratch { groups, offsets: lists, .. } = scratch;
        groups.clear();
        groups.reserve(samples);
        grow(lists, (samples + 1) * inputs);
        let dense = u.is_none_or(|u| count_nonzero(u) as f64 >= SPARSE * u.len() as f64);
        if per_sample == 1 && dense {
            // Single columns of several samples are taken together: of a row that some do not need little is lost.
            lists[..inputs].iter_mut().enumerate().for_each(|(i, list)| *list = i);
            for first in (0..samples).step_by(TOGETHER) {
                let width = TOGETHER.min(samples - first);
                groups.push(Group { width, columns: [first; GROUP], first: 0, count: inputs, x: 0 });
            }
        } else {
            let mut first = 0;
            for sample in 0..samples {
                let mut count = 0;
                for i in 0..inputs {
                    lists[first + count] = i;
                    count += usize::from(u.is_none_or(|u| u[sample * inputs + i] != T::zero()));
                }
                groups.push(Group { width: per_sample, columns: [sample * per_sample; GROUP], first, count, x: 0 });
                first += count;
            }
        }
        for start in (0..outputs).step_by(LENGTH) {
            let length = start..outputs.min(start + LENGTH);
            let breadth = (CACHED / length.len()).max(16);
            for group in groups.iter_mut() {
                group.x = 0;
            }
            for end in (0..inputs).step_by(breadth).map(|first| inputs.min(first + breadth)) {
                for group in groups.iter_mut() {
                    let list = &lists[group.first + group.x..group.first + group.count];
                    let count = list.partition_point(|&i| i < end);
                    group.x += count;
                    let columns = group.columns[0]..group.columns[0] + group.width;
                    project(simd, (w, outputs, inputs), length.clone(), &list[..count], columns, y, x);
                }
            }
        }
        let Some(u) = u.filter(|_| per_sample > 0) else { return };
        for (x, u) in x.chunks_exact_mut(inputs * per_sample).zip(u.chunks_exact(inputs)) {
            for x in x.chunks_exact_mut(inputs) {
                for (x, &u) in x.iter_mut().zip(u) {
                    // Without the question an infinity would become NaN where nothing was asked for.
                    *x = if u == T::zero() { u } else { *x * u };
                }
            }
        }
    }
}

/// x_ic += w_i · y_c for the listed i and the columns c, over a part of the outputs.
#[inline(always)]
fn project<S: Simd, T: Scalar>(
    simd: S,
    (w, outputs, inputs): (&[T], usize, usize),
    length: Range<usize>,
    list: &[usize],
    columns: Range<usize>,
    y: &[T],
    x: &mut [T],
) {
    macro_rules! block {
        ($list:expr, $m:literal, $c:expr, $n:literal) => {
            let (mut of_w, mut of_y) = ([&[][..]; $m], [&[][..]; $n]);
            for i in 0..$m {
                of_w[i] = &w[$list[i] * outputs..][length.clone()];
            }
            for c in 0..$n {
                of_y[c] = &y[($c + c) * outputs..][length.clone()];
            }
            let dots = kernel::dots::<S, T, $m, $n>(simd, of_w, of_y);
            for i in 0..$m {
                for c in 0..$n {
                    x[($c + c) * inputs + $list[i]] += dots[i][c];
                }
            }
        };
    }
    macro_rules! rows {
        ($c:expr, $m:literal, $n:literal) => {
            let mut chunks = list.chunks_exact($m);
            for list in &mut chunks {
                block!(list, $m, $c, $n);
            }
            let mut rest = chunks.remainder().chunks_exact(2);
            for list in &mut rest {
                block!(list, 2, $c, $n);
            }
            for i in rest.remainder() {
                block!([*i], 1, $c, $n);
            }
        };
    }
    let mut c = columns.start;
    // Twenty sums and their operands fit into 32 registers, twelve into 16.
    if S::REGISTER_COUNT >= 32 {
        while c + 5 <= columns.end {
            rows!(c, 4, 5);
            c += 5;
        }
    }
    while c + 3 <= columns.end {
        rows!(c, 4, 3);
        c += 3;
    }
    while c + 2 <= columns.end {
        rows!(c, 4, 2);
        c += 2;
    }
    while c < columns.end {
        rows!(c, 8, 1);
        c += 1;
    }
}

/// `y += a x`.
pub(crate) fn add_scaled<T: Scalar>(a: T, x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Rows of a column-major matrix of `rows` x `columns`, one after another: the k-th is row `chosen(k)`, and there are as many
/// as `out` has room for.
pub(crate) fn copy_rows<T: Scalar>(
    values: &[T],
    rows: usize,
    columns: usize,
    chosen: impl Fn(usize) -> usize,
    out: &mut [T],
) {
    // A line of the cache is written before the next is begun.
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

/// Writes columns of `rows.len()` values to those rows of columns of `out`, zeros to the others.
pub(crate) fn spread<T: Scalar>(values: &[T], rows: &[usize], out: &mut [T]) {
    let columns = values.len().checked_div(rows.len()).unwrap_or(0);
    if columns == 0 {
        return out.fill(T::zero());
    }
    // Column by column: what is filled is still in the cache when it is written again.
    for (values, out) in values.chunks_exact(rows.len()).zip(out.chunks_exact_mut(out.len() / columns)) {
        out.fill(T::zero());
        for (&row, &v) in rows.iter().zip(values) {
            out[row] = v;
        }
    }
}

/// Lists the rows of a column-major matrix, as many as `list` is long, that are not all zero. Gives how many they are.
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
        let any = list[i];
        list[count] = i;
        count += any;
    }
    count
}

/// How many entries are not zero: in vectors, as without an exit it runs faster than a search.
#[inline(always)]
fn count_nonzero<T: Scalar>(values: &[T]) -> usize {
    values.iter().map(|v| usize::from(*v != T::zero())).sum()
}

/// The largest magnitude, NaN if any entry is not a number.
pub(crate) fn max_abs<T: Scalar>(values: &[T]) -> T {
    struct MaxAbs<'a, T>(&'a [T]);
    impl<T: Scalar> WithSimd for MaxAbs<'_, T> {
        type Output = (T, bool);

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> (T, bool) {
            const LANES: usize = 32;
            let (chunks, rest) = self.0.as_chunks::<LANES>();
            let (mut lanes, mut not_a_number) = ([T::zero(); LANES], false);
            for chunk in chunks {
                for l in 0..LANES {
                    let v = chunk[l].abs();
                    not_a_number |= v.is_nan();
                    lanes[l] = if v > lanes[l] { v } else { lanes[l] };
                }
            }
            let mut max = T::zero();
            for v in lanes.iter().chain(rest) {
                not_a_number |= v.is_nan();
                max = max.max(v.abs());
            }
            (max, not_a_number)
        }
    }
    let (max, not_a_number) = Arch::new().dispatch(MaxAbs(values));
    if not_a_number { T::nan() } else { max }
}

/// The first entry that is NaN or infinite.
pub(crate) fn first_non_finite<T: Scalar>(values: &[T]) -> Option<(usize, T)> {
    // Without an early exit the sweep runs in vector registers, and it nearly always finds nothing.
    if values.iter().fold(true, |finite, v| finite & v.is_finite()) {
        return None;
    }
    values.iter().copied().enumerate().find(|(_, v)| !v.is_finite())
}

/// Lends a thread's scratch.
pub(crate) fn lend<T, R>(scratch: &RefCell<Scratch<T>>, f: impl FnOnce(&mut Scratch<T>) -> R) -> R
where
    T: Default,
{
    match scratch.try_borrow_mut() {
        Ok(mut scratch) => f(&mut scratch),
        Err(_) => f(&mut Scratch::default()),
    }
}
