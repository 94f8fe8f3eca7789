//! The bound on the rounding errors holds and is not too loose, and the gauge finds cancellation.

// Casts to f32 round on purpose.
#![allow(clippy::cast_possible_truncation)]

use crate::common::{self, Dense, Formula, Net};
use proptest::prelude::*;
use relprop::nalgebra::{DMatrix, DVector, dmatrix, dvector};
use relprop::{
    BiasMode, Celu, Elementwise, Elu, Error, Explanation, Gelu, HardSigmoid, HardSwish, HardTanh,
    Layer, LeakyRelu, Linear, Mish, Operator, Relu, Rule, Scalar, Selu, Sequential, Shape, Sigmoid,
    Silu, Softplus, Softsign, Tanh, Targets,
};

/// A model with the same numbers in single and in double precision.
fn model<T: Scalar>(net: &Net, activation: usize) -> Sequential<T> {
    let mut builder = Sequential::builder();
    for (index, layer) in net.layers.iter().enumerate() {
        let rounded = |v: f64| T::from_f64(f64::from(v as f32));
        let weights = DMatrix::from_fn(layer.weights.len(), layer.weights[0].len(), |j, i| {
            rounded(layer.weights[j][i])
        });
        let bias = layer
            .bias
            .as_ref()
            .map(|b| DVector::from_iterator(b.len(), b.iter().map(|&v| rounded(v))));
        builder = builder.layer(Linear::new(weights, bias).unwrap());
        if index + 1 < net.layers.len() {
            builder = match activation {
                0 => builder.layer(Relu),
                1 => builder.layer(LeakyRelu::new(0.25).unwrap()),
                2 => builder.layer(Elu::default()),
                3 => builder.layer(Gelu::Exact),
                4 => builder.layer(Gelu::Tanh),
                5 => builder.layer(Silu),
                6 => builder.layer(Sigmoid),
                7 => builder.layer(Tanh),
                8 => builder.layer(HardTanh::default()),
                9 => builder.layer(Selu),
                10 => builder.layer(Celu::new(0.5).unwrap()),
                11 => builder.layer(Mish),
                12 => builder.layer(Softsign),
                13 => builder.layer(HardSigmoid),
                14 => builder.layer(HardSwish),
                _ => builder.layer(Softplus::new(1.0, 40.0).unwrap()),
            };
        }
    }
    builder.build().unwrap()
}

fn explain<T: Scalar>(
    net: &Net,
    activation: usize,
    formula: Formula,
    weighted: bool,
) -> Explanation<T> {
    let model = model::<T>(net, activation);
    let outputs = model.outputs();
    let weighting =
        DMatrix::from_fn(outputs, 1, |k, _| T::from_f64(if k == 0 { 1.0 } else { -0.5 }));
    let targets = if weighted { Targets::Weighted(weighting) } else { Targets::All };
    let x = DVector::from_iterator(
        net.x.len(),
        net.x.iter().map(|&v| T::from_f64(f64::from(v as f32))),
    );
    model
        .explainer(formula.rule::<T>())
        .unwrap()
        .targets(targets)
        .unwrap()
        .with_health()
        .explain(&x)
        .unwrap()
}

/// The largest difference of a target's shares from double precision, and the bound on it.
fn compared(
    net: &Net,
    activation: usize,
    formula: Formula,
    weighted: bool,
) -> Vec<(f64, Option<f64>)> {
    let single = explain::<f32>(net, activation, formula, weighted);
    let double = explain::<f64>(net, activation, formula, weighted);
    let health = single.health().unwrap();
    let error = |target: usize| {
        let difference =
            single.shares().column(target).map(f64::from) - double.shares().column(target);
        difference.amax()
    };
    single.targets().map(|target| (error(target), health.bound(target))).collect()
}

proptest! {
    #![proptest_config(common::config(1500))]

    #[test]
    fn the_bound_holds_against_double_precision(
        net in common::net(true, true),
        formula in common::formula(1e-4),
        activation in 0..16_usize,
        weighted in any::<bool>(),
    ) {
        for (error, bound) in compared(&net, activation, formula, weighted) {
            prop_assert!(bound.is_none_or(|bound| error <= bound), "{error:e} {bound:?}");
        }
    }

    #[test]
    fn lrp_0_is_bounded_or_says_that_it_is_not(net in common::net(true, true)) {
        for (error, bound) in compared(&net, 0, Formula::Lrp0 { bias: BiasMode::Absorb }, false) {
            prop_assert!(bound.is_none_or(|bound| error <= bound), "{error:e} {bound:?}");
        }
    }
}

