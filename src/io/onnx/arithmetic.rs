//! Arithmetic operators: sums of branches, biases and scales of channels, and parts of activations.

use std::rc::Rc;

use super::budget::Budget;
use super::constant::Constant;
use super::expression::{Expression, binary};
use super::proto::Node;
use super::step::{Kind, Layers, Made, PART, Steps, UNSUPPORTED, Value, one, refused};
use crate::layer::{BatchNorm1d, BatchNorm2d, Joined};
use crate::scalar::Scalar;

/// The maximum number of bases of a step. A base is a step whose values determine those of this
/// step by a known elementwise function.
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
                // A sum of supported values remains a sum, so that its terms share the relevance.
                // The sum can be a scaled activation only if a term is unsupported by itself.
                let of_parts =
                    || steps.iter().any(|&step| matches!(self[step].kind, Kind::Refused(..)));
                let known = known
                    .or_else(|| if summed && of_parts() { recognized(&expressions) } else { None });
                if let Some(kind) = known {
                    return Ok(Made::Step(kind, expressions));
                }
                let kind = match operator {
                    _ if summed => Kind::Joined { of: steps.to_vec(), joined: Joined::Summed },
                    _ => Kind::Refused(
                        steps.to_vec(),
                        "both of its inputs depend on the model's input, and the result is not a \
                         known activation: products of such values (gates, attention) are \
                         unsupported; explain the model up to one of the inputs, with \
                         OnnxFile::output"
                            .to_owned(),
                    ),
                };
                Ok(Made::Step(kind, expressions))
            }
            _ => Err("it has more than two inputs, and some are constants, which is unsupported: \
                 split it into several nodes"
                .to_owned()),
        }
    }

    /// The choice between two values, each of which can be a constant, depending on a third.
    pub(super) fn choice(
        &self,
        inputs: &[Option<Value>],
        steps: &[usize],
    ) -> Result<Made<T>, String> {
        let of = |value: &Option<Value>| match value {
            // `Ok` holds the functions of a step's bases, `Err` a number that is the same for all
            // bases.
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

    /// An operator on values and a constant. `first` is true if the constant comes first.
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
        // When the whole graph is known, a factor can become part of an activation.
        let factor = match (operator, first) {
            ("Mul", _) => scalar,
            ("Div", false) => scalar.map(f64::recip),
            // 0 - x.
            ("Sub", true) if scalar == Some(0.0) => Some(-1.0),
            _ => None,
        };
        let factor = factor
            .filter(|factor| factor.is_finite() && !matches!(self[step].kind, Kind::Refused(..)));
        // A factor stays separate until `merge_factors`, unless it completes an activation without
        // factors.
        let known =
            if factor.is_some() { unscaled(&expressions) } else { recognized(&expressions) };
        if let Some(kind) = known {
            return Ok(Made::Step(kind, expressions));
        }
        if let Some(factor) = factor {
            // Checks the constant, and takes what a scaling layer would hold from the budget.
            per_channel(constant, dims, &self.budget)?;
            return Ok(Made::Step(Kind::Factor(step, factor), expressions));
        }
        if matches!(operator, "Max" | "Min" | "Pow" | "Greater" | "Less") {
            return Ok(Made::Step(Kind::Refused(vec![step], PART.to_owned()), expressions));
        }
        let values = per_channel(constant, dims, &self.budget)?;
        // The operator as y = a x + b for each channel.
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
                let reason = "it divides by values that depend on the model's input, which is \
                     unsupported: explain the model up to its input, with OnnxFile::output"
                    .to_owned();
                return Ok(Made::Step(Kind::Refused(vec![step], reason), expressions));
            }
        };
        // A bias that is a separate operator becomes part of the dense layer or convolution before
        // it, if nothing else reads that layer's outputs.
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

    /// A step's values as functions of the values of its bases. The step itself comes first.
    fn bases(&self, step: usize) -> Vec<(usize, Rc<Expression>)> {
        let own = (step, Rc::new(Expression::X));
        std::iter::once(own).chain(self[step].expressions.iter().cloned()).take(BASES).collect()
    }

    /// A function of a step's values, as functions of the values of its bases.
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

    /// A function of the values of two steps, as functions of the values of their common bases. The
    /// nearest base comes first.
    fn combined(&self, a: usize, b: usize, f: fn(f64, f64) -> f64) -> Vec<(usize, Rc<Expression>)> {
        let others = self.bases(b);
        let with = |(base, own): (usize, Rc<Expression>)| {
            let (_, other) = others.iter().find(|(other, _)| *other == base)?;
            Some((base, Expression::Binary(f, own, other.clone()).short()?))
        };
        self.bases(a).into_iter().filter_map(with).collect()
    }
}

