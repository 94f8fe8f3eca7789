//! Correlations: the two products of a convolution, as sums of shifted planes.
//!
//! A convolution connects a *fine* side (the inputs of a Conv2d) to a *coarse* side (its outputs).
//! Along each of the two axes,
//!
//! ```text
//!     fine index = stride · coarse index - padding + dilation · tap
//! ```
//!
//! One product maps [`Down`](Direction::Down) from fine to coarse, the other [`Up`](Direction::Up)
//! from coarse to fine. If a plane is laid out with zeros between its rows, a tap is just an
//! offset: every value of a result is Σ_k w_k source[offset_k + p], for runs of p as long as a
//! plane. This is a product M w, where M has one row for each place p, one inner index for each
//! offset, and the weights of an output channel are a column. So a correlation is a product like
//! any other ([`Multiply`]), except for where M lies. A stride splits the fine side into phases,
//! each of which is such a product.

// Inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

use pulp::{Simd, WithSimd};

use super::panels::{Loose, Order, PanelRange, Rows};
use super::product::{Factor, Multiply, Right, Target};
use super::threads::{Band, share_planes};
use super::winograd::Winograd;
use super::{Kernel, Scratch, Which, grow};
use crate::scalar::Scalar;

/// The channels of one side, and their height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planes {
    pub channels: usize,
    pub size: [usize; 2],
}

impl Planes {
    pub fn values(self) -> usize {
        self.channels * self.size[0] * self.size[1]
    }
}

/// The sides of a convolution and how it connects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub fine: Planes,
    pub coarse: Planes,
    pub groups: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From fine to coarse: a convolution.
    Down,
    /// From coarse to fine: a transposed convolution.
    Up,
}

/// One product, with its weights in the order in which they are used.
#[derive(Debug)]
pub(crate) enum Correlation<T> {
    Shifted(Shifted<T>),
    /// A product that needs fewer multiplications.
    Winograd(Winograd<T>),
}

/// A product as a sum of shifted planes.
#[derive(Debug)]
pub(crate) struct Shifted<T> {
    source: Source,
    target: Planes,
    groups: usize,
    phases: Vec<Phase<T>>,
    multiply_adds: f64,
}

/// How the source is laid out: each channel as one plane for each phase.
#[derive(Debug)]
struct Source {
    planes: Planes,
    /// For each phase, the run of indices on each axis.
    phases: Vec<[Run; 2]>,
    height: usize,
    pitch: usize,
    /// Whether the values already have this layout.
    as_is: bool,
}

/// The `count` indices `first`, `first + step`, … of an axis, at the places `at`, `at + 1`, …
#[derive(Debug, Clone, Copy)]
struct Run {
    first: usize,
    step: usize,
    count: usize,
    at: usize,
}

/// A part of the target's values: those at a run of indices on each axis.
#[derive(Debug)]
struct Phase<T> {
    runs: [Run; 2],
    /// For each channel of a group and each tap, where its source begins.
    offsets: Vec<usize>,
    taps: usize,
    /// For each channel of the target, one weight for each offset.
    weights: Vec<T>,
}

/// The number of values of a channel that are computed at once, if there are several channels.
const BLOCK: usize = 256;
/// The number of values of all channels that are computed at once at least.
const LEAST: usize = 4096;
/// Products with at least this many multiply-adds are split among the threads of the caller's pool.
pub(super) const SHARED: f64 = 1e6;

impl Geometry {
    /// Whether the products are computed with fewer multiplications.
    pub fn is_transformed(&self) -> bool {
        let plain = self.kernel == [3, 3]
            && self.stride == [1, 1]
            && self.dilation == [1, 1]
            && self.groups == 1;
        plain
            && self.padding.iter().all(|&padding| padding <= 2)
            && Winograd::<f32>::pays(self.fine, self.coarse)
    }

