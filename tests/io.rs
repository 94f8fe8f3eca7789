//! Files: what is read back is what was written, and no file makes the reader panic.

#![cfg(feature = "safetensors")]

use proptest::prelude::*;
use relprop::io::StateDict;
use relprop::nalgebra::{dmatrix, dvector};
use relprop::{
    Celu, Dropout, Elementwise, Elu, Error, Gelu, HardSigmoid, HardSwish, HardTanh, Identity, Layer, LeakyRelu, Linear, Mish,
    Operator, Relu, Rule, Selu, Sequential, Shape, Sigmoid, Silu, Softmax, Softplus, Softsign, Tanh,
};

fn every_layer() -> Sequential<f64> {
    let linear = |seed: f64| Linear::new(dmatrix![seed, -0.5; 0.25, 1.0 - seed], dvector![0.1, -seed]).unwrap();
    Sequential::builder()
        .layer(Identity)
        .layer(linear(0.3))
        .layer(Relu)
        .layer(LeakyRelu::new(0.2).unwrap())
        .layer(Elu::new(0.5).unwrap())
        .layer(Gelu::Exact)
        .layer(linear(0.7))
        .layer(Gelu::Tanh)
        .layer(Silu)
        .layer(Sigmoid)
        .layer(Tanh)
        .layer(Softplus::new(2.0, 5.0).unwrap())
        .layer(HardTanh::new(-0.5, 2.0).unwrap())
        .layer(Selu)
        .layer(Celu::new(0.75).unwrap())
        .layer(Mish)
        .layer(Softsign)
        .layer(HardSigmoid)
        .layer(HardSwish)
        .layer(Dropout::default())
        .layer(Linear::new(dmatrix![1.0, 2.0; 3.0, 4.0; 5.0, 6.0], None).unwrap())
        .layer(Softmax)
        .build()
        .unwrap()
}

/// A safetensors file of one tensor, written by hand.
fn file(name: &str, kind: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"{kind}","shape":{shape},"data_offsets":[0,{}]}}}}"#, bytes.len());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), bytes].concat()
}

#[test]
fn a_model_comes_back() {
    let model = every_layer();
    let again = StateDict::from_safetensors(&model.to_safetensors().unwrap()).unwrap().to_model::<f64>().unwrap();
    assert_eq!(again.to_string(), model.to_string());
    let x = dvector![0.4, -1.5];
    assert_eq!(again.explain(&x, Rule::Epsilon).unwrap(), model.explain(&x, Rule::Epsilon).unwrap());
}

