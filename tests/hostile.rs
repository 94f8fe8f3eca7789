//! Damaged and malicious files. Each is an error, and reading it uses at most a multiple of the
//! file's size in memory. These tests cover known attacks and mutations of real files; `fuzz/`
//! searches for others.

// The bytes of files are put together by hand.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

use std::path::{Path, PathBuf};

use crate::common::onnx::{bytes, dense, int, ints, model, node, node_of, number, tensor, text};
use proptest::prelude::*;
use relprop::io::{OnnxFile, StateDict};
use relprop::{Error, Graph};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

/// The limits on memory that the documentation of `relprop::io` promises.
const PER_BYTE: u64 = 256;
const PER_PACKED_BYTE: u64 = 1032 + PER_BYTE;
const ALWAYS: u64 = 1 << 20;

fn bounded<R>(length: usize, per_byte: u64, read: impl FnOnce() -> R) -> R {
    let mut result = None;
    let used = allocation_counter::measure(|| result = Some(read())).bytes_max;
    assert!(
        used <= per_byte * length as u64 + ALWAYS,
        "{used} bytes were allocated for a file of {length}"
    );
    result.unwrap()
}

fn onnx(file: &[u8]) -> Result<Graph<f32>, Error> {
    bounded(file.len(), PER_BYTE, || {
        OnnxFile::from_bytes(file.to_vec()).and_then(|file| file.to_graph())
    })
}

fn says(file: &[u8], what: &str) {
    let error = onnx(file).unwrap_err().to_string();
    assert!(error.contains(what), "'{error}' does not say '{what}'");
}

#[test]
fn invalid_graphs_are_rejected() {
    says(
        &model(&[1, 2], &[node("Relu", &["g"], "h", &[]), node("Relu", &["h"], "g", &[]), dense()]),
        "the graph has a cycle or its nodes are not sorted",
    );
    says(&model(&[1, 2], &[node("Relu", &["y"], "h", &[]), dense()]), "the graph has a cycle");
    says(&model(&[1, 2], &[]), "the graph has no value 'y'");
    says(&model(&[1, 2], &[tensor("y", &[1], &[1.0])]), "does not depend on the input");
    says(
        &model(&[], &[node("Relu", &["x"], "h", &[]), dense()]),
        "the file has no shape for its input",
    );
    says(&model(&[2], &[node("Relu", &["x"], "h", &[]), dense()]), "samples x features");
    says(
        &model(&[1, -2], &[node("Relu", &["x"], "h", &[]), dense()]),
        "does not fix the shape of its input 'x'",
    );
    says(&bytes(8, &number(2, 17)), "its format is unknown");
    says(b"\x3a\xff\xff\xff\xff\x0f", "its format is unknown");
}

