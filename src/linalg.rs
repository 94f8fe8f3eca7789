//! The one seam to matrix products.
//!
//! All matrices are slices in column-major order. A layer's products come with a scaling of its
//! inputs, W diag(u) X and diag(u) Wᵀ Y, because that is what share matrices are made of, and
//! because it says what costs nothing: where u_i is 0, the column i of W is not even read. After a
//! ReLU that is about half of the work, at the zeros of an image more.
//!
//! A result depends on its own column alone, bit for bit: not on the columns beside it, how many
//! they are or which thread works on them.

mod correlate;
mod kernel;
mod product;
mod transposed;
mod vectors;
mod winograd;

use std::cell::RefCell;
use std::ops::Range;

use pulp::Arch;

use crate::scalar::Scalar;
use correlate::Correlate;
use product::Apply;
use transposed::ApplyTransposed;
use vectors::MaxAbs;
use winograd::{Multiply, Transform};

pub(crate) use correlate::{Correlation, Direction, Geometry, Planes, reach};
pub use kernel::Lanes;
pub(crate) use vectors::{
    add_scaled, copy, copy_rows, dot, first_non_finite, list_nonzero_rows, max_abs, scaled, sum,
    sum_in_order,
};
use vectors::{count_nonzero, larger};

/// A product with so many weights is shared out among the threads of the caller's pool.
pub(crate) const LARGE: usize = 1 << 20;
/// At most so many columns share what is read of W.
const GROUP: usize = 6;

/// One of the loops that are written for vectors.
pub struct Kernel<'a, T: Scalar>(Which<'a, T>);

