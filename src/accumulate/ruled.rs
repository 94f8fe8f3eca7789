//! The share matrix of a linear layer: a rule's terms, for the current samples.

use std::sync::Arc;

use crate::accumulate::Cause;
use crate::accumulate::range::Range;
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::layer::{self, Bias, LinearMap, WeightFn};
use crate::linalg;
use crate::rule::{
    self, BiasMode, Decomposition, Divisor, Gate, Input, Part, RelevanceRule, Site, Stabilizer,
    Transform, Weight,
};
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Linear};

/// A rule at one layer, with everything that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Ruled<T: Scalar> {
    pub inputs: usize,
    pub outputs: usize,
    /// The layer's own map.
    pub own: Arc<dyn LinearMap<T>>,
    /// Whether the inputs are nonnegative for every sample.
    nonnegative: bool,
    /// The cause of each row of sinks.
    pub causes: Vec<Cause>,
    /// The causes whose sinks do not follow from t.
    stored: Vec<Cause>,
    pub(super) groups: Vec<PreparedGroup<T>>,
    /// A = Σ diag(u) V diag(t).
    pub(super) terms: Vec<Term>,
    /// The source of each u other than z itself and 1.
    pub(super) mapped: Vec<Input<T>>,
    /// Each V other than the layer's own weights.
    pub(super) maps: Vec<Box<dyn LinearMap<T>>>,
    /// The number of vectors t.
    pub(super) scales: usize,
    /// 1 minus the sum of the active groups' coefficients, for outputs that are positive, negative
    /// and 0.
    rest: [T; 3],
    /// The range that the rule assumes for the inputs.
    pub range: Option<Range<T>>,
}

#[derive(Debug)]
pub(super) struct PreparedGroup<T: Scalar> {
    pub coefficient: T,
    /// The group's range within the terms.
    pub terms: std::ops::Range<usize>,
    /// The index of the group's t. If a bias is distributed, its t is the next one.
    pub t: usize,
    /// The transformed bias, and the number of consecutive outputs that each value applies to.
    pub bias: Option<(Vec<T>, usize)>,
    /// The part of the bias that is not distributed to the inputs, in the same form.
    sink_bias: Option<(Vec<T>, usize)>,
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
    /// An entry of [`Ruled::mapped`].
    Mapped(usize),
}

/// The source of a term's V.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights {
    Own,
    /// An entry of [`Ruled::maps`].
    Other(usize),
}

/// The values of A = Σ diag(u) V diag(t) for some samples, and of the rows of sinks below it. The
/// matrices V are in [`Ruled`].
#[derive(Debug)]
pub(crate) struct Shares<T> {
    pub samples: usize,
    /// z, samples as columns.
    pub(super) z: Buffer<T>,
    /// f(z) for each transform, samples as columns.
    pub(super) mapped: Buffer<T>,
    /// Each t, samples as columns.
    pub(super) t: Buffer<T>,
    /// The ε of each group and sample.
    epsilons: Buffer<T>,
    /// For each sample and stored cause, one share per output. The other sinks follow from t: the
    /// stabilizer absorbs |t| ε, the bias absorbs t times the bias, and a negative zero marks an
    /// output that has no shares because its total is 0.
    stored: Buffer<T>,
}

