//! Arithmetic: sums of branches, biases and scales of channels, and the parts of activations.

use std::rc::Rc;

use super::budget::Budget;
use super::constant::Constant;
use super::expression::{Expression, binary};
use super::proto::Node;
use super::step::{Kind, Layers, Made, PART, Steps, UNSUPPORTED, Value, one, refused};
use crate::layer::{BatchNorm1d, BatchNorm2d};
use crate::scalar::Scalar;

/// No value is told as a function of more others.
const BASES: usize = 8;

impl<T: Scalar> Steps<T> {
    pub(super) fn arithmetic(
        &self,
        node: &Node,
        operator: &str,
        inputs: &[Option<Value>],
        steps: &[usize],
    ) -> Result<Made<T>, String> {
        match inputs {
            [Some(Value::Step(step)), Some(Value::Constant(constant))] => {
                self.with_constant(node, operator, *step, constant, false)
            }
            [Some(Value::Constant(constant)), Some(Value::Step(step))] => {
                self.with_constant(node, operator, *step, constant, true)
            }
            [Some(Value::Step(step))] if matches!(operator, "Sum" | "Max" | "Min") => {
                Ok(Made::Same(*step))
            }
            _ if steps.len() == inputs.len() => {
                let expressions = match (steps, binary(operator)) {
                    (&[a, b], Some(f)) => self.combined(a, b, f),
                    _ => Vec::new(),
                };
                let summed = matches!(operator, "Add" | "Sum");
                let known =
                    if summed { recognized_sum(&expressions) } else { recognized(&expressions) };
                // A sum of values that are known is a sum: its summands share its relevance.
                let of_parts =
                    || steps.iter().any(|&step| matches!(self[step].kind, Kind::Refused(..)));
                let known = known
                    .or_else(|| if summed && of_parts() { recognized(&expressions) } else { None });
                if let Some(kind) = known {
                    return Ok(Made::Step(kind, expressions));
                }
                let kind = match operator {
                    _ if summed => Kind::Joined { of: steps.to_vec(), summed: true },
                    _ => Kind::Refused(
                        steps.to_vec(),
                        "both of its inputs depend on the model's input, and together they are \
                         not a known activation: products of values (gates, attention) are \
                         unsupported"
                            .to_owned(),
                    ),
                };
                Ok(Made::Step(kind, expressions))
            }
            _ => Err("some of its inputs are constants, and there are more than two: unsupported"
                .to_owned()),
        }
    }

    /// One of two values, each of which may be a constant, as a third says.
    pub(super) fn choice(
        &self,
        inputs: &[Option<Value>],
        steps: &[usize],
    ) -> Result<Made<T>, String> {
        let of = |value: &Option<Value>| match value {
            Some(Value::Step(step)) => Some(Ok(self.bases(*step))),
            Some(Value::Constant(constant)) => {
                Some(Err(Rc::new(Expression::Number(constant.scalar()?))))
            }
            None => None,
        };
        for value in inputs.iter().flatten() {
            if let (Value::Constant(constant), Some(dims)) = (value, &self[steps[0]].dims) {
                no_more_axes(constant, dims)?;
            }
        }
        let parts: Option<Vec<_>> = inputs.iter().map(of).collect();
        let parts = parts.filter(|parts| parts.len() == 3).ok_or(PART)?;
        let at =
            |base: usize, part: &Result<Vec<(usize, Rc<Expression>)>, Rc<Expression>>| match part {
                Ok(bases) => {
                    bases.iter().find(|(other, _)| *other == base).map(|(_, own)| own.clone())
                }
                Err(number) => Some(number.clone()),
            };
        let with = |(base, _): (usize, Rc<Expression>)| {
            Some((
                base,
                Expression::Choice(
                    at(base, &parts[0])?,
                    at(base, &parts[1])?,
                    at(base, &parts[2])?,
                )
                .short()?,
            ))
        };
        let expressions: Vec<_> = self.bases(steps[0]).into_iter().filter_map(with).collect();
        let kind = recognized(&expressions)
            .unwrap_or_else(|| Kind::Refused(steps.to_vec(), PART.to_owned()));
        Ok(Made::Step(kind, expressions))
    }

