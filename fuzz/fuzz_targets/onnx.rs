#![no_main]

use libfuzzer_sys::fuzz_target;
use relprop::io::OnnxFile;
use relprop_fuzz::{PER_BYTE, bounded};

fuzz_target!(|data: &[u8]| {
    bounded(data, PER_BYTE, |data| {
        if let Ok(file) = OnnxFile::from_bytes(data.to_vec()) {
            let _ = file.to_graph::<f32>().and_then(|graph| graph.canonize());
            let _ = file.input([1, 4, 4]).to_graph::<f64>();
        }
    });
});
