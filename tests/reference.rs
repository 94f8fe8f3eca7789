//! The crate against the formulas, against published values, and for the errors for which other
//! implementations are known.

// Casts to f32 round on purpose, and exact comparisons are between exact values.
#![allow(clippy::cast_possible_truncation, clippy::float_cmp)]

use crate::common::{self, Dense, Formula, Net};
use proptest::prelude::*;
use relprop::nalgebra::{DMatrix, DVector, dmatrix, dvector};
use relprop::{
    Accumulation, AlphaBeta, AvgPool1d, AvgPool2d, BiasMode, Cause, Composite, Concat, Conv2d,
    Dropout, Epsilon, Error, Flatten, Gamma, GammaPlain, HardSigmoid, Identity, Layer, LeakyRelu,
    Linear, Operator, Permute, Relative, RelevanceRule, Relu, Residual, Rule, Scalar, Sequential,
    Shape, Sigmoid, Softmax, Unflatten,
};

const ORDERS: [Accumulation; 3] =
    [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse];

fn check<T: Scalar>(net: &Net, formula: Formula, tolerance: f64) {
    let expected = net.expected(formula);
    let model = net.model::<T>();
    for order in ORDERS {
        let explainer = model.explainer(formula.rule::<T>()).unwrap().accumulation(order);
        expected.assert_is(&explainer.explain(&net.sample()).unwrap(), tolerance);
    }
}

proptest! {
    #![proptest_config(common::config(600))]

    #[test]
    fn equals_the_formulas(net in any::<bool>().prop_flat_map(|relu| common::net(true, relu)), formula in common::formula(1e-3)) {
        check::<f64>(&net, formula, 1e-10);
    }

    #[test]
    fn a_composite_is_the_formula_of_each_layer(
        net in common::net(true, true),
        formulas in prop::collection::vec(common::formula(1e-3), 5),
    ) {
        let mut composite = Composite::new(Rule::Epsilon);
        for (linear, formula) in formulas.iter().enumerate().take(net.layers.len()) {
            composite = composite.layer(net.index(linear), formula.rule::<f64>());
        }
        let expected = net.expected_by(&formulas);
        for order in ORDERS {
            let explainer = net.model::<f64>().explainer(&composite).unwrap().accumulation(order);
            expected.assert_is(&explainer.explain(&net.sample()).unwrap(), 1e-10);
        }
    }

    #[test]
    fn single_precision_is_close(net in common::net(true, true), formula in common::formula(0.1)) {
        check::<f32>(&net, formula, 1e-4);
    }
}

fn fixed() -> Net {
    let first = Dense {
        weights: vec![vec![1.0, -1.0], vec![0.5, 2.0], vec![0.0, 1.0]],
        bias: Some(vec![0.0, 0.1, -0.2]),
    };
    let second = Dense {
        weights: vec![vec![1.0, 1.0, -1.0], vec![-0.5, 0.25, 2.0]],
        bias: Some(vec![0.05, 0.3]),
    };
    Net { layers: vec![first, second], relu: true, x: vec![1.0, 2.0] }
}

#[test]
fn default_epsilon_on_fixed_networks() {
    for bias in [BiasMode::Absorb, BiasMode::Ignore, BiasMode::Distribute] {
        let default = Formula::Epsilon { epsilon: 1e-6, relative: false, bias };
        for x in [vec![1.0, 2.0], vec![-1.0, 0.5], vec![0.0, 0.0], vec![3.0, -0.25]] {
            check::<f64>(&Net { x, ..fixed() }, default, 1e-10);
        }
        let linear = Net { relu: false, ..fixed() };
        check::<f64>(&linear, default, 1e-10);
        check::<f32>(&linear, default, 1e-4);
    }
    let net = fixed();
    let by_default = net.model::<f64>().explain(&net.sample(), Epsilon::default()).unwrap();
    net.expected(Formula::Epsilon { epsilon: 1e-6, relative: false, bias: BiasMode::Absorb })
        .assert_is(&by_default, 1e-10);
    assert_eq!(net.model().explain(&net.sample(), Rule::Epsilon).unwrap(), by_default);
}

