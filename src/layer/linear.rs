//! The dense linear layer.

use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use super::{Bias, Layer, LinearMap, Operator, WeightFn, only_input};
use crate::error::Error;
use crate::linalg::{self, Matrix, Packings};
use crate::scalar::Scalar;
use crate::shape::Shape;

const KIND: &str = "Linear";

/// A dense layer, y = W z + b, with W of shape outputs x inputs as in PyTorch.
///
/// Clones are cheap because they share the weights.
#[derive(Debug, Clone)]
pub struct Linear<T: Scalar> {
    weights: Arc<DMatrix<T>>,
    bias: Option<Arc<DVector<T>>>,
    /// The packed weights, which clones share.
    packings: Arc<Packings<T>>,
}

impl<T: Scalar> Linear<T> {
    /// Creates a layer from `weights` of shape outputs x inputs and an optional bias with one value
    /// per output.
    ///
    /// # Errors
    /// [`Error::ZeroSized`], [`Error::BiasShape`], [`Error::NonFiniteWeight`] and
    /// [`Error::NonFiniteBias`].
    ///
    /// # Example
    /// ```
    /// use relprop::Linear;
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let weights = dmatrix![1.0, -1.0; 0.5, 2.0; 0.0, 1.0];
    /// let with_bias = Linear::new(weights, dvector![0.0, 0.1, -0.2])?;
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
            return Err(Error::NonFiniteWeight {
                kind: kind(),
                // nalgebra stores a matrix by columns, and a column holds the weights of one input.
                output: k % outputs,
                input: k / outputs,
                value: value.as_f64(),
            });
        }
        if let Some(bias) = &bias {
            check_bias(KIND, bias.as_slice().into(), outputs, inputs)?;
        }
        Ok(Self::checked(weights, bias))
    }

    /// Creates a layer from slices, with the weights row by row, in the C order of PyTorch and
    /// NumPy.
    ///
    /// # Errors
    /// [`Error::WeightCount`], and the errors of [`Linear::new`].
    ///
    /// # Example
    /// ```
    /// use relprop::Linear;
    ///
    /// let weights = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    /// let layer = Linear::from_rows(2, 3, &weights, Some(&[0.5, -0.5]))?;
    /// assert_eq!(layer.weights()[(1, 0)], 4.0);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn from_rows(
        outputs: usize,
        inputs: usize,
        weights: &[T],
        bias: Option<&[T]>,
    ) -> Result<Self, Error> {
        if outputs.checked_mul(inputs) != Some(weights.len()) {
            return Err(Error::WeightCount {
                kind: KIND.to_owned(),
                found: weights.len(),
                outputs,
                inputs,
            });
        }
        Self::new(
            DMatrix::from_row_slice(outputs, inputs, weights),
            bias.map(DVector::from_column_slice),
        )
    }

    /// The layer of weights and a bias that have been checked.
    fn checked(weights: DMatrix<T>, bias: Option<DVector<T>>) -> Self {
        let packings = Arc::new(Packings::default());
        Self { weights: Arc::new(weights), bias: bias.map(Arc::new), packings }
    }

    fn matrix(&self) -> Matrix<'_, T> {
        let (outputs, inputs) = self.weights.shape();
        Matrix { values: self.weights.as_slice(), outputs, inputs, packings: &self.packings }
    }

    /// The weights W, of shape outputs x inputs.
    #[must_use]
    pub fn weights(&self) -> &DMatrix<T> {
        &self.weights
    }

    /// The bias b, with one value per output.
    #[must_use]
    pub fn bias(&self) -> Option<&DVector<T>> {
        self.bias.as_deref()
    }
}

/// Checks that a bias has exactly one finite value per output.
pub(crate) fn check_bias<T: Scalar>(
    kind: &str,
    bias: Bias<'_, T>,
    outputs: usize,
    inputs: usize,
) -> Result<(), Error> {
    if bias.outputs() != outputs {
        return Err(Error::BiasShape {
            kind: kind.to_owned(),
            found: bias.outputs(),
            outputs,
            inputs,
        });
    }
    match linalg::first_non_finite(bias.values()) {
        Some((output, value)) => {
            Err(Error::NonFiniteBias { kind: kind.to_owned(), output, value: value.as_f64() })
        }
        None => Ok(()),
    }
}

