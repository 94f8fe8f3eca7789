//! The inside of a network: units, paths, weights, and rules that share a pass.

use crate::common::{self, Net};
use proptest::prelude::*;
use relprop::nalgebra::{DMatrix, DVector, dmatrix, dvector};
use relprop::{
    Error, Explainer, Linear, Path, RelevanceRule, Relu, Rule, Sequential, Softmax, Targets, Trace,
};

fn explainer(net: &Net, rule: impl RelevanceRule<f64>, targets: usize) -> Explainer<f64> {
    let model = net.model::<f64>();
    let outputs = model.outputs();
    let targets = match targets {
        0 => Targets::All,
        1 => Targets::Predicted,
        2 => Targets::Outputs(vec![outputs - 1, 0]),
        _ => {
            Targets::Weighted(DMatrix::from_fn(outputs, 2, |k, w| if k == w { 1.0 } else { -0.5 }))
        }
    };
    model.explainer(rule).unwrap().targets(targets).unwrap()
}

fn close(a: &DMatrix<f64>, b: &DMatrix<f64>, scale: f64) {
    assert_eq!(a.shape(), b.shape());
    assert!((a - b).amax() <= 1e-9 * scale.max(a.amax()), "{a} {b}");
}

fn column(v: DVector<f64>) -> DMatrix<f64> {
    DMatrix::from_vec(v.len(), 1, v.data.into())
}

/// All paths, from the share matrices.
fn all_paths(factors: &[DMatrix<f64>]) -> Vec<Path<f64>> {
    let mut paths: Vec<Path<f64>> =
        (0..factors[0].nrows()).map(|i| Path { units: vec![i], relevance: 1.0 }).collect();
    for factor in factors {
        let longer = |path: &Path<f64>| -> Vec<Path<f64>> {
            let row = factor.row(path.units[path.units.len() - 1]).into_owned();
            let step = |(j, share): (usize, &f64)| Path {
                units: path.units.iter().copied().chain([j]).collect(),
                relevance: path.relevance * share,
            };
            row.iter().enumerate().filter(|(_, share)| **share != 0.0).map(step).collect()
        };
        paths = paths.iter().flat_map(longer).collect();
    }
    paths.retain(|path| path.relevance != 0.0);
    paths.sort_by(|a, b| b.relevance.abs().total_cmp(&a.relevance.abs()));
    paths
}

proptest! {
    #![proptest_config(common::config(300))]

    #[test]
    fn a_trace_is_the_network_cut_at_every_layer(net in common::net(true, true), formula in common::formula(1e-2), targets in 0..4_usize) {
        let explainer = explainer(&net, formula.rule::<f64>(), targets);
        let trace = explainer.trace(&net.sample()).unwrap();
        let whole = explainer.explain(&net.sample()).unwrap();
        prop_assert_eq!(trace.explanation().output(), whole.output());
        let size = 1.0 + whole.output().amax();
        close(trace.explanation().shares(), whole.shares(), size);
        close(&trace.shares(0).unwrap(), whole.shares(), size);
        for linear in 0..net.layers.len() {
            // Treat the rest of the network as a separate network. The units after a ReLU are those
            // before it.
            let layer = net.index(linear);
            let rest = Net { layers: net.layers[linear..].to_vec(), relu: net.relu, x: net.activations()[linear].clone() };
            let rest = self::explainer(&rest, formula.rule::<f64>(), targets).explain(&rest.sample()).unwrap();
            close(&trace.shares(layer).unwrap(), rest.shares(), size * rest.shares().amax());
            prop_assert_eq!(trace.shares(layer).unwrap(), trace.shares(layer.saturating_sub(usize::from(linear > 0))).unwrap());

            for target in trace.explanation().targets() {
                let relevance = trace.relevance(layer, target).unwrap();
                let scale = size * (1.0 + relevance.amax());
                // Compare all units at once with one after another.
                let conditional = trace.prefix(layer).unwrap() * DMatrix::from_diagonal(&relevance);
                let all: Vec<usize> = (0..relevance.len()).collect();
                close(&column(conditional.column_sum()), &column(trace.relevance(0, target).unwrap()), scale * conditional.amax());
                close(&column(trace.through(layer, &all, target).unwrap()), &column(trace.relevance(0, target).unwrap()), scale * conditional.amax());
                for unit in 0..relevance.len() {
                    let through = trace.through(layer, &[unit], target).unwrap();
                    close(&column(through), &conditional.columns(unit, 1).into_owned(), scale * conditional.amax());
                }
                // The relevance through a layer's weights is the relevance of its inputs.
                let weights = trace.of_weights(layer, target).unwrap();
                prop_assert_eq!(weights.shape(), (net.layers[linear].weights.len(), relevance.len()));
                close(&column(weights.row_sum().transpose()), &column(relevance), scale * weights.amax());
            }
        }
    }

    #[test]
    fn the_strongest_paths_are_found(
        net in common::net(true, true).prop_filter("few paths", |net| {
            net.layers.iter().map(|layer| layer.weights.len()).product::<usize>() * net.x.len() <= 5000
        }),
        formula in common::formula(1e-2),
        count in 0..8_usize,
    ) {
        let explainer = net.model::<f64>().explainer(formula.rule::<f64>()).unwrap();
        let trace = explainer.trace(&net.sample()).unwrap();
        let factors: Vec<_> = (0..net.layers.len())
            .map(|linear| {
                let one = Net { layers: vec![net.layers[linear].clone()], relu: false, x: net.activations()[linear].clone() };
                one.model::<f64>().explain(&one.sample(), formula.rule::<f64>()).unwrap().shares().clone()
            })
            .collect();
        for target in 0..trace.explanation().output().len() {
            let mut last = factors.clone();
            let end = last.len() - 1;
            last[end] = factors[end].columns(target, 1) * trace.explanation().output()[target];
            let expected = all_paths(&last);
            let found = trace.paths(target, count).unwrap();
            prop_assert_eq!(found.len(), expected.len().min(count));
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert!((found.relevance.abs() - expected.relevance.abs()).abs() <= 1e-9 * expected.relevance.abs());
                // Equal paths can come in any order, so compare the relevance of the path itself.
                let worth: f64 = found.units.windows(2).zip(&factors).map(|(pair, factor)| factor[(pair[0], pair[1])]).product();
                prop_assert!((worth * trace.explanation().output()[target] - found.relevance).abs() <= 1e-9 * found.relevance.abs());
            }
        }
    }

    #[test]
    fn a_sweep_is_its_explainers(net in common::net(true, true), formulas in prop::collection::vec(common::formula(1e-2), 0..4)) {
        let rules: Vec<_> = formulas.iter().map(|formula| formula.rule::<f64>()).collect();
        let sweep = net.model::<f64>().sweep(&rules).unwrap();
        for sweep in [sweep.clone(), sweep.targets(Targets::Predicted).unwrap()] {
            let explanations = sweep.explain(&net.sample()).unwrap();
            prop_assert_eq!(explanations.len(), rules.len());
            for (explainer, explanation) in sweep.explainers().iter().zip(&explanations) {
                prop_assert_eq!(&explainer.explain(&net.sample()).unwrap(), explanation);
            }
        }
    }

    #[test]
    fn a_contrast_is_a_difference(net in common::net(true, true), formula in common::formula(1e-2)) {
        let explanation = net.model::<f64>().explain(&net.sample(), formula.rule::<f64>()).unwrap();
        let last = explanation.output().len() - 1;
        let difference = explanation.relevance(last).unwrap() - explanation.relevance(0).unwrap();
        prop_assert_eq!(explanation.contrast(last, 0).unwrap(), difference);
    }
}

