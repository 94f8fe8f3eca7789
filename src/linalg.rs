//! The single interface to matrix products.
//!
//! All matrices are slices in column-major order. A layer's products include a scaling of its
//! inputs: W diag(u) X and diag(u) Wᵀ Y. Share matrices have this form, and the scaling saves work:
//! where u_i is 0, column i of W is never read. This saves about half of the work after a ReLU, and
//! more for images with many zeros.
//!
//! Each column of a result is bit-for-bit independent of the other columns, of their number, and of
//! the thread that computes it.

mod correlate;
mod dots;
mod kernel;
mod panels;
mod processor;
mod product;
mod vectors;
mod winograd;

use std::ops::Range;
use std::sync::OnceLock;

use crate::scalar::Scalar;
use correlate::Correlate;
use dots::Project;
use panels::{Division, Loose, Order, Packed, Panels};
pub(crate) use processor::vectorized;
use processor::{lanes, processor};
use product::{ColumnGroup, Factor, Multiply, Right, Target};
use winograd::{PatchTransform, SumPatches};

pub(crate) use correlate::{Correlation, Direction, Geometry, Planes, reach};
pub(crate) use vectors::{
    add_scaled, copy, copy_part, copy_rows, dot, first_non_finite, list_nonzero_rows, max_abs,
    scaled, sum, sum_in_order,
};
use vectors::{count_nonzero, larger};

/// Products with at least this many weights are split among the threads of the caller's pool.
pub(crate) const LARGE: usize = 1 << 20;
/// Products with at least this many multiply-adds are split by columns, unless this thread already
/// belongs to the pool: then the other threads have work of their own.
const MANY: usize = 1 << 23;

/// Whether this thread does not belong to a pool of threads.
fn is_free() -> bool {
    #[cfg(feature = "rayon")]
    return rayon::current_thread_index().is_none();
    #[cfg(not(feature = "rayon"))]
    false
}

/// One of the loops written for SIMD vectors.
pub struct Kernel<'a, 'b, T: Scalar>(Which<'a, 'b, T>);

enum Which<'a, 'b, T: Scalar> {
    Multiply(Multiply<'a, T>),
    Project(Project<'a, T>),
    Correlate(Correlate<'a, T>),
    Transform(PatchTransform<'a, T>),
    SumPatches(SumPatches<'a, 'b, T>),
}

/// Runs a kernel with the processor's widest vectors.
pub(crate) fn dispatch<T: Scalar>(kernel: Kernel<'_, '_, T>) {
    let processor = processor();
    match kernel.0 {
        Which::Multiply(kernel) => processor.dispatch(kernel),
        Which::Project(kernel) => processor.dispatch(kernel),
        Which::Correlate(kernel) => processor.dispatch(kernel),
        Which::Transform(kernel) => processor.dispatch(kernel),
        Which::SumPatches(kernel) => processor.dispatch(kernel),
    }
}

/// The memory in which a thread prepares the right-hand sides of products.
#[derive(Debug, Default)]
pub struct Scratch<T> {
    groups: Vec<ColumnGroup>,
    columns: Vec<usize>,
    offsets: Vec<usize>,
    x: Vec<T>,
    panel: Vec<T>,
    /// Parts of a result, before they are copied into it.
    parts: Vec<T>,
    /// The columns that are multiplied.
    chosen: Vec<usize>,
    /// The source of a correlation, laid out for it.
    planes: Vec<T>,
    /// Memory for [`borrow`], the last of it first.
    lent: Vec<Vec<T>>,
}

/// A dense matrix W in column-major order, and its packed forms.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub outputs: usize,
    pub inputs: usize,
    pub packings: &'a Packings<T>,
}

/// The packed forms of a matrix W, for the products W x and Wᵀ y.
#[derive(Debug)]
pub(crate) struct Packings<T> {
    forward: OnceLock<Panels<T>>,
    transposed: OnceLock<Panels<T>>,
}

impl<T> Default for Packings<T> {
    fn default() -> Self {
        Self { forward: OnceLock::new(), transposed: OnceLock::new() }
    }
}

impl<'a, T: Scalar> Matrix<'a, T> {
    /// Packs the matrix for the product W x, if it is not packed yet. Cost: one copy.
    pub fn pack(self) {
        self.packings.forward.get_or_init(|| Panels::new(self.loose()));
    }

    /// Packs the matrix for the product Wᵀ y, if it is not packed yet. Cost: one copy.
    pub fn pack_transposed(self) {
        self.packings.transposed.get_or_init(|| Panels::new(self.loose_transposed()));
    }

    fn loose(self) -> Loose<'a, T> {
        let Self { values, outputs: rows, inputs: inner, .. } = self;
        Loose { values, order: Order::RowsTogether(rows), rows, inner }
    }

    fn loose_transposed(self) -> Loose<'a, T> {
        let Self { values, outputs: inner, inputs: rows, .. } = self;
        Loose { values, order: Order::InnerTogether(inner), rows, inner }
    }

    /// The factor of the product W x.
    fn forward(self) -> Factor<'a, T> {
        match self.packings.forward.get() {
            Some(panels) => Factor::Packed(panels.view()),
            None => Factor::Loose(self.loose()),
        }
    }

