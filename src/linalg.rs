//! The one seam to matrix products.
//!
//! All matrices are slices in column-major order. Large products go to nalgebra's `gemm`, which is matrixmultiply with the
//! processor's widest vectors; a transposed operand is a view with swapped strides, because nalgebra's own `tr_mul` does
//! not reach that path. Products of few columns are bound by the reading of the matrix, so they are done by the column
//! with zeros left out: after a ReLU that is about half of the work.

use nalgebra::{Dyn, MatrixView, MatrixViewMut};

use crate::scalar::Scalar;

/// nalgebra's fast path needs every dimension above this. It must not be called below: its own loops for small products
/// read out of bounds where the strides are swapped.
const SMALL: usize = 5;

/// A matrix of `shape` over a slice, `strides` apart.
fn view<T: Scalar>(values: &[T], shape: (usize, usize), strides: (usize, usize)) -> MatrixView<'_, T, Dyn, Dyn, Dyn, Dyn> {
    MatrixView::from_slice_with_strides_generic(values, Dyn(shape.0), Dyn(shape.1), Dyn(strides.0), Dyn(strides.1))
}

/// `y = W x` for any number of columns; `w` is outputs x inputs. Cost: outputs x inputs x columns multiply-adds.
pub(crate) fn apply<T: Scalar>(w: &[T], outputs: usize, inputs: usize, x: &[T], y: &mut [T]) {
    let columns = x.len() / inputs;
    if columns.min(outputs).min(inputs) > SMALL {
        let (w, x) = (view(w, (outputs, inputs), (1, outputs)), view(x, (inputs, columns), (1, inputs)));
        return MatrixViewMut::from_slice_generic(y, Dyn(outputs), Dyn(columns)).gemm(T::one(), &w, &x, T::zero());
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

/// `x = Wᵀ y` for any number of columns; `w` is outputs x inputs. Cost: outputs x inputs x columns multiply-adds.
pub(crate) fn apply_transposed<T: Scalar>(w: &[T], outputs: usize, inputs: usize, y: &[T], x: &mut [T]) {
    let columns = y.len() / outputs;
    if columns.min(outputs).min(inputs) > SMALL {
        let (w, y) = (view(w, (inputs, outputs), (outputs, 1)), view(y, (outputs, columns), (1, outputs)));
        return MatrixViewMut::from_slice_generic(x, Dyn(inputs), Dyn(columns)).gemm(T::one(), &w, &y, T::zero());
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
