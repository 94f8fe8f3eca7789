//! Factors: one layer's share matrix at the current samples.

use crate::accumulate::Cause;
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::layer::{self, LinearMap};
use crate::rule::{BiasMode, Decomposition, Divisor, RelevanceRule, Site, Stabilizer, Transform};
use crate::scalar::Scalar;
use crate::sequential::Leaving;

/// A rule at one layer, with all that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Prepared<T: Scalar> {
    pub layer: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// Why relevance leaves at this layer: one row of sinks each.
    pub causes: Vec<Cause>,
    groups: Vec<PreparedGroup<T>>,
    /// A = Σ diag(u) V diag(t).
    terms: Vec<Term<T>>,
    /// The inputs' transforms, beside the identity and 1, of which a u is made.
    transforms: Vec<Transform<T>>,
    /// How many t there are.
    scales: usize,
    /// What the coefficients lack of 1.
    rest: T,
}

#[derive(Debug)]
struct PreparedGroup<T: Scalar> {
    coefficient: T,
    /// The group's among the terms.
    terms: std::ops::Range<usize>,
    /// Which t is theirs; that of a distributed bias is the one behind it.
    t: usize,
    /// The transformed bias, and the fan-in by which it is distributed if it is.
    bias: Option<Vec<T>>,
    bias_mode: BiasMode,
    divisor: Divisor,
    fan_in: Vec<T>,
}

#[derive(Debug)]
struct Term<T: Scalar> {
    u: Scale,
    v: Weights<T>,
    /// Which of the factor's t.
    t: usize,
}

/// u = f(z).
#[derive(Debug, Clone, Copy)]
enum Scale {
    Inputs,
    Ones,
    /// By one of the transforms.
    Mapped(usize),
}

/// V: the layer's weights after a transform.
#[derive(Debug)]
enum Weights<T: Scalar> {
    Own,
    Other(Box<dyn LinearMap<T>>),
}

/// The numbers of A = Σ diag(u) V diag(t) for some samples, and the sinks as rows below it. The V stand in [`Prepared`].
#[derive(Debug)]
pub(crate) struct Factor<T> {
    /// The layer's place among the linear layers.
    pub linear: usize,
    pub samples: usize,
    /// z, samples as columns.
    z: Buffer<T>,
    /// f(z) for each transform, samples as columns.
    mapped: Buffer<T>,
    /// Each t, samples as columns.
    t: Buffer<T>,
    /// For each sample and cause, one share for each output.
    pub sinks: Buffer<T>,
}