    /// The factor of the product Wᵀ y.
    fn transposed(self) -> Factor<'a, T> {
        match self.packings.transposed.get() {
            Some(panels) => Factor::Packed(panels.view()),
            None => Factor::Loose(self.loose_transposed()),
        }
    }
}

/// `y = W diag(u) x` for any number of columns. `u` has one column per sample, and each sample has
/// the same number of columns in `x`. Cost: outputs x inputs x columns multiply-adds, except where
/// x or u is zero.
pub(crate) fn apply<T: Scalar>(w: Matrix<'_, T>, u: Option<&[T]>, x: &[T], y: &mut [T]) {
    multiply(w.forward(), u, x, y);
}

/// `x = diag(u) Wᵀ y` for any number of columns, with `u` as in [`apply`]. Cost: outputs x inputs x
/// columns multiply-adds, except where y is zero, or only for the rows where u is not zero if these
/// are few.
pub(crate) fn apply_transposed<T: Scalar>(w: Matrix<'_, T>, y: &[T], u: Option<&[T]>, x: &mut [T]) {
    /// Below this density of a sample's u, only the rows where it is not zero are computed.
    const SPARSE: f64 = 0.3;
    /// A large matrix that is not packed is read only once for this many columns.
    const FEW: usize = 12;
    let Matrix { inputs, outputs, .. } = w;
    let columns = x.len() / inputs;
    let is_read_once =
        w.values.len() >= LARGE && columns <= FEW && matches!(w.transposed(), Factor::Loose(_));
    let Some(u) = u else {
        if is_read_once {
            project(w, y, None, x);
        } else {
            multiply(w.transposed(), None, y, x);
        }
        return;
    };
    let samples = u.len() / inputs;
    if samples == 0 || columns == 0 {
        return;
    }
    let per_sample = columns / samples;
    // Decided for each sample by itself, so that its result does not depend on the others.
    let is_sparse = |u: &[T]| {
        is_read_once || per_sample > 0 && (count_nonzero(u) as f64) < SPARSE * inputs as f64
    };
    let mut chosen = with_scratch::<T, _>(|scratch| std::mem::take(&mut scratch.chosen));
    chosen.clear();
    chosen.reserve(columns);
    for (sample, u) in u.chunks_exact(inputs).enumerate() {
        let of_sample = sample * per_sample..(sample + 1) * per_sample;
        if is_sparse(u) {
            let x = &mut x[of_sample.start * inputs..of_sample.end * inputs];
            let y = &y[of_sample.start * outputs..of_sample.end * outputs];
            project(w, y, Some(u), x);
        } else {
            chosen.extend(of_sample);
        }
    }
    if chosen.len() == columns {
        multiply(w.transposed(), None, y, x);
    } else if !chosen.is_empty() {
        multiply_columns(w.transposed(), (None, 1, y), Some(&chosen), x);
    }
    with_scratch::<T, _>(|scratch| scratch.chosen = chosen);
    vectors::scale_by(x, u, inputs);
}

/// Writes the rows of Wᵀ y, or only those where u is not zero. The other rows keep their values.
fn project<T: Scalar>(w: Matrix<'_, T>, y: &[T], u: Option<&[T]>, x: &mut [T]) {
    let outputs = w.outputs;
    by_rows(Division::of::<T>(w.inputs), w.inputs, w.values.len(), x, |panels, x| {
        let rows = panels.first_row()..panels.first_row() + panels.height();
        with_scratch::<T, _>(|scratch| {
            scratch.make_room(w.inputs.max(w.outputs));
            grow(&mut scratch.offsets, rows.len());
            let list = &mut scratch.offsets[..rows.len()];
            let count = if let Some(u) = u {
                vectorized(|| vectors::list_nonzero(&[&u[rows.clone()]], list))
            } else {
                list.iter_mut().enumerate().for_each(|(row, at)| *at = row);
                rows.len()
            };
            let w = &w.values[rows.start * outputs..rows.end * outputs];
            let listed = &scratch.offsets[..count];
            run(Kernel(Which::Project(Project { w, outputs, listed, y, x })));
        });
    });
}

