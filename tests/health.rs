//! The rounding error in the health report is the difference from double precision, every built-in
//! layer and rule has a form in double precision, and the gauge finds cancellation.

// Casts to f32 round on purpose.
#![allow(clippy::cast_possible_truncation)]

use std::sync::Arc;

use crate::common::{self, Dense, Formula, Net};
use proptest::prelude::*;
use relprop::nalgebra::{DMatrix, DVector, dmatrix, dvector};
use relprop::rule::{BiasMode, Decomposition, Divisor, Group, Outside, Part, Site, Transform};
use relprop::{
    Accumulation, AdaptiveAvgPool1d, AdaptiveAvgPool2d, AlphaBeta, AvgPool1d, AvgPool2d,
    BatchNorm1d, BatchNorm2d, Branch, Celu, Composite, Concat, Conv1d, Conv2d, ConvTranspose2d,
    Dropout, Elementwise, Elu, Embedding, Epsilon, Error, Explanation, Flatten, Gamma, GammaPlain,
    Gelu, HardSigmoid, HardSwish, HardTanh, Health, Identity, Layer, LeakyRelu, Linear, Lrp0,
    MaxPool1d, MaxPool2d, Mish, Operator, PRelu, Permute, Relative, RelevanceRule, Relu, Residual,
    Rule, Scalar, Scaled, Selu, Sequential, Shape, Sigmoid, Sign, Silu, Softmax, Softplus,
    Softsign, Tanh, Targets, Unflatten, Upsample, WSquare, ZBox, ZPlus,
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

/// Sine waves, rounded to single precision.
fn numbers<T: Scalar>(count: usize, frequency: f64) -> Vec<T> {
    (1..=count).map(|k| T::from_f64(f64::from((k as f64 * frequency).sin() as f32))).collect()
}

fn weighting<T: Scalar>(outputs: usize) -> DMatrix<T> {
    DMatrix::from_fn(outputs, 2, |k, c| T::from_f64(if k == c { 1.0 } else { -0.5 }))
}

/// The largest difference of a target's true shares from those in double precision, and the largest
/// share.
fn difference(single: &Explanation<f32>, double: &Explanation<f64>, column: usize) -> (f64, f64) {
    let [of_single, of_double] =
        [single.exponent(), double.exponent()].map(|e| f64::from(e).exp2());
    let single = single.shares().column(column).map(|share| f64::from(share) * of_single);
    let double = double.shares().column(column).map(|share| share * of_double);
    ((single - &double).amax(), double.amax())
}

/// Checks the errors in a report against explanations that were made without a report.
fn check(health: &Health, single: &Explanation<f32>, double: &Explanation<f64>) {
    assert_eq!(health.prevented(), None);
    assert!(single.targets().eq(double.targets()));
    for (column, target) in single.targets().enumerate() {
        let (error, largest) = difference(single, double, column);
        let (found, relative) =
            (health.error(target).unwrap(), health.relative_error(target).unwrap());
        // Double precision itself rounds, and the order of accumulation can differ.
        let rounding = 1e-13 * largest;
        assert!((found - error).abs() <= rounding, "{found:e} {error:e}");
        assert!((relative * largest - error).abs() <= rounding, "{relative:e} {error:e}");
    }
}

proptest! {
    #![proptest_config(common::config(1000))]

    #[test]
    fn the_error_is_the_difference_from_double_precision(
        net in common::net(true, true),
        formula in common::formula(1e-4),
        activation in 0..16_usize,
        weighted in any::<bool>(),
    ) {
        let (single, double) = (model::<f32>(&net, activation), model::<f64>(&net, activation));
        let outputs = single.outputs();
        let x: Vec<f32> = net.x.iter().map(|&v| v as f32).collect();
        let exact: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        let (mut own, mut finer) = (
            single.explainer(formula.rule::<f32>()).unwrap(),
            double.explainer(formula.rule::<f64>()).unwrap(),
        );
        if weighted {
            own = own.targets(weighting(outputs)).unwrap();
            finer = finer.targets(weighting(outputs)).unwrap();
        }
        let (plain, finer) = (own.explain_slice(&x).unwrap(), finer.explain_slice(&exact).unwrap());
        let with = own.with_health().explain_slice(&x).unwrap();
        prop_assert_eq!(plain.shares(), with.shares());
        check(with.health().unwrap(), &plain, &finer);
    }
}

/// A dense network, a convolutional one with pooling, and one with branches.
fn networks<T: Scalar>() -> [Sequential<T>; 3] {
    let linear = |outputs: usize, inputs: usize, frequency: f64| {
        let bias: Vec<T> = numbers(outputs, frequency + 1.0);
        Linear::from_rows(outputs, inputs, &numbers(outputs * inputs, frequency), Some(&bias))
            .unwrap()
    };
    let conv = |outputs: usize, inputs: usize, frequency: f64| {
        let weights: Vec<T> = numbers(outputs * inputs * 9, frequency);
        Conv2d::new([outputs, inputs, 3, 3], weights, numbers(outputs, frequency + 1.0))
            .unwrap()
            .padding(1)
    };
    let norm = |channels: usize| {
        let variance = numbers::<T>(channels, 0.9).iter().map(|v| v.abs()).collect();
        BatchNorm2d::new(
            numbers(channels, 0.3),
            numbers(channels, 0.5),
            numbers(channels, 0.7),
            variance,
            1e-5,
        )
        .unwrap()
    };
    let dense = Sequential::builder()
        .layer(linear(12, 20, 0.7))
        .layer(Gelu::Exact)
        .layer(linear(10, 12, 1.3))
        .layer(Relu)
        .layer(linear(4, 10, 2.1));
    // The second convolution is large enough for the fast algorithm.
    let pooled = Sequential::builder()
        .input([2, 8, 8])
        .layer(conv(16, 2, 0.7))
        .layer(norm(16))
        .layer(Relu)
        .layer(MaxPool2d::new(2))
        .layer(conv(16, 16, 1.1))
        .layer(Relu)
        .layer(AvgPool2d::new(2))
        .layer(Flatten)
        .layer(linear(3, 64, 2.3))
        .layer(Softmax);
    let inner = Sequential::builder().layer(conv(2, 2, 1.7)).layer(Silu).layer(conv(2, 2, 0.9));
    let wide = Sequential::builder().layer(conv(3, 2, 0.4)).layer(Upsample::new(1).unwrap());
    let branched = Sequential::builder()
        .input([2, 4, 4])
        .layer(Residual::new([inner, Sequential::builder()]).unwrap())
        .layer(Relu)
        .layer(
            Concat::new([
                wide,
                Sequential::builder().layer(MaxPool2d::new(3).stride(1).padding(1)),
            ])
            .unwrap(),
        )
        .layer(AdaptiveAvgPool2d::new(2))
        .layer(Flatten)
        .layer(linear(5, 20, 2.9));
    [dense, pooled, branched].map(|builder| builder.build().unwrap())
}

/// For dense, convolutional, pooling and residual networks, with all kinds of targets.
#[test]
fn the_error_is_the_difference_in_networks_of_all_kinds() -> Result<(), Error> {
    for (single, double) in networks::<f32>().iter().zip(&networks::<f64>()) {
        let x: Vec<f32> = numbers(single.inputs(), 0.37);
        let exact: Vec<f64> = numbers(single.inputs(), 0.37);
        assert!(x.iter().map(|&v| f64::from(v)).eq(exact.iter().copied()));
        let mut largest: f64 = 0.0;
        for rule in [Rule::Epsilon, Rule::Gamma, Rule::ZPlus, Rule::Relative] {
            let (own, finer) = (single.explainer(rule)?, double.explainer(rule)?);
            let outputs = single.outputs();
            let predicted = finer.explain_slice(&exact)?.predicted();
            let targets: [(Targets<f32>, Targets<f64>); 4] = [
                (Targets::All, Targets::All),
                (Targets::Predicted, predicted.into()),
                ([2, 0].into(), [2, 0].into()),
                (weighting(outputs).into(), weighting(outputs).into()),
            ];
            for (of_single, of_double) in targets {
                let plain = own.clone().targets(of_single.clone())?.explain_slice(&x)?;
                let finer = finer.clone().targets(of_double)?.explain_slice(&exact)?;
                // The settings can come before or after `with_health`.
                let before = own.clone().targets(of_single.clone())?.with_health();
                let after = own
                    .clone()
                    .with_health()
                    .targets(of_single)?
                    .accumulation(Accumulation::Optimal);
                for explainer in [before, after] {
                    let with = explainer.explain_slice(&x)?;
                    assert_eq!(with.shares(), plain.shares());
                    check(with.health().unwrap(), &plain, &finer);
                    let health = explainer.trace_slice(&x)?.explanation().health().cloned();
                    assert!(
                        health.unwrap().relative_error(2.min(outputs - 1)).is_none_or(|e| e < 1e-3)
                    );
                }
                for target in plain.targets() {
                    let with = own.clone().with_health().explain_slice(&x)?;
                    largest = largest.max(with.health().unwrap().relative_error(target).unwrap());
                }
            }
        }
        // The test would pass if both runs were in the same precision.
        assert!(largest > 1e-9 && largest < 1e-3, "{largest:e}");
    }
    Ok(())
}

/// Each sample of a batch is compared on its own.
#[test]
fn batches_are_measured_sample_by_sample() -> Result<(), Error> {
    let [model, ..] = networks::<f32>();
    let explainer = model.explainer(Rule::Epsilon)?.targets(Targets::Predicted)?.with_health();
    let samples = DMatrix::from_vec(20, 7, numbers(140, 0.73));
    let batch = explainer.explain_batch(&samples)?;
    for (explanation, sample) in batch.iter().zip(samples.column_iter()) {
        let alone = explainer.explain_slice(sample.as_slice())?;
        assert_eq!(explanation.health(), alone.health());
        assert!(alone.health().unwrap().error(alone.predicted()).is_some());
        let other = (alone.predicted() + 1) % 4;
        assert_eq!(alone.health().unwrap().error(other), None);
    }
    Ok(())
}

/// The memory limit covers the comparison.
#[test]
fn the_memory_of_the_comparison_is_limited() -> Result<(), Error> {
    let linear = Linear::new(DMatrix::from_element(50, 100, 1.0_f32), None)?;
    let model = Sequential::builder().layer(linear).build()?;
    let (explainer, x) = (model.explainer(Rule::Epsilon)?, [1.0; 100]);
    assert!(explainer.clone().memory_limit(100_000).explain_slice(&x).is_ok());
    let measured = explainer.with_health().memory_limit(100_000);
    assert!(matches!(measured.explain_slice(&x), Err(Error::TooLarge { .. })));
    let explanation = measured.memory_limit(300_000).explain_slice(&x)?;
    assert!(explanation.health().unwrap().error(0).is_some());
    Ok(())
}

/// If the network predicts another output in double precision, the explained output counts.
#[test]
fn the_predicted_output_is_that_of_the_explanation() -> Result<(), Error> {
    // In single precision, both outputs are 1, and the first is predicted. The second is larger.
    let tiny = 1e-9_f32;
    let model =
        Sequential::builder().layer(Linear::new(dmatrix![1.0, 0.0; 1.0, tiny], None)?).build()?;
    let explainer = model.explainer(Rule::Lrp0)?.targets(Targets::Predicted)?.with_health();
    let explanation = explainer.explain(&dvector![1.0, 1.0])?;
    assert_eq!(explanation.targets().collect::<Vec<_>>(), [0]);
    assert_eq!(explanation.health().unwrap().error(0), Some(0.0));
    Ok(())
}

/// The shares of a deep network can leave the range of both types.
#[test]
fn tiny_shares_have_a_relative_error() -> Result<(), Error> {
    let relative = (0..60).fold(Sequential::builder(), |builder, _| {
        builder.layer(Linear::new(DMatrix::from_element(8, 8, 0.1_f32), None).unwrap()).layer(Tanh)
    });
    let explainer = relative.build()?.explainer(Rule::Relative)?.with_health();
    let explanation = explainer.explain_slice(&[0.9; 8])?;
    assert!(explanation.exponent() < -500, "{}", explanation.exponent());
    let health = explanation.health().unwrap();
    let (error, relative) = (health.error(0).unwrap(), health.relative_error(0).unwrap());
    assert!(relative > 1e-8 && relative < 1e-4, "{relative:e}");
    assert!(error < 1e-150, "{error:e}");
    Ok(())
}

/// A sample that the box accepts in single precision is not refused in double precision, where the
/// box is sharper.
#[test]
fn the_box_keeps_its_bounds() -> Result<(), Error> {
    fn network<T: Scalar>() -> Sequential<T> {
        let weights = dmatrix![1.0, -2.0, 0.5].map(T::from_f64);
        Sequential::builder().layer(Linear::new(weights, None).unwrap()).build().unwrap()
    }
    // 0.1 in single precision is above 0.1 in double precision.
    let (x, zbox) = ([0.1_f32, 0.0, 0.05], ZBox::new(-0.3, 0.1)?);
    let exact: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let model = network::<f32>();
    let with = model.explainer(zbox.clone())?.with_health().explain_slice(&x)?;
    let composite = Composite::new(Rule::Epsilon).first(zbox.clone());
    let composed = model.explainer(composite)?.with_health().explain_slice(&x)?;
    let double = network::<f64>();
    assert!(double.explainer(zbox.clone())?.explain_slice(&exact).is_err());
    let finer = double.explainer(zbox.with_outside(Outside::Report))?.explain_slice(&exact)?;
    for with in [with, composed] {
        check(with.health().unwrap(), &with, &finer);
        assert!(with.health().unwrap().error(0).unwrap() > 0.0);
    }
    Ok(())
}

#[test]
fn reports_without_an_error_say_why() -> Result<(), Error> {
    let x = dvector![1.0, 0.5];
    let of = |model: Sequential<f32>, rule: &dyn RelevanceRule<f32>| -> Result<String, Error> {
        let explanation =
            model.explainer(rule)?.with_health().explain(&x.map(|v: f64| v as f32))?;
        let health = explanation.health().unwrap();
        assert_eq!((health.error(0), health.relative_error(0)), (None, None));
        let prevented = health.prevented().unwrap();
        assert!(health.to_string().contains(&format!("rounding: not measured. {prevented}")));
        Ok(prevented.to_owned())
    };
    let layer = || Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0_f32], None);
    let alone = Sequential::builder().layer(layer()?).layer(Own::Alone).layer(layer()?).build()?;
    let named = Sequential::builder().layer(layer()?).named("odd", Own::Alone).build()?;
    let inner = Sequential::builder().layer(layer()?).layer(Own::Alone);
    let block = Residual::new([inner, Sequential::builder()])?;
    let nested = Sequential::builder().input(2).named("block", block).build()?;
    let none = "has no form in f64, because its to_f64 returns None.";
    assert_eq!(of(alone.clone(), &Rule::Epsilon)?, format!("Layer '1' (Own) {none}"));
    assert_eq!(of(named, &Rule::Epsilon)?, format!("Layer 'odd' (Own) {none}"));
    assert_eq!(of(nested, &Rule::Epsilon)?, format!("Layer 'block.0.1' (Own) {none}"));
    // The layers are fine here.
    let model = Sequential::builder().layer(layer()?).build()?;
    assert_eq!(of(model.clone(), &Halves::Alone)?, format!("The rule Halves {none}"));
    let composite = Composite::<f32>::new(Epsilon::default()).first(Halves::Alone);
    let rule = RelevanceRule::name(&composite);
    assert_eq!(of(model.clone(), &composite)?, format!("The rule {rule} {none}"));
    // A form that does not fit, or that fails.
    let other = Sequential::builder().layer(layer()?).layer(Own::Other).build()?;
    assert!(of(other, &Rule::Epsilon)?.starts_with("The model has 3 outputs in f64 instead of 2"));
    let unfit = Sequential::builder().layer(layer()?).layer(Own::Other).layer(layer()?).build()?;
    let sentence = of(unfit, &Rule::Epsilon)?;
    assert!(
        sentence.starts_with("The model cannot be built in f64: layer 2 (Linear)"),
        "{sentence}"
    );
    let huge = Sequential::builder().layer(layer()?).layer(Own::Huge).build()?;
    let sentence = of(huge, &Rule::Epsilon)?;
    assert!(sentence.starts_with("The sample cannot be explained in f64: output 0"), "{sentence}");
    assert!(of(model, &Halves::Refused)?.starts_with("The rule Halves cannot be used in f64: "),);

    let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    let explanation = model.explainer(Rule::Epsilon)?.with_health().explain(&x)?;
    let health = explanation.health().unwrap();
    assert_eq!(health.error(0), None);
    assert!(health.prevented().unwrap().starts_with("The explanation is in f64 already"));
    Ok(())
}