/// The network in the tests of Captum's LRP.
#[test]
fn captum_test_network() {
    let model = Sequential::builder()
        .layer(Linear::new(DMatrix::from_element(3, 3, 2.0), None).unwrap())
        .layer(Relu)
        .layer(Linear::new(DMatrix::from_element(1, 3, 3.0), None).unwrap())
        .build()
        .unwrap();
    for order in ORDERS {
        let explainer = model.explainer(Rule::Epsilon).unwrap().accumulation(order);
        let relevance = explainer.explain(&dvector![1.0, 2.0, 3.0]).unwrap().relevance(0).unwrap();
        assert!((relevance - dvector![18.0, 36.0, 54.0]).amax() < 1e-4);
    }
}

/// Captum's network with one weight of -2, under both forms of the gamma rule and with only
/// positive weights.
#[test]
fn gamma_test_network() {
    let mut weights = DMatrix::from_element(3, 3, 2.0);
    weights[(0, 0)] = -2.0;
    let model = Sequential::builder()
        .layer(Linear::new(weights, None).unwrap())
        .layer(Relu)
        .layer(Linear::new(DMatrix::from_element(1, 3, 3.0), None).unwrap())
        .build()
        .unwrap();
    let last = Composite::new(GammaPlain::new(0.25).unwrap());
    for (first, expected) in [
        (last.clone().first(Gamma::new(1.0).unwrap()), dvector![28.0 / 3.0, 104.0 / 3.0, 52.0]),
        (last.clone().first(Rule::ZPlus), dvector![12.0, 33.6, 50.4]),
    ] {
        for order in ORDERS {
            let explainer = model.explainer(&first).unwrap().accumulation(order);
            let relevance =
                explainer.explain(&dvector![1.0, 2.0, 3.0]).unwrap().relevance(0).unwrap();
            assert!((relevance - &expected).amax() < 1e-4);
        }
    }
}

/// If only the weights were clamped, the positive total would be 1 - 1 here.
#[test]
fn z_plus_and_alpha_beta_clamp_inputs_and_bias() {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, -1.0], dvector![-1.0]).unwrap())
        .build()
        .unwrap();
    let x = dvector![1.0, 1.0];
    let check = |rule: &dyn RelevanceRule<f64>, expected: DVector<f64>, bias: f64| {
        let explanation = model.explain(&x, rule).unwrap();
        assert!((explanation.relevance(0).unwrap() - expected).amax() < 1e-5, "{}", rule.name());
        let ledger = explanation.ledger(0).unwrap();
        assert!((ledger.total(Cause::Bias) - bias).abs() < 1e-5, "{}", rule.name());
        assert!(ledger.imbalance() < 1e-15);
    };
    check(&Rule::ZPlus, dvector![-1.0, 0.0], 0.0);
    check(&AlphaBeta::new(1.0, 0.0).unwrap(), dvector![-1.0, 0.0], 0.0);
    check(&Rule::AlphaBeta, dvector![-2.0, 0.5], 0.5);
}

#[test]
fn what_cannot_be_distributed_is_in_the_ledger() {
    let sink = |weights: [f64; 2], rule: &dyn RelevanceRule<f64>, cause| {
        let layer = Linear::new(dmatrix![weights[0], weights[1]], None).unwrap();
        let model = Sequential::builder().layer(layer).build().unwrap();
        let explanation = model.explain(&dvector![1.0, 1.0], rule).unwrap();
        let ledger = explanation.ledger(0).unwrap();
        let share: f64 = ledger
            .entries()
            .iter()
            .filter(|e| e.cause() == cause)
            .map(relprop::LedgerEntry::share)
            .sum();
        assert!(
            ledger.imbalance() < 1e-15
                && explanation.shares().iter().all(|share| share.is_finite())
        );
        share
    };
    // A total of 0 without a stabilizer, and an output of 0, which has no sign.
    assert_eq!(sink([1.0, -1.0], &Rule::Lrp0, Cause::Dead), 1.0);
    assert_eq!(sink([1.0, -1.0], &Rule::Gamma, Cause::Dead), 1.0);
    // No positive and no negative contributions.
    assert_eq!(sink([-1.0, -1.0], &Rule::ZPlus, Cause::Empty), 1.0);
    assert_eq!(sink([-1.0, -1.0], &Rule::AlphaBeta, Cause::Empty), 2.0);
    assert_eq!(sink([1.0, 1.0], &Rule::AlphaBeta, Cause::Empty), -1.0);
    assert_eq!(sink([0.0, 0.0], &Rule::WSquare, Cause::Empty), 1.0);
}

