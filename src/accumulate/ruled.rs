//! A linear layer's share matrix: a rule's terms, at the current samples.

use std::sync::Arc;

use crate::accumulate::Cause;
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::layer::{self, Bias, LinearMap};
use crate::linalg;
use crate::rule::{self, BiasMode, Decomposition, Divisor, Gate, Input, RelevanceRule, Site, Stabilizer, Transform, Weight};
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Linear};

/// A rule at one layer, with all that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Ruled<T: Scalar> {
    pub inputs: usize,
    pub outputs: usize,
    /// The layer's own map.
    pub own: Arc<dyn LinearMap<T>>,
    /// Whether no input is ever negative.
    nonnegative: bool,
    /// Why relevance leaves at this layer: one row of sinks each.
    pub causes: Vec<Cause>,
    pub(super) groups: Vec<PreparedGroup<T>>,
    /// A = Σ diag(u) V diag(t).
    pub(super) terms: Vec<Term>,
    /// What the u are made of, beside z itself and 1.
    pub(super) mapped: Vec<Input<T>>,
    /// The V beside the layer's own weights.
    pub(super) maps: Vec<Box<dyn LinearMap<T>>>,
    /// How many t there are.
    pub(super) scales: usize,
    /// What the coefficients lack of 1 where the output is positive, negative, 0.
    rest: [T; 3],
}

#[derive(Debug)]
pub(super) struct PreparedGroup<T: Scalar> {
    pub coefficient: T,
    /// The group's among the terms.
    pub terms: std::ops::Range<usize>,
    /// Which t is theirs; that of a distributed bias is the one behind it.
    pub t: usize,
    /// The transformed bias, each value for so many outputs, and the fan-in by which it is distributed if it is.
    pub bias: Option<(Vec<T>, usize)>,
    pub bias_mode: BiasMode,
    pub divisor: Divisor,
    pub gate: Gate,
    pub one_sign: bool,
    pub fan_in: Vec<T>,
}

#[derive(Debug)]
pub(super) struct Term {
    pub u: Scale,
    pub v: Weights,
    /// Which of the factor's t.
    pub t: usize,
}

/// u.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    Inputs,
    Ones,
    /// One of the mapped.
    Mapped(usize),
}

/// V.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights {
    Own,
    /// One of the maps.
    Other(usize),
}

/// The numbers of A = Σ diag(u) V diag(t) for some samples, and the sinks as rows below it. The V stand in [`Ruled`].
#[derive(Debug)]
pub(crate) struct Shares<T> {
    pub samples: usize,
    /// z, samples as columns.
    pub(super) z: Buffer<T>,
    /// f(z) for each transform, samples as columns.
    pub(super) mapped: Buffer<T>,
    /// Each t, samples as columns.
    pub(super) t: Buffer<T>,
    /// For each sample and cause, one share for each output.
    pub sinks: Buffer<T>,
}

