//! Image networks: layers against PyTorch, relevances against zennit (`golden-images/generate.py`),
//! and properties that hold for every network.

// Casts to f32 round on purpose.
#![allow(clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use relprop::io::StateDict;
use relprop::nalgebra::DMatrix;
use relprop::{
    Accumulation, BatchNorm1d, BatchNorm2d, BiasMode, Cause, Composite, Conv2d, Dropout, Epsilon,
    Explanation, Flat, Flatten, Identity, Linear, Lrp0, RelevanceRule, Relu, Residual, Rule,
    Scalar, Sequential, Shape, Targets, WSquare, ZBox,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden-images");
const ORDERS: [Accumulation; 3] =
    [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse];

/// The largest allowed difference from the golden numbers, relative to a network's largest entry.
const F64_LIMIT: f64 = 1e-9;
const F32_LIMIT: f64 = 1e-4;

/// The name and file of every network.
fn networks() -> Vec<(String, StateDict)> {
    let mut paths: Vec<_> =
        std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        path.extension().is_some_and(|e| e == "safetensors") && !path.ends_with("grid.safetensors")
    });
    paths.sort();
    assert!(paths.len() >= 12, "golden files are missing");
    paths
        .iter()
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), StateDict::open(path).unwrap())
        })
        .collect()
}

fn model<T: Scalar>(file: &StateDict) -> Sequential<T> {
    file.under("model").to_model::<T>().unwrap().canonize().unwrap().0
}