/// A custom activation, z². The variants differ in what `to_f64` returns.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Own {
    /// Nothing.
    Alone,
    /// The same activation.
    Same,
    /// A layer with other outputs.
    Other,
    /// An activation that overflows.
    Huge,
}

impl<T: Scalar> Elementwise<T> for Own {
    fn value(&self, z: T) -> T {
        // Only reached in double precision.
        if *self == Self::Huge && T::epsilon().as_f64() < 1e-10 { T::infinity() } else { z * z }
    }
}

impl<T: Scalar> Layer<T> for Own {
    fn kind(&self) -> &'static str {
        "Own"
    }

    fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(Operator::elementwise(*self))
    }

    fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
        match self {
            Self::Alone => None,
            Self::Same | Self::Huge => Some(Arc::new(*self)),
            Self::Other => Some(Arc::new(Linear::new(DMatrix::zeros(3, 2), None).ok()?)),
        }
    }
}

/// A custom rule: half of what `Epsilon` gives. The variants differ in what `to_f64` returns.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Halves {
    /// Nothing.
    Alone,
    /// The same rule.
    Same,
    /// A rule that can be used nowhere.
    Refused,
}

impl<T: Scalar> RelevanceRule<T> for Halves {
    fn name(&self) -> String {
        "Halves".to_owned()
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        if *self == Self::Refused && T::epsilon().as_f64() < 1e-10 {
            return Err(site.unsupported(RelevanceRule::<T>::name(self), "it is a test"));
        }
        let part = Part::new(Transform::Identity, Transform::Identity);
        let group = Group::new(vec![part], Divisor::Total(relprop::rule::Stabilizer::default()));
        Ok(group.times(T::from_f64(0.5)).with_bias(BiasMode::Ignore, Transform::Identity).into())
    }

