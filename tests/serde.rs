//! The output of the feature `serde` is as documented in `docs/json.md`. The tests compare the
//! page's examples with the output of the code.

use relprop::nalgebra::{dmatrix, dvector};
use relprop::{
    Accumulation, BatchNorm1d, Cause, Code, Error, Linear, Relu, Rule, Scalar, Sequential, Shape,
    Softmax, Targets,
};
use serde::Serialize;
use serde_json::{Value, json};

/// The example under this heading of the page, without spaces and line breaks outside strings.
fn example(heading: &str) -> String {
    let page = include_str!("../docs/json.md");
    let section = page
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no section {heading}"))
        .1;
    let block = section
        .split_once("```json\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .expect("an example")
        .0;
    let (mut packed, mut quoted) = (String::new(), false);
    for character in block.chars() {
        quoted ^= character == '"';
        if quoted || !character.is_whitespace() {
            packed.push(character);
        }
    }
    packed
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

fn value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

/// A model whose shares are exact on every machine.
fn model<T: Scalar>() -> Result<Sequential<T>, Error> {
    let number = T::from_f64;
    Sequential::builder()
        .layer(Linear::new(
            dmatrix![1.0, 3.0; 2.0, -1.0].map(number),
            dvector![0.0, 1.0].map(number),
        )?)
        .layer(Relu)
        .layer(Linear::new(dmatrix![1.0, 1.0].map(number), dvector![2.0].map(number))?)
        .build()
}

#[test]
fn the_page_shows_what_an_explanation_is() -> Result<(), Error> {
    let explanation = model::<f64>()?.explain(&dvector![1.0, 1.0], Rule::Lrp0)?;
    assert_eq!(text(&explanation), example("An explanation"));
    assert_eq!(value(&explanation)["targets"][0]["ledger"], value(&explanation.ledger(0)?));
    Ok(())
}

#[test]
fn the_page_shows_what_a_finding_and_a_plan_are() -> Result<(), Error> {
    let model = model::<f64>()?;
    let (shown, written): (Value, _) =
        (serde_json::from_str(&example("A finding")).unwrap(), value(&model.check(Rule::Flat)?[0]));
    let fields = ["code", "layer", "name", "kind"].map(|field| (&shown[field], &written[field]));
    assert!(fields.iter().all(|(shown, written)| shown == written), "{written}");
    let texts = |finding: &Value| {
        ["sentence", "advice"]
            .iter()
            .all(|field| finding[field].as_str().is_some_and(|s| !s.is_empty()))
    };
    assert!(
        texts(&shown) && texts(&written) && written.as_object().unwrap().len() == 6,
        "{written}"
    );
    assert_eq!(text(model.explainer(Rule::Lrp0)?.plan()), example("A plan"));
    Ok(())
}

#[test]
fn the_page_shows_what_health_is() -> Result<(), Error> {
    let mut shown: Value = serde_json::from_str(&example("Health")).unwrap();
    let sample = dvector![1.0, 1.0];
    let explanation = model::<f32>()?.explainer(Rule::Epsilon)?.with_health().explain(&sample)?;
    let mut written = value(&explanation)["health"].clone();
    // How single precision rounds can differ between machines.
    for field in ["error", "relative_error"] {
        for report in [&mut shown, &mut written] {
            let error = report["targets"][0][field].take().as_f64().unwrap();
            assert!(error > 0.0 && error < 1e-6, "{error:e}");
        }
    }
    assert!(alike(&shown, &written), "{written:#}");

    let exact = sample.map(f64::from);
    let explanation = model::<f64>()?.explainer(Rule::Epsilon)?.with_health().explain(&exact)?;
    let written = value(&explanation)["health"].clone();
    assert_eq!(written["targets"], json!([{"target": 0, "error": null, "relative_error": null}]));
    assert_eq!(written["prevented"], explanation.health().unwrap().prevented().unwrap());
    Ok(())
}

/// Whether names, strings and integers are equal, and other numbers differ by at most one part in a
/// million, because rounding can differ between machines.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-6 * a.abs()
        }
        _ => a == b,
    }
}

#[test]
fn single_precision_reads_back_the_same() -> Result<(), Error> {
    let weights: Vec<f32> = (0..7 * 40).map(|k| (k as f32 * 0.73).sin() / 3.0).collect();
    let model = Sequential::builder()
        .layer(Linear::from_rows(7, 40, &weights, None)?)
        .layer(Softmax)
        .build()?;
    let sample: Vec<f32> = (0..40).map(|k| (k as f32 * 1.7).cos() * 1e-3).collect();
    let explanation = model.explainer(Rule::Epsilon)?.explain_slice(&sample)?;
    let written: Value = serde_json::from_str(&text(&explanation)).unwrap();
    let read = |list: &Value| serde_json::from_value::<Vec<f32>>(list.clone()).unwrap();
    assert_eq!(read(&written["output"]), explanation.output().as_slice());
    assert_eq!(read(&written["probabilities"]), explanation.probabilities().unwrap().as_slice());
    for target in 0..7 {
        let entry = &written["targets"][target];
        assert_eq!(entry["target"], target);
        assert_eq!(read(&entry["relevance"]), explanation.relevance(target)?.as_slice());
    }
    assert_eq!(written["predicted"], explanation.predicted());
    Ok(())
}

