//! The dense linear layer.

use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use super::{Layer, LinearMap, Operator};
use crate::error::Error;
use crate::linalg::{self, Matrix};
use crate::scalar::Scalar;

const KIND: &str = "Linear";

/// A dense layer, y = W z + b, with W of shape outputs x inputs as in PyTorch.
///
/// Cheap to clone: the weights are shared.
#[derive(Debug, Clone)]
pub struct Linear<T: Scalar> {
    weights: Arc<DMatrix<T>>,
    bias: Option<Arc<DVector<T>>>,
}

impl<T: Scalar> Linear<T> {
    /// A layer with `weights` of shape outputs x inputs and a bias of one value for each output, or `None`.
    ///
    /// # Errors
    /// [`Error::ZeroSized`], [`Error::BiasShape`], [`Error::NonFiniteWeight`] and [`Error::NonFiniteBias`].
    ///
    /// # Example
    /// ```
    /// use relprop::Linear;
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let with_bias = Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0; 0.0, 1.0], dvector![0.0, 0.1, -0.2])?;
    /// let without = Linear::new(dmatrix![1.0, -1.0], None)?;
    /// assert_eq!(with_bias.weights().shape(), (3, 2));
    /// assert!(without.bias().is_none());
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn new(weights: DMatrix<T>, bias: impl Into<Option<DVector<T>>>) -> Result<Self, Error> {
        let bias = bias.into();
        let (outputs, inputs) = weights.shape();
        let kind = || KIND.to_owned();
        if outputs == 0 || inputs == 0 {
            return Err(Error::ZeroSized { kind: kind(), outputs, inputs });
        }
        if let Some((k, value)) = linalg::first_non_finite(weights.as_slice()) {
            return Err(Error::NonFiniteWeight { kind: kind(), output: k % outputs, input: k / outputs, value: value.as_f64() });
        }
        if let Some(bias) = &bias {
            check_bias(KIND, bias.as_slice(), outputs, inputs)?;
        }
        Ok(Self { weights: Arc::new(weights), bias: bias.map(Arc::new) })
    }

    /// The same from slices: `weights` row by row (a C-order array of shape outputs x inputs, as in PyTorch and numpy).
    ///
    /// # Errors
    /// [`Error::WeightCount`] and those of [`Linear::new`].
    ///
    /// # Example
    /// ```
    /// let layer = relprop::Linear::from_rows(2, 3, &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], Some(&[0.5, -0.5]))?;
    /// assert_eq!(layer.weights()[(1, 0)], 4.0);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn from_rows(outputs: usize, inputs: usize, weights: &[T], bias: Option<&[T]>) -> Result<Self, Error> {
        if outputs.checked_mul(inputs) != Some(weights.len()) {
            return Err(Error::WeightCount { kind: KIND.to_owned(), found: weights.len(), outputs, inputs });
        }
        Self::new(DMatrix::from_row_slice(outputs, inputs, weights), bias.map(DVector::from_column_slice))
    }

    fn matrix(&self) -> Matrix<'_, T> {
        let (outputs, inputs) = self.weights.shape();
        Matrix::new(self.weights.as_slice(), outputs, inputs)
    }

    /// W, outputs x inputs.
    #[must_use]
    pub fn weights(&self) -> &DMatrix<T> {
        &self.weights
    }

    /// b, one value for each output.
    #[must_use]
    pub fn bias(&self) -> Option<&DVector<T>> {
        self.bias.as_deref()
    }
}

/// A bias has one finite value for each output.
pub(crate) fn check_bias<T: Scalar>(kind: &str, bias: &[T], outputs: usize, inputs: usize) -> Result<(), Error> {
    if bias.len() != outputs {
        return Err(Error::BiasShape { kind: kind.to_owned(), found: bias.len(), outputs, inputs });
    }
    match linalg::first_non_finite(bias) {
        Some((output, value)) => Err(Error::NonFiniteBias { kind: kind.to_owned(), output, value: value.as_f64() }),
        None => Ok(()),
    }
}

impl<T: Scalar> Layer<T> for Linear<T> {
    fn kind(&self) -> &str {
        KIND
    }

    fn operator(&self) -> Operator<'_, T> {
        Operator::Linear(self)
    }

    fn arguments(&self) -> String {
        let bias = if self.bias.is_some() { "True" } else { "False" };
        format!("in_features={}, out_features={}, bias={bias}", self.weights.ncols(), self.weights.nrows())
    }
}

impl<T: Scalar> LinearMap<T> for Linear<T> {
    fn inputs(&self) -> usize {
        self.weights.ncols()
    }

    fn outputs(&self) -> usize {
        self.weights.nrows()
    }