    fn to_f64(&self) -> Option<Box<dyn RelevanceRule<f64>>> {
        (*self != Self::Alone).then(|| Box::new(*self) as Box<dyn RelevanceRule<f64>>)
    }
}

#[test]
fn custom_layers_and_rules_can_be_measured() -> Result<(), Error> {
    fn network<T: Scalar>() -> Sequential<T> {
        let linear = |frequency| {
            Linear::from_rows(3, 3, &numbers::<T>(9, frequency), Some(&numbers(3, 0.3))).unwrap()
        };
        Sequential::builder()
            .layer(linear(0.7))
            .layer(Own::Same)
            .layer(linear(1.1))
            .layer(Scaled::new(Own::Same, 0.7, 1.3).unwrap())
            .layer(linear(1.9))
            .build()
            .unwrap()
    }
    let x: [f32; 3] = [0.3, -0.7, 0.9];
    let exact = x.map(f64::from);
    let own = network::<f32>().explainer(Halves::Same)?.with_health().explain_slice(&x)?;
    check(
        own.health().unwrap(),
        &own,
        &network::<f64>().explainer(Halves::Same)?.explain_slice(&exact)?,
    );
    assert!(own.health().unwrap().error(0).unwrap() > 0.0);
    // Behind a box and an Arc, and inside a composite.
    let boxed: Box<dyn RelevanceRule<f32>> = Box::new(Arc::new(Halves::Same));
    let composite = Composite::new(boxed);
    let composed = network::<f32>().explainer(&composite)?.with_health().explain_slice(&x)?;
    for target in 0..3 {
        let [a, b] = [&own, &composed].map(|e| e.health().unwrap().error(target));
        assert_eq!(a, b);
    }
    Ok(())
}

