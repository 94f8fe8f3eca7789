//! With a workspace, only the first explanation allocates memory.

use relprop::nalgebra::{DMatrix, DVector};
use relprop::{
    Accumulation, AdaptiveAvgPool2d, AvgPool2d, BatchNorm2d, BiasMode, Composite, Concat, Conv2d,
    ConvTranspose2d, Epsilon, Explainer, Flatten, Gamma, Graph, Linear, MaxPool2d, Relative,
    RelevanceRule, Relu, Residual, Sequential, SequentialBuilder, Sigmoid, Softmax, Targets,
    Upsample, Workspace,
};

const ORDERS: [Accumulation; 3] =
    [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse];

fn weight(number: usize) -> f32 {
    (number * 7919 % 1009) as f32 / 504.5 - 1.0
}

fn linear(outputs: usize, inputs: usize) -> Linear<f32> {
    let weights = DMatrix::from_fn(outputs, inputs, |j, i| weight(i + j * 13));
    Linear::new(weights, DVector::from_element(outputs, 0.05)).unwrap()
}

fn model(sizes: &[usize]) -> Sequential<f32> {
    let mut builder = Sequential::builder();
    for pair in sizes.windows(2) {
        builder = builder.layer(linear(pair[1], pair[0])).layer(Relu);
    }
    builder.layer(Softmax).build().unwrap()
}

fn weights(shape: [usize; 4]) -> Vec<f32> {
    (0..shape.iter().product()).map(|number| weight(number) / 4.0).collect()
}

fn conv(shape: [usize; 4]) -> Conv2d<f32> {
    Conv2d::new(shape, weights(shape), vec![0.1; shape[0]]).unwrap()
}

/// Samples with more or fewer zeros. Sample 0 has none, so that what is prepared when it is first
/// needed is prepared after it. Sample 4 has fewer than samples 1 to 3.
fn sample(index: usize, inputs: usize) -> Vec<f32> {
    let number = |i: usize| if i.is_multiple_of(1 + (index * 5) % 4) { (i + index) % 7 } else { 3 };
    let shift = if index == 0 { 2.5 } else { 3.0 };
    (0..inputs).map(|i| number(i) as f32 - shift).collect()
}

/// Explains all targets, or some, in each order, and counts the allocations after the first sample,
/// which has this index.
fn check(graph: &Graph<f32>, rule: &dyn RelevanceRule<f32>, first: usize, what: &str) {
    let (inputs, outputs) = (graph.inputs(), graph.outputs());
    let samples: Vec<_> = (first..first + 6).map(|index| sample(index, inputs)).collect();
    let weighted = DMatrix::from_fn(outputs, 2, |k, w| if k == w { 1.0 } else { -0.1 });
    for targets in [
        Targets::All,
        Targets::Predicted,
        Targets::Outputs(vec![outputs - 1, 0]),
        Targets::Weighted(weighted),
    ] {
        let explainer = graph.explainer(rule).unwrap().targets(targets.clone()).unwrap();
        for order in ORDERS {
            let explainer = explainer.clone().accumulation(order);
            let counted = allocations(&explainer, &samples);
            assert_eq!(counted, 0, "{what} {} {targets:?} {order:?}", rule.name());
        }
    }
}

/// How often the explanations after the first one allocate.
fn allocations(explainer: &Explainer<f32>, samples: &[Vec<f32>]) -> u64 {
    let mut workspace = Workspace::default();
    on_one_thread(|| {
        explainer.explain_into(&samples[0], &mut workspace).unwrap();
        let counted = allocation_counter::measure(|| {
            for sample in &samples[1..] {
                explainer.explain_into(sample, &mut workspace).unwrap();
            }
        });
        counted.count_total
    })
}

/// Splits no work among threads, because the queue of a pool allocates.
fn on_one_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "rayon")]
    return rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(work);
    #[cfg(not(feature = "rayon"))]
    work()
}