impl<T: Scalar> Ruled<T> {
    pub fn new(rule: &dyn RelevanceRule<T>, site: &Site<'_>, linear: &Linear<T>) -> Result<Self, Error> {
        let map = &*linear.map;
        let rule = rule::rule_at(rule, site);
        let Decomposition { groups } = rule.decompose(site)?;
        let refuse = |reason: &str| Error::Unsupported {
            rule: rule.name(),
            layer: site.layer,
            kind: site.kind.to_owned(),
            reason: reason.to_owned(),
        };
        let rest = |open: &[Gate]| {
            let coefficients = groups.iter().filter(|group| open.contains(&group.gate)).map(|group| group.coefficient);
            let rest = coefficients.fold(T::one(), |rest, c| rest - c);
            // Coefficients such as 1.1 and -0.1 sum to 1 up to rounding.
            if rest.abs() <= T::epsilon() * T::from_f64(4.0) { T::zero() } else { rest }
        };
        let mut prepared = Self {
            inputs: site.inputs,
            outputs: site.outputs,
            own: linear.map.clone(),
            nonnegative: linear.nonnegative,
            causes: Vec::new(),
            groups: Vec::with_capacity(groups.len()),
            terms: Vec::new(),
            mapped: Vec::new(),
            maps: Vec::new(),
            scales: 0,
            rest: [rest(&[Gate::Always, Gate::Positive]), rest(&[Gate::Always, Gate::Negative]), rest(&[Gate::Always])],
        };
        // What the maps were made by: groups have some in common.
        let mut made: Vec<Weight<T>> = Vec::new();
        for group in groups {
            check_divisor::<T>(group.divisor, group.bias_mode).map_err(|reason| refuse(&reason))?;
            let (first, own) = (prepared.terms.len(), prepared.scales);
            prepared.scales += 1;
            for part in group.parts {
                if prepared.nonnegative && matches!(part.input, Input::Of(Transform::Negative)) {
                    // It vanishes, whatever the sample.
                    continue;
                }
                let u = prepared.scale(part.input).map_err(|reason| refuse(&reason))?;
                let v = prepared.weights(part.weight, map, &mut made).map_err(|reason| refuse(&reason))?;
                prepared.terms.push(Term { u, v, t: own });
            }
            let terms = first..prepared.terms.len();
            let distributes = group.bias_mode == BiasMode::Distribute && map.bias().is_some();
            let counts = distributes || group.divisor == Divisor::FanIn;
            let fan_in = if counts { layer::fan_in(map) } else { Vec::new() };
            let mut bias: Option<(Vec<T>, usize)> = match group.bias_mode {
                BiasMode::Ignore => None,
                _ => map.bias().map(|bias| (bias.values().iter().map(|&b| group.bias.value(b)).collect(), bias.each())),
            };
            if let (true, Some(bias)) = (distributes, &mut bias) {
                *bias = (Bias::per_channel(&bias.0, bias.1).iter().collect(), 1);
                // An output without inputs (a window in the padding) has nobody to give its bias to.
                bias.0.iter_mut().zip(&fan_in).filter(|(_, n)| **n == T::zero()).for_each(|(b, _)| *b = T::zero());
                let v = prepared.weights(Weight::Of(Transform::One), map, &mut made).map_err(|reason| refuse(&reason))?;
                prepared.terms.push(Term { u: Scale::Ones, v, t: own + 1 });
                prepared.scales += 1;
            }
            match group.divisor {
                Divisor::Total(stabilizer) => {
                    let absorbed = group.bias_mode == BiasMode::Absorb && bias.is_some();
                    // Where all totals are 0, so is a stabiliser that is relative to them.
                    let dead = matches!(stabilizer, Stabilizer::RelativeToRms(_) | Stabilizer::None) && !group.one_sign;
                    prepared.add_cause(Cause::Bias, absorbed);
                    prepared.add_cause(Cause::Stabilizer, stabilizer != Stabilizer::None);
                    prepared.add_cause(Cause::Dead, dead);
                    prepared.add_cause(Cause::Empty, group.one_sign);
                }
                Divisor::FanIn => prepared.add_cause(Cause::Rest, true),
                Divisor::One => {}
            }
            prepared.groups.push(PreparedGroup {
                coefficient: group.coefficient,
                terms,
                t: own,
                bias,
                bias_mode: group.bias_mode,
                divisor: group.divisor,
                gate: group.gate,
                one_sign: group.one_sign,
                fan_in,
            });
        }
        let [positive, negative, _] = prepared.rest;
        prepared.add_cause(Cause::Rest, positive != T::zero() || negative != T::zero());
        prepared.add_cause(Cause::Dead, prepared.is_gated());
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

    fn scale(&mut self, input: Input<T>) -> Result<Scale, String> {
        match &input {
            Input::Of(Transform::Identity) => return Ok(Scale::Inputs),
            Input::Of(Transform::Positive) if self.nonnegative => return Ok(Scale::Inputs),
            Input::Of(Transform::One) => return Ok(Scale::Ones),
            Input::Fixed(values) if values.len() != self.inputs => {
                return Err(format!("it has values for {} inputs, the layer has {}", values.len(), self.inputs));
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

    fn weights(&mut self, weight: Weight<T>, own: &dyn LinearMap<T>, made: &mut Vec<Weight<T>>) -> Result<Weights, String> {
        match &weight {
            Weight::Of(Transform::Identity) => return Ok(Weights::Own),
            Weight::Same if self.inputs != self.outputs => {
                return Err(format!("it has {} inputs and {} outputs, not as many of both", self.inputs, self.outputs));
            }
            _ => {}
        }
        let same = |other: &Weight<T>| match (&weight, other) {
            (Weight::Of(f), Weight::Of(g)) => f.is(g),
            (Weight::Same, Weight::Same) => true,
            _ => false,
        };
        if let Some(known) = made.iter().position(same) {
            return Ok(Weights::Other(known));
        }
        self.maps.push(match &weight {
            Weight::Same => layer::same(self.inputs),
            Weight::Of(Transform::One) => own.ones(),
            Weight::Of(transform) => own.map_weights(&|w| transform.value(w)),
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

    /// What all terms cost for one column.
    pub fn multiply_adds(&self) -> f64 {
        self.terms.iter().map(|term| self.map(term.v).multiply_adds()).sum()
    }

    /// What it costs to form one row of A, and one column.
    pub fn formed(&self) -> (f64, f64) {
        let dense = |term: &&Term| {
            self.own.forms_matrix() || matches!(self.map(term.v).multiply_adds(), m if m <= (self.inputs + self.outputs) as f64)
        };
        let (at_hand, others): (Vec<&Term>, Vec<&Term>) = self.terms.iter().partition(dense);
        let products: f64 = others.iter().map(|term| self.map(term.v).multiply_adds()).sum();
        let of_terms = at_hand.len() as f64;
        (of_terms * self.outputs as f64 + products, of_terms * self.inputs as f64 + products)
    }

    /// The shares of the layer that the pass leaves.
    pub fn shares(&self, leaving: Leaving<'_, T>, buffers: &mut Buffers<T>) -> Shares<T> {
        let Leaving { map, inputs: z, product, .. } = leaving;
        let (samples, outputs) = (product.len() / self.outputs, product.len());
        let mut mapped = buffers.values.take(self.mapped.len() * z.len());
        for (input, mapped) in self.mapped.iter().zip(mapped.chunks_exact_mut(z.len().max(1))) {
            match input {
                Input::Of(transform) => mapped.iter_mut().zip(&*z).for_each(|(u, &z)| *u = transform.value(z)),
                Input::Fixed(values) => mapped.chunks_exact_mut(values.len()).for_each(|u| u.copy_from_slice(values)),
            }
        }
        let mut t = buffers.values.take(self.scales * outputs);
        let mut sinks = buffers.values.take(self.causes.len() * outputs);
        sinks.fill(T::zero());
        let mut total = buffers.values.take(outputs);
        let mut numerators = buffers.values.take(outputs);
        // The layer's own output, where its sign decides.
        let mut y = buffers.values.take(if self.is_gated() { outputs } else { 0 });
        if !y.is_empty() {
            y.copy_from_slice(product);
            layer::add_bias(map.bias(), &mut y);
        }
        for group in &self.groups {
            total.fill(T::zero());
            for term in &self.terms[group.terms.clone()] {
                if let (Scale::Inputs, Weights::Own) = (term.u, term.v) {
                    // The forward pass has made this product already.
                    add(&mut total, product);
                    continue;
                }
                let v = self.map(term.v);
                match term.u {
                    Scale::Inputs => v.apply(&z, &mut numerators),
                    Scale::Mapped(k) => v.apply(&mapped[k * z.len()..][..z.len()], &mut numerators),
                    Scale::Ones => {
                        let mut ones = buffers.values.take(z.len());
                        ones.fill(T::one());
                        v.apply(&ones, &mut numerators);
                        buffers.values.give(ones);
                    }
                }
                add(&mut total, &numerators);
            }
            layer::add_bias(group.bias(), &mut total);
            let (own, rest) = t[group.t * outputs..].split_at_mut(outputs);
            group.divide(&total, &y, own, &mut Sinks { causes: &self.causes, outputs: self.outputs, rows: &mut sinks });
            if group.distributes() {
                let bias = group.bias.iter().flat_map(|(bias, _)| bias);
                let shares = bias.zip(&group.fan_in).map(|(&b, &n)| b / n.max(T::one())).cycle();
                rest.iter_mut().zip(own).zip(shares).for_each(|((distributed, t), share)| *distributed = *t * share);
            }
        }
        let mut rows = Sinks { causes: &self.causes, outputs: self.outputs, rows: &mut sinks };
        let [positive, negative, zero] = self.rest;
        for sample in 0..samples {
            match y.get(sample * self.outputs..(sample + 1) * self.outputs) {
                Some(y) => {
                    let of_sign = |j: usize| if y[j] > T::zero() { positive } else { negative };
                    rows.add(Cause::Rest, sample, |j| if y[j] == T::zero() { T::zero() } else { of_sign(j) });
                    rows.add(Cause::Dead, sample, |j| if y[j] == T::zero() { zero } else { T::zero() });
                }
                None if zero != T::zero() => rows.add(Cause::Rest, sample, |_| zero),
                None => {}
            }
        }
        buffers.values.give(y);
        buffers.values.give(numerators);
        buffers.values.give(total);
        Shares { samples, z, mapped, t, sinks }
    }
}

/// The rows of sinks while they are made: for each sample and cause, one share for each output.
struct Sinks<'a, T> {
    causes: &'a [Cause],
    outputs: usize,
    rows: &'a mut [T],
}

impl<T: Scalar> Sinks<'_, T> {
    /// Adds a share for each output to a row.
    fn add(&mut self, cause: Cause, sample: usize, mut share: impl FnMut(usize) -> T) {
        if let Some(row) = self.causes.iter().position(|&c| c == cause) {
            let row = &mut self.rows[(sample * self.causes.len() + row) * self.outputs..][..self.outputs];
            for (j, sum) in row.iter_mut().enumerate() {
                *sum += share(j);
            }
        }
    }
}

/// A total's stabiliser must be a number of the type, and a divisor that is no total cannot absorb a bias.
fn check_divisor<T: Scalar>(divisor: Divisor, bias: BiasMode) -> Result<(), String> {
    match divisor {
        Divisor::FanIn | Divisor::One if bias == BiasMode::Absorb => {
            Err("a divisor that is no total cannot absorb the bias".to_owned())
        }
        Divisor::Total(Stabilizer::Absolute(epsilon) | Stabilizer::RelativeToRms(epsilon))
            // The reciprocal of a smaller one is infinite.
            if T::from_f64(epsilon) < T::min_positive_value() || !T::from_f64(epsilon).is_finite() =>
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

    /// t = c / d, with what does not go to the inputs as sinks. `y` is the layer's own output where a gate asks for it.
    fn divide(&self, total: &[T], y: &[T], t: &mut [T], sinks: &mut Sinks<'_, T>) {
        let (outputs, c) = (sinks.outputs, self.coefficient);
        for (sample, (totals, t)) in total.chunks_exact(outputs).zip(t.chunks_exact_mut(outputs)).enumerate() {
            match self.divisor {
                Divisor::Total(stabilizer) => {
                    let y = y.get(sample * outputs..(sample + 1) * outputs).unwrap_or(totals);
                    self.divide_by_total(stabilizer, sample, (totals, y), t, sinks);
                }
                Divisor::FanIn => {
                    // An output without inputs (a window in the padding) has nothing to share: its total is 0, all of it
                    // is rest.
                    t.iter_mut().zip(&self.fan_in).for_each(|(t, &n)| *t = c / n.max(T::one()));
                    sinks.add(Cause::Rest, sample, |j| c - totals[j] * t[j]);
                }
                Divisor::One => t.fill(c),
            }
        }
    }

    /// t = c / S(total), with the stabiliser's, the bias's, the empty and the dead totals' shares as sinks.
    fn divide_by_total(
        &self,
        stabilizer: Stabilizer,
        sample: usize,
        (totals, y): (&[T], &[T]),
        t: &mut [T],
        sinks: &mut Sinks<'_, T>,
    ) {
        let (c, zero) = (self.coefficient, T::zero());
        let epsilon = epsilon(stabilizer, totals);
        let signed = |total: T| if total < zero { -epsilon } else { epsilon };
        let open = |j: usize| match self.gate {
            Gate::Always => true,
            Gate::Positive => y[j] > zero,
            Gate::Negative => y[j] < zero,
        };
        // Where there is nothing to share by.
        let nothing = |j: usize| totals[j] == zero && (self.one_sign || epsilon == zero);
        for j in 0..t.len() {
            t[j] = if open(j) && !nothing(j) { c / (totals[j] + signed(totals[j])) } else { zero };
        }
        sinks.add(Cause::Stabilizer, sample, |j| t[j] * signed(totals[j]));
        if let Some((bias, each)) = self.bias.as_ref().filter(|_| self.bias_mode == BiasMode::Absorb) {
            let mut biases = Bias::per_channel(bias, *each).iter();
            sinks.add(Cause::Bias, sample, |j| t[j] * biases.next().unwrap_or_default());
        }
        let lost = if self.one_sign { Cause::Empty } else { Cause::Dead };
        sinks.add(lost, sample, |j| if open(j) && nothing(j) { c } else { zero });
    }
}

/// ε at a sample's totals.
pub(super) fn epsilon<T: Scalar>(stabilizer: Stabilizer, totals: &[T]) -> T {
    match stabilizer {
        Stabilizer::None => T::zero(),
        Stabilizer::Absolute(epsilon) => T::from_f64(epsilon),
        Stabilizer::RelativeToRms(epsilon) => match root_mean_square(totals) {
            rms if rms == T::zero() => rms,
            rms => (T::from_f64(epsilon) * rms).max(T::min_positive_value()),
        },
    }
}

/// The shares with the maps that they are made of.
#[derive(Clone, Copy)]
pub(crate) struct Linked<'a, T: Scalar> {
    pub shares: &'a Shares<T>,
    pub ruled: &'a Ruled<T>,
}

impl<T: Scalar> Shares<T> {
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        for buffer in [self.sinks, self.t, self.mapped, self.z] {
            buffers.values.give(buffer);
        }
    }
}

impl<'a, T: Scalar> Linked<'a, T> {
    /// u of a term for every sample, `None` for ones.
    fn u(self, term: &Term) -> Option<&'a [T]> {
        let Shares { z, mapped, .. } = self.shares;
        match term.u {
            Scale::Inputs => Some(z),
            Scale::Ones => None,
            Scale::Mapped(k) => Some(&mapped[k * z.len()..][..z.len()]),
        }
    }

    fn t(self, term: &Term) -> &'a [T] {
        let size = self.shares.samples * self.ruled.outputs;
        &self.shares.t[term.t * size..][..size]
    }

    fn u_of(self, term: &Term, sample: usize) -> Option<&'a [T]> {
        self.u(term).map(|u| &u[sample * self.ruled.inputs..][..self.ruled.inputs])
    }

    fn t_of(self, term: &Term, sample: usize) -> &'a [T] {
        &self.t(term)[sample * self.ruled.outputs..][..self.ruled.outputs]
    }

