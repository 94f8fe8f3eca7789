//! Building models from named tensors and an architecture.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::StateDict;
use super::architecture::{self, Module, Weighted, join, shortened, within};
use crate::error::{Error, Misshapen};
use crate::layer::Layer;
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};
use crate::shape::Shape;

/// Collects the layers of a model whose weights are in a [`StateDict`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StateDictBuilder<'a, T: Scalar> {
    pub(super) weights: &'a StateDict,
    pub(super) modules: Vec<(String, Module<T>)>,
    pub(super) input: Option<Shape>,
}

impl<T: Scalar> StateDictBuilder<'_, T> {
    /// Sets the shape of a sample. A model that begins with a dense layer does not need it.
    pub fn input(mut self, shape: impl Into<Shape>) -> Self {
        self.input = Some(shape.into());
        self
    }

    /// Adds a dense layer with the tensors `name.weight`, of shape `[outputs, inputs]`, and
    /// `name.bias`.
    pub fn linear(mut self, name: &str, inputs: usize, outputs: usize) -> Self {
        self.modules.push((
            name.to_owned(),
            Module::Weighted(Weighted::Linear { inputs, outputs, bias: true }),
        ));
        self
    }

    /// Adds a dense layer without a bias, with the tensor `name.weight`.
    pub fn linear_without_bias(mut self, name: &str, inputs: usize, outputs: usize) -> Self {
        self.modules.push((
            name.to_owned(),
            Module::Weighted(Weighted::Linear { inputs, outputs, bias: false }),
        ));
        self
    }

    /// Adds a layer that has no tensors, such as an activation.
    pub fn layer(mut self, layer: impl Layer<T> + 'static) -> Self {
        self.modules.push((self.modules.len().to_string(), Module::Layer(Arc::new(layer))));
        self
    }

    /// Builds the model.
    ///
    /// If the tensors fit the architecture only under a prefix, such as `module`, or `state_dict`
    /// in a checkpoint that also has an optimizer's tensors, the model uses the tensors
    /// [`under`](StateDict::under) that prefix. This requires that all the tensors are found under
    /// exactly one prefix, and that this prefix has no other tensors.
    ///
    /// # Errors
    /// [`Error::StateDict`], which lists all tensors that are missing, surplus or of the wrong
    /// shape under the prefix that comes closest, or the prefixes if several fit;
    /// [`Error::Malformed`] for a tensor whose numbers have an unsupported type; [`Error::Io`];
    /// [`Error::NonFiniteWeight`] and [`Error::NonFiniteBias`], with the name of the tensor; and
    /// the errors of [`SequentialBuilder::build`](crate::SequentialBuilder::build).
    pub fn build(self) -> Result<Sequential<T>, Error> {
        (T::compiled().model_of_layers)(self)
    }

    pub(crate) fn build_inner(self) -> Result<Sequential<T>, Error> {
        let Self { weights, modules, input } = self;
        let module = Module::Sequential(modules);
        let mut asked = Vec::new();
        ask(&module, "", &mut asked);
        // Layers can share their weights.
        let mut seen = BTreeSet::new();
        asked.retain(|tensor| seen.insert(tensor.clone()));
        let prefix = weights.prefix_of(&asked)?;
        let mut make = |name: &str, weighted: &Weighted| {
            let tensors = weighted
                .tensors()
                .into_iter()
                .map(|(own, _)| Ok(weights.tensor(&join(prefix, &join(name, own)))?.1));
            let tensors = tensors.collect::<Result<Vec<Vec<T>>, Error>>()?;
            weighted.layer(tensors).map_err(|error| name_layer(error, name))
        };
        let branch = architecture::branch(&module, &mut make, "")?;
        let builder: SequentialBuilder<T> = branch.into();
        input.into_iter().fold(builder, SequentialBuilder::input).build()
    }
}

/// The differences between the tensors of a file and those of an architecture.
#[derive(Default)]
struct Misfit {
    missing: Vec<String>,
    surplus: Vec<String>,
    misshapen: Vec<Misshapen>,
    notes: Vec<String>,
}

/// The most parts that a prefix can have.
const PARTS: usize = 16;
/// The most names that a message lists.
const LISTED: usize = 5;