    /// The phases and taps of the source and the target along an axis.
    fn axis(&self, axis: usize, direction: Direction) -> Axis {
        let (fine, coarse) = (self.fine.size[axis], self.coarse.size[axis]);
        let (stride, padding) = (self.stride[axis], self.padding[axis]);
        let reach = |tap: usize| tap * self.dilation[axis];
        let taps = self.kernel[axis];
        match direction {
            Direction::Down => {
                // Lay out only those phases of the fine side that some tap falls on.
                let mut phases: Vec<usize> = (0..taps).map(|tap| reach(tap) % stride).collect();
                phases.sort_unstable();
                phases.dedup();
                let furthest = reach(taps - 1) / stride;
                let sources = phases.iter().map(|&phase| {
                    // The places q with 0 <= stride q + phase - padding < fine.
                    let at = padding.saturating_sub(phase).div_ceil(stride);
                    let first = stride * at + phase - padding;
                    let count = (coarse + furthest)
                        .saturating_sub(at)
                        .min(fine.saturating_sub(first).div_ceil(stride));
                    Run { first, step: stride, count, at }
                });
                // The list has the phase of every tap, so the position always exists.
                let place = |tap: usize| {
                    phases.iter().position(|&phase| phase == reach(tap) % stride).unwrap_or(0)
                };
                Axis {
                    sources: sources.collect(),
                    targets: vec![Run { first: 0, step: 1, count: coarse, at: 0 }],
                    taps: (0..taps).map(|tap| Some((0, place(tap), reach(tap) / stride))).collect(),
                    length: coarse + furthest,
                    // With a single phase, the zeros after a line are also those before the next
                    // one.
                    shared: if stride == 1 {
                        (fine + padding)
                            .max(coarse)
                            .max((coarse + furthest).saturating_sub(padding))
                    } else {
                        coarse + furthest
                    },
                }
            }
            Direction::Up => {
                // The places q of a phase with 0 <= stride q + phase - padding < fine.
                let run = |phase: usize| {
                    let from = padding.saturating_sub(phase).div_ceil(stride);
                    let first = stride * from + phase - padding;
                    let count = fine.saturating_sub(first).div_ceil(stride);
                    (from, Run { first, step: stride, count, at: 0 })
                };
                // Phases at or above fine + padding have no values on the fine side.
                let runs: Vec<(usize, Run)> = (0..stride.min(fine + padding)).map(run).collect();
                let least = runs
                    .iter()
                    .filter(|(_, run)| run.count > 0)
                    .map(|(from, _)| *from)
                    .min()
                    .unwrap_or(0);
                let most = runs
                    .iter()
                    .filter(|(_, run)| run.count > 0)
                    .map(|(from, run)| from + run.count)
                    .max()
                    .unwrap_or(1);
                // Zeros before the coarse values, for the furthest tap of the first place.
                let front = (reach(taps - 1) / stride).saturating_sub(least);
                let tap = |tap: usize| {
                    let (from, _) = runs.get(reach(tap) % stride)?;
                    let shift = reach(tap) / stride;
                    // Place q takes coarse index q - shift, laid out `front` places later.
                    Some((reach(tap) % stride, 0, (from + front).checked_sub(shift)?))
                };
                Axis {
                    // Coarse values at or after `most` only reach the padding.
                    sources: vec![Run { first: 0, step: 1, count: coarse.min(most), at: front }],
                    taps: (0..taps).map(tap).collect(),
                    targets: runs.iter().map(|(_, run)| *run).collect(),
                    length: most + front,
                    // The zeros in front of the next line also serve as those after this one.
                    shared: (coarse.min(most) + front).max(most),
                }
            }
        }
    }
}

/// The phases and taps of the source and the target along an axis.
struct Axis {
    /// The runs of the source's phases.
    sources: Vec<Run>,
    /// The runs of the target's phases.
    targets: Vec<Run>,
    /// For each tap, the target's phase, the source's phase, and the place where the tap begins.
    taps: Vec<Option<(usize, usize, usize)>>,
    /// The length of a line of the source.
    length: usize,
    /// The length of a line whose zeros at the end also serve as those before the next line.
    shared: usize,
}

impl<T: Scalar> Correlation<T> {
    /// `weights` are coarse channels x fine channels of a group x height x width of the kernel.
    pub fn new(geometry: &Geometry, direction: Direction, weights: &[T]) -> Self {
        if !geometry.is_transformed() {
            return Self::Shifted(Shifted::new(geometry, direction, weights));
        }
        let Geometry { fine, coarse, padding, .. } = *geometry;
        let at = |coarse: usize, fine_channel: usize, y: usize, x: usize| {
            ((coarse * fine.channels + fine_channel) * 3 + y) * 3 + x
        };
        Self::Winograd(match direction {
            Direction::Down => {
                Winograd::new(fine, coarse, padding, |o, i, y, x| weights[at(o, i, y, x)])
            }
            Direction::Up => {
                // The transposed product uses the kernel rotated by 180 degrees, and the padding
                // that fits it.
                Winograd::new(coarse, fine, padding.map(|padding| 2 - padding), |i, o, y, x| {
                    weights[at(o, i, 2 - y, 2 - x)]
                })
            }
        })
    }

