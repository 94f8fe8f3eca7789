//! The same weights in every supported format, as PyTorch and NumPy write them
//! (`formats/generate.py`).

use crate::common::zip_of;
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
const ARCHITECTURE: &str = "Sequential(
  (0): Linear(in_features=3, out_features=4, bias=True)
  (1): ReLU()
  (2): Linear(in_features=4, out_features=2, bias=True)
)";

fn model(weights: &StateDict) -> Sequential<f64> {
    weights.model_of(ARCHITECTURE, None).unwrap()
}

fn agrees(name: &str, weights: &StateDict, limit: f64) {
    let expected = open("weights.safetensors");
    for tensor in ["0.weight", "0.bias", "2.weight", "2.bias"] {
        let (shape, values) = weights.tensor::<f64>(tensor).unwrap();
        let (right_shape, right) = expected.tensor::<f64>(tensor).unwrap();
        assert_eq!(shape, right_shape, "{name}, {tensor}");
        let off = values
            .iter()
            .zip(&right)
            .map(|(value, right)| (value - right).abs())
            .fold(0.0, f64::max);
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
fn integer_arrays_are_read() {
    let read = |descr: &str, values: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}");
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        let array = StateDict::from_npz(
            [&b"\x93NUMPY\x01\x00"[..], &length, header.as_bytes(), values].concat(),
        )
        .unwrap();
        array.tensor::<f64>("arr_0").map(|(_, values)| values).map_err(|error| error.to_string())
    };
    assert_eq!(read("|u1", &[1, 255]).unwrap(), [1.0, 255.0]);
    assert_eq!(read("|i1", &[1, 255]).unwrap(), [1.0, -1.0]);
    assert_eq!(read("<i2", &[0, 1, 255, 255]).unwrap(), [256.0, -1.0]);
    assert_eq!(read("<i8", &[2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]).unwrap(), [2.0, 3.0]);
    assert!(read(">f4", &[0; 8]).unwrap_err().contains("of type '>f4'"));
}

