//! Architectures guessed from the names and shapes of weights.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::architecture::shortened;
use super::builder::{LISTED, PARTS};
use super::{StateDict, malformed};
use crate::error::Error;

impl StateDict {
    /// An architecture for weights that come without one, in the words of
    /// [`model_of`](Self::model_of), where they can be the weights of dense layers one after
    /// another.
    ///
    /// It is a guess: the order is that of the names (numbers in them count as numbers), and as no
    /// file of weights says what is between them, it is taken to be a ReLU. Look at it, and check
    /// the model's outputs, before you trust it.
    ///
    /// Where all tensors together do not form such a stack, but those of exactly one module within
    /// do, it is that module's, and [`model_of`](Self::model_of) finds them.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the weights do not form a stack of dense layers, or form several.
    ///
    /// # Example
    /// ```
    /// use relprop::io::StateDict;
    /// # use relprop::nalgebra::{self, dmatrix};
    /// # use relprop::{Linear, Relu, Sequential};
    /// # let (a, b) = (Linear::new(dmatrix![1.0; 2.0], None)?, Linear::new(dmatrix![3.0, 4.0], None)?);
    /// # let file = Sequential::<f64>::builder().layer(a).layer(Relu).layer(b).build()?.to_safetensors()?;
    ///
    /// let weights = StateDict::from_safetensors(&file)?;
    /// let guess = weights.guessed_architecture()?;
    /// assert_eq!(guess.lines().nth(2), Some("  (0-relu): ReLU()"));
    /// let model = weights.model_of::<f64>(&guess, None)?;
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn guessed_architecture(&self) -> Result<String, Error> {
        let refusal = match self.guess() {
            Ok(text) => return Ok(text),
            Err(refusal) => refusal,
        };
        // The outermost modules of the file that are such stacks.
        let mut stacks: Vec<(&str, String)> = Vec::new();
        for prefix in self.prefixes() {
            let is_inner = stacks.iter().any(|(outer, _)| {
                prefix.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
            });
            if let (false, Ok(text)) = (is_inner, self.within(prefix).guess()) {
                stacks.push((prefix, text));
            }
            if stacks.len() > LISTED {
                break;
            }
        }
        match stacks.len() {
            _ if !self.are_all_in(&stacks) => Err(refusal),
            0 => Err(refusal),
            1 => Ok(stacks.remove(0).1),
            _ => {
                let listed: Vec<String> = stacks
                    .iter()
                    .take(LISTED)
                    .map(|(prefix, _)| format!("`{}`", shortened(prefix)))
                    .collect();
                let reason = format!(
                    "no architecture can be guessed: the file has several sets of weights, those \
                     under {}: choose one with \
                     StateDict::under",
                    listed.join(" and ")
                );
                Err(malformed(reason))
            }
        }
    }

    /// The first parts of names, shorter ones before those that go on from them.
    fn prefixes(&self) -> BTreeSet<&str> {
        self.tensors
            .keys()
            .flat_map(|name| name.match_indices('.').take(PARTS).map(|(at, _)| &name[..at]))
            .collect()
    }

    /// The tensors of a module whose layers have names: a single layer is a stack too, and is not a
    /// network.
    fn within(&self, prefix: &str) -> Self {
        let inner = self.under(prefix);
        if inner.names().all(|name| name.contains('.')) {
            inner
        } else {
            Self { tensors: BTreeMap::new(), ..inner }
        }
    }

    /// Whether all weights of the file are in these modules. A part of a network would be taken for
    /// all of it.
    fn are_all_in(&self, modules: &[(&str, String)]) -> bool {
        let is_in = |name: &str, prefix: &str| {
            name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
        };
        let mut weights =
            self.names().filter(|name| matches!(name.rsplit('.').next(), Some("weight" | "bias")));
        weights.all(|name| modules.iter().any(|(prefix, _)| is_in(name, prefix)))
    }

    fn guess(&self) -> Result<String, Error> {
        let refused = |reason: String| {
            malformed(format!(
                "no architecture can be guessed: {reason}; give the network as PyTorch prints it, \
                 with StateDict::model_of"
            ))
        };
        let mut layers = Vec::new();
        for (name, tensor) in &self.tensors {
            let (layer, own) = name.rsplit_once('.').unwrap_or(("", name));
            match (own, tensor.shape.as_slice()) {
                ("weight", &[outputs, inputs]) => layers.push((layer, inputs, outputs)),
                ("bias", &[_])
                    if self.shape(&super::architecture::join(layer, "weight")).is_some() => {}
                (_, shape) => {
                    return Err(refused(format!(
                        "{name} of shape {shape:?} is no weight or bias of a dense layer"
                    )));
                }
            }
        }
        if layers.is_empty() {
            return Err(refused("there is no tensor".to_owned()));
        }
        layers.sort_by_key(|&(name, ..)| parts(name));
        for pair in layers.windows(2) {
            let ((before, _, outputs), (behind, inputs, _)) = (pair[0], pair[1]);
            if outputs != inputs {
                return Err(refused(format!(
                    "{before} has {outputs} outputs, but {behind} after it takes {inputs} inputs"
                )));
            }
        }
        let mut text = "Sequential(".to_owned();
        for (at, &(name, inputs, outputs)) in layers.iter().enumerate() {
            let bias = if self.shape(&super::architecture::join(name, "bias")).is_some() {
                "True"
            } else {
                "False"
            };
            let _ = write!(
                text,
                "\n  ({name}): Linear(in_features={inputs}, out_features={outputs}, bias={bias})"
            );
            if at + 1 < layers.len() {
                let _ = write!(text, "\n  ({name}-relu): ReLU()");
            }
        }
        Ok(text + "\n)")
    }
}

/// A name in parts that are compared one by one: what is no digit, and numbers.
fn parts(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0_u64)];
    let mut in_number = false;
    for c in name.chars() {
        if in_number && !c.is_ascii_digit() {
            parts.push((String::new(), 0));
        }
        in_number = c.is_ascii_digit();
        let Some((text, number)) = parts.last_mut() else { continue };
        match c.to_digit(10) {
            Some(digit) => *number = number.saturating_mul(10).saturating_add(u64::from(digit)),
            None => text.push(c),
        }
    }
    parts
}
