//! Convolutions and transposed convolutions.

use std::sync::{Arc, OnceLock};

use super::pair::{Pair, dims, pair_of};
use super::{Bias, Family, Layer, LinearMap, Operator, WeightFn, only_input};
use crate::error::Error;
use crate::linalg::{self, Correlation, Direction, Geometry, Planes};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The common implementation of all convolutions.
///
/// The *fine* side is the input of a convolution and the output of a transposed convolution. The
/// other side is *coarse*.
#[derive(Debug, Clone)]
struct Convolution<T> {
    kind: &'static str,
    rank: usize,
    transposed: bool,
    /// Coarse channels x fine channels of a group x height x width.
    weights: Arc<[T]>,
    /// The shape of the weights, in PyTorch's order.
    shape: [usize; 4],
    bias: Option<Arc<[T]>>,
    stride: [usize; 2],
    padding: [usize; 2],
    padding_end: [usize; 2],
    output_padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
}

impl<T: Scalar> Convolution<T> {
    fn new(
        kind: &'static str,
        rank: usize,
        transposed: bool,
        shape: [usize; 4],
        weights: Arc<[T]>,
        bias: Option<Vec<T>>,
    ) -> Result<Self, Error> {
        let [outer, inner, ..] = shape;
        // The weights that belong to one index of the first axis, which changes slowest.
        let of_group = shape[1..]
            .iter()
            .try_fold(1_usize, |size, &dim| size.checked_mul(dim))
            .filter(|&size| size > 0);
        let (Some(of_group), true) = (of_group, outer > 0) else {
            return Err(Error::ZeroSized { kind: kind.to_owned(), outputs: outer, inputs: inner });
        };
        if outer.checked_mul(of_group) != Some(weights.len()) {
            return Err(Error::WeightCount {
                kind: kind.to_owned(),
                found: weights.len(),
                outputs: outer,
                inputs: of_group,
            });
        }
        if let Some((at, value)) = linalg::first_non_finite(&weights) {
            let (output, input) = (at / of_group, at % of_group);
            return Err(Error::NonFiniteWeight {
                kind: kind.to_owned(),
                output,
                input,
                value: value.as_f64(),
            });
        }
        let (bias, one) = (bias.map(Arc::from), [1, 1]);
        let (stride, dilation, groups) = (one, one, 1);
        let [padding, padding_end, output_padding] = [[0, 0]; 3];
        let layer = Self {
            kind,
            rank,
            transposed,
            weights,
            shape,
            bias,
            stride,
            padding,
            padding_end,
            output_padding,
            dilation,
            groups,
        };
        // The outputs of a transposed convolution depend on the groups, which are set later.
        if let (Some(bias), false) = (&layer.bias, transposed) {
            super::check_bias(kind, Bias::from(&**bias), outer, of_group)?;
        }
        Ok(layer)
    }

    fn kernel(&self) -> [usize; 2] {
        [self.shape[2], self.shape[3]]
    }

    /// The number of input channels and of output channels.
    fn channels(&self) -> (usize, usize) {
        let (coarse, fine) = (self.shape[0], self.shape[1].saturating_mul(self.groups));
        if self.transposed { (coarse, fine) } else { (fine, coarse) }
    }