impl StateDict {
    /// The prefix under which the tensors are exactly those of the architecture. Usually it is
    /// empty.
    fn prefix_of(&self, asked: &[(String, Vec<usize>)]) -> Result<&str, Error> {
        let Some(misfit) = self.misfit("", asked) else { return Ok("") };
        let fits = self.fits(asked);
        // The prefixes under which all tensors are found, perhaps with others. If there are
        // several, the user has to choose.
        let whole: Vec<&str> = fits
            .iter()
            .filter(|(_, fit)| fit.shaped == asked.len())
            .map(|(&prefix, _)| prefix)
            .collect();
        match *whole.as_slice() {
            [prefix] if !prefix.is_empty() && self.misfit(prefix, asked).is_none() => Ok(prefix),
            [] | [_] => Err(self.closest(misfit, &fits, asked).into()),
            _ => Err(Misfit { notes: vec![several(&whole)], ..Misfit::default() }.into()),
        }
    }

    /// For each prefix with some of the needed tensors, how many of them there are.
    fn fits(&self, asked: &[(String, Vec<usize>)]) -> BTreeMap<&str, Fit> {
        let asked: BTreeMap<&str, &[usize]> =
            asked.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let mut fits = BTreeMap::<&str, Fit>::new();
        for (name, tensor) in &self.tensors {
            let whole = asked.get_key_value(name.as_str()).map(|(_, shape)| ("", *shape));
            // Each dot in the name may separate a prefix from the name of a needed tensor.
            let inner = name
                .match_indices('.')
                .take(PARTS)
                .filter_map(|(at, _)| Some((&name[..at], *asked.get(&name[at + 1..])?)));
            for (prefix, shape) in whole.into_iter().chain(inner) {
                let fit = fits.entry(prefix).or_default();
                fit.shaped += usize::from(shape == tensor.shape);
                fit.named += 1;
            }
        }
        fits
    }

    /// The differences under the prefix that comes closest, or those without a prefix if none comes
    /// closer.
    fn closest(
        &self,
        as_it_is: Misfit,
        fits: &BTreeMap<&str, Fit>,
        asked: &[(String, Vec<usize>)],
    ) -> Misfit {
        let mut best = ("", fits.get("").copied().unwrap_or_default());
        for (&prefix, &fit) in fits {
            // `Fit` compares tensors with the right shape first. A tie keeps the earlier prefix,
            // and "" is the first.
            if fit > best.1 {
                best = (prefix, fit);
            }
        }
        match best {
            ("", _) => self.without_outer(as_it_is, asked),
            (prefix, fit) => {
                let mut misfit = self.misfit(prefix, asked).unwrap_or(as_it_is);
                let note = format!(
                    "these are the differences from the tensors under `{}`, where {} of {} fit; \
                     choose other tensors with StateDict::under",
                    shortened(prefix),
                    fit.shaped,
                    asked.len()
                );
                misfit.notes.push(note);
                misfit
            }
        }
    }

    /// Adds a note if the names of the architecture fit once their outer module is removed.
    fn without_outer(&self, mut misfit: Misfit, asked: &[(String, Vec<usize>)]) -> Misfit {
        let Some((outer, _)) = asked.first().and_then(|(name, _)| name.split_once('.')) else {
            return misfit;
        };
        let inner = |(name, shape): &(String, Vec<usize>)| {
            Some((within(name, outer)?.to_owned(), shape.clone()))
        };
        let inner: Option<Vec<_>> = asked.iter().map(inner).collect();
        if inner.is_some_and(|inner| self.misfit("", &inner).is_none()) {
            let outer = shortened(outer);
            misfit.notes.push(format!(
                "the names fit if `{outer}.` is removed from those of the architecture: pass only \
                 the text that PyTorch prints for the module `{outer}`"
            ));
        }
        misfit
    }

