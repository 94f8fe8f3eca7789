#![no_main]

use libfuzzer_sys::fuzz_target;
use relprop::io::StateDict;
use relprop_fuzz::{PER_BYTE, bounded, use_up};

fuzz_target!(|data: &[u8]| {
    bounded(data, PER_BYTE, |data| {
        if let Ok(weights) = StateDict::from_safetensors(data) {
            use_up(&weights);
        }
    });
});