    /// Values and a constant; `first` where the constant comes first.
    fn with_constant(
        &self,
        node: &Node,
        operator: &str,
        step: usize,
        constant: &Constant,
        first: bool,
    ) -> Result<Made<T>, String> {
        let dims = self[step].dims.as_deref().unwrap_or_default();
        no_more_axes(constant, dims)?;
        let scalar = constant.scalar();
        let f = binary(operator).ok_or(UNSUPPORTED)?;
        let expressions = scalar.map_or(Vec::new(), |number| {
            let number = Rc::new(Expression::Number(number));
            let with = |(base, own): (usize, Rc<Expression>)| {
                let (a, b) = if first { (&number, &own) } else { (&own, &number) };
                Some((base, Expression::Binary(f, a.clone(), b.clone()).short()?))
            };
            self.bases(step).into_iter().filter_map(with).collect()
        });
        // A factor of an activation becomes part of it when all of the graph is known.
        let factor = match (operator, first) {
            ("Mul", _) => scalar,
            ("Div", false) => scalar.map(f64::recip),
            ("Sub", true) if scalar == Some(0.0) => Some(-1.0),
            _ => None,
        };
        let factor = factor
            .filter(|factor| factor.is_finite() && !matches!(self[step].kind, Kind::Refused(..)));
        let known =
            if factor.is_some() { unscaled(&expressions) } else { recognized(&expressions) };
        if let Some(kind) = known {
            return Ok(Made::Step(kind, expressions));
        }
        if let Some(factor) = factor {
            // What a scaling would hold.
            per_channel(constant, dims, &self.budget)?;
            return Ok(Made::Step(Kind::Factor(step, factor), expressions));
        }
        if matches!(operator, "Max" | "Min" | "Pow" | "Greater" | "Less") {
            return Ok(Made::Step(Kind::Refused(vec![step], PART.to_owned()), expressions));
        }
        let values = per_channel(constant, dims, &self.budget)?;
        let (a, b): (Vec<f64>, Vec<f64>) = match (operator, first) {
            ("Add" | "Sum", _) => (vec![1.0; values.len()], values),
            ("Sub", false) => {
                (vec![1.0; values.len()], values.iter().map(|value| -value).collect())
            }
            ("Sub", true) => (vec![-1.0; values.len()], values),
            ("Mul", _) => (values.clone(), vec![0.0; values.len()]),
            ("Div", false) => {
                (values.iter().map(|value| 1.0 / value).collect(), vec![0.0; values.len()])
            }
            _ => {
                let reason =
                    "it divides by values that depend on the input: unsupported".to_owned();
                return Ok(Made::Step(Kind::Refused(vec![step], reason), expressions));
            }
        };
        // The bias of a dense layer or a convolution, written as an operator of its own.
        let plain = matches!(operator, "Add" | "Sum");
        let read_once =
            |name: &String| self.uses.get(name) == Some(&1) && !self.outputs.contains(name);
        let alone = node.input.get(usize::from(first)).is_some_and(read_once)
            && !self.aliased.contains(&step);
        if let (true, Kind::Layers(of, layers)) = (plain && alone, &self[step].kind) {
            let (ones, b): (Vec<T>, Vec<T>) = (
                a.iter().map(|&a| T::from_f64(a)).collect(),
                b.iter().map(|&b| T::from_f64(b)).collect(),
            );
            let last = layers.last().filter(|last| last.per_channel().is_none());
            if let Some(layer) = last.and_then(|last| last.scaled(&ones, &b)) {
                let mut layers = layers.clone();
                layers.pop();
                layers.push(layer);
                return Ok(Made::Step(Kind::Layers(*of, layers), expressions));
            }
        }
        Ok(Made::Step(Kind::Layers(step, affine(dims, &a, &b)?), expressions))
    }

    /// A step's values as functions of other steps' values, itself first.
    fn bases(&self, step: usize) -> Vec<(usize, Rc<Expression>)> {
        let own = (step, Rc::new(Expression::X));
        std::iter::once(own).chain(self[step].expressions.iter().cloned()).take(BASES).collect()
    }

    /// A function of a step's values.
    pub(super) fn composed(
        &self,
        step: usize,
        f: impl Fn(Rc<Expression>) -> Expression,
    ) -> Vec<(usize, Rc<Expression>)> {
        self.bases(step)
            .into_iter()
            .filter_map(|(base, own)| Some((base, f(own).short()?)))
            .collect()
    }