    /// The differences between the tensors under a prefix and those that are needed, or `None` if
    /// there are none.
    fn misfit(&self, prefix: &str, asked: &[(String, Vec<usize>)]) -> Option<Misfit> {
        let under = super::under(&self.tensors, prefix).map(|(name, _)| name);
        // The number of batches that a batch norm has seen only matters in training.
        let mut surplus: BTreeSet<&str> =
            under.filter(|name| !name.ends_with("num_batches_tracked")).collect();
        let mut misfit = Misfit::default();
        for (name, expected) in asked {
            // What remains at the end is surplus.
            surplus.remove(name.as_str());
            let whole = join(prefix, name);
            match self.tensors.get(&whole) {
                Some(tensor) if tensor.shape == *expected => {}
                Some(tensor) => {
                    misfit.misshapen.push(Misshapen {
                        name: name.clone(),
                        expected: expected.clone(),
                        found: tensor.shape.clone(),
                    });
                }
                None => match self.left_out.get(&whole) {
                    Some(what) => {
                        misfit.notes.push(format!("{name} is in the file, but it is {what}"));
                    }
                    None => misfit.missing.push(name.clone()),
                },
            }
        }
        misfit.surplus = surplus.into_iter().map(str::to_owned).collect();
        misfit.explain(&self.left_out, prefix);
        (!misfit.is_empty()).then_some(misfit)
    }
}

/// How many of the needed tensors are found: with the right shape, and with any shape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    shaped: usize,
    named: usize,
}

/// The note for tensors that fit under several prefixes.
fn several(prefixes: &[&str]) -> String {
    let quoted = |prefix: &&str| {
        if prefix.is_empty() { "no prefix".to_owned() } else { format!("`{}`", shortened(prefix)) }
    };
    let listed: Vec<String> = prefixes.iter().take(LISTED).map(quoted).collect();
    let count = prefixes.len();
    format!(
        "{count} sets of tensors fit the architecture, under {}: choose one with StateDict::under",
        listed.join(" and ")
    )
}

impl Misfit {
    fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.surplus.is_empty()
            && self.misshapen.is_empty()
            && self.notes.is_empty()
    }

    /// Adds notes on left-out objects that may explain why tensors are missing. These are objects
    /// with the name of a module that contains the first missing tensor, and objects in the module
    /// of that tensor.
    fn explain(&mut self, left_out: &BTreeMap<String, Arc<str>>, prefix: &str) {
        let Some(first) = self.missing.first() else { return };
        let whole = join(prefix, first);
        let module = whole.rsplit_once('.').map_or("", |(module, _)| module);
        let is_related = |name: &str| {
            name == prefix || within(&whole, name).is_some() || within(name, module).is_some()
        };
        let related: Vec<_> = left_out.iter().filter(|(name, _)| is_related(name)).collect();
        let notes = related
            .iter()
            .take(LISTED)
            .map(|(name, what)| format!("not loaded: {} is {what}", shortened(name)));
        self.notes.extend(notes);
        if related.len() > LISTED {
            self.notes.push(format!("not loaded: {} more objects", related.len() - LISTED));
        }
    }
}

impl From<Misfit> for Error {
    fn from(Misfit { missing, surplus, misshapen, notes }: Misfit) -> Self {
        Self::StateDict { missing, surplus, misshapen, notes }
    }
}

/// The name of a tensor that two layers need, if there is one. If layers could share tensors, an
/// architecture could turn a small file into a large model.
pub(super) fn asked_twice<T: Scalar>(module: &Module<T>) -> Option<String> {
    let mut asked = Vec::new();
    ask(module, "", &mut asked);
    let mut seen = BTreeSet::new();
    asked.into_iter().map(|(name, _)| name).find(|name| !seen.insert(name.clone()))
}

/// Collects the names and shapes of the tensors that a module needs.
fn ask<T: Scalar>(module: &Module<T>, path: &str, asked: &mut Vec<(String, Vec<usize>)>) {
    match module {
        Module::Layer(_) => {}
        Module::Weighted(weighted) => {
            asked.extend(
                weighted.tensors().into_iter().map(|(name, shape)| (join(path, name), shape)),
            );
        }
        Module::Sequential(children) | Module::Residual(children) | Module::Concat(children) => {
            for (name, child) in children {
                ask(child, &join(path, name), asked);
            }
        }
    }
}

/// Adds the name of a layer to an error about its weights.
fn name_layer(mut error: Error, name: &str) -> Error {
    if let Error::NonFiniteWeight { kind, .. }
    | Error::NonFiniteBias { kind, .. }
    | Error::ZeroSized { kind, .. } = &mut error
    {
        *kind = format!("{kind} {name}");
    }
    error
}