#[test]
fn other_tensors_and_names_are_read_too() {
    assert_eq!(open("list.pt").names().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert_eq!(open("parameters.pt").names().next(), Some("0_bias"));
    let norm = open("norm.pt");
    assert_eq!(norm.shape("1.num_batches_tracked"), Some(&[][..]));
    let text = "Conv2d(1, 2, kernel_size=(3, 3))\nBatchNorm2d(2)";
    assert!(norm.model_of::<f32>(text, Some([1, 5, 5].into())).is_ok());
    let names = open("checkpoint.pt");
    assert!(
        names.names().all(|name| name.starts_with("model.")),
        "an optimizer has no tensors before its first step"
    );
}

#[test]
fn samples_can_be_single_tensors_and_integers() {
    for name in ["tensor.pt", "tensor-legacy.pt", "tensor-parameter.pt"] {
        let alone = open(name);
        assert_eq!(alone.names().collect::<Vec<_>>(), ["tensor"], "{name}");
        assert_eq!(
            alone.tensor::<f64>("tensor").unwrap(),
            (vec![1, 3], vec![1.0, -2.0, 0.5]),
            "{name}"
        );
    }
    let several = open("samples.pt");
    assert_eq!(several.names().collect::<Vec<_>>(), ["labels", "pixels", "x"]);
    assert_eq!(several.tensor::<f64>("labels").unwrap(), (vec![2], vec![1.0, -2.0]));
    assert_eq!(several.tensor::<f64>("pixels").unwrap(), (vec![2], vec![0.0, 255.0]));
}

#[test]
fn files_without_a_state_dict_are_rejected() {
    let refused = |name: &str| StateDict::open(path(name)).unwrap_err().to_string();
    assert!(
        refused("module.pt").contains("torch.save(net.state_dict(), path)"),
        "{}",
        refused("module.pt")
    );
    assert!(
        refused("script.pt").contains("it is a TorchScript archive"),
        "{}",
        refused("script.pt")
    );
    assert!(
        refused("script.pt").contains("torch.save(net.state_dict(), path)"),
        "{}",
        refused("script.pt")
    );
    assert!(matches!(StateDict::open(path("nothing.pt")), Err(Error::Io { .. })));
    let missing = |name: &str| {
        open(name)
            .builder::<f32>()
            .linear("0", 3, 4)
            .linear("4", 4, 2)
            .build()
            .unwrap_err()
            .to_string()
    };
    let said = ["zip.pt", "legacy.pt", "weights.npz"].map(missing);
    assert!(
        said[0].contains("missing: 4.weight, 4.bias")
            && said[0].contains("surplus: 2.bias, 2.weight"),
        "{}",
        said[0]
    );
    assert!(
        said[0] == said[1] && said[0] == said[2],
        "an error reads the same whatever the format"
    );
}

#[test]
fn weights_of_another_architecture_are_rejected() {
    let conv = open("norm.pt").model_of::<f32>(
        "Conv2d(1, 2, kernel_size=(3, 3))\nBatchNorm2d(2)\nFlatten()\nLinear(18, 2)",
        None,
    );
    assert!(conv.is_err());
}

#[test]
fn an_error_says_what_a_file_without_weights_is() {
    let folder = std::env::temp_dir().join(format!("relprop-recognized-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("saved")).unwrap();
    std::fs::write(folder.join("saved/saved_model.pb"), b"\x08\x01\x12\x04\x0a\x02ab").unwrap();
    let zip = |names: &[&str]| {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for name in names {
            archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        }
        archive.finish().unwrap().into_inner()
    };
    let whole = |name: &str| std::fs::read(path(name)).unwrap();
    let half = |name: &str| whole(name)[..whole(name).len() / 2].to_vec();
    let cases: [(&str, Vec<u8>, &str); 20] = [
        ("empty.pt", Vec::new(), "an empty file"),
        (
            "net.pt",
            b"\x80\x04K\x01.".to_vec(),
            "a Python pickle, but only safetensors, PyTorch (.pt, .pth)",
        ),
        (
            "net.h5",
            b"\x89HDF\r\n\x1a\n\0".to_vec(),
            "an HDF5 file, such as the .h5 files of Keras: load the model in Keras and export it",
        ),
        (
            "pointer.pt",
            b"version https://git-lfs.github.com/spec/v1\noid".to_vec(),
            "run `git lfs pull`",
        ),
        ("page.pt", b"<!DOCTYPE html>".to_vec(), "an HTML page"),
        ("net.json", b"{\"a\": 1}".to_vec(), "a JSON document"),
        ("net.txt", b"Sequential(\n  (0): ReLU()\n)".to_vec(), "a text file"),
        ("net.gguf", b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "a GGUF file"),
        ("net.tar.gz", b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "unpack it first"),
        ("net.onnx", b"\x08\x08\x12\x07pytorch".to_vec(), "read it with Graph::read_onnx"),
        ("net.bin", vec![0; 64], "its format is unknown"),
        (
            "net.keras",
            zip(&["metadata.json", "config.json", "model.weights.h5"]),
            "a Keras model (.keras): load it in Keras and export it to ONNX",
        ),
        (
            "net.pt2",
            zip(&[
                "net/data/weights/model_weights_config.json",
                "net/models/model.json",
                "net/archive_format",
            ]),
            "a program saved by torch.export",
        ),
        (
            "docs.zip",
            zip(&["word/document.xml"]),
            "neither a PyTorch checkpoint (data.pkl) nor a NumPy array",
        ),
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
        let readers = [
            StateDict::from_pytorch(content.clone()),
            StateDict::from_npz(content.clone()),
            StateDict::from_safetensors(&content),
        ];
        for error in readers.into_iter().map(Result::unwrap_err) {
            assert!(matches!(error, Error::Malformed { .. }), "{name}: {error}");
        }
    }
    for (name, what) in [
        ("saved", "the folder of a TensorFlow saved model: export the model to ONNX"),
        ("", "it is a folder"),
    ] {
        let error = StateDict::open(folder.join(name)).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(what), "{error}");
    }
    std::fs::remove_dir_all(folder).unwrap();
    let other = StateDict::from_npz(whole("zip.pt")).unwrap_err().to_string();
    assert!(other.contains("it is a PyTorch checkpoint: read it with StateDict::open"), "{other}");
    let other = StateDict::from_pytorch(whole("weights.npz")).unwrap_err().to_string();
    assert!(other.contains("it is an archive of NumPy arrays (.npz), but only PyTorch"), "{other}");
    let other = StateDict::from_safetensors(&whole("weights.npz")).unwrap_err().to_string();
    assert!(other.contains("only safetensors files are"), "{other}");
}

/// An archive with these files, laid out like PyTorch's: data at multiples of 64, with the lengths
/// after it. `large` adds the records of large archives, which Python's zipfile leaves out.
#[allow(clippy::cast_possible_truncation)]
fn archive_of(files: &[(String, Vec<u8>)], large: bool) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let at = archive.len() as u32;
        let crc = {
            let mut crc = flate2::Crc::new();
            crc.update(content);
            crc.sum().to_le_bytes()
        };
        let size = (content.len() as u32).to_le_bytes();
        let padding = 63 - (archive.len() + 30 + name.len() + 4 + 63) % 64;
        let lengths =
            [(name.len() as u16).to_le_bytes(), (padding as u16 + 4).to_le_bytes()].concat();
        archive.extend(
            [&b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0"[..], &[0; 12], &lengths, name.as_bytes()]
                .concat(),
        );
        archive.extend(
            [&b"FB"[..], &(padding as u16).to_le_bytes(), &vec![b'Z'; padding], content].concat(),
        );
        archive.extend([&b"PK\x07\x08"[..], &crc, &size, &size].concat());
        directory.extend(
            [
                &b"PK\x01\x02\0\0\0\0\x08\x08\0\0\0\0\0\0"[..],
                &crc,
                &size,
                &size,
                &lengths[..2],
                &[0; 12],
            ]
            .concat(),
        );
        directory.extend([&at.to_le_bytes()[..], name.as_bytes()].concat());
    }
    let (at, size, count) = (archive.len() as u64, directory.len() as u64, files.len() as u64);
    archive.extend(directory);
    if large {
        let record = archive.len() as u64;
        let numbers = [count, count, size, at].map(u64::to_le_bytes).concat();
        archive.extend(
            [&b"PK\x06\x06"[..], &44_u64.to_le_bytes(), b"\x1e\x03\x2d\0", &[0; 8], &numbers]
                .concat(),
        );
        archive.extend([&b"PK\x06\x07\0\0\0\0"[..], &record.to_le_bytes(), &[1, 0, 0, 0]].concat());
    }
    let count = (count as u16).to_le_bytes();
    archive.extend(
        [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &(size as u32).to_le_bytes()].concat(),
    );
    archive.extend([&(at as u32).to_le_bytes()[..], &[0; 2]].concat());
    archive
}

#[test]
fn the_lengths_of_names_make_no_difference() {
    let mut saved = zip::ZipArchive::new(std::fs::File::open(path("zip.pt")).unwrap()).unwrap();
    let array = std::fs::read(path("x.npy")).unwrap();
    for length in 1..=60 {
        let name = "n".repeat(length);
        let files: Vec<(String, Vec<u8>)> = (0..saved.len())
            .map(|at| {
                let mut file = saved.by_index(at).unwrap();
                let mut content = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut content).unwrap();
                (file.name().unwrap().replacen("zip", &name, 1), content)
            })
            .collect();
        for large in [true, false] {
            let checkpoint = StateDict::from_pytorch(archive_of(&files, large));
            agrees(
                &name,
                &checkpoint.unwrap_or_else(|error| panic!("{length} letters: {error}")),
                0.0,
            );
            let arrays =
                [(format!("{name}.npy"), array.clone()), ("other.npy".to_owned(), array.clone())];
            let arrays = StateDict::from_npz(archive_of(&arrays, large))
                .unwrap_or_else(|error| panic!("{length}: {error}"));
            assert_eq!(
                arrays.tensor::<f32>(&name).unwrap().1,
                [1.0, -2.0, 0.5],
                "{length} letters"
            );
        }
    }
}

