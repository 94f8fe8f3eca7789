//! Factors: one layer's share matrix at the current samples.

use crate::accumulate::{Cause, Label};
use crate::error::Error;
use crate::layer::{self, LinearMap};
use crate::rule::{BiasMode, Decomposition, Divisor, RelevanceRule, Site, Stabilizer, Transform};
use crate::scalar::Scalar;
use crate::sequential::Leaving;

/// A rule at one layer, with all that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Prepared<T: Scalar> {
    groups: Vec<PreparedGroup<T>>,
    /// What the coefficients lack of 1.
    rest: T,
}

#[derive(Debug)]
struct PreparedGroup<T: Scalar> {
    coefficient: T,
    parts: Vec<(Transform<T>, Weights<T>)>,
    /// The transformed bias, and the ones and fan-in by which it is distributed if it is.
    bias: Option<Vec<T>>,
    bias_mode: BiasMode,
    divisor: Divisor,
    ones: Option<Box<dyn LinearMap<T>>>,
    fan_in: Vec<T>,
}

/// V: the layer's weights after a transform.
#[derive(Debug)]
enum Weights<T: Scalar> {
    Own,
    Other(Box<dyn LinearMap<T>>),
}

/// A = Σ diag(u) V diag(t) for each sample, and the sinks as rows below it.
pub(crate) struct Factor<'a, T: Scalar> {
    pub layer: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// z, samples as columns.
    z: Vec<T>,
    terms: Vec<Term<'a, T>>,
    /// One share for each output and sample.
    pub sinks: Vec<(Label, Vec<T>)>,
}

struct Term<'a, T: Scalar> {
    u: Scale<T>,
    v: &'a dyn LinearMap<T>,
    t: Vec<T>,
}

/// u = f(z).
enum Scale<T> {
    Inputs,
    Ones,
    Values(Vec<T>),
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
        let rest = groups.iter().fold(T::one(), |rest, group| rest - group.coefficient);
        let mut prepared = Vec::with_capacity(groups.len());
        for group in groups {
            match group.divisor {
                Divisor::FanIn if group.bias_mode == BiasMode::Absorb => {
                    return Err(refuse("a divisor that is no total cannot absorb the bias"));
                }
                Divisor::FanIn => {}
                Divisor::Total(Stabilizer::Absolute(epsilon) | Stabilizer::RelativeToRms(epsilon)) => {
                    // The reciprocal of a smaller one is infinite.
                    if !(T::from_f64(epsilon) >= T::min_positive_value() && T::from_f64(epsilon).is_finite()) {
                        return Err(refuse(&format!("the stabilizer {epsilon:?} is outside the number type's range")));
                    }
                }
            }
            let parts = group.parts.into_iter().map(|part| {
                let weights = match &part.weight {
                    Transform::Identity => Weights::Own,
                    Transform::One => Weights::Other(map.ones()),
                    other => Weights::Other(map.map_weights(&|w| other.value(w))),
                };
                (part.input, weights)
            });
            let distributes = group.bias_mode == BiasMode::Distribute && map.bias().is_some();
            let counts = distributes || group.divisor == Divisor::FanIn;
            let fan_in = if counts { layer::fan_in(map) } else { Vec::new() };
            let mut bias: Option<Vec<T>> = match group.bias_mode {
                BiasMode::Ignore => None,
                _ => map.bias().map(|bias| bias.iter().map(|&b| group.bias.value(b)).collect()),
            };
            if let (BiasMode::Distribute, Some(bias)) = (group.bias_mode, &mut bias) {
                // An output without inputs (a window in the padding) has nobody to give its bias to.
                bias.iter_mut().zip(&fan_in).filter(|(_, n)| **n == T::zero()).for_each(|(b, _)| *b = T::zero());
            }
            prepared.push(PreparedGroup {
                coefficient: group.coefficient,
                parts: parts.collect(),
                bias,
                bias_mode: group.bias_mode,
                divisor: group.divisor,
                ones: distributes.then(|| map.ones()),
                fan_in,
            });
        }
        Ok(Self { groups: prepared, rest })
    }

    /// The factor of the layer that the pass leaves; `product` is W z.
    pub fn factor<'a>(&'a self, leaving: Leaving<'a, T>, product: &[T]) -> Factor<'a, T> {
        let Leaving { layer, map, inputs: z } = leaving;
        let (inputs, outputs) = (map.inputs(), map.outputs());
        let mut factor = Factor { layer, inputs, outputs, z, terms: Vec::new(), sinks: Vec::new() };
        for group in &self.groups {
            group.add_to(&mut factor, map, product);
        }
        if self.rest != T::zero() {
            factor.add_sink(Cause::Rest, vec![self.rest; product.len()]);
        }
        factor
    }
}

