//! From steps to layers and branches.
//!
//! The steps from the input to the output are a graph; a value that all ways to a sum or concatenation pass is where its branches
//! begin (it *dominates* it), so that a graph of nested sums and concatenations is read off from the output backwards.

use std::collections::HashSet;
use std::sync::Arc;

use super::step::{Kind, Step, Steps, shape_of};
use super::{malformed, shortened};
use crate::error::{Error, UnsupportedNode};
use crate::layer::{Branch, Concat, Layer, Named, Residual};
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};

/// So deep may branches stand in one another.
const DEPTH: usize = 32;

impl<T: Scalar> Steps<T> {
    /// The model from the input to an output.
    pub fn model(mut self, output: usize) -> Result<Sequential<T>, Error> {
        let needed = self.needed(output);
        let mut refused: Vec<UnsupportedNode> = Vec::new();
        for step in (0..=output).filter(|&step| needed[step]).map(|step| &self[step]) {
            match &step.kind {
                Kind::Refused(_, reason) => refused.push(step.unsupported(reason)),
                Kind::Padded(..) => refused.push(step.unsupported("zeros are padded before a convolution or a pooling only")),
                _ => {}
            }
        }
        if !refused.is_empty() {
            return Err(Error::UnsupportedNodes { nodes: refused });
        }
        if !needed[0] {
            return Err(malformed("the output does not depend on the input".to_owned()));
        }
        let input = shape_of(self[0].dims.as_deref().unwrap_or_default()).map_err(malformed)?;
        let link = self.end(output)?;
        let needed = self.needed(output);
        self.name_steps(&needed);
        let dominators = Dominators::of(&self, &needed);
        let mut placed = vec![false; self.len()];
        let mut layers = self.chain(&dominators, &mut placed, 0, output, 0)?;
        if let Some(layer) = link {
            layers.push(Named { name: Some(format!("{}-probabilities", self[output].name)), layer });
        }
        SequentialBuilder::from(Branch { layers }).input(input).build()
    }

    /// Gives each step a name that is its own, and fit for a model's text.
    fn name_steps(&mut self, needed: &[bool]) {
        let mut taken = HashSet::new();
        for step in (0..needed.len()).filter(|&step| needed[step]) {
            let step = &mut self[step];
            let fit = |c: char| if c.is_alphanumeric() || "_-./:".contains(c) { c } else { '_' };
            let name: String = step.name.chars().take(200).map(fit).collect();
            let node = step.node.unwrap_or(0);
            step.name = if name.is_empty() || taken.contains(&name) { format!("{name}_{node}") } else { name };
            taken.insert(step.name.clone());
        }
    }

    /// The layers from behind one step to another that it dominates.
    fn chain(
        &self,
        dominators: &Dominators,
        placed: &mut [bool],
        from: usize,
        to: usize,
        depth: usize,
    ) -> Result<Vec<Named<T>>, Error> {
        if depth > DEPTH {
            return Err(malformed(format!("its branches stand in one another more than {DEPTH} deep")));
        }
        let mut layers = Vec::new();
        let mut at = to;
        while at != from {
            let step = &self[at];
            if std::mem::replace(&mut placed[at], true) {
                let reason = "its values go into several branches, and not only where these begin";
                return Err(Error::UnsupportedNodes { nodes: vec![step.unsupported(reason)] });
            }
            let name = |place: usize| if place == 0 { step.name.clone() } else { format!("{}-{place}", step.name) };
            match &step.kind {
                Kind::Layers(of, own) => {
                    let named =
                        own.iter().enumerate().map(|(place, layer)| Named { name: Some(name(place)), layer: layer.clone() });
                    layers.extend(named.rev());
                    at = *of;
                }
                Kind::Joined { of, summed } => {
                    let begin = dominators.immediate[at];
                    let layer = self.join(dominators, placed, begin, of, *summed, depth)?;
                    layers.push(Named { name: Some(name(0)), layer });
                    at = begin;
                }
                _ => return Err(malformed(format!("node '{}' has no place", shortened(&step.name)))),
            }
        }
        layers.reverse();
        Ok(layers)
    }
}

impl<T: Scalar> Steps<T> {
    /// Branches that begin at one step and end at others. Neighbours that go the first part of their way together are joined by
    /// themselves: exporters make one flat list of lists within lists.
    fn join(
        &self,
        dominators: &Dominators,
        placed: &mut [bool],
        begin: usize,
        ends: &[usize],
        summed: bool,
        depth: usize,
    ) -> Result<Arc<dyn Layer<T>>, Error> {
        let mut branches = Vec::new();
        let mut rest = ends;
        while let Some(&first) = rest.first() {
            let (mut parting, mut count) = (first, 1);
            while let Some(&end) = rest.get(count) {
                let common = dominators.common(parting, end);
                if common == begin {
                    break;
                }
                (parting, count) = (common, count + 1);
            }
            let (together, behind) = rest.split_at(count);
            let mut layers = self.chain(dominators, placed, begin, parting, depth + 1)?;
            if count > 1 {
                let layer = self.join(dominators, placed, parting, together, summed, depth + 1)?;
                layers.push(Named { name: Some(format!("join-{}", branches.len())), layer });
            }
            branches.push(Branch { layers });
            rest = behind;
        }
        Ok(if summed { Arc::new(Residual::new(branches)?) } else { Arc::new(Concat::new(branches)?) })
    }
}

impl<T: Scalar> Step<T> {
    fn unsupported(&self, reason: &str) -> UnsupportedNode {
        UnsupportedNode {
            name: shortened(&self.name),
            operator: shortened(&self.operator),
            path: self.node.map_or_else(|| "graph.input".to_owned(), |index| format!("graph.node[{index}]")),
            reason: reason.to_owned(),
        }
    }
}

/// Of each step the last one before it that all ways to it pass, and how many such steps there are.
struct Dominators {
    immediate: Vec<usize>,
    depth: Vec<usize>,
}

impl Dominators {
    /// The steps are in an order in which each stands behind its inputs.
    fn of<T: Scalar>(steps: &Steps<T>, needed: &[bool]) -> Self {
        let mut known = Self { immediate: vec![0; steps.len()], depth: vec![0; steps.len()] };
        for at in (1..steps.len()).filter(|&at| needed[at]) {
            let common = steps[at].kind.inputs().iter().copied().reduce(|a, b| known.common(a, b)).unwrap_or(0);
            (known.immediate[at], known.depth[at]) = (common, known.depth[common] + 1);
        }
        known
    }

    /// The last step that all ways to both of these pass.
    fn common(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            if self.depth[a] >= self.depth[b] { a = self.immediate[a] } else { b = self.immediate[b] }
        }
        a
    }
}