#[test]
fn invalid_sizes_are_rejected() {
    let with = |dims: &[i64]| {
        model(
            &[1, 2],
            &[
                node("Relu", &["x"], "h", &[]),
                tensor("w", dims, &[1.0, 2.0]),
                node("MatMul", &["h", "w"], "y", &[]),
            ],
        )
    };
    says(&with(&[-2, -1]), "its shape [-2, -1] has negative sizes");
    says(&with(&[i64::MAX, i64::MAX]), "its shape is too large");
    says(&with(&[1 << 40, 1]), "but the file has 2");
    let huge = i64::MAX / 2;
    let shapes: [&[i64]; 4] =
        [&[1, huge, huge, huge], &[1, huge], &[1, 3, 1 << 30, 1 << 30], &[huge, 2]];
    for input in shapes {
        let file = model(
            input,
            &[
                node("GlobalAveragePool", &["x"], "g", &[]),
                node("Flatten", &["g"], "h", &[]),
                dense(),
            ],
        );
        assert!(onnx(&file).is_err());
    }
    for pads in [[huge; 4], [-1; 4], [0, huge, 0, 0]] {
        let conv = node("Conv", &["x", "k"], "y", &[ints("pads", &pads)]);
        assert!(
            onnx(&model(&[1, 1, 4, 4], &[tensor("k", &[1, 1, 2, 2], &[1.0; 4]), conv])).is_err()
        );
    }
    for attribute in ["strides", "dilations", "kernel_shape"] {
        for value in [0, -1, huge] {
            let attributes = [ints("kernel_shape", &[2, 2]), ints(attribute, &[value, value])];
            let pool = node(
                "MaxPool",
                &["x"],
                "y",
                &attributes[usize::from(attribute == "kernel_shape")..],
            );
            let _ = onnx(&model(&[1, 1, 4, 4], &[pool]));
        }
    }
    // Windows that only contain padding, a reach that overflows, and sizes whose product overflows.
    let dilated =
        [ints("kernel_shape", &[2, 2]), ints("dilations", &[3, 3]), ints("pads", &[1; 4])];
    says(&model(&[1, 1, 2, 2], &[node("MaxPool", &["x"], "y", &dilated)]), "covers only padding");
    let reach = [ints("kernel_shape", &[4, 1]), ints("dilations", &[i64::MAX / 3 * 2 + 1, 1])];
    assert!(
        onnx(&model(
            &[1, 1, 8, 1],
            &[tensor("k", &[1, 1, 4, 1], &[1.0; 4]), node("Conv", &["x", "k"], "y", &reach)]
        ))
        .is_err()
    );
    says(
        &model(&[1, 1 << 32, 1 << 32], &[node("Flatten", &["x"], "h", &[]), dense()]),
        "too large",
    );
    let texts: Vec<u8> = (0..6)
        .flat_map(|at| {
            bytes(5, &[number(1, 1 << 62), number(2, 8), text(8, &format!("t{at}"))].concat())
        })
        .collect();
    let all = node("Concat", &["t0", "t1", "t2", "t3", "t4", "t5"], "c", &[]);
    says(&model(&[1, 2], &[texts, all, node("Add", &["x", "c"], "h", &[]), dense()]), "too large");
    let axes =
        [number(2, 1), text(8, "t"), number(1, 1).repeat(200_000), bytes(9, &[0; 4])].concat();
    says(
        &model(&[1, 2], &[bytes(5, &axes), node("Transpose", &["t"], "c", &[]), dense()]),
        "too many axes",
    );
    // A large shape that is computed from a few bytes.
    let shape = [tensor("n", &[1], &[1e9]), node("Cast", &["n"], "i", &[int("to", 7)])].concat();
    let file = model(
        &[1, 2],
        &[
            shape,
            node("ConstantOfShape", &["i"], "c", &[]),
            node("Add", &["x", "c"], "h", &[]),
            dense(),
        ],
    );
    says(&file, "too large");
}

