//! What holds for every network: conservation, invariances, and the agreement of the orders of accumulation.

mod common;

use common::{Dense, Net};
use proptest::prelude::*;
use relprop::nalgebra::DMatrix;
use relprop::{Accumulation, Epsilon, Explanation, RelevanceRule, Scalar};

fn explain<T: Scalar>(net: &Net, rule: impl RelevanceRule<T>, order: Accumulation) -> Explanation<T> {
    net.model::<T>().explainer(rule).unwrap().accumulation(order).explain(&net.sample()).unwrap()
}

/// An epsilon that vanishes against every total.
fn lrp_0(net: &Net) -> Explanation<f64> {
    explain(net, Epsilon::new(1e-200).unwrap(), Accumulation::Forward)
}

/// S · f, inputs x outputs.
fn relevances(net: &Net) -> DMatrix<f64> {
    let explanation = lrp_0(net);
    DMatrix::from_fn(net.x.len(), explanation.output().len(), |i, k| explanation.shares()[(i, k)] * explanation.output()[k])
}

/// No total is so small that rounding decides it; one that is exactly 0 has nothing to share.
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
        // The columns sum to 1 with the sinks, so that 1 is a scale of the shares where the inputs got next to nothing.
        let largest = forward.shares().amax().max(1.0);
        prop_assert!((forward.shares() - reverse.shares()).amax() <= 1e-10 * largest);
    }

    #[test]
    fn lrp_0_is_gradient_times_input(net in common::net(true, true)) {
        prop_assume!(clear(&net, 1e-9));
        prop_assert!(close(&relevances(&net), &gradient_times_input(&net), 1e-9));
    }

    #[test]
    fn scaling_the_sample_leaves_the_shares(net in common::net(false, true), c in 0.1..10.0_f64) {
        prop_assume!(clear(&net, 1e-6));
        let scaled = Net { x: net.x.iter().map(|v| c * v).collect(), ..net.clone() };
        prop_assert!(close(lrp_0(&net).shares(), lrp_0(&scaled).shares(), 1e-8));
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
        // Two linear maps without an activation between them, and their product.
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