/// The names that a file re-exports from its modules, without these.
fn exported(source: &str, without: &[&str]) -> Vec<String> {
    let lists = source.split("\npub use ").skip(1).filter_map(|rest| rest.split(';').next());
    let names = lists
        .filter_map(|list| list.split_once("::"))
        .flat_map(|(_, names)| names.trim_matches(['{', '}']).split(','))
        .map(|name| name.trim().trim_matches(['{', '}']).trim().to_owned())
        .filter(|name| !name.is_empty() && !without.contains(&name.as_str()));
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names
}

/// The type's name without its module and its parameters.
fn type_name<V>() -> String {
    let name = std::any::type_name::<V>();
    let name = name.split('<').next().unwrap_or(name);
    name.rsplit("::").next().unwrap_or(name).to_owned()
}

type NamedLayer<T> = (String, Box<dyn Layer<T>>);

/// Every layer that the crate exports, with its name.
fn every_layer<T: Scalar>() -> Result<Vec<NamedLayer<T>>, Error> {
    fn of<T: Scalar, L: Layer<T> + 'static>(layer: L) -> NamedLayer<T> {
        (type_name::<L>(), Box::new(layer))
    }
    let four = |frequency: f64| numbers::<T>(4, frequency);
    let positive = || four(0.9).iter().map(|v| v.abs()).collect::<Vec<T>>();
    let linear = || Linear::from_rows(2, 2, &four(0.7), Some(&numbers(2, 0.4)));
    let branch = || -> Result<_, Error> { Ok(Sequential::builder().named("in", linear()?)) };
    let nested = Residual::new([branch()?, Sequential::builder()])?;
    Ok(vec![
        of(Relu),
        of(Silu),
        of(Sigmoid),
        of(Tanh),
        of(Selu),
        of(Mish),
        of(Softsign),
        of(HardSigmoid),
        of(HardSwish),
        of(LeakyRelu::new(0.1)?),
        of(Elu::new(0.3)?),
        of(Celu::new(0.7)?),
        of(Gelu::Tanh),
        of(Softplus::new(0.9, 11.0)?),
        of(HardTanh::new(-0.1, 0.7)?),
        of(Identity),
        of(Dropout::new(0.1)?),
        of(Scaled::new(Elu::new(0.3)?, 0.1, 0.7)?),
        of(Scaled::new(Identity, 0.1, 0.7)?),
        of(Softmax),
        of(Softmax::over(1)),
        of(BatchNorm1d::new(four(0.3), four(0.5), four(0.7), positive(), 1e-5)?),
        of(BatchNorm2d::new(four(0.3), four(0.5), four(0.7), positive(), 1e-3)?),
        of(Residual::new([branch()?, branch()?.layer(nested)])?),
        of(Concat::new([branch()?, Sequential::builder()])?),
        of(Conv1d::new([2, 1, 2], four(0.7), numbers(2, 0.2))?.stride(2).padding(1).groups(2)),
        of(Conv2d::new([2, 1, 1, 2], four(0.7), None)?.padding([0, 1]).padding_end([1, 0])),
        of(ConvTranspose2d::new([2, 1, 2, 1], four(0.7), None)?
            .stride(3)
            .dilation(2)
            .output_padding([1, 2])),
        of(linear()?),
        of(Embedding::new(&DMatrix::from_fn(3, 2, |i, j| {
            T::from_f64(f64::from((i + 2 * j) as f32 * 0.3))
        }))?),
        of(PRelu::new(numbers(3, 0.4))?),
        of(AdaptiveAvgPool1d::new(3)),
        of(AdaptiveAvgPool2d::new([2, 3])),
        of(AvgPool1d::new(3).padding(1).ceil_mode(true)),
        of(AvgPool2d::new(2).count_include_pad(false).divisor_override(3)),
        of(MaxPool1d::new(3).dilation(2).padding(1)),
        of(MaxPool2d::new([2, 3]).stride(1).ceil_mode(true)),
        of(Flatten),
        of(Permute::new(&[1, 0])?),
        of(Unflatten::new([2, 3])),
        of(Upsample::new(3)?),
    ])
}

