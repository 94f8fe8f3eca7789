//! y = W diag(u) x, as a sum over the columns of W where diag(u) x is not zero.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::linalg::kernel;
use crate::linalg::{ColumnGroup, GROUP, Matrix, Scratch, count_nonzero, grow};
use crate::scalar::Scalar;

/// The number of inputs that are combined at once. The sums of these blocks are added up.
const DEPTH: usize = 256;
/// The number of inputs that are combined at once if each column spans a memory page or more.
const FEW: usize = 64;
/// The size of a memory page in bytes.
const PAGE: usize = 4096;
/// The number of right-hand sides that are prepared at once.
const SLAB: usize = 66;
/// Below this density, columns are processed one by one: in a group, columns with different
/// patterns would fill each other's zeros.
const SPARSE: f64 = 0.25;

pub struct Apply<'a, T> {
    pub w: Matrix<'a, T>,
    pub u: Option<&'a [T]>,
    pub per_sample: usize,
    pub x: &'a [T],
    pub y: &'a mut [T],
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for Apply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w, u, per_sample, x, y, scratch } = self;
        let Matrix { values: w, stride, outputs, inputs } = w;
        let columns = x.len() / inputs;
        // Columns that are far apart in memory share no page and few cache lines. They are
        // therefore copied close together first, in runs of one page.
        let apart = stride * size_of::<T>() >= PAGE;
        let height = PAGE / size_of::<T>();
        let together = if apart { FEW } else { DEPTH };
        for slab in (0..columns).step_by(SLAB) {
            let slab = slab..columns.min(slab + SLAB);
            for first in (0..inputs).step_by(together) {
                let depth = first..inputs.min(first + together);
                scratch.prepare(x, u, per_sample, (inputs, outputs), slab.clone(), depth.clone());
                let Scratch { groups, offsets, listed, x, panel, .. } = &mut *scratch;
                if apart {
                    grow(panel, height * FEW);
                }
                // Copying a part of W only pays if several groups read the copy.
                if !apart || groups.len() < 3 {
                    for at in &mut offsets[..*listed] {
                        // From an index within `depth` to where the column begins in W.
                        *at = (first + *at) * stride;
                    }
                    for group in groups.iter() {
                        group.combine(simd, w, 0..outputs, offsets, x, (y, 0), first > 0);
                    }
                    continue;
                }
                for at in &mut offsets[..*listed] {
                    // The same in the panel, where columns are `height` apart.
                    *at *= height;
                }
                // Each page-high part of these columns is copied once and multiplied by all groups.
                for top in (0..outputs).step_by(height) {
                    let rows = top..outputs.min(top + height);
                    for (i, packed) in depth.clone().zip(panel.chunks_exact_mut(height)) {
                        packed[..rows.len()]
                            .copy_from_slice(&w[i * stride + rows.start..i * stride + rows.end]);
                    }
                    for group in groups.iter() {
                        group.combine(simd, panel, 0..rows.len(), offsets, x, (y, top), first > 0);
                    }
                }
            }
        }
    }
}

