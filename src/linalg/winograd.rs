//! Correlations with 3 x 3 kernels, computed with fewer multiplications.
//!
//! Computed directly, 2 x 2 outputs of such a correlation take 36 multiplications. The following
//! form takes 16, where d is the patch of 4 x 4 inputs that the outputs see and g is the kernel:
//!
//! ```text
//!     Y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A
//! ```
//!
//! Here B and A only add and subtract (S. Winograd 1980; A. Lavin and S. Gray 2016: Fast Algorithms
//! for Convolutional Neural Networks, section 4.1). Summed over channels, each of the 16 places is
//! a separate matrix product. The rounding error of a result is relative to the whole patch, not
//! just to the part that one output sees.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::correlate::{Planes, SHARED, TILE, tiles};
use super::{Kernel, Which, each_chunk, grow, kernel, share_out};
use crate::scalar::Scalar;

/// The places of a transformed patch.
const PLACES: usize = 16;
/// The number of values of one place that are processed together.
const TOGETHER: usize = 1 << 16;
/// The numbers of patches and channels below which nothing is gained.
const FEWEST: [usize; 2] = [16, 16];

/// A correlation of 3 x 3 with stride 1.
#[derive(Debug)]
pub(crate) struct Winograd<T> {
    source: Planes,
    target: Planes,
    /// The numbers of zeros around the source, along each axis.
    padding: [usize; 2],
    /// For each place, tile of target channels and source channel, one weight per channel of the
    /// tile.
    weights: Vec<T>,
}

impl<T: Scalar> Winograd<T> {
    /// Whether this method is faster for these sides.
    pub fn pays(source: Planes, target: Planes) -> bool {
        let patches = target.size[0].div_ceil(2) * target.size[1].div_ceil(2);
        patches >= FEWEST[0] && source.channels.min(target.channels) >= FEWEST[1]
    }

    /// `weight` returns the weight for a target channel, a source channel, and a row and a column
    /// of the kernel.
    pub fn new(
        source: Planes,
        target: Planes,
        padding: [usize; 2],
        weight: impl Fn(usize, usize, usize, usize) -> T,
    ) -> Self {
        let mut weights = vec![T::zero(); PLACES * source.channels * target.channels];
        for tile in tiles(target.channels) {
            for channel in 0..source.channels {
                for (n, of_target) in tile.clone().enumerate() {
                    // Transformed in double precision, so that each weight is rounded only once.
                    let g: [[f64; 3]; 3] = std::array::from_fn(|y| {
                        std::array::from_fn(|x| weight(of_target, channel, y, x).as_f64())
                    });
                    // G g Gᵀ, first along the columns, then along the rows.
                    let along =
                        |a: f64, b: f64, c: f64| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
                    let columns: [[f64; 4]; 3] =
                        std::array::from_fn(|x| along(g[0][x], g[1][x], g[2][x]));
                    let rows = (0..4).map(|y| along(columns[0][y], columns[1][y], columns[2][y]));
                    for (y, row) in rows.enumerate() {
                        for (x, v) in row.into_iter().enumerate() {
                            // In the order in which `combine` reads them.
                            let place = (y * 4 + x) * target.channels;
                            weights[(place + tile.start) * source.channels
                                + channel * tile.len()
                                + n] = T::from_f64(v);
                        }
                    }
                }
            }
        }
        Self { source, target, padding, weights }
    }

    /// The number of values in a column of the source and of the target.
    pub fn sizes(&self) -> (usize, usize) {
        (self.source.values(), self.target.values())
    }

    /// Computes the product for one column.
    pub fn apply(&self, source: &[T], target: &mut [T]) {
        let [down, across] = self.target.size.map(|size| size.div_ceil(2));
        // A few rows of patches at a time, so that one place of all their channels stays in the
        // cache.
        let strip = (TOGETHER / self.source.channels / across).clamp(1, down);
        // Taken out instead of borrowed, because the closures below borrow the scratch.
        let mut patches =
            super::with_scratch::<T, _>(|scratch| std::mem::take(&mut scratch.planes));
        for first in (0..down).step_by(strip) {
            let rows = first..down.min(first + strip);
            let count = rows.len() * across;
            grow(&mut patches, self.source.channels * PLACES * count);
            let patches = &mut patches[..self.source.channels * PLACES * count];
            let plane = self.source.size[0] * self.source.size[1];
            each_chunk(patches, PLACES * count, |channel, out| {
                let values = &source[channel * plane..][..plane];
                super::with_scratch::<T, _>(|scratch| {
                    let lines = &mut scratch.panel;
                    super::run(Kernel(Which::Transform(PatchTransform {
                        of: self,
                        rows: rows.clone(),
                        values,
                        out,
                        lines,
                    })));
                });
            });
            self.multiply(patches, rows, target);
        }
        super::with_scratch::<T, _>(|scratch| scratch.planes = patches);
    }

