//! Linear maps, defined by their products.

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::linalg;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The function that a rule applies to every weight of a map, such as max(w, 0).
#[derive(Clone)]
pub struct WeightFn<T>(Arc<dyn Fn(T) -> T + Send + Sync>);

impl<T> WeightFn<T> {
    /// Wraps a function, which must be finite for finite arguments.
    pub fn new(f: impl Fn(T) -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// The function's value at `weight`.
    pub fn value(&self, weight: T) -> T {
        (self.0)(weight)
    }
}

impl<T: Scalar> WeightFn<T> {
    /// The composition `self(inner(w))`, or `self` if there is no inner function.
    pub(crate) fn after(&self, inner: Option<&Self>) -> Self {
        let (f, Some(inner)) = (self.clone(), inner.cloned()) else { return self.clone() };
        Self::new(move |w| f.value(inner.value(w)))
    }
}

impl<T> Debug for WeightFn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeightFn(..)")
    }
}

/// A linear map y = W z + b, defined by its products with W and Wᵀ.
///
/// A product accepts any number of columns at once, as a slice of `inputs()` x columns in
/// column-major order. Each column is a sample or a row of relevance. Every rule is computed from
/// these two products, of this map or of the same map with other weights, so they are all that a
/// convolution or any other linear layer has to compute. Several methods with a default are scaled
/// or partial products. Override those that your map can compute at a lower cost.
pub trait LinearMap<T: Scalar>: Debug + Send + Sync {
    /// The length of z.
    fn inputs(&self) -> usize;

    /// The length of y.
    fn outputs(&self) -> usize;

    /// The shape of y, whose size is [`outputs`](Self::outputs). By default a vector.
    fn output_shape(&self) -> Shape {
        self.outputs().into()
    }

    /// Whether all weights are nonnegative and there is no bias, so that z >= 0 implies y >= 0.
    fn keeps_sign(&self) -> bool {
        false
    }

    /// The bias b, or `None` if it is zero.
    fn bias(&self) -> Option<Bias<'_, T>>;

    /// Computes y = W x, without the bias, for every column. Overwrites all of `y`.
    fn apply(&self, x: &[T], y: &mut [T]);

    /// Computes x = Wᵀ y for every column. Overwrites all of `x`.
    fn apply_transposed(&self, y: &[T], x: &mut [T]);

    /// Prepares the map for many calls of [`apply`](Self::apply). An explainer calls this once, so
    /// a map can arrange its weights as its product reads them. By default, there is nothing to
    /// prepare.
    fn prepare_apply(&self) {}

    /// Prepares the map for many calls of [`apply_transposed`](Self::apply_transposed), as
    /// [`prepare_apply`](Self::prepare_apply) does.
    fn prepare_apply_transposed(&self) {}

    /// This map without its bias and with every weight w replaced by `f.value(w)`. Padding has no
    /// weights to replace.
    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>>;

    /// This map without its bias and with every weight replaced by 1.
    ///
    /// Override it if that map has a cheaper form.
    fn ones(&self) -> Box<dyn LinearMap<T>> {
        self.map_weights(&WeightFn::new(|_| T::one()))
    }

    /// Whether the matrix is stored, so that reading a row or a column costs no more than its
    /// length.
    fn forms_matrix(&self) -> bool {
        false
    }

    /// The number of multiply-adds in a product with one column. It determines the order of
    /// accumulation.
    fn multiply_adds(&self) -> f64 {
        self.inputs() as f64 * self.outputs() as f64
    }

    /// Computes y = W diag(u) x. `u` has one column per sample, and `x` has the same number of
    /// columns for each sample.
    ///
    /// Override it if zeros in u can save work. The default copies `x`, a few columns at a time.
    fn apply_scaled(&self, u: &[T], x: &[T], y: &mut [T]) {
        /// The number of values that are copied at a time.
        const TOGETHER: usize = 1 << 18;
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let (together, each) = ((TOGETHER / inputs).max(1), x.len() / u.len().max(1));
        if each == 0 {
            return;
        }
        // The size does not depend on the number of columns, which can differ between samples.
        linalg::borrow(together * inputs, |scaled: &mut [T]| {
            let samples = x.chunks_exact(each * inputs).zip(y.chunks_exact_mut(each * outputs));
            for ((x, y), u) in samples.zip(u.chunks_exact(inputs)) {
                for (x, y) in x.chunks(together * inputs).zip(y.chunks_mut(together * outputs)) {
                    let scaled = &mut scaled[..x.len()];
                    scaled.copy_from_slice(x);
                    scale_columns(scaled, u, inputs);
                    self.apply(scaled, y);
                }
            }
        });
    }

    /// Computes x = diag(u) Wᵀ y, with `u` as in [`apply_scaled`](Self::apply_scaled).
    ///
    /// Override it if zeros in u can save work.
    fn apply_transposed_scaled(&self, y: &[T], u: &[T], x: &mut [T]) {
        self.apply_transposed(y, x);
        scale_columns(x, u, self.inputs());
    }