impl<T: Scalar> Prepared<T> {
    pub fn new(rule: &dyn RelevanceRule<T>, site: &Site<'_>, map: &dyn LinearMap<T>) -> Result<Self, Error> {
        let Decomposition { groups } = rule.decompose(site)?;
        let refuse = |reason: &str| Error::Unsupported {
            rule: rule.name(),
            layer: site.layer,
            kind: site.kind.to_owned(),
            reason: reason.to_owned(),
        };
        let mut prepared = Self {
            layer: site.layer,
            inputs: site.inputs,
            outputs: site.outputs,
            causes: Vec::new(),
            groups: Vec::with_capacity(groups.len()),
            terms: Vec::new(),
            transforms: Vec::new(),
            scales: 0,
            rest: groups.iter().fold(T::one(), |rest, group| rest - group.coefficient),
        };
        for group in groups {
            check_divisor::<T>(group.divisor, group.bias_mode).map_err(|reason| refuse(&reason))?;
            let (first, own) = (prepared.terms.len(), prepared.scales);
            prepared.scales += 1;
            for part in group.parts {
                let v = match &part.weight {
                    Transform::Identity => Weights::Own,
                    Transform::One => Weights::Other(map.ones()),
                    other => Weights::Other(map.map_weights(&|w| other.value(w))),
                };
                let u = match part.input {
                    Transform::Identity => Scale::Inputs,
                    Transform::One => Scale::Ones,
                    other => {
                        prepared.transforms.push(other);
                        Scale::Mapped(prepared.transforms.len() - 1)
                    }
                };
                prepared.terms.push(Term { u, v, t: own });
            }
            let terms = first..prepared.terms.len();
            let distributes = group.bias_mode == BiasMode::Distribute && map.bias().is_some();
            let counts = distributes || group.divisor == Divisor::FanIn;
            let fan_in = if counts { layer::fan_in(map) } else { Vec::new() };
            let mut bias: Option<Vec<T>> = match group.bias_mode {
                BiasMode::Ignore => None,
                _ => map.bias().map(|bias| bias.iter().map(|&b| group.bias.value(b)).collect()),
            };
            if let (true, Some(bias)) = (distributes, &mut bias) {
                // An output without inputs (a window in the padding) has nobody to give its bias to.
                bias.iter_mut().zip(&fan_in).filter(|(_, n)| **n == T::zero()).for_each(|(b, _)| *b = T::zero());
                prepared.terms.push(Term { u: Scale::Ones, v: Weights::Other(map.ones()), t: own + 1 });
                prepared.scales += 1;
            }
            let of_divisor = match group.divisor {
                Divisor::Total(stabilizer) => {
                    let absorbed = (group.bias_mode == BiasMode::Absorb && bias.is_some()).then_some(Cause::Bias);
                    // Where all totals are 0, so is a stabiliser that is relative to them.
                    let dead = matches!(stabilizer, Stabilizer::RelativeToRms(_)).then_some(Cause::Dead);
                    [absorbed, Some(Cause::Stabilizer), dead]
                }
                Divisor::FanIn => [Some(Cause::Rest), None, None],
            };
            of_divisor.into_iter().flatten().for_each(|cause| prepared.add_cause(cause));
            prepared.groups.push(PreparedGroup {
                coefficient: group.coefficient,
                terms,
                t: own,
                bias,
                bias_mode: group.bias_mode,
                divisor: group.divisor,
                fan_in,
            });
        }
        if prepared.rest != T::zero() {
            prepared.add_cause(Cause::Rest);
        }
        Ok(prepared)
    }

    fn add_cause(&mut self, cause: Cause) {
        if !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }

    /// What all terms cost for one column, and how many they are.
    pub fn cost(&self, map: &dyn LinearMap<T>) -> (f64, usize) {
        (self.terms.iter().map(|term| term.v.of(map).multiply_adds()).sum(), self.terms.len())
    }