    fn map(&self, input: Shape) -> Result<ConvolutionMap<T>, Error> {
        let kind = self.kind;
        let (channels, outputs) = self.channels();
        for (name, values) in
            [("stride", self.stride), ("dilation", self.dilation), ("groups", [self.groups; 2])]
        {
            if values.contains(&0) {
                return Err(Error::parameter(kind, name, values, "at least 1"));
            }
        }
        if !self.shape[0].is_multiple_of(self.groups) {
            return Err(Error::parameter(
                kind,
                "groups",
                self.groups,
                &format!("a divisor of the {} channels", self.shape[0]),
            ));
        }
        // The groups are known now, so the bias of a transposed convolution can be checked too.
        if let Some(bias) = &self.bias {
            super::check_bias(
                kind,
                Bias::from(&**bias),
                outputs,
                self.weights.len() / self.shape[0],
            )?;
        }
        if input.dims().len() != self.rank + 1 || input.channels() != channels {
            return Err(Error::shape(
                kind,
                input,
                format!("{} with {channels} channels", dims(self.rank)),
            ));
        }
        let mut size = [0; 2];
        for (axis, size) in size.iter_mut().enumerate() {
            let (given, kernel, stride, padding) =
                (input.plane()[axis], self.kernel()[axis], self.stride[axis], self.padding[axis]);
            let too_small = || {
                Error::shape(
                    kind,
                    input,
                    format!("an input at least as long as its kernel of size {kernel}"),
                )
            };
            // The length of the dilated kernel, dilation (kernel - 1) + 1. `new` rejects kernels of
            // size 0.
            let reach = self.dilation[axis]
                .checked_mul(kernel - 1)
                .and_then(|reach| reach.checked_add(1))
                .ok_or_else(too_small)?;
            let both = padding.checked_add(self.padding_end[axis]).ok_or_else(too_small)?;
            *size = if self.transposed {
                // PyTorch's size: (input - 1) stride + reach + output padding, less the padding on
                // both sides.
                let far =
                    (given.max(1) - 1).checked_mul(stride).and_then(|far| far.checked_add(reach));
                let whole = far.and_then(|far| far.checked_add(self.output_padding[axis]));
                whole
                    .and_then(|whole| whole.checked_sub(both))
                    .filter(|&size| size > 0)
                    .ok_or_else(too_small)?
            } else {
                // PyTorch's size: (input + padding on both sides - reach) / stride + 1, rounded down.
                given
                    .checked_add(both)
                    .and_then(|room| room.checked_sub(reach))
                    .ok_or_else(too_small)?
                    / stride
                    + 1
            };
            if self.output_padding[axis] >= stride.max(self.dilation[axis]) {
                let requirement = "smaller than the stride or the dilation";
                return Err(Error::parameter(
                    kind,
                    "output_padding",
                    self.output_padding,
                    requirement,
                ));
            }
        }
        let output = input.with(outputs, size);
        // This leaves room to compute sizes in bytes and indices without overflow.
        if output.size().max(input.size()) > isize::MAX as usize / 64 {
            return Err(Error::shape(kind, input, "fewer input and output values"));
        }
        let planes = |shape: Shape| Planes { channels: shape.channels(), size: shape.plane() };
        let (fine, coarse) = if self.transposed { (output, input) } else { (input, output) };
        // The padding at the end and the output padding have determined the sizes, so they are not
        // needed.
        let geometry = Geometry {
            fine: planes(fine),
            coarse: planes(coarse),
            groups: self.groups,
            kernel: self.kernel(),
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
        };
        let (weights, bias) = (self.weights.clone(), self.bias.clone());
        Ok(ConvolutionMap {
            geometry,
            transposed: self.transposed,
            weights,
            mapped: None,
            bias,
            output,
            products: Products::default(),
        })
    }

    fn arguments(&self) -> String {
        let (inputs, outputs) = self.channels();
        let pair = |pair| pair_of(pair, self.rank);
        let mut all = vec![
            inputs.to_string(),
            outputs.to_string(),
            format!("kernel_size={}", pair(self.kernel())),
            format!("stride={}", pair(self.stride)),
        ];
        let unusual = [
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
            ("output_padding", self.output_padding, 0),
        ];
        for (name, values, usual) in unusual {
            // For a sequence, this compares only the second number, because its height has no
            // setting.
            if Pair::from(usual).along(self.rank, values[0]) != values {
                all.push(format!("{name}={}", pair(values)));
            }
        }
        if self.padding_end != self.padding {
            all.push(format!("padding_end={}", pair(self.padding_end)));
        }
        if self.groups != 1 {
            all.push(format!("groups={}", self.groups));
        }
        if self.bias.is_none() {
            all.push("bias=False".to_owned());
        }
        all.join(", ")
    }

