//! y = M diag(u) x, panel by panel.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::panels::{self, Loose, Order, Pack, Packed, PanelRange};
use super::vectors::{count_nonzero, list_nonzero};
use super::{Scratch, grow, kernel};
use crate::scalar::Scalar;

/// The largest number of columns that share each read of M.
pub(super) const GROUP: usize = 6;
/// The number of columns for which there is room to be scaled or listed.
const SLAB: usize = 66;
/// The number of columns that are multiplied at once if they need no scaling, so that they share
/// each part of M that is packed.
const MOST: usize = 1024;
/// The largest inner size that is multiplied as a whole.
const WHOLE: usize = 1024;
/// The number of inner indices that are multiplied at once if there are more. The products of these
/// blocks are added up.
const BLOCK: usize = 512;
/// Below this density, a column is multiplied alone, by the part of M where it is not zero. In a
/// group, columns with different patterns would fill each other's zeros.
const SPARSE: f64 = 0.3;
/// The same for a column that is alone anyway, and for columns that have their zeros in common.
const SPARSE_ALONE: f64 = 0.7;
/// With at least this many groups of columns, packing a part of M pays.
const WORTH_PACKING: usize = 3;

/// The matrix M of a product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Factor<'a, T> {
    Packed(Packed<'a, T>),
    Loose(Loose<'a, T>),
}

/// The product for some panels of M and some columns.
pub struct Multiply<'a, T> {
    pub(super) m: Factor<'a, T>,
    pub(super) panels: PanelRange,
    pub(super) right: Right<'a, T>,
    /// The columns to multiply, or all.
    pub(super) columns: Option<&'a [usize]>,
    pub(super) y: Target<'a, T>,
    pub(super) scratch: &'a mut Scratch<T>,
}

/// The right-hand sides: the columns of diag(u) x.
#[derive(Debug, Clone, Copy)]
pub(super) struct Right<'a, T> {
    /// One column for each sample.
    pub u: Option<&'a [T]>,
    /// The number of columns of x for each sample.
    pub per_sample: usize,
    pub x: &'a [T],
    pub inner: usize,
    /// Whether x can have zeros that are worth looking for.
    pub has_zeros: bool,
}

/// Where a product is written to.
#[derive(Debug)]
pub(super) struct Target<'a, T> {
    pub values: &'a mut [T],
    /// The distance between columns.
    pub stride: usize,
    /// Where the first row of the first column is.
    pub first: usize,
}

/// Columns that are multiplied together.
#[derive(Debug, Clone, Copy)]
pub struct ColumnGroup {
    width: usize,
    columns: [usize; GROUP],
    form: Form,
}

/// Where the values of a group are.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// In x.
    AsIs,
    /// In the scratch's values from here on, one column after another.
    Scaled(usize),
    /// In the scratch's values from `values` on, side by side, for `count` inner indices that are
    /// listed in the scratch's offsets from `first` on.
    Listed { first: usize, count: usize, values: usize },
}

impl<T: Scalar> Factor<'_, T> {
    pub fn rows(&self) -> usize {
        match self {
            Self::Packed(m) => m.rows,
            Self::Loose(m) => m.rows,
        }
    }

    pub fn inner(&self) -> usize {
        match self {
            Self::Packed(m) => m.inner,
            Self::Loose(m) => m.inner,
        }
    }
}

impl<T: Scalar> WithSimd for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { m, panels, right, columns, y, scratch } = self;
        let inner = m.inner();
        // The transposed product might be needed only for later samples.
        scratch.make_room(inner.max(m.rows()));
        let count = columns.map_or(right.columns(), <[usize]>::len);
        let column = |number: usize| columns.map_or(number, |columns| columns[number]);
        let block = if inner <= WHOLE { inner } else { BLOCK };
        let together = if right.u.is_none() { MOST } else { SLAB };
        let Target { values: y, stride, first: start } = y;
        for slab in (0..count).step_by(together) {
            let slab = slab..count.min(slab + together);
            let few = slab.len().div_ceil(GROUP) < WORTH_PACKING;
            for first in (0..inner).step_by(block) {
                let (depth, add) = (first..inner.min(first + block), first > 0);
                let slab = slab.clone().map(column);
                if let Factor::Loose(m) = m
                    && let Order::RowsTogether(begin) = m.order
                    && few
                {
                    // Read where it lies.
                    let listed = scratch.prepare(&right, slab, &depth, true);
                    let distance = begin.places(&mut scratch.offsets[..listed], &depth);
                    let w = &m.values[panels.first_row()..];
                    for group in &scratch.groups {
                        let rows = (w, 0..panels.height(), distance);
                        group.combine(simd, rows, scratch, (&mut *y, stride, start), add);
                    }
                    continue;
                }
                scratch.prepare(&right, slab, &depth, false);
                let mut memory = std::mem::take(&mut scratch.panel);
                for panel in panels.first..panels.end {
                    let rows = panels.division.rows(panel);
                    let values = match m {
                        Factor::Packed(m) => m.panel(&rows, &depth),
                        Factor::Loose(m) => {
                            grow(&mut memory, panels::with_room::<T>(rows.len() * depth.len()));
                            let values = panels::aligned_mut(&mut memory);
                            let panel = &mut values[..rows.len() * depth.len()];
                            let (rows, inner) = (rows.clone(), depth.clone());
                            simd.vectorize(Pack { matrix: m, rows, inner, panel: &mut *panel });
                            &*panel
                        }
                    };
                    let place = rows.start - panels.first_row();
                    let used = rows.len().min(panels.height() - place);
                    for group in &scratch.groups {
                        let right = (&right, &depth, &*scratch);
                        let y = (&mut *y, stride, start + place);
                        group.multiply(simd, (values, rows.len(), used), right, y, add);
                    }
                }
                scratch.panel = memory;
            }
        }
    }
}

