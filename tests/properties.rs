//! Properties of every network: conservation, invariances, and agreement between the orders of
//! accumulation.

use crate::common::{self, Dense, Net};
use proptest::prelude::*;
use relprop::nalgebra::DMatrix;
use relprop::rule::{Outside, Stabilizer};
use relprop::{
    Accumulation, AlphaBeta, BiasMode, Cause, Composite, Epsilon, Explanation, Flat, Gamma,
    LedgerEntry, Norm, RelevanceRule, Rule, Scalar, ZBox, ZPlus,
};

fn explain<T: Scalar>(
    net: &Net,
    rule: impl RelevanceRule<T>,
    order: Accumulation,
) -> Explanation<T> {
    net.model::<T>().explainer(rule).unwrap().accumulation(order).explain(&net.sample()).unwrap()
}

fn lrp_0(net: &Net) -> Explanation<f64> {
    explain(net, Rule::Lrp0, Accumulation::Forward)
}

/// A stabilizer that is negligible against every total, for rules that require one.
fn nothing() -> Stabilizer {
    Stabilizer::Absolute(1e-200)
}

/// The relevances S · f, of shape inputs x outputs.
fn relevances(net: &Net) -> DMatrix<f64> {
    let explanation = lrp_0(net);
    DMatrix::from_fn(net.x.len(), explanation.output().len(), |i, k| {
        explanation.shares()[(i, k)] * explanation.output()[k]
    })
}

/// Whether no total is so small that rounding determines it. A total of exactly 0 is fine, because
/// it has nothing to distribute.
fn clear(net: &Net, smallest: f64) -> bool {
    net.totals().iter().flatten().all(|&t| t == 0.0 || t.abs() >= smallest)
}

fn close(a: &DMatrix<f64>, b: &DMatrix<f64>, tolerance: f64) -> bool {
    (a - b).amax() <= tolerance * a.amax().max(b.amax())
}

/// `∂f_k/∂x_i · x_i` by the chain rule, one output after another.
fn gradient_times_input(net: &Net) -> DMatrix<f64> {
    let totals = net.totals();
    let outputs = totals[totals.len() - 1].len();
    let mut result = DMatrix::zeros(net.x.len(), outputs);
    for k in 0..outputs {
        let mut gradient = vec![0.0; outputs];
        gradient[k] = 1.0;
        for (l, layer) in net.layers.iter().enumerate().rev() {
            let mut below = vec![0.0; layer.weights[0].len()];
            for (j, row) in layer.weights.iter().enumerate() {
                for (i, w) in row.iter().enumerate() {
                    let active = l == 0 || !net.relu || totals[l - 1][i] > 0.0;
                    below[i] += if active { w * gradient[j] } else { 0.0 };
                }
            }
            gradient = below;
        }
        for (i, x) in net.x.iter().enumerate() {
            result[(i, k)] = gradient[i] * x;
        }
    }
    result
}