    /// The output channel that a weight belongs to, or its input channel if `output` is false.
    fn channel_of(&self, weight: usize, output: bool) -> usize {
        let area = self.shape[2] * self.shape[3];
        let (coarse, fine) = (weight / area / self.shape[1], weight / area % self.shape[1]);
        // This is the fine side, where `fine` counts within the group. Add the group's first
        // channel.
        if output == self.transposed {
            coarse / (self.shape[0] / self.groups) * self.shape[1] + fine
        } else {
            coarse
        }
    }

    fn scaled(&self, a: &[T], b: &[T]) -> Option<Self> {
        if !self.shape[0].is_multiple_of(self.groups) || a.len() != self.channels().1 {
            return None;
        }
        // a (W z + c) + b = (a W) z + (a c + b), with the a and b of each weight's output channel.
        let weights = self
            .weights
            .iter()
            .enumerate()
            .map(|(at, &w)| w * a[self.channel_of(at, true)])
            .collect();
        let own = |k: usize| self.bias.as_ref().map_or(T::zero(), |bias| bias[k]);
        let bias: Vec<T> =
            a.iter().zip(b).enumerate().map(|(k, (&a, &b))| a * own(k) + b).collect();
        self.with(weights, bias)
    }

    fn of_scaled(&self, a: &[T], b: &[T]) -> Option<Self> {
        let (inputs, outputs) = self.channels();
        let fits = self.shape[0].is_multiple_of(self.groups) && a.len() == inputs;
        // A shift b does not apply to zeros in the padding. At the border, where windows reach into
        // the padding, the bias would have to differ; a transposed convolution has such borders
        // even without padding.
        if !fits
            || self.transposed
            || ([self.padding, self.padding_end] != [[0, 0]; 2]
                && b.iter().any(|b| *b != T::zero()))
        {
            return None;
        }
        // W (a z + b) + c = (W a) z + (W b + c). No window loses taps to padding where b is not 0,
        // so W b is the same at all positions.
        let weights = self
            .weights
            .iter()
            .enumerate()
            .map(|(at, &w)| w * a[self.channel_of(at, false)])
            .collect();
        let mut bias =
            self.bias.as_ref().map_or_else(|| vec![T::zero(); outputs], |bias| bias.to_vec());
        for (at, &w) in self.weights.iter().enumerate() {
            bias[self.channel_of(at, true)] += w * b[self.channel_of(at, false)];
        }
        self.with(weights, bias)
    }

    /// A copy with other weights and another bias, if they are finite.
    fn with(&self, weights: Vec<T>, bias: Vec<T>) -> Option<Self> {
        let finite = linalg::first_non_finite(&weights).is_none()
            && linalg::first_non_finite(&bias).is_none();
        finite.then(|| Self { weights: weights.into(), bias: Some(bias.into()), ..self.clone() })
    }

    fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
        let [a, b, height, width] = self.shape;
        let shape = if self.rank == 2 { vec![a, b, height, width] } else { vec![a, b, width] };
        let mut tensors = vec![("weight", shape, self.weights.to_vec())];
        tensors.extend(self.bias.iter().map(|bias| ("bias", vec![bias.len()], bias.to_vec())));
        tensors
    }

    fn to_f64(&self) -> Convolution<f64> {
        Convolution {
            kind: self.kind,
            rank: self.rank,
            transposed: self.transposed,
            weights: super::exactly(&self.weights).into(),
            shape: self.shape,
            bias: self.bias.as_ref().map(|bias| super::exactly(bias).into()),
            stride: self.stride,
            padding: self.padding,
            padding_end: self.padding_end,
            output_padding: self.output_padding,
            dilation: self.dilation,
            groups: self.groups,
        }
    }
}

