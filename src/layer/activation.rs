//! Activations: functions that are applied to each value. Relevance passes through unchanged.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::sync::Arc;

use super::{Elementwise, Layer, Operator, only_input, same_layer_in_f64};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Defines an activation without settings: its type, its name in PyTorch, whether its values are
/// nonnegative, and its function.
macro_rules! activation {
    (
        $(#[$doc:meta])* $name:ident, $kind:literal,
        |$input:ident| $nonnegative:expr, |$z:ident| $value:expr
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name;
        elementwise!(
            $name,
            $kind,
            |_this, $z| $value,
            |_this, $input| $nonnegative,
            |_this| String::new()
        );
    };
}

/// Implements both traits of an activation from its kind, its function, whether its values are
/// nonnegative, and its arguments as PyTorch prints them.
macro_rules! elementwise {
    (probability: $($rest:tt)*) => {
        elementwise!(@ true, $($rest)*);
    };
    ($name:ident, $($rest:tt)*) => {
        elementwise!(@ false, $name, $($rest)*);
    };
    (
        @ $probability:literal, $name:ident, $kind:literal,
        |$this:ident, $z:ident| $value:expr,
        |$sign:ident, $input:ident| $nonnegative:expr,
        |$settings:ident| $arguments:expr
    ) => {
        impl<T: Scalar> Elementwise<T> for $name {
            fn value(&self, $z: T) -> T {
                let $this = self;
                $value
            }

            fn is_nonnegative(&self, $input: bool) -> bool {
                let $sign = self;
                $nonnegative
            }

            fn gives_probability(&self) -> bool {
                $probability
            }
        }

        impl<T: Scalar> Layer<T> for $name {
            fn kind(&self) -> &str {
                $kind
            }

            fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
                Ok(Operator::elementwise(*self))
            }

            fn arguments(&self) -> String {
                let $settings = self;
                $arguments
            }

            same_layer_in_f64!();
        }
    };
}

activation!(
    /// The rectified linear unit: max(z, 0).
    Relu, "ReLU", |_input| true, |z| z.max(T::zero())
);
activation!(
    /// The sigmoid linear unit, also called swish: z σ(z), where σ is the logistic function.
    Silu, "SiLU", |input| input, |z| z * sigmoid(z)
);
/// The logistic function σ(z) = 1 / (1 + exp(-z)).
///
/// At the end of a model it turns each logit into a probability. As with
/// [`Softmax`](crate::Softmax), the logits are then explained, and the explanation also reports the
/// probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sigmoid;
elementwise!(
    probability: Sigmoid,
    "Sigmoid",
    |_this, z| sigmoid(z),
    |_this, _input| true,
    |_this| String::new()
);
activation!(
    /// The hyperbolic tangent: tanh(z).
    Tanh, "Tanh", |input| input, |z| z.tanh()
);
activation!(
    /// The scaled exponential linear unit: λ z where z > 0, otherwise λ α (exp(z) - 1), with
    /// λ = 1.0507 and α = 1.6733 (Klambauer et al. 2017).
    Selu, "SELU", |input| input, |z| {
        let scale = T::from_f64(1.050_700_987_355_480_5);
        let alpha = T::from_f64(1.673_263_242_354_377_2);
        // exp_m1 stays accurate near 0, where exp(z) - 1 cancels.
        if z > T::zero() { scale * z } else { scale * alpha * z.exp_m1() }
    }
);
activation!(
    /// The Mish activation: z tanh(ln(1 + exp(z))) (Misra 2019).
    // The softplus is max(z, 0) + ln(1 + exp(-|z|)), which does not overflow.
    Mish, "Mish", |input| input, |z| z * (z.max(T::zero()) + (-z.abs()).exp().ln_1p()).tanh()
);
activation!(
    /// The softsign function: z / (1 + |z|).
    Softsign, "Softsign", |input| input, |z| z / (T::one() + z.abs())
);
/// A piecewise linear sigmoid: z / 6 + 1/2, clipped to the range from 0 to 1.
///
/// At the end of a model it is treated like [`Sigmoid`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardSigmoid;
elementwise!(
    probability: HardSigmoid,
    "Hardsigmoid",
    |_this, z| hard_sigmoid(z),
    |_this, _input| true,
    |_this| String::new()
);
activation!(
    /// A piecewise form of swish: z times [`HardSigmoid`] of z (Howard et al. 2019).
    HardSwish, "Hardswish", |input| input, |z| z * hard_sigmoid(z)
);

