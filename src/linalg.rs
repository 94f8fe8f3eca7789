//! The one seam to matrix products.
//!
//! All matrices are slices in column-major order. Products of more than [`SMALL`] columns go to nalgebra's `gemm`, which
//! is matrixmultiply with the processor's widest vectors; a transposed operand is a view with swapped strides, because
//! nalgebra's own `tr_mul` does not reach that path. Products of few columns are bound by the reading of the matrix, so
//! they are done by the column with zeros left out: after a ReLU that is about half of the work.

use nalgebra::{Dyn, MatrixView, MatrixViewMut};

use crate::scalar::Scalar;

/// Up to this many columns a product is done by the column; nalgebra's fast path begins above it.
const SMALL: usize = 5;

/// A matrix operand: a column-major slice of `rows` x `columns`, or its transpose.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a, T> {
    /// `rows` x `columns`, as stored.
    Plain(&'a [T], usize, usize),
    /// The transpose of a stored `rows` x `columns`.
    Transposed(&'a [T], usize, usize),
}

impl<'a, T: Scalar> Operand<'a, T> {
    fn view(self) -> MatrixView<'a, T, Dyn, Dyn, Dyn, Dyn> {
        match self {
            Self::Plain(values, rows, columns) => {
                MatrixView::from_slice_with_strides_generic(values, Dyn(rows), Dyn(columns), Dyn(1), Dyn(rows))
            }
            Self::Transposed(values, rows, columns) => {
                MatrixView::from_slice_with_strides_generic(values, Dyn(columns), Dyn(rows), Dyn(rows), Dyn(1))
            }
        }
    }
}

/// `out = a b`, with `out` column-major. Cost: rows x inner x columns multiply-adds.
pub(crate) fn multiply<T: Scalar>(a: Operand<'_, T>, b: Operand<'_, T>, out: &mut [T]) {
    let (a, b) = (a.view(), b.view());
    let (rows, columns) = (a.nrows(), b.ncols());
    MatrixViewMut::from_slice_with_strides_generic(out, Dyn(rows), Dyn(columns), Dyn(1), Dyn(rows)).gemm(
        T::one(),
        &a,
        &b,
        T::zero(),
    );
}

/// `y = W x` for any number of columns; `w` is outputs x inputs.
pub(crate) fn apply<T: Scalar>(w: &[T], outputs: usize, inputs: usize, x: &[T], y: &mut [T]) {
    let columns = x.len() / inputs;
    if columns > SMALL {
        return multiply(Operand::Plain(w, outputs, inputs), Operand::Plain(x, inputs, columns), y);
    }
    y.fill(T::zero());
    for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
        for (&x, w) in x.iter().zip(w.chunks_exact(outputs)) {
            if x != T::zero() {
                add_scaled(x, w, y);
            }
        }
    }
}

/// `x = Wᵀ y` for any number of columns; `w` is outputs x inputs.
pub(crate) fn apply_transposed<T: Scalar>(w: &[T], outputs: usize, inputs: usize, y: &[T], x: &mut [T]) {
    let columns = y.len() / outputs;
    if columns > SMALL {
        return multiply(Operand::Transposed(w, outputs, inputs), Operand::Plain(y, outputs, columns), x);
    }
    for (y, x) in y.chunks_exact(outputs).zip(x.chunks_exact_mut(inputs)) {
        for (x, w) in x.iter_mut().zip(w.chunks_exact(outputs)) {
            *x = dot(w, y);
        }
    }
}

/// `y += a x`.
pub(crate) fn add_scaled<T: Scalar>(a: T, x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// `sum_i a_i b_i`, in sixteen partial sums, so that it runs in vector registers.
pub(crate) fn dot<T: Scalar>(a: &[T], b: &[T]) -> T {
    const LANES: usize = 16;
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [T::zero(); LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let upper = sums[lane + width];
            sums[lane] += upper;
        }
        width /= 2;
    }
    a_rest.iter().zip(b_rest).fold(sums[0], |sum, (&a, &b)| sum + a * b)
}

/// The transpose of a column-major `rows` x `columns`.
pub(crate) fn transpose<T: Scalar>(values: &[T], rows: usize, columns: usize, out: &mut [T]) {
    for (i, out) in out.chunks_exact_mut(columns).enumerate() {
        for (j, out) in out.iter_mut().enumerate() {
            *out = values[j * rows + i];
        }
    }
}

/// The largest magnitude, NaN if any entry is not a number.
pub(crate) fn max_abs<T: Scalar>(values: &[T]) -> T {
    values.iter().fold(T::zero(), |max, &v| {
        let v = v.abs();
        // Written so that a NaN, once met, stays.
        if v <= max || max.is_nan() { max } else { v }
    })
}

/// The first entry that is NaN or infinite.
pub(crate) fn first_non_finite<T: Scalar>(values: &[T]) -> Option<(usize, T)> {
    // Without an early exit the sweep runs in vector registers, and it nearly always finds nothing.
    if values.iter().fold(true, |finite, v| finite & v.is_finite()) {
        return None;
    }
    values.iter().copied().enumerate().find(|(_, v)| !v.is_finite())
}
