//! Probabilities at the end, whose logits are explained.

use std::sync::Arc;

use super::factor::{factor, is_one};
use crate::io::onnx::ir::{Computation, Ir, Layers};
use crate::layer::{Layer, Linear};
use crate::scalar::Scalar;

impl<T: Scalar> Ir<T> {
    /// If the values of a node are probabilities f(a z), where z are the values of another node,
    /// returns that other node, f and a.
    pub(super) fn link(&self, node: usize) -> Option<(usize, Arc<dyn Layer<T>>, f64)> {
        let of = self.activated(node)?;
        let (_, expression) = self[node].expressions.iter().find(|(base, _)| *base == of)?;
        let (link, argument) = expression.probability()?;
        Some((of, link, argument))
    }

    /// Rewrites a sigmoid f(a z) at the end as a scaling by a followed by f, so that its logits are
    /// a z.
    pub(super) fn replace_probability(&mut self, last: usize) {
        let Some((of, link, argument)) = self.link(last) else { return };
        if let Some(scale) = factor(argument).filter(|_| !is_one(argument)) {
            self[last].computation = Computation::Layers(of, vec![scale, link]);
        }
    }

    /// Rewrites a concatenation of probabilities, such as the p and 1 - p of scikit-learn, as a
    /// concatenation of logits, and returns the layer that turns these into probabilities.
    pub(super) fn replace_probabilities(
        &mut self,
        last: usize,
        of: &[usize],
    ) -> Option<Arc<dyn Layer<T>>> {
        let readers = self.readers(last);
        // A probability that another node also reads cannot be replaced by its logit.
        if of.iter().any(|&node| readers[node].iter().any(|&reader| reader != last)) {
            return None;
        }
        let parts: Vec<_> = of.iter().map(|&node| self.link(node)).collect::<Option<_>>()?;
        let (first, link, _) = parts.first()?.clone();
        // Each node is rewritten once, so it cannot occur twice. One layer turns all logits into
        // probabilities, so they need the same function.
        let mut once = of.to_vec();
        once.sort_unstable();
        once.dedup();
        if once.len() < of.len() || parts.iter().any(|(_, other, _)| other.kind() != link.kind()) {
            return None;
        }
        let mut arguments: Vec<f64> = parts.iter().map(|(.., argument)| *argument).collect();
        let mut bases: Vec<usize> = parts.iter().map(|(base, ..)| *base).collect();
        // All probabilities depend on the same logits, as p and 1 - p do.
        if bases.iter().all(|base| *base == first) {
            let (mut base, mut known) = (first, of.to_vec());
            let is_read_elsewhere = |base: usize, known: &[usize]| {
                readers[base].iter().any(|reader| !known.contains(reader))
            };
            // Factors that all probabilities share become part of their arguments.
            while let (false, &Computation::Factor(from, by)) =
                (is_read_elsewhere(base, &known), &self[base].computation)
            {
                for argument in &mut arguments {
                    *argument *= by;
                }
                (base, known) = (from, vec![base]);
            }
            if !is_read_elsewhere(base, &known)
                && let Some(stacked) = self.stacked(base, &arguments)
            {
                // The dense layer now gives all logits, so the concatenation has nothing left to
                // do.
                self[base].computation = stacked;
                self[last].computation = Computation::Layers(base, Vec::new());
                return Some(link);
            }
            // The arguments already include the factors that the loop above skipped.
            bases.fill(base);
        }
        // Use branches of factors and not a dense layer, because a rule for a dense layer would
        // distribute the relevance of one label to the logits of all labels.
        let scale = |&argument: &f64| {
            if is_one(argument) { Some(Vec::new()) } else { Some(vec![factor(argument)?]) }
        };
        let scales: Vec<Layers<T>> = arguments.iter().map(scale).collect::<Option<_>>()?;
        for ((&node, base), scale) in of.iter().zip(bases).zip(scales) {
            self[node].computation = Computation::Layers(base, scale);
        }
        Some(link)
    }

    /// If a node ends in a dense layer, returns the node with a larger dense layer, whose outputs
    /// are the original outputs times the first factor, then times the second, and so on.
    fn stacked(&self, base: usize, factors: &[f64]) -> Option<Computation<T>> {
        let (Computation::Layers(of, layers), &[size]) =
            (&self[base].computation, self[base].dims.as_deref()?)
        else {
            return None;
        };
        let (dense, before) = layers.split_last().filter(|(last, _)| last.kind() == "Linear")?;
        let tensors = dense.tensors();
        let of_name =
            |name: &str| tensors.iter().find(|(own, ..)| *own == name).map(|(.., values)| values);
        let weights = of_name("weight")?;
        self.budget.keep(weights.len().checked_mul(factors.len())?).ok()?;
        let times = |values: &Vec<T>| -> Vec<T> {
            factors
                .iter()
                .flat_map(|&factor| values.iter().map(move |&value| T::from_f64(factor) * value))
                .collect()
        };
        let (stacked, bias) = (times(weights), of_name("bias").map(times));
        let inputs = weights.len().checked_div(size)?;
        let stacked =
            Linear::from_rows(size.checked_mul(factors.len())?, inputs, &stacked, bias.as_deref())
                .ok()?;
        let layers =
            before.iter().cloned().chain([Arc::new(stacked) as Arc<dyn Layer<T>>]).collect();
        Some(Computation::Layers(*of, layers))
    }
}
