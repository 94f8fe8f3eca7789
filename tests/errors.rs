//! Every error, where it occurs and what its message contains; and layers and rules that are
//! defined outside the crate.

use relprop::layer::{Joined, Route};
use relprop::nalgebra::{DMatrix, DVector, dmatrix, dvector};
use relprop::rule::{Decomposition, Divisor, Group, Outside, Part, Site, Stabilizer, Transform};
use relprop::{
    Accumulation, AvgPool2d, BatchNorm1d, Bias, BiasMode, Celu, Code, Composite, Conv2d, Dropout,
    Elementwise, Elu, Epsilon, Error, HardTanh, Layer, LeakyRelu, Linear, LinearMap, Operator,
    Relative, RelevanceRule, Relu, Rule, Scalar, Sequential, Shape, Softmax, Softplus, WeightFn,
    ZBox, ZPlus,
};
use relprop::{Residual, Sigmoid, UnsupportedNode};

const ORDERS: [Accumulation; 3] =
    [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse];

fn linear(outputs: usize, inputs: usize) -> Linear<f64> {
    Linear::new(DMatrix::from_fn(outputs, inputs, |j, i| 1.0 + j as f64 - 0.5 * i as f64), None)
        .unwrap()
}

fn model() -> Sequential<f64> {
    Sequential::builder().layer(linear(3, 2)).layer(Relu).layer(linear(2, 3)).build().unwrap()
}

#[test]
fn models_that_do_not_fit() {
    let shape = Sequential::builder()
        .layer(linear(3, 2))
        .layer(Relu)
        .layer(linear(1, 4))
        .build()
        .unwrap_err();
    assert!(matches!(shape, Error::LayerShape { layer: 2, .. }));
    assert_eq!(shape.to_string(), "layer 2 (Linear) expects 4 inputs, but got 3");
    let first = Sequential::builder().input(5).layer(linear(3, 2)).build().unwrap_err().to_string();
    assert_eq!(first, "layer 0 (Linear) expects 2 inputs, but got 5");
    assert!(matches!(Sequential::<f64>::builder().build(), Err(Error::EmptyModel)));
    let activations = Sequential::<f64>::builder().layer(Relu).layer(Softmax).build();
    assert!(matches!(activations, Err(Error::NoLinearLayer { layers: 2 })));
    let softmax =
        Sequential::builder().layer(linear(3, 2)).layer(Softmax).layer(Relu).build().unwrap_err();
    assert!(matches!(softmax, Error::SoftmaxInMiddle { layer: 1, next: 2, .. }));
    assert!(softmax.to_string().starts_with("layer 1 (Softmax)"));
}

#[test]
fn weights_that_do_not_fit() {
    let bias = Linear::new(DMatrix::from_element(3, 2, 1.0), dvector![1.0, 2.0]).unwrap_err();
    assert!(matches!(bias, Error::BiasShape { found: 2, outputs: 3, inputs: 2, .. }));
    assert_eq!(
        bias.to_string(),
        "Linear: the bias has 2 values, but the layer has 3 outputs (its weights are 3 x 2)"
    );
    let count = Linear::from_rows(2, 3, &[1.0; 5], None).unwrap_err();
    assert!(matches!(count, Error::WeightCount { found: 5, outputs: 2, inputs: 3, .. }));
    assert_eq!(
        count.to_string(),
        "Linear: got 5 weights for a shape of 2 x 3; pass one weight for each output and input"
    );
    assert!(matches!(
        Linear::from_rows(usize::MAX, 2, &[1.0; 2], None),
        Err(Error::WeightCount { .. })
    ));
    for (outputs, inputs) in [(0, 3), (3, 0), (0, 0)] {
        let empty = Linear::new(DMatrix::<f64>::zeros(outputs, inputs), None);
        assert!(
            matches!(empty, Err(Error::ZeroSized { outputs: o, inputs: i, .. }) if (o, i) == (outputs, inputs))
        );
    }
}