#[test]
fn pass_requires_as_many_inputs_as_outputs() {
    let square = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 2.0; 3.0, 4.0], None).unwrap())
        .build()
        .unwrap();
    let shares = square.explain(&dvector![5.0, -1.0], Rule::Pass).unwrap().shares().clone();
    assert_eq!(shares, dmatrix![1.0, 0.0; 0.0, 1.0]);
    let wide = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 2.0], None).unwrap())
        .build()
        .unwrap();
    assert!(matches!(
        wide.explain(&dvector![5.0, -1.0], Rule::Pass),
        Err(relprop::Error::Unsupported { layer: 0, .. })
    ));
}

#[test]
fn the_bias_is_counted_once() {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![2.0, 1.0], dvector![3.0]).unwrap())
        .build()
        .unwrap();
    let x = dvector![1.0, 1.0];
    let share = |mode, input| -> f64 {
        model.explain(&x, Epsilon::new(1e-12).unwrap().with_bias(mode)).unwrap().shares()
            [(input, 0)]
    };
    for (mode, expected) in [
        (BiasMode::Absorb, [2.0 / 6.0, 1.0 / 6.0]),
        (BiasMode::Ignore, [2.0 / 3.0, 1.0 / 3.0]),
        (BiasMode::Distribute, [3.5 / 6.0, 2.5 / 6.0]),
    ] {
        for (input, expected) in expected.into_iter().enumerate() {
            assert!((share(mode, input) - expected).abs() < 1e-10, "{mode:?}");
        }
    }
    let ledger = model.explain(&x, Epsilon::new(1e-12).unwrap()).unwrap().ledger(0).unwrap();
    assert!((ledger.total(Cause::Bias) - 3.0).abs() < 1e-10);
}

#[test]
fn a_last_softmax_changes_nothing() {
    let net = fixed();
    let plain = net.model::<f64>();
    let layer = |dense: &Dense| {
        let weights = DMatrix::from_fn(dense.weights.len(), dense.weights[0].len(), |j, i| {
            dense.weights[j][i]
        });
        Linear::new(weights, dense.bias.clone().map(DVector::from_vec)).unwrap()
    };
    let model = Sequential::builder()
        .layer(layer(&net.layers[0]))
        .layer(Relu)
        .layer(layer(&net.layers[1]))
        .layer(Softmax)
        .build()
        .unwrap();
    for order in ORDERS {
        let with = model
            .explainer(Rule::Epsilon)
            .unwrap()
            .accumulation(order)
            .explain(&net.sample())
            .unwrap();
        let without = plain
            .explainer(Rule::Epsilon)
            .unwrap()
            .accumulation(order)
            .explain(&net.sample())
            .unwrap();
        assert_eq!(with.shares(), without.shares());
        assert_eq!(with.output(), without.output());
        assert!(without.probabilities().is_none());
        let probabilities = with.probabilities().unwrap();
        assert!((probabilities.sum() - 1.0).abs() < 1e-15);
        assert_eq!(probabilities, &model.forward(&net.sample()).unwrap());
    }
}

