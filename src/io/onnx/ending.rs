//! Simplifications that require the whole graph: merging factors into activations, and finding the
//! logits of probabilities at the end.

use std::sync::Arc;

use super::arithmetic::affine;
use super::operator::MOVES;
use super::step::{Kind, Layers, Steps, one, shape_of};
use super::{malformed, shortened};
use crate::error::Error;
use crate::layer::{Identity, Joined, Layer, Linear, Operator, Scaled, Softmax, Unflatten};
use crate::scalar::Scalar;
use crate::shape::Shape;

impl<T: Scalar> Steps<T> {
    /// Marks the steps that the output depends on.
    pub fn needed(&self, output: usize) -> Vec<bool> {
        let mut needed = vec![false; self.len()];
        // Each step comes after its inputs, so one pass backwards is enough.
        needed[output] = true;
        for step in (0..=output).rev() {
            if needed[step] {
                self[step].kind.inputs().iter().for_each(|&input| needed[input] = true);
            }
        }
        needed
    }

    /// For each step, the steps that read its values and that the output depends on.
    fn readers(&self, output: usize) -> Vec<Vec<usize>> {
        let needed = self.needed(output);
        let mut readers = vec![Vec::new(); self.len()];
        for step in (0..=output).filter(|&step| needed[step]) {
            self[step].kind.inputs().iter().for_each(|&input| readers[input].push(step));
        }
        readers
    }

    /// Merges factors into their activations, and rewrites probabilities at the end as functions of
    /// logits. If the output is a concatenation of probabilities, returns the layer that turns
    /// logits into probabilities, which comes after the concatenation.
    pub fn end(&mut self, output: usize) -> Result<Option<Arc<dyn Layer<T>>>, Error> {
        let last = self.without_moves(output);
        let link = if let Kind::Joined { of, joined: Joined::Concatenated } = &self[last].kind {
            let of = of.clone();
            self.probabilities(last, &of)
        } else {
            self.probability(last);
            self.permute_logits(output, last);
            None
        };
        self.merge_factors(output, last)?;
        Ok(link)
    }

    /// Follows steps that only move values back to the step that computes the values.
    pub fn without_moves(&self, mut step: usize) -> usize {
        while let Some(of) = self.moved(step) {
            step = of;
        }
        step
    }

    /// The input of a step that only moves values, or `None` for other steps.
    fn moved(&self, step: usize) -> Option<usize> {
        match &self[step].kind {
            Kind::Layers(of, layers)
                if layers
                    .iter()
                    .all(|layer| matches!(layer.kind(), "Flatten" | "Unflatten" | "Permute")) =>
            {
                Some(*of)
            }
            // After an unsupported node a move has no layers, but errors still depend on which step
            // is last.
            Kind::Behind(of) if MOVES.contains(&&*self[step].operator) => of.first().copied(),
            _ => None,
        }
    }

    /// The steps after `last` that move its values, up to the output, in order.
    fn moves_after(&self, last: usize, output: usize) -> Vec<usize> {
        let back = std::iter::successors(Some(output), |&step| self.moved(step));
        let mut moves: Vec<usize> = back.take_while(|&step| step != last).collect();
        moves.reverse();
        moves
    }

    /// Swaps a softmax at the end with the permutations after it, so that they permute the logits,
    /// because the logits are explained. The outputs stay the same.
    fn permute_logits(&mut self, output: usize, last: usize) {
        let mut softmax = last;
        for next in self.moves_after(last, output) {
            let Some((of, layers)) = self.permuted(softmax, next) else { return };
            // Swap the two steps, with their names. The values of both now have the permuted shape.
            let (first, second) = (&self[softmax], &self[next]);
            let Kind::Layers(_, permutation) = &second.kind else { return };
            let (permutation, dims) = (Kind::Layers(of, permutation.clone()), second.dims.clone());
            let names = (first.name.clone(), first.node, second.name.clone(), second.node);
            let first = &mut self[softmax];
            (first.kind, first.dims, first.name, first.node) =
                (permutation, dims, names.2, names.3);
            let second = &mut self[next];
            (second.kind, second.name, second.node) =
                (Kind::Layers(softmax, layers), names.0, names.1);
            softmax = next;
        }
    }