fn sigmoid<T: Scalar>(z: T) -> T {
    // Where exp(-z) overflows, the quotient is 0, as it should be.
    T::one() / (T::one() + (-z).exp())
}

fn hard_sigmoid<T: Scalar>(z: T) -> T {
    ((z + T::from_f64(3.0)) / T::from_f64(6.0)).max(T::zero()).min(T::one())
}

/// The leaky rectified linear unit: z where z > 0, otherwise slope · z.
///
/// | parameter | default | range |
/// |---|---|---|
/// | slope | 0.01 | finite |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LeakyRelu {
    slope: f64,
}

impl LeakyRelu {
    /// Creates the activation with this slope for negative values.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless the slope is finite.
    pub fn new(slope: f64) -> Result<Self, Error> {
        finite("LeakyReLU", "negative_slope", slope).map(|slope| Self { slope })
    }
}

impl Default for LeakyRelu {
    fn default() -> Self {
        Self { slope: 0.01 }
    }
}

elementwise!(
    LeakyRelu,
    "LeakyReLU",
    |this, z| if z > T::zero() { z } else { T::from_f64(this.slope) * z },
    |_this, input| input,
    |this| format!("negative_slope={}", this.slope)
);

/// The exponential linear unit: z where z > 0, otherwise alpha (exp(z) - 1).
///
/// | parameter | default | range |
/// |---|---|---|
/// | alpha | 1 | finite |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Elu {
    alpha: f64,
}

impl Elu {
    /// Creates the activation with this alpha.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless alpha is finite.
    pub fn new(alpha: f64) -> Result<Self, Error> {
        finite("ELU", "alpha", alpha).map(|alpha| Self { alpha })
    }
}

impl Default for Elu {
    fn default() -> Self {
        Self { alpha: 1.0 }
    }
}

elementwise!(
    Elu,
    "ELU",
    |this, z| if z > T::zero() { z } else { T::from_f64(this.alpha) * z.exp_m1() },
    |_this, input| input,
    |this| format!("alpha={:?}", this.alpha)
);

/// The continuously differentiable exponential linear unit: z where z > 0, otherwise
/// alpha (exp(z / alpha) - 1) (Barron 2017).
///
/// | parameter | default | range |
/// |---|---|---|
/// | alpha | 1 | finite, above 0 |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Celu {
    alpha: f64,
}

impl Celu {
    /// Creates the activation with this alpha.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless alpha is finite and above 0.
    pub fn new(alpha: f64) -> Result<Self, Error> {
        above_zero("CELU", "alpha", alpha).map(|alpha| Self { alpha })
    }
}

impl Default for Celu {
    fn default() -> Self {
        Self { alpha: 1.0 }
    }
}

elementwise!(
    Celu,
    "CELU",
    |this, z| if z > T::zero() {
        z
    } else {
        T::from_f64(this.alpha) * (z / T::from_f64(this.alpha)).exp_m1()
    },
    |_this, input| input,
    |this| format!("alpha={:?}", this.alpha)
);

/// The Gaussian error linear unit: z Φ(z), where Φ is the normal distribution function, exact or
/// approximated with tanh (Hendrycks and Gimpel 2016).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gelu {
    /// z (1 + erf(z / √2)) / 2.
    #[default]
    Exact,
    /// z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2.
    Tanh,
}

elementwise!(
    Gelu,
    "GELU",
    |this, z| {
        let inner = match this {
            Self::Exact => (z * T::from_f64(FRAC_1_SQRT_2)).erf(),
            // 2/√π · 1/√2 = √(2/π).
            Self::Tanh => (T::from_f64(FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
                * (z + T::from_f64(0.044_715) * z * z * z))
                .tanh(),
        };
        T::from_f64(0.5) * z * (T::one() + inner)
    },
    |_this, input| input,
    |this| format!("approximate='{}'", if *this == Self::Exact { "none" } else { "tanh" })
);

/// A smooth rectified linear unit: ln(1 + exp(beta z)) / beta, or z where beta z is above the
/// threshold.
///
/// | parameter | default | range |
/// |---|---|---|
/// | beta | 1 | finite, above 0 |
/// | threshold | 20 | finite |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Softplus {
    beta: f64,
    threshold: f64,
}

