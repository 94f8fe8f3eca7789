//! How the nodes of ONNX models are read, for cases that no exporter's model covers, and the
//! reasons for rejecting nodes.

use std::sync::Arc;

use crate::common::onnx::{
    bytes, dense, float, int, ints, model, model_of, node, node_of, number, tensor, text,
    whole_tensor, word,
};
use crate::common::zip_of;
use relprop::Error;
use relprop::io::OnnxFile;
use relprop::nalgebra::{DMatrix, DVector};
use relprop::rule::Outside;
use relprop::{
    Celu, Elementwise, Elu, Gelu, Graph, HardSigmoid, HardSwish, HardTanh, Layer, LeakyRelu,
    Linear, Mish, RelevanceRule, Relu, Rule, Scaled, Sequential, Sigmoid, Silu, Softplus, Softsign,
    Tanh, UnsupportedNode, ZBox,
};

fn read(input: &[i64], parts: &[Vec<u8>]) -> Result<Graph<f64>, Error> {
    OnnxFile::from_bytes(model(input, parts))?.to_graph()
}

fn read_chain(input: &[i64], parts: &[Vec<u8>]) -> Result<Sequential<f64>, Error> {
    OnnxFile::from_bytes(model(input, parts))?.to_model()
}

fn constant(name: &str, values: &[i64]) -> Vec<u8> {
    node("Constant", &[], name, &[ints("value_ints", values)])
}

#[test]
fn a_model_by_hand_is_read() {
    let parts = [node("Relu", &["x"], "h", &[]), dense()];
    let layers = "  (h): ReLU()\n  (y): Linear(in_features=2, out_features=1, bias=False)\n)";
    assert_eq!(
        read(&[1, 2], &parts).unwrap().to_string(),
        format!("Graph(\n  (x): Input(2)\n{layers}")
    );
    assert_eq!(read_chain(&[1, 2], &parts).unwrap().to_string(), format!("Sequential(\n{layers}"));
}

/// A network with branches is a graph, not a `Sequential`.
#[test]
fn a_chain_reads_only_the_layer_before() {
    let relu = node("Relu", &["x"], "r", &[]);
    let parts = [relu.clone(), node("Tanh", &["x"], "t", &[])];
    let parts = [parts.concat(), node("Add", &["r", "t"], "h", &[]), dense()];
    let graph = read(&[1, 2], &parts).unwrap();
    assert_eq!(
        graph.to_string(),
        "Graph(\n  (x): Input(2)\n  (r): ReLU()\n  (t): Tanh() <- x\n  (h): Sum() <- r, t\n  \
         (y): Linear(in_features=2, out_features=1, bias=False)\n)"
    );
    let Err(error @ Error::NotAChain { .. }) = read_chain(&[1, 2], &parts) else {
        panic!("it is a chain")
    };
    assert_eq!(
        error.to_string(),
        "layer 't' (Tanh) reads 'x', but in a Sequential each layer reads only the layer before \
         it: use a Graph instead (for an ONNX model, call Graph::read_onnx or OnnxFile::to_graph)"
    );
    // The same value twice.
    let twice = [relu, node("Add", &["r", "r"], "h", &[]), dense()];
    assert!(read(&[1, 2], &twice).is_ok());
    let error = read_chain(&[1, 2], &twice).unwrap_err().to_string();
    assert!(error.starts_with("layer 'h' (Sum) reads 'r', 'r', but"), "{error}");
}

/// Two sums that read a value at different depths, so that they are not nested.
#[test]
fn values_are_read_at_different_depths() {
    let parts = [
        tensor("u", &[2, 2], &[1.0, -0.5, 2.0, 0.75]),
        node("MatMul", &["x", "u"], "z", &[]),
        node("Relu", &["z"], "r1", &[]),
        node("Tanh", &["r1"], "r2", &[]),
        node("Add", &["x", "r1"], "r3", &[]),
        node("Sum", &["r3", "r2", "r1"], "h", &[]),
    ];
    let model = read(&[1, 2], &[parts.concat(), dense()]).unwrap();
    assert_eq!(model.names(), ["z", "r1", "r2", "r3", "h", "y"]);
    let x = [0.5_f64, 1.0];
    let r1 = [x[0] + 2.0 * x[1], -0.5 * x[0] + 0.75 * x[1]];
    assert!(r1[1] > 0.0);
    let h = [0, 1].map(|unit| x[unit] + 2.0 * r1[unit] + r1[unit].tanh());
    let y = h[0] + 2.0 * h[1];
    let explanation = model.explain(&DVector::from_row_slice(&x), Rule::Lrp0).unwrap();
    assert!((explanation.output()[0] - y).abs() < 1e-12);
    // Each value passes its relevance back in proportion to the terms of the sums and products.
    let at_h = [h[0], 2.0 * h[1]];
    let mut at_x = [0, 1].map(|unit| at_h[unit] * x[unit] / h[unit]);
    let at_r1 = [0, 1].map(|unit| at_h[unit] * (2.0 * r1[unit] + r1[unit].tanh()) / h[unit]);
    let weights = [[1.0, 2.0], [-0.5, 0.75]];
    for (unit, input) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        at_x[input] += at_r1[unit] * weights[unit][input] * x[input] / r1[unit];
    }
    let found = explanation.relevance(0).unwrap();
    // The rule of the sums has a stabilizer.
    assert!((found - DVector::from_row_slice(&at_x)).amax() < 1e-5);
}

#[test]
fn a_gemm_is_scaled() {
    let gemm = node("Gemm", &["x", "w", "c"], "y", &[float("alpha", 0.5), float("beta", 3.0)]);
    let model =
        read(&[1, 2], &[tensor("w", &[2, 1], &[1.0, 2.0]), tensor("c", &[1], &[-1.0]), gemm])
            .unwrap();
    assert_eq!(
        model.forward(&DVector::from_vec(vec![10.0, 20.0])).unwrap().as_slice(),
        &[0.5 * 50.0 - 3.0]
    );
}

