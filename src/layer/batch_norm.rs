//! Batch normalization at inference: y = a z + b for each channel.

use std::sync::Arc;

use super::{Bias, Family, Layer, LinearMap, Operator, WeightFn, only_input};
use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The learned values of each channel, and the scale and shift that follow from them.
#[derive(Debug, Clone)]
struct Statistics<T> {
    weight: Arc<[T]>,
    bias: Arc<[T]>,
    mean: Arc<[T]>,
    variance: Arc<[T]>,
    eps: f64,
    /// a = weight / √(variance + eps), b = bias - mean a.
    a: Arc<[T]>,
    b: Arc<[T]>,
}

impl<T: Scalar> Statistics<T> {
    fn new(
        kind: &str,
        [weight, bias, mean, variance]: [Vec<T>; 4],
        eps: f64,
    ) -> Result<Self, Error> {
        let channels = weight.len();
        if channels == 0 {
            return Err(Error::ZeroSized { kind: kind.to_owned(), outputs: 0, inputs: 0 });
        }
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(Error::parameter(kind, "eps", eps, "finite and at least 0"));
        }
        for (name, values) in [
            ("weight", &weight),
            ("bias", &bias),
            ("running_mean", &mean),
            ("running_var", &variance),
        ] {
            if values.len() != channels {
                return Err(Error::parameter(
                    kind,
                    name,
                    values.len(),
                    &format!("{channels} values long, like the weight"),
                ));
            }
            if let Some((_, value)) = linalg::first_non_finite(values) {
                return Err(Error::parameter(kind, name, value.as_f64(), "finite"));
            }
        }
        let scale = |(&w, &v): (&T, &T)| w / (v + T::from_f64(eps)).sqrt();
        let a: Arc<[T]> = weight.iter().zip(&variance).map(scale).collect();
        let b: Arc<[T]> =
            bias.iter().zip(&mean).zip(&*a).map(|((&b, &mean), &a)| b - mean * a).collect();
        let unusable = linalg::first_non_finite(&a).or(linalg::first_non_finite(&b));
        if let Some((channel, _)) = unusable {
            return Err(Error::parameter(
                kind,
                "running_var + eps",
                variance[channel].as_f64() + eps,
                "above 0 and large enough for a finite scale and shift of each channel",
            ));
        }
        Ok(Self {
            weight: weight.into(),
            bias: bias.into(),
            mean: mean.into(),
            variance: variance.into(),
            eps,
            a,
            b,
        })
    }
}

