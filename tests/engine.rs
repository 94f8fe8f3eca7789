//! The engine: orders of accumulation, targets and batches change the cost of an explanation, but
//! not its result.

// Exact comparisons are between sums with the same terms in the same order.
#![allow(clippy::float_cmp)]

use crate::common::{self, Dense, Net};
use proptest::prelude::*;
use relprop::nalgebra::{DMatrix, DVector, dmatrix, dvector};
use relprop::{
    Accumulation, Error, Explainer, Explanation, Linear, Relu, Rule, Scalar, Sequential, Targets,
    Workspace,
};

/// A network of 1 to 8 linear layers with widths from 1 to 40, so that every order of accumulation
/// is the best for some networks.
fn chain() -> impl Strategy<Value = Net> {
    prop::collection::vec(prop_oneof![1..=4_usize, 5..=40_usize], 2..=9).prop_flat_map(|sizes| {
        let layers: Vec<_> = sizes
            .windows(2)
            .map(|pair| {
                let bias = prop::option::of(common::vector(pair[1]));
                (common::matrix(pair[1], pair[0]), bias)
                    .prop_map(|(weights, bias)| Dense { weights, bias })
            })
            .collect();
        (layers, common::vector(sizes[0])).prop_map(|(layers, x)| Net { layers, relu: true, x })
    })
}

/// All shares and sinks of an explanation, and the largest magnitude.
fn everything(explanation: &Explanation<f64>) -> (Vec<f64>, f64) {
    let scale = f64::from(explanation.exponent()).exp2();
    let mut values: Vec<f64> = explanation.shares().iter().map(|share| share * scale).collect();
    for target in explanation.targets() {
        values.extend(
            explanation.ledger(target).unwrap().entries().iter().map(relprop::LedgerEntry::share),
        );
    }
    let largest = values.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    (values, largest)
}

fn assert_close(a: &Explanation<f64>, b: &Explanation<f64>) {
    let ((a, largest), (b, _)) = (everything(a), everything(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() <= 1e-10 * largest, "{a} and {b}, the largest is {largest}");
    }
}

proptest! {
    #![proptest_config(common::config(1500))]

    #[test]
    fn the_order_changes_only_the_cost(net in chain(), formula in common::formula(1e-3), targets in 0..4_usize) {
        let model = net.model::<f64>();
        let outputs = model.outputs();
        let targets = match targets {
            0 => Targets::All,
            1 => Targets::Predicted,
            2 => Targets::Outputs(vec![outputs - 1, 0]),
            _ => Targets::Weighted(DMatrix::from_fn(outputs, 2, |k, w| if k == w { 1.0 } else { -0.5 })),
        };
        let explainer = model.explainer(formula.rule()).unwrap().targets(targets).unwrap();
        let optimal = explainer.explain(&net.sample()).unwrap();
        for order in [Accumulation::Forward, Accumulation::Reverse] {
            assert_close(&explainer.clone().accumulation(order).explain(&net.sample()).unwrap(), &optimal);
            prop_assert!(explainer.plan().multiply_adds(Accumulation::Optimal) <= explainer.plan().multiply_adds(order));
        }
    }
}

