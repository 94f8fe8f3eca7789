//! The rate of each kind of product on one thread: `cargo bench --bench products`.
//!
//! Beside it stand nalgebra's rate for the matrix product of the same size, and the machine's peak: a
//! loop of multiply-adds in registers. A convolution with 3 x 3 kernels needs fewer
//! multiplications than are counted here, so it can exceed the peak. `-- TEXT` measures only the
//! rows whose names contain the text.

// Kernels must be inlined into the function for which the processor's features are enabled.
#![allow(clippy::inline_always)]

mod common;

use std::hint::black_box;

use common::time;
use pulp::{Arch, Simd, WithSimd};
use relprop::nalgebra::DMatrix;
use relprop::{Conv2d, ConvTranspose2d, Layer, Linear, LinearMap, Operator, Shape};

/// A matrix of these outputs and inputs, or a convolution, and the number of columns.
enum Product {
    Dense { outputs: usize, inputs: usize, columns: usize, transposed: bool },
    Conv(Conv),
}

#[derive(Default)]
struct Conv {
    inputs: usize,
    outputs: usize,
    size: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    groups: usize,
    transposed: bool,
}

use Product::Dense;

fn products() -> Vec<(String, Product)> {
    let dense = |outputs, inputs, columns, transposed| {
        let sides = format!("{outputs} x {inputs}");
        let name = if transposed { format!("({sides})ᵀ") } else { sides };
        (format!("dense {name}, {columns} columns"), Dense { outputs, inputs, columns, transposed })
    };
    let conv = |inputs, outputs, size, kernel, stride, dilation, groups, transposed| {
        let mut name = format!("{kernel} x {kernel}, {inputs} to {outputs}, {size} x {size}");
        for (what, value) in [("stride", stride), ("dilation", dilation), ("groups", groups)] {
            if value != 1 {
                name = format!("{name}, {what} {value}");
            }
        }
        let kind = if transposed { "transposed convolution" } else { "convolution" };
        let conv = Conv { inputs, outputs, size, kernel, stride, dilation, groups, transposed };
        (format!("{kind} {name}"), Product::Conv(conv))
    };
    vec![
        dense(320, 784, 1, false),
        dense(320, 784, 6, false),
        dense(320, 784, 64, false),
        dense(120, 320, 64, false),
        dense(40, 120, 64, false),
        dense(1024, 1024, 1, false),
        dense(1024, 1024, 64, false),
        dense(4096, 4096, 64, false),
        dense(320, 784, 1, true),
        dense(320, 784, 64, true),
        dense(1024, 1024, 64, true),
        dense(4096, 4096, 64, true),
        conv(256, 64, 56, 1, 1, 1, 1, false),
        conv(512, 2048, 7, 1, 1, 1, 1, false),
        conv(64, 64, 56, 3, 1, 1, 1, false),
        conv(512, 512, 14, 3, 1, 1, 1, false),
        conv(128, 256, 28, 3, 2, 1, 1, false),
        conv(3, 64, 224, 7, 2, 1, 1, false),
        conv(256, 256, 28, 3, 1, 2, 1, false),
        conv(256, 256, 28, 3, 1, 1, 32, false),
        conv(192, 192, 56, 3, 1, 1, 192, false),
        conv(256, 128, 14, 3, 2, 1, 1, true),
    ]
}

/// Sixteen independent sums of multiply-adds, which no memory slows down.
struct Peak {
    rounds: usize,
}

impl WithSimd for Peak {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat_f32s(0.0); 16];
        let (a, b) = (simd.splat_f32s(black_box(1.0)), simd.splat_f32s(black_box(0.5)));
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
        sums.iter().map(|sum| simd.reduce_sum_f32s(*sum)).sum()
    }
}