/// In most files, the numbers of a list are separate fields, but in some they are packed.
#[test]
fn packed_lists_are_read() {
    let kernel = tensor("k", &[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let convolution = |pads: Vec<u8>| {
        read(&[1, 1, 3, 3], &[kernel.clone(), node("Conv", &["x", "k"], "y", &[pads])]).unwrap()
    };
    let packed = [text(1, "pads"), bytes(8, &[1, 0, 0, 1])].concat();
    let model = convolution(packed);
    assert_eq!(model.to_string(), convolution(ints("pads", &[1, 0, 0, 1])).to_string());
    assert!(model.to_string().contains("padding=(1, 0)"), "{model}");
}

#[test]
fn a_slice_of_a_shape_is_computed() {
    let parts = |end: i64| {
        let part = node("Shape", &["x"], "s", &[int("start", -2), int("end", end)]);
        let all = node("Concat", &["one", "s", "three"], "t", &[int("axis", 0)]);
        let flat = node("Flatten", &["r"], "h", &[]);
        let last =
            [tensor("w", &[6, 1], &[1.0; 6]), node("MatMul", &["h", "w"], "y", &[])].concat();
        let reshaped = node("Reshape", &["x", "t"], "r", &[]);
        read(
            &[1, 2, 3],
            &[constant("one", &[1]), constant("three", &[3]), part, all, reshaped, flat, last],
        )
    };
    assert!(parts(2).is_ok(), "{:?}", parts(2));
    assert!(parts(9).unwrap_err().to_string().contains("does not have as many values"));
}

/// An activation is recognized by its values. A function with other values than all known
/// activations is rejected, and never replaced by the most similar one.
#[test]
fn activations_are_recognized_by_their_values() {
    let scalars = |values: &[(&str, f32)]| {
        values.iter().flat_map(|(name, value)| tensor(name, &[1], &[*value])).collect::<Vec<u8>>()
    };
    let kind = |numbers: &[(&str, f32)], nodes: &[Vec<u8>]| {
        let model = read(&[1, 2], &[scalars(numbers), nodes.concat(), dense()])
            .map_err(|error| error.to_string())?;
        Ok::<String, String>(model.layers()[0].kind().to_owned())
    };
    let two = |operator: &str, a: &str, b: &str, output: &str| node(operator, &[a, b], output, &[]);
    let one = |operator: &str, a: &str, output: &str| node(operator, &[a], output, &[]);

    let shifted = [two("Add", "x", "3", "a"), two("Max", "a", "0", "b"), two("Min", "b", "6", "c")];
    let numbers = [("0", 0.0), ("3", 3.0), ("6", 6.0)];
    assert_eq!(
        kind(&numbers, &[shifted.concat(), two("Div", "c", "6", "h")]).unwrap(),
        "Hardsigmoid"
    );
    assert_eq!(
        kind(&numbers, &[shifted.concat(), two("Mul", "x", "c", "d"), two("Div", "d", "6", "h")])
            .unwrap(),
        "Hardswish"
    );
    let logistic = [
        one("Neg", "x", "a"),
        one("Exp", "a", "b"),
        two("Add", "b", "1", "c"),
        one("Reciprocal", "c", "h"),
    ];
    assert_eq!(kind(&[("1", 1.0)], &logistic).unwrap(), "Sigmoid");
    assert_eq!(
        kind(
            &[("1", 1.0)],
            &[one("Exp", "x", "a"), two("Add", "a", "1", "b"), one("Log", "b", "h")]
        )
        .unwrap(),
        "Softplus"
    );
    let mish = [one("Softplus", "x", "a"), one("Tanh", "a", "b"), two("Mul", "x", "b", "h")];
    assert_eq!(kind(&[], &mish).unwrap(), "Mish");
    assert_eq!(kind(&[("0", 0.0)], &[two("Max", "0", "x", "h")]).unwrap(), "ReLU");

    let clip =
        |bounds: &[(&str, f32)], inputs: &[&str]| kind(bounds, &[node("Clip", inputs, "h", &[])]);
    assert_eq!(clip(&[("0", 0.0)], &["x", "0"]).unwrap(), "ReLU");
    assert_eq!(clip(&[("1", 1.0)], &["x", "1"]).unwrap(), "Hardtanh");
    assert_eq!(clip(&[("0", -3.4e38), ("1", 1.0)], &["x", "0", "1"]).unwrap(), "Hardtanh");
    assert!(clip(&[("0", 0.0), ("1", -3.4e38)], &["x", "0", "1"]).is_err());
    assert!(clip(&[], &["x"]).is_err());

    let cut = [two("Max", "x", "0", "a"), two("Min", "a", "20", "h")];
    assert_eq!(kind(&[("0", 0.0), ("20", 20.0)], &cut).unwrap(), "Hardtanh");
    let quick = [two("Mul", "x", "s", "a"), one("Sigmoid", "a", "b"), two("Mul", "x", "b", "h")];
    assert_eq!(kind(&[("s", 1.702)], &quick).unwrap(), "Scaled");
    assert!(
        kind(&[], &[one("Exp", "x", "h")]).unwrap_err().contains("as part of a known activation")
    );

    // Functions that are almost an activation, except for a jump close to 0, a bound far from 0, or
    // a kink close to another.
    let jump = [two("Greater", "x", "t", "a"), node("Where", &["a", "x", "0"], "h", &[])];
    assert_eq!(kind(&[("0", 0.0), ("t", 0.0)], &jump).unwrap(), "ReLU");
    for t in [0.1, -0.1, 1e-3] {
        assert!(kind(&[("0", 0.0), ("t", t)], &jump).is_err(), "{t}");
    }
    let cap = [one("Sigmoid", "x", "a"), two("Mul", "x", "a", "b"), two("Min", "b", "most", "h")];
    // These are two activations, of which the second clips the values of the first.
    assert_eq!(kind(&[("most", 1000.0)], &cap).unwrap(), "SiLU");
    let far = [two("Max", "x", "0", "a"), two("Min", "a", "most", "h")];
    assert_eq!(kind(&[("0", 0.0), ("most", 2e6)], &far).unwrap(), "Hardtanh");
    let kink = [
        shifted.concat(),
        two("Greater", "a", "t", "g"),
        two("Mul", "x", "c", "d"),
        two("Div", "d", "6", "e"),
    ];
    let kink = [kink.concat(), node("Where", &["g", "e", "0"], "h", &[])];
    assert!(kind(&[("0", 0.0), ("3", 3.0), ("6", 6.0), ("t", 0.01)], &kink).is_err());
}

/// The weights of a network with the widths 2, 3 and 2, as inputs x outputs like in ONNX.
const FIRST: [f32; 6] = [1.0, -0.5, 2.0, 0.75, 1.5, -1.0];
const LAST: [f32; 6] = [1.0, -1.0, 0.5, 2.0, -1.5, 0.25];

fn linear(inputs: usize, weights: &[f32]) -> Linear<f64> {
    let weights = DMatrix::from_row_slice(inputs, weights.len() / inputs, weights).transpose();
    Linear::new(weights.map(f64::from), None).unwrap()
}

/// Models with an activation between two dense layers, and before the first.
fn around(constants: &[(&str, f32)], nodes: &[Vec<u8>]) -> [Result<Sequential<f64>, Error>; 2] {
    let all: Vec<u8> =
        constants.iter().flat_map(|(name, value)| tensor(name, &[], &[*value])).collect();
    let dense = |from: &str, weights: &str, to: &str| node("MatMul", &[from, weights], to, &[]);
    let between = [
        tensor("u", &[2, 3], &FIRST),
        dense("x", "u", "z"),
        all.clone(),
        nodes.concat(),
        tensor("v", &[3, 2], &LAST),
    ];
    let between = read_chain(&[1, 2], &[between.concat(), dense("h", "v", "y")]);
    let before =
        [node("Identity", &["x"], "z", &[]), all, nodes.concat(), tensor("u", &[2, 3], &FIRST)];
    [between, read_chain(&[1, 2], &[before.concat(), dense("h", "u", "y")])]
}

/// A name, constants, nodes from `z` to `h`, and the one activation that they are.
type Spelling = (&'static str, Vec<(&'static str, f32)>, Vec<u8>, Arc<dyn Layer<f64>>);

/// The relevances by rules that would treat a factor as a linear map: those of the one activation.
#[test]
#[allow(clippy::too_many_lines)] // a table of spellings
fn a_scaled_activation_is_one() {
    fn scaled(
        f: impl Layer<f64> + Elementwise<f64> + Clone + 'static,
        a: f64,
        c: f64,
    ) -> Arc<dyn Layer<f64>> {
        Arc::new(Scaled::new(f, a, c).unwrap())
    }
    fn layer(layer: impl Layer<f64> + 'static) -> Arc<dyn Layer<f64>> {
        Arc::new(layer)
    }
    let two = |operator: &str, a: &str, b: &str, output: &str| node(operator, &[a, b], output, &[]);
    let one = |operator: &str, a: &str, output: &str| node(operator, &[a], output, &[]);
    let with = |operator: &str, attributes: &[Vec<u8>]| node(operator, &["z"], "h", attributes);
    let factors = |operator: &str| {
        [two("Mul", "z", "a", "m"), one(operator, "m", "f"), two("Mul", "c", "f", "h")].concat()
    };
    let a_and_c = |a: f32, c: f32| vec![("a", a), ("c", c)];
    let quotient =
        [two("Mul", "z", "a", "m"), one("Softplus", "m", "f"), two("Div", "f", "a", "h")].concat();
    let shifted = |next: &[Vec<u8>]| [two("Add", "z", "3", "t"), next.concat()].concat();
    let clip = |from: &str, to: &str| node("Clip", &[from, "0", "6"], to, &[]);
    let relu6 = vec![("3", 3.0), ("0", 0.0), ("6", 6.0)];
    let half = vec![("s", 0.25), ("b", 0.5), ("0", 0.0), ("1", 1.0)];
    let half_step = |nodes: &[Vec<u8>]| {
        [two("Mul", "z", "s", "m"), two("Add", "m", "b", "t"), nodes.concat()].concat()
    };
    let gate = |argument: Vec<u8>| [argument, two("Mul", "z", "g", "h")].concat();
    let erf = [
        two("Mul", "z", "a", "m"),
        one("Erf", "m", "e"),
        two("Add", "e", "1", "g"),
        two("Mul", "z", "g", "h"),
    ]
    .concat();
    let sqrt = std::f64::consts::SQRT_2;
    let cube = [
        two("Mul", "z", "z", "q"),
        two("Mul", "q", "z", "r"),
        two("Mul", "r", "k", "s"),
        two("Add", "z", "s", "t"),
    ]
    .concat();
    let cube = [
        cube,
        two("Mul", "t", "w", "m"),
        one("Tanh", "m", "e"),
        two("Add", "e", "1", "g"),
        two("Mul", "z", "g", "h"),
    ]
    .concat();
    let both = [
        one("Relu", "z", "p"),
        one("Neg", "z", "n"),
        one("Relu", "n", "q"),
        two("Mul", "q", "s", "r"),
        two("Sub", "p", "r", "h"),
    ];
    let exponential = [
        one("Exp", "z", "e"),
        two("Sub", "e", "1", "m"),
        two("Mul", "a", "m", "n"),
        two("Greater", "z", "0", "w"),
    ]
    .concat();
    let exponential =
        [exponential, node("Where", &["w", "z", "n"], "f", &[]), two("Mul", "f", "c", "h")]
            .concat();
    let inverse = [
        two("Mul", "z", "a", "m"),
        one("Exp", "m", "e"),
        two("Add", "e", "1", "d"),
        two("Div", "c", "d", "h"),
    ]
    .concat();
    let logarithm = [
        two("Mul", "z", "a", "m"),
        one("Exp", "m", "e"),
        two("Add", "e", "1", "d"),
        one("Log", "d", "h"),
    ]
    .concat();
    let signs = [one("Neg", "z", "m"), one("Elu", "m", "f"), one("Neg", "f", "h")].concat();
    let several = [
        two("Mul", "z", "a", "m"),
        two("Mul", "m", "c", "n"),
        one("Tanh", "n", "f"),
        two("Div", "f", "a", "g"),
        one("Neg", "g", "h"),
    ];
    let cases: Vec<Spelling> = vec![
        ("Softplus(beta=2)", a_and_c(2.0, 0.0), quotient, layer(Softplus::new(2.0, 20.0).unwrap())),
        (
            "Softplus",
            a_and_c(-0.5, 3.0),
            factors("Softplus"),
            scaled(Softplus::default(), -0.5, 3.0),
        ),
        (
            "log(1 + exp)",
            vec![("a", 1.5), ("1", 1.0)],
            logarithm,
            scaled(Softplus::default(), 1.5, 1.0),
        ),
        ("Relu", a_and_c(2.0, 0.25), factors("Relu"), scaled(Relu, 1.0, 0.5)),
        ("-Relu(-z)", a_and_c(-1.0, -2.0), factors("Relu"), scaled(Relu, -1.0, -2.0)),
        (
            "LeakyRelu",
            a_and_c(-2.0, 0.5),
            factors("LeakyRelu"),
            scaled(LeakyRelu::new(100.0).unwrap(), 1.0, -0.01),
        ),
        ("Tanh", a_and_c(0.5, -2.0), factors("Tanh"), scaled(Tanh, 0.5, -2.0)),
        ("Softsign", a_and_c(0.5, 2.0), factors("Softsign"), scaled(Softsign, 0.5, 2.0)),
        ("Sigmoid", a_and_c(-3.0, 2.0), factors("Sigmoid"), scaled(Sigmoid, -3.0, 2.0)),
        (
            "c / (1 + exp)",
            vec![("a", -3.0), ("c", 2.0), ("1", 1.0)],
            inverse,
            scaled(Sigmoid, 3.0, 2.0),
        ),
        ("Elu", a_and_c(2.0, 3.0), factors("Elu"), scaled(Elu::default(), 2.0, 3.0)),
        ("-Elu(-z)", vec![], signs, scaled(Elu::default(), -1.0, -1.0)),
        (
            "Elu with Where",
            vec![("a", 0.5), ("c", 2.0), ("0", 0.0), ("1", 1.0)],
            exponential,
            scaled(Elu::new(0.5).unwrap(), 1.0, 2.0),
        ),
        ("Celu", a_and_c(1.0, 3.0), factors("Celu"), scaled(Celu::default(), 1.0, 3.0)),
        (
            "Selu",
            vec![],
            with("Selu", &[float("alpha", 2.0), float("gamma", 0.5)]),
            scaled(Elu::new(2.0).unwrap(), 1.0, 0.5),
        ),
        ("Swish", vec![], with("Swish", &[float("alpha", 2.0)]), scaled(Silu, 2.0, 0.5)),
        (
            "QuickGELU",
            vec![("a", 1.702)],
            gate([two("Mul", "z", "a", "m"), one("Sigmoid", "m", "g")].concat()),
            scaled(Silu, 1.702, 1.0 / 1.702),
        ),
        ("Gelu", a_and_c(2.0, 0.5), factors("Gelu"), scaled(Gelu::Exact, 2.0, 0.5)),
        ("z (1 + erf)", vec![("a", 1.0), ("1", 1.0)], erf, scaled(Gelu::Exact, sqrt, sqrt)),
        (
            "z (1 + tanh)",
            vec![("k", 0.044_715), ("w", 0.797_884_6), ("1", 1.0)],
            cube,
            scaled(Gelu::Tanh, 1.0, 2.0),
        ),
        ("Mish", a_and_c(2.0, 3.0), factors("Mish"), scaled(Mish, 2.0, 3.0)),
        (
            "z tanh(softplus)",
            vec![("a", 2.0)],
            gate(
                [two("Mul", "z", "a", "m"), one("Softplus", "m", "s"), one("Tanh", "s", "g")]
                    .concat(),
            ),
            scaled(Mish, 2.0, 0.5),
        ),
        (
            "HardSigmoid",
            vec![],
            with("HardSigmoid", &[float("alpha", 0.25)]),
            scaled(HardSigmoid, 1.5, 1.0),
        ),
        (
            "Clip(z / 4 + 1/2)",
            half.clone(),
            half_step(&[node("Clip", &["t", "0", "1"], "h", &[])]),
            scaled(HardSigmoid, 1.5, 1.0),
        ),
        (
            "Min(Max(z / 4 + 1/2))",
            half,
            half_step(&[two("Max", "t", "0", "p"), two("Min", "p", "1", "h")]),
            scaled(HardSigmoid, 1.5, 1.0),
        ),
        (
            "Clip(z + 3) / 6",
            relu6.clone(),
            shifted(&[clip("t", "f"), two("Div", "f", "6", "h")]),
            layer(HardSigmoid),
        ),
        ("Clip(z + 3)", relu6.clone(), shifted(&[clip("t", "h")]), scaled(HardSigmoid, 1.0, 6.0)),
        (
            "z Clip(z + 3) / 3",
            relu6.clone(),
            shifted(&[clip("t", "f"), two("Mul", "z", "f", "g"), two("Div", "g", "3", "h")]),
            scaled(HardSwish, 1.0, 2.0),
        ),
        (
            "z Clip(z + 3) / 6",
            relu6.clone(),
            shifted(&[clip("t", "f"), two("Mul", "z", "f", "g"), two("Div", "g", "6", "h")]),
            layer(HardSwish),
        ),
        (
            "3 Clip",
            relu6,
            [clip("z", "f"), two("Mul", "f", "3", "h")].concat(),
            scaled(HardTanh::new(0.0, 6.0).unwrap(), 1.0, 3.0),
        ),
        (
            "PRelu",
            vec![("s", 0.25)],
            node("PRelu", &["z", "s"], "h", &[]),
            layer(LeakyRelu::new(0.25).unwrap()),
        ),
        (
            "Relu(z) - Relu(-z) / 4",
            vec![("s", 0.25)],
            both.concat(),
            layer(LeakyRelu::new(0.25).unwrap()),
        ),
        (
            "Max(z, z / 4)",
            vec![("s", 0.25)],
            [two("Mul", "z", "s", "m"), two("Max", "z", "m", "h")].concat(),
            layer(LeakyRelu::new(0.25).unwrap()),
        ),
        ("several factors", a_and_c(2.0, 0.25), several.concat(), scaled(Tanh, 0.5, -0.5)),
    ];
    let x = DVector::from_vec(vec![1.0, -0.75]);
    for (name, constants, nodes, activation) in cases {
        let between = Sequential::builder()
            .layer(linear(2, &FIRST))
            .layer(activation.clone())
            .layer(linear(3, &LAST));
        let before =
            Sequential::builder().input(2).layer(activation.clone()).layer(linear(2, &FIRST));
        for (found, expected) in around(&constants, &[nodes]).into_iter().zip([between, before]) {
            let (found, expected) = (
                found.unwrap_or_else(|error| panic!("{name}: {error}")),
                expected.build().unwrap(),
            );
            let kinds = |model: &Sequential<f64>| {
                model.layers().iter().map(|layer| layer.kind().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(kinds(&found), kinds(&expected), "{name}: {found}");
            let close = |a: &DVector<f64>, b: &DVector<f64>| (a - b).amax() <= 2e-7 * b.amax();
            assert!(
                close(&found.forward(&x).unwrap(), &expected.forward(&x).unwrap()),
                "{name}: {found}"
            );
            let rules: [Box<dyn RelevanceRule<f64>>; 4] = [
                Box::new(Rule::Relative),
                Box::new(Rule::WSquare),
                Box::new(ZBox::new(-1.0, 1.0).unwrap().with_outside(Outside::Report)),
                Box::new(Rule::Epsilon),
            ];
            for rule in rules {
                let relevance = |model: &Sequential<f64>| {
                    model.explain(&x, &*rule).unwrap().relevance(1).unwrap()
                };
                assert!(close(&relevance(&found), &relevance(&expected)), "{name}\n{found}");
            }
            #[cfg(feature = "safetensors")]
            {
                let file = found.to_safetensors().unwrap();
                let again = relprop::io::StateDict::from_safetensors(&file)
                    .unwrap()
                    .to_model::<f64>()
                    .unwrap();
                assert_eq!(
                    (again.to_string(), again.forward(&x).unwrap()),
                    (found.to_string(), found.forward(&x).unwrap())
                );
            }
        }
    }
}

/// Every shape of slopes that broadcasts to one for each channel.
#[test]
fn a_prelu_has_a_slope_for_each_channel() {
    let slopes = [0.25_f32, -2.0];
    let read = |input: &[i64], shape: &[i64]| {
        let weights = [tensor("k", &[1, 2, 1], &[1.0, 0.5]), tensor("u", &[2, 1], &[1.0, 0.5])];
        let prelu = [tensor("s", shape, &slopes), node("PRelu", &["x", "s"], "h", &[])].concat();
        let linear = if input.len() == 2 {
            node("MatMul", &["h", "u"], "y", &[])
        } else {
            node("Conv", &["h", "k"], "y", &[])
        };
        read_chain(input, &[weights.concat(), prelu, linear])
    };
    for (input, shape) in [
        (&[1, 2][..], &[2][..]),
        (&[1, 2], &[1, 2]),
        (&[1, 2, 3], &[2, 1]),
        (&[1, 2, 3], &[1, 2, 1]),
    ] {
        let model = read(input, shape).unwrap();
        let each = model.inputs() / 2;
        let x = DVector::from_fn(2 * each, |at, _| [-1.0, 2.0, -3.0, 4.0, -0.5, -6.0][at]);
        let h = |at: usize| if x[at] > 0.0 { x[at] } else { f64::from(slopes[at / each]) * x[at] };
        let explanation = model.explain(&x, Rule::Lrp0).unwrap();
        for at in 0..each {
            let terms = [h(at), 0.5 * h(each + at)];
            assert!((explanation.output()[at] - terms[0] - terms[1]).abs() < 1e-12);
            // The activation passes the relevance of each value through.
            let relevance = explanation.relevance(at).unwrap();
            assert!((relevance[at] - terms[0]).abs() < 1e-12);
            assert!((relevance[each + at] - terms[1]).abs() < 1e-12);
        }
        assert_eq!(model.layers()[0].arguments(), "num_parameters=2");
    }
    for (input, shape) in [(&[1, 2, 2][..], &[2][..]), (&[1, 3], &[2])] {
        let error = read(input, shape).unwrap_err().to_string();
        assert!(error.contains("one number for each of the"), "{error}");
    }
    let thick = read(&[1, 2], &[1, 1, 2]).unwrap_err().to_string();
    assert!(thick.contains("its constant has 3 axes"), "{thick}");
}

/// A factor for each channel, a factor that is not next to an activation, and a factor whose values
/// other nodes read too become a scaling.
#[test]
fn other_factors_are_scalings() {
    let kinds = |parts: &[Vec<u8>]| {
        let model = read(&[1, 2], parts).unwrap();
        model.layers().iter().map(|layer| layer.kind().to_owned()).collect::<Vec<_>>()
    };
    let per_channel = [
        tensor("c", &[2], &[2.0, 3.0]),
        node("Mul", &["x", "c"], "m", &[]),
        node("Relu", &["m"], "h", &[]),
    ]
    .concat();
    assert_eq!(kinds(&[per_channel, dense()]), ["BatchNorm1d", "ReLU", "Linear"]);
    let alone = [tensor("c", &[], &[2.0]), node("Mul", &["x", "c"], "h", &[])].concat();
    assert_eq!(kinds(&[alone, dense()]), ["BatchNorm1d", "Linear"]);
    // tanh(2 x) + 2 x.
    let both = [
        tensor("c", &[], &[2.0]),
        node("Mul", &["x", "c"], "m", &[]),
        node("Tanh", &["m"], "t", &[]),
    ]
    .concat();
    let both = [both, node("Add", &["m", "t"], "h", &[]), dense()];
    assert_eq!(kinds(&both), ["BatchNorm1d", "Tanh", "Sum", "Linear"]);
    // tanh(x) + 2 tanh(x), with one tanh for both.
    let value = [
        tensor("c", &[], &[2.0]),
        node("Tanh", &["x"], "t", &[]),
        node("Mul", &["t", "c"], "m", &[]),
    ]
    .concat();
    let value = [value, node("Add", &["m", "t"], "h", &[]), dense()];
    let model = read(&[1, 2], &value).unwrap();
    assert!(!model.to_string().contains("BatchNorm"), "{model}");
    let tanh = 3.0 * (0.5_f64.tanh() + 2.0 * 1.0_f64.tanh());
    assert!((model.forward(&DVector::from_vec(vec![0.5, 1.0])).unwrap()[0] - tanh).abs() < 1e-12);
}

/// p and 1 - p are the probabilities of z and -z.
#[test]
fn probabilities_at_the_end_have_logits() {
    let (w, b) = ([-1.0, 1.0, 0.5, 2.0], [0.25, -0.5]);
    let x = DVector::from_vec(vec![2.0, 1.0]);
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    // One logit, which is -2 + 1 + 1/4, and two logits.
    for outputs in [1, 2] {
        let count = i64::try_from(outputs).unwrap();
        let weights: Vec<f32> = if outputs == 1 { vec![w[0], w[1]] } else { w.to_vec() };
        let dense = [
            tensor("w", &[2, count], &weights),
            tensor("b", &[count], &b[..outputs]),
            node("MatMul", &["x", "w"], "m", &[]),
        ];
        let dense =
            [dense.concat(), node("Add", &["m", "b"], "z", &[]), tensor("1", &[], &[1.0])].concat();
        let logits: Vec<f64> =
            if outputs == 1 { vec![-0.75] } else { vec![-2.0 + 0.5 + 0.25, 2.0 + 2.0 - 0.5] };
        let sides =
            [node("Sigmoid", &["z"], "p", &[]), node("Sub", &["1", "p"], "q", &[])].concat();
        let joined = |parts: &[&str], to: &str| node("Concat", parts, to, &[int("axis", 1)]);
        let reshaped = [
            whole_tensor("s", &[1, 2 * count]),
            joined(&["q", "p"], "c"),
            node("Reshape", &["c", "s"], "r", &[]),
        ]
        .concat();
        let endings = [
            (joined(&["q", "p"], "y"), -1.0),
            (joined(&["p", "q"], "y"), 1.0),
            (
                [
                    joined(&["q", "p"], "c"),
                    node("Identity", &["c"], "i", &[]),
                    node("Cast", &["i"], "y", &[int("to", 1)]),
                ]
                .concat(),
                -1.0,
            ),
            ([reshaped, node("Flatten", &["r"], "y", &[])].concat(), -1.0),
        ];
        for (ending, sign) in endings {
            let model = read(&[1, 2], &[dense.clone(), sides.clone(), ending]).unwrap();
            let kinds: Vec<&str> = model.layers().iter().map(|layer| layer.kind()).collect();
            assert_eq!(kinds, ["Linear", "Sigmoid"], "{model}");
            let expected = logits
                .iter()
                .map(|z| sigmoid(sign * z))
                .chain(logits.iter().map(|z| sigmoid(-sign * z)));
            let found = model.forward(&x).unwrap();
            assert_eq!(found.len(), 2 * outputs);
            assert!(
                found
                    .iter()
                    .zip(expected)
                    .all(|(found, expected)| (found - expected).abs() < 1e-12),
                "{found}"
            );
            let tensors = model.layers()[0].tensors();
            let stacked: Vec<f64> = [sign, -sign]
                .iter()
                .flat_map(|sign| {
                    (0..outputs).flat_map(move |k| {
                        [sign * f64::from(w[k]), sign * f64::from(w[outputs + k])]
                    })
                })
                .collect();
            let expected = if outputs == 1 { vec![-sign, sign, sign, -sign] } else { stacked };
            assert_eq!(
                (tensors[0].1.as_slice(), &tensors[0].2),
                (&[2 * outputs, 2][..], &expected)
            );
            assert_eq!(
                tensors[1].2,
                [sign, -sign]
                    .iter()
                    .flat_map(|s| b[..outputs].iter().map(move |&b| s * f64::from(b)))
                    .collect::<Vec<_>>()
            );
        }
    }
    // The logits come from an activation, without a dense layer of their own.
    let relu = [
        tensor("w", &[2, 1], &[-1.0, 3.0]),
        node("MatMul", &["x", "w"], "m", &[]),
        node("Relu", &["m"], "z", &[]),
    ]
    .concat();
    let ending = [
        tensor("1", &[], &[1.0]),
        node("Sigmoid", &["z"], "p", &[]),
        node("Sub", &["1", "p"], "q", &[]),
    ]
    .concat();
    let model =
        read(&[1, 2], &[relu, ending, node("Concat", &["q", "p"], "y", &[int("axis", -1)])])
            .unwrap();
    let kinds: Vec<&str> = model.layers().iter().map(|layer| layer.kind()).collect();
    assert_eq!(kinds, ["Linear", "ReLU", "Scaled", "Concat", "Sigmoid"]);
    assert!((model.forward(&x).unwrap()[0] - sigmoid(-1.0)).abs() < 1e-12);
    // With a temperature, the logit is scaled, and the sigmoid is not.
    let scaled = [
        tensor("w", &[2, 1], &[-1.0, 3.0]),
        node("MatMul", &["x", "w"], "m", &[]),
        tensor("t", &[], &[4.0]),
    ]
    .concat();
    let model = read(
        &[1, 2],
        &[scaled, node("Div", &["m", "t"], "z", &[]), node("Sigmoid", &["z"], "y", &[])],
    )
    .unwrap();
    assert_eq!(model.layers().last().unwrap().kind(), "Sigmoid");
    assert_eq!(model.layers()[1].arguments(), "Identity(), argument=1.0, value=0.25");
    assert!((model.forward(&x).unwrap()[0] - sigmoid(0.25)).abs() < 1e-12);
    // Two heads with a sigmoid each, which become one sigmoid after both.
    let heads = [
        tensor("w", &[2, 1], &[-1.0, 3.0]),
        tensor("v", &[2, 1], &[0.5, 1.0]),
        node("MatMul", &["x", "w"], "a", &[]),
    ]
    .concat();
    let heads = [
        heads,
        node("MatMul", &["x", "v"], "b", &[]),
        node("Sigmoid", &["a"], "p", &[]),
        node("Sigmoid", &["b"], "q", &[]),
    ];
    let model =
        read(&[1, 2], &[heads.concat(), node("Concat", &["p", "q"], "y", &[int("axis", 1)])])
            .unwrap();
    let kinds: Vec<&str> = model.layers().iter().map(|layer| layer.kind()).collect();
    assert_eq!(kinds, ["Linear", "Linear", "Concat", "Sigmoid"]);
    assert!((model.forward(&x).unwrap()[1] - sigmoid(2.0)).abs() < 1e-12);
}

/// Under every rule, the relevance of a label is that of its own logit. The layers that turn one
/// logit into two have no weights that could distribute it.
#[test]
fn a_label_has_the_relevance_of_its_own_logit() {
    let logits = [
        tensor("w", &[2, 2], &[-1.0, 1.0, 0.5, 2.0]),
        tensor("t", &[], &[4.0]),
        node("MatMul", &["x", "w"], "m", &[]),
    ]
    .concat();
    let hidden = [logits, node("Relu", &["m"], "h", &[])].concat();
    let direct = [hidden.clone(), node("Identity", &["h"], "z", &[])].concat();
    let cooled = [hidden, node("Div", &["h", "t"], "z", &[])].concat();
    let ending = [
        tensor("1", &[], &[1.0]),
        node("Sigmoid", &["z"], "p", &[]),
        node("Sub", &["1", "p"], "q", &[]),
    ]
    .concat();
    let ending = [ending, node("Concat", &["q", "p"], "y", &[int("axis", 1)])].concat();
    let x = DVector::from_vec(vec![1.0, 3.0]);
    for (nodes, temperature) in [(direct, 1.0), (cooled, 4.0)] {
        let file = OnnxFile::from_bytes(model(&[1, 2], &[nodes, ending.clone()])).unwrap();
        let (labels, logits) =
            (file.to_graph::<f64>().unwrap(), file.output("h").to_graph::<f64>().unwrap());
        for (rule, label) in [Rule::Flat, Rule::WSquare, Rule::Epsilon]
            .into_iter()
            .flat_map(|rule| (0..4).map(move |label| (rule, label)))
        {
            let relevance = |model: &Graph<f64>, label: usize| {
                model.explain(&x, rule).unwrap().relevance(label).unwrap()
            };
            let sign = if label < 2 { -1.0 } else { 1.0 };
            let expected = relevance(&logits, label % 2) * sign / temperature;
            assert!(expected.amax() > 0.01, "{expected}");
            assert!(
                (relevance(&labels, label) - expected).amax() < 1e-6,
                "{rule:?} {label}\n{labels}"
            );
        }
    }
}

/// The caller gives a size of 0 for a size that the file does not fix.
#[test]
fn a_given_shape_without_values_is_rejected() {
    let ending = [
        tensor("1", &[], &[1.0]),
        node("Sigmoid", &["x"], "p", &[]),
        node("Sub", &["1", "p"], "q", &[]),
    ]
    .concat();
    let nodes = [ending, node("Concat", &["q", "p"], "y", &[int("axis", 1)])];
    let file = OnnxFile::from_bytes(model(&[1, -1], &nodes)).unwrap();
    let error = file.input([0]).to_graph::<f64>().unwrap_err().to_string();
    assert!(
        error.contains("the given shape 0 has a size of 0: all sizes must be at least 1"),
        "{error}"
    );
    let file =
        OnnxFile::from_bytes(model(&[1, 1, -1, 2], &[node("Flatten", &["x"], "h", &[]), dense()]))
            .unwrap();
    assert!(
        file.clone()
            .input([1, 0, 2])
            .to_graph::<f64>()
            .unwrap_err()
            .to_string()
            .contains("has a size of 0")
    );
    assert!(file.input([1, 1, 2]).to_graph::<f64>().is_ok());
}

/// The layers have the names of the nodes, with a number where a name is in use.
#[test]
fn every_layer_has_a_name_of_its_own() {
    let mean = |from: &str, to: &str| {
        node("ReduceMean", &[from], to, &[ints("axes", &[2]), int("keepdims", 0)])
    };
    let relu = |from: &str, to: &str| node("Relu", &[from], to, &[]);
    let chain = [
        relu("x", "a b"),
        relu("a b", "a_b_2"),
        relu("a_b_2", "a_b"),
        relu("a_b", "m-1"),
        mean("m-1", "m"),
    ]
    .concat();
    let left = [node("Tanh", &["m"], "h-0", &[]), relu("h-0", "join-0")].concat();
    let branches =
        [left, node("Add", &["join-0", "m"], "r", &[]), node("Tanh", &["r"], "r.h-0", &[])]
            .concat();
    let weights =
        [tensor("w", &[2, 1], &[1.0, 2.0]), node("MatMul", &["r.h-0", "w"], "y", &[])].concat();
    let model = read(&[1, 2, 3], &[chain, branches, weights]).unwrap();
    let expected =
        ["a_b", "a_b_2", "a_b_3", "m-1", "m_4", "m_4-1", "h-0", "join-0", "r", "r.h-0", "y"];
    assert_eq!(model.names(), expected);
    // A node with the name of the input.
    let relu = bytes(1, &[text(1, "x"), text(2, "h"), text(3, "x"), text(4, "Relu")].concat());
    assert_eq!(read(&[1, 2], &[relu, dense()]).unwrap().names(), ["x_0", "y"]);
}

/// As in DenseNet, each concatenation reads the values that those before it read, and one more.
#[test]
fn repeated_concatenations_read_their_inputs() {
    let blocks = 12_usize;
    let mut parts = vec![node("Tanh", &["x"], "f0", &[])];
    for block in 1..=blocks {
        let features: Vec<String> = (0..block).map(|at| format!("f{at}")).collect();
        let features: Vec<&str> = features.iter().map(String::as_str).collect();
        let width = i64::try_from(2 * block).unwrap();
        let weights: Vec<f32> = (0..4 * block).map(|at| [0.5, -0.25, 0.75][at % 3]).collect();
        let (c, m, w) = (format!("c{block}"), format!("m{block}"), format!("w{block}"));
        parts.push(node("Concat", &features, &c, &[int("axis", 1)]));
        parts.push(tensor(&w, &[width, 2], &weights));
        parts.push(node("MatMul", &[&c, &w], &m, &[]));
        parts.push(node("Relu", &[&m], &format!("f{block}"), &[]));
    }
    let last = node("MatMul", &[&format!("f{blocks}"), "w"], "y", &[]);
    let model = read(&[1, 2], &[parts.concat(), tensor("w", &[2, 1], &[1.0, 2.0]), last]).unwrap();
    // A concatenation of one value is that value.
    assert_eq!(model.layers().len(), 1 + 3 * blocks);
    let x = [0.5_f64, 0.25];
    let mut features: Vec<f64> = x.iter().map(|x| x.tanh()).collect();
    for _ in 0..blocks {
        let unit = |unit: usize| {
            let terms = features
                .iter()
                .enumerate()
                .map(|(at, feature)| feature * [0.5, -0.25, 0.75][(2 * at + unit) % 3]);
            terms.sum::<f64>().max(0.0)
        };
        let new = [unit(0), unit(1)];
        features.extend(new);
    }
    let y = features[features.len() - 2] + 2.0 * features[features.len() - 1];
    let explanation = model.explain(&DVector::from_row_slice(&x), Rule::Lrp0).unwrap();
    assert!(y > 0.0 && (explanation.output()[0] - y).abs() < 1e-9 * y);
    // There are no biases, so the relevance is conserved.
    assert!((explanation.relevance(0).unwrap().sum() - y).abs() < 1e-9 * y);
}

/// Models that onnxruntime does not compute the way they look.
#[test]
fn misleading_models_are_rejected() {
    let refused = |input: &[i64], parts: &[Vec<u8>], why: &str| {
        let error = read(input, parts).unwrap_err().to_string();
        assert!(error.contains(why), "'{error}' does not say '{why}'");
    };
    // A constant that adds an axis.
    let thick = [tensor("c", &[1, 1, 1], &[2.0]), node("Mul", &["x", "c"], "h", &[])].concat();
    refused(&[1, 2], &[thick, dense()], "its constant has 3 axes");
    // A batch norm from before version 14, whose additional outputs mean training mode.
    let names = ["s", "b", "m", "v"];
    let norm: Vec<u8> = names.iter().flat_map(|name| tensor(name, &[2], &[1.0, 1.0])).collect();
    let norm =
        [norm, node_of("BatchNormalization", &["x", "s", "b", "m", "v"], &["h", "m1", "v1"], &[])]
            .concat();
    refused(&[1, 2], &[norm, dense()], "after model.eval()");
    // A window that begins in the zeros after the values.
    let kernel = [ints("kernel_shape", &[2]), ints("strides", &[2]), int("ceil_mode", 1)];
    let pad = [whole_tensor("p", &[0, 0, 1, 0, 0, 1]), node("Pad", &["r", "p"], "q", &[])].concat();
    let pool =
        [node("Relu", &["x"], "r", &[]), pad, node("MaxPool", &["q"], "y", &kernel)].concat();
    refused(&[1, 1, 5], &[pool], "the last window can begin in the padding");
    // Values that are not repeated equally often, not along spatial axes, or fewer times than the
    // scales say.
    let resized = |scales: &[f32], attributes: &[Vec<u8>]| {
        let all = [&[word("mode", "nearest")], attributes].concat();
        [tensor("s", &[4], scales), node("Resize", &["x", "", "s"], "y", &all)].concat()
    };
    let mode = |mode: &str, rounding: &str| {
        [word("coordinate_transformation_mode", mode), word("nearest_mode", rounding)]
    };
    refused(
        &[1, 1, 2, 2],
        &[resized(&[1.0, 1.0, 32.0, 32.0], &mode("half_pixel", "floor"))],
        "does not repeat each value equally often",
    );
    refused(
        &[1, 1, 2, 2],
        &[resized(&[1.0, 1.0, 2.0, 2.0], &[ints("axes", &[2, 3, 0, 1])])],
        "without axes",
    );
    let kept = [word("keep_aspect_ratio_policy", "not_larger")];
    refused(&[1, 1, 2, 2], &[resized(&[1.0, 1.0, 2.0, 2.0], &kept)], "keep_aspect_ratio_policy");
    // Padding to the same size, for windows that are farther apart than they are long, or dilated.
    let same = |operator: &str, more: &[Vec<u8>]| {
        let inputs: &[&str] = if operator == "Conv" { &["x", "k"] } else { &["x"] };
        [
            tensor("k", &[1, 1, 1], &[1.0]),
            node(operator, inputs, "y", &[&[word("auto_pad", "SAME_UPPER")], more].concat()),
        ]
        .concat()
    };
    refused(
        &[1, 1, 8],
        &[same("Conv", &[ints("strides", &[4])])],
        "the stride is larger than the window",
    );
    refused(
        &[1, 1, 8],
        &[same("MaxPool", &[ints("kernel_shape", &[2]), ints("dilations", &[2])])],
        "unsupported together with dilations",
    );
    // Only the batch axis remains, and another node follows.
    let alone = [
        tensor("w", &[2, 1], &[1.0, 2.0]),
        node("MatMul", &["x", "w"], "a", &[]),
        node("Squeeze", &["a", "one"], "b", &[]),
    ];
    let alone =
        [constant("one", &[1]), alone.concat(), node("Softmax", &["b"], "y", &[int("axis", 0)])];
    refused(&[3, 2], &alone, "it removes all axes except the batch axis");
    // Division of integers truncates. Integers that are converted first are supported.
    let half = [tensor("c", &[1], &[2.0]), node("Div", &["x", "c"], "h", &[])].concat();
    let error = OnnxFile::from_bytes(model_of(7, &[1, 2], &[half, dense()]))
        .unwrap()
        .to_graph::<f64>()
        .unwrap_err();
    assert!(error.to_string().contains("its values are integers"), "{error}");
    let half = [
        node("Cast", &["x"], "f", &[int("to", 1)]),
        tensor("c", &[1], &[2.0]),
        node("Div", &["f", "c"], "h", &[]),
    ]
    .concat();
    let model = OnnxFile::from_bytes(model_of(2, &[1, 2], &[half, dense()]))
        .unwrap()
        .to_graph::<f64>()
        .unwrap();
    assert_eq!(model.forward(&DVector::from_vec(vec![3.0, 1.0])).unwrap().as_slice(), &[2.5]);
}

#[test]
fn training_mode_is_rejected() {
    let dropout =
        [tensor("ratio", &[1], &[0.5]), node("Constant", &[], "t", &[int("value_int", 1)])]
            .concat();
    let dropout = [dropout, node("Dropout", &["x", "ratio", "t"], "h", &[])].concat();
    let norm: Vec<u8> =
        ["s", "b", "m", "v"].iter().flat_map(|name| tensor(name, &[2], &[1.0, 1.0])).collect();
    let norm = [
        norm,
        node("BatchNormalization", &["x", "s", "b", "m", "v"], "h", &[int("training_mode", 1)]),
    ]
    .concat();
    for part in [dropout, norm] {
        assert!(
            read(&[1, 2], &[part, dense()])
                .unwrap_err()
                .to_string()
                .contains("export the model after model.eval()")
        );
    }
}

/// One error lists all nodes, each with its name, operator and position.
#[test]
fn unsupported_nodes_are_listed() {
    let refused = |file: &str| {
        let path = format!("{}/tests/exported/{file}.onnx", env!("CARGO_MANIFEST_DIR"));
        match Graph::<f32>::read_onnx(path) {
            Err(Error::UnsupportedNodes { nodes }) => nodes,
            other => panic!("{file}: {other:?}"),
        }
    };
    let operators = |nodes: &[UnsupportedNode]| {
        nodes.iter().map(|node| node.operator.clone()).collect::<Vec<_>>()
    };
    let gate = refused("refused-gate");
    assert_eq!(operators(&gate), ["Mul"]);
    let text = Error::UnsupportedNodes { nodes: gate }.to_string();
    assert_eq!(
        text,
        "the model has a node that cannot be explained:\n  Mul '/Mul' (graph.node[6]): both of \
         its inputs depend on the model's input, and the result is not a known activation: \
         products of such values (gates, attention) are unsupported; explain the model up to one \
         of the inputs, with OnnxFile::output"
    );
    let attention = refused("refused-attention");
    println!("{}", Error::UnsupportedNodes { nodes: attention.clone() });
    let mut listed = operators(&attention);
    listed.sort();
    assert_eq!(
        listed,
        [
            &["Gather"; 3][..],
            &["LayerNormalization"; 2],
            &["MatMul"; 3],
            &["Softmax"],
            &["Transpose"; 6]
        ]
        .concat()
    );
    let vendors = [text_node("com.vendor", "Fused"), dense()];
    let error = read(&[1, 2], &vendors).unwrap_err().to_string();
    assert!(
        error.contains("com.vendor.Fused 'h' (graph.node[0]): the operator is unsupported"),
        "{error}"
    );
}

/// A graph with one unsupported node of each kind, some of them after values of unknown shape. One
/// error lists them all, without nodes that are only unsupported because of another.
#[test]
fn all_unsupported_nodes_are_listed_at_once() {
    let steps = [
        node("Relu", &["x"], "r1", &[]),
        node("Tanh", &["r1"], "r2", &[]),
        node("Add", &["x", "r1"], "r3", &[]),
        node("Add", &["r3", "r2"], "r4", &[]),
        node("Softmax", &["r4"], "softmax", &[]),
        node("Exp", &["softmax"], "part", &[]),
        node("Mul", &["part", "x"], "product", &[]),
        node("LSTM", &["product"], "unknown", &[]),
        // From here on, the shape is unknown.
        node("Cast", &["unknown"], "whole", &[int("to", 7)]),
        node("Relu", &["whole"], "fine", &[]),
        node("Transpose", &["fine"], "moved", &[ints("perm", &[1, 0, 2])]),
        tensor("k", &[4, 4, 3], &[0.5; 48]),
        node("Conv", &["moved", "k"], "convolution", &[word("auto_pad", "OTHER")]),
        node(
            "MaxPool",
            &["convolution"],
            "pool",
            &[ints("kernel_shape", &[2]), ints("dilations", &[2]), word("auto_pad", "SAME_UPPER")],
        ),
        node("AveragePool", &["pool"], "average", &[]),
        node("Pad", &["average"], "pad", &[word("mode", "reflect")]),
        node("HardSigmoid", &["pad"], "hard", &[float("beta", 0.25)]),
        node("Concat", &["hard", "hard"], "joined", &[int("axis", 2)]),
        node("Gelu", &["joined"], "gelu", &[word("approximate", "other")]),
        node("Reshape", &["gelu", "gelu"], "reshaped", &[]),
        tensor("w", &[3, 2], &[0.5; 6]),
        node("Gemm", &["reshaped", "w"], "gemm", &[int("transA", 1)]),
        // From here on, the shape is known again.
        tensor("v", &[2, 3], &[0.5; 6]),
        node("Gemm", &["gemm", "v"], "dense", &[]),
        tensor("c", &[2], &[0.5; 2]),
        node("Add", &["dense", "c"], "shift", &[]),
        node("Div", &["x", "shift"], "quotient", &[]),
        tensor("u", &[3, 1], &[0.5; 3]),
        node("MatMul", &["quotient", "u"], "y", &[]),
    ];
    let Err(Error::UnsupportedNodes { nodes }) = read(&[1, 2], &steps) else {
        panic!("it is read")
    };
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let expected = [
        "softmax",
        "part",
        "product",
        "unknown",
        "whole",
        "moved",
        "convolution",
        "pool",
        "average",
        "pad",
        "hard",
        "joined",
        "gelu",
        "reshaped",
        "gemm",
        "shift",
        "quotient",
    ];
    assert_eq!(names, expected, "{}", Error::UnsupportedNodes { nodes: nodes.clone() });
    let reason = |name: &str| nodes.iter().find(|node| node.name == name).unwrap().reason.clone();
    for (name, what) in [
        ("softmax", "a softmax before other layers"),
        ("unknown", "the operator is unsupported"),
        ("moved", "it moves the batch axis"),
        ("convolution", "its auto_pad 'OTHER' is unsupported"),
        ("pool", "unsupported together with dilations"),
        ("average", "its kernel_shape is missing"),
        ("pad", "its mode 'reflect' is unsupported"),
        ("gemm", "transA is unsupported"),
        ("shift", "one number for each of the 3 channels"),
    ] {
        assert!(reason(name).contains(what), "{name}: {}", reason(name));
    }
    // A node is not listed if it is only unsupported because of another.
    let follows = [
        node("LSTM", &["x"], "l", &[]),
        node("Softmax", &["l"], "s", &[]),
        node("Flatten", &["s"], "h", &[]),
        dense(),
    ];
    let Err(Error::UnsupportedNodes { nodes }) = read(&[1, 2], &follows) else {
        panic!("it is read")
    };
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["l", "s"]);
    let last = [
        node("LSTM", &["x"], "l", &[]),
        node("Softmax", &["l"], "s", &[]),
        node("Flatten", &["s"], "y", &[]),
    ];
    let Err(Error::UnsupportedNodes { nodes }) = read(&[1, 2], &last) else { panic!("it is read") };
    assert_eq!(nodes.len(), 1, "{nodes:?}");
}

/// With the shapes in the file, more nodes can be checked.
#[test]
fn shapes_in_the_file_help_after_an_unsupported_node() {
    let said = {
        let dims: Vec<u8> = [1, 5].iter().flat_map(|&dim| bytes(1, &number(1, dim))).collect();
        bytes(
            13,
            &[text(1, "l"), bytes(2, &bytes(1, &[number(1, 1), bytes(2, &dims)].concat()))]
                .concat(),
        )
    };
    let parts = [
        node("LSTM", &["x"], "l", &[]),
        node("MatMul", &["l", "w"], "y", &[]),
        tensor("w", &[2, 1], &[1.0, 2.0]),
    ];
    let refused = |parts: &[Vec<u8>]| match read(&[1, 2], parts) {
        Err(Error::UnsupportedNodes { nodes }) => {
            nodes.into_iter().map(|node| node.operator).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&parts), ["LSTM"]);
    assert_eq!(refused(&[parts.concat(), said]), ["LSTM", "MatMul"]);
}

/// The error for a file that is not a model says what the file is and gives its path.
#[test]
fn files_that_are_not_models_are_recognized() {
    let folder = std::env::temp_dir().join(format!("relprop-onnx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let whole =
        std::fs::read(format!("{}/tests/exported/mlp-opset9.onnx", env!("CARGO_MANIFEST_DIR")))
            .unwrap();
    let cases: [(&str, Vec<u8>, &str); 10] = [
        (
            "net.safetensors",
            b"\x10\0\0\0\0\0\0\0{\"a\":{}}     ".to_vec(),
            "it is a safetensors file, which contains only weights",
        ),
        (
            "net.pt",
            zip_of("net/data.pkl"),
            "it is a PyTorch checkpoint, which contains only weights",
        ),
        ("net.pt2", zip_of("net/archive_format"), "it is a program saved by torch.export"),
        ("net.keras", zip_of("metadata.json"), "it is a Keras model"),
        ("net.h5", b"\x89HDF\r\n\x1a\n\0\0".to_vec(), "it is an HDF5 file"),
        (
            "pointer.onnx",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n".to_vec(),
            "it is a Git LFS pointer",
        ),
        ("page.onnx", b"<!DOCTYPE html><html></html>".to_vec(), "it is an HTML page"),
        ("empty.onnx", Vec::new(), "it is an empty file"),
        (
            "cut.onnx",
            whole[..whole.len() / 2].to_vec(),
            "it begins like an ONNX model, but is truncated or damaged",
        ),
        (
            "noise.onnx",
            vec![0xfe; 64],
            "its format is unknown: only ONNX models are supported here",
        ),
    ];
    for (name, content, what) in cases {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        let opened = OnnxFile::open(&path).map(|_| ()).unwrap_err().to_string();
        let read = Sequential::<f32>::read_onnx(&path).map(|_| ()).unwrap_err().to_string();
        assert_eq!(opened, read);
        assert!(read.contains(what) && read.contains(name), "'{read}' does not say '{what}'");
    }
    let error = Sequential::<f32>::read_onnx(&folder).unwrap_err().to_string();
    assert!(error.contains("it is a folder: give the path of a file"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn errors_about_a_whole_model() {
    let says = |parts: &[Vec<u8>], what: &str| {
        let error = read(&[1, 2], parts).unwrap_err().to_string();
        assert!(error.contains(what), "'{error}' does not say '{what}'");
    };
    says(&[node("Identity", &["x"], "y", &[])], "do not change any value");
    says(&[node("Relu", &["x"], "y", &[])], "it only has activations and reshapes");
    says(
        &[node("Sigmoid", &["x"], "p", &[]), node("Flatten", &["p"], "y", &[])],
        "it only has activations and reshapes",
    );
    let file = OnnxFile::from_bytes(model(
        &[1, 2],
        &[node("Relu", &["x"], "hidden", &[]), dense_of("hidden", "scores")],
    ))
    .unwrap();
    let of = |name: &str| file.clone().output(name).to_graph::<f64>();
    assert!(of("scores").is_ok());
    let error = of("scroes").unwrap_err().to_string();
    assert!(
        error.ends_with(
            "the graph has no value 'scroes' (its outputs are 'y'), did you mean 'scores'?"
        ),
        "{error}"
    );
    let error = of("something else").unwrap_err().to_string();
    assert!(
        error.ends_with("the graph has no value 'something else' (its outputs are 'y')"),
        "{error}"
    );
}

fn dense_of(from: &str, to: &str) -> Vec<u8> {
    [tensor("w", &[2, 1], &[1.0, 2.0]), node("MatMul", &[from, "w"], to, &[])].concat()
}

fn text_node(domain: &str, operator: &str) -> Vec<u8> {
    bytes(1, &[text(1, "x"), text(2, "h"), text(4, operator), text(7, domain)].concat())
}

#[test]
fn unknown_operator_sets_are_rejected() {
    for version in [8, 29] {
        let file = [bytes(7, &[]), bytes(8, &number(2, version))].concat();
        let error = OnnxFile::from_bytes(file).unwrap_err().to_string();
        assert!(
            error.contains(&format!(
                "has version {version}, but only versions 9 to 28 are supported: export the model again"
            )),
            "{error}"
        );
    }
}

/// Up to version 12 of the operator set, a softmax is over all axes from its own on, and since then
/// only over its own.
#[test]
fn a_last_softmax_over_an_axis() {
    let two_labels =
        || [tensor("k", &[2, 1, 1, 1], &[1.0, -1.0]), node("Conv", &["x", "k"], "h", &[])].concat();
    let x = DVector::from_vec(vec![0.0, 1.0, 2.0, 3.0]);
    let with = |axis: &[i64]| {
        let settings: Vec<Vec<u8>> = axis.iter().map(|&axis| int("axis", axis)).collect();
        read(&[1, 1, 2, 2], &[two_labels(), node("Softmax", &["h"], "y", &settings)])
    };
    let labels = with(&[1]).unwrap();
    let p = labels.forward(&x).unwrap();
    assert!(
        (p[0] - 0.5).abs() < 1e-12
            && (p[3] - 0.997_527_376_843).abs() < 1e-9
            && (p[3] + p[7] - 1.0).abs() < 1e-12
    );
    assert!((labels.explain(&x, Rule::Lrp0).unwrap().output()[7] + 3.0).abs() < 1e-12);
    // Along the width, which is also the default.
    for model in [with(&[-1]).unwrap(), with(&[3]).unwrap(), with(&[]).unwrap()] {
        assert!((model.forward(&x).unwrap()[1] - 0.731_058_578_630).abs() < 1e-9);
    }
    // A transpose after the softmax becomes a transpose of the logits, before it.
    let last = [two_labels(), node("Softmax", &["h"], "p", &[int("axis", 1)])].concat();
    let channels_last =
        |perm: &[i64], to: &str| node("Transpose", &["p"], to, &[ints("perm", perm)]);
    let nhwc = read(&[1, 1, 2, 2], &[last.clone(), channels_last(&[0, 2, 3, 1], "y")]).unwrap();
    let twice = [
        last.clone(),
        channels_last(&[0, 3, 1, 2], "q"),
        node("Transpose", &["q"], "y", &[ints("perm", &[0, 3, 1, 2])]),
    ];
    let twice = read(&[1, 1, 2, 2], &twice).unwrap();
    let flat = read(
        &[1, 1, 2, 2],
        &[last.clone(), channels_last(&[0, 2, 3, 1], "q"), node("Flatten", &["q"], "y", &[])],
    )
    .unwrap();
    let once = read(&[1, 1, 2, 2], &[last.clone(), channels_last(&[0, 3, 1, 2], "y")]).unwrap();
    for model in [&nhwc, &once, &twice, &flat] {
        let (found, logits) =
            (model.forward(&x).unwrap(), model.explain(&x, Rule::Lrp0).unwrap().output().clone());
        let place = |pixel: usize, label: usize| {
            if std::ptr::eq(model, &raw const once) {
                4 * (pixel % 2) + 2 * label + pixel / 2
            } else {
                2 * pixel + label
            }
        };
        for (pixel, label) in (0..4).flat_map(|pixel| [(pixel, 0), (pixel, 1)]) {
            assert!(
                (found[place(pixel, label)] - p[4 * label + pixel]).abs() < 1e-12,
                "{model}: {found}"
            );
            let logit = [1.0, -1.0][label] * x[pixel];
            assert!((logits[place(pixel, label)] - logit).abs() < 1e-12, "{model}: {logits}");
        }
    }
    assert_eq!(
        nhwc.to_string().lines().skip(3).map(str::trim).collect::<Vec<_>>(),
        ["(y): Permute(dims=(0, 2, 3, 1))", "(p): Softmax(dim=3)", ")"]
    );
    // Over all values, as before version 13.
    let mut all = model(&[1, 1, 2, 2], &[last.clone(), channels_last(&[0, 2, 3, 1], "y")]);
    *all.last_mut().unwrap() = 11;
    let all = OnnxFile::from_bytes(all).unwrap().to_graph::<f64>().unwrap().forward(&x).unwrap();
    let whole: f64 = [0.0_f64, 1.0, 2.0, 3.0].iter().map(|z| z.exp() + (-z).exp()).sum();
    assert!(
        (all[3] - (-1.0_f64).exp() / whole).abs() < 1e-12 && (all.sum() - 1.0).abs() < 1e-12,
        "{all}"
    );
    // After a reshape, there may be no corresponding axis.
    let reshaped = [
        whole_tensor("s", &[1, 4, 2]),
        node("Reshape", &["p", "s"], "q", &[]),
        node("Transpose", &["q"], "y", &[ints("perm", &[0, 2, 1])]),
    ];
    let Err(Error::UnsupportedNodes { nodes }) = read(&[1, 1, 2, 2], &[last, reshaped.concat()])
    else {
        panic!("it is read")
    };
    let [UnsupportedNode { operator, reason, .. }] = nodes.as_slice() else { panic!("{nodes:?}") };
    assert!(
        operator == "Transpose" && reason.contains("whose probabilities are reshaped"),
        "{nodes:?}"
    );
    for (axis, what) in [
        (0, "its axis 0 is the batch axis"),
        (-4, "is the batch axis"),
        (4, "its axis is 4, which"),
    ] {
        let error = with(&[axis]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// The values of the constant `c`, which `parts` computes and which has `count` values.
fn folded(count: usize, parts: &[Vec<u8>]) -> Result<Vec<f64>, Error> {
    let identity: Vec<f32> = DMatrix::<f32>::identity(count, count).as_slice().to_vec();
    let size = i64::try_from(count).unwrap();
    let rest = [
        tensor("w", &[size, size], &identity),
        node("Add", &["x", "c"], "h", &[]),
        node("MatMul", &["h", "w"], "y", &[]),
    ];
    let model = read(&[1, size], &[parts, &rest].concat())?;
    Ok(model.forward(&DVector::zeros(count))?.as_slice().to_vec())
}

#[test]
fn constants_are_cast_as_their_types_are() {
    let cast = |constant: Vec<u8>, count: usize, to: i64| {
        let parts = [
            constant,
            node("Cast", &["a"], "b", &[int("to", to)]),
            node("Cast", &["b"], "c", &[int("to", 1)]),
        ];
        folded(count, &parts)
    };
    let whole = |values: &[i64], to| cast(whole_tensor("a", values), values.len(), to).unwrap();
    assert_eq!(whole(&[300, -1], 2), [44.0, 255.0]);
    assert_eq!(whole(&[300, -1], 3), [44.0, -1.0]);
    assert_eq!(whole(&[300, 0], 9), [1.0, 0.0]);
    let floats = |values: &[f32], to| {
        let count = values.len();
        cast(tensor("a", &[i64::try_from(count).unwrap()], values), count, to).unwrap()
    };
    assert_eq!(floats(&[2.9, -2.9, 0.5], 7), [2.0, -2.0, 0.0]);
    assert_eq!(floats(&[0.5, 0.0], 9), [1.0, 0.0]);
    assert_eq!(floats(&[1.0004], 10), [1.0]);
    // 8-bit floating-point numbers are unsupported.
    assert!(cast(whole_tensor("a", &[1]), 1, 17).is_err());
}

#[test]
fn powers_have_the_type_of_their_base() {
    let constants = [whole_tensor("two", &[2]), tensor("half", &[1], &[0.5])];
    let power = |a: &str, b: &str| {
        let parts = [node("Pow", &[a, b], "p", &[]), node("Cast", &["p"], "c", &[int("to", 1)])];
        folded(1, &[&constants[..], &parts].concat()).unwrap()
    };
    // The square root of 2, as an integer.
    assert_eq!(power("two", "half"), [1.0]);
    assert_eq!(power("half", "two"), [0.25]);
}

#[test]
fn slices_of_constants_are_cut_at_the_ends() {
    let picked = |start: i64, end: i64, stride: i64, count: usize| {
        let parts = [
            tensor("a", &[5], &[0.0, 1.0, 2.0, 3.0, 4.0]),
            whole_tensor("start", &[start]),
            whole_tensor("end", &[end]),
            whole_tensor("axis", &[0]),
            whole_tensor("stride", &[stride]),
            node("Slice", &["a", "start", "end", "axis", "stride"], "c", &[]),
        ];
        folded(count, &parts)
    };
    assert_eq!(picked(1, i64::MAX, 2, 2).unwrap(), [1.0, 3.0]);
    assert_eq!(picked(-2, 5, 1, 2).unwrap(), [3.0, 4.0]);
    assert_eq!(picked(i64::MAX, i64::MIN, -2, 3).unwrap(), [4.0, 2.0, 0.0]);
    assert_eq!(picked(-9, -9, -1, 1).unwrap(), [0.0]);
    // An empty slice, and a stride of 0.
    assert!(picked(3, 0, 1, 1).is_err());
    assert!(picked(0, 5, 0, 5).is_err());
}
