//! Files: models are read back as they were written, and no file makes a reader panic.

use proptest::prelude::*;
use relprop::io::StateDict;
use relprop::nalgebra::{dmatrix, dvector};
use relprop::{
    AvgPool2d, Celu, Code, Dropout, Elementwise, Elu, Error, Gelu, HardSigmoid, HardSwish,
    HardTanh, Identity, Layer, LeakyRelu, Linear, Mish, Operator, Relu, Rule, Selu, Sequential,
    Shape, Sigmoid, Silu, Softmax, Softplus, Softsign, Tanh,
};

fn every_layer() -> Sequential<f64> {
    let linear = |seed: f64| {
        Linear::new(dmatrix![seed, -0.5; 0.25, 1.0 - seed], dvector![0.1, -seed]).unwrap()
    };
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

/// A safetensors file with one tensor, written by hand.
fn file(name: &str, kind: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let header = format!(
        r#"{{"{name}":{{"dtype":"{kind}","shape":{shape},"data_offsets":[0,{}]}}}}"#,
        bytes.len()
    );
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), bytes].concat()
}

#[test]
fn a_model_comes_back() {
    let model = every_layer();
    let again = StateDict::from_safetensors(&model.to_safetensors().unwrap())
        .unwrap()
        .to_model::<f64>()
        .unwrap();
    assert_eq!(again.to_string(), model.to_string());
    let x = dvector![0.4, -1.5];
    assert_eq!(
        again.explain(&x, Rule::Epsilon).unwrap(),
        model.explain(&x, Rule::Epsilon).unwrap()
    );
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
    for (kind, bytes) in
        [("F16", bytes16(half)), ("BF16", bytes16(brain)), ("F32", single), ("F64", double)]
    {
        let weights =
            StateDict::from_safetensors(&file("net.1.weight", kind, "[1,2]", &bytes)).unwrap();
        assert_eq!(
            weights.tensor::<f64>("net.1.weight").unwrap(),
            (vec![1, 2], wanted.to_vec()),
            "{kind}"
        );
        assert!(weights.builder::<f32>().linear_without_bias("net.1", 2, 1).build().is_ok());
    }
    let integers =
        StateDict::from_safetensors(&file("net.1.weight", "I32", "[1,2]", &[0; 8])).unwrap();
    assert!(matches!(
        integers.builder::<f32>().linear_without_bias("net.1", 2, 1).build(),
        Err(Error::Malformed { .. })
    ));
}

#[test]
fn all_wrong_tensors_are_listed() {
    let weights = StateDict::from_safetensors(&every_layer().to_safetensors().unwrap()).unwrap();
    let error = weights
        .builder::<f64>()
        .linear("1", 3, 2)
        .linear("6", 2, 2)
        .linear("30", 2, 3)
        .build()
        .unwrap_err();
    let Error::StateDict { missing, surplus, misshapen, .. } = &error else { panic!("{error}") };
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
    assert_eq!(
        error.to_string(),
        "Linear fc: the weight of output 0 for input 1 is NaN; it must be finite"
    );
}

#[test]
fn a_custom_layer_is_not_written() {
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
        fn operator(&self, _inputs: &[Shape]) -> Result<Operator<f64>, Error> {
            Ok(Operator::elementwise(Self))
        }
    }
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0], None).unwrap())
        .layer(Square)
        .build()
        .unwrap();
    assert!(matches!(model.to_safetensors(), Err(Error::NotWritable { layer: 1, .. })));
}