    /// Computes some rows of patches of the target.
    fn multiply(&self, patches: &[T], rows: Range<usize>, target: &mut [T]) {
        let plane = self.target.size[0] * self.target.size[1];
        let across = self.target.size[1].div_ceil(2);
        let multiply_adds =
            PLACES * rows.len() * across * self.source.channels * self.target.channels;
        share_out(target, plane, TILE, multiply_adds as f64 >= SHARED, |first, target| {
            super::with_scratch::<T, _>(|scratch| {
                let (rows, products) = (rows.clone(), &mut scratch.panel);
                let offsets = &mut scratch.offsets;
                super::run(Kernel(Which::SumPatches(SumPatches {
                    of: self,
                    patches,
                    first,
                    rows,
                    target,
                    products,
                    offsets,
                })));
            });
        });
    }
}

/// Computes Bᵀ d B for some rows of patches of one channel.
pub(super) struct PatchTransform<'a, T> {
    of: &'a Winograd<T>,
    rows: Range<usize>,
    values: &'a [T],
    /// For each place, one value per patch.
    out: &'a mut [T],
    lines: &'a mut Vec<T>,
}

impl<T: Scalar> WithSimd for PatchTransform<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { of, rows, values, out, lines } = self;
        let [height, width] = of.source.size;
        let across = of.target.size[1].div_ceil(2);
        let count = rows.len() * across;
        // Each line is stored as its even and its odd columns, surrounded by zeros.
        // Patch t reads the places t and t + 1 of both halves.
        let size = across + 1;
        // Neighboring rows of patches share two lines.
        let depth = 2 * rows.len() + 2;
        grow(lines, depth * 2 * size + 2 * size);
        // `combined` holds one line of Bᵀ d.
        let (lines, combined) = lines.split_at_mut(depth * 2 * size);
        for (line, out) in lines.chunks_exact_mut(2 * size).enumerate() {
            out.fill(T::zero());
            let Some(y) =
                (2 * rows.start + line).checked_sub(of.padding[0]).filter(|&y| y < height)
            else {
                continue;
            };
            let from = &values[y * width..][..width];
            let (even, odd) = out.split_at_mut(size);
            for (parity, half) in [even, odd].into_iter().enumerate() {
                // Columns 2 t + parity - padding of the source.
                let first = of.padding[1].saturating_sub(parity).div_ceil(2);
                let at = 2 * first + parity - of.padding[1];
                for (out, &v) in
                    half[first..].iter_mut().zip(from[at.min(width)..].iter().step_by(2))
                {
                    *out = v;
                }
            }
        }
        for row in 0..rows.len() {
            let line = |k: usize| &lines[(2 * row + k) * 2 * size..][..2 * size];
            // The rows of Bᵀ: d0 - d2, d1 + d2, d2 - d1, d1 - d3.
            for (y, (a, b, minus)) in
                [(0, 2, true), (1, 2, false), (2, 1, true), (1, 3, true)].into_iter().enumerate()
            {
                let (a, b) = (line(a), line(b));
                let combined = &mut combined[..2 * size];
                if minus {
                    for ((out, &a), &b) in combined.iter_mut().zip(a).zip(b) {
                        *out = a - b;
                    }
                } else {
                    for ((out, &a), &b) in combined.iter_mut().zip(a).zip(b) {
                        *out = a + b;
                    }
                }
                // B combines the columns (even, odd, next_even, next_odd) like the rows.
                let (even, odd) = combined.split_at(size);
                let (even, next_even) = (&even[..across], &even[1..]);
                let (odd, next_odd) = (&odd[..across], &odd[1..]);
                for (x, (a, b, minus)) in [
                    (even, next_even, true),
                    (odd, next_even, false),
                    (next_even, odd, true),
                    (odd, next_odd, true),
                ]
                .into_iter()
                .enumerate()
                {
                    let out = &mut out[(y * 4 + x) * count + row * across..][..across];
                    if minus {
                        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                            *out = a - b;
                        }
                    } else {
                        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                            *out = a + b;
                        }
                    }
                }
            }
        }
    }
}