fn trace() -> Trace<f64> {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 0.0; 1.0, 1.0; 0.0, -1.0], None).unwrap())
        .layer(Relu)
        .layer(Linear::new(dmatrix![1.0, 2.0, 5.0; 0.0, 1.0, 0.0], None).unwrap())
        .layer(Softmax)
        .build()
        .unwrap();
    model.explainer(Rule::Lrp0).unwrap().trace(&dvector![1.0, 2.0]).unwrap()
}

#[test]
fn layers_count_as_the_model_counts_them() {
    let trace = trace();
    assert_eq!(trace.relevance(0, 0).unwrap(), dvector![3.0, 4.0]);
    for layer in [1, 2] {
        assert_eq!(trace.relevance(layer, 0).unwrap(), dvector![1.0, 6.0, 0.0]);
    }
    for layer in [3, 4] {
        assert_eq!(trace.relevance(layer, 0).unwrap(), dvector![7.0, 0.0]);
        assert_eq!(trace.through(layer, &[0], 0).unwrap(), dvector![3.0, 4.0]);
        assert_eq!(trace.through(layer, &[1], 0).unwrap(), dvector![0.0, 0.0]);
    }
    assert_eq!(trace.of_weights(2, 0).unwrap(), dmatrix![1.0, 6.0, 0.0; 0.0, 0.0, 0.0]);
    assert_eq!(trace.top(2, 0, 1).unwrap()[0].input, 1);
    assert_eq!(trace.prefix(0).unwrap(), DMatrix::identity(2, 2));
    assert_eq!(trace.prefix(2).unwrap().column(1), dvector![1.0 / 3.0, 2.0 / 3.0]);
}

#[test]
fn missing_layers_and_units_are_errors() {
    let trace = trace();
    assert!(matches!(trace.relevance(5, 0), Err(Error::LayerOutOfRange { layer: 5, layers: 4 })));
    assert!(matches!(
        trace.relevance(0, 2),
        Err(Error::TargetOutOfRange { target: 2, outputs: 2 })
    ));
    assert!(matches!(
        trace.through(2, &[3], 0),
        Err(Error::UnitOutOfRange { unit: 3, layer: 2, units: 3, .. })
    ));
    for layer in [1, 3, 4] {
        assert!(matches!(trace.of_weights(layer, 0), Err(Error::NotLinear { .. })));
    }
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 2.0], None).unwrap())
        .build()
        .unwrap();
    let explainer = model.explainer(Rule::Epsilon).unwrap();
    assert!(matches!(explainer.trace(&dvector![1.0]), Err(Error::InputShape { .. })));
    assert!(matches!(explainer.trace(&dvector![1.0, f64::NAN]), Err(Error::NonFiniteInput { .. })));
    let sweep = model.sweep([Rule::Epsilon]).unwrap();
    assert!(matches!(sweep.explain(&dvector![1.0]), Err(Error::InputShape { .. })));
    assert!(matches!(model.sweep([Rule::Pass]), Err(Error::Unsupported { .. })));
    assert!(model.sweep(Vec::<Rule>::new()).unwrap().explain(&dvector![1.0]).unwrap().is_empty());
}
