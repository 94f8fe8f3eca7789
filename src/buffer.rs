//! Reusable memory, so that explanations do not allocate.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use nalgebra::DMatrix;

use crate::scalar::Scalar;

/// A slice on loan from a [`Pool`].
///
/// Several handles can [share](Pool::share) the memory. Writing through a shared handle copies it
/// first.
#[derive(Debug)]
pub(crate) struct Buffer<E> {
    number: usize,
    /// At least as long as the slice, unless the memory is shared.
    values: Vec<E>,
    /// The memory, if it is shared. Most buffers never are, and counting handles takes time.
    shared: Option<Arc<Vec<E>>>,
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
    /// Counters of handles that are not in use.
    counters: Vec<Arc<Vec<E>>>,
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
    pub flows: Vec<Option<Flow<T>>>,
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

    /// Another handle for the same values.
    pub fn share(&mut self, buffers: &mut Buffers<T>) -> Self {
        Self {
            values: buffers.values.share(&mut self.values),
            exponents: buffers.exponents.share(&mut self.exponents),
            columns: self.columns.clone(),
        }
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
        Self { small: Vec::new(), others: Vec::new(), counters: Vec::new(), made: 0 }
    }
}

impl<E: Copy + Default> Pool<E> {
    /// Takes a buffer of this size. Its contents are left over from its last use.
    pub fn take(&mut self, size: usize) -> Buffer<E> {
        let mut buffer = self.free(size).pop().unwrap_or_else(|| {
            self.made += 1;
            Buffer { number: self.made, values: Vec::new(), shared: None, size: 0 }
        });
        if buffer.values.len() < size {
            // Not `resize`, which can allocate more than needed and would copy the old contents.
            buffer.values = vec![E::default(); size];
        }
        buffer.size = size;
        buffer
    }

    /// Gives a buffer back. Its memory becomes free with the last handle that shares it.
    pub fn give(&mut self, mut buffer: Buffer<E>) {
        if let Some(mut counter) = buffer.shared.take() {
            let Some(values) = Arc::get_mut(&mut counter) else { return };
            buffer.values = std::mem::take(values);
            self.counters.push(counter);
        }
        // By the memory's size, not the slice's: a large buffer that held few values stays large.
        self.free(buffer.values.len()).push(buffer);
    }

    /// Another handle for the same values.
    pub fn share(&mut self, buffer: &mut Buffer<E>) -> Buffer<E> {
        if buffer.shared.is_none() {
            let mut counter = self.counters.pop().unwrap_or_default();
            if let Some(values) = Arc::get_mut(&mut counter) {
                *values = std::mem::take(&mut buffer.values);
            }
            buffer.shared = Some(counter);
        }
        let shared = buffer.shared.clone();
        Buffer { number: buffer.number, values: Vec::new(), shared, size: buffer.size }
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
        Self { number: 0, values: Vec::new(), shared: None, size: 0 }
    }

    /// Whether other handles may share the memory.
    pub fn is_shared(&self) -> bool {
        self.shared.as_ref().is_some_and(|counter| Arc::strong_count(counter) > 1)
    }

    /// The memory, which is copied first if it is shared.
    fn own(&mut self) -> &mut Vec<E>
    where
        E: Clone,
    {
        if let Some(counter) = self.shared.take() {
            self.values = Arc::unwrap_or_clone(counter);
        }
        &mut self.values
    }

    /// Returns the memory of this buffer and keeps `other` in its place, grown to the same size.
    /// The slice is empty afterward.
    pub fn exchange(&mut self, mut other: Vec<E>) -> Vec<E>
    where
        E: Copy + Default,
    {
        let own = self.own();
        if other.len() < own.len() {
            other.resize(own.len(), E::default());
        }
        let mut values = std::mem::replace(own, other);
        // The memory can be longer than the slice.
        values.truncate(self.size);
        self.size = 0;
        values
    }
}

impl<E> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.shared.as_deref().unwrap_or(&self.values)[..self.size]
    }
}

impl<E: Clone> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        let size = self.size;
        &mut self.own()[..size]
    }
}