impl<T: Scalar> Right<'_, T> {
    fn columns(&self) -> usize {
        self.x.len() / self.inner
    }

    fn column(&self, column: usize, depth: &Range<usize>) -> &[T] {
        &self.x[column * self.inner..][depth.clone()]
    }

    fn scale(&self, column: usize, depth: &Range<usize>) -> Option<&[T]> {
        Some(&self.u?[column / self.per_sample * self.inner..][depth.clone()])
    }
}

impl<T: Scalar> Scratch<T> {
    /// Makes room for the largest possible number of entries, so that memory does not depend on the
    /// values.
    pub(super) fn make_room(&mut self, inner: usize) {
        let Self { groups, columns, offsets, x, panel, .. } = self;
        let depth = inner.min(WHOLE);
        groups.clear();
        columns.clear();
        groups.reserve(MOST);
        columns.reserve(MOST);
        grow(offsets, (SLAB * depth).max(inner));
        grow(x, SLAB * depth);
        grow(panel, panels::with_room::<T>(panels::TALLEST * super::lanes::<T>() * depth));
    }

    /// Groups some columns, for the inner indices in `depth`: scales them, or lists where they are
    /// not zero. With `listed`, all groups are listed. Returns the number of listed indices.
    #[inline(always)]
    fn prepare(
        &mut self,
        x: &Right<'_, T>,
        slab: impl Iterator<Item = usize>,
        depth: &Range<usize>,
        listed: bool,
    ) -> usize {
        let Self { groups, columns, offsets, x: values, .. } = self;
        groups.clear();
        columns.clear();
        let mut prepared = Prepared { x, depth, offsets, values, listed: 0, used: 0 };
        let enough = |share: f64, values: &[T]| {
            !x.has_zeros || count_nonzero(values) as f64 >= share * depth.len() as f64
        };
        // With several columns a sample, the zeros of u are common to them.
        let common = x.u.is_some() && x.per_sample > 1;
        // Sparse columns are multiplied alone, the others are collected.
        for column in slab {
            let is_full = prepared.used + depth.len() > prepared.values.len();
            if listed || common || is_full || enough(SPARSE, x.column(column, depth)) {
                columns.push(column);
            } else {
                groups.push(prepared.list(&[column], common));
            }
        }
        let mut rest = &columns[..];
        while let Some(&first) = rest.first() {
            let of_sample = |column: &&usize| **column / x.per_sample == first / x.per_sample;
            let alike = if common { rest.iter().take_while(of_sample).count() } else { rest.len() };
            let width = [6, 4, 2, 1].into_iter().find(|&width| width <= alike).unwrap_or(1);
            let (group, others) = rest.split_at(width);
            rest = others;
            let is_full = prepared.used + width * depth.len() > prepared.values.len();
            // If these have few zeros, the group has as well.
            let zeros = match x.scale(first, depth) {
                Some(u) if common => u,
                _ => x.column(first, depth),
            };
            groups.push(if listed {
                prepared.list(group, common)
            } else if is_full || enough(SPARSE_ALONE, zeros) {
                prepared.dense(group)
            } else {
                // The zeros can be common to the columns, as those of inactive units are.
                let (before, used) = (prepared.listed, prepared.used);
                let listed = prepared.list(group, common);
                if ((prepared.listed - before) as f64) < SPARSE_ALONE * depth.len() as f64 {
                    listed
                } else {
                    (prepared.listed, prepared.used) = (before, used);
                    prepared.dense(group)
                }
            });
        }
        prepared.listed
    }
}

/// Right-hand sides that are being prepared.
struct Prepared<'a, T> {
    x: &'a Right<'a, T>,
    depth: &'a Range<usize>,
    offsets: &'a mut [usize],
    values: &'a mut [T],
    /// The number of offsets and of values in use.
    listed: usize,
    used: usize,
}