#[test]
fn numbers_that_are_not_finite() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut weights = DMatrix::from_element(3, 2, 1.0);
        weights[(2, 1)] = bad;
        let weight = Linear::new(weights, None);
        assert!(
            matches!(weight, Err(Error::NonFiniteWeight { output: 2, input: 1, value, .. }) if !value.is_finite())
        );
        let rows = Linear::from_rows(2, 3, &[1.0, bad, 1.0, 1.0, 1.0, 1.0], None);
        assert!(matches!(rows, Err(Error::NonFiniteWeight { output: 0, input: 1, .. })));
        let bias = Linear::new(DMatrix::from_element(3, 2, 1.0), dvector![0.0, bad, 0.0]);
        assert!(matches!(bias, Err(Error::NonFiniteBias { output: 1, .. })));
        let input = model().explain(&dvector![0.0, bad], Rule::Epsilon);
        assert!(matches!(input, Err(Error::NonFiniteInput { index: 1, sample: 0, .. })));
        let batch = model().forward_batch(&dmatrix![0.0, 1.0, bad; 0.0, 1.0, 2.0]);
        assert!(matches!(batch, Err(Error::NonFiniteInput { index: 0, sample: 2, .. })));
    }
}

#[test]
fn samples_of_another_length() {
    let explainer = model().explainer(Rule::Epsilon).unwrap();
    let before = explainer.explain(&dvector![1.0, 2.0]).unwrap();
    // Multiples of the number of inputs, and 0, are as wrong as any other length.
    for found in [0, 1, 3, 4, 6] {
        let sample = DVector::from_element(found, 1.0);
        let results = [
            explainer.explain(&sample).map(drop),
            explainer.explain_slice(sample.as_slice()).map(drop),
            explainer.model().forward(&sample).map(drop),
        ];
        for result in results {
            assert!(
                matches!(result, Err(Error::InputShape { expected: 2, found: f, .. }) if f == found),
                "{found}: {result:?}"
            );
        }
    }
    let batch = explainer.model().forward_batch(&DMatrix::from_element(4, 1, 1.0)).unwrap_err();
    assert_eq!(
        batch.to_string(),
        "the model expects 2 values (layer 0 is Linear), but the sample has 4"
    );
    assert_eq!(explainer.explain(&dvector![1.0, 2.0]).unwrap(), before);
}

#[test]
fn outputs_out_of_range() {
    let explanation = model().explain(&dvector![1.0, 2.0], Rule::Epsilon).unwrap();
    let results = [
        explanation.relevance(2).map(drop),
        explanation.ledger(2).map(drop),
        explanation.top(2, 1).map(drop),
    ];
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::TargetOutOfRange { target: 2, outputs: 2 }));
        assert_eq!(error.to_string(), "output 2 was requested, but the model has outputs 0 to 1");
    }
}

#[test]
fn parameters_out_of_range() {
    let bad = |result: Result<(), Error>| matches!(result, Err(Error::InvalidParameter { .. }));
    for epsilon in [0.0, -0.0, -1e-6, f64::NAN, f64::INFINITY] {
        assert!(bad(Epsilon::new(epsilon).map(drop)));
        assert!(bad(Epsilon::relative_to_rms(epsilon).map(drop)));
    }
    assert!(bad(Relative::new(BiasMode::Absorb).map(drop)));
    for value in [f64::NAN, f64::INFINITY] {
        assert!(bad(LeakyRelu::new(value).map(drop)));
        assert!(bad(Elu::new(value).map(drop)));
        assert!(bad(Celu::new(value).map(drop)));
        assert!(bad(Softplus::new(value, 20.0).map(drop)));
        assert!(bad(Softplus::new(1.0, value).map(drop)));
        assert!(bad(HardTanh::new(value, 1.0).map(drop)));
        assert!(bad(HardTanh::new(-1.0, value).map(drop)));
        assert!(bad(Dropout::new(value).map(drop)));
    }
    assert!(bad(Celu::new(0.0).map(drop)));
    assert!(bad(Softplus::new(0.0, 20.0).map(drop)));
    assert!(bad(HardTanh::new(1.0, -1.0).map(drop)));
    assert!(bad(Dropout::new(-0.1).map(drop)));
    assert!(bad(Dropout::new(1.1).map(drop)));
    assert_eq!(
        Epsilon::new(-1.0).unwrap_err().to_string(),
        "Epsilon: epsilon must be finite and above 0, but is -1.0"
    );
}

fn single(weights: &[f32]) -> Sequential<f32> {
    Sequential::builder()
        .layer(Linear::from_rows(1, weights.len(), weights, None).unwrap())
        .build()
        .unwrap()
}

