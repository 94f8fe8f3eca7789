//! The same weights in every format that is read, as PyTorch and NumPy write them (`formats/generate.py`).

#![cfg(all(feature = "npz", feature = "pytorch", feature = "safetensors"))]

use relprop::io::StateDict;
use relprop::nalgebra::DVector;
use relprop::{Error, Sequential};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats");

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

fn open(name: &str) -> StateDict {
    StateDict::open(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The network of `generate.py`.
fn model(weights: &StateDict) -> Sequential<f64> {
    weights.model_of(&weights.guessed_architecture().unwrap(), None).unwrap()
}

fn agrees(name: &str, weights: &StateDict, limit: f64) {
    let expected = open("weights.safetensors");
    for tensor in ["0.weight", "0.bias", "2.weight", "2.bias"] {
        let (shape, values) = weights.tensor::<f64>(tensor).unwrap();
        let (right_shape, right) = expected.tensor::<f64>(tensor).unwrap();
        assert_eq!(shape, right_shape, "{name}, {tensor}");
        let off = values.iter().zip(&right).map(|(value, right)| (value - right).abs()).fold(0.0, f64::max);
        assert!(off <= limit, "{name}, {tensor}: off by {off:.1e}");
    }
    let [(_, x), (_, y)] = ["x", "y"].map(|name| expected.tensor::<f64>(name).unwrap());
    let outputs = model(weights).forward(&DVector::from_vec(x)).unwrap();
    assert!((outputs - DVector::from_vec(y)).amax() < 4.0 * limit + 1e-6, "{name}");
}

#[test]
fn every_format_has_the_same_weights() {
    let exact = [
        "zip",
        "legacy",
        "protocol3",
        "protocol4",
        "protocol5",
        "f64",
        "f64-legacy",
        "views",
        "views-legacy",
        "cuda",
        "cuda-legacy",
    ];
    for name in exact {
        agrees(name, &open(&format!("{name}.pt")), 0.0);
    }
    for name in ["weights.npz", "compressed.npz"] {
        agrees(name, &open(name), 0.0);
    }
    agrees("checkpoint.pt", &open("checkpoint.pt").under("model"), 0.0);
    for name in ["f16.pt", "f16-legacy.pt", "f16.npz"] {
        agrees(name, &open(name), 5e-4);
    }
    for name in ["bf16.pt", "bf16-legacy.pt"] {
        agrees(name, &open(name), 4e-3);
    }
}

#[test]
fn bytes_are_read_as_files_are() {
    let bytes = |name: &str| std::fs::read(path(name)).unwrap();
    agrees("zip", &StateDict::from_pytorch(bytes("zip.pt")).unwrap(), 0.0);
    agrees("legacy", &StateDict::from_pytorch(bytes("legacy.pt")).unwrap(), 0.0);
    agrees("npz", &StateDict::from_npz(bytes("compressed.npz")).unwrap(), 0.0);
    let array = StateDict::from_npz(bytes("x.npy")).unwrap();
    assert_eq!(array.tensor::<f32>("arr_0").unwrap(), (vec![1, 3], vec![1.0, -2.0, 0.5]));
    assert_eq!(open("x.npy").names().collect::<Vec<_>>(), ["arr_0"]);
}

#[test]
fn arrays_of_whole_numbers_are_read() {
    let read = |descr: &str, values: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}");
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        let array = StateDict::from_npz([&b"\x93NUMPY\x01\x00"[..], &length, header.as_bytes(), values].concat()).unwrap();
        array.tensor::<f64>("arr_0").map(|(_, values)| values).map_err(|error| error.to_string())
    };
    assert_eq!(read("|u1", &[1, 255]).unwrap(), [1.0, 255.0]);
    assert_eq!(read("|i1", &[1, 255]).unwrap(), [1.0, -1.0]);
    assert_eq!(read("<i2", &[0, 1, 255, 255]).unwrap(), [256.0, -1.0]);
    assert_eq!(read("<i8", &[2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]).unwrap(), [2.0, 3.0]);
    assert!(read(">f4", &[0; 8]).unwrap_err().contains("of type '>f4'"));
}