macro_rules! convolution {
    (
        $(#[$doc:meta])* $name:ident, $kind:literal, $rank:literal, $transposed:literal,
        $dims:ty, |$shape:ident| $four:expr
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name<T: Scalar> {
            inner: Convolution<T>,
        }

        impl<T: Scalar> $name<T> {
            /// Creates a layer from weights of this shape, in C order as in PyTorch, and an
            /// optional bias with one value per output channel.
            ///
            /// # Errors
            /// [`Error::ZeroSized`], [`Error::WeightCount`], [`Error::BiasShape`],
            /// [`Error::NonFiniteWeight`] and [`Error::NonFiniteBias`]. Whether the settings fit
            /// the input is checked when the model is built.
            pub fn new(
                $shape: $dims,
                weights: impl Into<Arc<[T]>>,
                bias: impl Into<Option<Vec<T>>>,
            ) -> Result<Self, Error> {
                let (weights, bias) = (weights.into(), bias.into());
                let inner = Convolution::new($kind, $rank, $transposed, $four, weights, bias)?;
                Ok(Self { inner })
            }

            /// Sets the stride, which is 1 by default.
            #[must_use]
            pub fn stride(mut self, stride: impl Into<Pair>) -> Self {
                self.inner.stride = stride.into().along($rank, 1);
                self
            }

            /// Sets how many zeros are added on each side of the input.
            #[must_use]
            pub fn padding(mut self, padding: impl Into<Pair>) -> Self {
                self.inner.padding = padding.into().along($rank, 0);
                self.inner.padding_end = self.inner.padding;
                self
            }

            /// Sets how many zeros are added below and on the right, if this differs from the
            /// padding above and on the left. Call it after [`padding`](Self::padding).
            #[must_use]
            pub fn padding_end(mut self, padding: impl Into<Pair>) -> Self {
                self.inner.padding_end = padding.into().along($rank, 0);
                self
            }

            /// Sets the dilation: the distance from one tap of the kernel to the next.
            #[must_use]
            pub fn dilation(mut self, dilation: impl Into<Pair>) -> Self {
                self.inner.dilation = dilation.into().along($rank, 1);
                self
            }

            /// Sets the number of groups. Each group of output channels depends only on its own
            /// group of input channels.
            #[must_use]
            pub fn groups(mut self, groups: usize) -> Self {
                self.inner.groups = groups;
                self
            }
        }

        impl<T: Scalar> Layer<T> for $name<T> {
            fn kind(&self) -> &str {
                $kind
            }

            fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
                let input = only_input(Layer::<T>::kind(self), inputs)?;
                Ok(Operator::linear(self.inner.map(input)?))
            }

            fn family(&self) -> Option<Family> {
                Some(Family::Convolution)
            }

            fn arguments(&self) -> String {
                self.inner.arguments()
            }

            fn parameters(&self) -> usize {
                self.inner.weights.len() + self.inner.bias.as_ref().map_or(0, |bias| bias.len())
            }

            fn scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
                Some(Arc::new(Self { inner: self.inner.scaled(a, b)? }))
            }

            fn of_scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
                Some(Arc::new(Self { inner: self.inner.of_scaled(a, b)? }))
            }

            fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
                self.inner.tensors()
            }

            fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
                Some(Arc::new($name { inner: self.inner.to_f64() }))
            }
        }
    };
}
convolution!(
    /// A convolution of an image, with weights of shape outputs x (inputs / groups) x height x
    /// width.
    ///
    /// ```
    /// use relprop::{Conv2d, Sequential};
    /// use relprop::nalgebra::DVector;
    ///
    /// let edge = Conv2d::new([1, 1, 1, 2], vec![-1.0, 1.0], None)?.stride([1, 1]);
    /// let model = Sequential::builder().input([1, 1, 4]).layer(edge).build()?;
    /// let x = DVector::from_vec(vec![0.0, 0.0, 1.0, 1.0]);
    /// assert_eq!(model.forward(&x)?.as_slice(), [0.0, 1.0, 0.0]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    Conv2d, "Conv2d", 2, false, [usize; 4], |shape| shape
);
convolution!(
    /// A convolution of a sequence, with weights of shape outputs x (inputs / groups) x length.
    // A sequence is an image of height 1.
    Conv1d, "Conv1d", 1, false, [usize; 3], |shape| [shape[0], shape[1], 1, shape[2]]
);
convolution!(
    /// A transposed convolution of an image, with weights of shape inputs x (outputs / groups) x
    /// height x width.
    ConvTranspose2d, "ConvTranspose2d", 2, true, [usize; 4], |shape| shape
);