#[test]
fn lying_files_are_errors() {
    let huge = u64::MAX.to_le_bytes();
    for bytes in [&[][..], &[0; 7], &huge, &[huge.as_slice(), b"{}"].concat()] {
        assert!(matches!(StateDict::from_safetensors(bytes), Err(Error::Malformed { .. })));
    }
    for shape in
        ["[1,3]", "[4294967296,4294967296]", "[18446744073709551615,2]", "[-1,2]", "\"two\""]
    {
        assert!(
            matches!(
                StateDict::from_safetensors(&file("w", "F32", shape, &[0; 8])),
                Err(Error::Malformed { .. })
            ),
            "{shape}"
        );
    }
    let architecture = |line: &str| {
        let header = format!(r#"{{"__metadata__":{{"architecture":"{line}"}}}}"#);
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        StateDict::from_safetensors(&bytes).unwrap().to_model::<f32>().unwrap_err()
    };
    for line in [
        "Conv2d(1, 2)",
        "ReLU",
        "LeakyReLU(negative_slope=x)",
        "Linear(in_features=-1, out_features=2)",
        "GELU(approximate='x')",
    ] {
        assert!(matches!(architecture(line), Error::Malformed { .. }), "{line}");
    }
    assert!(matches!(
        architecture("Linear(in_features=9999999999, out_features=9999999999)"),
        Error::StateDict { .. }
    ));
    assert!(matches!(architecture(""), Error::EmptyModel));
}

/// The model for a text whose layers have no tensors.
fn printed(text: &str, shape: impl Into<Shape>) -> Result<Sequential<f64>, Error> {
    let none = StateDict::from_safetensors(&file("none.weight", "F32", "[1]", &[0; 4]))
        .unwrap()
        .under("nothing");
    none.model_of(text, Some(shape.into()))
}

#[test]
fn unsupported_arguments_are_rejected_by_name() {
    for (text, what) in [
        (
            "Flatten(start_dim=2, end_dim=-1)",
            "layer 0: Flatten: start_dim=2 is unsupported: only flattening a whole sample",
        ),
        ("Flatten(2)", "Flatten: start_dim=2 is unsupported"),
        ("Flatten(start_dim=1, end_dim=2)", "Flatten: end_dim=2 is unsupported"),
        ("ReLU(threshold=1.0)", "ReLU: the argument threshold=1.0 is unsupported"),
        ("ReLU(inplace=3)", "ReLU: inplace is 3, not True or False"),
        ("ReLU(1.0)", "ReLU: inplace is 1.0"),
        ("ReLU(False, 2)", "ReLU: the argument 2 is unsupported"),
        (
            "Upsample(size=(8, 8), mode='nearest')",
            "Upsample: size=(8, 8) is unsupported: use scale_factor instead",
        ),
        ("Upsample(8)", "Upsample: size=8 is unsupported"),
        ("Upsample(scale_factor=2.0, mode='bilinear')", "Upsample: mode='bilinear' is unsupported"),
        (
            "Upsample(scale_factor=(2.0, 3.0), mode='nearest')",
            "scale_factor=(2.0, 3.0) is unsupported",
        ),
        ("Upsample(mode='nearest')", "scale_factor is missing"),
        ("MaxPool2d(2, return_indices=True)", "MaxPool2d: return_indices=True is unsupported"),
        ("MaxPool2d(stride=2)", "MaxPool2d: kernel_size is missing"),
        ("MaxPool1d(kernel_size=(2, 3))", "MaxPool1d: kernel_size is (2, 3), not one size"),
        (
            "AvgPool1d(2, divisor_override=3)",
            "AvgPool1d: the argument divisor_override=3 is unsupported",
        ),
        ("AvgPool2d(2, divisor_override=0)", "divisor_override must be at least 1"),
        (
            "AdaptiveAvgPool2d(output_size=(None, 7))",
            "output_size is (None, 7), not one or two sizes",
        ),
        ("AdaptiveAvgPool2d()", "output_size is missing"),
        ("GELU(approximate='fast')", "GELU: approximate='fast' is unsupported"),
        ("GELU('tanh', 3)", "GELU: the argument 3 is unsupported"),
        ("Sigmoid(3)", "Sigmoid: the argument 3 is unsupported"),
        ("Tanh(gain=2)", "Tanh: the argument gain=2 is unsupported"),
        ("Dropout(p=2.0)", "p must be between 0 and 1"),
        ("Dropout(p=0.5, train=True)", "Dropout: the argument train=True is unsupported"),
        (
            "Conv2d(1, 1, kernel_size=(1, 1), stride=(1, 1), padding_mode=reflect)",
            "Conv2d: padding_mode=reflect is unsupported",
        ),
        (
            "Conv2d(1, 1, kernel_size=3, stride=2, padding=same)",
            "padding='same' requires a stride of 1",
        ),
        (
            "Conv2d(1, 1, kernel_size=3, device=cuda)",
            "Conv2d: the argument device=cuda is unsupported",
        ),
        ("Conv2d(1, 1, 3, output_padding=1)", "output_padding is supported only for transposed"),
        (
            "BatchNorm2d(4, track_running_stats=False)",
            "BatchNorm2d: track_running_stats=False is unsupported",
        ),
        ("BatchNorm2d(4, momentum=fast)", "momentum is neither a number nor None"),
        ("Linear(3, 4, True, 5)", "Linear: the argument 5 is unsupported"),
        ("Linear(3)", "Linear: out_features is missing"),
        ("Unflatten(dim=2, unflattened_size=(2, 2))", "Unflatten: dim=2 is unsupported"),
        (
            "LayerNorm((4,), eps=1e-05)",
            "LayerNorm is unsupported. The supported layers are AdaptiveAvgPool1d, ",
        ),
        ("Relu()", "Relu is unsupported, did you mean 'ReLU'? The supported layers are"),
        ("Conv2D(1, 1, 3)", "Conv2D is unsupported, did you mean 'Conv2d'?"),
        (
            "Sequential(\n  (a): Sequential(\n    (0): ReLU()\n    (b): Foo(3)\n  )\n)",
            "layer a.b: Foo is unsupported",
        ),
        ("ReLU()\nFoo()", "layer 1: Foo is unsupported"),
        ("Sequential((0): ReLU()", "the text ends before the bracket that closes the module"),
        ("nonsense", "'nonsense' is not a layer in PyTorch's format"),
    ] {
        let error = printed(text, [2, 4, 4]).unwrap_err().to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
    for text in [
        "ReLU(inplace=True)",
        "ReLU(inplace)",
        "LeakyReLU(0.2, inplace=True)",
        "ELU(alpha=1.0, inplace=True)",
        "Hardtanh(-1.0, 2.0)",
        "Softplus(2.0, 30)",
        "Dropout(0.3)",
        "AlphaDropout(p=0.5, inplace=False)",
        "Flatten(1, -1)",
        "Flatten()",
        "Identity(54, unused=True)",
        "MaxPool2d(2, 2, 0, 1, False, False)",
        "MaxPool2d(kernel_size=2, stride=None)",
        "AvgPool2d(2, 2, 0, False, True, None)",
        "Upsample(scale_factor=(2.0, 2.0), mode='nearest-exact')",
        "UpsamplingNearest2d(scale_factor=2.0, mode='nearest')",
        "GELU(approximate='none')",
    ] {
        printed(&format!("AvgPool2d(1)\n{text}"), [2, 4, 4])
            .unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

/// A PReLU has one slope for all channels, or one for each.
#[test]
fn a_prelu_has_its_slopes_in_the_file() {
    let slopes = |values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|slope| slope.to_le_bytes()).collect();
        StateDict::from_safetensors(&file(
            "1.weight",
            "F32",
            &format!("[{}]", values.len()),
            &bytes,
        ))
        .unwrap()
    };
    let read = |values: &[f32], prelu: &str| {
        slopes(values).model_of::<f64>(&format!("AvgPool2d(1)\n{prelu}"), Some([2, 1, 2].into()))
    };
    let x = dvector![-1.0, 2.0, -3.0, -4.0];
    for text in ["PReLU(num_parameters=2)", "PReLU(2, init=0.1)"] {
        let model = read(&[0.5, 0.25], text).unwrap();
        assert_eq!(model.forward(&x).unwrap(), dvector![-0.5, 2.0, -0.75, -1.0]);
        assert_eq!(model.parameters(), 2);
        let again = StateDict::from_safetensors(&model.to_safetensors().unwrap()).unwrap();
        let again = again.to_model::<f64>().unwrap();
        assert_eq!(again.to_string(), model.to_string());
        assert_eq!(again.forward(&x).unwrap(), model.forward(&x).unwrap());
        assert!(model.to_string().contains("PReLU(num_parameters=2)"), "{model}");
        let double = model.layers()[1].to_f64().unwrap();
        assert_eq!(double.tensors(), [("weight", vec![2], vec![0.5, 0.25])]);
    }
    for text in ["PReLU()", "PReLU(num_parameters=1)"] {
        let model = read(&[0.5], text).unwrap();
        assert_eq!(model.forward(&x).unwrap(), dvector![-0.5, 2.0, -1.5, -2.0]);
    }
    for (values, text, what) in [
        (&[0.5, 0.25, 1.0][..], "PReLU(3)", "3 channels"),
        (&[0.5], "PReLU(2)", "1.weight"),
        (&[0.5, f32::NAN], "PReLU(2)", "weight"),
        (&[], "PReLU(0)", "num_parameters"),
        (&[0.5], "PReLU(1, init=x)", "init is x, not a number"),
    ] {
        let error = read(values, text).unwrap_err().to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn a_class_that_holds_the_network_is_read_and_one_that_holds_its_parts_is_rejected() {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, 2.0], None).unwrap())
        .layer(Relu)
        .build()
        .unwrap();
    let bytes = model.to_safetensors().unwrap();
    let weights = StateDict::from_safetensors(&bytes).unwrap();
    // The state dict of `Net(network=net)` has names that begin with `network`. Names without it
    // are rejected, and the error lists what is missing.
    let inner = model.to_string().replace('\n', "\n    ");
    let outer = format!("DataParallel(\n  (module): SimpleDNN4l(\n    (network): {inner}\n  )\n)");
    let error = weights.model_of::<f64>(&outer, None).unwrap_err().to_string();
    assert!(error.contains("missing: module.network.0.weight"), "{error}");
    let tensor = file(
        "module.network.0.weight",
        "F64",
        "[1,2]",
        &[1.0_f64, 2.0].map(f64::to_le_bytes).concat(),
    );
    let read = StateDict::from_safetensors(&tensor).unwrap().model_of::<f64>(&outer, None).unwrap();
    assert_eq!(read.forward(&dvector![1.0, 1.0]).unwrap(), dvector![3.0]);
    let text = "Net(\n  (conv1): Conv2d(1, 1, kernel_size=(1, 1))\n  (conv2): Conv2d(1, 1, \
        kernel_size=(1, 1))\n)";
    let nested =
        format!("Sequential(\n  (0): ReLU()\n  (features): {})", text.replace('\n', "\n  "));
    for (text, place) in [(text, "layer 0"), (nested.as_str(), "layer features")] {
        let error = printed(text, [1, 4, 4]).unwrap_err().to_string();
        for what in [
            place,
            "PyTorch prints the parts of Net (conv1, conv2)",
            "replace Net with Sequential",
            "StateDict::under",
            "ONNX",
        ] {
            assert!(error.contains(what), "{what}: {error}");
        }
    }
    let list = printed(
        "Net(\n  (layers): ModuleList(\n    (0-1): 2 x Linear(in_features=2, \
            out_features=2)\n  )\n)",
        2,
    )
    .unwrap_err();
    assert!(
        list.to_string()
            .contains("layer layers: PyTorch prints the parts of ModuleList (its parts)"),
        "{list}"
    );
}

#[test]
fn layers_that_share_their_weights_are_found_under_a_prefix() {
    let (weight, bias) = (
        [1.0_f64, 2.0, 0.0, 1.0].map(f64::to_le_bytes).concat(),
        [0.5_f64, -9.0].map(f64::to_le_bytes).concat(),
    );
    let header = r#"{"net.a.weight":{"dtype":"F64","shape":[2,2],"data_offsets":[0,32]},"net.a.bias":{"dtype":"F64","shape":[2],"data_offsets":[32,48]}}"#;
    let bytes =
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &weight, &bias].concat();
    let weights = StateDict::from_safetensors(&bytes).unwrap();
    let model =
        weights.builder::<f64>().linear("a", 2, 2).layer(Relu).linear("a", 2, 2).build().unwrap();
    assert_eq!(model.forward(&dvector![1.0, 1.0]).unwrap(), dvector![4.0, -9.0]);
    // A shared tensor counts once, and errors name it once.
    let error = weights
        .builder::<f64>()
        .linear("a", 2, 2)
        .linear("a", 2, 2)
        .linear("b", 2, 2)
        .build()
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(
            "the tensors under `net`, where 2 of 4 fit; choose other tensors with StateDict::under"
        ),
        "{text}"
    );
    let Error::StateDict { missing, .. } = error else { panic!("{text}") };
    assert_eq!(missing, ["b.weight", "b.bias"]);
}