    /// The rows of sinks of a sample.
    pub fn sinks(self, sample: usize) -> &'a [T] {
        let size = self.ruled.causes.len() * self.ruled.outputs;
        &self.shares.sinks[sample * size..][..size]
    }

    /// Lists the inputs that a share of a sample can come to, and gives how many they are.
    pub fn live(self, sample: usize, list: &mut [usize]) -> usize {
        let mut count = 0;
        for i in 0..list.len() {
            let mut any = false;
            for term in &self.ruled.terms {
                any |= self.u_of(term, sample).is_none_or(|u| u[i] != T::zero());
            }
            list[count] = i;
            count += usize::from(any);
        }
        count
    }

    /// The listed rows of A of one sample, outputs x their number, into `out`. Cost: that size for each term.
    pub fn rows(self, sample: usize, listed: &[usize], out: &mut [T], buffers: &mut Buffers<T>) {
        self.form(sample, out, buffers, |v, u, t, out| v.add_scaled_inputs(listed, u, t, out));
    }

    /// The listed columns of A of one sample, inputs x their number, into `out`. Cost: that size for each term.
    pub fn columns(self, sample: usize, listed: &[usize], out: &mut [T], buffers: &mut Buffers<T>) {
        self.form(sample, out, buffers, |v, u, t, out| v.add_scaled_outputs(listed, u, t, out));
    }

    /// What `add` makes of each term for one sample, from zero.
    fn form(self, sample: usize, out: &mut [T], buffers: &mut Buffers<T>, add: impl Fn(&dyn LinearMap<T>, &[T], &[T], &mut [T])) {
        out.fill(T::zero());
        let mut ones = buffers.values.take(self.ruled.inputs);
        ones.fill(T::one());
        for term in &self.ruled.terms {
            add(self.ruled.map(term.v), self.u_of(term, sample).unwrap_or(&ones), self.t_of(term, sample), out);
        }
        buffers.values.give(ones);
    }

    /// Aᵀ X for one sample: `x` has columns of `inputs` values, `out` of `outputs`.
    /// Cost: for each column and term the map's product, less the inputs where u is 0.
    pub fn apply_transposed(self, sample: usize, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        self.sum(out, buffers, |term, out, _| {
            match self.u_of(term, sample) {
                Some(u) => self.ruled.map(term.v).apply_scaled(u, x, out),
                None => self.ruled.map(term.v).apply(x, out),
            }
            layer::scale_columns(out, self.t_of(term, sample), self.ruled.outputs);
        });
    }

    /// A X for all samples: `x` has as many columns of `outputs` values for each as for any other, `out` those of `inputs`.
    /// Cost: as [`apply_transposed`](Self::apply_transposed).
    pub fn apply(self, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        self.sum(out, buffers, |term, out, buffers| {
            let mut scaled = buffers.values.take(x.len());
            scaled.copy_from_slice(x);
            layer::scale_columns(&mut scaled, self.t(term), self.ruled.outputs);
            match self.u(term) {
                // As where a rule has a term for outputs of one sign, and those of the other are shut.
                _ if linalg::max_abs(&scaled) == T::zero() => out.fill(T::zero()),
                Some(u) => self.ruled.map(term.v).apply_transposed_scaled(&scaled, u, out),
                None => self.ruled.map(term.v).apply_transposed(&scaled, out),
            }
            buffers.values.give(scaled);
        });
    }

    /// The sum of what `product` makes of each term.
    fn sum(self, out: &mut [T], buffers: &mut Buffers<T>, product: impl Fn(&Term, &mut [T], &mut Buffers<T>)) {
        let Some((first, others)) = self.ruled.terms.split_first() else {
            return out.fill(T::zero());
        };
        product(first, out, buffers);
        for term in others {
            let mut next = buffers.values.take(out.len());
            product(term, &mut next, buffers);
            add(out, &next);
            buffers.values.give(next);
        }
    }
}

fn add<T: Scalar>(sum: &mut [T], values: &[T]) {
    for (sum, &v) in sum.iter_mut().zip(values) {
        *sum += v;
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