impl Softplus {
    /// Creates the activation with these settings.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless both are finite and beta is above 0.
    pub fn new(beta: f64, threshold: f64) -> Result<Self, Error> {
        above_zero("Softplus", "beta", beta)?;
        finite("Softplus", "threshold", threshold).map(|threshold| Self { beta, threshold })
    }
}

impl Default for Softplus {
    fn default() -> Self {
        Self { beta: 1.0, threshold: 20.0 }
    }
}

elementwise!(
    Softplus,
    "Softplus",
    |this, z| {
        let (beta, scaled) = (T::from_f64(this.beta), T::from_f64(this.beta) * z);
        if scaled > T::from_f64(this.threshold) { z } else { scaled.exp().ln_1p() / beta }
    },
    // The logarithm is positive. Above the threshold the value is z, which is positive unless the
    // threshold is negative.
    |this, input| input || this.threshold >= 0.0,
    |this| format!("beta={:?}, threshold={:?}", this.beta, this.threshold)
);

/// The identity, clipped to the range from `min` to `max`.
///
/// | parameter | default | range |
/// |---|---|---|
/// | min | -1 | finite |
/// | max | 1 | finite, at least min |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HardTanh {
    min: f64,
    max: f64,
}

impl HardTanh {
    /// Creates the activation with these bounds.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless both bounds are finite and max is at least min.
    pub fn new(min: f64, max: f64) -> Result<Self, Error> {
        finite("Hardtanh", "min_val", min)?;
        finite("Hardtanh", "max_val", max)?;
        if max < min {
            return Err(Error::parameter("Hardtanh", "max_val", max, "at least min_val"));
        }
        Ok(Self { min, max })
    }
}

impl Default for HardTanh {
    fn default() -> Self {
        Self { min: -1.0, max: 1.0 }
    }
}

elementwise!(
    HardTanh,
    "Hardtanh",
    |this, z| z.max(T::from_f64(this.min)).min(T::from_f64(this.max)),
    // For z >= 0, the value is z or a bound, so it can be negative only if max is.
    |this, input| this.max >= 0.0 && (input || this.min >= 0.0),
    |this| format!("min_val={:?}, max_val={:?}", this.min, this.max)
);

/// The identity: every value stays unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity;

// Only `Scaled` uses this function. As a layer, the identity is a reshape that computes nothing.
impl<T: Scalar> Elementwise<T> for Identity {
    fn value(&self, z: T) -> T {
        z
    }

    fn is_nonnegative(&self, input: bool) -> bool {
        input
    }
}

impl<T: Scalar> Layer<T> for Identity {
    fn kind(&self) -> &str {
        "Identity"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        Ok(Operator::Reshape(input))
    }

    same_layer_in_f64!();
}

/// Dropout, which has no effect at inference.
///
/// | parameter | default | range |
/// |---|---|---|
/// | p | 0.5 | 0 to 1; has no effect, but is written to files |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// Creates the layer with this probability.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless p is between 0 and 1.
    pub fn new(p: f64) -> Result<Self, Error> {
        if (0.0..=1.0).contains(&p) {
            Ok(Self { p })
        } else {
            Err(Error::parameter("Dropout", "p", p, "between 0 and 1"))
        }
    }
}

impl Default for Dropout {
    fn default() -> Self {
        Self { p: 0.5 }
    }
}

impl<T: Scalar> Layer<T> for Dropout {
    fn kind(&self) -> &str {
        "Dropout"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        Ok(Operator::Reshape(input))
    }

    fn arguments(&self) -> String {
        format!("p={:?}, inplace=False", self.p)
    }

    same_layer_in_f64!();
}