    /// Creates the product as a sum of shifted planes, for any geometry. Its rounding error is
    /// relative to each output's own summands.
    pub fn plain(geometry: &Geometry, direction: Direction, weights: &[T]) -> Self {
        Self::Shifted(Shifted::new(geometry, direction, weights))
    }

    /// Computes the product for every column.
    pub fn apply(&self, source: &[T], target: &mut [T]) {
        match self {
            Self::Shifted(shifted) => shifted.apply(source, target),
            Self::Winograd(winograd) => {
                let (from, to) = winograd.sizes();
                for (source, target) in source.chunks_exact(from).zip(target.chunks_exact_mut(to)) {
                    winograd.apply(source, target);
                }
            }
        }
    }
}

/// The largest sum of source magnitudes in the window of any target of a 3 x 3 correlation with
/// stride 1, over all channels and with weights of 1. With `u`, each sum is multiplied by the
/// largest |u| of any channel at the target's position.
pub(crate) fn reach<T: Scalar>(
    geometry: &Geometry,
    direction: Direction,
    source: &[T],
    u: Option<&[T]>,
) -> T {
    let Geometry { fine, coarse, padding, .. } = *geometry;
    let (from, to) = if direction == Direction::Down { (fine, coarse) } else { (coarse, fine) };
    // How far before its own index a target's window begins.
    let before =
        if direction == Direction::Down { padding } else { padding.map(|padding| 2 - padding) };
    super::with_scratch::<T, _>(|scratch| {
        let mut sums = std::mem::take(&mut scratch.parts);
        let (of_from, of_to) = (from.size[0] * from.size[1], to.size[0] * to.size[1]);
        grow(&mut sums, of_from + of_to);
        let (magnitudes, largest) = sums[..of_from + of_to].split_at_mut(of_from);
        // Σ |source| over the channels at each position, and the largest |u| of any channel.
        magnitudes.fill(T::zero());
        for plane in source.chunks_exact(of_from) {
            magnitudes.iter_mut().zip(plane).for_each(|(sum, v)| *sum += v.abs());
        }
        largest.fill(if u.is_some() { T::zero() } else { T::one() });
        for plane in u.into_iter().flat_map(|u| u.chunks_exact(of_to)) {
            largest.iter_mut().zip(plane).for_each(|(largest, u)| *largest = largest.max(u.abs()));
        }
        let window = |at: usize, axis: usize| {
            at.saturating_sub(before[axis])
                ..(at + 3).saturating_sub(before[axis]).min(from.size[axis])
        };
        let mut most = T::zero();
        for row in 0..to.size[0] {
            for column in 0..to.size[1] {
                let mut sum = T::zero();
                for y in window(row, 0) {
                    let line = &magnitudes[y * from.size[1]..][..from.size[1]];
                    window(column, 1).for_each(|x| sum += line[x]);
                }
                most = most.max(sum * largest[row * to.size[1] + column]);
            }
        }
        scratch.parts = sums;
        most
    })
}