type Rules<T> = Vec<(&'static str, Box<dyn RelevanceRule<T>>)>;

fn rules<T: Scalar>() -> Rules<T> {
    let first =
        |rule: Box<dyn RelevanceRule<T>>| Box::new(Composite::new(Epsilon::default()).first(rule));
    vec![
        ("epsilon", Box::new(Rule::Epsilon)),
        ("gamma", Box::new(Rule::Gamma)),
        ("zplus", Box::new(Rule::ZPlus)),
        ("alpha2-beta1", Box::new(Rule::AlphaBeta)),
        ("first-flat", first(Box::new(Flat))),
        ("first-wsquare", first(Box::<WSquare>::default())),
        ("first-zbox", first(Box::new(ZBox::new(-3.0, 3.0).unwrap()))),
        ("epsilon-plus", Box::new(Composite::epsilon_plus())),
        ("epsilon-plus-flat", Box::new(Composite::epsilon_plus_flat())),
        ("epsilon-alpha2-beta1", Box::new(Composite::epsilon_alpha2_beta1())),
        ("epsilon-alpha2-beta1-flat", Box::new(Composite::epsilon_alpha2_beta1_flat())),
        ("epsilon-gamma-box", Box::new(Composite::epsilon_gamma_box(-3.0, 3.0).unwrap())),
    ]
}

/// The largest difference from the golden values, relative to the largest golden value.
fn off<T: Scalar>(ours: &[T], goldens: &[f64]) -> f64 {
    assert_eq!(ours.len(), goldens.len());
    let largest = goldens.iter().fold(0.0_f64, |max, golden| max.max(golden.abs()));
    let differences = ours.iter().zip(goldens).map(|(ours, golden)| (ours.as_f64() - golden).abs());
    differences.fold(0.0, f64::max) / largest.max(f64::MIN_POSITIVE)
}

fn agrees<T: Scalar>(limit: f64) {
    let mut worst: BTreeMap<&str, (f64, String)> = BTreeMap::new();
    for (name, file) in networks() {
        let model = model::<T>(&file);
        let (_, inputs) = file.tensor::<T>("golden.input").unwrap();
        for (rule_name, rule) in rules::<T>() {
            let (shape, goldens) = file.tensor::<f64>(&format!("golden.{rule_name}")).unwrap();
            for order in ORDERS {
                let targets: Vec<usize> = (0..shape[1]).collect();
                let explainer = model
                    .explainer(&rule)
                    .unwrap()
                    .accumulation(order)
                    .targets(targets.clone())
                    .unwrap();
                let samples = DMatrix::from_column_slice(model.inputs(), shape[0], &inputs);
                let mut ours: Vec<T> = Vec::new();
                for explanation in explainer.explain_batch(&samples).unwrap() {
                    for &target in &targets {
                        ours.extend(explanation.relevance(target).unwrap().iter());
                    }
                }
                let difference = off(&ours, &goldens);
                assert!(
                    difference < limit,
                    "{name}, {rule_name}, {order:?}: off by {difference:.1e}"
                );
                let known = worst.entry(rule_name).or_default();
                if difference > known.0 {
                    *known = (difference, name.clone());
                }
            }
        }
    }
    for (rule, (difference, network)) in worst {
        println!(
            "{:<28} {difference:.1e}  {network}",
            format!("{rule} ({})", std::any::type_name::<T>())
        );
    }
}

#[test]
fn relevances_are_zennits_in_f64() {
    agrees::<f64>(F64_LIMIT);
}

#[test]
fn relevances_are_zennits_in_f32() {
    agrees::<f32>(F32_LIMIT);
}

#[test]
fn outputs_are_pytorchs_and_stay_when_normalizations_are_merged() {
    for (name, file) in networks() {
        let whole = file.under("model").to_model::<f64>().unwrap();
        let (merged, what) = whole.canonize().unwrap();
        assert_eq!(what.is_empty(), !name.starts_with("resnet"));
        assert!(!merged.layers().iter().any(|layer| layer.kind() == "BatchNorm2d"));
        let (shape, inputs) = file.tensor::<f64>("golden.input").unwrap();
        let (_, outputs) = file.tensor::<f64>("golden.output").unwrap();
        let samples = DMatrix::from_vec(shape[1], shape[0], inputs);
        for model in [&whole, &merged] {
            assert!(
                off(model.forward_batch(&samples).unwrap().as_slice(), &outputs) < 1e-12,
                "{name}"
            );
        }
    }
}

/// Compares layers with PyTorch's, with settings drawn from a grid.
#[test]
fn layers_are_pytorchs() {
    let file = StateDict::open(format!("{FOLDER}/grid.safetensors")).unwrap();
    let lines = std::fs::read_to_string(format!("{FOLDER}/grid.txt")).unwrap();
    assert!(lines.lines().count() > 250);
    for (number, line) in lines.lines().enumerate() {
        let [input, output, layer] = line.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let dims =
            |text: &str| text.split(' ').map(|dim| dim.parse().unwrap()).collect::<Vec<usize>>();
        let shape = match dims(input)[..] {
            [channels, length] => Shape::from([channels, length]),
            [channels, height, width] => Shape::from([channels, height, width]),
            _ => panic!("{line}"),
        };
        let case = file.under(&number.to_string());
        let model = case
            .under("model")
            .model_of::<f64>(layer, Some(shape))
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(model.output_shape().dims(), dims(output), "{line}");
        let (_, x) = case.tensor::<f64>("input").unwrap();
        let (_, y) = case.tensor::<f64>("output").unwrap();
        let found = model.forward(&x.into()).unwrap();
        assert!(off(found.as_slice(), &y) < 1e-12, "{line}");
    }
}

fn imbalance<T: Scalar>(explanation: &Explanation<T>) -> f64 {
    let ledgers =
        explanation.targets().map(|target| explanation.ledger(target).unwrap().imbalance());
    ledgers.fold(0.0, f64::max)
}

#[test]
fn ledgers_close_and_samples_do_not_know_of_each_other() {
    for (name, file) in networks() {
        let model = model::<f64>(&file);
        let (_, inputs) = file.tensor::<f64>("golden.input").unwrap();
        let samples = DMatrix::from_column_slice(model.inputs(), 2, &inputs);
        for (rule_name, rule) in rules::<f64>() {
            for order in ORDERS {
                let explainer = model.explainer(&rule).unwrap().accumulation(order);
                let batch = explainer.explain_batch(&samples).unwrap();
                for (explanation, sample) in batch.iter().zip(samples.column_iter()) {
                    assert!(
                        imbalance(explanation) < 1e-12,
                        "{name}, {rule_name}, {order:?}: {:e}",
                        imbalance(explanation)
                    );
                    let alone = explainer.explain(&sample.into_owned()).unwrap();
                    assert_eq!(explanation, &alone, "{name}, {rule_name}, {order:?}");
                }
            }
        }
    }
}

#[test]
fn weighted_targets_and_traces_agree_with_all_outputs() {
    for (name, file) in networks() {
        let model = model::<f64>(&file);
        let (_, inputs) = file.tensor::<f64>("golden.input").unwrap();
        let sample = inputs[..model.inputs()].to_vec().into();
        for rule in [Rule::Epsilon, Rule::Gamma] {
            let explainer = model.explainer(rule).unwrap();
            let all = explainer.explain(&sample).unwrap();
            let mut weighting = relprop::nalgebra::DVector::zeros(model.outputs());
            (weighting[0], weighting[2]) = (1.0, -1.0);
            let contrast = model
                .explainer(rule)
                .unwrap()
                .targets(Targets::from(weighting))
                .unwrap()
                .explain(&sample)
                .unwrap();
            let difference = contrast.relevance(0).unwrap() - all.contrast(0, 2).unwrap();
            assert!(difference.amax() < 1e-9, "{name}");
            let trace = explainer.trace(&sample).unwrap();
            assert!(
                (trace.relevance(0, 1).unwrap() - all.relevance(1).unwrap()).amax() < 1e-9,
                "{name}"
            );
            // The relevance through all units of a layer is the relevance of the inputs.
            let layer = model.layers().len() - 1;
            let units: Vec<usize> = (0..trace.relevance(layer, 1).unwrap().len()).collect();
            assert!(
                (trace.through(layer, &units, 1).unwrap() - all.relevance(1).unwrap()).amax()
                    < 1e-9,
                "{name}"
            );
            // A sweep also explains the parts of the model together.
            let sweep = model.sweep([rule, Rule::ZPlus]).unwrap().explain(&sample).unwrap();
            assert!((sweep[0].shares() - all.shares()).amax() < 1e-9, "{name}");
        }
    }
}

/// Under every rule, a convolution is equal to a dense layer with the corresponding matrix.
#[test]
fn a_convolution_is_a_dense_layer() {
    let weights = |count: usize, seed: usize| -> Vec<f64> {
        (0..count).map(|k| (((k + seed) * 7919) % 31) as f64 / 15.0 - 1.0).collect()
    };
    let shape = Shape::from([2, 5, 4]);
    let first = || {
        Conv2d::new([3, 1, 3, 2], weights(18, 1), vec![0.3, -0.2, 0.1])
            .map(|c| c.stride([2, 1]).padding([1, 0]))
    };
    // The channels of three groups, each with one input channel.
    let convolution = Conv2d::new([4, 1, 3, 2], weights(24, 1), vec![0.3, -0.2, 0.1, 0.4]).unwrap();
    let convolution = convolution.stride([2, 1]).padding([1, 0]).groups(2);
    assert!(first().is_ok());
    let alone = Sequential::builder().input(shape).layer(convolution.clone()).build().unwrap();
    let (inputs, outputs) = (alone.inputs(), alone.outputs());
    let zero = alone.forward(&relprop::nalgebra::DVector::zeros(inputs)).unwrap();
    let units = alone.forward_batch(&DMatrix::identity(inputs, inputs)).unwrap();
    let matrix = DMatrix::from_fn(outputs, inputs, |j, i| units[(j, i)] - zero[j]);
    let head = |builder: relprop::SequentialBuilder<f64>| {
        let last =
            Linear::new(DMatrix::from_vec(2, outputs, weights(2 * outputs, 5)), None).unwrap();
        builder.layer(Relu).layer(relprop::Flatten).layer(last).build().unwrap()
    };
    let of_images = head(Sequential::builder().input(shape).layer(convolution));
    let of_vectors = head(Sequential::builder().layer(Linear::new(matrix, zero).unwrap()));
    let sample: relprop::nalgebra::DVector<f64> = weights(inputs, 3).into();
    for rule in Rule::ALL {
        // To the dense layer, its zeros are weights, so it differs for rules that count inputs.
        if matches!(rule, Rule::Flat | Rule::Relative | Rule::Pass) {
            continue;
        }
        let a = of_images.explain(&sample, rule).unwrap();
        let b = of_vectors.explain(&sample, rule).unwrap();
        assert!((a.shares() - b.shares()).amax() < 1e-12, "{rule:?}");
        for k in 0..2 {
            let parts = |e: &Explanation<f64>| {
                e.ledger(k)
                    .unwrap()
                    .entries()
                    .iter()
                    .map(relprop::LedgerEntry::relevance)
                    .collect::<Vec<_>>()
            };
            assert!(
                parts(&a).iter().zip(parts(&b)).all(|(a, b)| (a - b).abs() < 1e-12),
                "{rule:?}"
            );
        }
    }
}

#[test]
fn a_model_is_written_and_read_again() {
    for (name, file) in networks() {
        let model = file.under("model").to_model::<f64>().unwrap();
        let again = StateDict::from_safetensors(&model.to_safetensors().unwrap())
            .unwrap()
            .to_model::<f64>()
            .unwrap();
        assert_eq!(again.to_string(), model.to_string(), "{name}");
        assert_eq!(again.names(), model.names(), "{name}");
        let sample =
            file.tensor::<f64>("golden.input").unwrap().1[..model.inputs()].to_vec().into();
        assert_eq!(again.forward(&sample).unwrap(), model.forward(&sample).unwrap(), "{name}");
    }
}

/// Tests every predefined rule at every layer for which it is supported.
#[test]
fn every_rule_closes_its_ledger_in_f32_too() {
    for (name, file) in networks() {
        let model = model::<f32>(&file);
        let sample =
            file.tensor::<f32>("golden.input").unwrap().1[..model.inputs()].to_vec().into();
        for rule in Rule::ALL.into_iter().filter(|&rule| rule != Rule::Pass) {
            let explanation = model.explain(&sample, rule).unwrap();
            assert!(
                imbalance(&explanation) < 1e-5,
                "{name}, {rule:?}: {:e}",
                imbalance(&explanation)
            );
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let conv =
        |shape: [usize; 4]| Conv2d::<f64>::new(shape, vec![1.0; shape.iter().product()], None);
    let build = |input: Shape, layer: Conv2d<f64>| {
        Sequential::builder().input(input).layer(layer).build().unwrap_err().to_string()
    };
    assert_eq!(
        build([3, 8, 8].into(), conv([4, 2, 3, 3]).unwrap()),
        "layer 0 (Conv2d) expects channels x height x width with 2 channels, but got 3 x 8 x 8"
    );
    assert!(build([2, 2, 8].into(), conv([4, 2, 3, 3]).unwrap()).contains("kernel of size 3"));
    assert!(build([2, 8, 8].into(), conv([4, 2, 3, 3]).unwrap().stride(0)).contains("stride"));
    assert!(build([2, 8, 8].into(), conv([4, 2, 3, 3]).unwrap().groups(3)).contains("groups"));
    assert!(Conv2d::new([1, 1, 1, 2], vec![1.0], None).is_err());
    assert!(Conv2d::new([1, 1, 1, 1], vec![f64::NAN], None).is_err());
    assert!(Conv2d::new([2, 1, 1, 1], vec![1.0, 1.0], vec![1.0]).is_err());
    assert!(Conv2d::<f64>::new([0, 1, 1, 1], vec![], None).is_err());
    let flat = Sequential::builder()
        .input([1, 4, 4])
        .layer(conv([1, 1, 1, 1]).unwrap())
        .layer(Linear::new(DMatrix::zeros(1, 16), None).unwrap());
    assert!(flat.build().unwrap_err().to_string().contains("Flatten"));
    let unknown = Sequential::builder().layer(conv([1, 1, 1, 1]).unwrap()).build().unwrap_err();
    assert!(unknown.to_string().contains("input"), "{unknown}");
    let huge =
        Sequential::builder().input([1, usize::MAX, 2]).layer(conv([1, 1, 1, 1]).unwrap()).build();
    assert!(huge.is_err());
    let wide = conv([1, 1, 1, 1]).unwrap().padding(usize::MAX / 2).dilation(usize::MAX);
    assert!(Sequential::builder().input([1, 4, 4]).layer(wide).build().is_err());
}

/// A batch norm before a padded convolution cannot be merged. `Norm` distributes its relevance
/// whatever the rule, and the convolution is the first linear layer.
#[test]
fn a_normalization_that_stays_is_passed_over() {
    let norm = || {
        BatchNorm2d::new(vec![2.0, 0.5], vec![0.3, -0.2], vec![0.1, 0.4], vec![1.5, 0.7], 1e-5)
            .unwrap()
    };
    let weights = |count: usize| -> Vec<f64> {
        (0..count).map(|k| ((k * 7919) % 31) as f64 / 15.0 - 1.0).collect()
    };
    let conv = || Conv2d::new([3, 2, 3, 3], weights(54), None).unwrap().padding(1);
    let model = Sequential::builder()
        .input([2, 4, 4])
        .layer(norm())
        .layer(conv())
        .layer(Relu)
        .layer(conv_of(3))
        .build()
        .unwrap();
    assert!(model.canonize().unwrap().1.is_empty());
    let explainer = model.explainer(Composite::epsilon_plus_flat()).unwrap();
    assert_eq!(
        explainer.rules().collect::<Vec<_>>(),
        [("0", "Norm"), ("1", "Flat"), ("3", "ZPlus")]
    );
    let explainer = model.explainer(Rule::Flat).unwrap();
    assert_eq!(explainer.rules().next(), Some(("0", "Norm")));
    let named =
        model.explainer(Composite::new(Rule::Epsilon).kind("BatchNorm2d", Rule::Pass)).unwrap();
    assert_eq!(named.rules().next(), Some(("0", "Pass")));

    // Computed by hand: Norm assigns z a / (z a + b) of a pixel's relevance to the pixel and the
    // rest to the bias.
    let x: relprop::nalgebra::DVector<f64> = weights(32).into();
    let whole = explainer_of(&model).explain(&x).unwrap();
    let behind = Sequential::builder()
        .input([2, 4, 4])
        .layer(conv())
        .layer(Relu)
        .layer(conv_of(3))
        .build()
        .unwrap();
    let (a, b) = (
        |channel: usize| [2.0, 0.5][channel] / (([1.5, 0.7][channel]) + 1e-5_f64).sqrt(),
        [0.3, -0.2],
    );
    let z = x.map_with_location(|i, _, v| (v - [0.1, 0.4][i / 16]) * a(i / 16) + b[i / 16]);
    let inner = explainer_of(&behind).explain(&z).unwrap();
    for (i, (found, above)) in
        whole.relevance(5).unwrap().iter().zip(&inner.relevance(5).unwrap()).enumerate()
    {
        let expected = x[i] * a(i / 16) / (z[i] + 1e-6_f64.copysign(z[i])) * above;
        assert!(
            (found - expected).abs() < 1e-9 * expected.abs().max(1.0),
            "{i}: {found} for {expected}"
        );
    }
}

fn conv_of(channels: usize) -> Conv2d<f64> {
    let weights = (0..channels * 2).map(|k| ((k * 31) % 7) as f64 / 3.0 - 1.0).collect::<Vec<_>>();
    Conv2d::new([2, channels, 1, 1], weights, None).unwrap()
}

fn explainer_of(model: &Sequential<f64>) -> relprop::Explainer<f64> {
    model.explainer(Composite::epsilon_plus_flat()).unwrap()
}

/// Layers that do nothing at inference do not keep a batch norm from being merged.
#[test]
fn normalizations_are_merged_through_dropouts_and_reshapes() {
    let norm = || {
        BatchNorm2d::new(vec![2.0, 0.5], vec![0.3, -0.2], vec![0.1, 0.4], vec![1.5, 0.7], 1e-5)
            .unwrap()
    };
    let vector_norm = || {
        BatchNorm1d::new(vec![2.0, 0.5], vec![0.3, -0.2], vec![0.1, 0.4], vec![1.5, 0.7], 1e-5)
            .unwrap()
    };
    let linear =
        |w: f64| Linear::new(relprop::nalgebra::dmatrix![w, 1.0; -0.5, 0.7], None).unwrap();
    let models = [
        Sequential::builder()
            .input([3, 2, 2])
            .layer(conv_of(3))
            .layer(Dropout::default())
            .layer(Identity)
            .layer(norm())
            .layer(Relu),
        Sequential::builder()
            .layer(linear(1.0))
            .layer(Dropout::default())
            .layer(vector_norm())
            .layer(Relu)
            .layer(linear(2.0)),
        Sequential::builder().layer(vector_norm()).layer(Identity).layer(linear(2.0)),
        Sequential::builder()
            .input([3, 1, 1])
            .layer(conv_of(3))
            .layer(Flatten)
            .layer(vector_norm()),
        Sequential::builder().input([2, 2, 2]).layer(
            Residual::new([
                Sequential::builder().layer(conv_of(2)).layer(Identity).layer(norm()),
                Sequential::builder(),
            ])
            .unwrap(),
        ),
    ];
    for model in models {
        let model = model.build().unwrap();
        let (merged, what) = model.canonize().unwrap();
        assert_eq!(what.len(), 1, "{model}");
        assert!(!merged.layers().iter().any(|layer| layer.kind().starts_with("BatchNorm")));
        let x = relprop::nalgebra::DVector::from_fn(model.inputs(), |i, _| i as f64 * 0.3 - 0.8);
        assert!((merged.forward(&x).unwrap() - model.forward(&x).unwrap()).amax() < 1e-12);
    }
}

/// An output whose window only contains padding has no input that could get its bias.
#[test]
fn a_bias_that_no_input_can_take_is_a_sink() {
    let conv = Conv2d::new([1, 1, 1, 1], vec![2.0], vec![0.5]).unwrap().padding(1);
    let model = Sequential::builder().input([1, 1, 1]).layer(conv).layer(Flatten);
    let model =
        model.layer(Linear::new(DMatrix::from_element(1, 9, 1.0), None).unwrap()).build().unwrap();
    // The output at the pixel is 2 x + 0.5, and the eight around it are 0.5.
    let x = relprop::nalgebra::DVector::from_element(1, 3.0);
    for rule in [&Lrp0::default().with_bias(BiasMode::Distribute) as &dyn RelevanceRule<f64>] {
        for order in ORDERS {
            let explanation =
                model.explainer(rule).unwrap().accumulation(order).explain(&x).unwrap();
            assert!((explanation.output()[0] - 10.5).abs() < 1e-12);
            assert!((explanation.relevance(0).unwrap()[0] - 6.5).abs() < 1e-12);
            let ledger = explanation.ledger(0).unwrap();
            assert!(
                (ledger.total(Cause::Bias) - 4.0).abs() < 1e-12 && ledger.imbalance() < 1e-15,
                "{ledger}"
            );
        }
    }
}

#[test]
fn pass_requires_inputs_and_outputs_of_one_shape() {
    let same_size = Conv2d::new([4, 1, 2, 2], vec![1.0; 16], None).unwrap().stride(2);
    let model = Sequential::builder().input([1, 4, 4]).layer(same_size).build().unwrap();
    let error = model.explainer(Rule::Pass).unwrap_err().to_string();
    assert_eq!(
        error,
        "Pass cannot be used at layer 0 (Conv2d): its input shape 1 x 4 x 4 differs from its \
         output shape 4 x 2 x 2"
    );
}

/// With the fast algorithm for products, rounding errors are relative to all the inputs in a patch.
/// Here, large inputs meet weights that a rule sets to zero, so that the totals are much smaller
/// than the inputs. The results in f32 are still close to f64.
#[test]
fn small_totals_beside_large_inputs_keep_their_digits() {
    fn conv<T: Scalar>(seed: u64, sign_of_first: f64, pruned: bool) -> Conv2d<T> {
        let mut state = seed;
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        let weights = (0..16 * 16 * 9)
            .map(|k| {
                let w = next();
                let w = if pruned && w.abs() < 0.5 { 0.0 } else { w };
                // Optionally, the weights of the first two input channels have the same sign.
                T::from_f64(f64::from(
                    (if k / 9 % 16 < 2 && sign_of_first != 0.0 {
                        sign_of_first * w.abs()
                    } else {
                        w
                    }) as f32,
                ))
            })
            .collect::<Vec<_>>();
        let bias =
            (0..16).map(|_| T::from_f64(f64::from(next() as f32) * 0.01)).collect::<Vec<_>>();
        Conv2d::new([16, 16, 3, 3], weights, bias).unwrap().padding(1)
    }
    fn model<T: Scalar>(sign: f64, relu: bool, pruned: bool) -> Sequential<T> {
        let builder = Sequential::builder().input([16, 8, 8]).layer(conv::<T>(1, sign, pruned));
        let builder = if relu { builder.layer(Relu) } else { builder };
        let head = DMatrix::from_fn(2, 16 * 64, |j, i| {
            T::from_f64(f64::from((((i + 3 * j) * 7919) % 31) as f32 / 15.0 - 1.0))
        });
        builder
            .layer(conv::<T>(2, 0.0, false))
            .layer(Flatten)
            .layer(Linear::new(head, None).unwrap())
            .build()
            .unwrap()
    }
    fn rules_of<T: Scalar>() -> Vec<Box<dyn RelevanceRule<T>>> {
        let mut rules: Vec<Box<dyn RelevanceRule<T>>> = vec![
            Box::new(Composite::epsilon_plus()),
            Box::new(Composite::epsilon_plus_flat()),
            Box::new(Composite::epsilon_alpha2_beta1()),
            Box::new(Composite::new(Epsilon::default()).first(Rule::AlphaBeta)),
            Box::new(Composite::new(Epsilon::default()).first(Rule::Gamma)),
            Box::new(Composite::new(Rule::Flat).first(Rule::ZPlus)),
        ];
        rules.extend(
            [Rule::ZPlus, Rule::WSquare, Rule::AbsLrp]
                .map(|rule| Box::new(rule) as Box<dyn RelevanceRule<T>>),
        );
        rules
    }
    let usual = [
        (-1.0, false, 1e4),
        (-1.0, true, 1e4),
        (1.0, false, 1e4),
        (0.0, true, 1.0),
        (0.0, false, 1e4),
        (0.0, true, 1e4),
        (0.0, false, 1e6),
    ];
    let cases = usual
        .into_iter()
        .flat_map(|case| [(case, false, false), (case, true, false), (case, false, true)]);
    for ((sign, relu, large), pruned, at_a_pixel) in cases {
        let (single, double) = (model::<f32>(sign, relu, pruned), model::<f64>(sign, relu, pruned));
        // Four of five values are zeros.
        let value = |i: usize| {
            // The first two channels are large, or one pixel in all channels.
            let size = if (at_a_pixel && i % 64 == 27) || (!at_a_pixel && i / 64 < 2) {
                large
            } else {
                1.0
            };
            if (i * 7919) % 101 < 79 {
                0.0
            } else {
                (((i * 31) % 89) as f32 / 89.0 * size as f32).abs()
            }
        };
        let x = relprop::nalgebra::DVector::from_fn(16 * 64, |i, _| value(i));
        let x64 = x.map(f64::from);
        for (rule, rule64) in rules_of::<f32>().iter().zip(&rules_of::<f64>()) {
            for order in ORDERS {
                let ours = single.explainer(rule).unwrap().accumulation(order).explain(&x).unwrap();
                let exact =
                    double.explainer(rule64).unwrap().accumulation(order).explain(&x64).unwrap();
                let scale = f64::from(ours.exponent() - exact.exponent()).exp2();
                let largest = exact.shares().amax();
                let off = (ours.shares().map(|v| f64::from(v) * scale) - exact.shares()).amax();
                // If the inputs get no relevance at all in f64, they must get none in f32.
                let error = if largest == 0.0 { off } else { off / largest };
                let of = format!(
                    "{} {order:?}, sign {sign}, large {large}, ReLU {relu}, pruned {pruned}, \
                     pixel {at_a_pixel}",
                    rule.name()
                );
                println!("{error:8.1e} {of}");
                assert!(error < 1e-4, "{of}: {error:e}");
            }
        }
    }
}
