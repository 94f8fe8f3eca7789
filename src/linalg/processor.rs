//! The processor's vectors.

use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};

use crate::scalar::{Lanes, Scalar};

/// The name of the environment variable that limits the vectors: to `avx2`, or to `baseline`, which
/// every processor of the target has.
const VARIABLE: &str = "RELPROP_SIMD";

/// The widest vectors of this processor, or narrower ones if the environment variable
/// `RELPROP_SIMD` asks for them. It is read once.
pub(super) fn processor() -> Arch {
    static PROCESSOR: OnceLock<Arch> = OnceLock::new();
    *PROCESSOR.get_or_init(|| match std::env::var(VARIABLE).as_deref() {
        Ok("baseline") => Arch::Scalar,
        #[cfg(target_arch = "x86_64")]
        Ok("avx2") => pulp::x86::V3::try_new().map_or(Arch::Scalar, Arch::V3),
        _ => Arch::new(),
    })
}

/// The number of values in a vector.
pub(super) fn lanes<T: Scalar>() -> usize {
    struct Count<T>(std::marker::PhantomData<T>);

    impl<T: Lanes> WithSimd for Count<T> {
        type Output = usize;

        #[inline(always)]
        #[allow(clippy::inline_always)] // as all kernels
        fn with_simd<S: Simd>(self, _: S) -> usize {
            T::lanes::<S>()
        }
    }

    processor().dispatch(Count::<T>(std::marker::PhantomData))
}

/// Runs a function that is compiled for the processor's widest vectors, so that its loops use them.
/// Only what is inlined into the function profits.
#[inline(always)]
#[allow(clippy::inline_always)] // as all kernels
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    struct Function<F>(F);

    impl<R, F: FnOnce() -> R> WithSimd for Function<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> R {
            (self.0)()
        }
    }

    processor().dispatch(Function(f))
}
