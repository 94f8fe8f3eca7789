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
mod kernel;
mod product;
mod transposed;
mod vectors;
mod winograd;

use std::ops::Range;

use pulp::Arch;

use crate::scalar::Scalar;
use correlate::Correlate;
use product::Apply;
use transposed::ApplyTransposed;
use vectors::MaxAbs;
use winograd::{Multiply, PatchTransform};

pub(crate) use correlate::{Correlation, Direction, Geometry, Planes, reach};
pub(crate) use vectors::{
    add_scaled, copy, copy_part, copy_rows, dot, first_non_finite, list_nonzero_rows, max_abs,
    scaled, sum, sum_in_order,
};
use vectors::{count_nonzero, larger};

/// Products with at least this many weights are split among the threads of the caller's pool.
pub(crate) const LARGE: usize = 1 << 20;
/// The largest number of columns that share each read of W.
const GROUP: usize = 6;

/// One of the loops written for SIMD vectors.
pub struct Kernel<'a, T: Scalar>(Which<'a, T>);

enum Which<'a, T: Scalar> {
    Apply(Apply<'a, T>),
    ApplyTransposed(ApplyTransposed<'a, T>),
    Correlate(Correlate<'a, T>),
    Transform(PatchTransform<'a, T>),
    Multiply(Multiply<'a, T>),
    MaxAbs(MaxAbs<'a, T>),
}

/// Runs a kernel with the processor's widest vectors.
pub(crate) fn dispatch<T: Scalar>(kernel: Kernel<'_, T>) {
    let processor = Arch::new();
    match kernel.0 {
        Which::Apply(kernel) => processor.dispatch(kernel),
        Which::ApplyTransposed(kernel) => processor.dispatch(kernel),
        Which::Correlate(kernel) => processor.dispatch(kernel),
        Which::Transform(kernel) => processor.dispatch(kernel),
        Which::Multiply(kernel) => processor.dispatch(kernel),
        Which::MaxAbs(kernel) => processor.dispatch(kernel),
    }
}

/// The memory in which a thread prepares the right-hand sides of products.
#[derive(Debug, Default)]
pub struct Scratch<T> {
    groups: Vec<ColumnGroup>,
    columns: Vec<usize>,
    offsets: Vec<usize>,
    /// The number of offsets in use.
    listed: usize,
    x: Vec<T>,
    panel: Vec<T>,
    /// Parts of a result, before they are copied into it.
    parts: Vec<T>,
    /// The source of a correlation, laid out for it.
    planes: Vec<T>,
    /// Memory for [`borrow`], the last of it first.
    lent: Vec<Vec<T>>,
}

/// Columns that are multiplied together.
#[derive(Debug, Clone, Copy)]
struct ColumnGroup {
    width: usize,
    /// Where each column begins in y.
    columns: [usize; GROUP],
    /// Where the group's entries begin in the scratch's offsets.
    first: usize,
    /// The number of entries.
    count: usize,
    /// In [`apply`], where the group's values begin in the scratch's x. In [`apply_transposed`],
    /// how many of the entries are done.
    x: usize,
}

/// Some rows and columns of a matrix W.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    values: &'a [T],
    /// The distance between the starts of adjacent columns.
    stride: usize,
    outputs: usize,
    inputs: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// The whole matrix, outputs x inputs.
    pub fn new(values: &'a [T], outputs: usize, inputs: usize) -> Self {
        Self { values, stride: outputs, outputs, inputs }
    }
}

/// `y = W diag(u) x` for any number of columns. `u` has one column per sample, and each sample has
/// the same number of columns in `x`. Cost: outputs x inputs x columns multiply-adds, except where
/// x or u is zero.
pub(crate) fn apply<T: Scalar>(w: Matrix<'_, T>, u: Option<&[T]>, x: &[T], y: &mut [T]) {
    let per_sample = u.map_or(1, |u| x.len() / u.len().max(1));
    by_rows(w.outputs, w.values.len(), y, |rows, y| {
        let w = Matrix { values: &w.values[rows.start..], outputs: rows.len(), ..w };
        with_scratch::<T, _>(|scratch| {
            run(Kernel(Which::Apply(Apply { w, u, per_sample, x, y, scratch })));
        });
    });
}

/// `x = diag(u) Wᵀ y` for any number of columns, with `u` as in [`apply`]. Cost: outputs x inputs x
/// columns multiply-adds, except for the rows where u is zero.
pub(crate) fn apply_transposed<T: Scalar>(w: Matrix<'_, T>, y: &[T], u: Option<&[T]>, x: &mut [T]) {
    let per_sample = u.map_or(1, |u| x.len() / u.len().max(1));
    by_rows(w.inputs, w.values.len(), x, |rows, x| {
        let u = u.map(|values| Columns { values, height: w.inputs, first: rows.start });
        let w = Matrix {
            values: &w.values[rows.start * w.stride..rows.end * w.stride],
            inputs: rows.len(),
            ..w
        };
        with_scratch::<T, _>(|scratch| {
            run(Kernel(Which::ApplyTransposed(ApplyTransposed {
                w,
                u,
                per_sample,
                x,
                y,
                scratch,
            })));
        });
    });
}

/// `y = W x` for any number of columns, where W has one row for each of the listed `rows` of y. The
/// other rows of y become zero. Returns the largest magnitude, or NaN if any entry is NaN. Cost:
/// that of [`apply`], and y is written once.
pub(crate) fn apply_to_rows<T: Scalar>(
    w: Matrix<'_, T>,
    x: &[T],
    rows: &[usize],
    y: &mut [T],
) -> T {
    // The number of columns multiplied at a time, so that they are still in the cache when they are
    // copied into y.
    const COLUMNS: usize = 24;
    // The number of rows of y, including those that are not listed.
    let height = y.len() / (x.len() / w.inputs).max(1);
    let mut product = with_scratch::<T, _>(|scratch| std::mem::take(&mut scratch.parts));
    grow(&mut product, height * COLUMNS);
    let of_columns = |(x, y): (&[T], &mut [T])| {
        // All rows are listed, so the product can be written to y directly.
        if w.outputs == height {
            apply(w, None, x, y);
            return max_abs(y);
        }
        let values = &mut product[..w.outputs * (x.len() / w.inputs)];
        apply(w, None, x, values);
        vectors::spread(values, rows, y);
        max_abs(values)
    };
    let parts = x.chunks(w.inputs * COLUMNS).zip(y.chunks_mut(height * COLUMNS));
    let max = parts.map(of_columns).fold(T::zero(), larger);
    with_scratch::<T, _>(|scratch| scratch.parts = product);
    max
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

/// Calls `f` for parts of the values. The parts can have any size.
pub(crate) fn each_part<T: Scalar>(values: &mut [T], f: impl Fn(&mut [T]) + Sync) {
    each_chunk(values, PART, |_, values| f(values));
}

/// Calls `f` for parts of the values, with the index of the part's first value and the same part of
/// the others.
pub(crate) fn zip_parts<T: Scalar>(
    values: &mut [T],
    others: &[T],
    f: impl Fn(usize, &mut [T], &[T]) + Sync,
) {
    each_chunk(values, PART, |part, values| {
        f(part * PART, values, &others[part * PART..][..values.len()]);
    });
}

/// Some rows of a column-major matrix.
#[derive(Clone, Copy)]
struct Columns<'a, T> {
    values: &'a [T],
    height: usize,
    first: usize,
}

impl<'a, T> Columns<'a, T> {
    /// This many rows of a column.
    fn column(self, column: usize, rows: usize) -> &'a [T] {
        &self.values[column * self.height + self.first..][..rows]
    }
}

/// Computes a result of this height, all rows at once, or in one block of rows per thread if there
/// are many weights. Each thread then reads only its own part of the weights, once.
fn by_rows<T: Scalar>(
    height: usize,
    weights: usize,
    out: &mut [T],
    product: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    #[cfg(feature = "rayon")]
    if weights >= LARGE {
        use rayon::prelude::*;
        // A multiple of the rows that the kernels process at once.
        let part = height.div_ceil(rayon::current_num_threads()).next_multiple_of(128);
        let columns = out.len() / height;
        if part < height && columns > 0 {
            // Taken out instead of borrowed: while this thread waits, rayon may run another product
            // on it.
            let mut parts = with_scratch::<T, _>(|scratch| std::mem::take(&mut scratch.parts));
            grow(&mut parts, out.len());
            // Each block is a column-major matrix of its own rows, because rows of `out` are not
            // contiguous.
            let rows = |index: usize| index * part..height.min((index + 1) * part);
            let blocks = parts[..out.len()].par_chunks_mut(part * columns).enumerate();
            blocks.for_each(|(index, block)| product(rows(index), block));
            for (index, block) in parts[..out.len()].chunks(part * columns).enumerate() {
                let rows = rows(index);
                for (block, out) in block.chunks_exact(rows.len()).zip(out.chunks_exact_mut(height))
                {
                    out[rows.clone()].copy_from_slice(block);
                }
            }
            return with_scratch::<T, _>(|scratch| scratch.parts = parts);
        }
    }
    // Unused without the `rayon` feature.
    let _ = weights;
    product(0..height, out);
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
fn run<T: Scalar>(kernel: Kernel<'_, T>) {
    (T::compiled().run)(kernel);
}