impl<T: Scalar> Shifted<T> {
    /// `weights` are coarse channels x fine channels of a group x height x width of the kernel.
    pub fn new(geometry: &Geometry, direction: Direction, weights: &[T]) -> Self {
        let Geometry { fine, coarse, groups, kernel, .. } = *geometry;
        let (from, target) = match direction {
            Direction::Down => (fine, coarse),
            Direction::Up => (coarse, fine),
        };
        let [rows, columns] = [geometry.axis(0, direction), geometry.axis(1, direction)];
        let (height, pitch) = (rows.length, columns.shared);
        // One plane for each pair of a row phase and a column phase, with the columns innermost.
        let phases = rows
            .sources
            .iter()
            .flat_map(|&row| columns.sources.iter().map(move |&column| [row, column]));
        let phases: Vec<[Run; 2]> = phases.collect();
        let whole = |run: Run, size: usize| {
            run.first == 0 && run.step == 1 && run.at == 0 && run.count == size
        };
        let as_is = phases.len() == 1
            && whole(phases[0][0], from.size[0])
            && whole(phases[0][1], from.size[1])
            && [height, pitch] == from.size;
        let source = Source { planes: from, phases, height, pitch, as_is };

        let (sources, targets) = (from.channels / groups, target.channels / groups);
        let plane = height * pitch;
        let per_channel = plane * source.phases.len();
        let mut made = Vec::new();
        for (r, &row) in rows.targets.iter().enumerate() {
            for (c, &column) in columns.targets.iter().enumerate() {
                // The taps that contribute to this phase, and where each begins.
                let of_axis = |axis: &Axis, phase: usize| -> Vec<(usize, usize, usize)> {
                    let taps = axis.taps.iter().enumerate();
                    taps.filter_map(|(tap, place)| {
                        place.filter(|p| p.0 == phase).map(|p| (tap, p.1, p.2))
                    })
                    .collect()
                };
                let (of_rows, of_columns) = (of_axis(&rows, r), of_axis(&columns, c));
                // This happens if the stride is larger than the fine side.
                if row.count == 0 || column.count == 0 {
                    continue;
                }
                let taps: Vec<(usize, usize)> = of_rows
                    .iter()
                    .flat_map(|&(y, of_y, at_y)| {
                        let sources = columns.sources.len();
                        let place = move |of_x: usize, at_x: usize| {
                            (of_y * sources + of_x) * plane + at_y * pitch + at_x
                        };
                        of_columns
                            .iter()
                            .map(move |&(x, of_x, at_x)| (y * kernel[1] + x, place(of_x, at_x)))
                    })
                    .collect();
                // Relative to the group's first channel, so all groups share the offsets.
                let offsets = (0..sources)
                    .flat_map(|channel| taps.iter().map(move |(_, at)| channel * per_channel + at));
                let offsets: Vec<usize> = offsets.collect();
                let mut ordered = Vec::with_capacity(groups * targets * offsets.len());
                let area = kernel[0] * kernel[1];
                for group in 0..groups {
                    for of_target in 0..targets {
                        for channel in 0..sources {
                            let (of_coarse, of_fine) = match direction {
                                Direction::Down => (group * targets + of_target, channel),
                                Direction::Up => (group * sources + channel, of_target),
                            };
                            let first = (of_coarse * (fine.channels / groups) + of_fine) * area;
                            ordered.extend(taps.iter().map(|&(tap, _)| weights[first + tap]));
                        }
                    }
                }
                made.push(Phase {
                    runs: [row, column],
                    offsets,
                    taps: taps.len(),
                    weights: ordered,
                });
            }
        }
        let multiply_adds = made
            .iter()
            .map(|phase| {
                (phase.runs[0].count * phase.runs[1].count) as f64
                    * (phase.offsets.len() * target.channels) as f64
            })
            .sum();
        Self { source, target, groups, phases: made, multiply_adds }
    }

    /// Computes the product for every column.
    pub fn apply(&self, source: &[T], target: &mut [T]) {
        let columns = source
            .chunks_exact(self.source.planes.values())
            .zip(target.chunks_exact_mut(self.target.values()));
        for (source, target) in columns {
            if self.source.as_is {
                self.correlate(source, target);
            } else {
                // Taken out instead of borrowed: while this thread waits, rayon may run another
                // product on it.
                let mut laid_out =
                    super::with_scratch::<T, _>(|scratch| std::mem::take(&mut scratch.planes));
                let size = self.source.size();
                grow(&mut laid_out, size);
                self.source.lay_out(source, &mut laid_out[..size]);
                self.correlate(&laid_out[..size], target);
                super::with_scratch::<T, _>(|scratch| scratch.planes = laid_out);
            }
        }
    }

    /// Computes the product for bands of the target.
    fn correlate(&self, source: &[T], target: &mut [T]) {
        let step = self.phases.iter().map(|phase| phase.runs[0].step).max().unwrap_or(1);
        let worth_it = self.multiply_adds >= SHARED;
        share_planes(target, self.target.size, step, worth_it, |band| {
            super::with_scratch::<T, _>(|scratch| {
                super::run(Kernel(Which::Correlate(Correlate { of: self, source, band, scratch })));
            });
        });
    }
}

impl Source {
    /// The number of values in the layout, including those that are read after the last line.
    fn size(&self) -> usize {
        self.planes.channels * self.phases.len() * self.height * self.pitch + self.pitch
    }

    fn lay_out<T: Scalar>(&self, values: &[T], out: &mut [T]) {
        let [height, width] = self.planes.size;
        let phases = self.phases.len();
        // The planes are ordered by channel, then by phase.
        super::threads::each_chunk(out, self.height * self.pitch, |number, plane| {
            plane.fill(T::zero());
            let [rows, columns] = &self.phases[number % phases];
            // There are only zeros after the last plane.
            let Some(channel) = values.chunks_exact(height * width).nth(number / phases) else {
                return;
            };
            for row in 0..rows.count {
                let from = &channel[(rows.first + row * rows.step) * width..][..width];
                let to = &mut plane[(rows.at + row) * self.pitch + columns.at..][..columns.count];
                if columns.step == 1 {
                    to.copy_from_slice(&from[columns.first..][..columns.count]);
                } else {
                    // A run without values may begin after the end of the line.
                    let from = from[columns.first.min(width)..].iter().step_by(columns.step);
                    to.iter_mut().zip(from).for_each(|(to, &v)| *to = v);
                }
            }
        });
    }
}