impl<T: Scalar> ConvTranspose2d<T> {
    /// Sets how many rows and columns are added at the end of the output. Each number must be
    /// smaller than the stride or the dilation.
    #[must_use]
    pub fn output_padding(mut self, padding: impl Into<Pair>) -> Self {
        self.inner.output_padding = padding.into().along(2, 0);
        self
    }
}

/// A convolution for inputs of a given shape.
#[derive(Debug)]
struct ConvolutionMap<T> {
    geometry: Geometry,
    transposed: bool,
    weights: Arc<[T]>,
    /// The function that maps the weights when they are arranged for a product. This way rules
    /// share the weights in PyTorch's order instead of copying them.
    mapped: Option<WeightFn<T>>,
    bias: Option<Arc<[T]>>,
    output: Shape,
    products: Products<T>,
}

/// The products of a convolution, prepared on first use because not every map is used in both
/// directions.
#[derive(Debug)]
struct Products<T> {
    down: OnceLock<Correlation<T>>,
    up: OnceLock<Correlation<T>>,
    /// The same products without the Winograd transform, in case `down` and `up` use it.
    plain_down: OnceLock<Correlation<T>>,
    plain_up: OnceLock<Correlation<T>>,
    sizes: OnceLock<Sizes<T>>,
}

/// The magnitudes of the weights.
#[derive(Debug, Clone, Copy)]
struct Sizes<T> {
    /// The largest magnitude.
    largest: T,
    /// Whether many weights are zero or far below the largest, as after a rule's transform or after
    /// pruning. An output can then be far smaller than the inputs in its window.
    sparse: bool,
}

impl<T> Default for Products<T> {
    fn default() -> Self {
        let [down, up, plain_down, plain_up] = std::array::from_fn(|_| OnceLock::new());
        Self { down, up, plain_down, plain_up, sizes: OnceLock::new() }
    }
}

/// How a product is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    /// Relative to all values in a patch of inputs. This is faster.
    OfPatch,
    /// Relative to the magnitudes of each output's own summands.
    OfSum,
}

impl<T: Scalar> ConvolutionMap<T> {
    fn direction(&self, forward: bool) -> Direction {
        if forward == self.transposed { Direction::Up } else { Direction::Down }
    }

    fn product(&self, forward: bool, rounding: Rounding) -> &Correlation<T> {
        let Products { down, up, plain_down, plain_up, .. } = &self.products;
        let direction = self.direction(forward);
        // Without the transform, both roundings use the same product, so it is prepared only once.
        let of_sum = rounding == Rounding::OfSum && self.geometry.is_transformed();
        let cell = match (direction, of_sum) {
            (Direction::Down, false) => down,
            (Direction::Up, false) => up,
            (Direction::Down, true) => plain_down,
            (Direction::Up, true) => plain_up,
        };
        let make = if of_sum { Correlation::plain } else { Correlation::new };
        cell.get_or_init(|| match &self.mapped {
            None => make(&self.geometry, direction, &self.weights),
            // `make` copies the weights into its own order, so the mapped weights can be temporary.
            Some(f) => make(
                &self.geometry,
                direction,
                &self.weights.iter().map(|&w| f.value(w)).collect::<Vec<T>>(),
            ),
        })
    }