/// `y = M diag(u) x`.
fn multiply<T: Scalar>(m: Factor<'_, T>, u: Option<&[T]>, x: &[T], y: &mut [T]) {
    let (rows, inner) = (m.rows(), m.inner());
    let columns = x.len() / inner;
    let one_sample = u.is_none_or(|u| u.len() == inner);
    if one_sample && rows * inner < LARGE && rows * inner * columns >= MANY && is_free() {
        // Each part has whole groups of columns.
        return share_out(y, rows, 6, true, |first, y| {
            let x = &x[first * inner..][..y.len() / rows * inner];
            multiply_columns(m, (u, usize::MAX, x), None, y);
        });
    }
    let per_sample = u.map_or(1, |u| x.len() / u.len().max(1));
    multiply_columns(m, (u, per_sample, x), None, y);
}

/// `y = M diag(u) x` for all columns or some of them. The others do not change.
fn multiply_columns<T: Scalar>(
    m: Factor<'_, T>,
    (u, per_sample, x): (Option<&[T]>, usize, &[T]),
    columns: Option<&[usize]>,
    y: &mut [T],
) {
    let (rows, inner) = (m.rows(), m.inner());
    by_rows(Division::of::<T>(rows), rows, rows * inner, y, |panels, y| {
        with_scratch::<T, _>(|scratch| {
            let right = Right { u, per_sample, x, inner, has_zeros: true };
            let y = Target { values: y, stride: panels.height(), first: 0 };
            run(Kernel(Which::Multiply(Multiply { m, panels, right, columns, y, scratch })));
        });
    });
}

/// `y = Mᵀ x` for any number of columns, where M has columns of `inner` values. Cost: that of
/// [`apply`] and of packing M.
pub(crate) fn multiply_by_transposed<T: Scalar>(m: &[T], inner: usize, x: &[T], y: &mut [T]) {
    let rows = m.len() / inner;
    let m = Loose { values: m, order: Order::InnerTogether(inner), rows, inner };
    multiply(Factor::Loose(m), None, x, y);
}

/// `y = M x` for any number of columns, where M has a row of `inner` values for each of the listed
/// `rows` of y. The other rows of y become zero. Returns the largest magnitude, or NaN if any entry
/// is NaN. Cost: that of [`apply`] and of packing M.
pub(crate) fn apply_to_rows<T: Scalar>(
    m: &[T],
    inner: usize,
    x: &[T],
    listed: &[usize],
    y: &mut [T],
) -> T {
    /// The number of columns multiplied at a time, so that they are still in the cache when they
    /// are copied into y.
    const COLUMNS: usize = 24;
    /// Results with at least this many values are written by several threads.
    const WIDE: usize = 1 << 18;
    // The number of rows of y, including those that are not listed.
    let height = y.len() / (x.len() / inner).max(1);
    let rows = listed.len();
    if rows == 0 {
        y.fill(T::zero());
        return T::zero();
    }
    // The memory does not depend on the number of listed rows, which can differ between samples.
    borrow(panels::with_room::<T>(Packed::<T>::size(height, inner)), |memory| {
        let m = Loose { values: m, order: Order::InnerTogether(inner), rows, inner };
        let m = Factor::Packed(Packed::new(m, memory));
        let of_columns = |first: usize, y: &mut [T]| {
            borrow(height * COLUMNS, |product| {
                let mut max = T::zero();
                for (part, y) in y.chunks_mut(height * COLUMNS).enumerate() {
                    let columns = y.len() / height;
                    let x = &x[(first + part * COLUMNS) * inner..][..columns * inner];
                    let of_part = if rows == height {
                        // All rows are listed, so the product is written to y directly.
                        multiply_columns(m, (None, 1, x), None, y);
                        max_abs(y)
                    } else {
                        let values = &mut product[..rows * columns];
                        multiply_columns(m, (None, 1, x), None, values);
                        vectors::spread(values, listed, y);
                        max_abs(values)
                    };
                    max = larger(max, of_part);
                }
                max
            })
        };
        let worth_it = (rows * x.len() >= MANY || y.len() >= WIDE) && is_free();
        largest_of_parts(y, (height, COLUMNS), worth_it, of_columns)
    })
}

/// The number of values that is worth a thread of its own.
const PART: usize = 1 << 15;

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

/// Calls `f` for parts of the values, with the index of the part's first item. An item is `unit`
/// values. If `worth_it` is set, the items are split among the threads of the caller's pool, and
/// each part except the last is a multiple of `together` items. The result for an item must not
/// depend on other items.
fn share_out<T: Scalar>(
    values: &mut [T],
    unit: usize,
    together: usize,
    worth_it: bool,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    #[cfg(feature = "rayon")]
    if worth_it {
        use rayon::prelude::*;
        let things = values.len() / unit;
        // Items per thread.
        let some = things.div_ceil(rayon::current_num_threads()).next_multiple_of(together);
        return values
            .par_chunks_mut(some * unit)
            .enumerate()
            .for_each(|(part, values)| f(part * some, values));
    }
    // Unused without the `rayon` feature.
    let _ = (unit, together, worth_it);
    f(0, values);
}