#[test]
fn an_epsilon_below_the_number_type() {
    let model = single(&[1.0, 2.0]);
    let error = model.explainer(Epsilon::new(1e-60).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { layer: 0, .. }));
    assert!(error.to_string().contains("layer 0 (Linear)"));
    assert!(model.explainer(Epsilon::new(1e-30).unwrap()).is_ok());
}

#[test]
fn a_network_that_overflows() {
    let model = single(&[1e30, 1e30]);
    let large = dvector![1e30_f32, 0.0];
    assert!(matches!(
        model.forward(&large),
        Err(Error::NonFiniteOutput { layer: 0, index: 0, .. })
    ));
    for order in ORDERS {
        let explainer = model.explainer(Rule::Epsilon).unwrap().accumulation(order);
        let before = explainer.explain(&dvector![1.0, 2.0]).unwrap();
        let error = explainer.explain(&large).unwrap_err();
        assert!(matches!(error, Error::NonFiniteOutput { layer: 0, .. }), "{order:?}: {error}");
        assert_eq!(explainer.explain(&dvector![1.0, 2.0]).unwrap(), before);
    }
}

#[test]
fn relevances_that_overflow() {
    // The total is 0 and its stabilizer is tiny, so each share is 1e20 / 1e-30.
    let model = single(&[1.0, -1.0]);
    for order in ORDERS {
        let explainer = model.explainer(Epsilon::new(1e-30).unwrap()).unwrap().accumulation(order);
        let error = explainer.explain(&dvector![1e20, 1e20]).unwrap_err();
        assert!(matches!(error, Error::Overflow { layer: 0, .. }), "{order:?}: {error}");
        assert!(explainer.explain(&dvector![1.0, 2.0]).is_ok());
    }
}

/// y = d z, elementwise, with only the required methods of `LinearMap`.
#[derive(Debug, Clone)]
struct Diagonal<T: Scalar> {
    d: Vec<T>,
    bias: Option<Vec<T>>,
}

impl<T: Scalar> Diagonal<T> {
    fn product(&self, x: &[T], y: &mut [T]) {
        for ((y, &x), &d) in y.iter_mut().zip(x).zip(self.d.iter().cycle()) {
            *y = d * x;
        }
    }
}

impl<T: Scalar> LinearMap<T> for Diagonal<T> {
    fn inputs(&self) -> usize {
        self.d.len()
    }

    fn outputs(&self) -> usize {
        self.d.len()
    }

    fn bias(&self) -> Option<Bias<'_, T>> {
        self.bias.as_deref().map(Bias::from)
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        self.product(x, y);
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        self.product(y, x);
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        Box::new(Self { d: self.d.iter().map(|&d| f.value(d)).collect(), bias: None })
    }
}

impl<T: Scalar> Layer<T> for Diagonal<T> {
    fn kind(&self) -> &'static str {
        "Diagonal"
    }

    fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(Operator::linear(self.clone()))
    }

    fn inputs(&self) -> Option<usize> {
        Some(self.d.len())
    }
}

/// max(z, 0)².
#[derive(Debug)]
struct SquaredRelu;

impl<T: Scalar> Elementwise<T> for SquaredRelu {
    fn value(&self, z: T) -> T {
        z.max(T::zero()) * z
    }
}

impl<T: Scalar> Layer<T> for SquaredRelu {
    fn kind(&self) -> &'static str {
        "SquaredReLU"
    }

    fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(Operator::elementwise(Self))
    }
}

/// |z w| / (Σ |z w| + 1e-9).
struct Magnitude;

impl<T: Scalar> RelevanceRule<T> for Magnitude {
    fn name(&self) -> String {
        "Magnitude".to_owned()
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let part = Part::new(Transform::map(|z: T| z.abs()), Transform::map(|w: T| w.abs()));
        let group = Group::new(vec![part], Divisor::Total(Stabilizer::Absolute(1e-9)));
        Ok(group.with_bias(BiasMode::Ignore, Transform::Identity).into())
    }
}