impl<T: Scalar> Layer<T> for Linear<T> {
    fn kind(&self) -> &str {
        KIND
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        match input.dims() {
            [size] if *size == self.weights.ncols() => Ok(Operator::linear(self.clone())),
            [_] => Err(Error::shape(KIND, input, format!("{} inputs", self.weights.ncols()))),
            _ => Err(Error::shape(
                KIND,
                input,
                format!("a vector of {} inputs (add a Flatten before it)", self.weights.ncols()),
            )),
        }
    }

    fn inputs(&self) -> Option<usize> {
        Some(self.weights.ncols())
    }

    fn parameters(&self) -> usize {
        self.weights.len() + self.bias.as_ref().map_or(0, |bias| bias.len())
    }

    fn scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
        if a.len() != self.weights.nrows() {
            return None;
        }
        // a (W z + c) + b = (a W) z + (a c + b).
        let mut weights = (*self.weights).clone();
        weights.row_iter_mut().zip(a).for_each(|(mut row, &a)| row *= a);
        let own =
            self.bias.as_ref().map_or_else(|| DVector::zeros(b.len()), |bias| (**bias).clone());
        let bias =
            own.component_mul(&DVector::from_column_slice(a)) + DVector::from_column_slice(b);
        Some(Arc::new(Self::new(weights, bias).ok()?))
    }

    fn of_scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
        let (outputs, inputs) = self.weights.shape();
        if a.len() != inputs {
            return None;
        }
        // W (a z + b) + c = (W a) z + (W b + c).
        let mut weights = (*self.weights).clone();
        weights.column_iter_mut().zip(a).for_each(|(mut column, &a)| column *= a);
        let mut bias =
            self.bias.as_ref().map_or_else(|| DVector::zeros(outputs), |bias| (**bias).clone());
        // W b, as a sum of the columns of W, which are contiguous.
        for (column, &b) in self.weights.column_iter().zip(b) {
            bias += column * b;
        }
        Some(Arc::new(Self::new(weights, bias).ok()?))
    }

    fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
        let (outputs, inputs) = self.weights.shape();
        // nalgebra stores a matrix by columns, PyTorch by rows.
        let mut tensors =
            vec![("weight", vec![outputs, inputs], self.weights.transpose().data.into())];
        tensors
            .extend(self.bias.iter().map(|bias| ("bias", vec![outputs], bias.as_slice().to_vec())));
        tensors
    }

    fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
        let bias = self.bias.as_ref().map(|bias| bias.map(T::as_f64));
        Some(Arc::new(Linear::checked(self.weights.map(T::as_f64), bias)))
    }

    fn arguments(&self) -> String {
        let bias = if self.bias.is_some() { "True" } else { "False" };
        format!(
            "in_features={}, out_features={}, bias={bias}",
            self.weights.ncols(),
            self.weights.nrows()
        )
    }
}

impl<T: Scalar> LinearMap<T> for Linear<T> {
    fn inputs(&self) -> usize {
        self.weights.ncols()
    }

    fn outputs(&self) -> usize {
        self.weights.nrows()
    }

    fn bias(&self) -> Option<Bias<'_, T>> {
        self.bias.as_ref().map(|b| b.as_slice().into())
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

    fn prepare_apply(&self) {
        self.matrix().pack();
    }

    fn prepare_apply_transposed(&self) {
        self.matrix().pack_transposed();
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        Box::new(Self::checked(self.weights.map(|w| f.value(w)), None))
    }

    fn forms_matrix(&self) -> bool {
        true
    }

    fn ones(&self) -> Box<dyn LinearMap<T>> {
        Box::new(Ones { inputs: self.weights.ncols(), outputs: self.weights.nrows() })
    }

    fn add_scaled_inputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        let outputs = self.weights.nrows();
        for (&i, out) in listed.iter().zip(out.chunks_exact_mut(outputs)) {
            // Column i of diag(t) W diag(u) is u_i diag(t) W[:, i], and W[:, i] is contiguous.
            let (u, w) = (u[i], &self.weights.as_slice()[i * outputs..][..outputs]);
            for ((out, &w), &t) in out.iter_mut().zip(w).zip(t) {
                *out += u * w * t;
            }
        }
    }

    fn add_scaled_outputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        // Few enough columns of W that they stay in the cache for all listed outputs.
        const BLOCK: usize = 16;
        let (outputs, inputs) = self.weights.shape();
        let w = self.weights.as_slice();
        // The weights of one output are `outputs` numbers apart, so going through them output by
        // output would load all of W for each.
        for first in (0..inputs).step_by(BLOCK) {
            let block = first..inputs.min(first + BLOCK);
            for (&k, out) in listed.iter().zip(out.chunks_exact_mut(inputs)) {
                for i in block.clone() {
                    // Many u_i are 0, such as those of inputs after a ReLU.
                    if u[i] != T::zero() {
                        out[i] += u[i] * w[i * outputs + k] * t[k];
                    }
                }
            }
        }
    }
}

