//! ONNX models put together by hand, for what no exporter writes.

// The bytes of messages are put together by hand.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

/// An integer in the encoding of protocol buffers.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

pub fn number(tag: u64, value: i64) -> Vec<u8> {
    [varint(tag << 3), varint(value as u64)].concat()
}

pub fn bytes(tag: u64, content: &[u8]) -> Vec<u8> {
    [&varint(tag << 3 | 2), &varint(content.len() as u64), content].concat()
}

pub fn text(tag: u64, content: &str) -> Vec<u8> {
    bytes(tag, content.as_bytes())
}

pub fn node(operator: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    node_of(operator, inputs, &[output], attributes)
}

/// A node with several outputs.
pub fn node_of(
    operator: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[Vec<u8>],
) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| text(1, input)).collect();
    let outputs: Vec<u8> = outputs.iter().flat_map(|output| text(2, output)).collect();
    let attributes: Vec<u8> = attributes.iter().flat_map(|attribute| bytes(5, attribute)).collect();
    bytes(1, &[inputs, outputs, text(4, operator), attributes].concat())
}

/// An attribute with a list of integers.
pub fn ints(name: &str, values: &[i64]) -> Vec<u8> {
    [text(1, name), values.iter().flat_map(|&value| number(8, value)).collect()].concat()
}

/// A tensor of f32.
pub fn tensor(name: &str, dims: &[i64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let dims: Vec<u8> = dims.iter().flat_map(|&dim| number(1, dim)).collect();
    bytes(5, &[dims, number(2, 1), text(8, name), bytes(9, &raw)].concat())
}

/// A tensor of integers.
pub fn whole_tensor(name: &str, values: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes(
        5,
        &[number(1, values.len() as i64), number(2, 7), text(8, name), bytes(9, &raw)].concat(),
    )
}

fn info(tag: u64, name: &str, element: i64, dims: &[i64]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&dim| bytes(1, &number(1, dim))).collect();
    let of = bytes(1, &[number(1, element), bytes(2, &dims)].concat());
    bytes(tag, &[text(1, name), bytes(2, &of)].concat())
}

/// A model from `x`, of type f32, to `y`.
pub fn model(input: &[i64], parts: &[Vec<u8>]) -> Vec<u8> {
    model_of(1, input, parts)
}

/// A model from `x`, with this element type, to `y`.
pub fn model_of(element: i64, input: &[i64], parts: &[Vec<u8>]) -> Vec<u8> {
    let graph = [parts.concat(), info(11, "x", element, input), info(12, "y", 1, &[1, 1])].concat();
    [number(1, 9), bytes(7, &graph), bytes(8, &number(2, 17))].concat()
}

/// A dense layer from `h`, with two values, to `y`, because a model must have one.
pub fn dense() -> Vec<u8> {
    [tensor("w", &[2, 1], &[1.0, 2.0]), node("MatMul", &["h", "w"], "y", &[])].concat()
}

/// An attribute with one integer.
pub fn int(name: &str, value: i64) -> Vec<u8> {
    [text(1, name), number(3, value)].concat()
}

/// An attribute with one floating-point number.
pub fn float(name: &str, value: f32) -> Vec<u8> {
    [text(1, name), varint(2 << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

/// An attribute with a string.
pub fn word(name: &str, value: &str) -> Vec<u8> {
    [text(1, name), bytes(4, value.as_bytes())].concat()
}
