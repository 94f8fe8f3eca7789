//! A rule at a linear node, prepared: the terms A = Σ diag(u) V diag(t), with everything that does
//! not depend on the sample.

use std::sync::Arc;

use super::Cause;
use super::range::Range;
use crate::error::Error;
use crate::graph::LinearNode;
use crate::layer::{self, Bias, LinearMap, WeightFn};
use crate::rule::{
    BiasMode, Decomposition, Divisor, Gate, Group, InputFactor, Part, RelevanceRule, Site,
    Stabilizer, Transform, WeightFactor,
};
use crate::scalar::Scalar;

/// A rule at one layer, with everything that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Terms<T: Scalar> {
    pub inputs: usize,
    pub outputs: usize,
    /// The layer's own map.
    pub own: Arc<dyn LinearMap<T>>,
    /// Whether the inputs are nonnegative for every sample.
    nonnegative: bool,
    /// The cause of each row of sinks.
    pub causes: Vec<Cause>,
    /// The causes whose sinks do not follow from t.
    pub(super) stored: Vec<Cause>,
    pub(super) groups: Vec<Quotient<T>>,
    /// A = Σ diag(u) V diag(t).
    pub(super) list: Vec<Term>,
    /// The source of each u other than z itself and 1.
    pub(super) mapped: Vec<InputFactor<T>>,
    /// Each V other than the layer's own weights.
    pub(super) maps: Vec<Box<dyn LinearMap<T>>>,
    /// The number of vectors t.
    pub(super) scales: usize,
    /// 1 minus the sum of the active groups' coefficients, for outputs that are positive, negative
    /// and 0.
    pub(super) rest: [T; 3],
    /// The range that the rule assumes for the inputs.
    pub range: Option<Range<T>>,
}

/// A group of numerators with a common divisor.
#[derive(Debug)]
pub(super) struct Quotient<T: Scalar> {
    pub coefficient: T,
    /// The group's range within the terms.
    pub terms: std::ops::Range<usize>,
    /// The index of the group's t. If a bias is distributed, its t is the next one.
    pub t: usize,
    /// The transformed bias, and the number of consecutive outputs that each value applies to.
    pub bias: Option<(Vec<T>, usize)>,
    /// The part of the bias that is not distributed to the inputs, in the same form.
    pub sink_bias: Option<(Vec<T>, usize)>,
    pub bias_mode: BiasMode,
    pub divisor: Division,
    /// The terms whose total is the divisor, unless these are the group's own.
    pub total_of: Option<Vec<Term>>,
    pub gate: Gate,
    pub one_sign: bool,
    /// k, if the numerators of this group and of the previous one sum to k times the layer's own
    /// product W z.
    pub completes: Option<T>,
    pub fan_in: Vec<T>,
}

/// The divisor of a group's numerators: a stabilized total or a constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Division {
    Total(Stabilizer),
    FanIn,
    One,
}

#[derive(Debug)]
pub(super) struct Term {
    pub u: Scale,
    pub v: Weights,
    /// The index of the term's t.
    pub t: usize,
}

/// The source of a term's u.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    Inputs,
    Ones,
    /// An entry of [`Terms::mapped`].
    Mapped(usize),
}

/// The source of a term's V.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights {
    Own,
    /// An entry of [`Terms::maps`].
    Other(usize),
}

impl<T: Scalar> Terms<T> {
    /// Prepares a rule for a linear node.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the rule's decomposition does not fit the node, and the rule's own
    /// errors.
    pub fn new(
        rule: &dyn RelevanceRule<T>,
        site: &Site<'_>,
        linear: &LinearNode<T>,
    ) -> Result<Self, Error> {
        let Decomposition::Linear(shares) = rule.decompose(site)? else {
            let reason = format!("the layer is linear ({}), but the rule is not", site.family);
            return Err(site.unsupported(rule.name(), reason));
        };
        let refuse = |reason: String| site.unsupported(rule.name(), reason);
        let range = shares.range.map(|range| Range::new(range, rule.name(), site));
        let mut terms = Self {
            inputs: site.inputs,
            outputs: site.outputs,
            own: linear.map.clone(),
            nonnegative: linear.nonnegative,
            causes: Vec::new(),
            stored: Vec::new(),
            groups: Vec::with_capacity(shares.groups.len()),
            list: Vec::new(),
            mapped: Vec::new(),
            maps: Vec::new(),
            scales: 0,
            rest: rests(&shares.groups),
            range: range.transpose().map_err(refuse)?,
        };
        // The weights that each map was made from, so that groups can share maps.
        let mut made: Vec<WeightFactor<T>> = Vec::new();
        for group in shares.groups {
            terms.add_group(group, &mut made).map_err(refuse)?;
        }
        let [positive, negative, _] = terms.rest;
        terms.add_cause(Cause::Rest, positive != T::zero() || negative != T::zero());
        terms.add_cause(Cause::Dead, terms.is_gated());
        // With gates, t is 0 for several reasons, so it cannot tell which outputs are dead.
        let is_stored =
            |cause: &Cause| *cause == Cause::Rest || *cause == Cause::Dead && terms.is_gated();
        terms.stored = terms.causes.iter().copied().filter(is_stored).collect();
        Ok(terms)
    }