/// The peak rate, in multiply-adds per microsecond.
fn peak() -> f64 {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }

    const ROUNDS: usize = 10_000;
    let arch = Arch::new();
    let taken = time(|| {
        black_box(arch.dispatch(Peak { rounds: ROUNDS }));
    });
    (ROUNDS * 16 * arch.dispatch(Lanes)) as f64 / taken
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|k| ((k * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// The map of a layer for this input.
fn map(layer: &dyn Layer<f32>, input: Shape) -> std::sync::Arc<dyn LinearMap<f32>> {
    match layer.operator(&[input]) {
        Ok(Operator::Linear(map)) => map,
        _ => unreachable!("the layer is linear and fits its input"),
    }
}

/// The microseconds of the prepared product, the matrix product of the same size, and its
/// multiply-adds.
fn measure(product: &Product) -> (f64, [usize; 3], f64) {
    match product {
        &Dense { outputs, inputs, columns, transposed } => {
            let linear = Linear::from_rows(outputs, inputs, &values(outputs * inputs), None)
                .expect("finite weights");
            let (from, to) = if transposed { (outputs, inputs) } else { (inputs, outputs) };
            let (x, mut y) = (values(from * columns), vec![0.0; to * columns]);
            let taken = run(&linear, transposed, &x, &mut y);
            (taken, [to, from, columns], (outputs * inputs * columns) as f64)
        }
        Product::Conv(conv) => {
            let &Conv { inputs, outputs, size, kernel, stride, dilation, groups, transposed } =
                conv;
            let padding = dilation * (kernel / 2);
            let weights = values(outputs * inputs / groups * kernel * kernel);
            let map = if transposed {
                let shape = [inputs, outputs / groups, kernel, kernel];
                let layer = ConvTranspose2d::new(shape, weights, None).expect("finite weights");
                let layer = layer.stride(stride).padding(padding).output_padding(stride - 1);
                map(&layer, [inputs, size, size].into())
            } else {
                let shape = [outputs, inputs / groups, kernel, kernel];
                let layer = Conv2d::new(shape, weights, None).expect("finite weights");
                let layer = layer.stride(stride).padding(padding).dilation(dilation).groups(groups);
                map(&layer, [inputs, size, size].into())
            };
            let (x, mut y) = (values(map.inputs()), vec![0.0; map.outputs()]);
            let taken = run(&*map, false, &x, &mut y);
            let coarse = if transposed { size * size } else { map.outputs() / outputs };
            let inner = inputs / groups * kernel * kernel;
            (taken, [outputs, inner, coarse], map.multiply_adds())
        }
    }
}

fn run(map: &dyn LinearMap<f32>, transposed: bool, x: &[f32], y: &mut [f32]) -> f64 {
    if transposed {
        map.prepare_apply_transposed();
        time(|| map.apply_transposed(black_box(x), y))
    } else {
        map.prepare_apply();
        time(|| map.apply(black_box(x), y))
    }
}

fn nalgebra([rows, inner, columns]: [usize; 3]) -> f64 {
    let (a, b) = (
        DMatrix::from_vec(rows, inner, values(rows * inner)),
        DMatrix::from_vec(inner, columns, values(inner * columns)),
    );
    let mut c = DMatrix::zeros(rows, columns);
    (rows * inner * columns) as f64 / time(|| c.gemm(1.0, black_box(&a), black_box(&b), 0.0))
}

fn table() {
    // Cargo passes options of its own, such as --bench.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let peak = peak();
    println!("peak: {:.0} GFLOP/s\n", 2e-3 * peak);
    println!("| product | GFLOP/s | of the peak | nalgebra, GFLOP/s |\n|---|---:|---:|---:|");
    for (name, product) in products() {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted)) {
            let (taken, shape, multiply_adds) = measure(&product);
            let rate = multiply_adds / taken;
            println!(
                "| {name} | {:.1} | {:.0} % | {:.1} |",
                2e-3 * rate,
                100.0 * rate / peak,
                2e-3 * nalgebra(shape)
            );
        }
    }
}

fn main() {
    #[cfg(feature = "rayon")]
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread").install(table);
    #[cfg(not(feature = "rayon"))]
    table();
}