#[test]
fn every_layer_has_a_form_in_f64() -> Result<(), Error> {
    let (layers, same) = (every_layer::<f32>()?, every_layer::<f64>()?);
    let mut names: Vec<String> = layers.iter().map(|(name, _)| name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    // A layer that is missing above fails here.
    assert_eq!(
        names,
        exported(
            include_str!("../src/layer.rs"),
            &[
                "Bias",
                "Branch",
                "Elementwise",
                "Joined",
                "LinearMap",
                "Lookup",
                "Operator",
                "Pair",
                "Route",
                "WeightFn",
            ]
        )
    );
    for ((name, layer), (_, same)) in layers.iter().zip(&same) {
        let converted = layer.to_f64().unwrap_or_else(|| panic!("{name}"));
        assert_eq!((layer.kind(), layer.arguments()), (converted.kind(), converted.arguments()));
        assert_eq!(
            (layer.inputs(), layer.parameters()),
            (converted.inputs(), converted.parameters())
        );
        let (own, exact) = (layer.tensors(), converted.tensors());
        assert_eq!(own.len(), exact.len());
        for ((name, shape, values), (other, other_shape, exact)) in own.iter().zip(&exact) {
            assert_eq!((name, shape), (other, other_shape));
            assert!(values.iter().map(|&v| f64::from(v)).eq(exact.iter().copied()));
        }
        // All settings, even those that are not printed.
        let text = |layer: &dyn Layer<f64>| format!("{layer:?}");
        assert_eq!(text(&*converted), text(&**same), "{name}");
        // From f64, it is a copy, also through an Arc.
        assert_eq!(text(&*Arc::new(same).to_f64().unwrap()), text(&**same), "{name}");
    }
    let named = Sequential::builder().named("in", Relu);
    let branch: Branch<f32> = named.into();
    assert!(format!("{:?}", branch.to_f64().unwrap()).contains("in"));
    let odd: Branch<f32> = Sequential::builder().layer(Own::Alone).into();
    assert!(odd.to_f64().is_none());
    assert!(Layer::<f32>::to_f64(&Concat::new([odd])?).is_none());
    Ok(())
}

/// The presets, and a composite with every kind of setting.
fn composites<T: Scalar>() -> Result<[Composite<T>; 6], Error> {
    Ok([
        Composite::epsilon_plus(),
        Composite::epsilon_plus_flat(),
        Composite::epsilon_alpha2_beta1(),
        Composite::epsilon_alpha2_beta1_flat(),
        Composite::epsilon_gamma_box(-0.1, 0.7)?,
        Composite::new(Gamma::new(0.1)?)
            .kind("Linear", Rule::ZPlus)
            .layer(0, Rule::Epsilon)
            .range(1..3, Rule::Flat)
            .layer("2", Rule::Lrp0)
            .first(ZBox::new(0.1, 0.7)?)
            .last(Rule::Sign),
    ])
}

#[test]
fn every_rule_has_a_form_in_f64() -> Result<(), Error> {
    type Built = (String, Box<dyn RelevanceRule<f32>>, Box<dyn RelevanceRule<f64>>);
    fn of<R: RelevanceRule<f32> + RelevanceRule<f64> + Clone + 'static>(rule: R) -> Built {
        (type_name::<R>(), Box::new(rule.clone()), Box::new(rule))
    }
    let absolute = relprop::rule::Stabilizer::Absolute(0.1);
    let rules = [
        of(relprop::AbsLrp::default().with_stabilizer(absolute)?),
        of(AlphaBeta::new(1.1, 0.1)?.with_bias(BiasMode::Distribute)),
        of(Epsilon::relative_to_rms(0.1)?.with_bias(BiasMode::Ignore)),
        of(relprop::Flat),
        of(Gamma::new(0.1)?.with_stabilizer(absolute)?),
        of(GammaPlain::new(0.1)?.with_bias(BiasMode::Ignore)),
        of(Lrp0::default().with_bias(BiasMode::Ignore)),
        of(relprop::Norm),
        of(relprop::Pass),
        of(Relative::new(BiasMode::Distribute)?),
        of(Sign::default().with_stabilizer(absolute)?),
        of(WSquare::default().with_bias(BiasMode::Absorb)),
        of(ZBox::new(-0.1, 0.7)?),
        of(ZPlus::default().with_bias(BiasMode::Distribute)),
    ];
    let names: Vec<String> = rules.iter().map(|(name, ..)| name.clone()).collect();
    assert_eq!(
        names,
        exported(
            include_str!("../src/rule.rs"),
            &[
                "BiasMode",
                "Decomposition",
                "Divisor",
                "Gate",
                "Group",
                "LinearShares",
                "NormalizationShares",
                "Outside",
                "Part",
                "ProductShares",
                "Rule",
                "SoftmaxShares",
                "Stabilizer",
                "Transform",
            ],
        )
    );
    let linear = Linear::from_rows(3, 4, &numbers(12, 0.7), Some(&numbers(3, 0.3)))?;
    let model = Sequential::builder().layer(linear).build()?;
    let x = [0.3, 0.0, 0.7, -0.1];
    for (name, single, double) in &rules {
        let converted = single.to_f64().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(converted.name(), double.name());
        assert_eq!(double.to_f64().unwrap().name(), double.name());
        if name != "Pass" {
            // The same settings give the same shares.
            let shares = |rule: &dyn RelevanceRule<f64>| -> Result<DMatrix<f64>, Error> {
                Ok(model.explainer(rule)?.explain_slice(&x)?.shares().clone())
            };
            assert_eq!(shares(&*converted)?, shares(&**double)?, "{name}");
        }
    }
    for rule in Rule::ALL {
        let converted = RelevanceRule::<f32>::to_f64(&rule).unwrap();
        assert_eq!(converted.name(), RelevanceRule::<f64>::name(&rule));
    }
    for (single, double) in composites::<f32>()?.iter().zip(&composites::<f64>()?) {
        let converted = single.to_f64().unwrap();
        assert_eq!(converted.name(), double.name());
    }
    // A setting that must match a layer must do so in f64 too.
    let unmatched = Composite::<f32>::new(Rule::Epsilon).layer("nowhere", Rule::Flat);
    assert!(matches!(
        model.explainer(unmatched.to_f64().unwrap()),
        Err(Error::UnmatchedSetting { .. })
    ));
    Ok(())
}

