//! The model check reports what is misleading, and nothing for models without problems.

use relprop::nalgebra::{DVector, dmatrix, dvector};
use relprop::rule::{Decomposition, Divisor, Group, Part, Site, Stabilizer, Transform};
use relprop::{
    BatchNorm2d, BiasMode, Code, Composite, Conv2d, Epsilon, Error, Family, Gelu, HardSigmoid,
    Identity, Layer, Linear, Operator, RelevanceRule, Relu, Rule, Scalar, Sequential, Shape,
    Sigmoid, Softmax, Softplus, Softsign, Tanh, ZBox,
};

fn codes(model: &Sequential<f64>, rule: impl RelevanceRule<f64>) -> Vec<(Code, usize)> {
    let findings = model.check(&rule).unwrap();
    for finding in &findings {
        assert!(finding.sentence.ends_with('.') && finding.advice.ends_with('.'), "{finding}");
        assert!(finding.to_string().starts_with(&finding.code.to_string()));
    }
    findings.iter().map(|finding| (finding.code, finding.layer)).collect()
}

fn layer(bias: impl Into<Option<DVector<f64>>>) -> Linear<f64> {
    Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], bias).unwrap()
}

fn model(activation: impl Layer<f64> + 'static) -> Sequential<f64> {
    Sequential::builder()
        .layer(layer(dvector![0.1, -0.1]))
        .layer(activation)
        .layer(Identity)
        .layer(layer(None))
        .build()
        .unwrap()
}

/// A user's rule, which shares by w² + 1.
struct Own;

impl<T: Scalar> RelevanceRule<T> for Own {
    fn name(&self) -> String {
        "Own".to_owned()
    }
    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let part =
            Part::new(Transform::map(|z: T| z * z + T::one()), Transform::map(|w: T| w.abs()));
        Ok(Group::new(vec![part], Divisor::Total(Stabilizer::default())).into())
    }
}

#[test]
fn rules_that_give_to_shut_units() {
    for rule in [
        Rule::Lrp0,
        Rule::Epsilon,
        Rule::Gamma,
        Rule::GammaPlain,
        Rule::ZPlus,
        Rule::AlphaBeta,
        Rule::Norm,
        Rule::Relative,
    ] {
        assert_eq!(codes(&model(Relu), rule), [], "{rule:?}");
    }
    let zbox = ZBox::new(-1.0, 1.0).unwrap();
    for rule in [&Rule::WSquare as &dyn RelevanceRule<f64>, &Rule::Flat, &Rule::Pass, &zbox, &Own] {
        assert_eq!(codes(&model(Relu), rule), [(Code::DeadUnits, 3)], "{}", rule.name());
        // A GELU never shuts a unit for certain, and the first layer has pixels as inputs.
        assert_eq!(codes(&model(Gelu::Exact), rule), [], "{}", rule.name());
        assert_eq!(codes(&model(Relu), Composite::new(Rule::Epsilon).layer(0, rule_of(rule))), []);
    }
    // A box with a corner at 0 gives nothing to zeros.
    assert_eq!(codes(&model(Relu), ZBox::new(0.0, 0.0).unwrap()), []);
    let biased = Sequential::builder()
        .layer(layer(None))
        .layer(Relu)
        .layer(layer(dvector![0.1, 0.1]))
        .build()
        .unwrap();
    assert_eq!(
        codes(&biased, Epsilon::default().with_bias(BiasMode::Distribute)),
        [(Code::DeadUnits, 2)]
    );
}

/// Converts a rule to an owned one.
fn rule_of(rule: &dyn RelevanceRule<f64>) -> Box<dyn RelevanceRule<f64>> {
    match rule.name().as_str() {
        "WSquare" => Box::new(Rule::WSquare),
        "Flat" => Box::new(Rule::Flat),
        "Pass" => Box::new(Rule::Pass),
        "Own" => Box::new(Own),
        _ => Box::new(ZBox::new(-1.0, 1.0).unwrap()),
    }
}

#[test]
fn a_softmax_and_large_biases() {
    let model = Sequential::builder()
        .layer(layer(dvector![10.0, -7.0]))
        .layer(Relu)
        .layer(layer(None))
        .layer(Softmax)
        .build()
        .unwrap();
    assert_eq!(codes(&model, Rule::Epsilon), [(Code::LargeBiases, 0), (Code::SoftmaxLast, 3)]);
    assert_eq!(
        codes(&model, Epsilon::default().with_bias(BiasMode::Ignore)),
        [(Code::SoftmaxLast, 3)]
    );
    let text = model.check(Rule::Epsilon).unwrap()[0].to_string();
    assert!(
        text.contains("large-biases at layer 0 (Linear): The biases (rms 8.63) are larger"),
        "{text}"
    );
}

