//! The single interface to matrix products.
//!
//! Every product is y = M diag(u) x for some columns x: of a dense layer in either direction, of a
//! convolution, of two blocks of shares. [`product`] computes it, panel by panel. A matrix M is
//! packed once for many products ([`Packings`]), or a part at a time. [`correlate`] and
//! [`winograd`] lay out the planes of a convolution as such a matrix. Only if few rows of a
//! transposed product are needed, [`dots`] computes these alone.
//!
//! All matrices are slices in column-major order. A layer's products include a scaling of its
//! inputs: W diag(u) X and diag(u) Wᵀ Y. Share matrices have this form, and their zeros save work:
//! about half after a ReLU, and more for images with many zeros.
//!
//! Each column of a result is bit-for-bit independent of the other columns, of their number, and of
//! the thread that computes it.

mod correlate;
mod dots;
mod kernel;
mod panels;
mod processor;
mod product;
mod threads;
mod vectors;
mod winograd;

use std::sync::OnceLock;

use crate::scalar::Scalar;
use correlate::Correlate;
use dots::Project;
use panels::{Division, Loose, Order, Packed, Panels, Rows};
use processor::{lanes, processor};
use product::{ColumnGroup, Factor, GROUP, Multiply, Right, Target};
use threads::{MANY, by_rows, is_free, join_parts};
use winograd::{PatchTransform, SumPatches};

pub(crate) use correlate::{Correlation, Direction, Geometry, Planes, reach};
pub(crate) use processor::vectorized;
pub(crate) use threads::{LARGE, each_chunk, each_part, threads, zip_parts};
pub(crate) use vectors::{
    add_scaled, copy, copy_part, copy_rows, dot, first_non_finite, list_nonzero_rows, max_abs,
    scaled, sum, sum_in_order,
};
use vectors::{count_nonzero, larger};

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
        Loose { values, order: Order::RowsTogether(Rows::Every(rows)), rows, inner }
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
    let Matrix { inputs, outputs, .. } = w;
    let Some(u) = u else { return multiply(w.transposed(), None, y, x) };
    let (samples, columns) = (u.len() / inputs, x.len() / inputs);
    if samples == 0 || columns == 0 {
        return;
    }
    let per_sample = columns / samples;
    // Decided for each sample by itself, so that its result does not depend on the others.
    let projects = |u: &[T]| (count_nonzero(u) as f64) < SPARSE * inputs as f64;
    let mut chosen = with_scratch::<T, _>(|scratch| std::mem::take(&mut scratch.chosen));
    chosen.clear();
    chosen.reserve(columns);
    for (sample, u) in u.chunks_exact(inputs).enumerate() {
        let of_sample = sample * per_sample..(sample + 1) * per_sample;
        if projects(u) {
            let x = &mut x[of_sample.start * inputs..of_sample.end * inputs];
            let y = &y[of_sample.start * outputs..of_sample.end * outputs];
            project(w, y, u, x);
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

/// Writes the rows of Wᵀ y where u is not zero. The other rows keep their values.
fn project<T: Scalar>(w: Matrix<'_, T>, y: &[T], u: &[T], x: &mut [T]) {
    let outputs = w.outputs;
    by_rows(Division::of::<T>(w.inputs), w.inputs, w.values.len(), x, |panels, x| {
        let rows = panels.first_row()..panels.first_row() + panels.height();
        with_scratch::<T, _>(|scratch| {
            scratch.make_room(w.inputs.max(w.outputs));
            let list = &mut scratch.offsets[..rows.len()];
            let count = vectorized(|| vectors::list_nonzero(&[&u[rows.clone()]], list));
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
        let of_part = |first: usize, y: &mut [T]| {
            let x = &x[first * inner..][..y.len() / rows * inner];
            multiply_columns(m, (u, usize::MAX, x), None, y);
        };
        return join_parts(y, (rows, GROUP), true, of_part, |(), ()| ());
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
    if rows == 0 || y.is_empty() {
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
        join_parts(y, (height, COLUMNS), worth_it, of_columns, larger)
    })
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