/// An activation f with a scaled argument and a scaled value: c f(a z).
///
/// Relevance passes through it unchanged. As separate layers, the two factors would be linear maps,
/// and rules such as [`Rule::Relative`](crate::Rule::Relative) would treat them as such.
///
/// | parameter | range |
/// |---|---|
/// | argument (a) | finite |
/// | value (c) | finite |
///
/// # Example
/// ```
/// use relprop::nalgebra::{self, dmatrix, dvector};
/// use relprop::{Linear, Scaled, Sequential, Silu};
///
/// // QuickGELU: z σ(1.702 z).
/// let quick = Scaled::new(Silu, 1.702, 1.0 / 1.702)?;
/// let linear = Linear::new(dmatrix![1.0], None)?;
/// let model = Sequential::builder().layer(linear).layer(quick).build()?;
/// let expected: f64 = 2.0 / (1.0 + (-3.404_f64).exp());
/// assert!((model.forward(&dvector![2.0])?[0] - expected).abs() < 1e-12);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Scaled<T: Scalar> {
    layer: Arc<dyn Layer<T>>,
    function: Arc<dyn Elementwise<T>>,
    argument: f64,
    value: f64,
}

impl<T: Scalar> Scaled<T> {
    /// Creates c f(a z) from the activation f, a = `argument` and c = `value`.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless both factors are finite.
    pub fn new(
        activation: impl Layer<T> + Elementwise<T> + Clone + 'static,
        argument: f64,
        value: f64,
    ) -> Result<Self, Error> {
        Self::with(Arc::new(activation.clone()), Arc::new(activation), argument, value)
    }

    /// Creates c f(a z) from a layer, which must be an activation.
    pub(crate) fn of(layer: Arc<dyn Layer<T>>, argument: f64, value: f64) -> Result<Self, Error> {
        // Activations accept any shape, so a single value shows what the layer is.
        match layer.operator(&[Shape::from(1)])? {
            Operator::Elementwise(function) => Self::with(layer, function, argument, value),
            // The identity and dropout. A flatten gives some of these shapes back, but not all.
            Operator::Reshape(_)
                if [Shape::from(2), Shape::from([1, 2, 1])].into_iter().all(|shape| {
                    matches!(layer.operator(&[shape]), Ok(Operator::Reshape(to)) if to == shape)
                }) =>
            {
                Self::with(layer, Arc::new(Identity), argument, value)
            }
            _ => {
                Err(Error::parameter(SCALED, "activation", layer.kind(), "a function of one value"))
            }
        }
    }

    fn with(
        layer: Arc<dyn Layer<T>>,
        function: Arc<dyn Elementwise<T>>,
        argument: f64,
        value: f64,
    ) -> Result<Self, Error> {
        for (name, factor) in [("argument", argument), ("value", value)] {
            // A finite f64 can be infinite in the model's number type.
            finite(SCALED, name, T::from_f64(factor).as_f64())?;
        }
        Ok(Self { layer, function, argument, value })
    }
}

const SCALED: &str = "Scaled";

impl<T: Scalar> Elementwise<T> for Scaled<T> {
    fn value(&self, z: T) -> T {
        T::from_f64(self.value) * self.function.value(T::from_f64(self.argument) * z)
    }

    /// With a negative factor, the sign of f's argument or of the value is unknown.
    fn is_nonnegative(&self, input: bool) -> bool {
        self.value == 0.0
            || (self.value > 0.0 && self.function.is_nonnegative(input && self.argument >= 0.0))
    }

    fn apply(&self, values: &mut [T]) {
        let (argument, value) = (T::from_f64(self.argument), T::from_f64(self.value));
        for z in &mut *values {
            *z *= argument;
        }
        self.function.apply(values);
        for f in values {
            *f *= value;
        }
    }
}

impl<T: Scalar> Layer<T> for Scaled<T> {
    fn kind(&self) -> &str {
        SCALED
    }

    fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(Operator::elementwise(self.clone()))
    }

    fn arguments(&self) -> String {
        let (kind, arguments) = (self.layer.kind(), self.layer.arguments());
        format!("{kind}({arguments}), argument={:?}, value={:?}", self.argument, self.value)
    }

    fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
        Some(Arc::new(Scaled::of(self.layer.to_f64()?, self.argument, self.value).ok()?))
    }
}

fn above_zero(of: &str, parameter: &str, value: f64) -> Result<f64, Error> {
    if finite(of, parameter, value)? > 0.0 {
        Ok(value)
    } else {
        Err(Error::parameter(of, parameter, value, "above 0"))
    }
}

fn finite(of: &str, parameter: &str, value: f64) -> Result<f64, Error> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::parameter(of, parameter, value, "finite"))
    }
}
