//! Architectures guessed from the names and shapes of weights.
//!
//! A guess is a stack of dense layers in the order of their names. A file of weights does not contain what is between its layers, so a ReLU is assumed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Bound;

use relprop::io::StateDict;

use crate::names::{join, parts, split, within};

/// A module's name has at most this many parts.
const PARTS: usize = 16;
/// At most this many modules are listed.
const LISTED: usize = 5;

/// The tensors of a file or of a module: their shapes by their names.
type Tensors<'a> = BTreeMap<&'a str, &'a [usize]>;

/// The architecture of weights that are those of dense layers one after another, as PyTorch prints
/// it.
///
/// Where all tensors together do not form such a stack, but those of exactly one module do, it is
/// that module's. The error says why there is none.
pub fn architecture(weights: &StateDict) -> Result<String, String> {
    let tensors: Tensors =
        weights.names().filter_map(|name| Some((name, weights.shape(name)?))).collect();
    stack(&tensors).or_else(|refusal| of_module(&tensors, refusal))
}

/// The stack of the only module that forms one.
fn of_module(tensors: &Tensors, refusal: String) -> Result<String, String> {
    let stacks = stacks_within(tensors);
    let modules: Vec<&str> = stacks.iter().map(|(module, _)| *module).collect();
    if !are_all_in(tensors, &modules) {
        return Err(refusal);
    }
    match stacks.as_slice() {
        [] => Err(refusal),
        [(_, text)] => Ok(text.clone()),
        _ => Err(format!(
            "no architecture can be guessed: the file has several sets of weights, those under \
             {}: choose one with --under",
            quoted(&modules)
        )),
    }
}

/// The outermost modules that are stacks.
fn stacks_within<'a>(tensors: &Tensors<'a>) -> Vec<(&'a str, String)> {
    let modules: BTreeSet<&str> = tensors
        .keys()
        .flat_map(|name| name.match_indices('.').take(PARTS).map(|(at, _)| &name[..at]))
        .collect();
    let mut stacks: Vec<(&str, String)> = Vec::new();
    // A module comes before those in it.
    for module in modules {
        if stacks.iter().any(|(outer, _)| within(module, outer).is_some()) {
            continue;
        }
        if let Ok(text) = stack(&tensors_of(tensors, module)) {
            stacks.push((module, text));
        }
        // One more than is listed is enough to know that there are several.
        if stacks.len() > LISTED {
            break;
        }
    }
    stacks
}

/// The tensors of a module whose layers have names. A single layer would be a stack too, but it is
/// not a network: of such a module there are none.
fn tensors_of<'a>(tensors: &Tensors<'a>, module: &str) -> Tensors<'a> {
    // The names in a module follow one another: only names that begin with its stem lie between two
    // that do.
    let stem = format!("{module}.");
    let after = tensors.range::<str, _>((Bound::Included(&*stem), Bound::Unbounded));
    let own: Tensors =
        after.map_while(|(name, shape)| Some((within(name, module)?, *shape))).collect();
    if own.keys().all(|name| name.contains('.')) { own } else { Tensors::new() }
}

/// Whether all weights are in these modules. A part of a network must not be taken for all of it.
fn are_all_in(tensors: &Tensors, modules: &[&str]) -> bool {
    tensors
        .keys()
        .filter(|name| matches!(split(name).1, "weight" | "bias"))
        .all(|name| modules.iter().any(|module| within(name, module).is_some()))
}

/// The stack that these tensors form together.
fn stack(tensors: &Tensors) -> Result<String, String> {
    let layers = layers(tensors).map_err(|reason| {
        format!(
            "no architecture can be guessed: {reason}; give the network as PyTorch prints it, with \
             --architecture FILE"
        )
    })?;
    let mut text = "Sequential(".to_owned();
    for (at, Layer { name, inputs, outputs, has_bias }) in layers.iter().enumerate() {
        let bias = if *has_bias { "True" } else { "False" };
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

/// A dense layer.
struct Layer<'a> {
    name: &'a str,
    inputs: usize,
    outputs: usize,
    has_bias: bool,
}

/// Dense layers that fit one another, or the reason why the tensors are not those of such layers.
fn layers<'a>(tensors: &Tensors<'a>) -> Result<Vec<Layer<'a>>, String> {
    let mut layers = Vec::new();
    for (name, shape) in tensors {
        let (layer, own) = split(name);
        match (own, *shape) {
            ("weight", &[outputs, inputs]) => {
                let has_bias = tensors.contains_key(&*join(layer, "bias"));
                layers.push(Layer { name: layer, inputs, outputs, has_bias });
            }
            // A bias belongs to the layer of its weight. Its length is checked when the model is
            // built.
            ("bias", &[_]) if tensors.contains_key(&*join(layer, "weight")) => {}
            _ => {
                return Err(format!(
                    "{name} of shape {shape:?} is no weight or bias of a dense layer"
                ));
            }
        }
    }
    if layers.is_empty() {
        return Err("there is no tensor".to_owned());
    }
    // As text, `10` would come before `9`.
    layers.sort_by_cached_key(|layer| parts(layer.name));
    for pair in layers.windows(2) {
        let (first, second) = (&pair[0], &pair[1]);
        if first.outputs != second.inputs {
            return Err(format!(
                "{} has {} outputs, but {} after it takes {} inputs",
                first.name, first.outputs, second.name, second.inputs
            ));
        }
    }
    Ok(layers)
}

/// The first of some modules, in quotes.
fn quoted(modules: &[&str]) -> String {
    let quoted: Vec<String> =
        modules.iter().take(LISTED).map(|module| format!("`{module}`")).collect();
    quoted.join(" and ")
}

#[cfg(test)]
mod tests;