    /// The factor of the layer that the pass leaves.
    pub fn factor(&self, leaving: Leaving<'_, T>, buffers: &mut Buffers<T>) -> Factor<T> {
        let Leaving { linear, map, inputs: z, product } = leaving;
        let (samples, outputs) = (product.len() / self.outputs, product.len());
        let mut mapped = buffers.values.take(self.transforms.len() * z.len());
        for (transform, mapped) in self.transforms.iter().zip(mapped.chunks_exact_mut(z.len().max(1))) {
            mapped.iter_mut().zip(&*z).for_each(|(u, &z)| *u = transform.value(z));
        }
        let mut t = buffers.values.take(self.scales * outputs);
        let mut sinks = buffers.values.take(self.causes.len() * outputs);
        sinks.fill(T::zero());
        let mut total = buffers.values.take(outputs);
        let mut numerators = buffers.values.take(outputs);
        for group in &self.groups {
            total.fill(T::zero());
            for term in &self.terms[group.terms.clone()] {
                if let (Scale::Inputs, Weights::Own) = (term.u, &term.v) {
                    // The forward pass has made this product already.
                    add(&mut total, product);
                    continue;
                }
                match term.u {
                    Scale::Inputs => term.v.of(map).apply(&z, &mut numerators),
                    Scale::Mapped(k) => term.v.of(map).apply(&mapped[k * z.len()..][..z.len()], &mut numerators),
                    Scale::Ones => {
                        let mut ones = buffers.values.take(z.len());
                        ones.fill(T::one());
                        term.v.of(map).apply(&ones, &mut numerators);
                        buffers.values.give(ones);
                    }
                }
                add(&mut total, &numerators);
            }
            layer::add_bias(group.bias.as_deref(), &mut total);
            let (own, rest) = t[group.t * outputs..].split_at_mut(outputs);
            group.divide(&total, own, &mut Sinks { causes: &self.causes, outputs: self.outputs, rows: &mut sinks });
            if group.distributes() {
                let shares = group.bias.iter().flatten().zip(&group.fan_in).map(|(&b, &n)| b / n.max(T::one())).cycle();
                rest.iter_mut().zip(own).zip(shares).for_each(|((distributed, t), share)| *distributed = *t * share);
            }
        }
        if self.rest != T::zero() {
            let mut sinks = Sinks { causes: &self.causes, outputs: self.outputs, rows: &mut sinks };
            for sample in 0..samples {
                sinks.add(Cause::Rest, sample, |_| self.rest);
            }
        }
        buffers.values.give(numerators);
        buffers.values.give(total);
        Factor { linear, samples, z, mapped, t, sinks }
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
    fn add(&mut self, cause: Cause, sample: usize, share: impl Fn(usize) -> T) {
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
        Divisor::FanIn if bias == BiasMode::Absorb => Err("a divisor that is no total cannot absorb the bias".to_owned()),
        Divisor::FanIn => Ok(()),
        Divisor::Total(Stabilizer::Absolute(epsilon) | Stabilizer::RelativeToRms(epsilon)) => {
            // The reciprocal of a smaller one is infinite.
            if T::from_f64(epsilon) >= T::min_positive_value() && T::from_f64(epsilon).is_finite() {
                return Ok(());
            }
            Err(format!("the stabilizer {epsilon:?} is outside the number type's range"))
        }
    }
}

impl<T: Scalar> PreparedGroup<T> {
    fn distributes(&self) -> bool {
        self.bias_mode == BiasMode::Distribute && self.bias.is_some()
    }

    /// t = c / d, with what does not go to the inputs as sinks.
    fn divide(&self, total: &[T], t: &mut [T], sinks: &mut Sinks<'_, T>) {
        let (outputs, c) = (sinks.outputs, self.coefficient);
        for (sample, (totals, t)) in total.chunks_exact(outputs).zip(t.chunks_exact_mut(outputs)).enumerate() {
            match self.divisor {
                Divisor::Total(stabilizer) => self.divide_by_total(stabilizer, sample, totals, t, sinks),
                Divisor::FanIn => {
                    // An output without inputs (a window in the padding) has nothing to share: its total is 0, all of it
                    // is rest.
                    t.iter_mut().zip(&self.fan_in).for_each(|(t, &n)| *t = c / n.max(T::one()));
                    sinks.add(Cause::Rest, sample, |j| c - totals[j] * t[j]);
                }
            }
        }
    }

    /// t = c / S(total), with the stabiliser's, the bias's and the dead totals' shares as sinks.
    fn divide_by_total(&self, stabilizer: Stabilizer, sample: usize, totals: &[T], t: &mut [T], sinks: &mut Sinks<'_, T>) {
        let c = self.coefficient;
        let epsilon = match stabilizer {
            Stabilizer::Absolute(epsilon) => T::from_f64(epsilon),
            Stabilizer::RelativeToRms(epsilon) => match root_mean_square(totals) {
                rms if rms == T::zero() => rms,
                rms => (T::from_f64(epsilon) * rms).max(T::min_positive_value()),
            },
        };
        if epsilon == T::zero() {
            // They are all 0, and nothing keeps them from it.
            t.fill(T::zero());
            return sinks.add(Cause::Dead, sample, |_| c);
        }
        let signed = |total: T| if total < T::zero() { -epsilon } else { epsilon };
        t.iter_mut().zip(totals).for_each(|(t, &total)| *t = c / (total + signed(total)));
        sinks.add(Cause::Stabilizer, sample, |j| t[j] * signed(totals[j]));
        if let Some(bias) = self.bias.as_ref().filter(|_| self.bias_mode == BiasMode::Absorb) {
            sinks.add(Cause::Bias, sample, |j| t[j] * bias[j]);
        }
    }
}

impl<T: Scalar> Weights<T> {
    fn of<'a>(&'a self, own: &'a dyn LinearMap<T>) -> &'a dyn LinearMap<T> {
        match self {
            Self::Own => own,
            Self::Other(map) => &**map,
        }
    }
}

/// A factor with the maps that it is made of.
#[derive(Clone, Copy)]
pub(crate) struct Linked<'a, T: Scalar> {
    pub factor: &'a Factor<T>,
    pub prepared: &'a Prepared<T>,
    pub map: &'a dyn LinearMap<T>,
}