    /// Adds the columns of diag(t) W diag(u) for the listed inputs to the columns of `out`.
    ///
    /// Override it if the matrix is stored: the default computes a product for each listed input.
    fn add_scaled_inputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        linalg::borrow(u.len() + t.len(), |memory: &mut [T]| {
            let (unit, column) = memory.split_at_mut(u.len());
            unit.fill(T::zero());
            for (&i, out) in listed.iter().zip(out.chunks_exact_mut(t.len())) {
                // W (u_i e_i) is column i of W diag(u).
                unit[i] = u[i];
                self.apply(unit, column);
                unit[i] = T::zero();
                for ((out, &v), &t) in out.iter_mut().zip(&*column).zip(t) {
                    *out += v * t;
                }
            }
        });
    }

    /// Adds the columns of diag(u) Wᵀ diag(t) for the listed outputs to the columns of `out`.
    ///
    /// Override it if the matrix is stored: the default computes a product for each listed output.
    fn add_scaled_outputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        linalg::borrow(u.len() + t.len(), |memory: &mut [T]| {
            let (unit, column) = memory.split_at_mut(t.len());
            unit.fill(T::zero());
            for (&k, out) in listed.iter().zip(out.chunks_exact_mut(u.len())) {
                // Wᵀ (t_k e_k) is column k of Wᵀ diag(t).
                unit[k] = t[k];
                self.apply_transposed(unit, column);
                unit[k] = T::zero();
                for ((out, &v), &u) in out.iter_mut().zip(&*column).zip(u) {
                    *out += v * u;
                }
            }
        });
    }
}

/// The bias of a linear map: one value per output, or one per channel.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a, T> {
    values: &'a [T],
    each: usize,
}

impl<'a, T: Scalar> Bias<'a, T> {
    /// A bias with one value per channel, for channels of `each` consecutive outputs.
    #[must_use]
    pub fn per_channel(values: &'a [T], each: usize) -> Self {
        Self { values, each: each.max(1) }
    }

    /// The values, one per channel.
    #[must_use]
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// How many consecutive outputs share a value.
    #[must_use]
    pub fn each(&self) -> usize {
        self.each
    }

    /// The number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.values.len().saturating_mul(self.each)
    }

    /// The value of each output.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + 'a {
        let each = self.each;
        self.values.iter().flat_map(move |&b| std::iter::repeat_n(b, each))
    }
}

impl<'a, T: Scalar> From<&'a [T]> for Bias<'a, T> {
    /// A bias with one value per output.
    fn from(values: &'a [T]) -> Self {
        Self { values, each: 1 }
    }
}

/// Multiplies each sample's columns by that sample's column of `by`, entry by entry.
pub(crate) fn scale_columns<T: Scalar>(values: &mut [T], by: &[T], rows: usize) {
    let per_sample = values.len() / by.len().max(1);
    if per_sample == 0 {
        // There are no columns, as for the sinks of a rule that loses no relevance.
        return;
    }
    // The columns of a sample are neighbors.
    for (values, by) in values.chunks_exact_mut(rows * per_sample).zip(by.chunks_exact(rows)) {
        for column in values.chunks_exact_mut(rows) {
            linalg::zip_parts(column, by, |_, column, by| {
                for (v, &by) in column.iter_mut().zip(by) {
                    *v *= by;
                }
            });
        }
    }
}

/// The fan-in of each output: how many inputs it has, not counting padding.
///
/// # Errors
/// The reason why the map does not count them, as one from outside the crate may not.
pub(crate) fn fan_in<T: Scalar>(map: &dyn LinearMap<T>) -> Result<Vec<T>, String> {
    let (inputs, outputs) = (map.inputs(), map.outputs());
    let (ones, mut counts) = (map.ones(), vec![T::zero(); outputs]);
    if (ones.inputs(), ones.outputs()) == (inputs, outputs) {
        // With all inputs and weights 1, each output counts its inputs.
        ones.apply(&vec![T::one(); inputs], &mut counts);
        let most = T::from_f64(inputs as f64);
        if counts.iter().all(|&count| count >= T::zero() && count <= most) {
            return Ok(counts);
        }
    }
    Err(format!(
        "with all weights 1, the layer's map does not count each output's inputs \
                 (0 to {inputs})"
    ))
}

/// Adds the bias to every column.
pub(crate) fn add_bias<T: Scalar>(bias: Option<Bias<'_, T>>, values: &mut [T]) {
    let Some(bias) = bias else { return };
    for column in values.chunks_exact_mut(bias.outputs()) {
        if bias.each == 1 {
            linalg::add_scaled(T::one(), bias.values, column);
        } else {
            linalg::each_chunk(column, bias.each, |channel, values| {
                let b = bias.values[channel];
                linalg::vectorized(|| {
                    for v in values {
                        *v += b;
                    }
                });
            });
        }
    }
}