#[test]
fn all_ways_in_which_tensors_are_written_are_read() {
    for name in ["python2.pt", "python2-legacy.pt", "attributes.pt", "parameters-tagged.pt"] {
        agrees(name, &open(name), 0.0);
    }
    agrees("defaultdict.pt", &open("defaultdict.pt").under("net"), 0.0);
}

/// A legacy checkpoint with this pickle, followed by the storage `0` with these four numbers.
fn checkpoint(pickle: &str) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let numbers: Vec<u8> =
        [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    [&magic[..], pickle.as_bytes(), b"\x80\x02]U\x010a.", &4_u64.to_le_bytes(), &numbers].concat()
}

#[test]
fn dictionaries_and_tensors_are_made_of_arguments() {
    let storage = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ";
    let tensor =
        format!("ctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n(I2\nI2\nt(I2\nI1\ntI00\n}}tR");
    let old = format!("ctorch\nFloatTensor\n)R({storage}I0\n(I2\nI2\nt(I2\nI1\nttb");
    let parameter = format!("ctorch.nn.parameter\nParameter\n({tensor}I01\ntR");
    let filled = format!("ctorch.nn.parameter\nParameter\n)R({tensor}I01\n}}tb");
    let pairs = format!("(((S'w'\n{tensor}tlt");
    let dictionary = format!("(}}S'w'\n{tensor}st");
    let cases = [
        ("a dictionary", format!("}}S'w'\n{tensor}s")),
        ("an OrderedDict of pairs", format!("ccollections\nOrderedDict\n{pairs}R")),
        ("a dict of pairs", format!("c__builtin__\ndict\n{pairs}R")),
        ("a dict of Python 3", format!("cbuiltins\ndict\n{dictionary}R")),
        ("a Counter", format!("ccollections\nCounter\n{dictionary}R")),
        (
            "a defaultdict of items",
            format!("ccollections\ndefaultdict\n(c__builtin__\nlist\n}}S'w'\n{tensor}stR"),
        ),
        (
            "a defaultdict that is filled",
            format!("ccollections\ndefaultdict\n(c__builtin__\nlist\ntRS'w'\n{tensor}s"),
        ),
        ("a dictionary of a class of its own", format!("cmine\nDict\n)RS'w'\n{tensor}s")),
        ("a tensor of the first versions", format!("}}S'w'\n{old}s")),
        ("a parameter", format!("}}S'w'\n{parameter}s")),
        ("a parameter that is filled", format!("}}S'w'\n{filled}s")),
    ];
    for (what, pickle) in cases {
        let weights = StateDict::from_pytorch(checkpoint(&format!("{pickle}.")));
        let weights = weights.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(
            weights.tensor::<f64>("w").unwrap(),
            (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]),
            "{what}"
        );
    }
}