#[test]
fn layers_from_outside() {
    let d = vec![2.0, -1.0, 0.5];
    let bias = vec![0.1, 0.0, -0.3];
    let ends = || (linear(3, 2), linear(2, 3));
    let ((first, last), (same_first, same_last)) = (ends(), ends());
    let own = Sequential::builder()
        .layer(first)
        .layer(SquaredRelu)
        .layer(Diagonal { d: d.clone(), bias: Some(bias.clone()) })
        .layer(last)
        .build()
        .unwrap();
    let dense = Sequential::builder()
        .layer(same_first)
        .layer(SquaredRelu)
        .layer(
            Linear::new(DMatrix::from_diagonal(&DVector::from_vec(d)), DVector::from_vec(bias))
                .unwrap(),
        )
        .layer(same_last)
        .build()
        .unwrap();
    let x = dvector![1.5, -0.5];
    let rules: [Box<dyn RelevanceRule<f64>>; 3] = [
        Box::new(Epsilon::default()),
        Box::new(Epsilon::default().with_bias(BiasMode::Ignore)),
        Box::new(Magnitude),
    ];
    for rule in &rules {
        for order in ORDERS {
            let own = own.explainer(rule).unwrap().accumulation(order).explain(&x).unwrap();
            let dense = dense.explainer(rule).unwrap().accumulation(order).explain(&x).unwrap();
            assert!((own.shares() - dense.shares()).amax() <= 1e-12 * dense.shares().amax());
            assert!(own.ledger(1).unwrap().imbalance() < 1e-12);
        }
    }
    // Each output of the diagonal has one input, which gets all its relevance.
    let alone =
        Sequential::builder().layer(Diagonal { d: vec![2.0, 3.0], bias: None }).build().unwrap();
    assert_eq!(
        alone.explain(&dvector![1.0, 1.0], Rule::Relative).unwrap().shares(),
        &dmatrix![2.0, 0.0; 0.0, 3.0]
    );
}

#[test]
fn a_rule_from_outside() {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, -2.0, 0.5], dvector![4.0]).unwrap())
        .build()
        .unwrap();
    for order in ORDERS {
        let explainer = model.explainer(Magnitude).unwrap().accumulation(order);
        let explanation = explainer.explain(&dvector![1.0, 1.0, -2.0]).unwrap();
        assert_eq!(explanation.rule(), "Magnitude");
        assert!((explanation.shares() - dmatrix![0.25; 0.5; 0.25]).amax() < 1e-8);
        assert!(explanation.ledger(0).unwrap().imbalance() < 1e-12);
    }
}

#[test]
fn maps_from_outside_that_are_not_sound() {
    let build = |d: Vec<f64>, bias| Sequential::builder().layer(Diagonal { d, bias }).build();
    let error = build(vec![1.0, 2.0], Some(vec![1.0])).unwrap_err();
    assert!(matches!(error, Error::BiasShape { found: 1, outputs: 2, inputs: 2, .. }));
    assert!(error.to_string().starts_with("Diagonal:"));
    assert!(matches!(
        build(vec![1.0], Some(vec![f64::NAN])),
        Err(Error::NonFiniteBias { output: 0, .. })
    ));
    assert!(matches!(build(vec![], None), Err(Error::ZeroSized { outputs: 0, inputs: 0, .. })));
}

/// Shares and outputs can be finite although their product is not, but `explain` never returns an
/// infinity or a NaN.
#[test]
fn relevances_that_overflow_are_an_error() {
    let single = Sequential::builder()
        .layer(Linear::new(dmatrix![1e20_f32], None).unwrap())
        .build()
        .unwrap();
    assert!(matches!(single.explain(&dvector![1.0], Rule::Relative), Err(Error::Overflow { .. })));
    let layer = || Linear::new(dmatrix![-1e100_f64], None).unwrap();
    let double = Sequential::builder().layer(layer()).layer(layer()).build().unwrap();
    assert!(matches!(double.explain(&dvector![1.0], Rule::Relative), Err(Error::Overflow { .. })));
}