impl<T: Scalar> Factor<T> {
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        for buffer in [self.sinks, self.t, self.mapped, self.z] {
            buffers.values.give(buffer);
        }
    }
}

impl<'a, T: Scalar> Linked<'a, T> {
    /// u of a term for every sample, `None` for ones.
    fn u(self, term: &Term<T>) -> Option<&'a [T]> {
        let Factor { z, mapped, .. } = self.factor;
        match term.u {
            Scale::Inputs => Some(z),
            Scale::Ones => None,
            Scale::Mapped(k) => Some(&mapped[k * z.len()..][..z.len()]),
        }
    }

    fn t(self, term: &Term<T>) -> &'a [T] {
        let size = self.factor.samples * self.prepared.outputs;
        &self.factor.t[term.t * size..][..size]
    }

    fn u_of(self, term: &Term<T>, sample: usize) -> Option<&'a [T]> {
        self.u(term).map(|u| &u[sample * self.prepared.inputs..][..self.prepared.inputs])
    }

    fn t_of(self, term: &Term<T>, sample: usize) -> &'a [T] {
        &self.t(term)[sample * self.prepared.outputs..][..self.prepared.outputs]
    }

    /// Lists the inputs that a share of a sample can come to, and gives how many they are.
    pub fn live(self, sample: usize, list: &mut [usize]) -> usize {
        let mut count = 0;
        for i in 0..list.len() {
            let mut any = false;
            for term in &self.prepared.terms {
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
        let mut ones = buffers.values.take(self.prepared.inputs);
        ones.fill(T::one());
        for term in &self.prepared.terms {
            add(term.v.of(self.map), self.u_of(term, sample).unwrap_or(&ones), self.t_of(term, sample), out);
        }
        buffers.values.give(ones);
    }

    /// Aᵀ X for one sample: `x` has columns of `inputs` values, `out` of `outputs`.
    /// Cost: for each column and term the map's product, less the inputs where u is 0.
    pub fn apply_transposed(self, sample: usize, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        self.sum(out, buffers, |term, out, _| {
            match self.u_of(term, sample) {
                Some(u) => term.v.of(self.map).apply_scaled(u, x, out),
                None => term.v.of(self.map).apply(x, out),
            }
            layer::scale_columns(out, self.t_of(term, sample), self.prepared.outputs);
        });
    }

    /// A X for all samples: `x` has as many columns of `outputs` values for each as for any other, `out` those of `inputs`.
    /// Cost: as [`apply_transposed`](Self::apply_transposed).
    pub fn apply(self, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        self.sum(out, buffers, |term, out, buffers| {
            let mut scaled = buffers.values.take(x.len());
            scaled.copy_from_slice(x);
            layer::scale_columns(&mut scaled, self.t(term), self.prepared.outputs);
            match self.u(term) {
                Some(u) => term.v.of(self.map).apply_transposed_scaled(&scaled, u, out),
                None => term.v.of(self.map).apply_transposed(&scaled, out),
            }
            buffers.values.give(scaled);
        });
    }

    /// The sum of what `product` makes of each term.
    fn sum(self, out: &mut [T], buffers: &mut Buffers<T>, product: impl Fn(&Term<T>, &mut [T], &mut Buffers<T>)) {
        let Some((first, others)) = self.prepared.terms.split_first() else {
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