    /// The input of a softmax, and the layers that replace the softmax once the permutation after
    /// it has been moved before it.
    fn permuted(&self, softmax: usize, permutation: usize) -> Option<(usize, Layers<T>)> {
        let (Kind::Layers(of, layers), Kind::Layers(_, moves)) =
            (&self[softmax].kind, &self[permutation].kind)
        else {
            return None;
        };
        let [permute] = moves.as_slice() else { return None };
        let shape = shape_of(self[softmax].dims.as_deref()?).ok()?;
        match layers.as_slice() {
            [only] => {
                let Ok(Operator::Softmax(axis)) = only.operator(&[shape]) else { return None };
                Some((*of, one(Softmax::over(moved_axis(&**permute, axis, shape.dims().len())?))))
            }
            // A softmax over all values does not depend on their order.
            [flatten, softmax, _] => {
                let back = Unflatten::new(shape_of(self[permutation].dims.as_deref()?).ok()?);
                Some((*of, vec![flatten.clone(), softmax.clone(), Arc::new(back)]))
                    .filter(|_| is_permutation(moves))
            }
            _ => None,
        }
    }

    /// The permutations after a softmax at the end that cannot be moved before it, because a
    /// reshape between the two changes the axes.
    pub fn stuck(&self, output: usize) -> Vec<usize> {
        let last = self.without_moves(output);
        if !matches!(&*self[last].operator, "Softmax" | "LogSoftmax") {
            return Vec::new();
        }
        let permutes = |step: &usize| match &self[*step].kind {
            Kind::Layers(_, layers) => is_permutation(layers),
            _ => false,
        };
        // `permute_logits` handles the permutations that directly follow the softmax. They are
        // skipped here.
        self.moves_after(last, output).into_iter().skip_while(permutes).filter(permutes).collect()
    }

    /// If the values of a step are probabilities f(a z), where z are the values of another step,
    /// returns that other step, f and a.
    fn link(&self, step: usize) -> Option<(usize, Arc<dyn Layer<T>>, f64)> {
        let of = self.activated(step)?;
        let (_, expression) = self[step].expressions.iter().find(|(base, _)| *base == of)?;
        let (link, argument) = expression.probability()?;
        Some((of, link, argument))
    }

    /// The input of a step that is a single activation, or `None` for other steps.
    fn activated(&self, step: usize) -> Option<usize> {
        match &self[step].kind {
            Kind::Layers(of, layers) => {
                matches!(layers.as_slice(), [layer] if is_activation(layer)).then_some(*of)
            }
            _ => None,
        }
    }

    /// Rewrites a sigmoid f(a z) at the end as a scaling by a followed by f, so that its logits are
    /// a z.
    fn probability(&mut self, last: usize) {
        let Some((of, link, argument)) = self.link(last) else { return };
        if let Some(scale) = factor(argument).filter(|_| !is_one(argument)) {
            self[last].kind = Kind::Layers(of, vec![scale, link]);
        }
    }

    /// Rewrites a concatenation of probabilities, such as the p and 1 - p of scikit-learn, as a
    /// concatenation of logits, and returns the layer that turns these into probabilities.
    fn probabilities(&mut self, last: usize, of: &[usize]) -> Option<Arc<dyn Layer<T>>> {
        let readers = self.readers(last);
        // A probability that another step also reads cannot be replaced by its logit.
        if of.iter().any(|&step| readers[step].iter().any(|&reader| reader != last)) {
            return None;
        }
        let parts: Vec<_> = of.iter().map(|&step| self.link(step)).collect::<Option<_>>()?;
        let (first, link, _) = parts.first()?.clone();
        // Each step is rewritten once, so it cannot occur twice. One layer turns all logits into
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
            while let (false, &Kind::Factor(from, by)) =
                (is_read_elsewhere(base, &known), &self[base].kind)
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
                self[base].kind = stacked;
                self[last].kind = Kind::Layers(base, Vec::new());
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
        for ((&step, base), scale) in of.iter().zip(bases).zip(scales) {
            self[step].kind = Kind::Layers(base, scale);
        }
        Some(link)
    }

    /// If a step ends in a dense layer, returns the step with a larger dense layer, whose outputs
    /// are the original outputs times the first factor, then times the second, and so on.
    fn stacked(&self, base: usize, factors: &[f64]) -> Option<Kind<T>> {
        let (Kind::Layers(of, layers), &[size]) = (&self[base].kind, self[base].dims.as_deref()?)
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
        Some(Kind::Layers(*of, layers))
    }