#[test]
fn excessive_graphs_are_rejected() {
    let relus = |count: usize| -> Vec<u8> {
        let first = node("Relu", &["x"], "n0", &[]);
        (1..count).fold(first, |mut all, at| {
            all.extend(node("Relu", &[&format!("n{}", at - 1)], &format!("n{at}"), &[]));
            all
        })
    };
    says(&model(&[1, 2], &[relus(1_000_000)]), "1000000 nodes");
    let last = |count: usize| {
        [
            tensor("w", &[2, 1], &[1.0, 2.0]),
            node("MatMul", &[&format!("n{}", count - 1), "w"], "y", &[]),
        ]
        .concat()
    };
    assert_eq!(
        onnx(&model(&[1, 2], &[relus(20_000), last(20_000)])).unwrap().layers().len(),
        20_001
    );
    // Empty nodes, which are the smallest possible.
    says(&model(&[1, 2], &[[0x0a, 0].repeat(30_000)]), "the graph has no value");

    // Layers as large as the input but without weights, weights that are shared many times, and a
    // long name shared by many values.
    let scaled = [tensor("c", &[1], &[2.0]), node("Mul", &["x", "c"], "y", &[])].concat();
    says(&model(&[1, 1 << 24], &[scaled]), "many times larger than the file");
    let weights = tensor("w", &[128, 128], &vec![0.5; 128 * 128]);
    let again: Vec<u8> = (0..1000)
        .flat_map(|at| {
            let (from, to) =
                (if at == 0 { "x".to_owned() } else { format!("m{at}") }, format!("m{}", at + 1));
            node("MatMul", &[&from, "w"], &to, &[])
        })
        .collect();
    says(
        &model(&[1, 128], &[weights, again, node("Relu", &["m1000"], "y", &[])]),
        "many times larger than the file",
    );
    let outputs: Vec<String> = (0..20_000).map(|at| format!("o{at}")).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let many = node_of(&"L".repeat(20_000), &["x"], &outputs, &[]);
    says(&model(&[1, 2], &[many, node("Relu", &["o1"], "h", &[]), dense()]), "the model has");
    let ways: Vec<u8> =
        (0..300).flat_map(|at| node("Sum", &["n999"; 1000], &format!("s{at}"), &[])).collect();
    let ways = [relus(1000), ways, node("Relu", &["s299"], "h", &[]), dense()];
    says(&model(&[1, 2], &ways), "inputs in total");

    // Nested sums.
    let nested = |depth: usize| {
        let mut parts = relus(depth);
        let mut inner = format!("n{}", depth - 1);
        for at in (0..depth - 1).rev() {
            let name = if at == 0 { "h".to_owned() } else { format!("s{at}") };
            parts.extend(node("Add", &[&inner, &format!("n{at}")], &name, &[]));
            inner = name;
        }
        model(&[1, 2], &[parts, dense()])
    };
    assert_eq!(onnx(&nested(1000)).unwrap().layers().len(), 2000);
    // A concatenation of all the values of a long chain.
    let concatenated = |count: usize| {
        let names: Vec<String> = (0..count).map(|at| format!("n{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let all = [relus(count), node("Concat", &names, "h", &[int("axis", 1)])].concat();
        let weights = tensor("w", &[2 * count as i64, 1], &vec![1.0; 2 * count]);
        model(&[1, 2], &[all, weights, node("MatMul", &["h", "w"], "y", &[])])
    };
    assert_eq!(onnx(&concatenated(1024)).unwrap().layers().len(), 1026);
    says(&concatenated(15_000), "it has 15000 inputs, but at most 1024 are supported");
    // Each value is used twice, so that the number of paths is exponential.
    let mut doubled = node("Relu", &["x"], "d0", &[]);
    for at in 1..200 {
        doubled.extend(node(
            "Mul",
            &[&format!("d{}", at - 1), &format!("d{}", at - 1)],
            &format!("d{at}"),
            &[],
        ));
    }
    doubled.extend(node("Relu", &["d199"], "h", &[]));
    says(&model(&[1, 2], &[doubled, dense()]), "the result is not a known activation");
    // Nested messages: a graph in an attribute of a node of a graph.
    let mut deep = Vec::new();
    for _ in 0..2_000 {
        deep = bytes(1, &bytes(5, &bytes(6, &deep)));
    }
    says(&model(&[1, 2], &[deep]), "the graph has no value");
    // Nested groups, a deprecated feature of protocol buffers.
    assert!(onnx(&vec![0x6b; 100_000]).is_err());
}

#[test]
fn external_data_stays_in_its_folder() {
    let folder = std::env::temp_dir().join(format!("relprop-external-{}", std::process::id()));
    let inside = folder.join("model");
    std::fs::create_dir_all(&inside).unwrap();
    let data: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(inside.join("data.bin"), &data).unwrap();
    std::fs::write(folder.join("secret.bin"), &data).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.join("secret.bin"), inside.join("link.bin")).unwrap();
    let entry = |key: &str, value: &str| bytes(13, &[text(1, key), text(2, value)].concat());
    let read = |location: &str, more: &[Vec<u8>]| {
        let weight = bytes(
            5,
            &[
                number(1, 2),
                number(1, 1),
                number(2, 1),
                text(8, "w"),
                entry("location", location),
                more.concat(),
                number(14, 1),
            ]
            .concat(),
        );
        let file = model(&[1, 2], &[weight, node("MatMul", &["x", "w"], "y", &[])]);
        std::fs::write(inside.join("model.onnx"), &file).unwrap();
        (OnnxFile::open(inside.join("model.onnx")).and_then(|file| file.to_graph::<f32>()), file)
    };
    assert!(read("data.bin", &[]).0.is_ok());
    assert!(read("./data.bin", &[entry("offset", "0"), entry("length", "8")]).0.is_ok());
    let absolute = folder.join("secret.bin");
    for outside in
        ["../secret.bin", "sub/../../secret.bin", absolute.to_str().unwrap(), "", "link.bin"]
    {
        if cfg!(unix) || outside != "link.bin" {
            let error = read(outside, &[]).0.unwrap_err().to_string();
            assert!(error.contains("outside the folder of the model"), "{outside}: {error}");
        }
    }
    for (key, value) in [
        ("offset", "4"),
        ("offset", "99999999999999999999"),
        ("offset", "-1"),
        ("length", "9"),
        ("length", "x"),
    ] {
        assert!(read("data.bin", &[entry(key, value)]).0.is_err(), "{key} {value}");
    }
    assert!(matches!(read("missing.bin", &[]).0, Err(Error::Malformed { .. })));
    says(&read("data.bin", &[]).1, "open the model by its path");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A legacy checkpoint with this pickle, followed by the storage `0` with four numbers.
fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let keys = b"\x80\x02]q\x00U\x010a.";
    [&magic[..], pickle, keys, &4_u64.to_le_bytes(), &[0; 16]].concat()
}

fn pytorch(file: &[u8]) -> Result<StateDict, Error> {
    bounded(file.len(), PER_BYTE, || {
        let weights = StateDict::from_pytorch(file.to_vec())?;
        for name in weights.names() {
            let _ = bounded(file.len(), PER_BYTE, || weights.tensor::<f64>(name));
        }
        Ok(weights)
    })
}

/// Instructions that push a tensor of the storage `0` onto the stack.
fn rebuilt(offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let integer = |number: &i64| format!("I{number}\n");
    let tuple = |numbers: &[i64]| format!("({}t", numbers.iter().map(integer).collect::<String>());
    let arguments = [integer(&offset), tuple(shape), tuple(strides)].concat();
    let storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ";
    [&b"ctorch._utils\n_rebuild_tensor_v2\n("[..], storage, arguments.as_bytes(), b"I00\n}tR"]
        .concat()
}

fn named(value: &[u8]) -> Vec<u8> {
    [&b"\x80\x02}U\x01w"[..], value, b"s."].concat()
}

#[test]
fn malicious_pickles_are_harmless() {
    let good = checkpoint(&named(&rebuilt(0, &[2, 2], &[2, 1])));
    assert_eq!(pytorch(&good).unwrap().shape("w"), Some(&[2, 2][..]));
    // Programs that Python would execute.
    let program = |pickle: &[u8]| checkpoint(&named(pickle));
    for pickle in [
        &b"cos\nsystem\n(U\x07echo hitR"[..],
        b"c__builtin__\neval\nU\x011\x85R",
        b"(cos\nsystem\nU\x04echoo",
        b"(U\x04echoios\nsystem\n",
    ] {
        let error = pytorch(&program(pickle)).unwrap_err().to_string();
        assert!(error.contains("no tensor") || error.contains("is invalid"), "{error}");
    }
    // Tensors that reach beyond their storage or have more values than it.
    let cases: [(i64, &[i64], &[i64]); 9] = [
        (0, &[3, 2], &[2, 1]),
        (1, &[2, 2], &[2, 1]),
        (-1, &[2, 2], &[2, 1]),
        (0, &[-2, 2], &[2, 1]),
        (0, &[1_000_000_000, 2], &[0, 0]),
        (0, &[i64::MAX, 2], &[1, 1]),
        (0, &[2, 2], &[i64::MAX, i64::MAX]),
        (0, &[2, 2], &[1]),
        (i64::MAX, &[1], &[1]),
    ];
    for (offset, shape, strides) in cases {
        assert!(
            pytorch(&checkpoint(&named(&rebuilt(offset, shape, strides)))).is_err(),
            "{offset} {shape:?} {strides:?}"
        );
    }
    // A thousand names for the same numbers.
    let tensor = [&rebuilt(0, &[2, 2], &[2, 1])[..], b"q\x010"].concat();
    let names: Vec<u8> =
        (0..1000).flat_map(|at| [format!("V{at}\n").as_bytes(), b"h\x01s"].concat()).collect();
    let error = pytorch(&checkpoint(&[&b"\x80\x02"[..], &tensor, b"}", &names, b"."].concat()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("more than 16 times on average"), "{error}");
    // The smallest instructions that create something, repeated many times, and even more of them
    // in a compressed archive.
    for instruction in [
        &b"}"[..],
        b")",
        b"]",
        b"(",
        b"N",
        b"2",
        b"U\x00",
        b"\x94",
        b"}\x94",
        b"N\x85",
        b"cos\nx\n",
        b"}q\x00h\x00",
    ] {
        let pickle =
            [&b"\x80\x02N"[..], &instruction.repeat((1 << 17) / instruction.len() + 1), b"."]
                .concat();
        assert!(pytorch(&checkpoint(&pickle)).is_err());
        let bomb = archive("a/data.pkl", &instruction.repeat((1 << 22) / instruction.len()));
        assert!(
            bounded(bomb.len(), PER_PACKED_BYTE, || StateDict::from_pytorch(bomb.clone())).is_err()
        );
    }
    // Many dictionaries made from the same list of pairs, and many uses of a long name, a class and
    // an object of it.
    let pairs = [
        &b"]q\x00("[..],
        &b"U\x01aK\x01\x86".repeat(2000),
        b"e0ccollections\nOrderedDict\nq\x01h\x00\x85q\x020",
    ]
    .concat();
    let long = [&b"X\xe8\x03\0\0"[..], &[b'n'; 1000], b"q\x000cos\nsystem\nq\x01)Rq\x020"].concat();
    let tensor = [&rebuilt(0, &[0, 2], &[2, 1])[..], b"q\x030"].concat();
    for (before, again) in [
        (&pairs, &b"h\x01h\x02R"[..]),
        (&long, b"h\x01)R"),
        (&long, b"h\x00h\x02"),
        (&[&long[..], &tensor].concat(), b"h\x00h\x03"),
    ] {
        let all = again.repeat(20_000);
        for pickle in [
            [&b"\x80\x02"[..], before, b"(", &all, b"l."].concat(),
            [&b"\x80\x02"[..], before, b"(", &all, b"d."].concat(),
        ] {
            let _ = pytorch(&checkpoint(&pickle));
        }
    }
    // Thirty levels of dictionaries that each contain the next one twice, a dictionary that
    // contains itself, and ten thousand nested dictionaries.
    let twice: Vec<u8> = (1..30_u8)
        .flat_map(|at| {
            [b'}', b'U', 1, b'a', b'h', at - 1, b's', b'U', 1, b'b', b'h', at - 1, b's', b'q', at]
        })
        .collect();
    for pickle in [
        [&b"\x80\x02}q\x00"[..], &twice, b"."].concat(),
        b"\x80\x02}q\x00U\x01ah\x00s.".to_vec(),
        [&b"\x80\x02"[..], &b"}U\x01a".repeat(10_000), b"}", &b"s".repeat(10_000), b"."].concat(),
        b"\x80\x02X\xff\xff\xff\xffabc.".to_vec(),
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.".to_vec(),
        b"\x80\x02r\xff\xff\xff\xff.".to_vec(),
        b"\x80\x02.".to_vec(),
        b"\x80\x02ttttt.".to_vec(),
    ] {
        assert!(pytorch(&checkpoint(&pickle)).is_err());
    }
}

#[test]
fn malicious_architectures_are_rejected() {
    let with = |architecture: &str, tensors: &str, data: &[u8]| {
        let metadata =
            format!(r#"{{"__metadata__":{{"architecture":"{architecture}"}}{tensors}}}"#);
        let file = [&(metadata.len() as u64).to_le_bytes()[..], metadata.as_bytes(), data].concat();
        bounded(file.len(), PER_BYTE, || {
            StateDict::from_safetensors(&file).and_then(|weights| weights.to_model::<f32>())
        })
    };
    assert!(with(&"ReLU(())".repeat(100_000), "", &[]).is_err());
    assert!(with(&"Sequential((a): ".repeat(100_000), "", &[]).is_err());
    // Many layers that use the same tensor.
    let layers = "(0): Linear(128, 128, bias=False)".repeat(2000);
    let tensors = format!(
        r#","0.weight":{{"dtype":"F32","shape":[128,128],"data_offsets":[0,{}]}}"#,
        4 * 128 * 128
    );
    let error = with(&format!("Sequential({layers})"), &tensors, &vec![0; 4 * 128 * 128])
        .unwrap_err()
        .to_string();
    assert!(error.contains("two layers that need the tensor 0.weight"), "{error}");
}

#[test]
fn lying_arrays_are_rejected() {
    let array = |header: &str| {
        [
            &b"\x93NUMPY\x01\x00"[..],
            &(header.len() as u16).to_le_bytes(),
            header.as_bytes(),
            &[0; 16],
        ]
        .concat()
    };
    let read =
        |file: &[u8]| bounded(file.len(), PER_PACKED_BYTE, || StateDict::from_npz(file.to_vec()));
    assert!(read(&array("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }")).is_ok());
    for header in [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (4611686018427387904, 4), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'shape': ((((((((((((",
        "{",
        "}",
        "",
        "{'",
        "{'descr': [[[[[[[",
    ] {
        assert!(read(&array(header)).is_err(), "{header}");
    }
    assert!(read(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").is_err());
    assert!(read(&array(&"(".repeat(60_000))).is_err());
    let other = read(&array(
        "{'descr': [('a', '<f4'), ('b', '<i8')], 'fortran_order': False, 'shape': (1,), }",
    ))
    .unwrap();
    assert!(
        other
            .tensor::<f32>("arr_0")
            .unwrap_err()
            .to_string()
            .contains("convert it in Python to f16, bf16, f32 or f64")
    );
}

/// A compressed archive with one file.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    archive.start_file(name, options).unwrap();
    std::io::Write::write_all(&mut archive, content).unwrap();
    archive.finish().unwrap().into_inner()
}

/// Four mebibytes of zeros, compressed about a thousandfold, which deflate can do.
#[test]
fn compressed_zeros_are_read() {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576,), }";
    let array = [
        &b"\x93NUMPY\x01\x00"[..],
        &(header.len() as u16).to_le_bytes(),
        header.as_bytes(),
        &vec![0; 4 << 20],
    ]
    .concat();
    let file = archive("a.npy", &array);
    assert!(file.len() < 8_000, "{}", file.len());
    let weights =
        bounded(file.len(), PER_PACKED_BYTE, || StateDict::from_npz(file.clone())).unwrap();
    assert_eq!(weights.shape("a"), Some(&[1 << 20][..]));
}

/// The small files among the real files of a format.
fn real(folder: &str, ends: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new(FOLDER).join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| ends.iter().any(|end| path.to_str().unwrap().ends_with(end)))
        .collect();
    files.retain(|path| path.metadata().unwrap().len() < 10_000);
    files.sort();
    assert!(files.len() > 1);
    files
}

/// The network of `formats/generate.py`.
const ARCHITECTURE: &str = "Linear(3, 4)\nReLU()\nLinear(4, 2)";

/// A change, removal or duplication of some bytes.
#[derive(Debug, Clone)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Double(prop::sample::Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, to)| Mutation::Set(at, to)),
        1 => index().prop_map(Mutation::Cut),
        1 => (index(), 1..40_usize).prop_map(|(at, count)| Mutation::Remove(at, count)),
        1 => (index(), 1..40_usize).prop_map(|(at, count)| Mutation::Double(at, count)),
    ]
}

fn mutated(mut file: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if file.is_empty() {
            break;
        }
        match mutation {
            Mutation::Set(at, to) => *at.get_mut(&mut file) = *to,
            Mutation::Cut(at) => file.truncate(at.index(file.len())),
            Mutation::Remove(at, count) => {
                let at = at.index(file.len());
                file.drain(at..(at + count).min(file.len()));
            }
            Mutation::Double(at, count) => {
                let at = at.index(file.len());
                let part = file[at..(at + count).min(file.len())].to_vec();
                file.splice(at..at, part);
            }
        }
    }
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_are_read_or_rejected(which in any::<prop::sample::Index>(), mutations in prop::collection::vec(mutation(), 1..6)) {
        let weights = [real("formats", &[".pt", ".npz", ".npy"]), real("golden", &[".safetensors"])].concat();
        let file = mutated(std::fs::read(which.get(&weights)).unwrap(), &mutations);
        bounded(file.len(), PER_PACKED_BYTE, || {
            for read in [StateDict::from_pytorch(file.clone()), StateDict::from_npz(file.clone()), StateDict::from_safetensors(&file)].into_iter().flatten() {
                read.names().for_each(|name| drop(read.tensor::<f32>(name)));
                let _ = read.model_of::<f32>(ARCHITECTURE, None);
                let _ = read.to_model::<f32>();
            }
        });
        let models = real("exported", &[".onnx"]);
        let file = mutated(std::fs::read(which.get(&models)).unwrap(), &mutations);
        let _ = onnx(&file);
    }
}