    fn bias(&self) -> Option<&[T]> {
        self.bias.as_ref().map(|b| b.as_slice())
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        linalg::apply(self.matrix(), None, x, y);
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        linalg::apply_transposed(self.matrix(), y, None, x);
    }

    fn apply_scaled(&self, u: &[T], x: &[T], y: &mut [T]) {
        linalg::apply(self.matrix(), Some(u), x, y);
    }

    fn apply_transposed_scaled(&self, y: &[T], u: &[T], x: &mut [T]) {
        linalg::apply_transposed(self.matrix(), y, Some(u), x);
    }

    fn map_weights(&self, f: &dyn Fn(T) -> T) -> Box<dyn LinearMap<T>> {
        Box::new(Self { weights: Arc::new(self.weights.map(f)), bias: None })
    }

    fn ones(&self) -> Box<dyn LinearMap<T>> {
        Box::new(Ones { inputs: self.weights.ncols(), outputs: self.weights.nrows() })
    }

    fn add_scaled_inputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        let outputs = self.weights.nrows();
        for (&i, out) in listed.iter().zip(out.chunks_exact_mut(outputs)) {
            let (u, w) = (u[i], &self.weights.as_slice()[i * outputs..][..outputs]);
            for ((out, &w), &t) in out.iter_mut().zip(w).zip(t) {
                *out += u * w * t;
            }
        }
    }

    fn add_scaled_outputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        // So many columns of W stay in the cache for all of the outputs.
        const BLOCK: usize = 16;
        let (outputs, inputs) = self.weights.shape();
        let w = self.weights.as_slice();
        for first in (0..inputs).step_by(BLOCK) {
            let block = first..inputs.min(first + BLOCK);
            for (&k, out) in listed.iter().zip(out.chunks_exact_mut(inputs)) {
                for i in block.clone() {
                    if u[i] != T::zero() {
                        out[i] += u[i] * w[i * outputs + k] * t[k];
                    }
                }
            }
        }
    }
}

/// In double precision: a sum of ones in f32 would stop at 2^24.
fn sum<T: Scalar>(values: &[T]) -> T {
    T::from_f64(values.iter().map(|v| v.as_f64()).sum())
}

/// The dense map whose weights are all 1: of rank one, so a product is a sum.
#[derive(Debug)]
struct Ones {
    inputs: usize,
    outputs: usize,
}

impl<T: Scalar> LinearMap<T> for Ones {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn bias(&self) -> Option<&[T]> {
        None
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            y.fill(sum(x));
        }
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        for (y, x) in y.chunks_exact(self.outputs).zip(x.chunks_exact_mut(self.inputs)) {
            x.fill(sum(y));
        }
    }

    fn apply_scaled(&self, u: &[T], x: &[T], y: &mut [T]) {
        let per_sample = x.len() / u.len().max(1);
        for (sample, (x, y)) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)).enumerate() {
            let u = &u[sample / per_sample * self.inputs..][..self.inputs];
            y.fill(T::from_f64(u.iter().zip(x).map(|(u, x)| u.as_f64() * x.as_f64()).sum()));
        }
    }

    fn add_scaled_inputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        for (&i, out) in listed.iter().zip(out.chunks_exact_mut(self.outputs)) {
            linalg::add_scaled(u[i], t, out);
        }
    }

    fn add_scaled_outputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        for (&k, out) in listed.iter().zip(out.chunks_exact_mut(self.inputs)) {
            linalg::add_scaled(t[k], u, out);
        }
    }

    fn multiply_adds(&self) -> f64 {
        self.inputs as f64 + self.outputs as f64
    }

    fn map_weights(&self, f: &dyn Fn(T) -> T) -> Box<dyn LinearMap<T>> {
        let weights = DMatrix::from_element(self.outputs, self.inputs, f(T::one()));
        Box::new(Linear { weights: Arc::new(weights), bias: None })
    }
}

/// Each input goes to the output of the same index, unchanged.
#[derive(Debug)]
struct Same<T> {
    size: usize,
    weight: T,
}

/// The map that changes nothing.
pub(crate) fn same<T: Scalar>(size: usize) -> Box<dyn LinearMap<T>> {
    Box::new(Same { size, weight: T::one() })
}

impl<T: Scalar> LinearMap<T> for Same<T> {
    fn inputs(&self) -> usize {
        self.size
    }

    fn outputs(&self) -> usize {
        self.size
    }

    fn bias(&self) -> Option<&[T]> {
        None
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = self.weight * x);
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        self.apply(y, x);
    }

    fn map_weights(&self, f: &dyn Fn(T) -> T) -> Box<dyn LinearMap<T>> {
        Box::new(Self { size: self.size, weight: f(self.weight) })
    }

    fn multiply_adds(&self) -> f64 {
        self.size as f64
    }
}
