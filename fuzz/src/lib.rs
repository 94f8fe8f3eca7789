//! What every reader has to hold, whatever it is given: no panic, and memory in proportion to the
//! file.

use relprop::io::StateDict;

/// A reader takes no more memory than this for each byte of a file, and [`ALWAYS`].
pub const PER_BYTE: u64 = 256;
/// The same for a file in an archive or compressed: deflate makes at most 1,032 bytes of one.
pub const PER_PACKED_BYTE: u64 = 1032 + PER_BYTE;
/// Whatever the file's size: the unpacker's tables, and the first part of a vector.
pub const ALWAYS: u64 = 1 << 20;

/// The network whose weights are the files of `tests/formats`.
const ARCHITECTURE: &str = "Linear(3, 4)\nReLU()\nLinear(4, 2)";

/// Runs a reader and looks at what it has allocated at once.
pub fn bounded(data: &[u8], per_byte: u64, read: impl FnOnce(&[u8])) {
    let used = allocation_counter::measure(|| read(data)).bytes_max;
    let allowed = per_byte * data.len() as u64 + ALWAYS;
    assert!(used <= allowed, "{used} bytes were allocated for a file of {}", data.len());
}

/// Whatever can be made of weights is made of them.
pub fn use_up(weights: &StateDict) {
    for name in weights.names() {
        let _ = weights.tensor::<f32>(name);
    }
    if weights.has_architecture() {
        let _ = weights.to_model::<f32>();
    }
    let _ = weights.model_of::<f64>(ARCHITECTURE, None);
}