macro_rules! batch_norm {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $ranks:pat, $shapes:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name<T: Scalar> {
            statistics: Statistics<T>,
        }

        impl<T: Scalar> $name<T> {
            /// Creates a layer from PyTorch's tensors, each with one value per channel. PyTorch's
            /// default for eps is 1e-5.
            ///
            /// # Errors
            /// [`Error::ZeroSized`] if there are no channels. [`Error::InvalidParameter`] if the
            /// tensors differ in length or are not finite, if eps is negative or not finite, or if
            /// a channel's variance plus eps is too small for a finite scale.
            pub fn new(
                weight: Vec<T>,
                bias: Vec<T>,
                running_mean: Vec<T>,
                running_var: Vec<T>,
                eps: f64,
            ) -> Result<Self, Error> {
                let tensors = [weight, bias, running_mean, running_var];
                Ok(Self { statistics: Statistics::new($kind, tensors, eps)? })
            }
        }

        impl<T: Scalar> Layer<T> for $name<T> {
            fn kind(&self) -> &str {
                $kind
            }

            fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
                let input = only_input(Layer::<T>::kind(self), inputs)?;
                let Statistics { a, b, .. } = &self.statistics;
                if !matches!(input.dims().len(), $ranks) || input.channels() != a.len() {
                    let expected = format!(concat!("{} channels (", $shapes, ")"), a.len());
                    return Err(Error::shape($kind, input, expected));
                }
                let (a, b) = (a.clone(), Some(b.clone()));
                Ok(Operator::Average(Arc::new(PerChannel { a, b, shape: input })))
            }

            fn family(&self) -> Option<Family> {
                Some(Family::Normalization)
            }

            fn arguments(&self) -> String {
                let Statistics { a, eps, .. } = &self.statistics;
                // The last three are PyTorch's defaults. None of them matters at inference.
                format!("{}, eps={eps:?}, momentum=0.1, affine=True, \
                    track_running_stats=True", a.len())
            }

            fn parameters(&self) -> usize {
                2 * self.statistics.a.len()
            }

            fn per_channel(&self) -> Option<(&[T], &[T])> {
                Some((&self.statistics.a, &self.statistics.b))
            }

            fn scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
                let (own, shift) = self.per_channel().filter(|(own, _)| own.len() == a.len())?;
                let weight = own.iter().zip(a).map(|(&own, &a)| own * a).collect();
                let bias =
                    shift.iter().zip(a).zip(b).map(|((&shift, &a), &b)| a * shift + b).collect();
                // With mean 0, variance 1 and eps 0, the layer is y = weight z + bias.
                let (mean, variance) = (vec![T::zero(); a.len()], vec![T::one(); a.len()]);
                Some(Arc::new(Self::new(weight, bias, mean, variance, 0.0).ok()?))
            }

            fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
                let Statistics { weight, bias, mean, variance, .. } = &self.statistics;
                [
                    ("weight", weight),
                    ("bias", bias),
                    ("running_mean", mean),
                    ("running_var", variance),
                ]
                .map(|(name, values)| (name, vec![values.len()], values.to_vec()))
                .into()
            }

            /// The scale and shift are computed anew, because their rounding is part of the error.
            fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
                let Statistics { weight, bias, mean, variance, eps, .. } = &self.statistics;
                let tensors = [weight, bias, mean, variance].map(|values| super::exactly(values));
                let statistics = Statistics::new($kind, tensors, *eps).ok()?;
                Some(Arc::new($name { statistics }))
            }
        }
    };
}
batch_norm!(
    /// Batch normalization of a vector's values or of the channels of a sequence, with the
    /// statistics from training.
    ///
    /// Merge it into a neighboring layer with
    /// [`Graph::canonize`](crate::Graph::canonize) before you explain the model.
    BatchNorm1d, "BatchNorm1d", 1 | 2, "a vector, or channels x length"
);
batch_norm!(
    /// Batch normalization of the channels of an image, with the statistics from training.
    ///
    /// Merge it into a neighboring layer with
    /// [`Graph::canonize`](crate::Graph::canonize) before you explain the model.
    BatchNorm2d, "BatchNorm2d", 3, "channels x height x width"
);

/// The map y = a z + b with one a and one b per channel.
#[derive(Debug)]
struct PerChannel<T> {
    a: Arc<[T]>,
    b: Option<Arc<[T]>>,
    shape: Shape,
}

impl<T: Scalar> LinearMap<T> for PerChannel<T> {
    fn inputs(&self) -> usize {
        self.shape.size()
    }

    fn outputs(&self) -> usize {
        self.shape.size()
    }

    fn output_shape(&self) -> Shape {
        self.shape
    }

    fn bias(&self) -> Option<Bias<'_, T>> {
        self.b.as_ref().map(|b| Bias::per_channel(b, self.shape.size() / b.len()))
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        // A channel is a block of consecutive values. After the last channel, the next column
        // begins.
        let each = self.shape.size() / self.a.len();
        for ((y, x), &a) in
            y.chunks_exact_mut(each).zip(x.chunks_exact(each)).zip(self.a.iter().cycle())
        {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = a * x);
        }
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        // The matrix is diagonal.
        self.apply(y, x);
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        Box::new(Self {
            a: self.a.iter().map(|&a| f.value(a)).collect(),
            b: None,
            shape: self.shape,
        })
    }

    fn multiply_adds(&self) -> f64 {
        self.shape.size() as f64
    }
}
