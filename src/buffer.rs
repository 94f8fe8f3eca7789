//! Reusable memory, so that explanations do not allocate.

use std::ops::{Deref, DerefMut, Range};

use nalgebra::DMatrix;

use crate::scalar::Scalar;

/// A slice on loan from a [`Pool`].
#[derive(Debug)]
pub(crate) struct Buffer<E> {
    number: usize,
    /// At least as long as the slice.
    values: Vec<E>,
    size: usize,
}

/// A pool of buffers to take and give back.
///
/// Which buffer is taken depends only on the order of takes and gives, which is tracked separately
/// for small and for other buffers. Repeating the same sequence after [`rewind`](Self::rewind)
/// therefore yields buffers that have already grown to the right size, and nothing is allocated.
#[derive(Debug)]
pub(crate) struct Pool<E> {
    /// Kept separately, so that no large buffer is occupied by a few values.
    small: Vec<Buffer<E>>,
    others: Vec<Buffer<E>>,
    made: usize,
}

/// The largest size of a small buffer.
const SMALL: usize = 256;

/// All memory that an explanation uses.
#[derive(Debug)]
pub(crate) struct Buffers<T> {
    pub values: Pool<T>,
    pub exponents: Pool<i32>,
    pub indices: Pool<usize>,
    /// The number of columns for which intermediate results get memory at least. The number of live
    /// inputs depends on the sample, but that of allocations must not.
    pub room: usize,
    /// A place for each value of a graph, for relevance on its way through a segment.
    pub flows: Flows<T>,
}

/// Columns of values times powers of two: the relevance at a value of the graph, or the shares of
/// inputs in it.
#[derive(Debug)]
pub(crate) struct Flow<T> {
    pub values: Buffer<T>,
    /// One exponent for each sample.
    pub exponents: Buffer<i32>,
    /// The columns that can be other than zero. Only these are stored.
    pub columns: Range<usize>,
}

/// The flow at each value of a graph, where there is one.
pub(crate) type Flows<T> = Vec<Option<Flow<T>>>;

impl<T: Scalar> Flow<T> {
    /// The columns of a matrix, for one sample.
    pub fn of_matrix(matrix: &DMatrix<T>, buffers: &mut Buffers<T>) -> Self {
        let mut values = buffers.values.take(matrix.len());
        values.copy_from_slice(matrix.as_slice());
        let mut exponents = buffers.exponents.take(1);
        exponents[0] = 0;
        Self { values, exponents, columns: 0..matrix.ncols() }
    }
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        buffers.values.give(self.values);
        buffers.exponents.give(self.exponents);
    }

    /// A copy, with room for more columns.
    pub fn copy(&self, buffers: &mut Buffers<T>) -> Self {
        let columns = self.columns.len();
        let mut values = buffers.take_columns(self.values.len() / columns.max(1), columns);
        values.copy_from_slice(&self.values);
        let exponents = buffers.exponents.copy(&self.exponents);
        Self { values, exponents, columns: self.columns.clone() }
    }
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self {
            values: Pool::default(),
            exponents: Pool::default(),
            indices: Pool::default(),
            room: 0,
            flows: Vec::new(),
        }
    }
}

impl<T: Copy + Default> Buffers<T> {
    /// Rewinds all pools.
    pub fn rewind(&mut self) {
        self.values.rewind();
        self.exponents.rewind();
        self.indices.rewind();
    }

    /// Takes memory for columns of this height.
    pub fn take_columns(&mut self, height: usize, columns: usize) -> Buffer<T> {
        let mut taken = self.values.take(height * columns.max(self.room));
        taken.size = height * columns;
        taken
    }
}

impl<E> Default for Pool<E> {
    fn default() -> Self {
        Self { small: Vec::new(), others: Vec::new(), made: 0 }
    }
}

impl<E: Copy + Default> Pool<E> {
    /// Takes a buffer of this size. Its contents are left over from its last use.
    pub fn take(&mut self, size: usize) -> Buffer<E> {
        let mut buffer = self.free(size).pop().unwrap_or_else(|| {
            self.made += 1;
            Buffer { number: self.made, values: Vec::new(), size: 0 }
        });
        if buffer.values.len() < size {
            // Not `resize`, which can allocate more than needed and would copy the old contents.
            buffer.values = vec![E::default(); size];
        }
        buffer.size = size;
        buffer
    }

    pub fn give(&mut self, buffer: Buffer<E>) {
        // By the memory's size, not the slice's: a large buffer that held few values stays large.
        self.free(buffer.values.len()).push(buffer);
    }

    /// A copy of some values.
    pub fn copy(&mut self, values: &[E]) -> Buffer<E> {
        let mut copy = self.take(values.len());
        copy.copy_from_slice(values);
        copy
    }

    /// The free buffers of the class that this size belongs to.
    fn free(&mut self, size: usize) -> &mut Vec<Buffer<E>> {
        if size <= SMALL { &mut self.small } else { &mut self.others }
    }

    /// Restores the initial order of the buffers, so that the same takes yield the same buffers.
    pub fn rewind(&mut self) {
        // Buffers are taken from the end, so the first one must be last.
        for free in [&mut self.small, &mut self.others] {
            free.sort_unstable_by_key(|buffer| std::cmp::Reverse(buffer.number));
        }
    }
}

impl<E> Buffer<E> {
    /// A buffer without values.
    pub fn empty() -> Self {
        Self { number: 0, values: Vec::new(), size: 0 }
    }

    /// Returns the memory of this buffer and keeps `other` in its place, grown to the same size.
    /// The slice is empty afterward.
    pub fn exchange(&mut self, mut other: Vec<E>) -> Vec<E>
    where
        E: Copy + Default,
    {
        if other.len() < self.values.len() {
            other.resize(self.values.len(), E::default());
        }
        let mut values = std::mem::replace(&mut self.values, other);
        // The memory can be longer than the slice.
        values.truncate(self.size);
        self.size = 0;
        values
    }
}

impl<E> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.values[..self.size]
    }
}

impl<E> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.values[..self.size]
    }
}