    /// Computes Wᵀ y for each column, or diag(u) Wᵀ y if `u` has a column for each sample.
    ///
    /// A product that is rounded relative to a patch can be wrong in all digits if the largest
    /// values of `y` meet weights of zero, for example after a rule has divided by a small total.
    /// The possible rounding error is therefore compared with the column's largest entry. Unless
    /// the error is much smaller, the column is computed again without the transform.
    fn transposed_product(&self, y: &[T], u: Option<&[T]>, x: &mut [T]) {
        let (inputs, outputs) = self.sides();
        self.product(false, Rounding::OfPatch).apply(y, x);
        // x and y have a column for each row of relevance, u has one for each sample. The columns
        // of a sample are neighbors.
        let columns = x.len() / inputs.values().max(1);
        let per_sample = u.map_or(1, |u| columns / (u.len() / inputs.values()).max(1));
        let scale = |column: usize, x: &mut [T]| {
            if let Some(u) = u {
                super::scale_columns(
                    x,
                    &u[column / per_sample * inputs.values()..][..inputs.values()],
                    inputs.values(),
                );
            }
        };
        // Without the transform, each entry is a plain sum, and 0 skips the check.
        let largest_weight =
            if self.geometry.is_transformed() { self.sizes().largest } else { T::zero() };
        for (column, (y, x)) in
            y.chunks_exact(outputs.values()).zip(x.chunks_exact_mut(inputs.values())).enumerate()
        {
            scale(column, x);
            if largest_weight == T::zero() {
                continue;
            }
            let u = u.map(|u| &u[column / per_sample * inputs.values()..][..inputs.values()]);
            let reach = linalg::reach(&self.geometry, self.direction(false), y, u);
            // Errors of a few hundred units in the last place of the largest entry are accepted.
            if largest_weight * reach > T::from_f64(256.0) * linalg::max_abs(x) {
                self.product(false, Rounding::OfSum).apply(y, x);
                // The new product has overwritten the scaled column.
                scale(column, x);
            }
        }
    }

    /// The rounding of the product W x. A rule can divide by the outputs, so small ones must be
    /// accurate too.
    fn forward_rounding(&self) -> Rounding {
        if self.geometry.is_transformed() && self.sizes().sparse {
            Rounding::OfSum
        } else {
            Rounding::OfPatch
        }
    }

    fn sizes(&self) -> Sizes<T> {
        *self.products.sizes.get_or_init(|| {
            let sizes = || {
                self.weights.iter().map(|&w| self.mapped.as_ref().map_or(w, |f| f.value(w)).abs())
            };
            let largest = sizes().fold(T::zero(), T::max);
            let small = sizes().filter(|&size| size < largest * T::from_f64(1e-3)).count();
            Sizes { largest, sparse: small > self.weights.len() / 16 }
        })
    }

    /// A copy without a bias and with the weights mapped by `f`.
    fn with(&self, f: &WeightFn<T>) -> Self {
        let f = f.after(self.mapped.as_ref());
        let (geometry, transposed, weights, output) =
            (self.geometry, self.transposed, self.weights.clone(), self.output);
        Self {
            geometry,
            transposed,
            weights,
            mapped: Some(f),
            bias: None,
            output,
            products: Products::default(),
        }
    }

    /// The planes of the inputs and of the outputs.
    fn sides(&self) -> (Planes, Planes) {
        let Geometry { fine, coarse, .. } = self.geometry;
        if self.transposed { (coarse, fine) } else { (fine, coarse) }
    }
}

impl<T: Scalar> LinearMap<T> for ConvolutionMap<T> {
    fn inputs(&self) -> usize {
        self.sides().0.values()
    }

    fn outputs(&self) -> usize {
        self.sides().1.values()
    }

    fn output_shape(&self) -> Shape {
        self.output
    }

