//! Matrices in the order in which products read them.
//!
//! A matrix M of rows x inner is divided into panels of up to [`TALLEST`] vectors of rows. A panel
//! holds, for each inner index, the values of its rows. A product thus reads memory in one straight
//! line. Rows that fill up the last vector are zero.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{lanes, processor};
use crate::scalar::Scalar;

/// The largest number of vectors of rows in a panel.
pub(super) const TALLEST: usize = 4;
/// The alignment of panels in bytes: that of a cache line and of the widest vector.
const ALIGNMENT: usize = 64;

/// The panels into which rows are divided. Their heights differ by at most one vector, because a
/// narrow panel would waste reads of the right-hand side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    vectors: usize,
    lanes: usize,
}

impl Division {
    pub fn of<T: Scalar>(rows: usize) -> Self {
        let lanes = lanes::<T>();
        Self { vectors: rows.div_ceil(lanes), lanes }
    }

    pub fn panels(self) -> usize {
        self.vectors.div_ceil(TALLEST)
    }

    /// The rows of a panel, including those that fill it up.
    pub fn rows(self, panel: usize) -> Range<usize> {
        let (panels, vectors) = (self.panels().max(1), self.vectors);
        let start = |panel: usize| panel * (vectors / panels) + panel.min(vectors % panels);
        start(panel) * self.lanes..start(panel + 1) * self.lanes
    }

    /// The number of rows, including those that fill up the last vector.
    pub fn height(self) -> usize {
        self.vectors * self.lanes
    }
}

/// Some panels of a matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct PanelRange {
    pub division: Division,
    pub first: usize,
    pub end: usize,
    /// The number of rows of the whole matrix.
    pub rows: usize,
}

impl PanelRange {
    /// All panels of a matrix of this many rows.
    pub fn all<T: Scalar>(rows: usize) -> Self {
        let division = Division::of::<T>(rows);
        Self { division, first: 0, end: division.panels(), rows }
    }

    pub fn first_row(self) -> usize {
        self.division.rows(self.first).start
    }

    /// The number of rows, without those that fill up the last vector.
    pub fn height(self) -> usize {
        self.rows.min(self.division.rows(self.end - 1).end) - self.first_row()
    }
}

/// Where the values of a matrix are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order<'a> {
    /// The rows of one inner index are neighbors.
    RowsTogether(Rows<'a>),
    /// The inner indices of one row are neighbors, and the next ones begin at this distance.
    InnerTogether(usize),
}

/// Where the rows of each inner index begin.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rows<'a> {
    /// At multiples of this distance.
    Every(usize),
    /// At these places. The rows can overlap.
    At(&'a [usize]),
}

impl Rows<'_> {
    fn place(self, k: usize) -> usize {
        match self {
            Self::Every(distance) => k * distance,
            Self::At(places) => places[k],
        }
    }

    /// Replaces listed inner indices, counted from the first of `depth`, by what becomes the place
    /// of their rows when it is multiplied by the returned distance.
    pub fn places(self, listed: &mut [usize], depth: &Range<usize>) -> usize {
        for k in &mut *listed {
            *k += depth.start;
        }
        match self {
            Self::Every(distance) => distance,
            Self::At(places) => {
                for k in listed {
                    *k = places[*k];
                }
                1
            }
        }
    }
}

/// A matrix that has not been packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loose<'a, T> {
    pub values: &'a [T],
    pub order: Order<'a>,
    pub rows: usize,
    pub inner: usize,
}

impl<T: Scalar> Loose<'_, T> {
    /// Writes some rows and inner indices as a panel.
    fn pack(self, rows: Range<usize>, inner: Range<usize>, panel: &mut [T]) {
        processor().dispatch(Pack { matrix: self, rows, inner, panel });
    }
}

/// Writes some rows and inner indices of a matrix as a panel.
pub(super) struct Pack<'a, T> {
    pub matrix: Loose<'a, T>,
    pub rows: Range<usize>,
    pub inner: Range<usize>,
    pub panel: &'a mut [T],
}