proptest! {
    #![proptest_config(common::config(300))]

    #[test]
    fn the_ledger_closes(net in common::net(true, true), formula in common::formula(1e-3), reverse in any::<bool>()) {
        let order = if reverse { Accumulation::Reverse } else { Accumulation::Forward };
        let double = explain::<f64>(&net, formula.rule(), order);
        let single = explain::<f32>(&net, formula.rule(), order);
        for k in 0..double.output().len() {
            prop_assert!(double.ledger(k).unwrap().imbalance() <= 1e-12);
            prop_assert!(single.ledger(k).unwrap().imbalance() <= 1e-5);
        }
    }

    #[test]
    fn orders_agree(net in common::net(true, true), formula in common::formula(1e-3)) {
        let forward = explain::<f64>(&net, formula.rule(), Accumulation::Forward);
        let reverse = explain::<f64>(&net, formula.rule(), Accumulation::Reverse);
        prop_assert_eq!(forward.output(), reverse.output());
        // With the sinks, each column sums to 1, so 1 is the scale of the shares even if the inputs
        // get almost nothing.
        let largest = forward.shares().amax().max(1.0);
        prop_assert!((forward.shares() - reverse.shares()).amax() <= 1e-10 * largest);
    }

    #[test]
    fn lrp_0_is_gradient_times_input(net in common::net(true, true)) {
        prop_assume!(clear(&net, 1e-9));
        prop_assert!(close(&relevances(&net), &gradient_times_input(&net), 1e-9));
    }

    #[test]
    fn what_lrp_0_gives_to_biases_is_their_gradient_times_them(net in common::net(true, true)) {
        prop_assume!(clear(&net, 1e-9));
        let explanation = lrp_0(&net);
        for (linear, layer) in net.layers.iter().enumerate() {
            // Replace the biases by an input of value 1 with the biases as weights.
            let Some(bias) = &layer.bias else { continue };
            let mut above = Net { layers: net.layers[linear..].to_vec(), relu: net.relu, x: net.activations()[linear].clone() };
            above.layers[0].weights.iter_mut().zip(bias).for_each(|(row, &b)| row.push(b));
            above.layers[0].bias = None;
            above.x.push(1.0);
            let expected = gradient_times_input(&above);
            for k in 0..explanation.output().len() {
                let ledger = explanation.ledger(k).unwrap();
                let of_layer = |e: &&LedgerEntry| e.layer() == net.index(linear) && e.cause() == Cause::Bias;
                let found: f64 = ledger.entries().iter().filter(of_layer).map(LedgerEntry::relevance).sum();
                let largest = relevances(&net).amax().max(expected.amax());
                // The relevance of a total of exactly 0 is lost, which the gradient does not show.
                prop_assume!(ledger.total(Cause::Dead) == 0.0);
                prop_assert!((found - expected[(above.x.len() - 1, k)]).abs() <= 1e-9 * largest);
            }
        }
    }

    #[test]
    fn scaling_the_sample_leaves_the_shares(net in common::net(false, true), c in 0.1..10.0_f64) {
        prop_assume!(clear(&net, 1e-6));
        let scaled = Net { x: net.x.iter().map(|v| c * v).collect(), ..net.clone() };
        let rules: [Box<dyn RelevanceRule<f64>>; 4] = [
            Box::new(Rule::Lrp0),
            Box::new(Gamma::default().with_stabilizer(nothing()).unwrap()),
            Box::new(ZPlus::default().with_stabilizer(nothing()).unwrap()),
            Box::new(AlphaBeta::default().with_stabilizer(nothing()).unwrap()),
        ];
        for rule in &rules {
            let [before, after] = [&net, &scaled].map(|net| explain(net, rule, Accumulation::Optimal).shares().clone());
            prop_assert!(close(&before, &after, 1e-8), "{}", rule.name());
        }
    }

    #[test]
    fn rules_meet_where_they_should(net in common::net(true, true)) {
        let shares = |rule: &dyn RelevanceRule<f64>| explain(&net, rule, Accumulation::Optimal).shares().clone();
        let wide = Stabilizer::Absolute(1e-2);
        let epsilon = |bias| Epsilon::new(1e-2).unwrap().with_bias(bias);
        let same = |a: &dyn RelevanceRule<f64>, b: &dyn RelevanceRule<f64>| close(&shares(a), &shares(b), 1e-9);
        prop_assert!(same(&AlphaBeta::new(1.0, 0.0).unwrap(), &ZPlus::default()));
        prop_assert!(same(&ZBox::new(0.0, 0.0).unwrap().with_outside(Outside::Report).with_stabilizer(wide).unwrap(), &epsilon(BiasMode::Ignore)));
        prop_assert!(same(&Norm, &Epsilon::default()));
        // Gamma loses the relevance of an output of exactly 0, and Epsilon divides it by the
        // stabilizer.
        if net.totals().iter().flatten().all(|&total| total != 0.0) {
            prop_assert!(same(&Gamma::new(0.0).unwrap().with_stabilizer(wide).unwrap(), &epsilon(BiasMode::Absorb)));
        }
        // If all outputs are positive, only positive contributions remain with a large gamma.
        let first = Net { layers: net.layers[..1].to_vec(), relu: false, x: net.x.clone() };
        let large = explain::<f64>(&first, Gamma::new(1e12).unwrap().with_stabilizer(nothing()).unwrap(), Accumulation::Optimal);
        let plus = explain::<f64>(&first, ZPlus::default().with_stabilizer(nothing()).unwrap(), Accumulation::Optimal);
        for (j, &total) in first.totals()[0].iter().enumerate().filter(|(_, total)| **total > 1e-3) {
            let error = (large.shares().column(j) - plus.shares().column(j)).amax();
            prop_assert!(error <= 1e-6, "{error:e} where y = {total}");
        }
    }

    #[test]
    fn box_and_flat_conserve(net in common::net(true, true), low in -2.0..0.0, high in 0.0..2.0_f64) {
        let sums = |rule: &dyn RelevanceRule<f64>| -> Vec<f64> {
            explain(&net, rule, Accumulation::Optimal).shares().row_sum().iter().copied().collect()
        };
        prop_assert!(sums(&Flat).iter().all(|sum| (sum - 1.0).abs() < 1e-12));
        let first = Composite::new(Flat).first(ZBox::new(low, high).unwrap().with_outside(Outside::Report).with_stabilizer(nothing()).unwrap());
        // Within the box, no numerator is negative, so a total of 0 means that all are 0.
        let inside = net.x.iter().all(|&x| low <= x && x <= high) && net.layers[0].weights.iter().all(|w| w.iter().any(|&w| w != 0.0));
        prop_assert!(!inside || low >= high || sums(&first).iter().all(|sum| (sum - 1.0).abs() < 1e-9));
    }

    #[test]
    fn every_ready_rule_closes_its_ledger(net in common::net(true, true)) {
        for rule in Rule::ALL.into_iter().filter(|&rule| rule != Rule::Pass) {
            let explanation = explain::<f64>(&net, rule, Accumulation::Optimal);
            for k in 0..explanation.output().len() {
                prop_assert!(explanation.ledger(k).unwrap().imbalance() <= 1e-12, "{rule:?}");
            }
        }
    }

    #[test]
    fn permuting_the_inputs_permutes_the_rows(
        (net, order) in common::net(true, true).prop_flat_map(|net| {
            let order: Vec<usize> = (0..net.x.len()).collect();
            (Just(net), Just(order).prop_shuffle())
        }),
        formula in common::formula(1e-3),
    ) {
        let pick = |values: &Vec<f64>| -> Vec<f64> { order.iter().map(|&i| values[i]).collect() };
        let mut permuted = Net { x: pick(&net.x), ..net.clone() };
        permuted.layers[0].weights = net.layers[0].weights.iter().map(pick).collect();
        let shares = explain::<f64>(&net, formula.rule(), Accumulation::Forward).shares().clone();
        let found = explain::<f64>(&permuted, formula.rule(), Accumulation::Forward).shares().clone();
        let largest = shares.amax().max(1.0);
        for (row, &i) in order.iter().enumerate() {
            prop_assert!((found.row(row) - shares.row(i)).amax() <= 1e-10 * largest);
        }
    }

    #[test]
    fn relevance_is_linear_in_the_last_layer(
        (net, extra) in common::net(true, true).prop_flat_map(|net| {
            let last = &net.layers[net.layers.len() - 1].weights;
            let extra = common::matrix(last.len(), last[0].len());
            (Just(net), extra)
        }),
    ) {
        let mut net = net;
        let last = net.layers.len() - 1;
        net.layers[last].bias = None;
        let first = net.layers[last].weights.clone();
        let sum = first.iter().zip(&extra).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect());
        net.layers[last].weights = first.iter().chain(&extra).cloned().chain(sum).collect();
        prop_assume!(clear(&net, 1e-9));
        let (size, all) = (first.len(), relevances(&net));
        for k in 0..size {
            let error = (all.column(k) + all.column(size + k) - all.column(2 * size + k)).amax();
            prop_assert!(error <= 1e-9 * all.amax());
        }
    }

    #[test]
    fn lrp_0_does_not_see_how_a_linear_map_is_split(
        (net, first) in common::net(false, true).prop_flat_map(|net| {
            let middle = net.x.len();
            (Just(net), (1..=12_usize).prop_flat_map(move |inputs| (common::matrix(middle, inputs), common::vector(inputs))))
        }),
    ) {
        // Compare two linear maps without an activation between them with their product.
        let (before, x) = first;
        let head = &net.layers[0].weights;
        let product = head
            .iter()
            .map(|row| (0..x.len()).map(|i| row.iter().zip(&before).map(|(w, b)| w * b[i]).sum()).collect())
            .collect();
        let layer = |weights| Dense { weights, bias: None };
        let split = Net { layers: vec![layer(before), layer(head.clone())], relu: false, x: x.clone() };
        let merged = Net { layers: vec![layer(product)], relu: false, x };
        prop_assume!(clear(&split, 1e-6));
        prop_assert!(close(&relevances(&split), &relevances(&merged), 1e-8));
    }
}

/// Terms that cancel between the two maps do not occur in their product.
#[test]
fn gamma_and_z_plus_see_how_a_linear_map_is_split() {
    let layer = |weights| Dense { weights, bias: None };
    let split = Net {
        layers: vec![layer(vec![vec![1.0, -0.5], vec![-0.5, 1.0]]), layer(vec![vec![1.0, 0.5]])],
        relu: false,
        x: vec![1.0, 1.0],
    };
    let merged = Net { layers: vec![layer(vec![vec![0.75, 0.0]])], ..split.clone() };
    let shares =
        |net: &Net, rule: Rule| explain::<f64>(net, rule, Accumulation::Optimal).shares().clone();
    assert!((shares(&split, Rule::Lrp0) - shares(&merged, Rule::Lrp0)).amax() < 1e-12);
    for rule in [Rule::Gamma, Rule::ZPlus] {
        assert!((shares(&split, rule) - shares(&merged, rule)).amax() > 0.1, "{rule:?}");
    }
}