#[test]
fn other_tensors_and_names_are_there_too() {
    assert_eq!(open("list.pt").names().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert_eq!(open("parameters.pt").names().next(), Some("0_bias"));
    let norm = open("norm.pt");
    assert_eq!(norm.shape("1.num_batches_tracked"), Some(&[][..]));
    let text = "Conv2d(1, 2, kernel_size=(3, 3))\nBatchNorm2d(2)";
    assert!(norm.model_of::<f32>(text, Some([1, 5, 5].into())).is_ok());
    let names = open("checkpoint.pt");
    assert!(names.names().all(|name| name.starts_with("model.")), "an optimizer has no tensors before its first step");
}

#[test]
fn what_is_no_state_dict_says_so() {
    let refused = |name: &str| StateDict::open(path(name)).unwrap_err().to_string();
    assert!(refused("module.pt").contains("torch.save(net.state_dict(), path)"), "{}", refused("module.pt"));
    assert!(refused("script.pt").contains("it is a TorchScript archive"), "{}", refused("script.pt"));
    assert!(refused("script.pt").contains("torch.save(net.state_dict(), path)"), "{}", refused("script.pt"));
    assert!(matches!(StateDict::open(path("nothing.pt")), Err(Error::Io { .. })));
    let missing = |name: &str| open(name).builder::<f32>().linear("0", 3, 4).linear("4", 4, 2).build().unwrap_err().to_string();
    let said = ["zip.pt", "legacy.pt", "weights.npz"].map(missing);
    assert!(said[0].contains("missing: 4.weight, 4.bias") && said[0].contains("surplus: 2.bias, 2.weight"), "{}", said[0]);
    assert!(said[0] == said[1] && said[0] == said[2], "an error reads the same whatever the format");
}

#[test]
fn a_guess_is_refused_where_it_would_be_wrong() {
    let guess = |name: &str| open(name).guessed_architecture().unwrap_err().to_string();
    assert!(guess("norm.pt").contains("0.weight of shape [2, 1, 3, 3] is no weight or bias of a dense layer"));
    assert!(guess("x.npy").contains("arr_0 of shape [1, 3]"));
    let nothing = open("zip.pt").under("nothing").guessed_architecture().unwrap_err().to_string();
    assert!(nothing.contains("there is no tensor"), "{nothing}");
    let conv = open("norm.pt").model_of::<f32>("Conv2d(1, 2, kernel_size=(3, 3))\nBatchNorm2d(2)\nFlatten()\nLinear(18, 2)", None);
    assert!(conv.is_err());
    let guessed = open("zip.pt").guessed_architecture().unwrap();
    assert!(guessed.contains("(0): Linear(in_features=3, out_features=4, bias=True)\n  (0-relu): ReLU()\n  (2): Linear"));
}

#[test]
fn a_file_that_is_not_of_weights_is_called_what_it_is() {
    let folder = std::env::temp_dir().join(format!("relprop-recognized-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("saved")).unwrap();
    std::fs::write(folder.join("saved/saved_model.pb"), b"\x08\x01\x12\x04\x0a\x02ab").unwrap();
    let zip = |names: &[&str]| {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        names.iter().for_each(|name| archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap());
        archive.finish().unwrap().into_inner()
    };
    let whole = |name: &str| std::fs::read(path(name)).unwrap();
    let half = |name: &str| whole(name)[..whole(name).len() / 2].to_vec();
    let cases: [(&str, Vec<u8>, &str); 20] = [
        ("empty.pt", Vec::new(), "an empty file"),
        ("net.pt", b"\x80\x04K\x01.".to_vec(), "a Python pickle, which is unsupported here: only safetensors, PyTorch's"),
        ("net.h5", b"\x89HDF\r\n\x1a\n\0".to_vec(), "an HDF5 file, as Keras writes .h5: load the model in Keras and export it"),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "run `git lfs pull`"),
        ("page.pt", b"<!DOCTYPE html>".to_vec(), "an HTML page"),
        ("net.json", b"{\"a\": 1}".to_vec(), "a JSON document"),
        ("net.txt", b"Sequential(\n  (0): ReLU()\n)".to_vec(), "a text file"),
        ("net.gguf", b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "a GGUF file"),
        ("net.tar.gz", b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "unpack it first"),
        ("net.onnx", b"\x08\x08\x12\x07pytorch".to_vec(), "read it with Sequential::read_onnx"),
        ("net.bin", vec![0; 64], "its format is unknown"),
        ("net.keras", zip(&["metadata.json", "config.json", "model.weights.h5"]), "a Keras model (.keras): export it to ONNX"),
        (
            "net.pt2",
            zip(&["net/data/weights/weight_0", "net/models/model.json", "net/archive_format"]),
            "a program of torch.export",
        ),
        ("docs.zip", zip(&["word/document.xml"]), "neither a checkpoint of PyTorch (data.pkl) nor an array"),
        ("none.npz", zip(&[]), "an empty zip archive"),
        ("half.pt", half("zip.pt"), "truncated or damaged"),
        ("half.npz", half("weights.npz"), "truncated or damaged"),
        ("half-legacy.pt", half("legacy.pt"), "truncated"),
        ("half.safetensors", half("weights.safetensors"), "truncated"),
        ("half.npy", half("x.npy"), "truncated"),
    ];
    for (name, content, what) in cases {
        let file = folder.join(name);
        std::fs::write(&file, &content).unwrap();
        let error = StateDict::open(&file).unwrap_err().to_string();
        assert!(error.contains(what), "{name}: {error}");
        assert!(error.contains(file.to_str().unwrap()), "without its path: {error}");
        let readers =
            [StateDict::from_pytorch(content.clone()), StateDict::from_npz(content.clone()), StateDict::from_safetensors(&content)];
        for error in readers.into_iter().map(Result::unwrap_err) {
            assert!(matches!(error, Error::Malformed { .. }), "{name}: {error}");
        }
    }
    for (name, what) in [("saved", "the folder of a TensorFlow saved model: export the model to ONNX"), ("", "it is a folder")] {
        let error = StateDict::open(folder.join(name)).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(what), "{error}");
    }
    std::fs::remove_dir_all(folder).unwrap();
    let other = StateDict::from_npz(whole("zip.pt")).unwrap_err().to_string();
    assert!(other.contains("it is a PyTorch checkpoint: read it with StateDict::open"), "{other}");
    let other = StateDict::from_pytorch(whole("weights.npz")).unwrap_err().to_string();
    assert!(other.contains("it is an archive of NumPy arrays (.npz), which is unsupported here"), "{other}");
    let other = StateDict::from_safetensors(&whole("weights.npz")).unwrap_err().to_string();
    assert!(other.contains("only safetensors files are"), "{other}");
}