#[test]
fn groups_without_children_are_read_or_rejected() {
    for (group, layers) in
        [("Sequential()", 1), ("Concat()", 0), ("Residual()", 0), ("Residual( )", 0)]
    {
        let read = printed(
            &format!("Sequential((0): {group} (1): ReLU() (2): AvgPool1d(1, ceil_mode=False))"),
            [1, 2],
        );
        let text = read
            .as_ref()
            .map_or_else(ToString::to_string, |model| model.layers().len().to_string());
        assert!(
            if layers == 1 {
                text == "2"
            } else {
                text.contains("branch") && !text.contains("bracket")
            },
            "{group}: {text}"
        );
    }
    for text in ["MySequential()", "Sequential((0): MySequential() (1): ReLU())"] {
        let error = printed(text, 2).unwrap_err().to_string();
        assert!(error.contains("layer 0: MySequential is unsupported"), "{error}");
    }
    // A shape without values, for an architecture that does not fix the shape.
    for shape in [Shape::from(0), Shape::from([2, 0]), Shape::from([2, 0, 3])] {
        let error = printed("ReLU() Flatten()", shape).unwrap_err().to_string();
        assert!(error.contains("a shape of at least one value and at most "), "{error}");
    }
}

#[test]
fn settings_that_pytorch_does_not_print_are_a_finding() {
    let found = |text: &str, shape: [usize; 3]| {
        let model = printed(text, shape).unwrap();
        let findings = model.check(Rule::Epsilon).unwrap();
        let [finding] = findings.as_slice() else { return findings.len().to_string() };
        assert_eq!(finding.code, Code::AssumedSettings);
        assert!(finding.to_string().starts_with("assumed-settings at layer "), "{finding}");
        finding.sentence.split("assumed to be ").nth(1).unwrap().to_owned()
    };
    let whole = "ceil_mode=False, count_include_pad=True, divisor_override=None";
    assert_eq!(
        found("AvgPool2d(kernel_size=2, stride=2, padding=0)", [1, 4, 4]),
        "divisor_override=None."
    );
    assert_eq!(
        found("AvgPool2d(kernel_size=2, stride=2, padding=0)", [1, 4, 5]),
        "ceil_mode=False, divisor_override=None."
    );
    assert_eq!(
        found("AvgPool2d(kernel_size=3, stride=2, padding=1)", [1, 4, 4]),
        format!("{whole}.")
    );
    assert_eq!(
        found("AvgPool2d(2, ceil_mode=True, count_include_pad=False)", [1, 5, 5]),
        "divisor_override=None."
    );
    assert_eq!(found("AvgPool2d(2, divisor_override=None)", [1, 4, 4]), "0");
    let sequence = |text: &str, length: usize| {
        printed(text, [1, length]).unwrap().check(Rule::Epsilon).unwrap().len()
    };
    assert_eq!(
        [
            sequence("AvgPool1d(2)", 4),
            sequence("AvgPool1d(2)", 5),
            sequence("AvgPool1d(2, ceil_mode=False)", 5)
        ],
        [0, 1, 0]
    );
    // Settings are also assumed within branches, but not for layers that a program creates.
    assert_eq!(
        found("Residual((0): Sequential((0): AvgPool2d(1)) (1): Sequential())", [1, 4, 4]),
        "divisor_override=None."
    );
    let built = Sequential::<f64>::builder()
        .input([1, 5, 5])
        .layer(AvgPool2d::new(2).padding(1))
        .build()
        .unwrap();
    assert!(built.check(Rule::Epsilon).unwrap().is_empty());

    // PyTorch's values for 0 to 15: torch.nn.functional.avg_pool2d(x, 2, 2, 1, ceil_mode,
    // count_include_pad, divisor_override).
    let outputs = |text: &str| {
        let model = printed(text, [1, 4, 4]).unwrap();
        let again = StateDict::from_safetensors(&model.to_safetensors().unwrap())
            .unwrap()
            .to_model::<f64>()
            .unwrap();
        let x = relprop::nalgebra::DVector::from_fn(16, |index, _| {
            f64::from(u8::try_from(index).unwrap())
        });
        assert_eq!(again.forward(&x).unwrap(), model.forward(&x).unwrap());
        model.forward(&x).unwrap().as_slice().to_vec()
    };
    assert_eq!(outputs("AvgPool2d(2, 2, 1)"), [0.0, 0.75, 0.75, 3.0, 7.5, 4.5, 3.0, 6.75, 3.75]);
    assert_eq!(
        outputs("AvgPool2d(2, 2, 1, count_include_pad=False)"),
        [0.0, 1.5, 3.0, 6.0, 7.5, 9.0, 12.0, 13.5, 15.0]
    );
    assert_eq!(
        outputs("AvgPool2d(2, 2, 1, divisor_override=2)"),
        [0.0, 1.5, 1.5, 6.0, 15.0, 9.0, 6.0, 13.5, 7.5]
    );
}