proptest! {
    #![proptest_config(common::config(200))]

    #[test]
    fn targets_are_columns_of_all(net in chain(), formula in common::formula(1e-3)) {
        let explainer = net.model::<f64>().explainer(formula.rule()).unwrap();
        let all = explainer.explain(&net.sample()).unwrap();
        let largest = all.shares().amax();
        let predicted = explainer.clone().targets(Targets::Predicted).unwrap().explain(&net.sample()).unwrap();
        prop_assert_eq!(predicted.targets().collect::<Vec<_>>(), [all.predicted()]);
        prop_assert!((predicted.shares().column(0) - all.shares().column(all.predicted())).amax() <= 1e-10 * largest);

        let last = all.output().len() - 1;
        let contrast = DVector::from_fn(last + 1, |k, _| f64::from(u8::from(k == 0)) - 0.5 * f64::from(u8::from(k == last)));
        let contrast = explainer.targets(contrast).unwrap().explain(&net.sample()).unwrap();
        let expected = all.relevance(0).unwrap() - 0.5 * all.relevance(last).unwrap();
        prop_assert!((contrast.relevance(0).unwrap() - expected).amax() <= 1e-10 * (largest * all.output().amax()));
        prop_assert!(contrast.ledger(0).unwrap().imbalance() < 1e-10);
    }

    #[test]
    fn a_batch_is_its_samples(
        (net, samples) in chain().prop_flat_map(|net| {
            let inputs = net.x.len();
            (Just(net), prop::collection::vec(common::vector(inputs), 0..20))
        }),
        split in 1..8_usize,
        order in prop_oneof![Just(Accumulation::Optimal), Just(Accumulation::Forward), Just(Accumulation::Reverse)],
        predicted in any::<bool>(),
        rule in prop::sample::select(Rule::ALL.to_vec()).prop_filter("fits every layer", |&rule| rule != Rule::Pass),
    ) {
        batch_is_its_samples::<f64>(&net, &samples, split, rule, order, if predicted { Targets::Predicted } else { Targets::All });
        batch_is_its_samples::<f32>(&net, &samples, split, rule, order, if predicted { Targets::Predicted } else { Targets::All });
    }
}

/// Compares the results bit for bit: as a whole, split, one by one, and on one thread or three.
fn batch_is_its_samples<T: Scalar>(
    net: &Net,
    samples: &[Vec<f64>],
    split: usize,
    rule: Rule,
    order: Accumulation,
    targets: Targets<T>,
) {
    let explainer =
        net.model::<T>().explainer(rule).unwrap().targets(targets).unwrap().accumulation(order);
    let flat: Vec<T> = samples.iter().flatten().map(|&v| T::from_f64(v)).collect();
    let inputs = net.x.len();
    let whole =
        explainer.explain_batch(&DMatrix::from_column_slice(inputs, samples.len(), &flat)).unwrap();
    assert_eq!(whole.len(), samples.len());
    let mut workspace = explainer.workspace();
    let mut split_up = Vec::new();
    for part in flat.chunks(split * inputs) {
        split_up.extend_from_slice(explainer.explain_batch_into(part, &mut workspace).unwrap());
    }
    assert_eq!(split_up, whole);
    for (sample, explanation) in flat.chunks(inputs).zip(&whole) {
        assert_eq!(&explainer.explain_slice(sample).unwrap(), explanation);
    }
    #[cfg(feature = "rayon")]
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let in_pool = pool.install(|| {
            explainer.explain_batch_into(&flat, &mut Workspace::default()).unwrap().to_vec()
        });
        assert_eq!(in_pool, whole);
    }
}

/// A model whose weights have no pattern.
fn model(sizes: &[usize]) -> Sequential<f32> {
    let mut builder = Sequential::builder();
    for (layer, pair) in sizes.windows(2).enumerate() {
        let weight =
            |j: usize, i: usize| ((i * 7919 + j * 104_729 + layer) % 1009) as f32 / 504.5 - 1.0;
        let scale = (3.0 / pair[0] as f32).sqrt();
        let weights = DMatrix::from_fn(pair[1], pair[0], |j, i| weight(j, i) * scale);
        builder =
            builder.layer(Linear::new(weights, DVector::from_element(pair[1], 0.05)).unwrap());
        if layer + 2 < sizes.len() {
            builder = builder.layer(Relu);
        }
    }
    builder.build().unwrap()
}

fn sample(index: usize, inputs: usize, zeros: usize) -> impl Iterator<Item = f32> {
    (0..inputs).map(move |i| {
        if (i + index).is_multiple_of(zeros) {
            ((i * 31 + index * 17) % 101) as f32 / 50.0 - 1.0
        } else {
            0.0
        }
    })
}

