//! A limit on the memory of a call, checked before anything is allocated.

use crate::error::Error;

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