impl<T: Scalar> Prepared<'_, T> {
    /// Lists the inner indices where u is not zero if it is `common` to the columns, or otherwise
    /// those where any of the columns is not zero, and the columns' scaled values there.
    #[inline(always)]
    fn list(&mut self, group: &[usize], common: bool) -> ColumnGroup {
        let Self { x, depth, .. } = *self;
        let offsets = &mut self.offsets[self.listed..];
        let count = if let Some(u) = x.scale(group[0], depth).filter(|_| common) {
            list_nonzero(&[u], offsets)
        } else {
            let mut columns = [&[][..]; GROUP];
            for (values, &column) in columns.iter_mut().zip(group) {
                *values = x.column(column, depth);
            }
            list_nonzero(&columns[..group.len()], offsets)
        };
        let width = group.len();
        let values = &mut self.values[self.used..][..count * width];
        macro_rules! side_by_side {
            ($($n:literal),*) => {
                match width {
                    $($n => {
                        let mut columns = [&[][..]; $n];
                        let mut scales = [None; $n];
                        for c in 0..$n {
                            columns[c] = x.column(group[c], depth);
                            scales[c] = x.scale(group[c], depth);
                        }
                        for (values, &k) in values.as_chunks_mut::<$n>().0.iter_mut().zip(&*offsets)
                        {
                            for c in 0..$n {
                                let scale = scales[c].map_or(T::one(), |u| u[k]);
                                values[c] = scale * columns[c][k];
                            }
                        }
                    })*
                    _ => {}
                }
            };
        }
        side_by_side!(1, 2, 4, 6);
        let form = Form::Listed { first: self.listed, count, values: self.used };
        (self.listed, self.used) = (self.listed + count, self.used + count * width);
        ColumnGroup::new(group, form)
    }

    /// Takes the columns as they are, or scales them.
    #[inline(always)]
    fn dense(&mut self, group: &[usize]) -> ColumnGroup {
        let Self { x, depth, .. } = *self;
        if x.u.is_none() {
            return ColumnGroup::new(group, Form::AsIs);
        }
        let form = Form::Scaled(self.used);
        for &column in group {
            let values = &mut self.values[self.used..][..depth.len()];
            for ((value, &x), &u) in values
                .iter_mut()
                .zip(x.column(column, depth))
                .zip(x.scale(column, depth).unwrap_or(&[]))
            {
                *value = u * x;
            }
            self.used += depth.len();
        }
        ColumnGroup::new(group, form)
    }
}

impl ColumnGroup {
    fn new(columns: &[usize], form: Form) -> Self {
        let mut listed = [0; GROUP];
        listed[..columns.len()].copy_from_slice(columns);
        Self { width: columns.len(), columns: listed, form }
    }

    /// Multiplies the group by a panel of `tall` rows, of which the first `rows` are in y.
    #[inline(always)]
    fn multiply<S: Simd, T: Scalar>(
        &self,
        simd: S,
        (panel, tall, rows): (&[T], usize, usize),
        (right, depth, scratch): (&Right<'_, T>, &Range<usize>, &Scratch<T>),
        (y, stride, first): (&mut [T], usize, usize),
        add: bool,
    ) {
        let start = match self.form {
            Form::Listed { .. } => {
                let w = (panel, 0..rows, tall);
                return self.combine(simd, w, scratch, (y, stride, first), add);
            }
            Form::AsIs => None,
            Form::Scaled(start) => Some(start),
        };
        let of_column = |c: usize| match start {
            None => right.column(self.columns[c], depth),
            Some(start) => &scratch.x[start + c * depth.len()..][..depth.len()],
        };
        macro_rules! of {
            ($v:literal: $($n:literal),*) => {
                match self.width {
                    $($n => {
                        let (mut x, mut places) = ([&[][..]; $n], [0; $n]);
                        for c in 0..$n {
                            x[c] = of_column(c);
                            places[c] = self.columns[c] * stride + first;
                        }
                        kernel::multiply::<S, T, $v, $n>(simd, panel, x, (y, places, rows), add);
                    })*
                    _ => {}
                }
            };
        }
        match tall / T::lanes::<S>() {
            1 => of!(1: 1, 2, 4, 6),
            2 => of!(2: 1, 2, 4, 6),
            3 => of!(3: 1, 2, 4, 6),
            4 => of!(4: 1, 2, 4, 6),
            _ => {}
        }
    }

    /// Multiplies a listed group by rows of a matrix. Its runs of rows begin at multiples of
    /// `distance`.
    #[inline(always)]
    fn combine<S: Simd, T: Scalar>(
        &self,
        simd: S,
        (w, rows, distance): (&[T], Range<usize>, usize),
        scratch: &Scratch<T>,
        (y, stride, start): (&mut [T], usize, usize),
        add: bool,
    ) {
        let Form::Listed { first, count, values } = self.form else { return };
        let offsets = &scratch.offsets[first..][..count];
        macro_rules! of_width {
            ($($n:literal),*) => {
                match self.width {
                    $($n => {
                        let x = scratch.x[values..][..count * $n].as_chunks::<$n>().0;
                        let mut columns = [0; $n];
                        for c in 0..$n {
                            columns[c] = start + self.columns[c] * stride;
                        }
                        kernel::combine::<S, T, $n>(
                            simd, w, rows, (offsets, distance, x), (y, columns), add,
                        );
                    })*
                    _ => {}
                }
            };
        }
        of_width!(1, 2, 4, 6);
    }
}