/// A logit z = b - a at (2, 1): removing a increases it, and removing b decreases it.
#[test]
fn a_last_sigmoid_explains_the_logit() {
    let linear = || Linear::new(dmatrix![-1.0, 1.0], None).unwrap();
    let x = dvector![2.0, 1.0];
    let plain = Sequential::builder().layer(linear());
    let models = [
        plain.clone().layer(Sigmoid),
        plain.clone().layer(HardSigmoid),
        plain.clone().layer(Sigmoid).layer(Identity).layer(Dropout::default()),
        plain
            .clone()
            .layer(Sigmoid)
            .layer(Unflatten::new([1, 1, 1]))
            .layer(Permute::new(&[1, 2, 0]).unwrap())
            .layer(Flatten),
    ];
    for (number, model) in models.into_iter().enumerate() {
        let model = model.build().unwrap();
        let probability = if number == 1 { 1.0 / 3.0 } else { 1.0 / (1.0 + 1.0_f64.exp()) };
        assert!((model.forward(&x).unwrap()[0] - probability).abs() < 1e-15);
        for order in ORDERS {
            let explanation =
                model.explainer(Rule::Lrp0).unwrap().accumulation(order).explain(&x).unwrap();
            assert_eq!(explanation.output(), &dvector![-1.0]);
            assert!((explanation.probabilities().unwrap()[0] - probability).abs() < 1e-15);
            assert_eq!(explanation.relevance(0).unwrap(), dvector![-2.0, 1.0]);
        }
    }
    // Of two sigmoids, the last one is the link function, and the other is an activation.
    let twice =
        Sequential::builder().layer(linear()).layer(Sigmoid).layer(Sigmoid).build().unwrap();
    let logit = 1.0 / (1.0 + 1.0_f64.exp());
    assert!((twice.explain(&x, Rule::Lrp0).unwrap().output()[0] - logit).abs() < 1e-15);
    // One sigmoid for each output, for labels that are not mutually exclusive.
    let labels = Linear::new(dmatrix![1.0, 0.0; -1.0, 0.5], None).unwrap();
    let labels = Sequential::builder().layer(labels).layer(Sigmoid).build().unwrap();
    let explanation = labels.explain(&x, Rule::Lrp0).unwrap();
    assert_eq!(
        (explanation.output(), explanation.relevance(1).unwrap()),
        (&dvector![2.0, -1.5], dvector![-2.0, 0.5])
    );
}

/// The values are from PyTorch: a softmax over two labels for each of four pixels.
#[test]
fn a_last_softmax_over_an_axis() {
    let two_labels = || Conv2d::new([2, 1, 1, 1], vec![1.0, -1.0], None).unwrap();
    let x = dvector![0.0, 1.0, 2.0, 3.0];
    let of_label_0: [f64; 4] = [0.5, 0.880_797_078, 0.982_013_790, 0.997_527_377];
    let model = Sequential::builder()
        .input([1, 2, 2])
        .layer(two_labels())
        .layer(Softmax::over(0))
        .layer(Flatten)
        .build()
        .unwrap();
    let probabilities = model.forward(&x).unwrap();
    for (pixel, p) in of_label_0.into_iter().enumerate() {
        assert!(
            (probabilities[pixel] - p).abs() < 1e-8
                && (probabilities[pixel + 4] + p - 1.0).abs() < 1e-8
        );
    }
    let explanation = model.explain(&x, Rule::Lrp0).unwrap();
    assert_eq!(explanation.output()[6], -2.0);
    assert_eq!(explanation.relevance(6).unwrap(), dvector![0.0, 0.0, -2.0, 0.0]);
    let over_width = Sequential::builder()
        .input([1, 2, 2])
        .layer(two_labels())
        .layer(Softmax::over(2))
        .build()
        .unwrap();
    assert!((over_width.forward(&x).unwrap()[1] - 0.731_058_578_f64).abs() < 1e-8);
    for layer in [Softmax::over(3), Softmax::over(usize::MAX)] {
        let refused = Sequential::builder()
            .input([1, 2, 2])
            .layer(two_labels())
            .layer(layer)
            .build()
            .unwrap_err();
        assert!(matches!(refused, Error::LayerShape { layer: 1, .. }), "{refused}");
    }
    let whole = Sequential::builder()
        .input([1, 2, 2])
        .layer(two_labels())
        .layer(Softmax)
        .build()
        .unwrap_err();
    assert!(whole.to_string().contains("Softmax::over(0)"), "{whole}");
}

