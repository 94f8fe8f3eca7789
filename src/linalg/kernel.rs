//! The inner loops of all products, which use the processor's widest vectors.
//!
//! The sum of a product has one order: that of the inner indices, in blocks whose size depends only on
//! the shape. The grouping of columns, the packing of the matrix, the skipping of zeros and the
//! distribution over threads do not change a single bit. Scalar products add in the order of the
//! vectors' lanes, so whether they are used depends on the sample alone.

// Everything here must be inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always, clippy::needless_range_loop)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::scalar::Lanes;

/// y_c = M x_c for N columns and a panel of V vectors of rows, over some inner indices. If `add` is
/// set, the products are added to y instead. y_c begins at `places[c]` of `y` and has `rows` rows.
#[inline(always)]
pub fn multiply<S: Simd, T: Lanes, const V: usize, const N: usize>(
    simd: S,
    panel: &[T],
    x: [&[T]; N],
    (y, places, rows): (&mut [T], [usize; N], usize),
    add: bool,
) {
    // With 16 registers, the sums of two vectors of rows are all that fit.
    if S::REGISTER_COUNT < 32 && V > 2 && N > 2 {
        let (y, first) = (&mut *y, 0);
        simd.vectorize(Tile::<T, V, 2, N> { panel, first, x, y, places, rows, add });
        let first = 2;
        if V == 4 {
            simd.vectorize(Tile::<T, V, 2, N> { panel, first, x, y, places, rows, add });
        } else {
            simd.vectorize(Tile::<T, V, 1, N> { panel, first, x, y, places, rows, add });
        }
    } else {
        simd.vectorize(Tile::<T, V, V, N> { panel, first: 0, x, y, places, rows, add });
    }
}

/// [`multiply`] for U of the V vectors of rows, from the vector `first` on. A function of its own
/// for each shape, so that its sums stay in registers.
struct Tile<'a, T, const V: usize, const U: usize, const N: usize> {
    panel: &'a [T],
    first: usize,
    x: [&'a [T]; N],
    y: &'a mut [T],
    places: [usize; N],
    rows: usize,
    add: bool,
}

impl<T: Lanes, const V: usize, const U: usize, const N: usize> WithSimd for Tile<'_, T, V, U, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panel, first, x, y, places, rows, add } = self;
        let panel = T::vectors::<S>(panel).0.as_chunks::<V>().0;
        let zero = T::splat(simd, T::default());
        let mut sums = [[zero; U]; N];
        accumulate::<S, T, V, U, N>(simd, (panel, first), x, &mut sums);
        let lanes = T::lanes::<S>();
        for c in 0..N {
            let y = &mut y[places[c]..places[c] + rows];
            for v in 0..U {
                let from = (first + v) * lanes;
                if from + lanes <= rows {
                    let y = &mut T::vectors_mut::<S>(&mut y[from..from + lanes]).0[0];
                    // Adding 0 makes a sum of -0, which skipped zeros can give, that of others.
                    *y = T::add(simd, if add { *y } else { zero }, sums[c][v]);
                } else if from < rows {
                    let y = &mut y[from..];
                    let before = if add { T::load(simd, y) } else { zero };
                    T::store(simd, y, T::add(simd, before, sums[c][v]));
                }
            }
        }
    }
}

