//! Factors, which become part of the activation before or after them.

use std::sync::Arc;

use super::is_activation;
use crate::error::Error;
use crate::io::onnx::affine::affine;
use crate::io::onnx::expression::Expression;
use crate::io::onnx::ir::{Computation, Ir};
use crate::io::onnx::{malformed, shortened};
use crate::layer::{Identity, Layer, Scaled};
use crate::scalar::Scalar;

impl<T: Scalar> Ir<T> {
    /// Merges factors before or after an activation into it, and turns the other factors into
    /// layers. The node `last` computes the outputs.
    pub(super) fn merge_factors(&mut self, output: usize, last: usize) -> Result<(), Error> {
        let (needed, readers) = (self.needed(output), self.readers(output));
        // Merging changes the values of a node, so nothing else may read them.
        let alone = |node: usize| readers[node].len() == 1;
        for node in (0..=output).filter(|&node| needed[node]) {
            // Merge a factor of the argument. The logits of a probability at the end keep theirs.
            let is_link = node == last && self.link(node).is_some();
            while let Some(of) = self.activated(node).filter(|&of| alone(of) && !is_link)
                && let Computation::Factor(from, by) = self[of].computation
                && let Some(layer) = self.merged(node, from, node, (by, 1.0))
            {
                self[node].computation = Computation::Layers(from, vec![layer]);
            }
            // Merge a factor of the value.
            let Computation::Factor(of, by) = self[node].computation else { continue };
            if let Some(from) = self.activated(of) {
                let merged = if alone(of) {
                    self.merged(node, from, of, (1.0, by)).map(|layer| (from, layer))
                } else {
                    None
                };
                let (from, layer) = merged
                    .or_else(|| Some((of, factor(by)?)))
                    .ok_or_else(|| self.no_factor(node))?;
                self[node].computation = Computation::Layers(from, vec![layer]);
            }
        }
        // The remaining factors become scaled identities if only activations read them, and
        // scalings of channels otherwise.
        for node in (0..=output).filter(|&node| needed[node]) {
            let Computation::Factor(of, by) = self[node].computation else { continue };
            let is_activated = |reader: &usize| match &self[*reader].computation {
                Computation::Layers(of, layers) => {
                    *of == node && layers.first().is_some_and(is_activation)
                }
                _ => false,
            };
            let layers = if !readers[node].is_empty() && readers[node].iter().all(is_activated) {
                vec![factor(by).ok_or_else(|| self.no_factor(node))?]
            } else {
                let Some(dims) = &self[of].dims else { continue };
                let channels = dims.first().copied().unwrap_or(1);
                affine(dims, &vec![by; channels], &vec![0.0; channels]).map_err(malformed)?
            };
            self[node].computation = Computation::Layers(of, layers);
        }
        Ok(())
    }

    /// One activation that computes the values of `node` from those of `from`. It is the activation
    /// of the node `of` with these factors of its argument and value.
    fn merged(
        &self,
        node: usize,
        from: usize,
        of: usize,
        (argument, value): (f64, f64),
    ) -> Option<Arc<dyn Layer<T>>> {
        let expression = self[node]
            .expressions
            .iter()
            .find(|(base, _)| *base == from)
            .map(|(_, expression)| expression);
        let known = |expression: &std::rc::Rc<Expression>| {
            expression
                .activation()
                .or_else(|| expression.scaled_activation())
                .or_else(|| expression.cut())
        };
        expression.and_then(known).or_else(|| {
            let Computation::Layers(_, layers) = &self[of].computation else { return None };
            // A model's text cannot contain a `Scaled` within another.
            let layer = layers.first().filter(|layer| layer.kind() != "Scaled")?;
            Some(Arc::new(Scaled::of(layer.clone(), argument, value).ok()?))
        })
    }

    fn no_factor(&self, node: usize) -> Error {
        malformed(format!(
            "node '{}' multiplies by a number that is out of range: remove it from the model",
            shortened(&self[node].name)
        ))
    }
}

/// y = a z as an activation.
pub(super) fn factor<T: Scalar>(factor: f64) -> Option<Arc<dyn Layer<T>>> {
    Some(Arc::new(Scaled::new(Identity, 1.0, factor).ok()?))
}

pub(super) fn is_one(number: f64) -> bool {
    (number - 1.0).abs() < 1e-6
}
