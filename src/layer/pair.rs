//! Settings along the axes of images and sequences.

/// A setting along height and width: one number for both, or one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair([usize; 2]);

impl From<usize> for Pair {
    fn from(both: usize) -> Self {
        Self([both, both])
    }
}

impl From<[usize; 2]> for Pair {
    fn from(each: [usize; 2]) -> Self {
        Self(each)
    }
}

impl From<(usize, usize)> for Pair {
    fn from((height, width): (usize, usize)) -> Self {
        Self([height, width])
    }
}

impl Pair {
    /// Both numbers for an image. For a sequence, whose height is 1, the neutral setting `nothing`
    /// replaces the first.
    pub(super) fn along(self, rank: usize, nothing: usize) -> [usize; 2] {
        if rank == 2 { self.0 } else { [nothing, self.0[1]] }
    }
}

/// A setting as PyTorch prints it.
pub(super) fn pair_of([height, width]: [usize; 2], rank: usize) -> String {
    if rank == 2 { format!("({height}, {width})") } else { format!("({width},)") }
}

/// The axes of an image or a sequence, for error messages.
pub(super) fn dims(rank: usize) -> &'static str {
    if rank == 2 { "channels x height x width" } else { "channels x length" }
}