/// A tensor like `torch.ones(1).expand(10)`, which is saved as one number with ten values.
#[test]
fn tensors_whose_values_overlap_are_left_out() {
    let tensor = |shape: &str, strides: &str| {
        format!(
            "ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQI0\n({shape}t({strides}tI00\n}}tR"
        )
    };
    let expanded = tensor("I10\n", "I0\n");
    let reason = "a tensor whose values overlap, as after tensor.expand(...), which is \
        unsupported: save tensor.clone()";
    let weights = StateDict::from_pytorch(checkpoint(&format!(
        "}}S'0.weight'\n{}sS'0.bias'\n{expanded}s.",
        tensor("I2\nI2\n", "I2\nI1\n")
    )));
    let weights = weights.unwrap();
    assert_eq!(weights.tensor::<f64>("0.weight").unwrap().1, [1.0, 2.0, 3.0, 4.0]);
    for error in [
        weights.tensor::<f64>("0.bias").map(drop),
        weights.model_of::<f64>("Linear(2, 2)", None).map(drop),
    ] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("0.bias") && error.contains(reason), "{error}");
    }
    let alone =
        StateDict::from_pytorch(checkpoint(&format!("{expanded}."))).unwrap_err().to_string();
    assert!(alone.contains(&format!("all it contains is {reason}")), "{alone}");
    // The stride of an axis of size 1 does not matter. On another axis, values overlap.
    let read = |shape: &str, strides: &str| {
        StateDict::from_pytorch(checkpoint(&format!("}}S'w'\n{}s.", tensor(shape, strides))))?
            .tensor::<f64>("w")
    };
    assert_eq!(read("I1\nI4\n", "I0\nI1\n").unwrap().1, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read("I2\nI2\n", "I2\nI0\n").unwrap_err().to_string().matches(reason).count(), 1);
    assert!(read("I5\n", "I1\n").unwrap_err().to_string().contains("so the file is damaged"));
}