    /// Adds the terms of a group and the causes of its sinks, or returns the reason why the group
    /// is invalid.
    fn add_group(
        &mut self,
        group: Group<T>,
        made: &mut Vec<WeightFactor<T>>,
    ) -> Result<(), String> {
        if !group.coefficient.is_finite() {
            return Err(format!("its coefficient {} is not finite", group.coefficient));
        }
        let own = self.own.clone();
        let map = &*own;
        let (division, total_of) = match group.divisor {
            Divisor::Total(stabilizer) => (Division::Total(stabilizer), None),
            Divisor::TotalOf(parts, stabilizer) => (Division::Total(stabilizer), Some(parts)),
            Divisor::FanIn => (Division::FanIn, None),
            Divisor::One => (Division::One, None),
        };
        check_division::<T>(division, group.bias_mode)?;
        let follows_own = self.groups.last().is_some_and(|before| before.total_of.is_none());
        if group.completes.is_some() && (!follows_own || total_of.is_some()) {
            return Err("a group that completes another has to follow it, and both have to be \
                        divided by their own totals"
                .to_owned());
        }
        // The shares of the identity sum to the coefficient.
        let is_identity = matches!(*group.parts, [Part { weight: WeightFactor::Same, .. }])
            && division == Division::One;
        // The index of the group's t.
        let t = self.scales;
        self.scales += 1;
        let first = self.list.len();
        let of_group = self.terms_of(group.parts, t, map, made)?;
        self.list.extend(of_group);
        let terms = first..self.list.len();
        let total_of = total_of.map(|parts| self.terms_of(parts, t, map, made)).transpose()?;
        let distributes = group.bias_mode == BiasMode::Distribute && map.bias().is_some();
        let counts = distributes || division == Division::FanIn;
        let fan_in = if counts { layer::fan_in(map)? } else { Vec::new() };
        let (bias, sink_bias) =
            biases(map.bias(), (&group.bias, group.bias_mode), division, &fan_in);
        if let Some((values, _)) = &bias
            && values.iter().any(|value| !value.is_finite())
        {
            return Err("it makes the bias infinite or NaN".to_owned());
        }
        if distributes {
            // One more term: u = 1, V = 1 at each connection, and its t is t b / n.
            let v = self.weights(WeightFactor::Of(Transform::One), map, made)?;
            self.list.push(Term { u: Scale::Ones, v, t: t + 1 });
            self.scales += 1;
        }
        self.add_cause(Cause::Bias, sink_bias.is_some());
        self.add_causes_of(division, group.one_sign, is_identity);
        // The divisor may contain numerators that the group does not share out.
        self.add_cause(Cause::Rest, total_of.is_some());
        self.groups.push(Quotient {
            coefficient: group.coefficient,
            terms,
            t,
            bias,
            sink_bias,
            bias_mode: group.bias_mode,
            divisor: division,
            total_of,
            gate: group.gate,
            one_sign: group.one_sign,
            completes: group.completes,
            fan_in,
        });
        Ok(())
    }

    fn add_causes_of(&mut self, division: Division, one_sign: bool, is_identity: bool) {
        match division {
            Division::Total(stabilizer) => {
                // A stabilizer relative to the totals is 0 if all totals are 0.
                let dead = matches!(stabilizer, Stabilizer::RelativeToRms(_) | Stabilizer::None)
                    && !one_sign;
                self.add_cause(Cause::Stabilizer, stabilizer != Stabilizer::None);
                self.add_cause(Cause::Dead, dead);
                self.add_cause(Cause::Empty, one_sign);
            }
            Division::FanIn | Division::One => self.add_cause(Cause::Rest, !is_identity),
        }
    }

    fn add_cause(&mut self, cause: Cause, there: bool) {
        if there && !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }

    /// Whether the groups depend on the output's sign.
    pub(super) fn is_gated(&self) -> bool {
        self.groups.iter().any(|group| group.gate != Gate::Always)
    }

