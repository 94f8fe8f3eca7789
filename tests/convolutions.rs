//! Convolutions and transposed convolutions against explicit sums, over a grid of geometries. Both
//! have the same terms: a convolution gathers them along a kernel's taps, its transpose scatters
//! them.

use relprop::nalgebra::DVector;
use relprop::{Conv2d, ConvTranspose2d, Layer, Sequential, Shape};

/// A convolution from the fine side to the coarse one.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    /// Channels, height and width.
    fine: [usize; 3],
    coarse: [usize; 3],
    groups: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    padding_end: [usize; 2],
    dilation: [usize; 2],
}

impl Geometry {
    /// Computes the size of the coarse side, or returns `None` if the kernel does not fit.
    fn sized(mut self) -> Option<Self> {
        for axis in 0..2 {
            let room = self.fine[1 + axis] + self.padding[axis] + self.padding_end[axis];
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            self.coarse[1 + axis] = room.checked_sub(reach)? / self.stride[axis] + 1;
        }
        Some(self)
    }

    /// The convolution with its two axes exchanged.
    fn turned(self) -> Self {
        let planes = |[channels, height, width]: [usize; 3]| [channels, width, height];
        let pair = |[a, b]: [usize; 2]| [b, a];
        Self {
            fine: planes(self.fine),
            coarse: planes(self.coarse),
            groups: self.groups,
            kernel: pair(self.kernel),
            stride: pair(self.stride),
            padding: pair(self.padding),
            padding_end: pair(self.padding_end),
            dilation: pair(self.dilation),
        }
    }

    fn check(&self) {
        let Self { fine, coarse, groups, kernel, stride, padding, padding_end, dilation } = *self;
        let mut state = 1_u64;
        let mut random = |count: usize| -> Vec<f64> {
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
            };
            (0..count).map(|_| next()).collect()
        };
        let weights = random(coarse[0] * (fine[0] / groups) * kernel[0] * kernel[1]);
        let values = |[channels, height, width]: [usize; 3]| channels * height * width;
        let (x, y) = (random(values(fine)), random(values(coarse)));
        let (mut down, mut up) = (vec![0.0; y.len()], vec![0.0; x.len()]);
        self.each_term(&weights, |at_fine, at_coarse, w| {
            down[at_coarse] += w * x[at_fine];
            up[at_fine] += w * y[at_coarse];
        });

        let shape = [coarse[0], fine[0] / groups, kernel[0], kernel[1]];
        let convolution = Conv2d::new(shape, weights.clone(), None)
            .unwrap()
            .stride(stride)
            .padding(padding)
            .padding_end(padding_end)
            .dilation(dilation)
            .groups(groups);
        self.assert_is(convolution, fine, &x, &down);
        // What remains at the end after the last whole stride.
        let over = [0, 1].map(|axis| {
            let reach = dilation[axis] * (kernel[axis] - 1) + 1;
            let covered = (coarse[1 + axis] - 1) * stride[axis] + reach;
            fine[1 + axis] + padding[axis] + padding_end[axis] - covered
        });
        let transposed = ConvTranspose2d::new(shape, weights, None)
            .unwrap()
            .stride(stride)
            .padding(padding)
            .padding_end(padding_end)
            .output_padding(over)
            .dilation(dilation)
            .groups(groups);
        self.assert_is(transposed, coarse, &y, &up);
    }

    /// Calls `f` with the fine position, the coarse position and the weight of each product.
    fn each_term(&self, weights: &[f64], mut f: impl FnMut(usize, usize, f64)) {
        let Self { fine, coarse, groups, kernel, stride, padding, dilation, .. } = *self;
        let [of_fine, of_coarse] = [fine[0] / groups, coarse[0] / groups];
        for o in 0..coarse[0] {
            for i in 0..of_fine {
                for (oy, ox) in (0..coarse[1]).flat_map(|oy| (0..coarse[2]).map(move |ox| (oy, ox)))
                {
                    for (ky, kx) in
                        (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| (ky, kx)))
                    {
                        let at = |o: usize, k: usize, axis: usize| {
                            (o * stride[axis] + k * dilation[axis]).checked_sub(padding[axis])
                        };
                        let (Some(iy), Some(ix)) = (at(oy, ky, 0), at(ox, kx, 1)) else { continue };
                        if iy >= fine[1] || ix >= fine[2] {
                            continue;
                        }
                        let channel = o / of_coarse * of_fine + i;
                        let at_fine = (channel * fine[1] + iy) * fine[2] + ix;
                        let at_coarse = (o * coarse[1] + oy) * coarse[2] + ox;
                        let w = weights[((o * of_fine + i) * kernel[0] + ky) * kernel[1] + kx];
                        f(at_fine, at_coarse, w);
                    }
                }
            }
        }
    }

    fn assert_is(
        &self,
        layer: impl Layer<f64> + 'static,
        input: [usize; 3],
        values: &[f64],
        expected: &[f64],
    ) {
        let kind = layer.kind().to_owned();
        let model = Sequential::builder().input(Shape::from(input)).layer(layer).build().unwrap();
        let found = model.forward(&DVector::from_column_slice(values)).unwrap();
        assert_eq!(found.len(), expected.len(), "{self:?} {kind}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{self:?} {kind}: {found} is not {expected}");
        }
    }
}

#[test]
fn both_directions_are_their_sums() {
    let mut cases = 0;
    for [kernel, other] in [[1, 1], [2, 3], [3, 3], [4, 1], [5, 2]] {
        for stride in 1..=3 {
            for padding in 0..=2 {
                for dilation in 1..=2 {
                    for groups in [1, 2] {
                        let padding = [padding, padding / 2];
                        let geometry = Geometry {
                            fine: [2 * groups, 9, 11],
                            coarse: [7 * groups, 0, 0],
                            groups,
                            kernel: [kernel, other],
                            stride: [stride, 1],
                            padding,
                            // The padding is the same at both ends, except that grouped channels
                            // get one more at the end of the first axis.
                            padding_end: [padding[0] + groups - 1, padding[1]],
                            dilation: [dilation; 2],
                        };
                        let Some(geometry) = geometry.sized() else { continue };
                        geometry.check();
                        geometry.turned().check();
                        cases += 2;
                    }
                }
            }
        }
    }
    assert!(cases > 300);
}

/// Convolutions with 3 x 3 kernels over enough channels and positions use fewer multiplications
/// than the sums have (Winograd).
#[test]
fn both_directions_are_their_sums_with_fewer_multiplications() {
    for (padding, size, more) in [
        (0, [14, 15], 0),
        (1, [13, 12], 0),
        (1, [30, 41], 0),
        (2, [11, 11], 0),
        (0, [14, 15], 1),
        (1, [13, 12], 1),
    ] {
        let geometry = Geometry {
            fine: [17, size[0], size[1]],
            coarse: [21, 0, 0],
            groups: 1,
            kernel: [3, 3],
            stride: [1, 1],
            padding: [padding; 2],
            padding_end: [padding + more; 2],
            dilation: [1, 1],
        };
        geometry.sized().unwrap().check();
    }
}