#[test]
fn an_error_says_what_was_left_out() {
    let error = StateDict::open(path("left-out.pt")).unwrap_err().to_string();
    let parts = [
        "0.weight is a sparse tensor, which is unsupported: save tensor.to_dense()",
        "0.bias is a quantized tensor",
        "2.weight is a tensor on the meta device, which has no values",
        "2.bias is a tensor of the class tensors_of_mine.Own, which is unsupported: save \
         tensor.as_subclass(torch.Tensor)",
    ];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert!(!error.contains("it contains no tensors"), "{error}");
    let error = StateDict::open(path("module.pt")).unwrap_err().to_string();
    assert!(
        error.contains(
            "all it contains is an object of the class torch.nn.modules.container.Sequential"
        ),
        "{error}"
    );
    assert!(!error.contains("it contains no tensors"), "{error}");

    let text = ARCHITECTURE;
    let error = open("sparse.pt").model_of::<f32>(text, None).unwrap_err().to_string();
    assert!(error.contains("0.weight is in the file, but it is a sparse tensor"), "{error}");
    assert!(!error.contains("missing"), "{error}");
    assert!(
        open("sparse.pt")
            .tensor::<f32>("0.weight")
            .unwrap_err()
            .to_string()
            .contains("0.weight is a sparse tensor")
    );
    let error = open("f8.pt").model_of::<f32>(text, None).unwrap_err().to_string();
    assert!(error.contains("0.weight is of type torch.float8_e4m3fn"), "{error}");
}