#[test]
fn some_outputs_and_weightings_say_which_they_are() -> Result<(), Error> {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 2.0; 3.0, 1.0; 0.0, 4.0], None)?)
        .build()?;
    let explainer = model.explainer(Rule::Lrp0)?;
    let targets = |targets: Targets<f64>| -> Result<Value, Error> {
        let written = value(&explainer.clone().targets(targets)?.explain(&dvector![1.0, 1.0])?);
        let listed = written["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["target"].clone())
            .collect::<Value>();
        Ok(json!([written["weighted"], listed, written["targets"][0]["relevance"]]))
    };
    assert_eq!(targets([2, 0].into())?, json!([false, [2, 0], [0.0, 4.0]]));
    assert_eq!(targets(Targets::Predicted)?, json!([false, [1], [3.0, 1.0]]));
    assert_eq!(targets(dvector![-1.0, 1.0, 0.0].into())?, json!([true, [0], [2.0, -1.0]]));
    Ok(())
}

/// Where all relevance is lost, or the gauge overflows, the output is a number or null, because
/// JSON has no NaN.
#[test]
fn values_without_a_number_are_null() -> Result<(), Error> {
    fn check<T: Scalar + Serialize>(tiny: f64) -> Result<(), Error> {
        let number = |v: f64| T::from_f64(v);
        let big = number(1e15);
        let weights = dmatrix![big, -big; number(tiny), number(0.0)];
        let model = Sequential::builder()
            .layer(Linear::new(weights, dvector![number(tiny), number(0.0)])?)
            .build()?;
        for rule in Rule::ALL.into_iter().filter(|&rule| rule != Rule::Pass) {
            let explanation = match model
                .explainer(rule)?
                .with_health()
                .explain(&dvector![number(1.0), number(1.0)])
            {
                Err(Error::Overflow { .. }) if rule == Rule::Lrp0 => continue,
                explanation => explanation?,
            };
            let written = text(&explanation);
            assert!(!written.contains("NaN") && !written.contains("inf"), "{written}");
            let written: Value = serde_json::from_str(&written).unwrap();
            for entry in written["targets"].as_array().unwrap() {
                assert!(
                    entry["relevance"].as_array().unwrap().iter().all(Value::is_number),
                    "{entry}"
                );
                assert!(
                    entry["ledger"]["causes"].as_object().unwrap().values().all(Value::is_number),
                    "{entry}"
                );
                assert!(
                    ["output", "inputs", "rounding", "imbalance"]
                        .iter()
                        .all(|key| entry["ledger"][key].is_number()),
                    "{entry}"
                );
            }
        }
        Ok(())
    }
    check::<f32>(1e-38)?;
    check::<f64>(1e-300)
}

#[test]
fn names_are_those_that_are_displayed() {
    for cause in [Cause::Bias, Cause::Stabilizer, Cause::Rest, Cause::Dead, Cause::Empty] {
        assert_eq!(value(&cause), cause.to_string());
    }
    for code in [Code::SoftmaxLast, Code::DeadUnits, Code::UnmergedNorm, Code::LargeBiases] {
        assert_eq!(value(&code), code.to_string());
    }
    assert_eq!(
        value(&[Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse]),
        json!(["optimal", "forward", "reverse"])
    );
}

#[test]
fn small_types_are_their_fields() -> Result<(), Error> {
    assert_eq!(value(&Shape::from([3, 8, 10])), json!([3, 8, 10]));
    assert_eq!(value(&Shape::from(4)), json!([4]));
    let (model, sample) = (model::<f64>()?, dvector![1.0, 1.0]);
    let explanation = model.explain(&sample, Rule::Lrp0)?;
    assert_eq!(value(&explanation.top(0, 1)?), json!([{"input": 0, "relevance": 3.0}]));
    let trace = model.explainer(Rule::Lrp0)?.trace(&sample)?;
    let path = trace.paths(0, 1)?.remove(0);
    assert_eq!(value(&path), json!({"units": [1, 0, 0], "relevance": path.relevance}));
    let norm = BatchNorm1d::new(vec![2.0], vec![1.0], vec![0.5], vec![4.0], 0.0)?;
    let (_, merged) = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, -1.0], None)?)
        .layer(norm)
        .build()?
        .canonize()?;
    assert_eq!(value(&merged), json!([{"norm": "1", "into": "0"}]));
    Ok(())
}
