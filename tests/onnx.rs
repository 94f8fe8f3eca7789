//! What the nodes of an ONNX model are taken for, where no exporter's model tells it; and what is said of those that are refused.

#![cfg(feature = "onnx")]

#[path = "common/onnx.rs"]
mod protocol;

use protocol::{bytes, dense, float, int, ints, model, model_of, node, node_of, number, tensor, text, whole_tensor, word};
use relprop::io::OnnxFile;
use relprop::nalgebra::DVector;
use relprop::{Error, Sequential, UnsupportedNode};

fn read(input: &[i64], parts: &[Vec<u8>]) -> Result<Sequential<f64>, Error> {
    OnnxFile::from_bytes(model(input, parts))?.to_model()
}

fn constant(name: &str, values: &[i64]) -> Vec<u8> {
    node("Constant", &[], name, &[ints("value_ints", values)])
}

#[test]
fn a_model_by_hand_is_read() {
    let model = read(&[1, 2], &[node("Relu", &["x"], "h", &[]), dense()]).unwrap();
    assert_eq!(model.to_string(), "Sequential(\n  (h): ReLU()\n  (y): Linear(in_features=2, out_features=1, bias=False)\n)");
}

#[test]
fn a_gemm_is_scaled() {
    let gemm = node("Gemm", &["x", "w", "c"], "y", &[float("alpha", 0.5), float("beta", 3.0)]);
    let model = read(&[1, 2], &[tensor("w", &[2, 1], &[1.0, 2.0]), tensor("c", &[1], &[-1.0]), gemm]).unwrap();
    assert_eq!(model.forward(&DVector::from_vec(vec![10.0, 20.0])).unwrap().as_slice(), &[0.5 * 50.0 - 3.0]);
}

