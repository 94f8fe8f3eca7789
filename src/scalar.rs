//! The number types of networks.

use std::cell::RefCell;
use std::fmt::{Debug, Display, LowerExp};
use std::iter::Sum;

use num_traits::{Float, NumAssign};

use crate::compiled::Compiled;
use crate::linalg::{self, Kernel, Lanes, Scratch};

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

    /// Lends the current thread's scratch memory, which the matrix products use, to a function.
    #[doc(hidden)]
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;

    /// Runs a kernel with the processor's widest vectors. The method is not generic, so the kernels
    /// are compiled once, as part of this crate, and not again in every crate that uses it.
    #[doc(hidden)]
    fn run(kernel: Kernel<'_, Self>);

    /// The table of the crate's large functions, compiled for this type.
    #[doc(hidden)]
    fn compiled() -> &'static Compiled<Self>;
}

macro_rules! compiled_here {
    ($number:ty) => {
        fn run(kernel: Kernel<'_, Self>) {
            linalg::dispatch(kernel);
        }

        fn compiled() -> &'static Compiled<Self> {
            static COMPILED: Compiled<$number> = Compiled::ALL;
            &COMPILED
        }

        fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
            thread_local! {
                static SCRATCH: RefCell<Scratch<$number>> = RefCell::default();
            }
            SCRATCH.with(|scratch| linalg::lend(scratch, f))
        }
    };
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

    compiled_here!(f32);
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

    compiled_here!(f64);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}
