//! Biases that are separate nodes.

use crate::error::Error;
use crate::io::onnx::affine::affine;
use crate::io::onnx::ir::{Computation, Ir, Layers};
use crate::io::onnx::malformed;
use crate::scalar::Scalar;

impl<T: Scalar> Ir<T> {
    /// Merges each shift into the dense layer or convolution before it, if nothing else reads that
    /// layer's outputs, and turns the other shifts into layers.
    pub(super) fn merge_shifts(&mut self, output: usize) -> Result<(), Error> {
        let readers = self.readers(output);
        for node in (0..=output).filter(|&node| node == output || !readers[node].is_empty()) {
            let Computation::Shift(of, shift) = &self[node].computation else { continue };
            let alone = readers[*of].len() == 1;
            let merged = if alone { self.with_bias(*of, shift) } else { None };
            let (of, layers) = if let Some(merged) = merged {
                merged
            } else {
                let dims = self[node].dims.as_deref().unwrap_or_default();
                let ones = vec![1.0; shift.len()];
                (*of, affine(dims, &ones, shift).map_err(malformed)?)
            };
            self[node].computation = Computation::Layers(of, layers);
        }
        Ok(())
    }

    /// The input of a node and its layers, the last of them with this bias added.
    fn with_bias(&self, node: usize, shift: &[f64]) -> Option<(usize, Layers<T>)> {
        let Computation::Layers(of, layers) = &self[node].computation else { return None };
        let (last, before) = layers.split_last()?;
        if last.per_channel().is_some() {
            return None;
        }
        let ones = vec![T::one(); shift.len()];
        let shift: Vec<T> = shift.iter().map(|&b| T::from_f64(b)).collect();
        let last = last.scaled(&ones, &shift)?;
        Some((*of, before.iter().cloned().chain([last]).collect()))
    }
}