    fn bias(&self) -> Option<Bias<'_, T>> {
        let [height, width] = self.output.plane();
        self.bias.as_ref().map(|bias| Bias::per_channel(bias, height * width))
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        self.product(true, self.forward_rounding()).apply(x, y);
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        self.transposed_product(y, None, x);
    }

    fn apply_transposed_scaled(&self, y: &[T], u: &[T], x: &mut [T]) {
        self.transposed_product(y, Some(u), x);
    }

    fn prepare_apply(&self) {
        self.product(true, self.forward_rounding());
    }

    fn prepare_apply_transposed(&self) {
        self.product(false, Rounding::OfPatch);
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        Box::new(self.with(f))
    }

    fn ones(&self) -> Box<dyn LinearMap<T>> {
        let (fine, coarse) = (self.geometry.fine, self.geometry.coarse);
        let groups = self.geometry.groups;
        // With weights of 1, all channels of a group are alike, so one channel per group is enough.
        let geometry = Geometry {
            fine: Planes { channels: groups, ..fine },
            coarse: Planes { channels: groups, ..coarse },
            ..self.geometry
        };
        let [height, width] = self.geometry.kernel;
        let weights = vec![T::one(); groups * height * width].into();
        // This shape has all channels. `ConvolutionOnes` copies the window's single channels to them.
        let (transposed, output) = (self.transposed, self.output);
        let window = Self {
            geometry,
            transposed,
            weights,
            mapped: None,
            bias: None,
            output,
            products: Products::default(),
        };
        let (inputs, outputs) = self.sides();
        Box::new(ConvolutionOnes { window, inputs, outputs })
    }

    fn multiply_adds(&self) -> f64 {
        let Geometry { fine, coarse, groups, kernel, .. } = self.geometry;
        // Both directions visit the same pairs: each coarse value and the taps of its window. Taps
        // in the padding are counted too.
        coarse.values() as f64 * (kernel[0] * kernel[1]) as f64 * (fine.channels / groups) as f64
    }
}

/// A convolution whose weights are all 1. It sums the channels of a group, convolves the sum once,
/// and copies the result to each output channel of the group.
#[derive(Debug)]
struct ConvolutionOnes<T: Scalar> {
    window: ConvolutionMap<T>,
    inputs: Planes,
    outputs: Planes,
}

impl<T: Scalar> ConvolutionOnes<T> {
    fn product(&self, forward: bool, x: &[T], y: &mut [T]) {
        let (from, to) =
            if forward { (self.inputs, self.outputs) } else { (self.outputs, self.inputs) };
        let groups = self.window.geometry.groups;
        let [of_from, of_to] = [from, to].map(|planes| planes.values() / planes.channels);
        // One plane for each group: the sum of its channels, and the convolution of that sum.
        linalg::borrow(groups * (of_from + of_to), |memory: &mut [T]| {
            let (sums, windows) = memory.split_at_mut(groups * of_from);
            for (x, y) in x.chunks_exact(from.values()).zip(y.chunks_exact_mut(to.values())) {
                sums.fill(T::zero());
                for (channel, x) in x.chunks_exact(of_from).enumerate() {
                    let group = channel / (from.channels / groups);
                    linalg::add_scaled(T::one(), x, &mut sums[group * of_from..][..of_from]);
                }
                self.window.product(forward, Rounding::OfSum).apply(sums, windows);
                for (channel, y) in y.chunks_exact_mut(of_to).enumerate() {
                    let group = channel / (to.channels / groups);
                    y.copy_from_slice(&windows[group * of_to..][..of_to]);
                }
            }
        });
    }
}

impl<T: Scalar> LinearMap<T> for ConvolutionOnes<T> {
    fn inputs(&self) -> usize {
        self.inputs.values()
    }

    fn outputs(&self) -> usize {
        self.outputs.values()
    }

    fn output_shape(&self) -> Shape {
        self.window.output
    }

    fn bias(&self) -> Option<Bias<'_, T>> {
        None
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        self.product(true, x, y);
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        self.product(false, y, x);
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        Box::new(Self { window: self.window.with(f), inputs: self.inputs, outputs: self.outputs })
    }

    fn multiply_adds(&self) -> f64 {
        (self.inputs.values() + self.outputs.values()) as f64 + self.window.multiply_adds()
    }
}
