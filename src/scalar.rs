//! The number types of networks.

mod lanes;

use std::fmt::{Debug, Display, LowerExp};
use std::iter::Sum;

use num_traits::{Float, NumAssign};

// The only import against the order of the modules: the table refers to all large functions.
use crate::compiled::{self, Compiled};
pub use lanes::Lanes;

/// A network's number type: `f32` or `f64`.
///
/// The trait is sealed. It combines nalgebra's `Scalar` with the arithmetic of
/// [`num_traits::Float`]. nalgebra's own `RealField` is not a supertrait, because every call of
/// `abs` or `max` would then be ambiguous.
pub trait Scalar:
    nalgebra::Scalar
    + Copy
    + Default
    + Float
    + NumAssign
    + Sum
    + Debug
    + Display
    + LowerExp
    + Send
    + Sync
    + Lanes
    + sealed::Sealed
{
    /// Blocks of shares are rescaled by a power of two if their largest magnitude is outside
    /// 2^-RANGE to 2^RANGE.
    #[doc(hidden)]
    const RANGE: i32;

    /// Converts from double precision to the nearest value of this type.
    fn from_f64(value: f64) -> Self;

    /// Converts to double precision.
    fn as_f64(self) -> f64;

    /// This value times 2^exponent, correctly rounded.
    #[must_use]
    fn times_two_to(self, exponent: i32) -> Self {
        Self::from_f64(libm::scalbn(self.as_f64(), exponent))
    }

    /// The error function.
    #[must_use]
    fn erf(self) -> Self;

    /// The table of the crate's large functions, compiled for this type.
    #[doc(hidden)]
    fn compiled() -> &'static Compiled<Self>;
}

impl Scalar for f32 {
    const RANGE: i32 = 32;

    #[allow(clippy::cast_possible_truncation)] // rounding to the nearest f32 is intended
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn as_f64(self) -> f64 {
        f64::from(self)
    }

    fn erf(self) -> Self {
        libm::erff(self)
    }

    fn compiled() -> &'static Compiled<Self> {
        &compiled::F32
    }
}

impl Scalar for f64 {
    const RANGE: i32 = 256;

    fn from_f64(value: f64) -> Self {
        value
    }

    fn as_f64(self) -> f64 {
        self
    }

    fn erf(self) -> Self {
        libm::erf(self)
    }

    fn compiled() -> &'static Compiled<Self> {
        &compiled::F64
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}
