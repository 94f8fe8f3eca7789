//! The rate of convolutions, in both directions: `cargo bench --bench convolutions`.
//!
//! The shapes are those of VGG and ResNet. A time is the best of seven. The last column counts the
//! products of the sums, which a kernel of 3 x 3 computes with fewer multiplications.

use std::hint::black_box;
use std::time::Instant;

use relprop::nalgebra::DVector;
use relprop::{Conv2d, ConvTranspose2d, Layer, Sequential, Shape};

/// Input channels, output channels, height and width, kernel, stride.
const SHAPES: [[usize; 5]; 14] = [
    [64, 64, 224, 3, 1],
    [128, 128, 112, 3, 1],
    [256, 256, 56, 3, 1],
    [512, 512, 28, 3, 1],
    [512, 512, 14, 3, 1],
    [64, 64, 56, 3, 1],
    [128, 128, 28, 3, 1],
    [256, 256, 14, 3, 1],
    [512, 512, 7, 3, 1],
    [256, 64, 56, 1, 1],
    [1024, 256, 14, 1, 1],
    [512, 2048, 7, 1, 1],
    [3, 64, 224, 7, 2],
    [128, 256, 28, 3, 2],
];

/// The best time of a forward pass, in seconds.
fn time(layer: impl Layer<f32> + 'static, input: Shape) -> f64 {
    let model =
        Sequential::builder().input(input).layer(layer).build().expect("the layer fits the input");
    let x = DVector::from_element(input.size(), 0.25);
    let run = || {
        let start = Instant::now();
        black_box(model.forward(black_box(&x)).expect("finite outputs"));
        start.elapsed().as_secs_f64()
    };
    (0..7).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn main() {
    println!("| convolution | direction | ms | GFLOP/s | M products |\n|---|---|---:|---:|---:|");
    for [inputs, outputs, size, kernel, stride] in SHAPES {
        let padding = kernel / 2;
        let small = (size + 2 * padding - kernel) / stride + 1;
        let shape = [outputs, inputs, kernel, kernel];
        let weights = vec![0.5_f32; outputs * inputs * kernel * kernel];
        let products = (weights.len() * small * small) as f64;
        let down = Conv2d::new(shape, weights.clone(), None).expect("finite weights");
        let up = ConvTranspose2d::new(shape, weights, None).expect("finite weights");
        let over = (size + 2 * padding - kernel) % stride;
        let times = [
            time(down.stride(stride).padding(padding), Shape::from([inputs, size, size])),
            time(
                up.stride(stride).padding(padding).output_padding(over),
                Shape::from([outputs, small, small]),
            ),
        ];
        for (direction, seconds) in ["forward", "transposed"].into_iter().zip(times) {
            println!(
                "| {inputs} to {outputs}, {size} x {size}, kernel {kernel}, stride {stride} | \
                 {direction} | {:.2} | {:.1} | {:.0} |",
                1e3 * seconds,
                2e-9 * products / seconds,
                1e-6 * products
            );
        }
    }
}