#[test]
fn unusual_settings_are_read_exactly() {
    // A batch norm that is not affine has the bias 0 and the weight 1.
    let (mean, variance) = (
        [1.0_f32, -1.0].map(f32::to_le_bytes).concat(),
        [4.0_f32, 0.25].map(f32::to_le_bytes).concat(),
    );
    let header = r#"{"0.running_mean":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"0.running_var":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    let bytes =
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &mean, &variance].concat();
    let weights = StateDict::from_safetensors(&bytes).unwrap();
    let text =
        "BatchNorm1d(2, eps=0.0, momentum=0.1, affine=False, bias=False, track_running_stats=True)";
    let model = weights.model_of::<f64>(text, Some(2.into())).unwrap();
    assert_eq!(model.forward(&dvector![3.0, 1.0]).unwrap(), dvector![1.0, 4.0]);
    // For an even kernel, the end gets one more zero of padding.
    let same = file("0.weight", "F32", "[1,1,2]", &[1.0_f32, 10.0].map(f32::to_le_bytes).concat());
    let same = StateDict::from_safetensors(&same).unwrap();
    let text = "Conv1d(1, 1, kernel_size=(2,), stride=(1,), padding=same, bias=False)";
    let model = same.model_of::<f64>(text, Some([1, 3].into())).unwrap();
    assert_eq!(model.forward(&dvector![1.0, 2.0, 3.0]).unwrap(), dvector![21.0, 32.0, 3.0]);
}