    /// Two steps' values as a function of what both are functions of, the nearest first.
    fn combined(&self, a: usize, b: usize, f: fn(f64, f64) -> f64) -> Vec<(usize, Rc<Expression>)> {
        let others = self.bases(b);
        let with = |(base, own): (usize, Rc<Expression>)| {
            let (_, other) = others.iter().find(|(other, _)| *other == base)?;
            Some((base, Expression::Binary(f, own, other.clone()).short()?))
        };
        self.bases(a).into_iter().filter_map(with).collect()
    }
}

/// A step's values as functions of other steps' values.
type Expressions = [(usize, Rc<Expression>)];

/// The step that an expression is, where it is a known activation of another, the nearest first.
pub(super) fn unscaled<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    expressions
        .iter()
        .find_map(|(base, expression)| Some(Kind::Layers(*base, vec![expression.activation()?])))
}

/// The same, also with a scaled argument and value, but not a mere cut: a cut of a shifted value
/// may be more than that.
pub(super) fn recognized_but_cuts<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    let scaled = |(base, expression): &(usize, Rc<Expression>)| {
        Some(Kind::Layers(*base, vec![expression.scaled_activation()?]))
    };
    unscaled(expressions).or_else(|| expressions.iter().find_map(scaled))
}

/// All of them; of cuts the one that is of the farthest.
pub(super) fn recognized<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    let cut = |(base, expression): &(usize, Rc<Expression>)| {
        Some(Kind::Layers(*base, vec![expression.cut()?]))
    };
    recognized_but_cuts(expressions).or_else(|| expressions.iter().rev().find_map(cut))
}

/// What a sum is, where it is an activation that has a name.
fn recognized_sum<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    let has_name = |kind: &Kind<T>| matches!(kind, Kind::Layers(_, layers) if layers.iter().all(|layer| layer.kind() != "Scaled"));
    recognized_but_cuts(expressions).filter(has_name)
}

/// A constant of more axes than values (and samples) would add axes to them.
fn no_more_axes(constant: &Constant, dims: &[usize]) -> Result<(), String> {
    if constant.dims.len() <= dims.len() + 1 {
        return Ok(());
    }
    Err(format!(
        "its constant has {} axes, and its values have {} (with that of the samples): a constant \
         that adds axes is unsupported",
        constant.dims.len(),
        dims.len() + 1
    ))
}

/// A constant's value for each channel, where it has one value for all of a channel.
pub(super) fn per_channel(
    constant: &Constant,
    dims: &[usize],
    budget: &Budget,
) -> Result<Vec<f64>, String> {
    let channels = dims.first().copied().unwrap_or(1);
    // Of them, and of what a layer is made of.
    budget.keep(channels.saturating_mul(4))?;
    let values = constant.numbers().ok_or("its constant is not a number")?;
    if let [value] = *values {
        return Ok(vec![value; channels]);
    }
    // From the right, as shapes of different lengths are laid on one another: the channels' axis,
    // and then those of space.
    let space = dims.len().saturating_sub(1);
    let at = constant.dims.len().checked_sub(space + 1);
    let alone = constant.dims.iter().enumerate().all(|(axis, &dim)| dim == 1 || Some(axis) == at);
    if values.len() == channels && alone {
        return Ok(values);
    }
    Err(format!(
        "its constant of shape {:?} is neither one number nor one for each of {channels} \
         channels: unsupported",
        constant.dims
    ))
}

/// y = a z + b for each channel.
pub(super) fn affine<T: Scalar>(dims: &[usize], a: &[f64], b: &[f64]) -> Result<Layers<T>, String> {
    let of =
        |values: &[f64]| -> Vec<T> { values.iter().map(|&value| T::from_f64(value)).collect() };
    let (weight, bias, mean, variance) =
        (of(a), of(b), vec![T::zero(); a.len()], vec![T::one(); a.len()]);
    if dims.len() == 3 {
        Ok(one(BatchNorm2d::new(weight, bias, mean, variance, 0.0).map_err(refused)?))
    } else {
        Ok(one(BatchNorm1d::new(weight, bias, mean, variance, 0.0).map_err(refused)?))
    }
}