/// Adds the products of some vectors of rows with N columns to sums.
#[inline(always)]
fn accumulate<S: Simd, T: Lanes, const V: usize, const U: usize, const N: usize>(
    simd: S,
    (panel, first): (&[[T::Vector<S>; V]], usize),
    mut x: [&[T]; N],
    sums: &mut [[T::Vector<S>; U]; N],
) {
    // The inner indices that are multiplied between two checks of the loop. With many sums, more
    // than one would make the compiler mix their order and run out of registers.
    let unrolled = if U * N < 12 { 4 } else { 1 };
    assert!(first + U <= V, "the panel has these vectors");
    // A copy that is never referred to, so that it stays in registers.
    let mut t = *sums;
    // Cut to the same length, so that the loops have no bounds checks.
    let length = panel.len();
    for c in 0..N {
        x[c] = &x[c][..length];
    }
    let mut k = 0;
    while k + unrolled <= length {
        for step in 0..unrolled {
            let w = &panel[k + step];
            for c in 0..N {
                let x = T::splat(simd, x[c][k + step]);
                for v in 0..U {
                    t[c][v] = T::mul_add(simd, w[first + v], x, t[c][v]);
                }
            }
        }
        k += unrolled;
    }
    while k < length {
        for c in 0..N {
            let x = T::splat(simd, x[c][k]);
            for v in 0..U {
                t[c][v] = T::mul_add(simd, panel[k][first + v], x, t[c][v]);
            }
        }
        k += 1;
    }
    *sums = t;
}

/// y_c = Σ_a w_a x_ac for N columns of y, over `rows`. If `add` is set, the sums are added to y
/// instead. w_a begins at `offsets[a]` times `scale` in `w`, and y_c at `columns[c]` of `y`.
#[inline(always)]
pub fn combine<S: Simd, T: Lanes, const N: usize>(
    simd: S,
    w: &[T],
    rows: Range<usize>,
    (offsets, scale, x): (&[usize], usize, &[[T; N]]),
    (y, columns): (&mut [T], [usize; N]),
    add: bool,
) {
    let lanes = T::lanes::<S>();
    if rows.len() < lanes {
        let few = Few { w, rows, offsets, scale, x, y, columns, add };
        return simd.vectorize(few);
    }
    // The number of vectors that keeps one or two dozen sums in registers.
    let most = match N {
        1 => 8,
        2 => 4,
        _ if S::REGISTER_COUNT >= 32 => 4,
        _ => 2,
    };
    let mut first = rows.start;
    while first < rows.end {
        let vectors = (rows.end - first).div_ceil(lanes);
        // The last vector may overlap the previous one, and both must be in the same tile. So a
        // single vector must never be left over.
        let together = if vectors <= most { vectors } else { most.min(vectors / 2) };
        let rows = first..rows.end.min(first + together * lanes);
        first = rows.end;
        macro_rules! of {
            ($v:literal) => {
                simd.vectorize(Sums::<T, $v, N> { w, rows, offsets, scale, x, y, columns, add })
            };
        }
        match together {
            1 => of!(1),
            2 => of!(2),
            3 => of!(3),
            4 => of!(4),
            5 if N == 1 => of!(5),
            6 if N == 1 => of!(6),
            7 if N == 1 => of!(7),
            _ if N == 1 => of!(8),
            _ => {}
        }
    }
}

/// [`combine`] over V vectors of rows. The last vector ends with the rows and may overlap the
/// previous one.
struct Sums<'a, T, const V: usize, const N: usize> {
    w: &'a [T],
    rows: Range<usize>,
    offsets: &'a [usize],
    scale: usize,
    x: &'a [[T; N]],
    y: &'a mut [T],
    columns: [usize; N],
    add: bool,
}

impl<T: Lanes, const V: usize, const N: usize> WithSimd for Sums<'_, T, V, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w, rows, offsets, scale, x, y, columns, add } = self;
        let (lanes, height) = (T::lanes::<S>(), rows.len());
        let mut places = [0; V];
        for v in 0..V {
            // `combine` never passes fewer rows than a vector has lanes, so this does not underflow.
            places[v] = (v * lanes).min(height - lanes);
        }
        let zero = T::splat(simd, T::default());
        let mut sums = [[zero; V]; N];
        // Each vector of w is loaded once for all N columns of y.
        let mut of_w = [zero; V];
        for (&at, x) in offsets.iter().zip(x) {
            let w = &w[at * scale + rows.start..at * scale + rows.end];
            for v in 0..V {
                of_w[v] = vector::<S, T>(w, places[v], lanes);
            }
            for c in 0..N {
                let x = T::splat(simd, x[c]);
                for v in 0..V {
                    sums[c][v] = T::mul_add(simd, of_w[v], x, sums[c][v]);
                }
            }
        }
        for c in 0..N {
            let y = &mut y[columns[c] + rows.start..columns[c] + rows.end];
            // All vectors are read before any is written, because they may overlap.
            let mut before = [zero; V];
            if add {
                for v in 0..V {
                    before[v] = vector::<S, T>(y, places[v], lanes);
                }
            }
            for v in 0..V {
                T::vectors_mut::<S>(&mut y[places[v]..places[v] + lanes]).0[0] =
                    T::add(simd, before[v], sums[c][v]);
            }
        }
    }
}

