//! With a workspace, only the first explanation allocates memory.

use relprop::nalgebra::{DMatrix, DVector};
use relprop::{
    Accumulation, BiasMode, Epsilon, Linear, Relative, RelevanceRule, Relu, Sequential, Softmax,
    Targets, Workspace,
};

fn model(sizes: &[usize]) -> Sequential<f32> {
    let mut builder = Sequential::builder();
    for pair in sizes.windows(2) {
        let weights = DMatrix::from_fn(pair[1], pair[0], |j, i| {
            ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0
        });
        builder = builder
            .layer(Linear::new(weights, DVector::from_element(pair[1], 0.05)).unwrap())
            .layer(Relu);
    }
    builder.layer(Softmax).build().unwrap()
}

/// Samples with more or fewer zeros than the first one.
fn sample(index: usize, inputs: usize) -> Vec<f32> {
    (0..inputs)
        .map(
            |i| {
                if i % (1 + (index * 5 + 3) % 4) == 0 {
                    ((i + index) % 7) as f32 - 2.5
                } else {
                    0.0
                }
            },
        )
        .collect()
}

#[test]
fn the_second_explanation_allocates_nothing() {
    let rules: [Box<dyn RelevanceRule<f32>>; 3] = [
        Box::new(Epsilon::default()),
        Box::new(Epsilon::relative_to_rms(0.1).unwrap().with_bias(BiasMode::Distribute)),
        Box::new(Relative::default()),
    ];
    for sizes in [vec![50, 120, 9, 130, 40], vec![784, 320, 120, 40, 10], vec![7, 5]] {
        let model = model(&sizes);
        let samples: Vec<_> = (0..6).map(|index| sample(index, sizes[0])).collect();
        for rule in &rules {
            let outputs = model.outputs();
            for targets in
                [
                    Targets::All,
                    Targets::Predicted,
                    Targets::Outputs(vec![2, 0]),
                    Targets::Weighted(DMatrix::from_fn(outputs, 2, |k, w| {
                        if k == w { 1.0 } else { -0.1 }
                    })),
                ]
            {
                let explainer = model.explainer(rule).unwrap().targets(targets.clone()).unwrap();
                for order in [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse] {
                    let explainer = explainer.clone().accumulation(order);
                    let mut workspace = Workspace::default();
                    explainer.explain_into(&samples[0], &mut workspace).unwrap();
                    let counted = allocation_counter::measure(|| {
                        for sample in &samples[1..] {
                            explainer.explain_into(sample, &mut workspace).unwrap();
                        }
                    });
                    assert_eq!(
                        counted.count_total,
                        0,
                        "{sizes:?} {} {targets:?} {order:?}",
                        rule.name()
                    );
                }
            }
        }
    }
}

/// Checks the counter itself: without a workspace, an explanation allocates.
#[test]
fn without_a_workspace_it_allocates() {
    let explainer = model(&[5, 4, 3]).explainer(Epsilon::default()).unwrap();
    let x = sample(0, 5);
    assert!(
        allocation_counter::measure(|| drop(explainer.explain_slice(&x).unwrap())).count_total > 0
    );
}