fn rules() -> [Box<dyn RelevanceRule<f32>>; 5] {
    [
        Box::new(Epsilon::default()),
        Box::new(Epsilon::relative_to_rms(0.1).unwrap().with_bias(BiasMode::Distribute)),
        Box::new(Relative::default()),
        Box::new(Gamma::default()),
        Box::new(Composite::epsilon_alpha2_beta1_flat()),
    ]
}

#[test]
fn the_second_explanation_allocates_nothing() {
    for sizes in [vec![50, 120, 9, 130, 40], vec![784, 320, 120, 40, 10], vec![7, 5]] {
        let model = model(&sizes);
        for rule in &rules() {
            check(&model, rule, 1, &format!("{sizes:?}"));
        }
    }
}

fn branches() -> SequentialBuilder<f32> {
    let inner = || Sequential::builder().layer(linear(12, 12)).layer(Relu);
    let nested = Residual::new([inner(), Sequential::builder()]).unwrap();
    Sequential::builder()
        .layer(linear(12, 20))
        .layer(Residual::new([inner().layer(nested), Sequential::builder()]).unwrap())
        .layer(Concat::new([inner(), inner().layer(linear(5, 12)), Sequential::builder()]).unwrap())
        .layer(Relu)
        .layer(linear(4, 29))
}

#[test]
fn branches_allocate_nothing() {
    let model = branches().layer(Softmax).build().unwrap();
    for rule in &rules() {
        check(&model, rule, 1, "branches");
    }
}

#[test]
fn convolutions_and_poolings_allocate_nothing() {
    let strided = Sequential::builder()
        .input([2, 11, 9])
        .layer(conv([4, 2, 3, 2]).stride(2).padding(1))
        .layer(Relu)
        .layer(MaxPool2d::new(2).stride(1))
        .layer(conv([6, 2, 3, 3]).groups(2))
        .layer(Upsample::new(2).unwrap())
        .layer(AvgPool2d::new(3).stride(2).padding(1))
        .layer(ConvTranspose2d::new([6, 3, 2, 2], weights([6, 3, 2, 2]), None).unwrap().stride(2))
        .layer(Relu)
        .layer(Flatten);
    let size = strided.clone().build().unwrap().outputs();
    let strided = strided.layer(linear(3, size)).layer(Sigmoid).build().unwrap();
    // Large enough for the form with fewer multiplications.
    let block = || {
        let norm = |count| {
            BatchNorm2d::new(
                vec![1.5; count],
                vec![0.2; count],
                vec![0.1; count],
                vec![2.0; count],
                1e-5,
            )
        };
        let conv = conv([16, 16, 3, 3]).padding(1);
        Sequential::builder().layer(conv).layer(norm(16).unwrap()).layer(Relu)
    };
    let transformed = Sequential::builder()
        .input([1, 16, 16])
        .layer(conv([16, 1, 3, 3]).padding(1).stride(2))
        .layer(Residual::new([block(), Sequential::builder()]).unwrap())
        .layer(
            Concat::new([block(), block().layer(MaxPool2d::new(3).stride(1).padding(1))]).unwrap(),
        )
        .layer(AdaptiveAvgPool2d::new(1))
        .layer(Flatten)
        .layer(linear(4, 32))
        .build()
        .unwrap();
    let rules: [Box<dyn RelevanceRule<f32>>; 3] = [
        Box::new(Epsilon::relative_to_rms(0.1).unwrap().with_bias(BiasMode::Distribute)),
        Box::new(Gamma::default()),
        Box::new(Composite::epsilon_alpha2_beta1_flat()),
    ];
    for (name, model) in [("strided", &strided), ("3 x 3", &transformed)] {
        for rule in &rules {
            check(model, rule, 0, name);
        }
    }
}