impl<T: Scalar> Ruled<T> {
    pub fn new(
        rule: &dyn RelevanceRule<T>,
        site: &Site<'_>,
        linear: &Linear<T>,
    ) -> Result<Self, Error> {
        let map = &*linear.map;
        let rule = rule::rule_at(rule, site);
        let Decomposition { groups, range } = rule.decompose(site)?;
        let refuse = |reason: &str| Error::Unsupported {
            rule: rule.name(),
            layer: site.layer,
            kind: site.kind.to_owned(),
            reason: reason.to_owned(),
        };
        let rest = |open: &[Gate]| {
            let coefficients = groups
                .iter()
                .filter(|group| open.contains(&group.gate))
                .map(|group| group.coefficient);
            let rest = coefficients.fold(T::one(), |rest, c| rest - c);
            // Coefficients such as 1.1 and -0.1 sum to 1 only up to rounding.
            if rest.abs() <= T::epsilon() * T::from_f64(4.0) { T::zero() } else { rest }
        };
        let mut prepared = Self {
            inputs: site.inputs,
            outputs: site.outputs,
            own: linear.map.clone(),
            nonnegative: linear.nonnegative,
            causes: Vec::new(),
            stored: Vec::new(),
            groups: Vec::with_capacity(groups.len()),
            terms: Vec::new(),
            mapped: Vec::new(),
            maps: Vec::new(),
            scales: 0,
            rest: [
                rest(&[Gate::Always, Gate::Positive]),
                rest(&[Gate::Always, Gate::Negative]),
                rest(&[Gate::Always]),
            ],
            range: range
                .map(|range| Range::new(range, rule.name_at(site), linear.factor, site))
                .transpose()
                .map_err(|reason| refuse(&reason))?,
        };
        // The weights that each map was made from, so that groups can share maps.
        let mut made: Vec<Weight<T>> = Vec::new();
        for group in groups {
            let (division, total_of) = match group.divisor {
                Divisor::Total(stabilizer) => (Division::Total(stabilizer), None),
                Divisor::TotalOf(parts, stabilizer) => (Division::Total(stabilizer), Some(parts)),
                Divisor::FanIn => (Division::FanIn, None),
                Divisor::One => (Division::One, None),
            };
            check_division::<T>(division, group.bias_mode).map_err(|reason| refuse(&reason))?;
            let follows_own =
                prepared.groups.last().is_some_and(|before| before.total_of.is_none());
            if group.completes.is_some() && (!follows_own || total_of.is_some()) {
                return Err(refuse(
                    "a group that completes another has to follow it, and both have to be divided \
                     by their own totals",
                ));
            }
            // `own` is the index of the group's t.
            let (first, own) = (prepared.terms.len(), prepared.scales);
            prepared.scales += 1;
            let of_group = prepared
                .terms_of(group.parts, own, map, &mut made)
                .map_err(|reason| refuse(&reason))?;
            prepared.terms.extend(of_group);
            let terms = first..prepared.terms.len();
            let total_of = total_of.map(|parts| prepared.terms_of(parts, own, map, &mut made));
            let total_of = total_of.transpose().map_err(|reason| refuse(&reason))?;
            let distributes = group.bias_mode == BiasMode::Distribute && map.bias().is_some();
            let counts = distributes || division == Division::FanIn;
            let fan_in = if counts { layer::fan_in(map) } else { Vec::new() };
            let (bias, sink_bias) =
                biases(map.bias(), (&group.bias, group.bias_mode), division, &fan_in);
            if distributes {
                // One more term: u = 1, V = 1 at each connection, and its t is t b / n.
                let v = prepared
                    .weights(Weight::Of(Transform::One), map, &mut made)
                    .map_err(|reason| refuse(&reason))?;
                prepared.terms.push(Term { u: Scale::Ones, v, t: own + 1 });
                prepared.scales += 1;
            }
            prepared.add_cause(Cause::Bias, sink_bias.is_some());
            match division {
                Division::Total(stabilizer) => {
                    // A stabilizer relative to the totals is 0 if all totals are 0.
                    let dead =
                        matches!(stabilizer, Stabilizer::RelativeToRms(_) | Stabilizer::None)
                            && !group.one_sign;
                    prepared.add_cause(Cause::Stabilizer, stabilizer != Stabilizer::None);
                    prepared.add_cause(Cause::Dead, dead);
                    prepared.add_cause(Cause::Empty, group.one_sign);
                }
                Division::FanIn => prepared.add_cause(Cause::Rest, true),
                Division::One => {}
            }
            // The divisor may contain numerators that the group does not share out.
            prepared.add_cause(Cause::Rest, total_of.is_some());
            prepared.groups.push(PreparedGroup {
                coefficient: group.coefficient,
                terms,
                t: own,
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
        }
        let [positive, negative, _] = prepared.rest;
        prepared.add_cause(Cause::Rest, positive != T::zero() || negative != T::zero());
        prepared.add_cause(Cause::Dead, prepared.is_gated());
        // With gates, t is 0 for several reasons, so it cannot tell which outputs are dead.
        let is_stored =
            |cause: &Cause| *cause == Cause::Rest || *cause == Cause::Dead && prepared.is_gated();
        prepared.stored = prepared.causes.iter().copied().filter(is_stored).collect();
        Ok(prepared)
    }

    fn add_cause(&mut self, cause: Cause, there: bool) {
        if there && !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }

    /// Whether the groups depend on the output's sign.
    fn is_gated(&self) -> bool {
        self.groups.iter().any(|group| group.gate != Gate::Always)
    }

    /// The terms of a group's parts, or the reason why a part is invalid.
    fn terms_of(
        &mut self,
        parts: Vec<Part<T>>,
        t: usize,
        own: &dyn LinearMap<T>,
        made: &mut Vec<Weight<T>>,
    ) -> Result<Vec<Term>, String> {
        let mut terms = Vec::with_capacity(parts.len());
        for part in parts {
            if self.nonnegative && matches!(part.input, Input::Of(Transform::Negative)) {
                // This part is zero for every sample.
                continue;
            }
            let (u, v) = (self.scale(part.input)?, self.weights(part.weight, own, made)?);
            terms.push(Term { u, v, t });
        }
        Ok(terms)
    }

    fn scale(&mut self, input: Input<T>) -> Result<Scale, String> {
        match &input {
            Input::Of(Transform::Identity) => return Ok(Scale::Inputs),
            // The inputs are nonnegative, so z⁺ = z.
            Input::Of(Transform::Positive) if self.nonnegative => return Ok(Scale::Inputs),
            Input::Of(Transform::One) => return Ok(Scale::Ones),
            Input::Fixed(values) if values.len() != self.inputs => {
                return Err(format!(
                    "it has values for {} inputs, but the layer has {}",
                    values.len(),
                    self.inputs
                ));
            }
            Input::Fixed(values) if values.iter().any(|v| !v.is_finite()) => {
                return Err("not all of its values for the inputs are finite".to_owned());
            }
            _ => {}
        }
        let same = |other: &Input<T>| match (&input, other) {
            (Input::Of(f), Input::Of(g)) => f.is(g),
            (Input::Fixed(a), Input::Fixed(b)) => Arc::ptr_eq(a, b),
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
        weight: Weight<T>,
        own: &dyn LinearMap<T>,
        made: &mut Vec<Weight<T>>,
    ) -> Result<Weights, String> {
        match &weight {
            Weight::Of(Transform::Identity) => return Ok(Weights::Own),
            Weight::Same if self.inputs != self.outputs => {
                return Err(format!(
                    "the layer has {} inputs and {} outputs, and the rule needs equal numbers",
                    self.inputs, self.outputs
                ));
            }
            _ => {}
        }
        let same = |other: &Weight<T>| match (&weight, other) {
            (Weight::Of(f), Weight::Of(g)) => f.is(g),
            (Weight::Same, Weight::Same) => true,
            _ => false,
        };
        // `made` and `maps` have the same order.
        if let Some(known) = made.iter().position(same) {
            return Ok(Weights::Other(known));
        }
        self.maps.push(match &weight {
            Weight::Same => layer::same(self.inputs),
            Weight::Of(Transform::One) => own.ones(),
            Weight::Of(transform) => {
                let transform = transform.clone();
                own.map_weights(&WeightFn::new(move |w| transform.value(w)))
            }
        });
        made.push(weight);
        Ok(Weights::Other(self.maps.len() - 1))
    }

    pub(super) fn map(&self, weights: Weights) -> &dyn LinearMap<T> {
        match weights {
            Weights::Own => &*self.own,
            Weights::Other(index) => &*self.maps[index],
        }
    }

    /// The cost of applying all terms to one column.
    pub fn multiply_adds(&self) -> f64 {
        self.terms.iter().map(|term| self.map(term.v).multiply_adds()).sum()
    }

    /// The costs of forming one row and one column of A.
    pub fn formed(&self) -> (f64, f64) {
        // Rows of dense or tiny maps are read directly. Those of others need a product.
        let dense = |term: &&Term| {
            self.own.forms_matrix()
                || self.map(term.v).multiply_adds() <= (self.inputs + self.outputs) as f64
        };
        let (at_hand, others): (Vec<&Term>, Vec<&Term>) = self.terms.iter().partition(dense);
        let products: f64 = others.iter().map(|term| self.map(term.v).multiply_adds()).sum();
        let of_terms = at_hand.len() as f64;
        (of_terms * self.outputs as f64 + products, of_terms * self.inputs as f64 + products)
    }

    /// Computes the shares of the layer that the pass leaves.
    pub fn shares(&self, leaving: Leaving<'_, T>, buffers: &mut Buffers<T>) -> Shares<T> {
        let Leaving { map, inputs: z, product, .. } = leaving;
        let (samples, outputs) = (product.len() / self.outputs, product.len());
        let mut mapped = buffers.values.take(self.mapped.len() * z.len());
        for (input, mapped) in self.mapped.iter().zip(mapped.chunks_exact_mut(z.len().max(1))) {
            match input {
                Input::Of(transform) => {
                    mapped.iter_mut().zip(&*z).for_each(|(u, &z)| *u = transform.value(z));
                }
                Input::Fixed(values) => {
                    mapped.chunks_exact_mut(values.len()).for_each(|u| u.copy_from_slice(values));
                }
            }
        }
        let mut t = buffers.values.take(self.scales * outputs);
        let mut epsilons = buffers.values.take(self.groups.len() * samples);
        let mut stored = buffers.values.take(self.stored.len() * outputs);
        stored.fill(T::zero());
        // The totals of one group at a time, for all samples.
        let mut total = buffers.values.take(outputs);
        // The layer's own output, if its sign decides which groups are active.
        let mut y = buffers.values.take(if self.is_gated() { outputs } else { 0 });
        if !y.is_empty() {
            linalg::copy(product, &mut y);
            layer::add_bias(map.bias(), &mut y);
        }
        let mut rows = Stored { causes: &self.stored, outputs: self.outputs, rows: &mut stored };
        // The totals of a group that the next one completes, without the bias.
        let is_completed = |number: usize| {
            self.groups.get(number + 1).is_some_and(|next| next.completes.is_some())
        };
        let completed = (0..self.groups.len()).any(is_completed);
        let mut before = buffers.values.take(if completed { outputs } else { 0 });
        let of_others = self.groups.iter().any(|group| group.total_of.is_some());
        let mut numerators = buffers.values.take(if of_others { outputs } else { 0 });
        for (number, group) in self.groups.iter().enumerate() {
            let own_terms = &self.terms[group.terms.clone()];
            let values = (&*z, &*mapped, product);
            match (group.completes, &group.total_of) {
                // This saves a matrix product.
                (Some(k), _) => complete(k, product, &before, &mut total),
                (None, None) => self.total(own_terms, values, &mut total, buffers),
                (None, Some(others)) => {
                    self.total(others, values, &mut total, buffers);
                    self.total(own_terms, values, &mut numerators, buffers);
                    // The part of the divisor that the group's own numerators do not cover, without
                    // the bias.
                    numerators
                        .iter_mut()
                        .zip(&*total)
                        .for_each(|(numerators, &total)| *numerators = total - *numerators);
                }
            }
            if is_completed(number) {
                linalg::copy(&total, &mut before);
            }
            layer::add_bias(group.bias(), &mut total);
            // `rest` begins with the t of the distributed bias, if there is one.
            let (own, rest) = t[group.t * outputs..].split_at_mut(outputs);
            group.divide(&total, &y, own, &mut epsilons[number * samples..][..samples], &mut rows);
            if group.total_of.is_some() {
                for sample in 0..samples {
                    let at = sample * self.outputs;
                    // t times the part of the divisor that no input receives.
                    rows.add(Cause::Rest, sample, |j| own[at + j] * numerators[at + j]);
                }
            }
            if group.distributes() {
                let bias = group.bias.iter().flat_map(|(bias, _)| bias);
                // If n = 0, no connection can receive the bias.
                let shares = bias.zip(&group.fan_in).map(|(&b, &n)| b / n.max(T::one())).cycle();
                rest.iter_mut()
                    .zip(own)
                    .zip(shares)
                    .for_each(|((distributed, t), share)| *distributed = *t * share);
            }
        }
        let [positive, negative, zero] = self.rest;
        for sample in 0..samples {
            match y.get(sample * self.outputs..(sample + 1) * self.outputs) {
                Some(y) => {
                    let of_sign = |j: usize| if y[j] > T::zero() { positive } else { negative };
                    rows.add(Cause::Rest, sample, |j| {
                        if y[j] == T::zero() { T::zero() } else { of_sign(j) }
                    });
                    rows.add(
                        Cause::Dead,
                        sample,
                        |j| if y[j] == T::zero() { zero } else { T::zero() },
                    );
                }
                // Without gates, the rest is the same for every output.
                None if zero != T::zero() => rows.add(Cause::Rest, sample, |_| zero),
                None => {}
            }
        }
        for buffer in [numerators, before, y, total] {
            buffers.values.give(buffer);
        }
        Shares { samples, z, mapped, t, epsilons, stored }
    }

    /// The sum of the numerators of some terms, without a bias.
    fn total(
        &self,
        terms: &[Term],
        (z, mapped, product): (&[T], &[T], &[T]),
        total: &mut [T],
        buffers: &mut Buffers<T>,
    ) {
        let Some((first, others)) = terms.split_first() else { return total.fill(T::zero()) };
        let numerators = |term: &Term, out: &mut [T], buffers: &mut Buffers<T>| {
            let v = self.map(term.v);
            match (term.u, term.v) {
                // The forward pass has already computed this product.
                (Scale::Inputs, Weights::Own) => linalg::copy(product, out),
                (Scale::Inputs, _) => v.apply(z, out),
                (Scale::Mapped(k), _) => v.apply(&mapped[k * z.len()..][..z.len()], out),
                (Scale::Ones, _) => {
                    let mut ones = buffers.values.take(z.len());
                    ones.fill(T::one());
                    v.apply(&ones, out);
                    buffers.values.give(ones);
                }
            }
        };
        numerators(first, total, buffers);
        for term in others {
            let mut next = buffers.values.take(total.len());
            numerators(term, &mut next, buffers);
            linalg::add_scaled(T::one(), &next, total);
            buffers.values.give(next);
        }
    }
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

/// Computes the totals of a group whose numerators, together with those of the group `before`, sum
/// to k times the layer's own product.
fn complete<T: Scalar>(k: T, product: &[T], before: &[T], total: &mut [T]) {
    linalg::zip_parts(total, product, |first, total, product| {
        for ((total, &own), &before) in total.iter_mut().zip(product).zip(&before[first..]) {
            *total = k * own - before;
        }
    });
}

/// The stored rows of sinks, while they are being computed: for each sample and cause, one share
/// per output.
struct Stored<'a, T> {
    causes: &'a [Cause],
    outputs: usize,
    rows: &'a mut [T],
}

impl<T: Scalar> Stored<'_, T> {
    /// Adds one share per output to a row.
    fn add(&mut self, cause: Cause, sample: usize, mut share: impl FnMut(usize) -> T) {
        if let Some(row) = self.causes.iter().position(|&c| c == cause) {
            let row =
                &mut self.rows[(sample * self.causes.len() + row) * self.outputs..][..self.outputs];
            for (j, sum) in row.iter_mut().enumerate() {
                *sum += share(j);
            }
        }
    }
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

impl<T: Scalar> PreparedGroup<T> {
    pub fn bias(&self) -> Option<Bias<'_, T>> {
        self.bias.as_ref().map(|(bias, each)| Bias::per_channel(bias, *each))
    }

    pub fn distributes(&self) -> bool {
        self.bias_mode == BiasMode::Distribute && self.bias.is_some()
    }

    /// Computes t = c / d, and the ε of each sample. `y` is the layer's own output, or empty if no
    /// gate needs it.
    fn divide(
        &self,
        total: &[T],
        y: &[T],
        t: &mut [T],
        epsilons: &mut [T],
        stored: &mut Stored<'_, T>,
    ) {
        let (outputs, c) = (stored.outputs, self.coefficient);
        for (sample, (totals, t)) in
            total.chunks_exact(outputs).zip(t.chunks_exact_mut(outputs)).enumerate()
        {
            epsilons[sample] = T::zero();
            match self.divisor {
                Division::Total(stabilizer) => {
                    epsilons[sample] = epsilon(stabilizer, totals);
                    let y = y.get(sample * outputs..(sample + 1) * outputs).unwrap_or(totals);
                    self.divide_by_total(epsilons[sample], (totals, y), t);
                }
                Division::FanIn => {
                    // An output without inputs (a window inside the padding) has a total of 0, so
                    // all of it is rest.
                    t.iter_mut().zip(&self.fan_in).for_each(|(t, &n)| *t = c / n.max(T::one()));
                    stored.add(Cause::Rest, sample, |j| c - totals[j] * t[j]);
                }
                Division::One => t.fill(c),
            }
        }
    }

    /// Computes t = c / S(total). It is 0 if the gate is closed, and a negative zero if the total
    /// does not define any shares.
    fn divide_by_total(&self, epsilon: T, (totals, y): (&[T], &[T]), t: &mut [T]) {
        let (c, zero) = (self.coefficient, T::zero());
        let loses = self.loses(epsilon);
        linalg::zip_parts(t, totals, |first, t, totals| {
            for (t, &total) in t.iter_mut().zip(totals) {
                // S(total), where a total of 0 counts as positive.
                let stabilized = total + if total < zero { -epsilon } else { epsilon };
                *t = if loses && total == zero { -zero } else { c / stabilized };
            }
            if self.gate != Gate::Always {
                for (t, &y) in t.iter_mut().zip(&y[first..]) {
                    // If y = 0, both gates are closed.
                    let open = if self.gate == Gate::Positive { y > zero } else { y < zero };
                    *t = if open { *t } else { zero };
                }
            }
        });
    }

    /// Whether a total of 0 means that no shares are defined.
    fn loses(&self, epsilon: T) -> bool {
        matches!(self.divisor, Division::Total(_)) && (self.one_sign || epsilon == T::zero())
    }

    /// The sinks that follow from t, with their causes.
    fn sinks(&self, epsilon: T) -> impl Iterator<Item = (Cause, Derived<'_, T>)> {
        let bias = self.sink_bias.as_ref().map(|(bias, each)| Bias::per_channel(bias, *each));
        let signed = if self.coefficient < T::zero() { -epsilon } else { epsilon };
        let stabilizer =
            (epsilon != T::zero()).then_some((Cause::Stabilizer, Derived::Magnitude(signed)));
        let lost = if self.one_sign { Cause::Empty } else { Cause::Dead };
        let lost = self.loses(epsilon).then_some((lost, Derived::Lost(self.coefficient)));
        bias.map(|bias| (Cause::Bias, Derived::Times(bias)))
            .into_iter()
            .chain(stabilizer)
            .chain(lost)
    }
}

/// How the share of a sink follows from t.
enum Derived<'a, T> {
    /// t times the bias.
    Times(Bias<'a, T>),
    /// |t| times this value.
    Magnitude(T),
    /// This value where t is a negative zero.
    Lost(T),
}

impl<T: Scalar> Derived<'_, T> {
    /// The value of the sink in the product with a column x.
    fn sum(&self, t: &[T], x: &[T]) -> f64 {
        match self {
            Self::Times(bias) if bias.each() == 1 => {
                linalg::sum([t, x, bias.values()], |t, x, b| t * x * b)
            }
            Self::Times(bias) => {
                // The outputs of a channel share one bias, so it is multiplied in once per channel.
                let each = bias.each();
                let of_channel = |channel: usize| {
                    let [t, x] = [t, x].map(|values| &values[channel * each..][..each]);
                    linalg::dot(t, x) * bias.values()[channel].as_f64()
                };
                linalg::sum_in_order(bias.values().len(), t.len(), of_channel)
            }
            Self::Magnitude(by) => linalg::sum([t, x, x], |t, x, _| t.abs() * x) * by.as_f64(),
            Self::Lost(c) => {
                let lost = t.iter().zip(x).filter(|(t, _)| is_lost(**t));
                lost.map(|(_, x)| x.as_f64()).sum::<f64>() * c.as_f64()
            }
        }
    }
}

/// Whether t marks an output without shares.
fn is_lost<T: Scalar>(t: T) -> bool {
    t == T::zero() && t.is_sign_negative()
}

/// The ε for a sample's totals.
pub(super) fn epsilon<T: Scalar>(stabilizer: Stabilizer, totals: &[T]) -> T {
    match stabilizer {
        Stabilizer::None => T::zero(),
        Stabilizer::Absolute(epsilon) => T::from_f64(epsilon),
        Stabilizer::RelativeToRms(epsilon) => match root_mean_square(totals) {
            rms if rms == T::zero() => rms,
            // The reciprocal of a smaller ε is infinite.
            rms => (T::from_f64(epsilon) * rms).max(T::min_positive_value()),
        },
    }
}

/// The shares together with the maps that they use.
#[derive(Clone, Copy)]
pub(crate) struct Linked<'a, T: Scalar> {
    pub shares: &'a Shares<T>,
    pub ruled: &'a Ruled<T>,
}

