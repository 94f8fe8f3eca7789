#![no_main]

use libfuzzer_sys::fuzz_target;
use relprop_fuzz::{PER_PACKED_BYTE, bounded};

#[path = "../../examples/mnist/idx.rs"]
#[allow(dead_code)]
mod idx;

fuzz_target!(|data: &[u8]| {
    bounded(data, PER_PACKED_BYTE, |data| {
        let _ = idx::read_images(data);
        let _ = idx::read_labels(data);
        if let Some(at) = data.first().filter(|&&at| usize::from(at) < data.len()) {
            let (images, labels) = data[1..].split_at(usize::from(*at));
            let _ = idx::Dataset::read(images, labels);
        }
    });
});
