//! The shape of a sample, or of a layer's values.

use std::fmt;

/// The shape of a sample or of a layer's values: a vector, channels x length, or channels x height
/// x width.
///
/// Values are in C order, like a sample in PyTorch or NumPy without its batch axis. A sample is
/// always one column, whatever its shape.
///
/// ```
/// use relprop::Shape;
///
/// let image = Shape::from([3, 224, 224]);
/// assert_eq!((image.size(), image.to_string()), (150_528, "3 x 224 x 224".to_owned()));
/// assert_eq!(Shape::from(784).dims(), [784]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: usize,
    dims: [usize; 3],
}

impl Shape {
    /// The length of each axis. There are one to three axes.
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
            3 => [self.dims[1], self.dims[2]],
            2 => [1, self.dims[1]],
            _ => [1, 1],
        }
    }

    /// A shape with this many channels, height and width: an image if `self` is one, or else a
    /// sequence.
    pub(crate) fn with(&self, channels: usize, [height, width]: [usize; 2]) -> Self {
        if self.rank == 3 { [channels, height, width].into() } else { [channels, width].into() }
    }
}

impl From<usize> for Shape {
    fn from(size: usize) -> Self {
        Self { rank: 1, dims: [size, 1, 1] }
    }
}

impl From<[usize; 1]> for Shape {
    fn from([size]: [usize; 1]) -> Self {
        size.into()
    }
}

impl From<[usize; 2]> for Shape {
    fn from([channels, length]: [usize; 2]) -> Self {
        Self { rank: 2, dims: [channels, length, 1] }
    }
}

impl From<[usize; 3]> for Shape {
    fn from(dims: [usize; 3]) -> Self {
        Self { rank: 3, dims }
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
