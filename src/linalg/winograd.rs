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

use super::correlate::{Planes, SHARED};
use super::panels::{Division, Packed, PanelRange, aligned_mut, with_room};
use super::product::{Factor, Multiply, Right, Target};
use super::threads::{Band, share_planes};
use super::{Kernel, Scratch, Which, grow, run};
use crate::scalar::Scalar;

/// The places of a transformed patch.
const PLACES: usize = 16;
/// The number of patches times channels, of the source and the target, that are processed together,
/// so that they stay in the cache.
const AT_ONCE: usize = 1 << 14;
/// The number of patches that are processed together at least, so that they fill a tile.
const LEAST: usize = 64;
/// The numbers of patches and channels below which nothing is gained.
const FEWEST: [usize; 2] = [16, 16];

/// A correlation of 3 x 3 with stride 1.
#[derive(Debug)]
pub(crate) struct Winograd<T> {
    source: Planes,
    target: Planes,
    /// The numbers of zeros around the source, along each axis.
    padding: [usize; 2],
    /// For each place and target channel, one weight for each source channel.
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
        for of_target in 0..target.channels {
            for channel in 0..source.channels {
                // Transformed in double precision, so that each weight is rounded only once.
                let g: [[f64; 3]; 3] = std::array::from_fn(|y| {
                    std::array::from_fn(|x| weight(of_target, channel, y, x).as_f64())
                });
                // G g Gᵀ, first along the columns, then along the rows.
                let along = |a: f64, b: f64, c: f64| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
                let columns: [[f64; 4]; 3] =
                    std::array::from_fn(|x| along(g[0][x], g[1][x], g[2][x]));
                let rows = (0..4).map(|y| along(columns[0][y], columns[1][y], columns[2][y]));
                for (place, v) in rows.flatten().enumerate() {
                    weights[(place * target.channels + of_target) * source.channels + channel] =
                        T::from_f64(v);
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
        let patches = self.target.size.map(|size| size.div_ceil(2)).iter().product::<usize>();
        let multiply_adds = PLACES * patches * self.source.channels * self.target.channels;
        let worth_it = multiply_adds as f64 >= SHARED;
        // A patch covers two lines.
        share_planes(target, self.target.size, 2, worth_it, |band| self.compute(source, band));
    }

    /// Computes the product for a band of the target.
    fn compute(&self, source: &[T], mut band: Band<'_, T>) {
        let across = self.target.size[1].div_ceil(2);
        let down = band.lines.start / 2..band.lines.end.div_ceil(2);
        // A few rows of patches at a time.
        let channels = self.source.channels + band.planes.len();
        let strip = (AT_ONCE / channels).max(LEAST).div_ceil(across).clamp(1, down.len());
        let plane = self.source.size[0] * self.source.size[1];
        super::with_scratch::<T, _>(|scratch| {
            for first in down.clone().step_by(strip) {
                let rows = first..down.end.min(first + strip);
                let count = rows.len() * across;
                let channels = self.source.channels;
                let mut memory = std::mem::take(&mut scratch.planes);
                let size = PLACES * Packed::<T>::size(count, channels);
                grow(&mut memory, with_room::<T>(size));
                let patches = &mut aligned_mut(&mut memory)[..size];
                for (channel, values) in source.chunks_exact(plane).enumerate() {
                    let (of, rows, lines) = (self, rows.clone(), &mut scratch.panel);
                    let to = &mut *patches;
                    let transform = PatchTransform { of, rows, values, channel, to, lines };
                    run(Kernel(Which::Transform(transform)));
                }
                let (of, patches, band) = (self, &*patches, &mut band);
                run(Kernel(Which::SumPatches(SumPatches { of, patches, rows, band, scratch })));
                scratch.planes = memory;
            }
        });
    }
}

/// Computes Bᵀ d B for some rows of patches of one channel.
pub(super) struct PatchTransform<'a, T> {
    of: &'a Winograd<T>,
    rows: Range<usize>,
    values: &'a [T],
    channel: usize,
    /// For each place, a packed matrix of patches x channels.
    to: &'a mut [T],
    lines: &'a mut Vec<T>,
}

impl<T: Scalar> WithSimd for PatchTransform<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { of, rows, values, channel, to, lines } = self;
        let [height, width] = of.source.size;
        let across = of.target.size[1].div_ceil(2);
        let count = rows.len() * across;
        // Each line is stored as its even and its odd columns, surrounded by zeros.
        // Patch t reads the places t and t + 1 of both halves.
        let size = across + 1;
        // Neighboring rows of patches share two lines.
        let depth = 2 * rows.len() + 2;
        grow(lines, depth * 2 * size + 2 * size + PLACES * count);
        // `combined` holds one line of Bᵀ d, and `made` one value per patch for each place.
        let (lines, others) = lines.split_at_mut(depth * 2 * size);
        let (combined, made) = others.split_at_mut(2 * size);
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
                    let out = &mut made[(y * 4 + x) * count + row * across..][..across];
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
        let division = Division::of::<T>(count);
        let (channels, lanes) = (of.source.channels, T::lanes::<S>());
        let places = to.chunks_exact_mut(division.height() * channels);
        for (to, made) in places.zip(made.chunks_exact(count)) {
            for panel in 0..division.panels() {
                let rows = division.rows(panel);
                let to = &mut to[rows.start * channels + channel * rows.len()..][..rows.len()];
                let made = &made[rows.start..rows.end.min(count)];
                for (to, made) in T::vectors_mut::<S>(to).0.iter_mut().zip(made.chunks(lanes)) {
                    *to = match T::vectors::<S>(made).0 {
                        [whole] => *whole,
                        _ => T::load(simd, made),
                    };
                }
            }
        }
    }
}

/// Sums over the source's channels, place by place, and transforms the sums to values of the
/// target, for some rows of patches.
pub(super) struct SumPatches<'a, 'b, T> {
    of: &'a Winograd<T>,
    /// For each place, a packed matrix of patches x channels.
    patches: &'a [T],
    rows: Range<usize>,
    band: &'a mut Band<'b, T>,
    scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for SumPatches<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { of, patches, rows, band, scratch } = self;
        let width = of.target.size[1];
        let channels = band.planes.clone();
        let across = width.div_ceil(2);
        let count = rows.len() * across;
        let inner = of.source.channels;
        let mut products = std::mem::take(&mut scratch.parts);
        grow(&mut products, channels.len() * PLACES * count);
        for place in 0..PLACES {
            let size = Packed::<T>::size(count, inner);
            let m = Packed::of(&patches[place * size..][..size], count, inner);
            let weights = &of.weights[place * of.target.channels * inner..];
            let weights = &weights[channels.start * inner..channels.end * inner];
            simd.vectorize(Multiply {
                m: Factor::Packed(m),
                panels: PanelRange::all::<T>(count),
                right: Right { u: None, per_sample: 1, x: weights, inner, has_zeros: false },
                columns: None,
                y: Target { values: &mut products, stride: PLACES * count, first: place * count },
                scratch: &mut *scratch,
            });
        }
        let lines = band.lines.clone();
        for (channel, products) in channels.zip(products.chunks_exact_mut(PLACES * count)) {
            let target = band.plane(channel);
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
                    if at >= lines.end {
                        continue;
                    }
                    let line = |x: usize| &products[(y * 4 + x) * count + row * across..][..across];
                    let (m0, m1, m2, m3) = (line(0), line(1), line(2), line(3));
                    let out = &mut target[(at - lines.start) * width..][..width];
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
        scratch.parts = products;
    }
}
