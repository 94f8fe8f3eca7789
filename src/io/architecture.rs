//! Layers from the lines in which PyTorch prints them.

use crate::layer::{Dropout, Elu, Gelu, HardTanh, Identity, Layer, LeakyRelu, Relu, Sigmoid, Silu, Softmax, Softplus, Tanh};
use crate::scalar::Scalar;

/// What a line says.
pub(super) enum Parsed<T: Scalar> {
    Linear { inputs: usize, outputs: usize, bias: bool },
    Other(Box<dyn Layer<T>>),
}

/// Reads a line such as `Linear(in_features=3, out_features=4, bias=True)` or `ReLU()`.
pub(super) fn parse<T: Scalar>(line: &str) -> Result<Parsed<T>, String> {
    let unreadable = || format!("'{}' is not a layer", shortened(line));
    let (kind, rest) = line.trim().split_once('(').ok_or_else(unreadable)?;
    let arguments = Arguments(rest.strip_suffix(')').ok_or_else(unreadable)?);
    let refused = |error: crate::Error| error.to_string();
    let layer: Box<dyn Layer<T>> = match kind {
        "Linear" => {
            let size =
                |name| arguments.text(name).and_then(|v| v.parse().ok()).ok_or_else(|| format!("Linear without a usable {name}"));
            let (inputs, outputs) = (size("in_features")?, size("out_features")?);
            return Ok(Parsed::Linear { inputs, outputs, bias: arguments.text("bias") != Some("False") });
        }
        "ReLU" => Box::new(Relu),
        "LeakyReLU" => Box::new(LeakyRelu::new(arguments.number("negative_slope", 0.01)?).map_err(refused)?),
        "ELU" => Box::new(Elu::new(arguments.number("alpha", 1.0)?).map_err(refused)?),
        "GELU" => match arguments.text("approximate") {
            None | Some("'none'") => Box::new(Gelu::Exact),
            Some("'tanh'") => Box::new(Gelu::Tanh),
            Some(other) => return Err(format!("GELU knows no approximation {}", shortened(other))),
        },
        "SiLU" => Box::new(Silu),
        "Sigmoid" => Box::new(Sigmoid),
        "Tanh" => Box::new(Tanh),
        "Softplus" => {
            let (beta, threshold) = (arguments.number("beta", 1.0)?, arguments.number("threshold", 20.0)?);
            Box::new(Softplus::new(beta, threshold).map_err(refused)?)
        }
        "Hardtanh" => {
            let (min, max) = (arguments.number("min_val", -1.0)?, arguments.number("max_val", 1.0)?);
            Box::new(HardTanh::new(min, max).map_err(refused)?)
        }
        // Samples are vectors already, so nothing is left to flatten.
        "Identity" | "Flatten" => Box::new(Identity),
        "Dropout" => Box::new(Dropout::new(arguments.number("p", 0.5)?).map_err(refused)?),
        "Softmax" => Box::new(Softmax),
        other => return Err(format!("there is no layer of kind '{}'", shortened(other))),
    };
    Ok(Parsed::Other(layer))
}

/// `name=value, name=value`.
struct Arguments<'a>(&'a str);

impl<'a> Arguments<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.split(',').filter_map(|pair| pair.split_once('=')).find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, String> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.parse().map_err(|_| format!("{name} is '{}', not a number", shortened(text)))
    }
}

/// A file's text as it may stand in an error.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