    /// Merges factors before or after an activation into it, and turns the other factors into
    /// layers. The step `last` computes the outputs.
    fn merge_factors(&mut self, output: usize, last: usize) -> Result<(), Error> {
        let (needed, readers) = (self.needed(output), self.readers(output));
        // Merging changes the values of a step, so nothing else may read them.
        let alone = |step: usize| readers[step].len() == 1;
        for step in (0..=output).filter(|&step| needed[step]) {
            // Merge a factor of the argument. The logits of a probability at the end keep theirs.
            let is_link = step == last && self.link(step).is_some();
            while let Some(of) = self.activated(step).filter(|&of| alone(of) && !is_link)
                && let Kind::Factor(from, by) = self[of].kind
                && let Some(layer) = self.merged(step, from, step, (by, 1.0))
            {
                self[step].kind = Kind::Layers(from, vec![layer]);
            }
            // Merge a factor of the value.
            let Kind::Factor(of, by) = self[step].kind else { continue };
            if let Some(from) = self.activated(of) {
                let merged = if alone(of) {
                    self.merged(step, from, of, (1.0, by)).map(|layer| (from, layer))
                } else {
                    None
                };
                let (from, layer) = merged
                    .or_else(|| Some((of, factor(by)?)))
                    .ok_or_else(|| self.no_factor(step))?;
                self[step].kind = Kind::Layers(from, vec![layer]);
            }
        }
        // The remaining factors become scaled identities if only activations read them, and
        // scalings of channels otherwise.
        for step in (0..=output).filter(|&step| needed[step]) {
            let Kind::Factor(of, by) = self[step].kind else { continue };
            let is_activated = |reader: &usize| match &self[*reader].kind {
                Kind::Layers(of, layers) => {
                    *of == step && layers.first().is_some_and(is_activation)
                }
                _ => false,
            };
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

    /// One activation that computes the values of `step` from those of `from`. It is the activation
    /// of the step `of` with these factors of its argument and value.
    fn merged(
        &self,
        step: usize,
        from: usize,
        of: usize,
        (argument, value): (f64, f64),
    ) -> Option<Arc<dyn Layer<T>>> {
        let expression = self[step]
            .expressions
            .iter()
            .find(|(base, _)| *base == from)
            .map(|(_, expression)| expression);
        let known = |expression: &std::rc::Rc<super::expression::Expression>| {
            expression
                .activation()
                .or_else(|| expression.scaled_activation())
                .or_else(|| expression.cut())
        };
        expression.and_then(known).or_else(|| {
            let Kind::Layers(_, layers) = &self[of].kind else { return None };
            // A model's text cannot contain a `Scaled` within another.
            let layer = layers.first().filter(|layer| layer.kind() != "Scaled")?;
            Some(Arc::new(Scaled::of(layer.clone(), argument, value).ok()?))
        })
    }

    fn no_factor(&self, step: usize) -> Error {
        malformed(format!(
            "node '{}' multiplies by a number that is out of range: remove it from the model",
            shortened(&self[step].name)
        ))
    }
}

/// y = a z as an activation.
fn factor<T: Scalar>(factor: f64) -> Option<Arc<dyn Layer<T>>> {
    Some(Arc::new(Scaled::new(Identity, 1.0, factor).ok()?))
}

fn is_one(number: f64) -> bool {
    (number - 1.0).abs() < 1e-6
}

fn is_permutation<T: Scalar>(layers: &Layers<T>) -> bool {
    matches!(layers.as_slice(), [layer] if layer.kind() == "Permute")
}

/// The position to which a permutation moves an axis. To find it, permute a shape in which only
/// this axis has the size 2.
fn moved_axis<T: Scalar>(permute: &dyn Layer<T>, axis: usize, axes: usize) -> Option<usize> {
    let mut dims = vec![1; axes];
    *dims.get_mut(axis)? = 2;
    let Ok(Operator::Route(route)) = permute.operator(&[shape_of(&dims).ok()?]) else {
        return None;
    };
    route.output_shape().dims().iter().position(|&dim| dim == 2)
}

fn is_activation<T: Scalar>(layer: &Arc<dyn Layer<T>>) -> bool {
    matches!(layer.operator(&[Shape::from(1)]), Ok(Operator::Elementwise(_)))
}
