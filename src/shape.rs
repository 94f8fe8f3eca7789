//! The shape of a sample, or of a layer's values.

use std::fmt;

/// The largest allowed number of values in a layer. Sums of such sizes, and their sizes in bytes,
/// do not overflow.
pub(crate) const LARGEST: usize = isize::MAX as usize / 64;

/// The shape of a sample or of a layer's values: the length of each of its axes.
///
/// A vector has one axis, a sequence has two (channels x length), and an image has three (channels
/// x height x width). There can be up to eight. Values are in C order, like a sample in PyTorch or
/// NumPy without its batch axis. A sample is always one column, whatever its shape.
///
/// ```
/// use relprop::Shape;
///
/// let image = Shape::from([3, 224, 224]);
/// assert_eq!((image.size(), image.to_string()), (150_528, "3 x 224 x 224".to_owned()));
/// assert_eq!(Shape::from(784).dims(), [784]);
/// assert_eq!(Shape::try_from(&[2, 3][..])?, Shape::from([2, 3]));
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: usize,
    /// The axes after the first `rank` ones have length 1.
    dims: [usize; Self::MAX_AXES],
}

impl Shape {
    /// The largest number of axes.
    pub const MAX_AXES: usize = 8;

    /// The length of each axis.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The number of values.
    #[must_use]
    pub fn size(&self) -> usize {
        // Saturates, because a shape from a file can have any size.
        self.dims().iter().fold(1, |size: usize, &dim| size.saturating_mul(dim))
    }

    /// The number of channels, which is the length of the first axis.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.dims[0]
    }

    /// The height and the width. A sequence has height 1 and its length as width; for a vector,
    /// both are 1.
    pub(crate) fn plane(&self) -> [usize; 2] {
        match self.rank {
            2 => [1, self.dims[1]],
            _ => [self.dims[1], self.dims[2]],
        }
    }

    /// A shape with this many channels, height and width: an image if `self` is one, or else a
    /// sequence.
    pub(crate) fn with(&self, channels: usize, [height, width]: [usize; 2]) -> Self {
        if self.rank == 3 { [channels, height, width].into() } else { [channels, width].into() }
    }

    /// This shape with another length of an axis.
    pub(crate) fn with_dim(mut self, axis: usize, length: usize) -> Self {
        self.dims[axis] = length;
        self
    }
}

impl From<usize> for Shape {
    fn from(size: usize) -> Self {
        [size].into()
    }
}

/// Implements the conversion from an array for these numbers of axes.
macro_rules! from_arrays {
    ($($rank:literal),*) => {$(
        impl From<[usize; $rank]> for Shape {
            fn from(given: [usize; $rank]) -> Self {
                let mut dims = [1; Self::MAX_AXES];
                dims[..$rank].copy_from_slice(&given);
                Self { rank: $rank, dims }
            }
        }
    )*};
}
from_arrays!(0, 1, 2, 3, 4, 5, 6, 7, 8);

/// A shape has more than [`Shape::MAX_AXES`] axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a shape of {axes} axes is unsupported; at most {} are supported", Shape::MAX_AXES)]
pub struct TooManyAxes {
    /// The number of axes.
    pub axes: usize,
}

impl TryFrom<&[usize]> for Shape {
    type Error = TooManyAxes;

    /// # Errors
    /// [`TooManyAxes`] if there are more than [`MAX_AXES`](Self::MAX_AXES) axes.
    fn try_from(given: &[usize]) -> Result<Self, TooManyAxes> {
        let mut dims = [1; Self::MAX_AXES];
        let first = dims.get_mut(..given.len()).ok_or(TooManyAxes { axes: given.len() })?;
        first.copy_from_slice(given);
        Ok(Self { rank: given.len(), dims })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims().iter().map(usize::to_string).collect();
        f.pad(&dims.join(" x "))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
