//! Memory that is used again: what makes an explanation without allocating.

use std::ops::{Deref, DerefMut};

/// A slice on loan from a [`Pool`].
#[derive(Debug)]
pub(crate) struct Buffer<E> {
    number: usize,
    /// At least as long as the slice.
    values: Vec<E>,
    size: usize,
}

/// Buffers to take and to give back.
///
/// Which buffer is taken depends on the order of taking and giving alone, among the small ones and
/// among the others. So whoever does the same again, after [`rewind`](Self::rewind), finds each
/// buffer grown to what it is used for, and nothing is allocated.
#[derive(Debug)]
pub(crate) struct Pool<E> {
    /// Kept apart, so that none of the others lies idle behind a few values.
    small: Vec<Buffer<E>>,
    others: Vec<Buffer<E>>,
    made: usize,
}

/// So many values are few.
const SMALL: usize = 256;

/// All memory that an explanation uses.
#[derive(Debug)]
pub(crate) struct Buffers<T> {
    pub values: Pool<T>,
    pub exponents: Pool<i32>,
    pub indices: Pool<usize>,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self { values: Pool::default(), exponents: Pool::default(), indices: Pool::default() }
    }
}

impl<T: Copy + Default> Buffers<T> {
    /// Sets all pools back to where they began.
    pub fn rewind(&mut self) {
        self.values.rewind();
        self.exponents.rewind();
        self.indices.rewind();
    }
}

impl<E> Default for Pool<E> {
    fn default() -> Self {
        Self { small: Vec::new(), others: Vec::new(), made: 0 }
    }
}

impl<E: Copy + Default> Pool<E> {
    /// A buffer of this size; what is in it is left from its last use.
    pub fn take(&mut self, size: usize) -> Buffer<E> {
        let mut buffer = self.free(size).pop().unwrap_or_else(|| {
            self.made += 1;
            Buffer { number: self.made, values: Vec::new(), size: 0 }
        });
        if buffer.values.len() < size {
            // No more than is asked for, and nothing of the old is kept.
            buffer.values = vec![E::default(); size];
        }
        buffer.size = size;
        buffer
    }

    pub fn give(&mut self, buffer: Buffer<E>) {
        self.free(buffer.values.len()).push(buffer);
    }

    /// Those among which a buffer of this size is.
    fn free(&mut self, size: usize) -> &mut Vec<Buffer<E>> {
        if size <= SMALL { &mut self.small } else { &mut self.others }
    }

    /// Sets the pool back to where it began, so that the next takes find the same buffers.
    pub fn rewind(&mut self) {
        for free in [&mut self.small, &mut self.others] {
            free.sort_unstable_by_key(|buffer| std::cmp::Reverse(buffer.number));
        }
    }
}

impl<E> Buffer<E> {
    /// Hands the memory out and keeps `other` instead, grown to the same size; the slice is then
    /// empty.
    pub fn exchange(&mut self, mut other: Vec<E>) -> Vec<E>
    where
        E: Copy + Default,
    {
        if other.len() < self.values.len() {
            other.resize(self.values.len(), E::default());
        }
        let mut values = std::mem::replace(&mut self.values, other);
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