#[test]
fn settings_that_fit_no_layer() {
    let named = || {
        let builder = Sequential::builder().named("features.0", linear(3, 2)).layer(Relu);
        builder.named("head", linear(2, 3)).build().unwrap()
    };
    let refused = |composite: Composite<f64>| match named().explainer(composite) {
        Err(error @ Error::UnmatchedSetting { .. }) => error.to_string(),
        other => panic!("{:?}", other.map(|explainer| explainer.to_string())),
    };
    let epsilon = || Composite::new(Rule::Epsilon);
    assert_eq!(
        refused(epsilon().layer("haed", Rule::Flat)),
        "Composite::layer(\"haed\", ..) matches no layer, so Flat would not be used, did you mean \
         'head'? \
         (rules apply to these layers: 0 'features.0' (Linear), 2 'head' (Linear))"
    );
    assert!(refused(epsilon().kind("linear", Rule::Flat)).contains("did you mean 'Linear'?"));
    let name = refused(epsilon().layer("features.O", Rule::Flat));
    assert!(name.contains(", did you mean 'features.0'?"), "{name}");
    for far in ["LSTM", "x"] {
        assert!(!refused(epsilon().layer(far, Rule::Flat)).contains("did you mean"));
        assert!(!refused(epsilon().kind(far, Rule::Flat)).contains("did you mean"));
    }
    assert!(
        refused(epsilon().kind("Conv2d", Rule::Flat))
            .contains("would not be used (rules apply to these layers")
    );
    assert!(
        refused(epsilon().layer(99, Rule::Flat))
            .starts_with("Composite::layer(99, ..) matches no layer")
    );
    // A ReLU passes relevance through, so no rule is used there.
    assert!(
        refused(epsilon().layer(1, Rule::Flat))
            .starts_with("Composite::layer(1, ..) matches no layer")
    );
    assert!(
        refused(epsilon().range(1..2, Rule::Flat))
            .starts_with("Composite::range(1..2, ..) matches no layer")
    );
    // A nested composite only sees the layers of its setting.
    assert!(
        refused(epsilon().layer("head", epsilon().layer("features.0", Rule::Flat)))
            .contains("\"features.0\"")
    );
    for fits in [
        epsilon()
            .layer("head", Rule::Flat)
            .layer(0, Rule::Flat)
            .range(0..99, Rule::ZPlus)
            .kind("Linear", Rule::Gamma),
        epsilon().layer(2, Rule::Flat).layer(2, Rule::ZPlus).first(Rule::Flat).last(Rule::Flat),
        Composite::epsilon_plus_flat(),
        Composite::epsilon_gamma_box(-1.0, 1.0).unwrap(),
    ] {
        assert!(named().explainer(fits).is_ok());
    }
    // With pooling only, no layer uses the first rule of a preset, which is not an error.
    let pooling = Sequential::builder().input([1, 2, 2]).layer(AvgPool2d::new(2)).build().unwrap();
    assert!(pooling.explainer(Composite::<f64>::epsilon_plus_flat()).is_ok());
    assert!(pooling.explainer(Composite::<f64>::new(Rule::Epsilon).first(Rule::Flat)).is_err());
}

#[test]
fn samples_outside_the_box() {
    let zbox = |outside| {
        Composite::new(Rule::Epsilon).first(ZBox::new(0.0, 1.0).unwrap().with_outside(outside))
    };
    let batch = DMatrix::from_fn(2, 200, |i, sample| {
        if sample >= 150 { -0.5 * (sample - 149) as f64 * (i + 1) as f64 } else { 0.5 }
    });
    for order in ORDERS {
        let explainer = model().explainer(zbox(Outside::Refuse)).unwrap().accumulation(order);
        assert!(explainer.explain(&dvector![0.0, 1.0]).unwrap().findings().is_empty());
        let error = explainer.explain(&dvector![1.5, 4.0]).unwrap_err();
        assert!(
            matches!(error, Error::OutsideRange { layer: 0, sample: 0, input: 1, count: 2, .. }),
            "{error}"
        );
        assert!(
            error.to_string().starts_with(
                "input 1 of layer 0 (Linear) is 4 in sample 0, outside the range from 0 to 1"
            ),
            "{error}"
        );
        // The error names the first such sample of the batch, whatever part it is in.
        assert!(matches!(
            explainer.explain_batch(&batch),
            Err(Error::OutsideRange { sample: 150, input: 1, .. })
        ));
        assert!(matches!(explainer.trace(&dvector![1.5, 4.0]), Err(Error::OutsideRange { .. })));

        let explainer = model().explainer(zbox(Outside::Report)).unwrap().accumulation(order);
        for (sample, explanation) in explainer.explain_batch(&batch).unwrap().iter().enumerate() {
            assert_eq!(explanation.findings().len(), usize::from(sample >= 150), "{sample}");
        }
        let explanation = explainer.explain(&dvector![1.5, 4.0]).unwrap();
        let [finding] = explanation.findings() else { panic!("one finding") };
        assert_eq!((finding.code, finding.layer), (Code::OutsideRange, 0));
        assert!(finding.sentence.starts_with(
            "Input 1 is 4, outside the range from 0 to 1 that ZBox(0.0, 1.0) \
                    assumes; inputs outside: 2."
        ));
        assert_eq!(
            explainer.trace(&dvector![1.5, 4.0]).unwrap().explanation().findings(),
            explanation.findings()
        );
        // A workspace can be reused, and the findings of one call do not remain for the next.
        let mut workspace = explainer.workspace();
        assert_eq!(
            explainer.explain_into(&[2.0, 0.0], &mut workspace).unwrap().findings().len(),
            1
        );
        assert_eq!(explainer.explain_into(&[1.0, 0.0], &mut workspace).unwrap().findings(), []);
    }
    // A value that is outside only by rounding is accepted.
    let tenth = ZBox::new(0.1, 0.3).unwrap();
    let single = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0_f32, 2.0], None).unwrap())
        .build()
        .unwrap();
    assert!(single.explain(&dvector![0.1, 0.1 + 0.2], tenth).is_ok());
}