impl<T: Scalar> WithSimd for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { matrix, rows, inner, panel } = self;
        let (values, height) = (matrix.values, rows.len());
        let used = rows.start..rows.end.min(matrix.rows);
        let begin = match matrix.order {
            Order::RowsTogether(begin) => begin,
            Order::InnerTogether(distance) => {
                return transpose((values, distance), (used, height), inner, panel);
            }
        };
        let place = |k: usize| begin.place(k) + rows.start;
        macro_rules! whole_vectors {
            ($($v:literal),*) => {
                match height / T::lanes::<S>() {
                    $($v => {
                        let panel = T::vectors_mut::<S>(panel).0.as_chunks_mut::<$v>().0;
                        for (k, panel) in inner.zip(panel) {
                            let from = T::vectors::<S>(&values[place(k)..][..height]).0;
                            panel.copy_from_slice(&from[..$v]);
                        }
                    })*
                    _ => {}
                }
            };
        }
        if used.len() == height {
            return whole_vectors!(1, 2, 3, 4);
        }
        for (k, panel) in inner.zip(panel.chunks_exact_mut(height)) {
            let (to, filling) = panel.split_at_mut(used.len());
            to.copy_from_slice(&values[place(k)..][..used.len()]);
            filling.fill(T::zero());
        }
    }
}

/// Writes rows whose inner indices are neighbors as a panel of this height.
#[inline(always)]
fn transpose<T: Scalar>(
    (values, distance): (&[T], usize),
    (used, height): (Range<usize>, usize),
    inner: Range<usize>,
    panel: &mut [T],
) {
    /// The number of rows that are read side by side.
    const SIDE: usize = 8;
    if used.len() < height {
        panel.fill(T::zero());
    }
    for first in (0..used.len()).step_by(SIDE) {
        let several = first..used.len().min(first + SIDE);
        let rows: [&[T]; SIDE] = std::array::from_fn(|side| {
            let row = first + side;
            if several.contains(&row) {
                &values[(used.start + row) * distance..][inner.clone()]
            } else {
                &[]
            }
        });
        for (k, panel) in panel.chunks_exact_mut(height).enumerate() {
            for (value, row) in panel[several.clone()].iter_mut().zip(&rows) {
                *value = row[k];
            }
        }
    }
}

/// A packed matrix.
#[derive(Debug)]
pub(crate) struct Panels<T> {
    memory: Vec<T>,
    rows: usize,
    inner: usize,
}

/// A packed matrix in borrowed memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a, T> {
    values: &'a [T],
    pub rows: usize,
    pub inner: usize,
}

/// The number of values with room to begin at a cache line.
pub(super) fn with_room<T>(values: usize) -> usize {
    values + ALIGNMENT / size_of::<T>()
}

/// The number of values before a cache line begins. Where a vector begins decides how fast it is
/// read, but not what is read.
fn before_line<T>(memory: &[T]) -> usize {
    memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT / size_of::<T>())
}

/// The part of some memory that begins at a cache line.
pub(super) fn aligned_mut<T>(memory: &mut [T]) -> &mut [T] {
    let first = before_line(memory);
    &mut memory[first..]
}

impl<T: Scalar> Panels<T> {
    /// Packs a matrix. Cost: one copy.
    pub(super) fn new(matrix: Loose<'_, T>) -> Self {
        let Loose { rows, inner, .. } = matrix;
        let mut memory = vec![T::zero(); with_room::<T>(Packed::<T>::size(rows, inner))];
        Packed::fill(matrix, aligned_mut(&mut memory));
        Self { memory, rows, inner }
    }

    pub(super) fn view(&self) -> Packed<'_, T> {
        let values = &self.memory[before_line(&self.memory)..];
        Packed { values, rows: self.rows, inner: self.inner }
    }
}

impl<'a, T: Scalar> Packed<'a, T> {
    /// The number of values of a packed matrix.
    pub fn size(rows: usize, inner: usize) -> usize {
        Division::of::<T>(rows).height() * inner
    }

    /// A matrix that has been packed into these values.
    pub fn of(values: &'a [T], rows: usize, inner: usize) -> Self {
        Self { values, rows, inner }
    }

    /// Packs a matrix into memory of this [`size`](Self::size) and [room](with_room).
    pub fn new(matrix: Loose<'_, T>, memory: &'a mut [T]) -> Self {
        let values = aligned_mut(memory);
        Packed::fill(matrix, values);
        Self { values, rows: matrix.rows, inner: matrix.inner }
    }

    fn fill(matrix: Loose<'_, T>, values: &mut [T]) {
        let division = Division::of::<T>(matrix.rows);
        for panel in 0..division.panels() {
            let rows = division.rows(panel);
            let part = &mut values[rows.start * matrix.inner..rows.end * matrix.inner];
            matrix.pack(rows, 0..matrix.inner, part);
        }
    }

    /// Some inner indices of a panel.
    pub fn panel(self, rows: &Range<usize>, inner: &Range<usize>) -> &'a [T] {
        let first = rows.start * self.inner;
        &self.values[first + inner.start * rows.len()..first + inner.end * rows.len()]
    }
}