#[test]
fn activations_that_are_not_0_at_0() {
    // A sigmoid at the end turns logits, which are explained, into probabilities. Between linear
    // maps, it can change signs.
    let last =
        |activation| Sequential::builder().layer(layer(None)).layer(activation).build().unwrap();
    assert_eq!(
        codes(&last(Box::new(Sigmoid) as Box<dyn Layer<f64>>), Rule::Epsilon),
        [(Code::SigmoidLast, 1)]
    );
    assert_eq!(codes(&last(Box::<Softplus>::default()), Rule::Epsilon), [(Code::NonzeroAtZero, 1)]);
    for activation in [
        Box::new(Relu) as Box<dyn Layer<f64>>,
        Box::new(Tanh),
        Box::new(Gelu::Exact),
        Box::new(Softsign),
    ] {
        assert_eq!(codes(&last(activation), Rule::Epsilon), []);
    }
    assert_eq!(codes(&model(Sigmoid), Rule::Epsilon), [(Code::NonzeroAtZero, 1)]);
    assert_eq!(codes(&model(HardSigmoid), Rule::Epsilon), [(Code::NonzeroAtZero, 1)]);
    let text = model(Sigmoid).check(Rule::Epsilon).unwrap()[0].to_string();
    assert!(
        text.starts_with("nonzero-at-zero at layer 1 (Sigmoid): Sigmoid is 0.500 at 0,"),
        "{text}"
    );
}

#[test]
fn a_normalization_of_its_own() {
    #[derive(Debug)]
    struct BatchNorm(Linear<f64>);
    impl Layer<f64> for BatchNorm {
        fn kind(&self) -> &str {
            "BatchNorm1d"
        }
        fn family(&self) -> Option<Family> {
            Some(Family::Normalization)
        }
        fn operator(&self, _inputs: &[Shape]) -> Result<Operator<f64>, Error> {
            Ok(Operator::linear(self.0.clone()))
        }
    }
    let norm = BatchNorm(Linear::new(dmatrix![0.5, 0.0; 0.0, 2.0], dvector![0.1, 0.1]).unwrap());
    let model = Sequential::builder()
        .layer(layer(None))
        .layer(norm)
        .layer(Relu)
        .layer(layer(None))
        .build()
        .unwrap();
    assert_eq!(codes(&model, Rule::Epsilon), [(Code::UnmergedNorm, 1)]);
}

#[test]
fn a_rule_that_does_not_fit_is_an_error() {
    let three = ZBox::per_input(vec![0.0; 3], vec![1.0; 3]).unwrap();
    assert!(matches!(model(Relu).check(three), Err(Error::Unsupported { layer: 0, .. })));
}

#[test]
fn advice_is_not_what_was_done_already() {
    let norm = || BatchNorm2d::new(vec![2.0], vec![0.3], vec![0.1], vec![1.5], 1e-5).unwrap();
    let conv = |padding| Conv2d::new([1, 1, 1, 1], vec![2.0], None).unwrap().padding(padding);
    let advice = |model: &Sequential<f64>| {
        let findings = model.check(Rule::Epsilon).unwrap();
        findings
            .into_iter()
            .find(|finding| finding.code == Code::UnmergedNorm)
            .map(|finding| finding.advice)
    };
    let before_padding =
        Sequential::builder().input([1, 2, 2]).layer(norm()).layer(conv(1)).build().unwrap();
    assert!(advice(&before_padding).unwrap().starts_with("It cannot be merged"));
    let behind =
        Sequential::builder().input([1, 2, 2]).layer(conv(1)).layer(norm()).build().unwrap();
    assert!(advice(&behind).unwrap().contains("Call canonize"));
    assert_eq!(advice(&behind.canonize().unwrap().0), None);
    // The first linear layer already has Flat, but the layer before it can still shut units.
    let shut = Sequential::builder()
        .input([1, 2, 2])
        .layer(norm())
        .layer(Relu)
        .layer(conv(1))
        .build()
        .unwrap();
    let findings = shut.check(Composite::new(Rule::Epsilon).first(Rule::Flat)).unwrap();
    let dead = findings.iter().find(|finding| finding.code == Code::DeadUnits).unwrap();
    assert!(dead.layer == 2 && dead.advice.starts_with("Use a rule here"), "{dead}");
}

#[test]
fn dense_layers_in_a_row() {
    let two = || {
        Sequential::builder().named("fc1", layer(None)).layer(Identity).named("fc2", layer(None))
    };
    assert_eq!(codes(&two().build().unwrap(), Rule::Epsilon), [(Code::NoActivation, 2)]);
    let text = two().build().unwrap().check(Rule::Epsilon).unwrap()[0].to_string();
    assert!(
        text.contains("There is no activation between the dense layers 'fc1' and 'fc2'."),
        "{text}"
    );
    assert_eq!(
        codes(&two().layer(Relu).layer(layer(None)).build().unwrap(), Rule::Epsilon),
        [(Code::NoActivation, 2)]
    );
    assert_eq!(codes(&model(Relu), Rule::Epsilon), []);
}