#[test]
fn too_large_explanations_are_errors() {
    // 64 x 64 pixels to two labels each: 8192 outputs x 12288 inputs of 4 bytes.
    let weights = |count: usize| (0..count).map(|k| (k as f32 * 0.7).sin()).collect::<Vec<_>>();
    let model = Sequential::builder()
        .input([3, 64, 64])
        .layer(Conv2d::new([8, 3, 3, 3], weights(216), None).unwrap().padding(1))
        .layer(Relu)
        .layer(Conv2d::new([2, 8, 1, 1], weights(16), None).unwrap())
        .build()
        .unwrap();
    let x = DVector::from_vec(weights(model.inputs()));
    let explainer = model.explainer(Rule::Epsilon).unwrap().memory_limit(100 << 20);
    let refused = |error: Error| match error {
        Error::TooLarge { bytes, limit, .. } => {
            assert!(bytes > limit && limit == 100 << 20);
            error.to_string()
        }
        other => panic!("{other}"),
    };
    let text = refused(explainer.explain(&x).unwrap_err());
    assert!(
        text.starts_with(
            "the shares of 12288 inputs in 8192 outputs, with intermediate results, would take "
        ),
        "{text}"
    );
    assert!(
        text.contains(
            "MiB, more than the limit of 100.0 MiB: explain fewer outputs (Targets::Predicted"
        ),
        "{text}"
    );
    refused(explainer.explain_into(x.as_slice(), &mut explainer.workspace()).unwrap_err());
    refused(explainer.trace(&x).unwrap_err());
    let some = explainer.clone().targets([0, 5]).unwrap();
    assert_eq!(some.explain(&x).unwrap().shares().shape(), (12288, 2));
    // A batch that fits in memory in parts.
    let batch =
        DMatrix::from_fn(model.inputs(), 1100, |i, sample| ((i + sample) as f32 * 0.3).sin());
    let text = refused(some.explain_batch(&batch).unwrap_err());
    assert!(
        text.contains("for 1100 samples") && text.contains("explain the batch in parts"),
        "{text}"
    );
    assert_eq!(some.explain_batch(&batch.columns(0, 3).into_owned()).unwrap().len(), 3);
    // A trace for a few outputs fits, but what is computed from it can be too large.
    let trace = some.trace(&x).unwrap();
    assert_eq!(trace.relevance(2, 5).unwrap().len(), 8 * 64 * 64);
    for error in [
        trace.prefix(2).unwrap_err(),
        trace.of_weights(0, 5).unwrap_err(),
        trace.paths(5, 1).unwrap_err(),
    ] {
        let text = refused(error);
        assert!(
            text.ends_with("raise the limit with Explainer::memory_limit before you trace"),
            "{text}"
        );
    }
    let sweep = model.sweep([Rule::Epsilon, Rule::Gamma]).unwrap().memory_limit(100 << 20);
    refused(sweep.explain(&x).unwrap_err());
    // With the default limit, no memory is allocated for what no machine can hold.
    let wide = Sequential::builder()
        .input([1, 1000, 1000])
        .layer(Conv2d::new([1, 1, 1, 1], vec![1.0_f32], None).unwrap())
        .build()
        .unwrap();
    let text = wide
        .explain(&DVector::from_element(1_000_000, 1.0), Rule::Epsilon)
        .unwrap_err()
        .to_string();
    assert!(text.contains("TiB, more than the limit of 2.0 GiB"), "{text}");
}