enum Which<'a, T: Scalar> {
    Apply(Apply<'a, T>),
    ApplyTransposed(ApplyTransposed<'a, T>),
    Correlate(Correlate<'a, T>),
    Transform(Transform<'a, T>),
    Multiply(Multiply<'a, T>),
    MaxAbs(MaxAbs<'a, T>),
}

/// See [`Scalar::run`].
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
    /// Parts of a result, before they are spread over it.
    parts: Vec<T>,
    /// The source of a correlation.
    planes: Vec<T>,
}

/// Columns that are combined together.
#[derive(Debug, Clone, Copy)]
struct Group {
    width: usize,
    /// Where each column begins in y.
    columns: [usize; GROUP],
    /// Where its entries begin in the scratch's offsets, how many they are, and how far its x is:
    /// in [`apply`] where its values begin, in [`apply_transposed`] how many of the entries are
    /// done.
    first: usize,
    count: usize,
    x: usize,
}

/// Some rows and columns of a matrix W.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    values: &'a [T],
    /// How far apart the columns begin.
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

/// `y = W diag(u) x` for any number of columns; `u` has one column for each sample, and each sample
/// as many columns of `x` as any other. Cost: outputs x inputs x columns multiply-adds, less what
/// is zero.
pub(crate) fn apply<T: Scalar>(w: Matrix<'_, T>, u: Option<&[T]>, x: &[T], y: &mut [T]) {
    let per_sample = u.map_or(1, |u| x.len() / u.len().max(1));
    by_rows(w.outputs, w.values.len(), y, |rows, y| {
        let w = Matrix { values: &w.values[rows.start..], outputs: rows.len(), ..w };
        T::with_scratch(|scratch| {
            T::run(Kernel(Which::Apply(Apply { w, u, per_sample, x, y, scratch })))
        });
    });
}

/// `x = diag(u) Wᵀ y` for any number of columns; `u` as in [`apply`].
/// Cost: outputs x inputs x columns multiply-adds, less the rows where u is zero.
pub(crate) fn apply_transposed<T: Scalar>(w: Matrix<'_, T>, y: &[T], u: Option<&[T]>, x: &mut [T]) {
    let per_sample = u.map_or(1, |u| x.len() / u.len().max(1));
    by_rows(w.inputs, w.values.len(), x, |rows, x| {
        let u = u.map(|values| Columns { values, height: w.inputs, first: rows.start });
        let w = Matrix {
            values: &w.values[rows.start * w.stride..rows.end * w.stride],
            inputs: rows.len(),
            ..w
        };
        T::with_scratch(|scratch| {
            T::run(Kernel(Which::ApplyTransposed(ApplyTransposed {
                w,
                u,
                per_sample,
                x,
                y,
                scratch,
            })))
        });
    });
}

/// `y = W x` for any number of columns, where W has those `rows` of y alone: the others are zero.
/// Gives the largest magnitude, NaN if any entry is not a number. Cost: as [`apply`], and y is
/// written once.
pub(crate) fn apply_to_rows<T: Scalar>(
    w: Matrix<'_, T>,
    x: &[T],
    rows: &[usize],
    y: &mut [T],
) -> T {
    // So many columns are multiplied at once that they are spread over y while they are in the
    // cache.
    const COLUMNS: usize = 24;
    let height = y.len() / (x.len() / w.inputs).max(1);
    let mut product = T::with_scratch(|scratch| std::mem::take(&mut scratch.parts));
    grow(&mut product, height * COLUMNS);
    let of_columns = |(x, y): (&[T], &mut [T])| {
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
    T::with_scratch(|scratch| scratch.parts = product);
    max
}

/// So many values are worth a thread's while.
const PART: usize = 1 << 15;

/// Does the same to each chunk of so many values, with its number: many on all threads of the
/// caller's pool. What is done to a chunk must not depend on the others.
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

/// Shares values of `unit` for each of some things out among the threads of the caller's pool,
/// where that is worth it: some things for each thread, a multiple of `together`. What is done to
/// one must not depend on the others; the first is given.
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
        let some = things.div_ceil(rayon::current_num_threads()).next_multiple_of(together);
        return values
            .par_chunks_mut(some * unit)
            .enumerate()
            .for_each(|(part, values)| f(part * some, values));
    }
    let _ = (unit, together, worth_it);
    f(0, values);
}

/// The same for parts of any size.
pub(crate) fn each_part<T: Scalar>(values: &mut [T], f: impl Fn(&mut [T]) + Sync) {
    each_chunk(values, PART, |_, values| f(values));
}

/// Does the same to each part of values and the part of others at the same place, whose first index
/// is given.
pub(crate) fn zip_parts<T: Scalar>(
    values: &mut [T],
    others: &[T],
    f: impl Fn(usize, &mut [T], &[T]) + Sync,
) {
    each_chunk(values, PART, |part, values| {
        f(part * PART, values, &others[part * PART..][..values.len()])
    });
}

/// Some rows of columns.
#[derive(Clone, Copy)]
struct Columns<'a, T> {
    values: &'a [T],
    height: usize,
    first: usize,
}

impl<'a, T> Columns<'a, T> {
    /// So many rows of a column.
    fn column(self, column: usize, rows: usize) -> &'a [T] {
        &self.values[column * self.height + self.first..][..rows]
    }
}

/// Makes a result of this height by all of its rows at once, or, where there are many weights, by
/// as many blocks of rows as there are threads: each of them then reads its own part of the
/// weights, once.
fn by_rows<T: Scalar>(
    height: usize,
    weights: usize,
    out: &mut [T],
    product: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    #[cfg(feature = "rayon")]
    if weights >= LARGE {
        use rayon::prelude::*;
        // A multiple of what the kernels take at once.
        let part = height.div_ceil(rayon::current_num_threads()).next_multiple_of(128);
        let columns = out.len() / height;
        if part < height && columns > 0 {
            // Taken out, not borrowed: while it waits, this thread may come here again for another
            // product.
            let mut parts = T::with_scratch(|scratch| std::mem::take(&mut scratch.parts));
            grow(&mut parts, out.len());
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
            return T::with_scratch(|scratch| scratch.parts = parts);
        }
    }
    let _ = weights;
    product(0..height, out);
}

/// Makes a slice at least this long.
fn grow<E: Copy + Default>(values: &mut Vec<E>, size: usize) {
    if values.len() < size {
        values.resize(size, E::default());
    }
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