#[test]
fn weights_within_a_checkpoint_are_found() {
    let text = ARCHITECTURE;
    let x = DVector::from_vec(open("weights.safetensors").tensor::<f64>("x").unwrap().1);
    let outputs =
        |weights: &StateDict| weights.model_of::<f64>(text, None).unwrap().forward(&x).unwrap();
    for (name, prefix) in [
        ("checkpoint.pt", "model"),
        ("defaultdict.pt", "net"),
        ("lightning.pt", "state_dict.net"),
        ("training.pt", "model.module"),
    ] {
        let weights = open(name);
        assert_eq!(outputs(&weights), outputs(&weights.under(prefix)), "{name}");
    }

    // The tensors fit both without a prefix, where there are others too, and under `head`. The
    // reader does not guess which ones to use.
    let names = ["0.weight", "head.0.weight"]
        .map(|name| (format!("{name}.npy"), std::fs::read(path("x.npy")).unwrap()));
    let ambiguous = StateDict::from_npz(archive_of(&names, false)).unwrap();
    let linear = "Linear(in_features=3, out_features=1, bias=False)";
    let error = ambiguous.model_of::<f64>(linear, None).unwrap_err().to_string();
    assert!(
        error.contains("under no prefix and `head`: choose one with StateDict::under"),
        "{error}"
    );
    assert!(ambiguous.under("head").model_of::<f64>(linear, None).is_ok());
    let several = open("averages.pt");
    let error = several.model_of::<f64>(text, None).unwrap_err().to_string();
    assert!(error.contains("`ema` and `model`: choose one with StateDict::under"), "{error}");
    assert_ne!(outputs(&several.under("model")), outputs(&several.under("ema")));

    let other = text
        .replace("(2): Linear(in_features=4", "(2): Linear(in_features=5")
        .replace("out_features=4", "out_features=5");
    let error = open("lightning.pt").model_of::<f64>(&other, None).unwrap_err();
    let Error::StateDict { missing, surplus, misshapen, .. } = &error else { panic!("{error}") };
    assert!(missing.is_empty() && surplus.is_empty() && misshapen.len() == 3, "{error}");
    assert!(
        error
            .to_string()
            .contains("the tensors under `state_dict.net`, where 1 of 4 fit; choose other tensors"),
        "{error}"
    );
    let within = format!("Trainer(\n  (net): {})", text.replace('\n', "\n  "));
    let error = open("zip.pt").model_of::<f64>(&within, None).unwrap_err().to_string();
    assert!(error.contains("the names fit if `net.` is removed"), "{error}");
}

/// A model written by the Python code in the documentation has the same outputs as in PyTorch.
#[test]
fn the_documented_python_code_writes_all_settings() {
    let model = open("cnn.safetensors").to_model::<f64>().unwrap();
    let values = open("cnn-values.safetensors");
    let [(_, x), (shape, y)] = ["x", "y"].map(|name| values.tensor::<f64>(name).unwrap());
    for (x, y) in x.chunks_exact(model.inputs()).zip(y.chunks_exact(shape[1])) {
        let off =
            model.forward(&DVector::from_column_slice(x)).unwrap() - DVector::from_column_slice(y);
        assert!(off.amax() < 1e-6, "off by {:.1e}", off.amax());
    }
    let assumed = |model: &Sequential<f64>| {
        model
            .check(relprop::Rule::Epsilon)
            .unwrap()
            .iter()
            .filter(|finding| finding.code == relprop::Code::AssumedSettings)
            .count()
    };
    assert_eq!(assumed(&model), 0);
    let again = StateDict::from_safetensors(&model.to_safetensors().unwrap())
        .unwrap()
        .to_model::<f64>()
        .unwrap();
    assert_eq!((again.to_string(), assumed(&again)), (model.to_string(), 0));
    let x = DVector::from_column_slice(&x[..model.inputs()]);
    assert_eq!(again.forward(&x).unwrap(), model.forward(&x).unwrap());
}