    /// The terms of a group's parts, or the reason why a part is invalid.
    fn terms_of(
        &mut self,
        parts: Vec<Part<T>>,
        t: usize,
        own: &dyn LinearMap<T>,
        made: &mut Vec<WeightFactor<T>>,
    ) -> Result<Vec<Term>, String> {
        let mut terms = Vec::with_capacity(parts.len());
        for part in parts {
            if self.nonnegative && matches!(part.input, InputFactor::Of(Transform::Negative)) {
                // This part is zero for every sample.
                continue;
            }
            let (u, v) = (self.scale(part.input)?, self.weights(part.weight, own, made)?);
            terms.push(Term { u, v, t });
        }
        Ok(terms)
    }

    fn scale(&mut self, input: InputFactor<T>) -> Result<Scale, String> {
        match &input {
            InputFactor::Of(Transform::Identity) => return Ok(Scale::Inputs),
            // The inputs are nonnegative, so z⁺ = z.
            InputFactor::Of(Transform::Positive) if self.nonnegative => return Ok(Scale::Inputs),
            InputFactor::Of(Transform::One) => return Ok(Scale::Ones),
            InputFactor::Fixed(values) if values.len() != self.inputs => {
                return Err(format!(
                    "it has values for {} inputs, but the layer has {}",
                    values.len(),
                    self.inputs
                ));
            }
            InputFactor::Fixed(values) if values.iter().any(|v| !v.is_finite()) => {
                return Err("not all of its values for the inputs are finite".to_owned());
            }
            _ => {}
        }
        let same = |other: &InputFactor<T>| match (&input, other) {
            (InputFactor::Of(f), InputFactor::Of(g)) => f.is(g),
            (InputFactor::Fixed(a), InputFactor::Fixed(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let known = self.mapped.iter().position(same);
        Ok(Scale::Mapped(known.unwrap_or_else(|| {
            self.mapped.push(input);
            self.mapped.len() - 1
        })))
    }

    fn weights(
        &mut self,
        weight: WeightFactor<T>,
        own: &dyn LinearMap<T>,
        made: &mut Vec<WeightFactor<T>>,
    ) -> Result<Weights, String> {
        match &weight {
            WeightFactor::Of(Transform::Identity) => return Ok(Weights::Own),
            WeightFactor::Same if self.inputs != self.outputs => {
                return Err(format!(
                    "the layer has {} inputs and {} outputs, and the rule needs equal numbers",
                    self.inputs, self.outputs
                ));
            }
            _ => {}
        }
        let same = |other: &WeightFactor<T>| match (&weight, other) {
            (WeightFactor::Of(f), WeightFactor::Of(g)) => f.is(g),
            (WeightFactor::Same, WeightFactor::Same) => true,
            _ => false,
        };
        // `made` and `maps` have the same order.
        if let Some(known) = made.iter().position(same) {
            return Ok(Weights::Other(known));
        }
        let map = match &weight {
            WeightFactor::Same => layer::same(self.inputs),
            WeightFactor::Of(Transform::One) => own.ones(),
            WeightFactor::Of(transform) => {
                let transform = transform.clone();
                own.map_weights(&WeightFn::new(move |w| transform.value(w)))
            }
        };
        // A map from outside the crate can return any other map.
        if (map.inputs(), map.outputs()) != (self.inputs, self.outputs) {
            return Err(format!(
                "the layer's map has {} inputs and {} outputs, but with other weights it has {} \
                 and {}",
                self.inputs,
                self.outputs,
                map.inputs(),
                map.outputs()
            ));
        }
        self.maps.push(map);
        made.push(weight);
        Ok(Weights::Other(self.maps.len() - 1))
    }

    pub(super) fn map(&self, weights: Weights) -> &dyn LinearMap<T> {
        match weights {
            Weights::Own => &*self.own,
            Weights::Other(index) => &*self.maps[index],
        }
    }

    /// Prepares the maps for their products: for the totals, and for Aᵀ X if the terms are
    /// `appended` and A X if they are `prepended`.
    pub fn prepare(
        &self,
        appended: bool,
        prepended: bool,
        is_worth_it: &dyn Fn(&dyn LinearMap<T>) -> bool,
    ) {
        for group in &self.groups {
            // The forward pass has computed the layer's own product.
            let needs_product =
                |term: &&Term| !matches!((term.u, term.v), (Scale::Inputs, Weights::Own));
            let total = match (&group.completes, &group.total_of) {
                (Some(_), _) => &[][..],
                (None, Some(terms)) => terms,
                (None, None) => &self.list[group.terms.clone()],
            };
            let maps = total.iter().filter(needs_product).map(|term| self.map(term.v));
            maps.filter(|map| is_worth_it(*map)).for_each(LinearMap::prepare_apply);
        }
        for map in self.list.iter().map(|term| self.map(term.v)).filter(|map| is_worth_it(*map)) {
            if appended {
                map.prepare_apply();
            }
            if prepended {
                map.prepare_apply_transposed();
            }
        }
    }

    /// The cost of applying all terms to one column.
    pub fn multiply_adds(&self) -> f64 {
        self.list.iter().map(|term| self.map(term.v).multiply_adds()).sum()
    }

    /// The costs of forming one row and one column of A.
    pub fn formed(&self) -> (f64, f64) {
        // Rows of dense or tiny maps are read directly. Those of others need a product.
        let dense = |term: &&Term| {
            self.own.forms_matrix()
                || self.map(term.v).multiply_adds() <= (self.inputs + self.outputs) as f64
        };
        let (at_hand, others): (Vec<&Term>, Vec<&Term>) = self.list.iter().partition(dense);
        let products: f64 = others.iter().map(|term| self.map(term.v).multiply_adds()).sum();
        let of_terms = at_hand.len() as f64;
        (of_terms * self.outputs as f64 + products, of_terms * self.inputs as f64 + products)
    }
}

/// 1 minus the sum of the active groups' coefficients, for outputs that are positive, negative and
/// 0.
fn rests<T: Scalar>(groups: &[Group<T>]) -> [T; 3] {
    let rest = |open: &[Gate]| {
        let coefficients =
            groups.iter().filter(|group| open.contains(&group.gate)).map(|group| group.coefficient);
        let rest = coefficients.fold(T::one(), |rest, c| rest - c);
        // Coefficients such as 1.1 and -0.1 sum to 1 only up to rounding.
        if rest.abs() <= T::epsilon() * T::from_f64(4.0) { T::zero() } else { rest }
    };
    [
        rest(&[Gate::Always, Gate::Positive]),
        rest(&[Gate::Always, Gate::Negative]),
        rest(&[Gate::Always]),
    ]
}

/// A bias, and the number of consecutive outputs that each value applies to.
type OwnBias<T> = Option<(Vec<T>, usize)>;

/// The part of a layer's bias that enters a group's total, and the part that is not distributed to
/// the inputs.
fn biases<T: Scalar>(
    bias: Option<Bias<'_, T>>,
    (transform, mode): (&Transform<T>, BiasMode),
    division: Division,
    fan_in: &[T],
) -> (OwnBias<T>, OwnBias<T>) {
    let Some(bias) = bias.filter(|_| mode != BiasMode::Ignore) else { return (None, None) };
    let divides = matches!(division, Division::Total(_));
    if mode == BiasMode::Absorb {
        let whole = (bias.values().iter().map(|&b| transform.value(b)).collect(), bias.each());
        let sink = divides.then(|| whole.clone());
        return (Some(whole), sink);
    }
    // An output without inputs (a window inside the padding) cannot distribute its bias. The bias
    // remains a sink, or is left out if the divisor is not a total.
    let of_alone = |of_alone: bool| {
        let values =
            bias.iter().zip(fan_in).map(move |(b, n)| (transform.value(b), *n == T::zero()));
        values
            .map(move |(b, alone)| if alone == of_alone { b } else { T::zero() })
            .collect::<Vec<T>>()
    };
    let (distributed, kept) = (of_alone(false), of_alone(true));
    if !divides || kept.iter().all(|b| *b == T::zero()) {
        return (Some((distributed, 1)), None);
    }
    (Some((bias.iter().map(|b| transform.value(b)).collect(), 1)), Some((kept, 1)))
}

/// Checks that a stabilizer is within the number type's range, and that no bias is absorbed if the
/// divisor is not a total.
fn check_division<T: Scalar>(division: Division, bias: BiasMode) -> Result<(), String> {
    match division {
        Division::FanIn | Division::One if bias == BiasMode::Absorb => {
            Err("the bias can only be absorbed if the divisor is a total".to_owned())
        }
        Division::Total(Stabilizer::Absolute(epsilon) | Stabilizer::RelativeToRms(epsilon))
            // The reciprocal of a smaller stabilizer is infinite.
            if T::from_f64(epsilon) < T::min_positive_value()
                || !T::from_f64(epsilon).is_finite() =>
        {
            Err(format!("the stabilizer {epsilon:?} is outside the number type's range"))
        }
        _ => Ok(()),
    }
}
