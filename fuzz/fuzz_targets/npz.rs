#![no_main]

use libfuzzer_sys::fuzz_target;
use relprop::io::StateDict;
use relprop_fuzz::{PER_PACKED_BYTE, bounded, use_up};

fuzz_target!(|data: &[u8]| {
    bounded(data, PER_PACKED_BYTE, |data| {
        if let Ok(weights) = StateDict::from_npz(data.to_vec()) {
            use_up(&weights);
        }
    });
});
