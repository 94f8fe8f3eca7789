//! Matrices in the order in which products read them.
//!
//! A matrix M of rows x inner is divided into panels of up to [`TALLEST`] vectors of rows. A panel
//! holds, for each inner index, the values of its rows. A product thus reads memory in one straight
//! line. Rows that fill up the last vector are zero.

use std::ops::Range;

use super::lanes;
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

/// Where the values of a matrix are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// The rows of one inner index are neighbors.
    RowsTogether,
    /// The inner indices of one row are neighbors.
    InnerTogether,
}

/// A matrix that has not been packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loose<'a, T> {
    pub values: &'a [T],
    pub order: Order,
    /// The distance between runs of neighbors.
    pub stride: usize,
    pub rows: usize,
    pub inner: usize,
}

impl<T: Scalar> Loose<'_, T> {
    /// Writes some rows and inner indices as a panel.
    pub fn pack(&self, rows: Range<usize>, inner: Range<usize>, panel: &mut [T]) {
        /// The number of rows that are read side by side.
        const SIDE: usize = 8;
        let height = rows.len();
        let used = rows.start..rows.end.min(self.rows);
        let panel = &mut panel[..height * inner.len()];
        match self.order {
            Order::RowsTogether => {
                for (k, panel) in inner.zip(panel.chunks_exact_mut(height)) {
                    let (values, filling) = panel.split_at_mut(used.len());
                    values.copy_from_slice(
                        &self.values[k * self.stride + used.start..][..used.len()],
                    );
                    filling.fill(T::zero());
                }
            }
            Order::InnerTogether => {
                let row = |row: usize| match used.contains(&row) {
                    true => &self.values[row * self.stride..][inner.clone()],
                    false => &[],
                };
                for first in (0..height).step_by(SIDE) {
                    let several: [&[T]; SIDE] =
                        std::array::from_fn(|side| row(rows.start + first + side));
                    let last = height.min(first + SIDE);
                    if several.iter().all(|row| row.len() == inner.len()) {
                        for (k, panel) in panel.chunks_exact_mut(height).enumerate() {
                            for (side, value) in panel[first..last].iter_mut().enumerate() {
                                *value = several[side][k];
                            }
                        }
                    } else {
                        for (k, panel) in panel.chunks_exact_mut(height).enumerate() {
                            for (side, value) in panel[first..last].iter_mut().enumerate() {
                                *value = several[side].get(k).copied().unwrap_or(T::zero());
                            }
                        }
                    }
                }
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

/// The part of some memory that begins at a cache line. Where a vector begins decides how fast it
/// is read, but not what is read.
pub(super) fn aligned<T>(memory: &[T]) -> &[T] {
    &memory[memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT / size_of::<T>())..]
}

/// [`aligned`] for memory to write to.
pub(super) fn aligned_mut<T>(memory: &mut [T]) -> &mut [T] {
    let at = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT / size_of::<T>());
    &mut memory[at..]
}

impl<T: Scalar> Panels<T> {
    /// Packs a matrix. Cost: one copy.
    pub(super) fn new(matrix: Loose<'_, T>) -> Self {
        let Loose { rows, inner, .. } = matrix;
        let size = Division::of::<T>(rows).height() * inner;
        let mut memory = vec![T::zero(); with_room::<T>(size)];
        Packed::fill(matrix, aligned_mut(&mut memory));
        Self { memory, rows, inner }
    }

    pub(super) fn view(&self) -> Packed<'_, T> {
        Packed { values: aligned(&self.memory), rows: self.rows, inner: self.inner }
    }
}

impl<'a, T: Scalar> Packed<'a, T> {
    /// The number of values of a packed matrix, with room to begin at a cache line.
    pub fn size(rows: usize, inner: usize) -> usize {
        with_room::<T>(Division::of::<T>(rows).height() * inner)
    }

    /// Packs a matrix into memory of this [`size`](Self::size).
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