/// With positive weights and inputs, nothing cancels, and there is no advice.
#[test]
fn nothing_cancels_among_positive_numbers() {
    let weight = |j: usize, i: usize| ((i * 31 + j * 17) % 13 + 1) as f64 / 14.0;
    let layer = |outputs: usize, inputs: usize| Dense {
        weights: (0..outputs).map(|j| (0..inputs).map(|i| weight(j, i)).collect()).collect(),
        bias: None,
    };
    let x = (0..30).map(|i| 0.1 + f64::from(i % 7) / 7.0).collect();
    let net = Net { layers: vec![layer(20, 30), layer(10, 20), layer(4, 10)], relu: true, x };
    let (model, x): (_, Vec<f32>) =
        (self::model::<f32>(&net, 0), net.x.iter().map(|&v| v as f32).collect());
    for formula in [
        Formula::Lrp0 { bias: BiasMode::Absorb },
        Formula::Epsilon { epsilon: 1e-6, relative: false, bias: BiasMode::Absorb },
        Formula::Gamma { gamma: 0.25, epsilon: 1e-6, bias: BiasMode::Absorb },
        Formula::ZPlus { epsilon: 1e-6, bias: BiasMode::Absorb },
        Formula::Flat,
    ] {
        let explainer = model.explainer(formula.rule::<f32>()).unwrap().with_health();
        let explanation = explainer.explain_slice(&x).unwrap();
        for target in 0..4 {
            let error = explanation.health().unwrap().relative_error(target).unwrap();
            assert!(error < 1e-6, "{formula:?} {error:e}");
        }
    }
    let explainer =
        model.explainer(Formula::Lrp0 { bias: BiasMode::Absorb }.rule::<f32>()).unwrap();
    let health = explainer.with_health().explain_slice(&x).unwrap().health().unwrap().clone();
    for layer in health.layers() {
        assert!((layer.worst() - 1.0).abs() < 1e-5 && (layer.median() - 1.0).abs() < 1e-5);
    }
    let text = health.to_string();
    assert!(!text.contains("advice"), "{text}");
    assert!(
        text.contains("rounding: shares are off by at most")
            && text.contains("of their target's largest (measured against f64)"),
        "{text}"
    );
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
fn a_large_error_gives_the_advice_to_use_f64() -> Result<(), Error> {
    // The sum of the rounded numbers is nearly 0, and single precision cannot hold it.
    let model =
        Sequential::builder().layer(Linear::new(dmatrix![0.1, 0.2, -0.3_f32], None)?).build()?;
    let x = dvector![1.0, 1.0, 1.0];
    let explanation = model.explainer(Rule::Lrp0)?.with_health().explain(&x)?;
    let health = explanation.health().unwrap();
    assert!(health.relative_error(0).unwrap() > 1e-2);
    assert!(health.to_string().ends_with("advice: use f64 for reliable digits"), "{health}");
    let positive = model.explainer(Rule::ZPlus)?.with_health().explain(&x)?;
    assert!(!positive.health().unwrap().to_string().contains("advice"));
    Ok(())
}

/// Only outputs that receive relevance count, in networks with pooling and branches too.
#[test]
fn the_gauge_skips_outputs_without_relevance() -> Result<(), Error> {
    // κ is 19,999 for the outputs 1 - 0.9999 and 1 for the others.
    let layer = || Linear::new(dmatrix![1.0, 0.0; 1.0, -0.9999; 1.0, 1.0; 1.0, -0.9999], None);
    let x = dvector![1.0, 1.0];
    let worst = |model: &Sequential<f64>| -> Result<Vec<(usize, f64)>, Error> {
        let explanation = model.explainer(Rule::Lrp0)?.with_health().explain(&x)?;
        let layers = explanation.health().unwrap().layers();
        Ok(layers.iter().map(|layer| (layer.layer(), layer.worst().round())).collect())
    };
    let pooled = |weights| -> Result<_, Error> {
        Sequential::builder()
            .layer(layer()?)
            .layer(Unflatten::new([1, 4]))
            .layer(MaxPool1d::new(2))
            .layer(Flatten)
            .layer(Linear::new(weights, None)?)
            .build()
    };
    // The pool selects the outputs without cancellation.
    assert_eq!(worst(&pooled(dmatrix![1.0, 1.0])?)?, [(0, 1.0), (4, 1.0)]);
    let branched = |of_layer: f64| -> Result<_, Error> {
        let concat = Concat::new([Sequential::builder().layer(layer()?), Sequential::builder()])?;
        let w = of_layer;
        Sequential::builder()
            .input(2)
            .layer(concat)
            .layer(Linear::new(dmatrix![1.0, w, 1.0, 0.0, 1.0, 1.0], None)?)
            .build()
    };
    assert_eq!(worst(&branched(0.0)?)?, [(1, 1.0), (2, 1.0)]);
    assert_eq!(worst(&branched(1.0)?)?, [(1, 19_999.0), (2, 1.0)]);
    Ok(())
}