/// The layers are wide enough for every kernel and every grouping of columns: dense and sparse
/// samples, panels and slabs of columns.
#[test]
fn large_batches_are_their_samples() {
    for (sizes, targets) in [
        (vec![784, 320, 120, 10], Targets::All),
        (vec![300, 1100, 70, 40], Targets::Predicted),
        (vec![6, 1030, 200], Targets::All),
    ] {
        let explainer = model(&sizes).explainer(Rule::Epsilon).unwrap().targets(targets).unwrap();
        let flat: Vec<f32> =
            (0..101).flat_map(|index| sample(index, sizes[0], 1 + index % 7)).collect();
        for order in [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse] {
            let explainer = explainer.clone().accumulation(order);
            let mut workspace = explainer.workspace();
            let batch = explainer.explain_batch_into(&flat, &mut workspace).unwrap();
            let mut other = explainer.workspace();
            for (sample, explanation) in flat.chunks(sizes[0]).zip(batch) {
                assert_eq!(
                    explainer.explain_into(sample, &mut other).unwrap(),
                    explanation,
                    "{sizes:?} {order:?}"
                );
            }
        }
    }
}

#[test]
fn the_plan_of_a_bottleneck() {
    let explainer = model(&[784, 128, 32, 128, 784]).explainer(Rule::Epsilon).unwrap();
    let plan = explainer.plan();
    assert_eq!(plan.accumulation(), Accumulation::Optimal);
    assert_eq!(plan.bracketing(Accumulation::Optimal), "(A1 A2) (A3 A4)");
    assert_eq!(plan.bracketing(Accumulation::Forward), "((A1 A2) A3) A4");
    assert_eq!(plan.bracketing(Accumulation::Reverse), "A1 (A2 (A3 A4))");
    assert!(plan.multiply_adds(Accumulation::Optimal) <= 27e6);
    for order in [Accumulation::Forward, Accumulation::Reverse] {
        assert!((84e6..87e6).contains(&plan.multiply_adds(order)));
    }
    let text = plan.to_string();
    assert!(text.contains("26.4 M multiply-adds  (A1 A2) (A3 A4)"), "{text}");
    // With one target, there is no bottleneck: the pass is in reverse, and cheap.
    let one = explainer.targets(7).unwrap();
    assert_eq!(one.plan().bracketing(Accumulation::Optimal), "A1 (A2 (A3 (A4 T)))");
    assert!(one.plan().multiply_adds(Accumulation::Optimal) < 0.2e6);
}

#[test]
fn long_chains_are_planned() {
    let mut builder = Sequential::builder();
    for layer in 0..400 {
        let size = |layer: usize| if layer == 200 { 2 } else { 6 };
        let weights = DMatrix::from_fn(size(layer + 1), size(layer), |j, i| {
            if (i + j + layer) % 3 == 0 { 0.4 } else { -0.1 }
        });
        builder = builder.layer(Linear::new(weights, None).unwrap());
    }
    let model: Sequential<f64> = builder.build().unwrap();
    let x = dvector![1.0, 2.0, -1.0, 0.5, 0.0, 1.0];
    let explainer = model.explainer(relprop::Epsilon::new(1e-9).unwrap()).unwrap();
    let optimal = explainer.explain(&x).unwrap();
    for order in [Accumulation::Forward, Accumulation::Reverse] {
        assert!(
            explainer.plan().multiply_adds(Accumulation::Optimal)
                <= explainer.plan().multiply_adds(order)
        );
        assert_close(&explainer.clone().accumulation(order).explain(&x).unwrap(), &optimal);
    }
}

#[test]
fn invalid_targets_are_errors() {
    let model = model(&[3, 4, 5]);
    let explainer = || model.explainer(Rule::Epsilon).unwrap();
    assert!(matches!(
        explainer().targets(5),
        Err(Error::TargetOutOfRange { target: 5, outputs: 5 })
    ));
    assert!(matches!(explainer().targets(vec![]), Err(Error::InvalidParameter { .. })));
    assert!(matches!(
        explainer().targets(DVector::from_element(4, 1.0)),
        Err(Error::WeightingShape { found: 4, outputs: 5 })
    ));
    assert!(matches!(
        explainer().targets(DMatrix::zeros(5, 0)),
        Err(Error::InvalidParameter { .. })
    ));
    assert!(matches!(
        explainer().targets(DVector::from_element(5, f32::NAN)),
        Err(Error::InvalidParameter { .. })
    ));

    let explanation =
        explainer().targets([4, 1]).unwrap().explain(&dvector![1.0, 2.0, 3.0]).unwrap();
    assert_eq!(explanation.targets().collect::<Vec<_>>(), [4, 1]);
    assert_eq!(
        explanation.relevance(4).unwrap(),
        explanation.shares().column(0) * explanation.output()[4]
    );
    assert!(matches!(explanation.relevance(2), Err(Error::NotExplained { target: 2, .. })));
    assert!(matches!(
        explanation.ledger(5),
        Err(Error::TargetOutOfRange { target: 5, outputs: 5 })
    ));
}