impl<T: Scalar> Shares<T> {
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        for buffer in [self.stored, self.epsilons, self.t, self.mapped, self.z] {
            buffers.values.give(buffer);
        }
    }
}

impl<'a, T: Scalar> Linked<'a, T> {
    /// The u of a term for all samples, `None` for ones.
    fn u(self, term: &Term) -> Option<&'a [T]> {
        let Shares { z, mapped, .. } = self.shares;
        match term.u {
            Scale::Inputs => Some(z),
            Scale::Ones => None,
            Scale::Mapped(k) => Some(&mapped[k * z.len()..][..z.len()]),
        }
    }

    fn t(self, term: &Term) -> &'a [T] {
        // The vectors t follow one another, each with all samples.
        let size = self.shares.samples * self.ruled.outputs;
        &self.shares.t[term.t * size..][..size]
    }

    pub(super) fn u_of(self, term: &Term, sample: usize) -> Option<&'a [T]> {
        self.u(term).map(|u| &u[sample * self.ruled.inputs..][..self.ruled.inputs])
    }

    fn t_of(self, term: &Term, sample: usize) -> &'a [T] {
        &self.t(term)[sample * self.ruled.outputs..][..self.ruled.outputs]
    }

    /// The stored rows of sinks of a sample, each with its position among the causes.
    fn stored(self, sample: usize) -> impl Iterator<Item = (usize, &'a [T])> {
        let Ruled { stored, outputs, .. } = self.ruled;
        let rows = self.shares.stored[sample * stored.len() * outputs..].chunks_exact(*outputs);
        stored.iter().zip(rows).filter_map(move |(&cause, row)| Some((self.place(cause)?, row)))
    }

    /// The sinks of a sample that follow from t: the position among the causes, the t, and how the
    /// share follows from it.
    fn derived(self, sample: usize) -> impl Iterator<Item = (usize, &'a [T], Derived<'a, T>)> {
        let (shares, outputs) = (self.shares, self.ruled.outputs);
        self.ruled.groups.iter().enumerate().flat_map(move |(number, group)| {
            let t = &shares.t[(group.t * shares.samples + sample) * outputs..][..outputs];
            let epsilon = shares.epsilons[number * shares.samples + sample];
            group
                .sinks(epsilon)
                .filter_map(move |(cause, derived)| Some((self.place(cause)?, t, derived)))
        })
    }

    fn place(self, cause: Cause) -> Option<usize> {
        self.ruled.causes.iter().position(|&other| other == cause)
    }

    /// Writes the rows of sinks of a sample to `out`, one share per output.
    pub fn sink_rows(self, sample: usize, out: &mut [T]) {
        let outputs = self.ruled.outputs;
        out.fill(T::zero());
        for (place, row) in self.stored(sample) {
            linalg::add_scaled(T::one(), row, &mut out[place * outputs..][..outputs]);
        }
        for (place, t, derived) in self.derived(sample) {
            // Several groups can add to the same row.
            let row = out[place * outputs..][..outputs].iter_mut().zip(t);
            match derived {
                Derived::Times(bias) => {
                    row.zip(bias.iter()).for_each(|((out, &t), b)| *out += t * b);
                }
                Derived::Magnitude(by) => row.for_each(|(out, &t)| *out += t.abs() * by),
                Derived::Lost(c) => {
                    row.filter(|(_, t)| is_lost(**t)).for_each(|(out, _)| *out += c);
                }
            }
        }
    }

    /// Writes the values of a sample's sinks in the product with a block to `out`: one value for
    /// each sink and column.
    pub fn drain(self, sample: usize, block: &[T], out: &mut [T]) {
        let outputs = self.ruled.outputs;
        let columns = block.len() / outputs;
        out.fill(T::zero());
        for (column, x) in block.chunks_exact(outputs).enumerate() {
            for (place, row) in self.stored(sample) {
                out[place * columns + column] += T::from_f64(linalg::dot(row, x));
            }
            for (place, t, derived) in self.derived(sample) {
                out[place * columns + column] += T::from_f64(derived.sum(t, x));
            }
        }
    }

    /// Lists the inputs that can have a nonzero share for a sample, and returns their number.
    pub fn live(self, sample: usize, list: &mut [usize]) -> usize {
        let mut count = 0;
        for i in 0..list.len() {
            let mut any = false;
            for term in &self.ruled.terms {
                any |= self.u_of(term, sample).is_none_or(|u| u[i] != T::zero());
            }
            // Always written but only counted if live, so there is no branch to mispredict.
            list[count] = i;
            count += usize::from(any);
        }
        count
    }

    /// Writes the listed rows of A for one sample to `out`, outputs x listed rows. Cost: this size
    /// for each term.
    pub fn rows(self, sample: usize, listed: &[usize], out: &mut [T], buffers: &mut Buffers<T>) {
        self.form(sample, out, buffers, |v, u, t, out| v.add_scaled_inputs(listed, u, t, out));
    }

    /// Writes the listed columns of A for one sample to `out`, inputs x listed columns. Cost: this
    /// size for each term.
    pub fn columns(self, sample: usize, listed: &[usize], out: &mut [T], buffers: &mut Buffers<T>) {
        self.form(sample, out, buffers, |v, u, t, out| v.add_scaled_outputs(listed, u, t, out));
    }

    /// Sets `out` to zero, and calls `add` for each term of one sample.
    fn form(
        self,
        sample: usize,
        out: &mut [T],
        buffers: &mut Buffers<T>,
        add: impl Fn(&dyn LinearMap<T>, &[T], &[T], &mut [T]),
    ) {
        out.fill(T::zero());
        let mut ones = buffers.values.take(self.ruled.inputs);
        ones.fill(T::one());
        for term in &self.ruled.terms {
            add(
                self.ruled.map(term.v),
                self.u_of(term, sample).unwrap_or(&ones),
                self.t_of(term, sample),
                out,
            );
        }
        buffers.values.give(ones);
    }

    /// Computes Aᵀ X for one sample. The columns of `x` have `inputs` values, and those of `out`
    /// have `outputs` values. Cost: that of the map's product, for each column and term, except for
    /// the inputs where u is 0.
    pub fn apply_transposed(self, sample: usize, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        self.sum(out, buffers, |term, out, _| {
            // Aᵀ X = Σ diag(t) Vᵀ diag(u) X. The map itself applies Vᵀ.
            match self.u_of(term, sample) {
                Some(u) => self.ruled.map(term.v).apply_scaled(u, x, out),
                None => self.ruled.map(term.v).apply(x, out),
            }
            layer::scale_columns(out, self.t_of(term, sample), self.ruled.outputs);
        });
    }

    /// Computes A X for all samples. The columns of `x` have `outputs` values, and those of `out`
    /// have `inputs` values. Each sample has the same number of columns. Cost: that of
    /// [`apply_transposed`](Self::apply_transposed).
    pub fn apply(self, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        self.sum(out, buffers, |term, out, buffers| {
            // A X = Σ diag(u) V diag(t) X, so X is scaled first.
            let mut scaled = buffers.values.take(x.len());
            self.scale(x, self.t(term), &mut scaled);
            match self.u(term) {
                // This happens if a term is only for outputs of one sign, and all outputs have the
                // other sign.
                _ if linalg::max_abs(&scaled) == T::zero() => out.fill(T::zero()),
                Some(u) => self.ruled.map(term.v).apply_transposed_scaled(&scaled, u, out),
                None => self.ruled.map(term.v).apply_transposed(&scaled, out),
            }
            buffers.values.give(scaled);
        });
    }

    /// Multiplies each sample's columns by its t.
    fn scale(self, x: &[T], t: &[T], scaled: &mut [T]) {
        let outputs = self.ruled.outputs;
        // The number of values in a sample's columns.
        let size = x.len() / t.len() * outputs;
        for ((x, scaled), t) in
            x.chunks_exact(size).zip(scaled.chunks_exact_mut(size)).zip(t.chunks_exact(outputs))
        {
            for (x, scaled) in x.chunks_exact(outputs).zip(scaled.chunks_exact_mut(outputs)) {
                linalg::zip_parts(scaled, x, |first, scaled, x| {
                    for ((scaled, &x), &t) in scaled.iter_mut().zip(x).zip(&t[first..]) {
                        *scaled = x * t;
                    }
                });
            }
        }
    }

    /// Sums the results of `product` over all terms.
    fn sum(
        self,
        out: &mut [T],
        buffers: &mut Buffers<T>,
        product: impl Fn(&Term, &mut [T], &mut Buffers<T>),
    ) {
        let Some((first, others)) = self.ruled.terms.split_first() else {
            return out.fill(T::zero());
        };
        product(first, out, buffers);
        for term in others {
            let mut next = buffers.values.take(out.len());
            product(term, &mut next, buffers);
            linalg::add_scaled(T::one(), &next, out);
            buffers.values.give(next);
        }
    }
}

/// √(mean t²), without overflow.
fn root_mean_square<T: Scalar>(totals: &[T]) -> T {
    let max = totals.iter().fold(T::zero(), |max, t| max.max(t.abs()));
    if max == T::zero() {
        return max;
    }
    let sum: T = totals.iter().map(|&t| (t / max) * (t / max)).sum();
    max * (sum / T::from_f64(totals.len() as f64)).sqrt()
}