#[test]
fn a_model_comes_back_from_a_path() {
    let path = std::env::temp_dir().join(format!("relprop-{}.safetensors", std::process::id()));
    every_layer().write_safetensors(&path).unwrap();
    let again = Sequential::<f64>::read_safetensors(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(again.unwrap().to_string(), every_layer().to_string());
    assert!(matches!(StateDict::open(&path), Err(Error::Io { .. })));
}

#[test]
fn all_float_types_are_read() {
    let (wanted, half, brain) = ([1.0, -2.5], [0x3C00_u16, 0xC100], [0x3F80_u16, 0xC020]);
    let bytes16 = |v: [u16; 2]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let single: Vec<u8> = [1.0_f32, -2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let double: Vec<u8> = [1.0_f64, -2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    for (kind, bytes) in [("F16", bytes16(half)), ("BF16", bytes16(brain)), ("F32", single), ("F64", double)] {
        let weights = StateDict::from_safetensors(&file("net.1.weight", kind, "[1,2]", &bytes)).unwrap();
        assert_eq!(weights.tensor::<f64>("net.1.weight").unwrap(), (vec![1, 2], wanted.to_vec()), "{kind}");
        assert!(weights.builder::<f32>().linear_without_bias("net.1", 2, 1).build().is_ok());
    }
    let integers = StateDict::from_safetensors(&file("net.1.weight", "I32", "[1,2]", &[0; 8])).unwrap();
    assert!(matches!(integers.builder::<f32>().linear_without_bias("net.1", 2, 1).build(), Err(Error::Malformed { .. })));
}

#[test]
fn all_wrong_tensors_are_listed() {
    let weights = StateDict::from_safetensors(&every_layer().to_safetensors().unwrap()).unwrap();
    let error = weights.builder::<f64>().linear("1", 3, 2).linear("6", 2, 2).linear("30", 2, 3).build().unwrap_err();
    let Error::StateDict { missing, surplus, misshapen } = &error else { panic!("{error}") };
    assert_eq!(missing, &["30.weight", "30.bias"]);
    assert_eq!(surplus, &["20.weight"]);
    assert_eq!((&misshapen[0].expected[..], &misshapen[0].found[..]), (&[2, 3][..], &[2, 2][..]));
    assert!(error.to_string().contains("missing: 30.weight, 30.bias"));
}

#[test]
fn a_nan_is_named() {
    let bytes: Vec<u8> = [1.0_f32, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
    let weights = StateDict::from_safetensors(&file("fc.weight", "F32", "[1,2]", &bytes)).unwrap();
    let error = weights.builder::<f32>().linear_without_bias("fc", 2, 1).build().unwrap_err();
    assert_eq!(error.to_string(), "Linear fc: the weight of output 0 for input 1 is NaN");
}

#[test]
fn an_own_layer_is_not_written() {
    #[derive(Debug)]
    struct Square;
    impl Elementwise<f64> for Square {
        fn value(&self, z: f64) -> f64 {
            z * z
        }
    }
    impl Layer<f64> for Square {
        fn kind(&self) -> &'static str {
            "Square"
        }
        fn operator(&self, _input: Shape) -> Result<Operator<f64>, Error> {
            Ok(Operator::elementwise(Self))
        }
    }
    let model = Sequential::builder().layer(Linear::new(dmatrix![1.0], None).unwrap()).layer(Square).build().unwrap();
    assert!(matches!(model.to_safetensors(), Err(Error::NotWritable { layer: 1, .. })));
}

#[test]
fn lying_files_are_errors() {
    let huge = u64::MAX.to_le_bytes();
    for bytes in [&[][..], &[0; 7], &huge, &[huge.as_slice(), b"{}"].concat()] {
        assert!(matches!(StateDict::from_safetensors(bytes), Err(Error::Malformed { .. })));
    }
    for shape in ["[1,3]", "[4294967296,4294967296]", "[18446744073709551615,2]", "[-1,2]", "\"two\""] {
        assert!(matches!(StateDict::from_safetensors(&file("w", "F32", shape, &[0; 8])), Err(Error::Malformed { .. })), "{shape}");
    }
    let architecture = |line: &str| {
        let header = format!(r#"{{"__metadata__":{{"architecture":"{line}"}}}}"#);
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        StateDict::from_safetensors(&bytes).unwrap().to_model::<f32>().unwrap_err()
    };
    for line in
        ["Conv2d(1, 2)", "ReLU", "LeakyReLU(negative_slope=x)", "Linear(in_features=-1, out_features=2)", "GELU(approximate='x')"]
    {
        assert!(matches!(architecture(line), Error::Malformed { .. }), "{line}");
    }
    assert!(matches!(architecture("Linear(in_features=9999999999, out_features=9999999999)"), Error::StateDict { .. }));
    assert!(matches!(architecture(""), Error::EmptyModel));
}

proptest! {
    /// A whole file with bytes changed and its end cut off is read or refused, and a model of it explains or refuses.
    #[test]
    fn no_file_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
        let mut bytes = every_layer().to_safetensors().unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let model = StateDict::from_safetensors(&bytes).and_then(|weights| weights.to_model::<f64>());
        let explain = |model: Sequential<f64>| model.explainer(Rule::Epsilon)?.explain_slice(&vec![0.5; model.inputs()]);
        if let Ok(explanation) = model.and_then(explain) {
            prop_assert!(explanation.shares().iter().all(|s| s.is_finite()));
        }
    }
}