#[test]
fn messages_say_what_to_do() {
    let explainer = model().explainer(Rule::Epsilon).unwrap();
    let uneven = explainer
        .explain_batch_into(&[0.0; 7], &mut explainer.workspace())
        .unwrap_err()
        .to_string();
    assert_eq!(
        uneven,
        "7 values are not a whole number of samples: the model expects 2 values per sample, which \
         gives 3 samples and a remainder of 1"
    );
    let explanation = explainer.explain(&dvector![1.0, 2.0]).unwrap();
    let short = explanation.relevance_into(0, &mut [0.0; 3]).unwrap_err().to_string();
    assert_eq!(short, "the relevance has 2 values, but the slice to write it to has 3");
    let none = Epsilon::new(0.0).unwrap_err().to_string();
    assert_eq!(
        none,
        "Epsilon: epsilon must be finite and above 0 (for no stabilizer, use Rule::Lrp0), but is \
         0.0"
    );
    let none = ZPlus::default().with_stabilizer(Stabilizer::Absolute(0.0)).unwrap_err().to_string();
    assert_eq!(
        none,
        "ZPlus: epsilon must be finite and above 0 (for no stabilizer, use Stabilizer::None), but \
         is 0.0"
    );
    assert!(ZPlus::default().with_stabilizer(Stabilizer::None).is_ok());
}

/// Layers and rules from outside the crate whose methods contradict each other.
#[test]
fn layers_and_rules_that_contradict_themselves() {
    #[derive(Debug)]
    struct Nothing;
    impl Layer<f64> for Nothing {
        fn kind(&self) -> &str {
            "Nothing"
        }
        fn operator(&self, _inputs: &[Shape]) -> Result<Operator<f64>, Error> {
            Ok(Operator::Branches(Vec::new(), Joined::Summed))
        }
    }
    struct Positive;
    impl RelevanceRule<f64> for Positive {
        fn name(&self) -> String {
            "Positive".to_owned()
        }
        fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<f64>, Error> {
            let (low, high) = (vec![0.0; site.inputs], vec![f64::INFINITY; site.inputs]);
            Ok(Rule::Epsilon.decompose(site)?.for_inputs(low, high, Outside::Refuse))
        }
    }
    let empty =
        Sequential::builder().layer(linear(2, 2)).layer(Nothing).build().unwrap_err().to_string();
    assert_eq!(empty, "layer 1 (Nothing): number of branches must be at least 1, but is 0");

    // A softmax in a branch.
    let branch = || Sequential::builder().layer(linear(2, 2));
    let inside = Residual::new([branch().layer(Softmax), branch()]).unwrap();
    let inside = Sequential::builder().input(2).layer(inside).build().unwrap_err();
    assert!(matches!(inside, Error::SoftmaxInBranch { layer: 2, .. }), "{inside}");

    // A range with only one end.
    let one = Sequential::builder().layer(linear(2, 2)).build().unwrap();
    assert!(one.explain(&dvector![1e300, 0.0], Positive).is_ok());
    assert!(matches!(
        one.explain(&dvector![1.0, -5.0], Positive),
        Err(Error::OutsideRange { input: 1, .. })
    ));

    // Layers that do not fix the number of inputs.
    let nothing = Sequential::<f64>::builder().layer(Dropout::default()).layer(Relu).build();
    assert!(matches!(nothing, Err(Error::NoLinearLayer { layers: 2 })));
}

