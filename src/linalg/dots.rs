//! x = Wᵀ y for some rows of x, as scalar products with the columns of W.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::kernel;
use crate::scalar::Scalar;

/// The number of outputs that a scalar product sums at once.
const LENGTH: usize = 2048;

/// The listed rows of Wᵀ y, where W has columns of `outputs` values. The other rows of x do not
/// change. There are as many columns of x as of y.
pub struct Project<'a, T> {
    pub(super) w: &'a [T],
    pub(super) outputs: usize,
    pub(super) listed: &'a [usize],
    pub(super) y: &'a [T],
    pub(super) x: &'a mut [T],
}

impl<T: Scalar> WithSimd for Project<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w, outputs, listed, y, x } = self;
        let columns = y.len() / outputs;
        let height = x.len() / columns.max(1);
        for column in x.chunks_exact_mut(height.max(1)) {
            for &i in listed {
                column[i] = T::zero();
            }
        }
        for start in (0..outputs).step_by(LENGTH) {
            let length = start..outputs.min(start + LENGTH);
            project(simd, (w, outputs), length, listed, 0..columns, (y, outputs), (x, height));
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