/// Computes the product for a band of the target.
pub(super) struct Correlate<'a, T> {
    of: &'a Shifted<T>,
    source: &'a [T],
    band: Band<'a, T>,
    scratch: &'a mut Scratch<T>,
}

impl<T: Scalar> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { of, source, mut band, scratch } = self;
        let [plane, width] = [of.target.size[0] * of.target.size[1], of.target.size[1]];
        let of_group = of.target.channels / of.groups;
        let group_size = of.source.planes.channels / of.groups
            * of.source.phases.len()
            * of.source.height
            * of.source.pitch;
        // If the stride is larger than the kernel's reach, some values are in no phase and stay
        // zero.
        let covered: usize = of
            .phases
            .iter()
            .filter(|p| p.taps > 0)
            .map(|p| p.runs[0].count * p.runs[1].count)
            .sum();
        if covered < plane {
            band.planes.clone().for_each(|channel| band.plane(channel).fill(T::zero()));
        }
        let mut block = std::mem::take(&mut scratch.parts);
        let height = BLOCK.max(LEAST / of_group);
        grow(&mut block, of_group * height);
        for phase in of.phases.iter().filter(|phase| phase.taps > 0) {
            let [rows, columns] = phase.runs;
            let (pitch, inner) = (of.source.pitch, phase.offsets.len());
            // The phase's lines in the band. A band begins at a multiple of the step.
            let line = |at: usize| at.saturating_sub(rows.first).div_ceil(rows.step);
            let lines = line(band.lines.start)..line(band.lines.end).min(rows.count);
            if lines.is_empty() {
                continue;
            }
            // Treat the lines as one run. The sums in the gaps are computed but never used.
            let all = lines.start * pitch..(lines.end - 1) * pitch + columns.count;
            let first = band.lines.start;
            let mut channel = band.planes.start;
            while channel < band.planes.end {
                // A band may begin or end inside a group.
                let group = channel / of_group;
                let channels = channel..band.planes.end.min((group + 1) * of_group);
                channel = channels.end;
                let source = &source[group * group_size..];
                let weights = &phase.weights[channels.start * inner..channels.end * inner];
                for from in all.clone().step_by(height) {
                    let run = from..all.end.min(from + height);
                    let m = Loose {
                        values: &source[run.start..],
                        order: Order::RowsTogether(Rows::At(&phase.offsets)),
                        rows: run.len(),
                        inner,
                    };
                    simd.vectorize(Multiply {
                        m: Factor::Loose(m),
                        panels: PanelRange::all::<T>(run.len()),
                        right: Right {
                            u: None,
                            per_sample: 1,
                            x: weights,
                            inner,
                            has_zeros: false,
                        },
                        columns: None,
                        y: Target { values: &mut block, stride: height, first: 0 },
                        scratch: &mut *scratch,
                    });
                    for (channel, made) in channels.clone().zip(block.chunks_exact(height)) {
                        let out = (band.plane(channel), width, first);
                        spread(&made[..run.len()], run.start, pitch, phase.runs, out);
                    }
                }
            }
        }
        scratch.parts = block;
    }
}

/// Copies values of a phase's lines, which begin at the place `from`, to their positions in the
/// target, whose lines begin at `first_line`.
#[inline(always)]
fn spread<T: Scalar>(
    made: &[T],
    from: usize,
    pitch: usize,
    [rows, columns]: [Run; 2],
    (out, width, first_line): (&mut [T], usize, usize),
) {
    if (rows.step, columns.step, columns.count) == (1, 1, pitch) && pitch == width {
        // The lines follow one another without gaps.
        let first = (rows.first * width + from) - first_line * width;
        return out[first..first + made.len()].copy_from_slice(made);
    }
    let mut at = from;
    while at < from + made.len() {
        let (row, column) = (at / pitch, at % pitch);
        let rest = (pitch - column).min(from + made.len() - at);
        // Sums in the gap between two lines belong to no target.
        if column < columns.count {
            let count = rest.min(columns.count - column);
            let values = &made[at - from..][..count];
            let line = rows.first + row * rows.step - first_line;
            let out = &mut out[line * width..][..width];
            let first = columns.first + column * columns.step;
            if columns.step == 1 {
                out[first..first + count].copy_from_slice(values);
            } else {
                out[first..]
                    .iter_mut()
                    .step_by(columns.step)
                    .zip(values)
                    .for_each(|(out, &v)| *out = v);
            }
        }
        at += rest;
    }
}