#[inline(always)]
fn vector<S: Simd, T: Lanes>(values: &[T], at: usize, lanes: usize) -> T::Vector<S> {
    T::vectors::<S>(&values[at..at + lanes]).0[0]
}

/// [`combine`] over fewer rows than a vector has lanes.
struct Few<'a, T, const N: usize> {
    w: &'a [T],
    rows: Range<usize>,
    offsets: &'a [usize],
    scale: usize,
    x: &'a [[T; N]],
    y: &'a mut [T],
    columns: [usize; N],
    add: bool,
}

impl<T: Lanes, const N: usize> WithSimd for Few<'_, T, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w, rows, offsets, scale, x, y, columns, add } = self;
        let zero = T::splat(simd, T::default());
        let mut sums = [zero; N];
        for (&at, x) in offsets.iter().zip(x) {
            let w = T::load(simd, &w[at * scale + rows.start..at * scale + rows.end]);
            for c in 0..N {
                sums[c] = T::mul_add(simd, w, T::splat(simd, x[c]), sums[c]);
            }
        }
        for c in 0..N {
            let y = &mut y[columns[c] + rows.start..columns[c] + rows.end];
            let before = if add { T::load(simd, y) } else { zero };
            T::store(simd, y, T::add(simd, before, sums[c]));
        }
    }
}

/// The M x N scalar products of M columns with N columns, all of the same length.
#[inline(always)]
pub fn dots<S: Simd, T: Lanes, const M: usize, const N: usize>(
    simd: S,
    w: [&[T]; M],
    s: [&[T]; N],
) -> [[T; N]; M] {
    // Loops, not closures: a closure is a function of its own, without the processor's features.
    let zero = T::splat(simd, T::default());
    let mut sums = [[zero; N]; M];
    let (mut w_body, mut w_rest) = ([&[][..]; M], [&[][..]; M]);
    for i in 0..M {
        (w_body[i], w_rest[i]) = T::vectors::<S>(w[i]);
    }
    let (mut s_body, mut s_rest) = ([&[][..]; N], [&[][..]; N]);
    for c in 0..N {
        (s_body[c], s_rest[c]) = T::vectors::<S>(s[c]);
    }
    // Cut to the same length, so that the loop below has no bounds checks.
    let length = w_body[0].len();
    for i in 0..M {
        w_body[i] = &w_body[i][..length];
    }
    for c in 0..N {
        s_body[c] = &s_body[c][..length];
    }
    let mut of_s = [zero; N];
    for k in 0..length {
        for c in 0..N {
            of_s[c] = s_body[c][k];
        }
        for i in 0..M {
            let w = w_body[i][k];
            for c in 0..N {
                sums[i][c] = T::mul_add(simd, w, of_s[c], sums[i][c]);
            }
        }
    }
    // The remaining values, padded with zeros, are added to the same lanes.
    if !w_rest[0].is_empty() {
        for c in 0..N {
            of_s[c] = T::load(simd, s_rest[c]);
        }
        for i in 0..M {
            let w = T::load(simd, w_rest[i]);
            for c in 0..N {
                sums[i][c] = T::mul_add(simd, w, of_s[c], sums[i][c]);
            }
        }
    }
    let mut dots = [[T::default(); N]; M];
    for i in 0..M {
        for c in 0..N {
            dots[i][c] = T::sum(simd, sums[i][c]);
        }
    }
    dots
}