/// Some lines of some planes of a value: all planes or all lines.
pub struct Band<'a, T> {
    planes: Range<usize>,
    lines: Range<usize>,
    values: BandValues<'a, T>,
}

enum BandValues<'a, T> {
    /// Whole planes of this size, which follow one another.
    Planes(&'a mut [T], usize),
    /// The lines of each plane.
    Lines(Vec<&'a mut [T]>),
}

impl<T> Band<'_, T> {
    /// The band's lines of a plane.
    fn plane(&mut self, number: usize) -> &mut [T] {
        let number = number - self.planes.start;
        match &mut self.values {
            BandValues::Planes(values, plane) => &mut values[number * *plane..][..*plane],
            BandValues::Lines(planes) => planes[number],
        }
    }
}

/// Calls `f` for bands of planes of `height` x `width` values. If `worth_it` is set, they are split
/// among the threads of the caller's pool: each band except the last has a multiple of `together`
/// lines, or whole planes if these are small. The result for a value must not depend on others.
fn share_planes<T: Scalar>(
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
        let threads = rayon::current_num_threads();
        let some = height.div_ceil(threads).next_multiple_of(together);
        if plane / threads < FEWEST {
            // Whole groups of columns.
            let some = planes.div_ceil(threads).next_multiple_of(6);
            let bands = values.par_chunks_mut(some * plane).enumerate();
            return bands.for_each(|(number, values)| {
                let first = number * some;
                let planes = first..first + values.len() / plane;
                f(Band { planes, lines: 0..height, values: BandValues::Planes(values, plane) });
            });
        }
        if some < height {
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

/// Some panels of a matrix.
#[derive(Debug, Clone, Copy)]
struct PanelRange {
    division: Division,
    first: usize,
    end: usize,
    /// The number of rows of the whole matrix.
    rows: usize,
}

impl PanelRange {
    /// All panels of a matrix of this many rows.
    fn all<T: Scalar>(rows: usize) -> Self {
        let division = Division::of::<T>(rows);
        Self { division, first: 0, end: division.panels(), rows }
    }

    fn first_row(self) -> usize {
        self.division.rows(self.first).start
    }

    /// The number of rows, without those that fill up the last vector.
    fn height(self) -> usize {
        self.rows.min(self.division.rows(self.end - 1).end) - self.first_row()
    }
}

/// Computes a result of this many rows: all panels at once, or some for each thread if there are
/// many weights. Each thread then reads only its own part of the weights, once.
fn by_rows<T: Scalar>(
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
        let each = panels.div_ceil(rayon::current_num_threads());
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

/// The largest of the results of `f` for parts of the columns, as [`share_out`] shares them.
fn largest_of_parts<T: Scalar>(
    values: &mut [T],
    (height, together): (usize, usize),
    worth_it: bool,
    f: impl Fn(usize, &mut [T]) -> T + Sync,
) -> T {
    #[cfg(feature = "rayon")]
    if worth_it {
        use rayon::prelude::*;
        let columns = values.len() / height;
        let some = columns.div_ceil(rayon::current_num_threads()).next_multiple_of(together);
        return values
            .par_chunks_mut(some * height)
            .enumerate()
            .map(|(part, values)| f(part * some, values))
            .reduce(T::zero, larger);
    }
    let _ = (height, together, worth_it);
    f(0, values)
}

/// Makes a vector at least this long.
fn grow<E: Copy + Default>(values: &mut Vec<E>, size: usize) {
    if values.len() < size {
        values.resize(size, E::default());
    }
}

/// Lends this much memory that the thread keeps for the next call, with the contents left over from
/// its last use. A call inside `f` gets memory of its own.
pub(crate) fn borrow<T: Scalar, R>(size: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let mut memory = with_scratch::<T, _>(|scratch| scratch.lent.pop()).unwrap_or_default();
    grow(&mut memory, size);
    let result = f(&mut memory[..size]);
    with_scratch::<T, _>(|scratch| scratch.lent.push(memory));
    result
}

/// Lends the current thread's scratch memory to a function.
fn with_scratch<T: Scalar, R>(f: impl FnOnce(&mut Scratch<T>) -> R) -> R {
    T::compiled().scratch.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => f(&mut scratch),
        // The scratch is already lent to a product further up the call stack.
        Err(_) => f(&mut Scratch::default()),
    })
}

/// Runs a kernel. The call is not generic, so the kernels are compiled once, as part of this crate,
/// and not again in every crate that uses it.
fn run<T: Scalar>(kernel: Kernel<'_, '_, T>) {
    (T::compiled().run)(kernel);
}
