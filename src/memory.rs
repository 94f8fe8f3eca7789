//! Limits on memory, checked before anything is allocated.

use crate::error::Error;

/// Checks that this many values of type `T` can be allocated at all. Sizes come from files and from
/// layers, so they can be larger than any machine's memory.
///
/// # Errors
/// [`Error::TooLarge`].
pub(crate) fn check_possible<T>(values: usize, what: impl FnOnce() -> String) -> Result<(), Error> {
    /// Below this number of bytes, there is no need to ask.
    const SMALL: usize = 1 << 30;
    /// No machine has this number of bytes.
    const ABSURD: usize = 1 << 46;
    let bytes = values.saturating_mul(size_of::<T>());
    let is_possible = || Vec::<T>::new().try_reserve_exact(values).is_ok();
    if bytes < SMALL || bytes < ABSURD && is_possible() {
        return Ok(());
    }
    Err(Error::TooLarge {
        what: what(),
        bytes: bytes as u64,
        limit: isize::MAX as u64,
        remedy: "give the model a smaller input, or fewer samples at a time".to_owned(),
    })
}

/// A limit in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryLimit(pub u64);

impl Default for MemoryLimit {
    /// 2 GiB.
    fn default() -> Self {
        Self(2 << 30)
    }
}

impl MemoryLimit {
    /// Checks that this many values of type `T` fit within the limit. The number is a float because
    /// it can exceed every integer type.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn check<T>(
        self,
        values: f64,
        what: impl FnOnce() -> String,
        remedy: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let bytes = values * size_of::<T>() as f64;
        if bytes <= self.0 as f64 {
            return Ok(());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
        Err(Error::TooLarge { what: what(), bytes: bytes as u64, limit: self.0, remedy: remedy() })
    }
}