impl<T: Scalar> Scratch<T> {
    /// Lists the nonzero values of the columns in `slab`, for the inputs in `depth`. `offsets` gets
    /// the positions of the inputs within `depth`, and `x` the values of a group's columns side by
    /// side.
    #[inline(always)]
    fn prepare(
        &mut self,
        x: &[T],
        u: Option<&[T]>,
        per_sample: usize,
        (inputs, outputs): (usize, usize),
        slab: Range<usize>,
        depth: Range<usize>,
    ) {
        let Self { groups, columns, offsets, x: prepared, .. } = self;
        groups.clear();
        columns.clear();
        // Room for the largest possible number of entries, so that memory does not depend on the
        // values and the loops below need no checks.
        groups.reserve(SLAB);
        columns.reserve(SLAB);
        grow(offsets, (SLAB + 1) * DEPTH);
        grow(prepared, (SLAB + GROUP) * DEPTH);
        let values = |c: usize| &x[c * inputs + depth.start..c * inputs + depth.end];
        let mut entries = 0;
        for c in slab {
            let nonzero = count_nonzero(values(c));
            // The first block writes all of y, so it needs all columns. The others add to y.
            if nonzero > 0 || depth.start == 0 {
                entries += nonzero;
                columns.push(c);
            }
        }
        let density = entries as f64 / (columns.len() * depth.len()).max(1) as f64;
        // Columns of the same sample share their zeros, so they can be grouped at any density.
        let alone = per_sample == 1 && density < SPARSE;
        let (mut first, mut at) = (0, 0);
        let mut rest = &columns[..];
        while !rest.is_empty() {
            let width = if alone {
                1
            } else {
                [6, 4, 2, 1].into_iter().find(|&width| width <= rest.len()).unwrap_or(1)
            };
            let (group, others) = rest.split_at(width);
            rest = others;
            let mut starts = [0; GROUP];
            for (start, &c) in starts.iter_mut().zip(group) {
                *start = c * outputs;
            }
            let scale = u.map(|u| &u[group[0] / per_sample * inputs + depth.start..]);
            // The columns are in ascending order, so the first and the last decide.
            let one_sample = group[0] / per_sample == group[width - 1] / per_sample;
            let (offsets, x) = (&mut offsets[first..], &mut prepared[at..]);
            let count = match (width, scale) {
                // These cases only differ in N, which must be known at compile time.
                (1, None) => list::<T, 1>([values(group[0])], None, offsets, x),
                (1, scale) => list::<T, 1>([values(group[0])], scale, offsets, x),
                (2, scale) if one_sample || scale.is_none() => {
                    list::<T, 2>([values(group[0]), values(group[1])], scale, offsets, x)
                }
                (4, scale) if one_sample || scale.is_none() => list::<T, 4>(
                    [values(group[0]), values(group[1]), values(group[2]), values(group[3])],
                    scale,
                    offsets,
                    x,
                ),
                (6, scale) if one_sample || scale.is_none() => {
                    let [a, b, c, d, e, f] =
                        [group[0], group[1], group[2], group[3], group[4], group[5]].map(values);
                    list::<T, 6>([a, b, c, d, e, f], scale, offsets, x)
                }
                _ => {
                    // The columns of several samples, each with its own scale.
                    let mut count = 0;
                    for i in 0..depth.len() {
                        let mut any = false;
                        for (k, &c) in group.iter().enumerate() {
                            let u = u
                                .map_or(T::one(), |u| u[c / per_sample * inputs + depth.start + i]);
                            x[count * width + k] = u * values(c)[i];
                            any |= x[count * width + k] != T::zero();
                        }
                        offsets[count] = i;
                        count += usize::from(any);
                    }
                    count
                }
            };
            groups.push(ColumnGroup { width, columns: starts, first, count, x: at });
            (first, at) = (first + count, at + count * width);
        }
        self.listed = first;
    }
}

/// Lists the positions where any of N columns is nonzero, and the columns' values there side by
/// side, times `scale`. Returns the number of positions.
#[inline(always)]
fn list<T: Scalar, const N: usize>(
    columns: [&[T]; N],
    scale: Option<&[T]>,
    offsets: &mut [usize],
    x: &mut [T],
) -> usize {
    let length = columns[0].len();
    let (x, _) = x.as_chunks_mut::<N>();
    let mut count = 0;
    for i in 0..length {
        let scale = scale.map_or(T::one(), |scale| scale[i]);
        let mut any = false;
        for c in 0..N {
            let v = columns[c][i] * scale;
            x[count][c] = v;
            any |= v != T::zero();
        }
        // Always written but only counted if nonzero, so there is no branch to mispredict.
        offsets[count] = i;
        count += usize::from(any);
    }
    count
}

impl ColumnGroup {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // one call of the kernel, with the scratch's parts
    fn combine<S: Simd, T: Scalar>(
        &self,
        simd: S,
        w: &[T],
        rows: Range<usize>,
        offsets: &[usize],
        x: &[T],
        (y, top): (&mut [T], usize),
        add: bool,
    ) {
        macro_rules! of_width {
            ($($n:literal),*) => {
                match self.width {
                    $($n => {
                        let x = x[self.x..][..self.count * $n].as_chunks::<$n>().0;
                        let mut columns = [top; $n];
                        for c in 0..$n {
                            columns[c] += self.columns[c];
                        }
                        let offsets = &offsets[self.first..][..self.count];
                        kernel::combine::<S, T, $n>(
                            simd, w, rows, (offsets, x), (y, columns), add,
                        );
                    })*
                    _ => {}
                }
            };
        }
        of_width!(1, 2, 4, 6);
    }
}