/// The error for a printed layer of an unknown kind lists the supported kinds.
#[test]
fn the_listed_kinds_are_supported() {
    let refused = |kind: &str| {
        let weights =
            StateDict::from_safetensors(&every_layer().to_safetensors().unwrap()).unwrap();
        weights
            .model_of::<f32>(&format!("{kind}()"), None)
            .map_or_else(|e| e.to_string(), |_| String::new())
    };
    let said = refused("Softmin");
    let listed = said
        .split("The supported layers are ")
        .nth(1)
        .unwrap()
        .split(", and the groups")
        .next()
        .unwrap();
    let kinds: Vec<&str> = listed.split(", ").collect();
    assert!(kinds.len() > 40, "{kinds:?}");
    for kind in &kinds {
        let said = refused(kind);
        assert!(!said.contains("The supported layers are"), "{said}");
    }
    // And the other way round.
    for layer in every_layer().layers() {
        assert!(kinds.contains(&layer.kind()), "{} is not listed", layer.kind());
    }
}

#[test]
fn only_activations_can_be_scaled() {
    let unflatten = "Unflatten(dim=1, unflattened_size=(1, 2, 1))";
    for (layer, reason) in [
        ("Flatten()", "a function of one value"),
        ("Softmax(dim=1)", "a function of one value"),
        (unflatten, "Unflatten expects a shape of the same size"),
    ] {
        let error = printed(&format!("Scaled({layer}, argument=2.0, value=0.5)"), 2).unwrap_err();
        assert!(error.to_string().contains(reason), "{layer}: {error}");
    }
    let scaled = |layer: &str| {
        let text = format!("Linear(2, 1)\nScaled({layer}, argument=2.0, value=0.5)\nLinear(1, 1)");
        StateDict::from_safetensors(&every_layer().to_safetensors().unwrap())
            .unwrap()
            .model_of::<f64>(&text, None)
            .unwrap_err()
            .to_string()
    };
    // Only the weights are missing.
    for layer in ["Identity()", "Dropout(p=0.5)", "ReLU()"] {
        assert!(scaled(layer).contains("missing"), "{layer}: {}", scaled(layer));
    }
}

proptest! {
    /// A file with some changed bytes, and perhaps truncated, is read or rejected, and its model
    /// explains a sample or returns an error.
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