/// Compares with PyTorch's outputs in `formats/poolings.txt`.
#[test]
fn poolings_of_every_size_are_as_in_pytorch() {
    let none = open("zip.pt").under("nothing");
    for line in std::fs::read_to_string(path("poolings.txt")).unwrap().lines() {
        let (settings, outputs) = line.split_once(": ").unwrap();
        let (kind, settings) = settings.split_once(' ').unwrap();
        let settings: Vec<usize> = settings.split(' ').map(|text| text.parse().unwrap()).collect();
        let [size, kernel, stride, padding, dilation, ceil, count] = settings[..] else {
            panic!("{line}")
        };
        let flag = |value: usize| if value == 1 { "True" } else { "False" };
        let windows = format!(
            "kernel_size={kernel}, stride={stride}, padding={padding}, ceil_mode={}",
            flag(ceil)
        );
        let text = match kind {
            "max" => format!("MaxPool1d({windows}, dilation={dilation})"),
            _ => format!("AvgPool1d({windows}, count_include_pad={})", flag(count)),
        };
        let x = DVector::from_fn(size, |index, _| {
            f64::from(u32::try_from(index * 7 % 11).unwrap()) - 5.0
        });
        let found =
            none.model_of::<f64>(&text, Some([1, size].into())).and_then(|model| model.forward(&x));
        if outputs == "refused" {
            assert!(found.is_err(), "{line}: {:?}", found.unwrap());
            continue;
        }
        let outputs: Vec<f64> = outputs.split(' ').map(|text| text.parse().unwrap()).collect();
        let found = found.unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(found.len(), outputs.len(), "{line}");
        assert!((found - DVector::from_vec(outputs)).amax() < 1e-5, "{line}");
    }
    let small =
        none.model_of::<f64>("MaxPool2d(3, 2, ceil_mode=True)", Some([1, 2, 2].into())).unwrap();
    assert_eq!(
        small.forward(&DVector::from_vec(vec![1.0, 4.0, 2.0, 3.0])).unwrap().as_slice(),
        [4.0]
    );
}

/// The first bytes of every format that is recognized.
#[test]
fn files_are_recognized() {
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let cases: [(&[u8], &str); 30] = [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"\n <!DOCTYPE HTML><html>", "an HTML page"),
        (b"<html lang=en>", "an HTML page"),
        (b"<?xml version='1.0'?>", "an XML document"),
        (b"{\"error\": \"not found\"}", "a JSON document"),
        (b"[1, 2, 3]", "a JSON document"),
        (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\x1f\x8b\x08\0", "compressed with gzip"),
        (&tar, "a tar archive"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":", "a safetensors file"),
        (b"\x80\x02\0\0\0\0\0\0{\"a\":", "a safetensors file"),
        (b"\x1f\x8b\0\0\0\0\0\0{\"a\":", "a safetensors file"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80", "a PyTorch checkpoint"),
        (b"\x80\x04\x95", "a Python pickle"),
        (b"(dp0\nS'a'\n", "a Python pickle"),
        (b"\x08\x01\x12\xf0\x01\x0a\x05", "a TensorFlow saved model"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
        (b"\x08\x01\x12\x07pytorch", "an ONNX model"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        (b"Sequential(\n  (0): ReLU()\n)", "a text file"),
        ("größe,\u{fc}".as_bytes(), "a text file"),
        (&zip_of("metadata.json"), "a Keras model"),
        (&zip_of("net/archive_format"), "a program saved by torch.export"),
        (&zip_of("net/data.pkl"), "a PyTorch checkpoint"),
        (&zip_of("0.weight.npy"), "an archive of NumPy arrays"),
        (&zip_of("net/constants.pkl"), "a TorchScript archive"),
        (&zip_of("readme.md"), "a zip archive"),
    ];
    let said = |beginning: &[u8]| {
        let error = match beginning {
            // Use a reader of another format.
            [_, _, _, _, _, _, 0, 0, b'{', ..] => StateDict::from_npz(beginning.to_vec()),
            _ => StateDict::from_safetensors(beginning),
        };
        error.unwrap_err().to_string()
    };
    for (beginning, what) in cases {
        let said = said(beginning);
        assert!(said.contains(&format!(": it is {what}")), "{said} is not {what}");
        // Truncated bytes must not cause a panic.
        for end in 0..beginning.len() {
            let _ = StateDict::from_safetensors(&beginning[..end]);
        }
    }
    for unknown in [vec![0; 32], vec![0xfe; 32], b"   ".to_vec()] {
        let said = StateDict::from_npz(unknown).unwrap_err().to_string();
        assert!(said.contains("its format is unknown"), "{said}");
    }
}
