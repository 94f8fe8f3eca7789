//! The tests of the crate, with one module for each subject. They form one program, so that they
//! are compiled and linked once.

mod common;

mod check;
mod convolutions;
mod docs;
mod engine;
mod errors;
#[cfg(all(feature = "onnx", feature = "safetensors"))]
mod exported;
#[cfg(all(feature = "npz", feature = "pytorch", feature = "safetensors"))]
mod formats;
#[cfg(feature = "safetensors")]
mod golden;
mod graph;
mod health;
#[cfg(feature = "heatmap")]
mod heatmap;
#[cfg(all(feature = "npz", feature = "onnx", feature = "pytorch", feature = "safetensors"))]
mod hostile;
#[cfg(feature = "safetensors")]
mod images;
#[cfg(feature = "safetensors")]
mod io;
#[cfg(feature = "safetensors")]
mod mnist;
mod ndarray;
mod nonsense;
#[cfg(feature = "onnx")]
mod onnx;
mod properties;
#[cfg(feature = "safetensors")]
mod random;
mod reference;
mod rules;
#[cfg(feature = "serde")]
mod serde;
mod trace;