/// Sums over the source's channels, place by place, and transforms the sums to values of the
/// target, for some of its channels (from `first` on) and some rows of patches.
pub(super) struct SumPatches<'a, T> {
    of: &'a Winograd<T>,
    patches: &'a [T],
    first: usize,
    rows: Range<usize>,
    target: &'a mut [T],
    products: &'a mut Vec<T>,
    offsets: &'a mut Vec<usize>,
}

impl<T: Scalar> WithSimd for SumPatches<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { of, patches, first, rows, target, products, offsets } = self;
        let [height, width] = of.target.size;
        let channels = target.len() / (height * width);
        let across = width.div_ceil(2);
        let count = rows.len() * across;
        let depth = of.source.channels;
        grow(products, channels * PLACES * count);
        // The patches are channels x places x count.
        grow(offsets, depth);
        let offsets = &mut offsets[..depth];
        offsets.iter_mut().enumerate().for_each(|(channel, at)| *at = channel * PLACES * count);
        let offsets = &*offsets;
        for place in 0..PLACES {
            let source = &patches[place * count..];
            let weights = &of.weights[place * of.target.channels * depth..];
            for tile in tiles(of.target.channels)
                .filter(|tile| tile.start >= first && tile.start < first + channels)
            {
                let weights = &weights[tile.start * depth..tile.end * depth];
                macro_rules! of_width {
                    ($($n:literal),*) => {
                        match tile.len() {
                            $($n => {
                                let mut at = [0; $n];
                                for n in 0..$n {
                                    at[n] = ((tile.start - first + n) * PLACES + place) * count;
                                }
                                let weights = weights.as_chunks::<$n>().0;
                                kernel::combine::<S, T, $n>(
                                    simd, source, 0..count, (offsets, 1, weights),
                                    (products, at), false,
                                );
                            })*
                            _ => {}
                        }
                    };
                }
                of_width!(1, 2, 4, 6);
            }
        }
        for (channel, target) in target.chunks_exact_mut(height * width).enumerate() {
            let products = &mut products[channel * PLACES * count..][..PLACES * count];
            // Multiplying by Aᵀ from the left reduces the sixteen places to eight, stored in the
            // first eight.
            for x in 0..4 {
                // Borrows four places of the same column mutably.
                let mut rest = &mut *products;
                let mut lines: [&mut [T]; 4] = std::array::from_fn(|y| {
                    let (_, line) = std::mem::take(&mut rest).split_at_mut(if y == 0 {
                        x * count
                    } else {
                        3 * count
                    });
                    let (line, behind) = line.split_at_mut(count);
                    rest = behind;
                    line
                });
                let [m0, m1, m2, m3] = &mut lines;
                // The rows of Aᵀ: m0 + m1 + m2, m1 - m2 - m3.
                for p in 0..count {
                    let (a, b, c, d) = (m0[p], m1[p], m2[p], m3[p]);
                    m0[p] = a + b + c;
                    m1[p] = b - c - d;
                }
            }
            for row in 0..rows.len() {
                // Multiplies by A from the right while writing the outputs.
                for y in 0..2 {
                    let at = 2 * (rows.start + row) + y;
                    // With an odd height, the last row of patches has one line too many.
                    if at >= height {
                        continue;
                    }
                    let line = |x: usize| &products[(y * 4 + x) * count + row * across..][..across];
                    let (m0, m1, m2, m3) = (line(0), line(1), line(2), line(3));
                    let out = &mut target[at * width..][..width];
                    let (pairs, last) = out.as_chunks_mut::<2>();
                    for (t, pair) in pairs.iter_mut().enumerate() {
                        *pair = [m0[t] + m1[t] + m2[t], m1[t] - m2[t] - m3[t]];
                    }
                    // With an odd width, the last patch has only its first column.
                    for out in last {
                        *out = m0[across - 1] + m1[across - 1] + m2[across - 1];
                    }
                }
            }
        }
    }
}