/// With positive weights and inputs, nothing cancels, and the bound is close to the actual error.
#[test]
fn the_bound_is_not_idle() {
    let weight = |j: usize, i: usize| ((i * 31 + j * 17) % 13 + 1) as f64 / 14.0;
    let layer = |outputs: usize, inputs: usize| Dense {
        weights: (0..outputs).map(|j| (0..inputs).map(|i| weight(j, i)).collect()).collect(),
        bias: None,
    };
    let x = (0..30).map(|i| 0.1 + f64::from(i % 7) / 7.0).collect();
    let net = Net { layers: vec![layer(20, 30), layer(10, 20), layer(4, 10)], relu: true, x };
    for formula in [
        Formula::Lrp0 { bias: BiasMode::Absorb },
        Formula::Epsilon { epsilon: 1e-6, relative: false, bias: BiasMode::Absorb },
        Formula::Gamma { gamma: 0.25, epsilon: 1e-6, bias: BiasMode::Absorb },
        Formula::ZPlus { epsilon: 1e-6, bias: BiasMode::Absorb },
        Formula::Flat,
    ] {
        for (error, bound) in compared(&net, 0, formula, false) {
            let bound = bound.unwrap();
            assert!(error <= bound && bound < 1e-4, "{formula:?} {error:e} {bound:e}");
        }
    }
    let health = explain::<f32>(&net, 0, Formula::Lrp0 { bias: BiasMode::Absorb }, false)
        .health()
        .unwrap()
        .clone();
    for layer in health.layers() {
        assert!((layer.worst() - 1.0).abs() < 1e-5 && (layer.median() - 1.0).abs() < 1e-5);
    }
    assert!(!health.to_string().contains("advice"), "{health}");
}

#[test]
fn the_gauge_finds_what_cancels() {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 1.0; 1.0, -1.0; -1.0, -1.0_f32], None).unwrap())
        .layer(Relu)
        .layer(Linear::new(dmatrix![1.0, 1.0, 1.0], None).unwrap())
        .build()
        .unwrap();
    let explainer = model.explainer(Rule::Epsilon).unwrap().with_health();
    let explanation = explainer.explain(&dvector![10_000.0, 9_999.0]).unwrap();
    let health = explanation.health().unwrap();
    let [first, last] = health.layers() else { panic!("two linear layers") };
    assert_eq!((first.layer(), first.worst_output(), last.layer()), (0, 1, 2));
    assert!((first.worst() - 19_999.0).abs() < 1.0);
    assert!((last.worst() - 1.0).abs() < 1e-5);
    let text = health.to_string();
    assert!(
        text.contains("at layer 0 shares of 2e4 cancel; raise epsilon there, or use Gamma"),
        "{text}"
    );
    // Less cancels with the gamma rule, and nothing with z+.
    let worst = |rule| {
        model
            .explainer(rule)
            .unwrap()
            .with_health()
            .explain(&dvector![10_000.0, 9_999.0])
            .unwrap()
            .health()
            .unwrap()
            .layers()[0]
            .worst()
    };
    assert!(worst(Rule::Gamma) < 10.0 && (worst(Rule::ZPlus) - 1.0).abs() < 1e-5);
    assert!(model.explain(&dvector![1.0, 2.0], Rule::Epsilon).unwrap().health().is_none());
}

#[test]
fn no_bound_where_nothing_bounds() {
    #[derive(Debug)]
    struct Square;
    impl<T: Scalar> Elementwise<T> for Square {
        fn value(&self, z: T) -> T {
            z * z
        }
    }
    impl<T: Scalar> Layer<T> for Square {
        fn kind(&self) -> &str {
            "Square"
        }
        fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
            Ok(Operator::elementwise(Self))
        }
    }
    let layer = || Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0_f32], None).unwrap();
    let foreign =
        Sequential::builder().layer(layer()).layer(Square).layer(layer()).build().unwrap();
    let explain = |model: &Sequential<f32>, rule| {
        model.explainer(rule).unwrap().with_health().explain(&dvector![1.0, 1.0]).unwrap()
    };
    assert!(explain(&foreign, Rule::Epsilon).health().unwrap().bound(0).is_none());
    // For a total of 0, there is a bound if there is a stabilizer, but it is large.
    let plain = Sequential::builder().layer(layer()).build().unwrap();
    assert!(explain(&plain, Rule::Lrp0).health().unwrap().bound(0).is_none());
    assert!(explain(&plain, Rule::Epsilon).health().unwrap().bound(0).unwrap() > 1.0);
    assert!(explain(&plain, Rule::Epsilon).health().unwrap().to_string().contains("f64"));
}