/// A route that depends on the values can differ between logits and probabilities.
#[test]
fn a_sigmoid_before_a_choice_is_an_activation() {
    #[derive(Debug)]
    struct NearestToHalf;
    impl Route<f64> for NearestToHalf {
        fn output_shape(&self) -> Shape {
            1.into()
        }
        fn route(&self, values: &[f64], from: &mut [usize]) {
            let distance = |i: usize| (values[i] - 0.5).abs();
            from[0] = (0..values.len())
                .fold(0, |best, i| if distance(i) < distance(best) { i } else { best });
        }
    }
    impl Layer<f64> for NearestToHalf {
        fn kind(&self) -> &str {
            "NearestToHalf"
        }
        fn operator(&self, _inputs: &[Shape]) -> Result<Operator<f64>, Error> {
            Ok(Operator::Route(std::sync::Arc::new(Self)))
        }
    }
    let two = Linear::new(dmatrix![0.6; 0.1], None).unwrap();
    let model =
        Sequential::builder().layer(two).layer(Sigmoid).layer(NearestToHalf).build().unwrap();
    // σ(0.6) = 0.646 and σ(0.1) = 0.525; for 0.6 and 0.1, the other value would be chosen.
    assert!((model.forward(&dvector![1.0]).unwrap()[0] - 0.524_979_187).abs() < 1e-8);
    assert!(model.explain(&dvector![1.0], Rule::Epsilon).unwrap().probabilities().is_none());
}

/// The input shape in a file does not use memory before there is a sample.
#[test]
fn inputs_that_no_machine_can_hold() {
    let side = 1 << 26;
    let conv = || Conv2d::new([1, 1, 16, 16], vec![1.0_f32; 256], None).unwrap().padding(8);
    let pool = || AvgPool2d::new(2);
    for model in [Sequential::builder().layer(conv()), Sequential::builder().layer(pool())] {
        let model = model.input([1, side, side]).build().unwrap();
        for rule in [Rule::Epsilon, Rule::Flat] {
            let error = model.explainer(rule).unwrap_err();
            assert!(matches!(error, Error::TooLarge { .. }), "{error}");
            assert!(matches!(model.check(rule), Err(Error::TooLarge { .. })));
        }
    }
}

#[test]
fn the_kind_of_an_unsupported_network_comes_first() {
    let error = |operators: &[&str]| {
        let node = |operator: &&str| UnsupportedNode {
            name: "n".to_owned(),
            operator: (*operator).to_owned(),
            path: "graph.node[0]".to_owned(),
            reason: "unsupported".to_owned(),
        };
        Error::UnsupportedNodes { nodes: operators.iter().map(node).collect() }.to_string()
    };
    let transformer = error(&["MatMul", "Softmax", "LayerNormalization"]);
    assert!(
        transformer.starts_with(
            "the model has 3 nodes (of a transformer: attention and layer norms) that cannot"
        ),
        "{transformer}"
    );
    assert!(
        error(&["LSTM"])
            .starts_with("the model has a node (of a recurrent network) that cannot be explained:")
    );
    assert!(error(&["Conv"]).starts_with("the model has a node that cannot be explained:"));
}

#[test]
fn sizes_are_given_in_a_suitable_unit() {
    let text = |bytes: u64| {
        let (what, remedy) = ("the shares".to_owned(), "take fewer".to_owned());
        Error::TooLarge { what, bytes, limit: 1 << 20, remedy }.to_string()
    };
    assert_eq!(
        text((1 << 20) + 4),
        "the shares would take 1.0 MiB, more than the limit of 1.0 MiB: take fewer"
    );
    assert!(text(u64::MAX).contains("16.0 EiB"));
}

#[test]
fn a_memory_limit_is_kept_to_the_byte() {
    let model = Sequential::builder().layer(linear(3, 2)).build().unwrap();
    let x = DVector::from_element(model.inputs(), 1.0);
    let fits = |bytes: u64| {
        model.explainer(Rule::Epsilon).unwrap().memory_limit(bytes).explain(&x).is_ok()
    };
    let least = (0..10_000).find(|&bytes| fits(bytes)).unwrap();
    let values = |bytes: u64| bytes / size_of::<f64>() as u64;
    assert!(least > 0 && values(least) * 8 == least, "{least} bytes are no whole number of values");
    assert!(!fits(least - 1) && fits(least + 1));
}

#[test]
fn a_variance_that_is_not_positive_is_named() {
    let of = |variance: f64| {
        let [one, zero] = [1.0, 0.0].map(|value| vec![value, value]);
        BatchNorm1d::new(one, zero.clone(), zero, vec![4.0, variance], 1.0)
    };
    let text = of(-2.5).unwrap_err().to_string();
    assert!(text.contains("running_var + eps must be above 0"), "{text}");
    assert!(text.ends_with("but is -1.5"), "{text}");
    assert!(of(-1.0).unwrap_err().to_string().ends_with("but is 0.0"));
}
