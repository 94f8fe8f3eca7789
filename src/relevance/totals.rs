//! The totals of a rule's numerators, the reciprocals t that follow from them, and the sinks.

use std::sync::Arc;

use super::Cause;
use super::shares::TermShares;
use super::terms::{Division, Quotient, Scale, Term, Terms, Weights};
use crate::buffer::{Buffer, Buffers};
use crate::layer::{self, Bias};
use crate::linalg;
use crate::rule::{BiasMode, Gate, InputFactor, Stabilizer};
use crate::scalar::Scalar;

/// The mark of an output whose total is 0, so that no shares are defined. It is stored in place of
/// t = c / total: as a negative zero, which multiplies like 0 and which no quotient gives, because
/// totals are finite.
pub(super) struct Undefined;

impl Undefined {
    fn mark<T: Scalar>() -> T {
        -T::zero()
    }

    pub fn is<T: Scalar>(t: T) -> bool {
        t == T::zero() && t.is_sign_negative()
    }
}

impl<T: Scalar> Terms<T> {
    /// Computes the shares of the node that the pass leaves.
    ///
    /// `z` are the layer's inputs and `product` is W z, samples as columns.
    pub fn shares(
        self: &Arc<Self>,
        z: Buffer<T>,
        product: &[T],
        buffers: &mut Buffers<T>,
    ) -> TermShares<T> {
        let (samples, outputs) = (product.len() / self.outputs, product.len());
        let mut mapped = buffers.values.take(self.mapped.len() * z.len());
        for (input, mapped) in self.mapped.iter().zip(mapped.chunks_exact_mut(z.len().max(1))) {
            match input {
                InputFactor::Of(transform) => {
                    mapped.iter_mut().zip(&*z).for_each(|(u, &z)| *u = transform.value(z));
                }
                InputFactor::Fixed(values) => {
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
            layer::add_bias(self.own.bias(), &mut y);
        }
        let mut rows = SinkRows { causes: &self.stored, outputs: self.outputs, rows: &mut stored };
        // The totals of a group that the next one completes, without the bias.
        let is_completed = |number: usize| {
            self.groups.get(number + 1).is_some_and(|next| next.completes.is_some())
        };
        let completed = (0..self.groups.len()).any(is_completed);
        let mut before = buffers.values.take(if completed { outputs } else { 0 });
        let of_others = self.groups.iter().any(|group| group.total_of.is_some());
        let mut numerators = buffers.values.take(if of_others { outputs } else { 0 });
        for (number, group) in self.groups.iter().enumerate() {
            let own_terms = &self.list[group.terms.clone()];
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
        self.add_rests(samples, &y, &mut rows);
        for buffer in [numerators, before, y, total] {
            buffers.values.give(buffer);
        }
        TermShares { terms: self.clone(), samples, z, mapped, t, epsilons, stored }
    }

    /// Adds what the groups' coefficients leave over to the sinks.
    fn add_rests(&self, samples: usize, y: &[T], rows: &mut SinkRows<'_, T>) {
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
pub(super) struct SinkRows<'a, T> {
    causes: &'a [Cause],
    outputs: usize,
    rows: &'a mut [T],
}

impl<T: Scalar> SinkRows<'_, T> {
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

impl<T: Scalar> Quotient<T> {
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
        stored: &mut SinkRows<'_, T>,
    ) {
        let (outputs, c) = (stored.outputs, self.coefficient);
        for (sample, (totals, t)) in
            total.chunks_exact(outputs).zip(t.chunks_exact_mut(outputs)).enumerate()
        {
            let y = y.get(sample * outputs..(sample + 1) * outputs).unwrap_or(totals);
            epsilons[sample] = match self.divisor {
                Division::Total(stabilizer) => epsilon(stabilizer, totals),
                Division::FanIn | Division::One => T::zero(),
            };
            match self.divisor {
                Division::Total(_) => self.divide_by_total(epsilons[sample], totals, t),
                // An output without inputs (a window inside the padding) has a total of 0, so all
                // of it is rest.
                Division::FanIn => {
                    t.iter_mut().zip(&self.fan_in).for_each(|(t, &n)| *t = c / n.max(T::one()));
                }
                Division::One => t.fill(c),
            }
            self.shut_gates(y, t);
            if !matches!(self.divisor, Division::Total(_)) {
                // The shares need not sum to the coefficient.
                let due = |j: usize| if self.is_open(y[j]) { c } else { T::zero() };
                stored.add(Cause::Rest, sample, |j| due(j) - totals[j] * t[j]);
            }
        }
    }

    /// Computes t = c / S(total), which is [`Undefined`] if the total is 0 and there is no
    /// stabilizer.
    fn divide_by_total(&self, epsilon: T, totals: &[T], t: &mut [T]) {
        let (c, zero) = (self.coefficient, T::zero());
        let loses = self.loses(epsilon);
        linalg::zip_parts(t, totals, |_, t, totals| {
            for (t, &total) in t.iter_mut().zip(totals) {
                // S(total), where a total of 0 counts as positive.
                let stabilized = total + if total < zero { -epsilon } else { epsilon };
                *t = if loses && total == zero { Undefined::mark() } else { c / stabilized };
            }
        });
    }

    /// Sets t to 0 where the gate is closed.
    fn shut_gates(&self, y: &[T], t: &mut [T]) {
        if self.gate != Gate::Always {
            linalg::zip_parts(t, y, |_, t, y| {
                for (t, &y) in t.iter_mut().zip(y) {
                    *t = if self.is_open(y) { *t } else { T::zero() };
                }
            });
        }
    }

    /// Whether the gate is open for this output. If it is 0, both gates are closed.
    fn is_open(&self, y: T) -> bool {
        match self.gate {
            Gate::Always => true,
            Gate::Positive => y > T::zero(),
            Gate::Negative => y < T::zero(),
        }
    }

    /// Whether a total of 0 means that no shares are defined.
    fn loses(&self, epsilon: T) -> bool {
        matches!(self.divisor, Division::Total(_)) && (self.one_sign || epsilon == T::zero())
    }

    /// The sinks that follow from t, with their causes.
    pub fn sinks(&self, epsilon: T) -> impl Iterator<Item = (Cause, SinkShare<'_, T>)> {
        let bias = self.sink_bias.as_ref().map(|(bias, each)| Bias::per_channel(bias, *each));
        let signed = if self.coefficient < T::zero() { -epsilon } else { epsilon };
        let stabilizer =
            (epsilon != T::zero()).then_some((Cause::Stabilizer, SinkShare::Magnitude(signed)));
        let lost = if self.one_sign { Cause::Empty } else { Cause::Dead };
        let lost = self.loses(epsilon).then_some((lost, SinkShare::Lost(self.coefficient)));
        bias.map(|bias| (Cause::Bias, SinkShare::Times(bias)))
            .into_iter()
            .chain(stabilizer)
            .chain(lost)
    }
}

/// How the share of a sink follows from t.
pub(super) enum SinkShare<'a, T> {
    /// t times the bias.
    Times(Bias<'a, T>),
    /// |t| times this value.
    Magnitude(T),
    /// This value where t is [`Undefined`].
    Lost(T),
}

impl<T: Scalar> SinkShare<'_, T> {
    /// The value of the sink in the product with a column x.
    pub fn sum(&self, t: &[T], x: &[T]) -> f64 {
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
                let lost = t.iter().zip(x).filter(|(t, _)| Undefined::is(**t));
                lost.map(|(_, x)| x.as_f64()).sum::<f64>() * c.as_f64()
            }
        }
    }
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

/// √(mean t²), without overflow.
fn root_mean_square<T: Scalar>(totals: &[T]) -> T {
    let max = totals.iter().fold(T::zero(), |max, t| max.max(t.abs()));
    if max == T::zero() {
        return max;
    }
    let sum: T = totals.iter().map(|&t| (t / max) * (t / max)).sum();
    max * (sum / T::from_f64(totals.len() as f64)).sqrt()
}