impl<T: Scalar> PreparedGroup<T> {
    fn add_to<'a>(&'a self, factor: &mut Factor<'a, T>, map: &'a dyn LinearMap<T>, product: &[T]) {
        let mut total = vec![T::zero(); product.len()];
        let mut scales = Vec::with_capacity(self.parts.len());
        for (input, weights) in &self.parts {
            let u = match input {
                Transform::Identity => Scale::Inputs,
                Transform::One => Scale::Ones,
                other => Scale::Values(factor.z.iter().map(|&z| other.value(z)).collect()),
            };
            if let (Scale::Inputs, Weights::Own) = (&u, weights) {
                // The forward pass has made this product already.
                add(&mut total, product);
            } else {
                let ones;
                let scaled = match &u {
                    Scale::Inputs => &factor.z,
                    Scale::Values(values) => values,
                    Scale::Ones => {
                        ones = vec![T::one(); factor.z.len()];
                        &ones
                    }
                };
                let mut numerators = vec![T::zero(); product.len()];
                weights.of(map).apply(scaled, &mut numerators);
                add(&mut total, &numerators);
            }
            scales.push((u, weights.of(map)));
        }
        layer::add_bias(self.bias.as_deref(), &mut total);

        let t = match self.divisor {
            Divisor::Total(stabilizer) => self.divide_by_total(factor, stabilizer, &total),
            Divisor::FanIn => self.divide_by_fan_in(factor, &total),
        };
        if let (Some(ones), Some(bias)) = (&self.ones, &self.bias) {
            let share = bias.iter().zip(&self.fan_in).map(|(&b, &n)| b / n.max(T::one()));
            let t = t.iter().zip(share.cycle()).map(|(&t, b)| t * b).collect();
            factor.terms.push(Term { u: Scale::Ones, v: &**ones, t });
        }
        factor.terms.extend(scales.into_iter().map(|(u, v)| Term { u, v, t: t.clone() }));
    }

    /// t = c / S(total), with the stabiliser's, the bias's and the dead totals' shares as sinks.
    fn divide_by_total(&self, factor: &mut Factor<'_, T>, stabilizer: Stabilizer, total: &[T]) -> Vec<T> {
        let c = self.coefficient;
        let mut t = vec![T::zero(); total.len()];
        let mut stabilised = vec![T::zero(); total.len()];
        let mut dead = vec![T::zero(); total.len()];
        let mut any_dead = false;
        for (sample, totals) in total.chunks_exact(factor.outputs).enumerate() {
            let epsilon = match stabilizer {
                Stabilizer::Absolute(epsilon) => T::from_f64(epsilon),
                Stabilizer::RelativeToRms(epsilon) => match root_mean_square(totals) {
                    rms if rms == T::zero() => rms,
                    rms => (T::from_f64(epsilon) * rms).max(T::min_positive_value()),
                },
            };
            for (j, &total) in totals.iter().enumerate() {
                let at = sample * factor.outputs + j;
                let epsilon = if total < T::zero() { -epsilon } else { epsilon };
                let divisor = total + epsilon;
                if divisor == T::zero() {
                    dead[at] = c;
                    any_dead = true;
                } else {
                    t[at] = c / divisor;
                    stabilised[at] = c * (epsilon / divisor);
                }
            }
        }
        if let (Some(bias), BiasMode::Absorb) = (&self.bias, self.bias_mode) {
            let shares = t.iter().zip(bias.iter().cycle()).map(|(&t, &b)| t * b).collect();
            factor.add_sink(Cause::Bias, shares);
        }
        factor.add_sink(Cause::Stabilizer, stabilised);
        if any_dead {
            factor.add_sink(Cause::Dead, dead);
        }
        t
    }

    /// t = c / n, with what the shares lack of c as the rest.
    fn divide_by_fan_in(&self, factor: &mut Factor<'_, T>, total: &[T]) -> Vec<T> {
        let c = self.coefficient;
        // An output without inputs (a window in the padding) has nothing to share: its total is 0, all of it is rest.
        let t: Vec<T> = self.fan_in.iter().map(|&n| c / n.max(T::one())).cycle().take(total.len()).collect();
        factor.add_sink(Cause::Rest, total.iter().zip(&t).map(|(&total, &t)| c - total * t).collect());
        t
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

impl<T: Scalar> Factor<'_, T> {
    /// How many samples the factor is for.
    pub fn samples(&self) -> usize {
        self.z.len() / self.inputs
    }

    fn add_sink(&mut self, cause: Cause, shares: Vec<T>) {
        let label = Label { layer: self.layer, cause };
        match self.sinks.iter_mut().find(|(l, _)| *l == label) {
            Some((_, row)) => add(row, &shares),
            None => self.sinks.push((label, shares)),
        }
    }

    /// u of a term for every sample, `None` for ones.
    fn u<'b>(&'b self, term: &'b Term<'_, T>) -> Option<&'b [T]> {
        match &term.u {
            Scale::Inputs => Some(&self.z),
            Scale::Ones => None,
            Scale::Values(u) => Some(u),
        }
    }

    /// Aᵀ of one sample, outputs x inputs, into `out`, which is all zeros.
    pub fn transposed_matrix(&self, sample: usize, out: &mut [T]) {
        let ones = vec![T::one(); self.inputs];
        for term in &self.terms {
            let u = self.u(term).map_or(&ones[..], |u| &u[sample * self.inputs..][..self.inputs]);
            term.v.add_scaled_matrix(u, &term.t[sample * self.outputs..][..self.outputs], out);
        }
    }

    /// Aᵀ X: `x` has `columns` columns of `inputs` values for each sample.
    pub fn apply_transposed(&self, x: &[T], columns: usize) -> Vec<T> {
        self.sum(self.outputs * columns, |term, out| {
            let scaled = self.u(term).map(|u| scaled(x, u, self.inputs, columns));
            term.v.apply(scaled.as_deref().unwrap_or(x), out);
            scale(out, &term.t, self.outputs, columns);
        })
    }

    /// A X: `x` has `columns` columns of `outputs` values for each sample.
    pub fn apply(&self, x: &[T], columns: usize) -> Vec<T> {
        self.sum(self.inputs * columns, |term, out| {
            term.v.apply_transposed(&scaled(x, &term.t, self.outputs, columns), out);
            if let Some(u) = self.u(term) {
                scale(out, u, self.inputs, columns);
            }
        })
    }

    /// The sum of what `product` makes of each term, `size` values a sample.
    fn sum(&self, size: usize, product: impl Fn(&Term<'_, T>, &mut [T])) -> Vec<T> {
        let mut sum = vec![T::zero(); size * self.samples()];
        let mut next = Vec::new();
        for (k, term) in self.terms.iter().enumerate() {
            if k == 0 {
                product(term, &mut sum);
            } else {
                next.resize(sum.len(), T::zero());
                product(term, &mut next);
                add(&mut sum, &next);
            }
        }
        sum
    }
}

/// Multiplies each of a sample's `columns` columns by that sample's column of `by`, entry by entry.
fn scale<T: Scalar>(values: &mut [T], by: &[T], rows: usize, columns: usize) {
    for (values, by) in values.chunks_exact_mut(rows * columns).zip(by.chunks_exact(rows)) {
        for column in values.chunks_exact_mut(rows) {
            for (v, &by) in column.iter_mut().zip(by) {
                *v *= by;
            }
        }
    }
}

fn scaled<T: Scalar>(values: &[T], by: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut values = values.to_vec();
    scale(&mut values, by, rows, columns);
    values
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