/// Lists of numbers stand one by one in most files, and packed in some.
#[test]
fn packed_lists_are_read() {
    let kernel = tensor("k", &[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let convolution = |pads: Vec<u8>| read(&[1, 1, 3, 3], &[kernel.clone(), node("Conv", &["x", "k"], "y", &[pads])]).unwrap();
    let packed = [text(1, "pads"), bytes(8, &[1, 0, 0, 1])].concat();
    let model = convolution(packed);
    assert_eq!(model.to_string(), convolution(ints("pads", &[1, 0, 0, 1])).to_string());
    assert!(model.to_string().contains("padding=(1, 0)"), "{model}");
}

#[test]
fn a_part_of_a_shape() {
    let parts = |end: i64| {
        let part = node("Shape", &["x"], "s", &[int("start", -2), int("end", end)]);
        let all = node("Concat", &["one", "s", "three"], "t", &[int("axis", 0)]);
        let flat = node("Flatten", &["r"], "h", &[]);
        let last = [tensor("w", &[6, 1], &[1.0; 6]), node("MatMul", &["h", "w"], "y", &[])].concat();
        let reshaped = node("Reshape", &["x", "t"], "r", &[]);
        read(&[1, 2, 3], &[constant("one", &[1]), constant("three", &[3]), part, all, reshaped, flat, last])
    };
    assert!(parts(2).is_ok(), "{:?}", parts(2));
    assert!(parts(9).unwrap_err().to_string().contains("does not fit"));
}

/// An activation is told by what it gives; what gives something else than all that are known is refused, never taken for the nearest.
#[test]
fn activations_are_told_by_their_values() {
    let scalars =
        |values: &[(&str, f32)]| values.iter().flat_map(|(name, value)| tensor(name, &[1], &[*value])).collect::<Vec<u8>>();
    let kind = |numbers: &[(&str, f32)], nodes: &[Vec<u8>]| {
        let model = read(&[1, 2], &[scalars(numbers), nodes.concat(), dense()]).map_err(|error| error.to_string())?;
        Ok::<String, String>(model.layers()[0].kind().to_owned())
    };
    let two = |operator: &str, a: &str, b: &str, output: &str| node(operator, &[a, b], output, &[]);
    let one = |operator: &str, a: &str, output: &str| node(operator, &[a], output, &[]);

    let shifted = [two("Add", "x", "3", "a"), two("Max", "a", "0", "b"), two("Min", "b", "6", "c")];
    let numbers = [("0", 0.0), ("3", 3.0), ("6", 6.0)];
    assert_eq!(kind(&numbers, &[shifted.concat(), two("Div", "c", "6", "h")]).unwrap(), "Hardsigmoid");
    assert_eq!(kind(&numbers, &[shifted.concat(), two("Mul", "x", "c", "d"), two("Div", "d", "6", "h")]).unwrap(), "Hardswish");
    let logistic = [one("Neg", "x", "a"), one("Exp", "a", "b"), two("Add", "b", "1", "c"), one("Reciprocal", "c", "h")];
    assert_eq!(kind(&[("1", 1.0)], &logistic).unwrap(), "Sigmoid");
    assert_eq!(kind(&[("1", 1.0)], &[one("Exp", "x", "a"), two("Add", "a", "1", "b"), one("Log", "b", "h")]).unwrap(), "Softplus");
    let mish = [one("Softplus", "x", "a"), one("Tanh", "a", "b"), two("Mul", "x", "b", "h")];
    assert_eq!(kind(&[], &mish).unwrap(), "Mish");
    assert_eq!(kind(&[("0", 0.0)], &[two("Max", "0", "x", "h")]).unwrap(), "ReLU");

    let clip = |bounds: &[(&str, f32)], inputs: &[&str]| kind(bounds, &[node("Clip", inputs, "h", &[])]);
    assert_eq!(clip(&[("0", 0.0)], &["x", "0"]).unwrap(), "ReLU");
    assert_eq!(clip(&[("1", 1.0)], &["x", "1"]).unwrap(), "Hardtanh");
    assert_eq!(clip(&[("0", -3.4e38), ("1", 1.0)], &["x", "0", "1"]).unwrap(), "Hardtanh");
    assert!(clip(&[("0", 0.0), ("1", -3.4e38)], &["x", "0", "1"]).is_err());
    assert!(clip(&[], &["x"]).is_err());

    let cut = [two("Max", "x", "0", "a"), two("Min", "a", "20", "h")];
    assert!(kind(&[("0", 0.0), ("20", 20.0)], &cut).unwrap_err().contains("as a part of an activation"));
    let quick = [two("Mul", "x", "s", "a"), one("Sigmoid", "a", "b"), two("Mul", "x", "b", "h")];
    assert!(kind(&[("s", 1.702)], &quick).unwrap_err().contains("no activation that is known"));
    assert!(kind(&[], &[one("Exp", "x", "h")]).unwrap_err().contains("as a part of an activation"));

    // Almost an activation: but for a jump close to 0, a cap far out, a kink beside another.
    let jump = [two("Greater", "x", "t", "a"), node("Where", &["a", "x", "0"], "h", &[])];
    assert_eq!(kind(&[("0", 0.0), ("t", 0.0)], &jump).unwrap(), "ReLU");
    for t in [0.1, -0.1, 1e-3] {
        assert!(kind(&[("0", 0.0), ("t", t)], &jump).is_err(), "{t}");
    }
    let cap = [one("Sigmoid", "x", "a"), two("Mul", "x", "a", "b"), two("Min", "b", "most", "h")];
    assert!(kind(&[("most", 1000.0)], &cap).is_err());
    let far = [two("Max", "x", "0", "a"), two("Min", "a", "most", "h")];
    assert!(kind(&[("0", 0.0), ("most", 2e6)], &far).is_err());
    let kink = [shifted.concat(), two("Greater", "a", "t", "g"), two("Mul", "x", "c", "d"), two("Div", "d", "6", "e")];
    let kink = [kink.concat(), node("Where", &["g", "e", "0"], "h", &[])];
    assert!(kind(&[("0", 0.0), ("3", 3.0), ("6", 6.0), ("t", 0.01)], &kink).is_err());
}

/// Files that onnxruntime reads, and as something else than what they look like.
#[test]
fn what_looks_like_something_else_is_refused() {
    let refused = |input: &[i64], parts: &[Vec<u8>], why: &str| {
        let error = read(input, parts).unwrap_err().to_string();
        assert!(error.contains(why), "'{error}' does not say '{why}'");
    };
    // A constant that adds an axis.
    let thick = [tensor("c", &[1, 1, 1], &[2.0]), node("Mul", &["x", "c"], "h", &[])].concat();
    refused(&[1, 2], &[thick, dense()], "has 3 axes");
    // A normalisation of before set 14, which says by its outputs that it is in training.
    let names = ["s", "b", "m", "v"];
    let norm: Vec<u8> = names.iter().flat_map(|name| tensor(name, &[2], &[1.0, 1.0])).collect();
    let norm = [norm, node_of("BatchNormalization", &["x", "s", "b", "m", "v"], &["h", "m1", "v1"], &[])].concat();
    refused(&[1, 2], &[norm, dense()], "after model.eval()");
    // A window that begins in zeros behind the values.
    let kernel = [ints("kernel_shape", &[2]), ints("strides", &[2]), int("ceil_mode", 1)];
    let pad = [whole_tensor("p", &[0, 0, 1, 0, 0, 1]), node("Pad", &["r", "p"], "q", &[])].concat();
    let pool = [node("Relu", &["x"], "r", &[]), pad, node("MaxPool", &["q"], "y", &kernel)].concat();
    refused(&[1, 1, 5], &[pool], "its last window may begin in them");
    // Values that are repeated, but not equally often; not along space; or not so often.
    let resized = |scales: &[f32], attributes: &[Vec<u8>]| {
        let all = [&[word("mode", "nearest")], attributes].concat();
        [tensor("s", &[4], scales), node("Resize", &["x", "", "s"], "y", &all)].concat()
    };
    let mode = |mode: &str, rounding: &str| [word("coordinate_transformation_mode", mode), word("nearest_mode", rounding)];
    refused(&[1, 1, 2, 2], &[resized(&[1.0, 1.0, 32.0, 32.0], &mode("half_pixel", "floor"))], "not repeated equally often");
    refused(&[1, 1, 2, 2], &[resized(&[1.0, 1.0, 2.0, 2.0], &[ints("axes", &[2, 3, 0, 1])])], "its axes are given");
    let kept = [word("keep_aspect_ratio_policy", "not_larger")];
    refused(&[1, 1, 2, 2], &[resized(&[1.0, 1.0, 2.0, 2.0], &kept)], "keep_aspect_ratio_policy");
    // Windows that are farther apart than they are long, or dilated, and padded to the same size.
    let same = |operator: &str, more: &[Vec<u8>]| {
        let inputs: &[&str] = if operator == "Conv" { &["x", "k"] } else { &["x"] };
        [tensor("k", &[1, 1, 1], &[1.0]), node(operator, inputs, "y", &[&[word("auto_pad", "SAME_UPPER")], more].concat())].concat()
    };
    refused(&[1, 1, 8], &[same("Conv", &[ints("strides", &[4])])], "farther apart than they are long");
    refused(&[1, 1, 8], &[same("MaxPool", &[ints("kernel_shape", &[2]), ints("dilations", &[2])])], "its windows are dilated");
    // The samples' axis alone, and something behind it.
    let alone =
        [tensor("w", &[2, 1], &[1.0, 2.0]), node("MatMul", &["x", "w"], "a", &[]), node("Squeeze", &["a", "one"], "b", &[])];
    let alone = [constant("one", &[1]), alone.concat(), node("Softmax", &["b"], "y", &[int("axis", 0)])];
    refused(&[3, 2], &alone, "it leaves the samples' axis alone");
    // Whole numbers are divided with truncation; those that become others first are read.
    let half = [tensor("c", &[1], &[2.0]), node("Div", &["x", "c"], "h", &[])].concat();
    let error = OnnxFile::from_bytes(model_of(7, &[1, 2], &[half, dense()])).unwrap().to_model::<f64>().unwrap_err();
    assert!(error.to_string().contains("its values are whole numbers"), "{error}");
    let half = [node("Cast", &["x"], "f", &[int("to", 1)]), tensor("c", &[1], &[2.0]), node("Div", &["f", "c"], "h", &[])].concat();
    let model = OnnxFile::from_bytes(model_of(2, &[1, 2], &[half, dense()])).unwrap().to_model::<f64>().unwrap();
    assert_eq!(model.forward(&DVector::from_vec(vec![3.0, 1.0])).unwrap().as_slice(), &[2.5]);
}

#[test]
fn what_is_in_training_is_refused() {
    let dropout = [tensor("ratio", &[1], &[0.5]), node("Constant", &[], "t", &[int("value_int", 1)])].concat();
    let dropout = [dropout, node("Dropout", &["x", "ratio", "t"], "h", &[])].concat();
    let norm: Vec<u8> = ["s", "b", "m", "v"].iter().flat_map(|name| tensor(name, &[2], &[1.0, 1.0])).collect();
    let norm = [norm, node("BatchNormalization", &["x", "s", "b", "m", "v"], "h", &[int("training_mode", 1)])].concat();
    for part in [dropout, norm] {
        assert!(read(&[1, 2], &[part, dense()]).unwrap_err().to_string().contains("export the model after model.eval()"));
    }
}

/// All nodes at once, each with its name, its operator and its place.
#[test]
fn what_is_refused_is_listed() {
    let refused = |file: &str| {
        let path = format!("{}/tests/exported/{file}.onnx", env!("CARGO_MANIFEST_DIR"));
        match Sequential::<f32>::read_onnx(path) {
            Err(Error::UnsupportedNodes { nodes }) => nodes,
            other => panic!("{file}: {other:?}"),
        }
    };
    let operators = |nodes: &[UnsupportedNode]| nodes.iter().map(|node| node.operator.clone()).collect::<Vec<_>>();
    let gate = refused("refused-gate");
    assert_eq!(operators(&gate), ["Mul"]);
    let text = Error::UnsupportedNodes { nodes: gate }.to_string();
    assert_eq!(
        text,
        "the model has a node that cannot be explained:\n  Mul '/Mul' (graph.node[6]): both of its inputs depend on the model's, \
         and it is no activation that is known"
    );
    let attention = refused("refused-attention");
    println!("{}", Error::UnsupportedNodes { nodes: attention.clone() });
    let mut listed = operators(&attention);
    listed.sort();
    assert_eq!(
        listed,
        ["Gather", "Gather", "Gather", "LayerNormalization", "LayerNormalization", "MatMul", "MatMul", "MatMul", "Transpose"]
    );
    let vendors = [text_node("com.vendor", "Fused"), dense()];
    let error = read(&[1, 2], &vendors).unwrap_err().to_string();
    assert!(error.contains("com.vendor.Fused 'h' (graph.node[0]): the operator is not read"), "{error}");
}

fn text_node(domain: &str, operator: &str) -> Vec<u8> {
    bytes(1, &[text(1, "x"), text(2, "h"), text(4, operator), text(7, domain)].concat())
}

#[test]
fn operators_of_unknown_versions_are_refused() {
    for version in [8, 29] {
        let file = [bytes(7, &[]), bytes(8, &number(2, version))].concat();
        let error = OnnxFile::from_bytes(file).unwrap_err().to_string();
        assert!(error.contains(&format!("of version {version}, those from 9 to 28 are read")), "{error}");
    }
}