/// A PReLU, which has a function for each channel, defined outside the crate.
#[derive(Debug)]
struct PRelu(Vec<f64>);

impl<T: Scalar> Layer<T> for PRelu {
    fn kind(&self) -> &str {
        "PReLU"
    }
    fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(Operator::per_channel(self.0.iter().map(|&slope| LeakyRelu::new(slope).unwrap())))
    }
}

/// The engine divides 40,000 values, and a batch, among threads. Each value still gets the function
/// of its channel.
#[test]
fn a_function_for_each_channel_knows_its_channel_everywhere() {
    let (channels, each, samples) = (5, 8000, 3);
    let slopes: Vec<f64> = (0..channels).map(|channel| 0.1 + 0.2 * channel as f64).collect();
    for shape in [Shape::from([channels, each]), Shape::from([channels, each / 100, 100])] {
        let pool = AvgPool2d::new([1, 1]);
        let builder = Sequential::builder().input(shape);
        let builder = if shape.dims().len() == 3 {
            builder.layer(pool)
        } else {
            builder.layer(AvgPool1d::new(1))
        };
        let model = builder.layer(PRelu(slopes.clone())).build().unwrap();
        let value = |at: usize| ((at * 37) % 101) as f64 - 50.0;
        let batch = DMatrix::from_fn(shape.size(), samples, |i, sample| value(i + sample));
        let outputs = model.forward_batch(&batch).unwrap();
        for sample in 0..samples {
            for i in 0..shape.size() {
                let z = value(i + sample);
                assert_eq!(outputs[(i, sample)], if z > 0.0 { z } else { slopes[i / each] * z });
            }
        }
    }
    // One function for each value of a vector.
    let linear = Linear::new(dmatrix![-1.0; -2.0], None).unwrap();
    let vector = Sequential::builder().layer(linear).layer(PRelu(vec![0.5, 0.25])).build().unwrap();
    assert_eq!(
        vector.forward_batch(&dmatrix![1.0, 4.0]).unwrap(),
        dmatrix![-0.5, -2.0; -0.5, -2.0]
    );
    assert_eq!(
        vector.explain(&dvector![1.0], Rule::Lrp0).unwrap().relevance(1).unwrap(),
        dvector![-0.5]
    );
    let three = Sequential::builder()
        .layer(Linear::new(dmatrix![-1.0; -2.0], None).unwrap())
        .layer(PRelu(vec![1.0; 3]));
    let refused = three.build().unwrap_err().to_string();
    assert!(
        refused.contains("layer 1 (PReLU) expects 3 channels, one for each of its functions"),
        "{refused}"
    );
}

/// A rule without losses has no sinks to propagate, even before another layer of its branch.
#[test]
fn pass_in_branches() {
    let linear = |w: f64| Linear::new(dmatrix![w, 1.0; 0.5, -1.0], None).unwrap();
    let two = || Sequential::builder().layer(linear(2.0)).layer(linear(3.0));
    let models = [
        Sequential::builder()
            .input(2)
            .layer(Residual::new([two(), Sequential::builder()]).unwrap()),
        Sequential::builder().input(2).layer(Concat::new([two(), Sequential::builder()]).unwrap()),
        two().layer(linear(1.0)),
    ];
    let x = dvector![1.0, 2.0];
    for (number, model) in models.into_iter().enumerate() {
        let model = model.build().unwrap();
        for order in ORDERS {
            let explanation =
                model.explainer(Rule::Pass).unwrap().accumulation(order).explain(&x).unwrap();
            let expected = match number {
                0 => {
                    // Norm distributes the sum: each output's relevance is assigned to the input
                    // with its index, up to the stabilizer.
                    dmatrix![1.0, 0.0; 0.0, 1.0]
                }
                1 => dmatrix![1.0, 0.0, 1.0, 0.0; 0.0, 1.0, 0.0, 1.0],
                _ => dmatrix![1.0, 0.0; 0.0, 1.0],
            };
            assert!((explanation.shares() - expected).amax() < 1e-6, "{number} {order:?}");
        }
    }
}