#[test]
fn graphs_allocate_nothing() {
    let mut graph = Graph::builder();
    let (a, image, mask) =
        (graph.input("a", 5), graph.input("image", [2, 3, 3]), graph.given("mask", 6));
    let bias = graph.constant("bias", 6, vec![0.5; 6]);
    let stem = graph.layer(linear(6, 5), [a]);
    let left = graph.layer(Relu, [stem]);
    let right = graph.layer(linear(6, 6), [left]);
    let convolved = graph.named("conv", conv([2, 2, 2, 2]), [image]);
    let convolved = graph.layer(Flatten, [convolved]);
    let sum = graph.sum([left, right, mask, bias, right]);
    let joined = graph.concat([convolved, sum, mask, stem]);
    let y = graph.layer(linear(4, 8 + 6 + 6 + 6), [joined]);
    graph.output("y", y);
    // A skip from the first value to the last. The largest output is never a skipped one.
    let large = graph.constant("large", 4, vec![100.0; 4]);
    let large = graph.sum([y, large]);
    let end = graph.concat([large, a]);
    graph.output("end", end);
    let graph = graph.build().unwrap();
    for rule in &rules() {
        check(&graph, rule, 0, "several inputs");
        check(&graph.with_output("end").unwrap(), rule, 0, "a skip");
        check(&graph.explain_from(["conv", "4"]).unwrap(), rule, 0, "inner values");
    }
}

/// Checks the counter itself: without a workspace, an explanation allocates.
#[test]
fn without_a_workspace_it_allocates() {
    let explainer = model(&[5, 4, 3]).explainer(Epsilon::default()).unwrap();
    let x = sample(1, 5);
    assert!(
        allocation_counter::measure(|| drop(explainer.explain_slice(&x).unwrap())).count_total > 0
    );
}

#[test]
fn all_outputs_of_a_wide_network_need_little_more_than_the_result() {
    // The hidden layer has sixteen times as many values as the input.
    let model = Sequential::builder()
        .input([1, 48, 48])
        .layer(conv([16, 1, 3, 3]).padding(1))
        .layer(Relu)
        .layer(conv([1, 16, 1, 1]))
        .build()
        .unwrap();
    let x = sample(0, model.inputs());
    let explainer = model.explainer(Epsilon::default()).unwrap();
    let mut workspace = explainer.workspace();
    let result = (2304 * 2304 * size_of::<f32>()) as u64;
    on_one_thread(|| {
        let counted = allocation_counter::measure(|| {
            explainer.explain_into(&x, &mut workspace).unwrap();
        });
        // One hidden block of all outputs alone would have sixteen times this size.
        assert!(counted.bytes_max < result + result / 2, "{} of {result}", counted.bytes_max);
    });
    let all = explainer.explain_slice(&x).unwrap();
    let some = explainer.targets([3, 800, 2303]).unwrap().explain_slice(&x).unwrap();
    for target in [3, 800, 2303] {
        assert_eq!(all.relevance(target).unwrap(), some.relevance(target).unwrap());
        assert!(all.ledger(target).unwrap().imbalance() < 1e-3);
        assert_eq!(all.ledger(target).unwrap(), some.ledger(target).unwrap());
    }
}

#[test]
fn an_explainer_holds_the_weights_three_times() {
    let model = model(&[784, 320, 120, 40, 10]);
    let weights = (784 * 320 + 320 * 120 + 120 * 40 + 40 * 10) * size_of::<f32>();
    let mut explainers = Vec::with_capacity(2);
    let mut held = || {
        let counted = allocation_counter::measure(|| {
            let explainer = model.explainer(Epsilon::default()).unwrap();
            explainers.push(explainer.targets(Targets::Predicted).unwrap());
        });
        counted.bytes_current as f64 / weights as f64
    };
    // The model's own copy is the first.
    let first = held();
    assert!((2.0..2.1).contains(&first), "{first}");
    // Other explainers of the model share the packed copies.
    let second = held();
    assert!(second < 0.1, "{second}");
}