/// The sum in double precision. In f32, a sum of ones would stop growing at 2^24.
fn sum<T: Scalar>(values: &[T]) -> T {
    T::from_f64(values.iter().map(|v| v.as_f64()).sum())
}

/// The dense map whose weights are all 1. It has rank one, so a product is a sum.
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

    fn bias(&self) -> Option<Bias<'_, T>> {
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
        // The number of columns of x for each column of u.
        let per_sample = x.len() / u.len().max(1);
        for (sample, (x, y)) in
            x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)).enumerate()
        {
            let u = &u[sample / per_sample * self.inputs..][..self.inputs];
            y.fill(T::from_f64(u.iter().zip(x).map(|(u, x)| u.as_f64() * x.as_f64()).sum()));
        }
    }

    fn add_scaled_inputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        for (&i, out) in listed.iter().zip(out.chunks_exact_mut(self.outputs)) {
            // All weights are 1, so column i of diag(t) W diag(u) is u_i t.
            linalg::add_scaled(u[i], t, out);
        }
    }

    fn add_scaled_outputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        for (&k, out) in listed.iter().zip(out.chunks_exact_mut(self.inputs)) {
            linalg::add_scaled(t[k], u, out);
        }
    }

    fn multiply_adds(&self) -> f64 {
        // A product is one sum over the inputs, which is copied to the outputs.
        self.inputs as f64 + self.outputs as f64
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        let weights = DMatrix::from_element(self.outputs, self.inputs, f.value(T::one()));
        Box::new(Linear::checked(weights, None))
    }
}

/// The sum of several blocks of the same shape, with the same weight for all entries.
#[derive(Debug)]
struct Sum<T> {
    blocks: usize,
    shape: Shape,
    weight: T,
}

/// The map that sums `blocks` consecutive blocks of this shape.
pub(crate) fn sum_of<T: Scalar>(blocks: usize, shape: Shape) -> Arc<dyn LinearMap<T>> {
    Arc::new(Sum { blocks, shape, weight: T::one() })
}

impl<T: Scalar> LinearMap<T> for Sum<T> {
    fn inputs(&self) -> usize {
        self.blocks * self.shape.size()
    }

    fn outputs(&self) -> usize {
        self.shape.size()
    }

    fn output_shape(&self) -> Shape {
        self.shape
    }

    fn keeps_sign(&self) -> bool {
        self.weight >= T::zero()
    }

    fn bias(&self) -> Option<Bias<'_, T>> {
        None
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        let size = self.shape.size();
        for (x, y) in x.chunks_exact(self.blocks * size).zip(y.chunks_exact_mut(size)) {
            // The first block overwrites y, and the others are added to it.
            linalg::scaled(self.weight, &x[..size], y);
            for x in x[size..].chunks_exact(size) {
                linalg::add_scaled(self.weight, x, y);
            }
        }
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        let size = self.shape.size();
        for (x, y) in x.chunks_exact_mut(self.blocks * size).zip(y.chunks_exact(size)) {
            for x in x.chunks_exact_mut(size) {
                linalg::scaled(self.weight, y, x);
            }
        }
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        Box::new(Self { weight: f.value(self.weight), ..*self })
    }

    fn multiply_adds(&self) -> f64 {
        (self.blocks * self.shape.size()) as f64
    }
}

/// A multiple of the identity map.
#[derive(Debug)]
struct Same<T> {
    size: usize,
    weight: T,
}

/// The identity map.
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

    fn bias(&self) -> Option<Bias<'_, T>> {
        None
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        linalg::scaled(self.weight, x, y);
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        self.apply(y, x);
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        Box::new(Self { size: self.size, weight: f.value(self.weight) })
    }

    fn multiply_adds(&self) -> f64 {
        self.size as f64
    }
}
