//! Models of named tensors and an architecture.

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
    /// The shape of a sample; a model whose first layer is dense need not be told.
    pub fn input(mut self, shape: impl Into<Shape>) -> Self {
        self.input = Some(shape.into());
        self
    }

    /// Adds a dense layer with the tensors `name.weight`, of shape outputs x inputs, and
    /// `name.bias`.
    pub fn linear(mut self, name: &str, inputs: usize, outputs: usize) -> Self {
        self.modules.push((
            name.to_owned(),
            Module::Weighted(Weighted::Linear { inputs, outputs, bias: true }),
        ));
        self
    }

    /// The same without a bias.
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

    /// The model.
    ///
    /// Where the tensors as they are do not fit the architecture, and there is exactly one prefix
    /// under which all of them are, and no others, such as `state_dict` in a checkpoint that has an
    /// optimizer's tensors too, or `module`, they are taken from [`under`](StateDict::under) it.
    ///
    /// # Errors
    /// [`Error::StateDict`] with all tensors that are missing, surplus or of another shape, under
    /// the prefix that comes closest, or with the prefixes where several fit; [`Error::Malformed`]
    /// for a tensor that is not of floating point; [`Error::Io`]; [`Error::NonFiniteWeight`] and
    /// [`Error::NonFiniteBias`], with the tensor's name; and those of
    /// [`SequentialBuilder::build`](crate::SequentialBuilder::build).
    pub fn build(self) -> Result<Sequential<T>, Error> {
        let Self { weights, modules, input } = self;
        let module = Module::Sequential(modules);
        let mut asked = Vec::new();
        ask(&module, "", &mut asked);
        // Layers may share their weights.
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

/// What of a file does not fit an architecture.
#[derive(Default)]
struct Misfit {
    missing: Vec<String>,
    surplus: Vec<String>,
    misshapen: Vec<Misshapen>,
    notes: Vec<String>,
}

/// A prefix has at most this many parts.
const PARTS: usize = 16;
/// At most this many names are listed.
const LISTED: usize = 5;

impl StateDict {
    /// The prefix under which the tensors are all there, of the right shape, and no others: mostly
    /// none.
    fn prefix_of(&self, asked: &[(String, Vec<usize>)]) -> Result<&str, Error> {
        let Some(misfit) = self.misfit("", asked) else { return Ok("") };
        let fits = self.fits(asked);
        // All tensors are there under these, perhaps with others: a choice among several is the
        // user's.
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

    /// How many of the tensors that are asked for are there, by the prefixes under which there are
    /// some.
    fn fits(&self, asked: &[(String, Vec<usize>)]) -> BTreeMap<&str, Fit> {
        let asked: BTreeMap<&str, &[usize]> =
            asked.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let mut fits = BTreeMap::<&str, Fit>::new();
        for (name, tensor) in &self.tensors {
            let whole = asked.get_key_value(name.as_str()).map(|(_, shape)| ("", *shape));
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

    /// What does not fit under the prefix that comes closest, where one comes closer than none.
    fn closest(
        &self,
        as_it_is: Misfit,
        fits: &BTreeMap<&str, Fit>,
        asked: &[(String, Vec<usize>)],
    ) -> Misfit {
        let mut best = ("", fits.get("").copied().unwrap_or_default());
        for (&prefix, &fit) in fits {
            if fit > best.1 {
                best = (prefix, fit);
            }
        }
        match best {
            ("", _) => self.without_outer(as_it_is, asked),
            (prefix, fit) => {
                let mut misfit = self.misfit(prefix, asked).unwrap_or(as_it_is);
                let note = format!(
                    "compared with the tensors under `{}`: {} of {} fit; choose others with StateDict::under",
                    shortened(prefix),
                    fit.shaped,
                    asked.len()
                );
                misfit.notes.push(note);
                misfit
            }
        }
    }

    /// Says where the architecture's names have a module before them that the file's do not have.
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
                "without `{outer}.` at their beginning, the architecture's names fit: give what \
                 is printed of the module `{outer}` alone"
            ));
        }
        misfit
    }

    /// What of the tensors under a prefix does not fit, `None` where all do.
    fn misfit(&self, prefix: &str, asked: &[(String, Vec<usize>)]) -> Option<Misfit> {
        let under = super::under(&self.tensors, prefix).map(|(name, _)| name);
        // How many batches a normalization has seen is of no use here.
        let mut surplus: BTreeSet<&str> =
            under.filter(|name| !name.ends_with("num_batches_tracked")).collect();
        let mut misfit = Misfit::default();
        for (name, expected) in asked {
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
                        misfit.notes.push(format!("{name}: it is in the file, but it is {what}"))
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

/// How many of the tensors that are asked for there are: with the right shape, with any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    shaped: usize,
    named: usize,
}

/// What is said where the tensors under several prefixes would do.
fn several(prefixes: &[&str]) -> String {
    let quoted = |prefix: &&str| {
        if prefix.is_empty() { "no prefix".to_owned() } else { format!("`{}`", shortened(prefix)) }
    };
    let listed: Vec<String> = prefixes.iter().take(LISTED).map(quoted).collect();
    let count = prefixes.len();
    format!(
        "there are {count} sets of tensors that could be meant, under {}: choose one with StateDict::under",
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

    /// Says what else may be why tensors are missing: something that was left out has the name of a
    /// module that they are of, or is of the same module.
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
            .map(|(name, what)| format!("left out: {} is {what}", shortened(name)));
        self.notes.extend(notes);
        if related.len() > LISTED {
            self.notes.push(format!("left out: {} more", related.len() - LISTED));
        }
    }
}

impl From<Misfit> for Error {
    fn from(Misfit { missing, surplus, misshapen, notes }: Misfit) -> Self {
        Self::StateDict { missing, surplus, misshapen, notes }
    }
}

/// A tensor that two of a module's layers ask for, if there is one: a file of a few bytes would
/// make a large model.
pub(super) fn asked_twice<T: Scalar>(module: &Module<T>) -> Option<String> {
    let mut asked = Vec::new();
    ask(module, "", &mut asked);
    let mut seen = BTreeSet::new();
    asked.into_iter().map(|(name, _)| name).find(|name| !seen.insert(name.clone()))
}

/// The names and shapes of the tensors that a module asks for.
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

/// Says in an error about one layer's weights which tensors they were.
fn name_layer(mut error: Error, name: &str) -> Error {
    if let Error::NonFiniteWeight { kind, .. }
    | Error::NonFiniteBias { kind, .. }
    | Error::ZeroSized { kind, .. } = &mut error
    {
        *kind = format!("{kind} {name}");
    }
    error
}