#[test]
fn batches_that_do_not_fit() {
    let explainer = model(&[3, 4, 5]).explainer(Rule::Epsilon).unwrap();
    assert!(matches!(
        explainer.explain_batch(&DMatrix::zeros(4, 2)),
        Err(Error::InputShape { expected: 3, found: 4, .. })
    ));
    let mut workspace = explainer.workspace();
    assert!(matches!(
        explainer.explain_batch_into(&[0.0; 7], &mut workspace),
        Err(Error::BatchLength { inputs: 3, found: 7 })
    ));
    let mut samples = DMatrix::zeros(3, 40);
    samples[(1, 37)] = f32::NAN;
    assert!(matches!(
        explainer.explain_batch(&samples),
        Err(Error::NonFiniteInput { index: 1, sample: 37, .. })
    ));
    assert!(explainer.explain_batch(&DMatrix::zeros(3, 0)).unwrap().is_empty());
    // The workspace still works after an error.
    assert!(explainer.explain_into(&[f32::INFINITY, 0.0, 0.0], &mut workspace).is_err());
    let again = explainer.explain_into(&[1.0, 0.0, 2.0], &mut workspace).unwrap().clone();
    assert_eq!(again, explainer.explain(&dvector![1.0, 0.0, 2.0]).unwrap());
    assert!(matches!(
        again.relevance_into(0, &mut [0.0; 2]),
        Err(Error::SliceLength { expected: 3, found: 2, .. })
    ));
}

#[test]
fn a_workspace_serves_any_explainer() {
    let mut workspace = Workspace::default();
    for sizes in [vec![5, 9, 3], vec![20, 2], vec![5, 9, 3], vec![3, 30, 30, 4]] {
        let model = model(&sizes);
        for targets in [Targets::All, Targets::Predicted, Targets::Outputs(vec![1])] {
            let explainer = model.explainer(Rule::Epsilon).unwrap().targets(targets).unwrap();
            let x: Vec<f32> = sample(3, sizes[0], 2).collect();
            assert_eq!(
                explainer.explain_into(&x, &mut workspace).unwrap(),
                &explainer.explain_slice(&x).unwrap()
            );
        }
    }
}

#[test]
fn an_explainer_can_be_shared_between_threads() {
    fn shared<E: Send + Sync + Clone + 'static>() {}
    fn sent<W: Send + 'static>() {}
    shared::<Explainer<f32>>();
    sent::<Workspace<f32>>();
}

#[test]
fn a_contrast_says_what_tells_two_outputs_apart() {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 2.0; 3.0, 1.0], None).unwrap())
        .build()
        .unwrap();
    let explainer = model.explainer(Rule::Epsilon).unwrap().targets(dvector![-1.0, 1.0]).unwrap();
    let explanation = explainer.explain(&dvector![1.0, 2.0]).unwrap();
    // f_1 - f_0 = 5 - 5 = 0, but input 0 is evidence for output 1 and input 1 against it.
    assert!((explanation.relevance(0).unwrap() - dvector![2.0, -2.0]).amax() < 1e-5);
    let ledger = explanation.ledger(0).unwrap();
    assert!(ledger.output().abs() < 1e-12 && ledger.inputs().abs() < 1e-5);
    assert!(ledger.entries().iter().all(|entry| entry.share().is_finite()));
    assert!(explanation.to_string().contains("weighting"));
}