/// A step's values as functions of the values of its bases.
type Expressions = [(usize, Rc<Expression>)];

/// The step for the first of the expressions that is a known activation.
pub(super) fn unscaled<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    expressions
        .iter()
        .find_map(|(base, expression)| Some(Kind::Layers(*base, vec![expression.activation()?])))
}

/// The step for the first of the expressions that is a known activation, perhaps with a scaled
/// argument and value. This excludes clips, because a clip of a shifted value can be part of a hard
/// activation.
pub(super) fn recognized_but_cuts<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    let scaled = |(base, expression): &(usize, Rc<Expression>)| {
        Some(Kind::Layers(*base, vec![expression.scaled_activation()?]))
    };
    unscaled(expressions).or_else(|| expressions.iter().find_map(scaled))
}

/// The step for the first of the expressions that is a known activation, or else for the last that
/// is a clip.
pub(super) fn recognized<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    let cut = |(base, expression): &(usize, Rc<Expression>)| {
        Some(Kind::Layers(*base, vec![expression.cut()?]))
    };
    recognized_but_cuts(expressions).or_else(|| expressions.iter().rev().find_map(cut))
}

/// The step for a sum that is a known activation, except for scaled ones.
fn recognized_sum<T: Scalar>(expressions: &Expressions) -> Option<Kind<T>> {
    let has_name = |kind: &Kind<T>| match kind {
        Kind::Layers(_, layers) => layers.iter().all(|layer| layer.kind() != "Scaled"),
        _ => false,
    };
    recognized_but_cuts(expressions).filter(has_name)
}

/// Checks that a constant has no more axes than the values with their batch axis. Otherwise,
/// broadcasting would add axes to the values.
fn no_more_axes(constant: &Constant, dims: &[usize]) -> Result<(), String> {
    if constant.dims.len() <= dims.len() + 1 {
        return Ok(());
    }
    Err(format!(
        "its constant has {} axes, but its values only have {} (with the batch axis): reshape the \
         constant, because adding axes is unsupported",
        constant.dims.len(),
        dims.len() + 1
    ))
}

/// A constant's value for each channel, if it is the same within each channel.
pub(super) fn per_channel(
    constant: &Constant,
    dims: &[usize],
    budget: &Budget,
) -> Result<Vec<f64>, String> {
    let channels = dims.first().copied().unwrap_or(1);
    // A normalization layer holds four numbers for each channel.
    budget.keep(channels.saturating_mul(4))?;
    let values = constant.numbers().ok_or("its constant must consist of numbers")?;
    if let [value] = *values {
        return Ok(vec![value; channels]);
    }
    // Broadcasting aligns shapes at their last axes, which are the spatial ones. The channel axis
    // comes before them.
    let space = dims.len().saturating_sub(1);
    let at = constant.dims.len().checked_sub(space + 1);
    let alone = constant.dims.iter().enumerate().all(|(axis, &dim)| dim == 1 || Some(axis) == at);
    if values.len() == channels && alone {
        return Ok(values);
    }
    Err(format!(
        "its constant has the shape {:?}, but only a single number or one number for each of the \
         {channels} channels is supported",
        constant.dims
    ))
}

/// The layers that compute y = a z + b for each channel, written as a batch norm.
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
