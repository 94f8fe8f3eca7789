//! x = diag(u) Wᵀ y, as scalar products with the columns of W where u is not zero.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::linalg::kernel;
use crate::linalg::{ColumnGroup, Columns, GROUP, Matrix, Scratch, count_nonzero, grow};
use crate::scalar::Scalar;

/// The number of outputs that a scalar product sums at once.
const LENGTH: usize = 2048;
/// The number of weights that stay in the cache while they are multiplied by all right-hand sides.
const CACHED: usize = 32_768;
/// The number of samples with one column each that are processed together.
const TOGETHER: usize = 15;
/// Below this density, samples are processed one by one: together, samples with different patterns
/// would fill each other's zeros.
const SPARSE: f64 = 0.4;

pub struct ApplyTransposed<'a, T> {
    pub w: Matrix<'a, T>,
    pub u: Option<Columns<'a, T>>,
    pub per_sample: usize,
    pub x: &'a mut [T],
    pub y: &'a [T],
    pub scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for ApplyTransposed<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w, u, per_sample, x, y, scratch } = self;
        let Matrix { values: w, stride, outputs, inputs } = w;
        // `project` adds the scalar products part by part. Inputs that are not listed stay 0.
        x.fill(T::zero());
        let samples = y.len() / outputs / per_sample.max(1);
        let Scratch { groups, offsets: lists, .. } = scratch;
        groups.clear();
        groups.reserve(samples);
        grow(lists, (samples + 1) * inputs);
        let live = |u: Columns<'_, T>| {
            (0..samples).map(|sample| count_nonzero(u.column(sample, inputs))).sum::<usize>()
        };
        let dense = u.is_none_or(|u| live(u) as f64 >= SPARSE * (samples * inputs) as f64);
        if per_sample == 1 && samples > 1 && dense {
            // Single columns of several samples are processed together. Little is wasted on rows
            // that only some of them need.
            lists[..inputs].iter_mut().enumerate().for_each(|(i, list)| *list = i);
            for first in (0..samples).step_by(TOGETHER) {
                let width = TOGETHER.min(samples - first);
                groups.push(ColumnGroup {
                    width,
                    columns: [first; GROUP],
                    first: 0,
                    count: inputs,
                    x: 0,
                });
            }
        } else {
            let mut first = 0;
            for sample in 0..samples {
                let mut count = 0;
                let u = u.map(|u| u.column(sample, inputs));
                for i in 0..inputs {
                    lists[first + count] = i;
                    count += usize::from(u.is_none_or(|u| u[i] != T::zero()));
                }
                groups.push(ColumnGroup {
                    width: per_sample,
                    columns: [sample * per_sample; GROUP],
                    first,
                    count,
                    x: 0,
                });
                first += count;
            }
        }
        // Each block of W stays in the cache while all groups use it.
        for start in (0..outputs).step_by(LENGTH) {
            let length = start..outputs.min(start + LENGTH);
            let breadth = (CACHED / length.len()).max(16);
            for group in groups.iter_mut() {
                group.x = 0;
            }
            for end in (0..inputs).step_by(breadth).map(|first| inputs.min(first + breadth)) {
                for group in groups.iter_mut() {
                    let list = &lists[group.first + group.x..group.first + group.count];
                    // The lists are ascending, so the entries of this block come next.
                    let count = list.partition_point(|&i| i < end);
                    group.x += count;
                    let columns = group.columns[0]..group.columns[0] + group.width;
                    project(
                        simd,
                        (w, stride),
                        length.clone(),
                        &list[..count],
                        columns,
                        (y, outputs),
                        (x, inputs),
                    );
                }
            }
        }
        // The rows are multiplied by u only now, when their sums are complete.
        let Some(u) = u.filter(|_| per_sample > 0) else { return };
        for (sample, x) in x.chunks_exact_mut(inputs * per_sample).enumerate() {
            let u = u.column(sample, inputs);
            for x in x.chunks_exact_mut(inputs) {
                for (x, &u) in x.iter_mut().zip(u) {
                    // Without this check, an infinite sum times 0 would become NaN.
                    *x = if u == T::zero() { u } else { *x * u };
                }
            }
        }
    }
}

/// x_ic += w_i · y_c for the listed i and the columns c, over a part of the outputs.
#[inline(always)]
fn project<S: Simd, T: Scalar>(
    simd: S,
    (w, stride): (&[T], usize),
    length: Range<usize>,
    list: &[usize],
    columns: Range<usize>,
    (y, outputs): (&[T], usize),
    (x, inputs): (&mut [T], usize),
) {
    macro_rules! block {
        ($list:expr, $m:literal, $c:expr, $n:literal) => {
            let (mut of_w, mut of_y) = ([&[][..]; $m], [&[][..]; $n]);
            for i in 0..$m {
                of_w[i] = &w[$list[i] * stride..][length.clone()];
            }
            for c in 0..$n {
                of_y[c] = &y[($c + c) * outputs..][length.clone()];
            }
            let dots = kernel::dots::<S, T, $m, $n>(simd, of_w, of_y);
            for i in 0..$m {
                for c in 0..$n {
                    x[($c + c) * inputs + $list[i]] += dots[i][c];
                }
            }
        };
    }
    macro_rules! rows {
        ($c:expr, $m:literal, $n:literal) => {
            // $m columns of W at a time, then pairs, then at most one.
            let mut chunks = list.chunks_exact($m);
            for list in &mut chunks {
                block!(list, $m, $c, $n);
            }
            let mut rest = chunks.remainder().chunks_exact(2);
            for list in &mut rest {
                block!(list, 2, $c, $n);
            }
            for i in rest.remainder() {
                block!([*i], 1, $c, $n);
            }
        };
    }
    let mut c = columns.start;
    // Twenty sums and their operands fit into 32 registers, twelve into 16.
    if S::REGISTER_COUNT >= 32 {
        while c + 5 <= columns.end {
            rows!(c, 4, 5);
            c += 5;
        }
    }
    while c + 3 <= columns.end {
        rows!(c, 4, 3);
        c += 3;
    }
    while c + 2 <= columns.end {
        rows!(c, 4, 2);
        c += 2;
    }
    while c < columns.end {
        rows!(c, 8, 1);
        c += 1;
    }
}