#[test]
fn the_stabilizer_has_the_sign_of_the_total() {
    // The total is 1 - (1 + 1e-6), so an unsigned stabilizer of 1e-6 would cancel it.
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, -1.0], None).unwrap())
        .build()
        .unwrap();
    let x = dvector![1.0, 1.0 + 1e-6];
    let y: f64 = x[0] - x[1];
    let shares = model.explain(&x, Epsilon::default()).unwrap().shares().clone();
    assert!((shares[(0, 0)] - 1.0 / (y - 1e-6)).abs() < 1e-9 * shares.amax());
    assert!(shares.amax() < 5.1e5);
    // The sign of 0 is +.
    let zero = model.explain(&dvector![1.0, 1.0], Epsilon::new(0.5).unwrap()).unwrap();
    assert_eq!(zero.shares(), &dmatrix![2.0; -2.0]);
    assert_eq!(zero.ledger(0).unwrap().entries()[0].share(), 1.0);
}

#[test]
fn a_second_call_gives_the_same() {
    let net = fixed();
    for order in ORDERS {
        let explainer =
            net.model::<f64>().explainer(Epsilon::new(0.1).unwrap()).unwrap().accumulation(order);
        let first = explainer.explain(&net.sample()).unwrap();
        explainer.explain(&dvector![-5.0, 3.0]).unwrap();
        assert_eq!(explainer.explain(&net.sample()).unwrap(), first);
    }
}

/// A model with weights in [-a, a], exact in f32, whose variance preserves the size of the
/// activations after a `ReLU`.
fn deep<T: Scalar>(sizes: &[usize]) -> Sequential<T> {
    let mut state = 1_u64;
    let mut next = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 41) as f64 / f64::from(1 << 22) - 1.0
    };
    let mut builder = Sequential::builder();
    for (index, pair) in sizes.windows(2).enumerate() {
        let size = (6.0 / pair[0] as f64).sqrt();
        let weights = DMatrix::from_fn(pair[1], pair[0], |_, _| {
            T::from_f64(f64::from((next() * size) as f32))
        });
        builder = builder.layer(Linear::new(weights, None).unwrap());
        if index + 2 < sizes.len() {
            builder = builder.layer(Relu);
        }
    }
    builder.build().unwrap()
}

#[test]
fn deep_relative_does_not_vanish() {
    // The shares are about 1000^-30, which is far below the smallest f32.
    for (inputs, order) in [(4, Accumulation::Forward), (1000, Accumulation::Reverse)] {
        let mut sizes = vec![1000; 31];
        (sizes[0], sizes[30]) = (inputs, 3);
        let x: Vec<f64> = (0..inputs).map(|i| 1.0 - 0.25 * (i % 7) as f64).collect();
        let x32 = DVector::from_iterator(inputs, x.iter().map(|&v| v as f32));
        let single = deep::<f32>(&sizes)
            .explainer(Relative::default())
            .unwrap()
            .accumulation(order)
            .explain(&x32)
            .unwrap();
        let double = deep::<f64>(&sizes)
            .explainer(Relative::default())
            .unwrap()
            .accumulation(order)
            .explain(&DVector::from_vec(x))
            .unwrap();
        assert!(single.exponent() < 0);
        assert!(single.shares().amax() > 0.0);
        // Divide by the other's scale, so that neither side underflows.
        let scale = f64::from(single.exponent() - double.exponent()).exp2();
        let error = (single.shares().map(|v| f64::from(v) * scale) - double.shares()).amax();
        assert!(
            error <= 1e-3 * double.shares().amax(),
            "{error:e} of {:e}",
            double.shares().amax()
        );
    }
}
