use std::path::PathBuf;

use proptest::prelude::*;
use relprop::nalgebra::DVector;
use relprop::{BatchNorm1d, Conv2d, Flatten, Linear, Sequential};

use super::*;

const FORMATS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/formats");

fn open(name: &str) -> StateDict {
    StateDict::open(format!("{FORMATS}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn refused(weights: &StateDict) -> String {
    architecture(weights).unwrap_err()
}

#[test]
fn a_guess_is_refused_where_it_would_be_wrong() {
    // A convolution, and a dense layer that would be taken for all of the network; or a norm
    // between two.
    let mut conv = Sequential::<f32>::builder()
        .input([1, 3, 3])
        .layer(Conv2d::new([2, 1, 3, 3], vec![1.0; 18], None).unwrap());
    conv = conv.layer(Flatten).named("head", Linear::from_rows(2, 2, &[1.0; 4], None).unwrap());
    let linear = || Linear::from_rows(2, 2, &[1.0_f32; 4], None).unwrap();
    let norm =
        BatchNorm1d::new(vec![1.0; 2], vec![0.0; 2], vec![0.0; 2], vec![1.0; 2], 0.0).unwrap();
    let normed = Sequential::builder().layer(linear()).layer(norm).layer(linear());
    for (model, what) in [
        (conv, "0.weight of shape [2, 1, 3, 3] is no weight"),
        (normed, "1.bias of shape [2] is no weight"),
    ] {
        let file = model.build().unwrap().to_safetensors().unwrap();
        let refused = refused(&StateDict::from_safetensors(&file).unwrap());
        assert!(refused.contains(what) || refused.contains("1.running_mean"), "{refused}");
    }
    let norm = refused(&open("norm.pt"));
    assert!(
        norm.contains("0.weight of shape [2, 1, 3, 3] is no weight or bias of a dense layer"),
        "{norm}"
    );
    assert!(refused(&open("x.npy")).contains("arr_0 of shape [1, 3]"));
    let nothing = refused(&open("zip.pt").under("nothing"));
    assert!(nothing.contains("there is no tensor"), "{nothing}");
    let guessed = architecture(&open("zip.pt")).unwrap();
    assert!(guessed.contains(
        "(0): Linear(in_features=3, out_features=4, bias=True)\n  (0-relu): ReLU()\n  (2): Linear"
    ));
}

/// The guess is the network of `generate.py`, as its outputs show.
#[test]
fn a_guess_has_the_outputs_of_the_network() {
    let expected = open("weights.safetensors");
    let [x, y] = ["x", "y"].map(|name| DVector::from_vec(expected.tensor(name).unwrap().1));
    for name in ["zip.pt", "legacy.pt", "f64.pt", "weights.npz", "checkpoint.pt"] {
        let weights = open(name);
        let model = weights.model_of::<f64>(&architecture(&weights).unwrap(), None).unwrap();
        assert!((model.forward(&x).unwrap() - &y).amax() < 1e-6, "{name}");
    }
}

#[test]
fn the_only_module_of_weights_is_found() {
    let x = DVector::from_vec(open("weights.safetensors").tensor::<f64>("x").unwrap().1);
    let outputs = |weights: &StateDict| {
        let guess = architecture(weights).unwrap();
        weights.model_of::<f64>(&guess, None).unwrap().forward(&x).unwrap()
    };
    for (name, prefix) in [
        ("checkpoint.pt", "model"),
        ("defaultdict.pt", "net"),
        ("lightning.pt", "state_dict.net"),
        ("training.pt", "model.module"),
    ] {
        let weights = open(name);
        assert_eq!(outputs(&weights), outputs(&weights.under(prefix)), "{name}");
    }
    let several = refused(&open("averages.pt"));
    assert!(several.contains("`ema` and `model`: choose one with --under"), "{several}");
}

/// A safetensors file of tensors of zeros.
fn file_of(tensors: &BTreeMap<String, Vec<usize>>) -> Vec<u8> {
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let tensor =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), tensor);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], &header, &vec![0; end]].concat()
}

/// The files of weights whose bytes are changed.
fn real() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(FORMATS).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("pt" | "npz" | "npy" | "safetensors"))
    });
    files.sort();
    files
}

fn is_guessed_or_refused(weights: &StateDict) {
    match architecture(weights) {
        Ok(guess) => drop(weights.model_of::<f32>(&guess, None)),
        Err(refusal) => assert!(refusal.starts_with("no architecture can be guessed: ")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_names_and_shapes_are_guessed_or_refused(
        tensors in prop::collection::btree_map(
            "([.]|[a-b0-9)(: \u{1b}\n]|net){0,4}[.]?(weight|bias)?",
            prop::collection::vec(0..4_usize, 0..4),
            0..8,
        ),
    ) {
        is_guessed_or_refused(&StateDict::from_safetensors(&file_of(&tensors)).unwrap());
    }

    #[test]
    fn mutated_files_are_guessed_or_refused(
        which in any::<prop::sample::Index>(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut file = std::fs::read(which.get(&real())).unwrap();
        for (at, to) in mutations {
            *at.get_mut(&mut file) = to;
        }
        let read = [
            StateDict::from_pytorch(file.clone()),
            StateDict::from_npz(file.clone()),
            StateDict::from_safetensors(&file),
        ];
        read.iter().flatten().for_each(is_guessed_or_refused);
    }
}
