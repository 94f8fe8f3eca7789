//! What is made one layer when all of the graph is known: factors of activations, and probabilities at the end.

use std::sync::Arc;

use super::arithmetic::affine;
use super::step::{Kind, Steps};
use super::{malformed, shortened};
use crate::error::Error;
use crate::layer::{Identity, Layer, Linear, Operator, Scaled};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The operators that move values only, whatever their shape.
const MOVES: &[&str] = &["Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

impl<T: Scalar> Steps<T> {
    /// The steps on the way to the output.
    pub fn needed(&self, output: usize) -> Vec<bool> {
        let mut needed = vec![false; self.len()];
        needed[output] = true;
        for step in (0..=output).rev() {
            if needed[step] {
                self[step].kind.inputs().iter().for_each(|&input| needed[input] = true);
            }
        }
        needed
    }

    /// Makes factors part of the activations that they are of, and probabilities at the end those of logits. What makes the
    /// probabilities of a concatenation comes after it; it is given back.
    pub fn end(&mut self, output: usize) -> Result<Option<Arc<dyn Layer<T>>>, Error> {
        let last = self.without_moves(output);
        let link = if let Kind::Joined { of, summed: false } = &self[last].kind {
            let of = of.clone();
            self.probabilities(last, &of)
        } else {
            self.probability(last);
            None
        };
        self.merge_factors(output, last)?;
        Ok(link)
    }

    /// Where the values of a step come from that only moves them.
    pub fn without_moves(&self, mut step: usize) -> usize {
        loop {
            step = match &self[step].kind {
                Kind::Layers(of, layers)
                    if layers.iter().all(|layer| matches!(layer.kind(), "Flatten" | "Unflatten" | "Permute")) =>
                {
                    *of
                }
                Kind::Behind(of) if MOVES.contains(&&*self[step].operator) && !of.is_empty() => of[0],
                _ => return step,
            }
        }
    }

    /// f and a, where the values of a step are the probabilities f(a z) of the values z of another.
    fn link(&self, step: usize) -> Option<(usize, Arc<dyn Layer<T>>, f64)> {
        let of = self.activated(step)?;
        let (_, expression) = self[step].expressions.iter().find(|(base, _)| *base == of)?;
        let (link, argument) = expression.probability()?;
        Some((of, link, argument))
    }

    /// Of which values a step gives an activation, where it does.
    fn activated(&self, step: usize) -> Option<usize> {
        match &self[step].kind {
            Kind::Layers(of, layers) => matches!(layers.as_slice(), [layer] if is_activation(layer)).then_some(*of),
            _ => None,
        }
    }

    /// The logits of a last sigmoid are its scaled arguments.
    fn probability(&mut self, last: usize) {
        let Some((of, link, argument)) = self.link(last) else { return };
        if let Some(scale) = factor(argument).filter(|_| !is_one(argument)) {
            self[last].kind = Kind::Layers(of, vec![scale, link]);
        }
    }

    /// p and 1 - p, as scikit-learn writes them, and several of them: a concatenation of logits, and what makes probabilities of them.
    fn probabilities(&mut self, last: usize, of: &[usize]) -> Option<Arc<dyn Layer<T>>> {
        let needed = self.needed(last);
        let reads = |step: &usize| needed[*step] && self[*step].kind.inputs().iter().any(|input| of.contains(input));
        if (0..last).any(|step| reads(&step)) {
            return None;
        }
        let parts: Vec<_> = of.iter().map(|&step| self.link(step)).collect::<Option<_>>()?;
        let (first, link, _) = parts.first()?.clone();
        let mut once = of.to_vec();
        once.sort_unstable();
        once.dedup();
        if once.len() < of.len() || parts.iter().any(|(_, other, _)| other.kind() != link.kind()) {
            return None;
        }
        let arguments: Vec<f64> = parts.iter().map(|(.., argument)| *argument).collect();
        if parts.iter().all(|(base, ..)| *base == first)
            && let Some(kind) = self.stacked(last, first, of, &arguments)
        {
            self[last].kind = kind;
            return Some(link);
        }
        for (&step, (base, _, argument)) in of.iter().zip(&parts) {
            let layers = if is_one(*argument) { Vec::new() } else { vec![factor(*argument)?] };
            self[step].kind = Kind::Layers(*base, layers);
        }
        Some(link)
    }

    /// A vector times each of some factors, one after another: by the dense layer that makes the vector, where nothing else reads it.
    fn stacked(&mut self, last: usize, base: usize, readers: &[usize], factors: &[f64]) -> Option<Kind<T>> {
        if let Kind::Factor(of, by) = self[base].kind
            && !self.has_other_readers(base, readers, last)
        {
            let factors: Vec<f64> = factors.iter().map(|factor| factor * by).collect();
            return self.stacked(last, of, &[base], &factors);
        }
        let &[size] = self[base].dims.as_deref()? else { return None };
        let factors: Vec<T> = factors.iter().map(|&factor| T::from_f64(factor)).collect();
        if let (false, Kind::Layers(of, layers)) = (self.has_other_readers(base, readers, last), &self[base].kind)
            && let Some((dense, before)) = layers.split_last()
            && dense.kind() == "Linear"
        {
            let tensors = dense.tensors();
            let of_name = |name: &str| tensors.iter().find(|(own, ..)| *own == name).map(|(.., values)| values);
            let weights = of_name("weight")?;
            self.budget.keep(weights.len().checked_mul(factors.len())?).ok()?;
            let times = |values: &Vec<T>| -> Vec<T> {
                factors.iter().flat_map(|&factor| values.iter().map(move |&value| factor * value)).collect()
            };
            let (stacked, bias) = (times(weights), of_name("bias").map(times));
            let stacked = Linear::from_rows(size * factors.len(), weights.len() / size, &stacked, bias.as_deref()).ok()?;
            let (of, before) = (*of, before.to_vec());
            self[base].kind = Kind::Layers(of, before.into_iter().chain([Arc::new(stacked) as Arc<dyn Layer<T>>]).collect());
            return Some(Kind::Layers(base, Vec::new()));
        }
        let count = size.checked_mul(size)?.checked_mul(factors.len())?;
        self.budget.keep(count).ok()?;
        let mut weights = vec![T::zero(); count];
        for (part, &factor) in weights.chunks_exact_mut(size * size).zip(&factors) {
            part.iter_mut().step_by(size + 1).for_each(|diagonal| *diagonal = factor);
        }
        let stacked = Linear::from_rows(size * factors.len(), size, &weights, None).ok()?;
        Some(Kind::Layers(base, vec![Arc::new(stacked)]))
    }

    fn has_other_readers(&self, base: usize, readers: &[usize], last: usize) -> bool {
        let needed = self.needed(last);
        let reads = |step: &usize| needed[*step] && self[*step].kind.inputs().contains(&base);
        (0..=last).filter(reads).any(|step| !readers.contains(&step))
    }

    /// A factor before or after an activation is part of it. `last` makes the outputs.
    fn merge_factors(&mut self, output: usize, last: usize) -> Result<(), Error> {
        let needed = self.needed(output);
        let mut readers = vec![Vec::new(); self.len()];
        for step in (0..=output).filter(|&step| needed[step]) {
            self[step].kind.inputs().iter().for_each(|&input| readers[input].push(step));
        }
        let alone = |step: usize| readers[step].len() == 1;
        for step in (0..=output).filter(|&step| needed[step]) {
            // Its argument.
            let is_link = step == last && self.link(step).is_some();
            while let Some(of) = self.activated(step).filter(|&of| alone(of) && !is_link)
                && let Kind::Factor(from, by) = self[of].kind
                && let Some(layer) = self.merged(step, from, step, (by, 1.0))
            {
                self[step].kind = Kind::Layers(from, vec![layer]);
            }
            // Its value.
            let Kind::Factor(of, by) = self[step].kind else { continue };
            if let Some(from) = self.activated(of) {
                let merged = if alone(of) { self.merged(step, from, of, (1.0, by)).map(|layer| (from, layer)) } else { None };
                let (from, layer) = merged.or_else(|| Some((of, factor(by)?))).ok_or_else(|| self.no_factor(step))?;
                self[step].kind = Kind::Layers(from, vec![layer]);
            }
        }
        for step in (0..=output).filter(|&step| needed[step]) {
            let Kind::Factor(of, by) = self[step].kind else { continue };
            let is_activated = |reader: &usize| matches!(&self[*reader].kind, Kind::Layers(of, layers) if *of == step && layers.first().is_some_and(is_activation));
            let layers = if !readers[step].is_empty() && readers[step].iter().all(is_activated) {
                vec![factor(by).ok_or_else(|| self.no_factor(step))?]
            } else {
                let Some(dims) = &self[of].dims else { continue };
                let channels = dims.first().copied().unwrap_or(1);
                affine(dims, &vec![by; channels], &vec![0.0; channels]).map_err(malformed)?
            };
            self[step].kind = Kind::Layers(of, layers);
        }
        Ok(())
    }

    /// What the activation that a step `of` is and factors are in one, as a function of the values of `from`.
    fn merged(&self, step: usize, from: usize, of: usize, (argument, value): (f64, f64)) -> Option<Arc<dyn Layer<T>>> {
        let expression = self[step].expressions.iter().find(|(base, _)| *base == from).map(|(_, expression)| expression);
        let known = |expression: &std::rc::Rc<super::expression::Expression>| {
            expression.activation().or_else(|| expression.scaled_activation()).or_else(|| expression.cut())
        };
        expression.and_then(known).or_else(|| {
            let Kind::Layers(_, layers) = &self[of].kind else { return None };
            let layer = layers.first().filter(|layer| layer.kind() != "Scaled")?;
            Some(Arc::new(Scaled::of(layer.clone(), argument, value).ok()?))
        })
    }

    fn no_factor(&self, step: usize) -> Error {
        malformed(format!("node '{}' multiplies by a number that is too large", shortened(&self[step].name)))
    }
}

/// y = a z as an activation.
fn factor<T: Scalar>(factor: f64) -> Option<Arc<dyn Layer<T>>> {
    Some(Arc::new(Scaled::new(Identity, 1.0, factor).ok()?))
}

fn is_one(number: f64) -> bool {
    (number - 1.0).abs() < 1e-6
}

fn is_activation<T: Scalar>(layer: &Arc<dyn Layer<T>>) -> bool {
    matches!(layer.operator(Shape::from(1)), Ok(Operator::Elementwise(_)))
}
