//! A bound on the rounding error of a sample's shares, computed step by step alongside the shares.
//!
//! Let u be half the number type's epsilon and γ_n = n u / (1 - n u). A sum of n products is
//! accurate to γ_n times the sum of their magnitudes, in any order of summation (N. J. Higham:
//! Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). In the forward pass, this
//! gives a bound e on the error of each layer's inputs z: a layer turns e into |W| e, and adds the
//! error of the product itself. At each layer, it also bounds the error of the totals, of t = c /
//! S(total), and therefore of A = Σ diag(u) V diag(t). In the backward pass, let N be the product
//! of the |A| of the later layers, and E the bound on the error so far. Each layer updates them as
//! follows:
//!
//! ```text
//!     E ← |A| E + |ΔA| (N + E) + γ |A| N        N ← |A| N
//! ```
//!
//! If the error could change the sign of a total, only the stabilizer gives a bound: |t| <= |c| /
//! ε. See `docs/numerics.md` for the details.

use nalgebra::DMatrix;

use super::factor::{Kind, Network};
use super::ruled::{self, Division, PreparedGroup, Ruled, Scale, Shares, Term, Weights};
use crate::buffer::Buffers;
use crate::error::Error;
use crate::layer::{self, Functions, LinearMap, WeightFn};
use crate::linalg;
use crate::rule::{BiasMode, Gate, Input, Stabilizer, Transform};
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Visitor};

/// |V| for every V of a layer's factor, and |W|.
#[derive(Debug)]
pub(crate) struct Magnitudes<T: Scalar> {
    own: Box<dyn LinearMap<T>>,
    maps: Vec<Box<dyn LinearMap<T>>>,
}

impl<T: Scalar> Magnitudes<T> {
    /// The magnitudes for all factors, indexed by factor number.
    pub fn of(network: &Network<T>) -> Vec<Option<Self>> {
        let magnitudes = |map: &dyn LinearMap<T>| map.map_weights(&WeightFn::new(T::abs));
        let of_factor = |kind: &Kind<T>| match kind {
            Kind::Ruled(ruled) => Some(Self {
                own: magnitudes(&*ruled.own),
                maps: ruled.maps.iter().map(|map| magnitudes(&**map)).collect(),
            }),
            Kind::Route | Kind::Branches(_) => None,
        };
        network.factors.iter().map(|prepared| of_factor(&prepared.kind)).collect()
    }

    fn map(&self, weights: Weights) -> &dyn LinearMap<T> {
        match weights {
            Weights::Own => &*self.own,
            Weights::Other(index) => &*self.maps[index],
        }
    }
}

/// The computation of the bound, as a visitor of one sample's pass.
pub(crate) struct Rounding<'a, T: Scalar> {
    network: &'a Network<T>,
    magnitudes: &'a [Option<Magnitudes<T>>],
    /// Whether all factors are linear maps in a row. For other networks, no bound is known.
    plain: bool,
    /// A bound on the error of each of the pass's current values.
    error: Vec<T>,
    /// The linear layers that the pass has left, with their factor numbers.
    layers: Vec<(usize, Passed<T>)>,
    bounded: bool,
}

/// What is known about a linear layer once the pass has left it.
struct Passed<T> {
    /// |u| and its error for each term.
    u: Vec<[Vec<T>; 2]>,
    /// |t| and its error for each t.
    t: Vec<[Vec<T>; 2]>,
    /// Σ_i |numerators| / |S(total)| for each output.
    kappa: Vec<T>,
}

/// The resulting cancellation and error bounds.
pub(crate) struct Rounded<T> {
    /// For each linear layer, the outputs that receive relevance from a target, with their κ.
    pub kappas: Vec<Vec<(usize, T)>>,
    /// A bound on the error of each target's shares; `None` if no bound is known.
    pub bounds: Option<Vec<T>>,
}

/// γ_n, with a margin for the rounding of the bound itself.
fn gamma<T: Scalar>(n: usize) -> T {
    let rounding = n as f64 * T::epsilon().as_f64() / 2.0;
    T::from_f64(if rounding < 0.5 { 1.1 * rounding / (1.0 - rounding) } else { f64::INFINITY })
}

/// An upper bound on the number of roundings in a few operations on one number.
const FEW: usize = 8;

fn count_nonzero<T: Scalar>(values: &[T]) -> usize {
    values.iter().filter(|v| **v != T::zero()).count()
}

fn product<T: Scalar>(map: &dyn LinearMap<T>, x: &[T]) -> Vec<T> {
    let mut y = vec![T::zero(); x.len() / map.inputs() * map.outputs()];
    map.apply(x, &mut y);
    y
}

impl<T: Scalar> Visitor<T> for Rounding<'_, T> {
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error> {
        let number = leaving.factor;
        let (Kind::Ruled(ruled), Some(magnitudes)) =
            (&self.network.factors[number].kind, &self.magnitudes[number])
        else {
            buffers.values.give(leaving.inputs);
            return Ok(());
        };
        if !self.plain {
            self.error = vec![T::zero(); ruled.inputs];
        }
        self.bounded &= ruled.own.sums_products();
        let map = leaving.map;
        let z: Vec<T> = leaving.inputs.iter().map(|z| z.abs()).collect();
        // The layer's own output `y`, and `of_y`, the bound on its error.
        let mut y = leaving.product.to_vec();
        layer::add_bias(map.bias(), &mut y);
        // e ← |W| e + γ (|W| |z| + |b| + |W| e).
        let mut of_y = product(&*magnitudes.own, &self.error);
        let mut size = product(&*magnitudes.own, &z);
        map.bias().into_iter().for_each(|bias| {
            size.iter_mut().zip(bias.iter()).for_each(|(size, b)| *size += b.abs());
        });
        linalg::add_scaled(T::one(), &of_y, &mut size);
        linalg::add_scaled(gamma(count_nonzero(&z) + FEW), &size, &mut of_y);

        let shares = ruled.shares(leaving, buffers);
        let passed = self.passed(ruled, magnitudes, &shares, (&y, &of_y));
        shares.give_back(buffers);
        self.layers.push((number, passed));
        self.error = of_y;
        Ok(())
    }

    fn meet(&mut self, functions: &Functions<T>, values: &[T]) {
        if !self.plain {
            return;
        }
        self.bounded &= functions.iter().all(|function| function.steepest().is_some());
        let few = gamma::<T>(FEW);
        for (at, (error, &z)) in self.error.iter_mut().zip(values).enumerate() {
            let function = functions.at(at);
            let slope = T::from_f64(function.steepest().unwrap_or(1.0));
            let f = function.value(z);
            // There is nothing to round if f returns z or 0, which are the most common cases.
            let own = if f == z || f == T::zero() { T::zero() } else { few * (z.abs() + f.abs()) };
            // A unit that a ReLU certainly turns off is exactly 0.
            let shut = f == T::zero()
                && function.value(z + *error) == T::zero()
                && function.value(z - *error) == T::zero()
                && slope <= T::one();
            *error = if shut { T::zero() } else { slope * *error + own };
        }
    }
}

impl<'a, T: Scalar> Rounding<'a, T> {
    pub fn new(network: &'a Network<T>, magnitudes: &'a [Option<Magnitudes<T>>]) -> Self {
        let inputs = network.factors.first().map_or(0, |prepared| prepared.inputs);
        let plain = network.is_plain();
        Self {
            network,
            magnitudes,
            plain,
            error: vec![T::zero(); inputs],
            layers: Vec::new(),
            bounded: plain,
        }
    }

    fn passed(
        &mut self,
        ruled: &Ruled<T>,
        magnitudes: &Magnitudes<T>,
        shares: &Shares<T>,
        y: (&[T], &[T]),
    ) -> Passed<T> {
        let outputs = ruled.outputs;
        let u: Vec<_> = ruled.terms.iter().map(|term| self.u(ruled, shares, term)).collect();
        let t_of = |index: usize| {
            shares.t[index * outputs..][..outputs].iter().map(|t| t.abs()).collect::<Vec<T>>()
        };
        let few = gamma::<T>(FEW);
        let mut t: Vec<_> =
            (0..ruled.scales).map(|index| [t_of(index), vec![T::zero(); outputs]]).collect();
        let mut kappa = vec![T::zero(); outputs];
        // The magnitudes that the rounding error of the previous group is relative to.
        let mut before = vec![T::zero(); outputs];
        for group in &ruled.groups {
            let [of_t, error] = &mut t[group.t];
            match group.divisor {
                Division::Total(stabilizer) if group.total_of.is_none() => {
                    // The totals, the sums of their numerators' magnitudes, and the totals' errors.
                    let mut totals = vec![T::zero(); outputs];
                    let (mut size, mut error_of_totals) = (totals.clone(), totals.clone());
                    let mut summands = FEW;
                    for index in group.terms.clone() {
                        let (term, [u, error_of_u]) = (&ruled.terms[index], &u[index]);
                        let v = magnitudes.map(term.v);
                        linalg::add_scaled(T::one(), &product(v, u), &mut size);
                        linalg::add_scaled(T::one(), &product(v, error_of_u), &mut error_of_totals);
                        summands += count_nonzero(u) + 1;
                        let with_sign = u_of(ruled, shares, term);
                        linalg::add_scaled(
                            T::one(),
                            &product(ruled.map(term.v), &with_sign),
                            &mut totals,
                        );
                    }
                    if let Some(bias) = group.bias().filter(|_| group.bias_mode != BiasMode::Ignore)
                    {
                        let bias: Vec<T> = bias.iter().collect();
                        size.iter_mut().zip(&bias).for_each(|(size, b)| *size += b.abs());
                        linalg::add_scaled(T::one(), &bias, &mut totals);
                    }
                    let mut magnitude = size.clone();
                    linalg::add_scaled(T::one(), &error_of_totals, &mut magnitude);
                    if let Some(k) = group.completes {
                        // These totals were computed from the layer's own outputs and the previous
                        // group's totals.
                        let reach: Vec<T> =
                            shares.z.iter().zip(&self.error).map(|(z, &e)| z.abs() + e).collect();
                        linalg::add_scaled(T::one(), &before, &mut magnitude);
                        linalg::add_scaled(
                            k.abs(),
                            &product(&*magnitudes.own, &reach),
                            &mut magnitude,
                        );
                        summands = summands.max(count_nonzero(&reach) + FEW);
                    }
                    let delta: Vec<T> = (0..outputs)
                        .map(|j| error_of_totals[j] + gamma::<T>(summands) * magnitude[j])
                        .collect();
                    before = magnitude;
                    Self::divided(group, stabilizer, (&totals, &delta), y, of_t, error);
                    for (j, kappa) in
                        kappa.iter_mut().enumerate().filter(|(j, _)| of_t[*j] != T::zero())
                    {
                        *kappa = kappa.max(size[j] * of_t[j] / group.coefficient.abs());
                    }
                }
                Division::Total(_) => {
                    // The rounding error of totals of other parts is unknown.
                    self.bounded = false;
                    for index in group.terms.clone() {
                        let size = product(magnitudes.map(ruled.terms[index].v), &u[index][0]);
                        kappa
                            .iter_mut()
                            .zip(&size)
                            .zip(&*of_t)
                            .for_each(|((kappa, size), t)| *kappa += *size * *t);
                    }
                }
                Division::FanIn | Division::One => {
                    error.iter_mut().zip(of_t).for_each(|(error, t)| *error = few * *t);
                }
            }
            if group.distributes() {
                let own = error.clone();
                let bias = group.bias.iter().flat_map(|(bias, _)| bias);
                let shares = bias.zip(&group.fan_in).map(|(b, &n)| b.abs() / n.max(T::one()));
                let [of_t, error] = &mut t[group.t + 1];
                for ((error, t), (own, share)) in
                    error.iter_mut().zip(of_t).zip(own.iter().zip(shares))
                {
                    *error = if share == T::zero() { T::zero() } else { *own * share } + few * *t;
                }
            }
        }
        Passed { u, t, kappa }
    }

    /// The |u| of a term, and its error.
    fn u(&mut self, ruled: &Ruled<T>, shares: &Shares<T>, term: &Term) -> [Vec<T>; 2] {
        let u: Vec<T> = u_of(ruled, shares, term).iter().map(|u| u.abs()).collect();
        let few = gamma::<T>(FEW);
        let error = match term.u {
            Scale::Inputs => self.error.clone(),
            Scale::Ones => vec![T::zero(); u.len()],
            Scale::Mapped(index) => match &ruled.mapped[index] {
                Input::Of(Transform::Positive | Transform::Negative) => {
                    // An input that certainly has the other sign gives exactly 0.
                    u.iter()
                        .zip(&self.error)
                        .zip(shares.z.iter())
                        .map(|((u, &e), z)| if *u == T::zero() && z.abs() > e { *u } else { e })
                        .collect()
                }
                Input::Fixed(_) => u.iter().map(|&u| few * u).collect(),
                Input::Of(_) => {
                    // It is unknown how f propagates an error.
                    self.bounded &= self.error.iter().all(|e| *e == T::zero());
                    u.iter().map(|&u| few * u).collect()
                }
            },
        };
        [u, error]
    }

    /// The errors of a group's t = c / S(total).
    fn divided(
        group: &PreparedGroup<T>,
        stabilizer: Stabilizer,
        (totals, delta): (&[T], &[T]),
        (y, of_y): (&[T], &[T]),
        t: &[T],
        errors: &mut [T],
    ) {
        let (zero, few, c) = (T::zero(), gamma::<T>(FEW), group.coefficient.abs());
        let epsilon = ruled::epsilon(stabilizer, totals);
        // The root mean square changes by at most the largest error of the totals.
        let moved = match stabilizer {
            Stabilizer::RelativeToRms(epsilon) => {
                T::from_f64(epsilon) * delta.iter().fold(zero, |max, &d| max.max(d))
            }
            _ => zero,
        };
        let least = epsilon - moved;
        let most = if least > zero { c / least } else { T::infinity() };
        for j in 0..errors.len() {
            let gate_turns = group.gate != Gate::Always && of_y[j] > zero && y[j].abs() <= of_y[j];
            let is_open = match group.gate {
                Gate::Always => true,
                Gate::Positive => y[j] > zero,
                Gate::Negative => y[j] < zero,
            };
            let delta = delta[j] + moved;
            errors[j] = if t[j] == zero {
                // The gate is closed or no shares are defined. The error is 0 only if that is
                // certain.
                if gate_turns || is_open && delta > zero { most } else { zero }
            } else {
                // |S(total)|. Changing it by delta changes t by at most t delta / (|S| - delta).
                let divisor = c / t[j];
                let turns =
                    gate_turns || (!group.one_sign && totals[j].abs() <= delta) || divisor <= delta;
                if turns { t[j] + most } else { t[j] * (delta / (divisor - delta) + few) }
            };
        }
    }

    /// Propagates the bound back from the targets, starting from the shares of the outputs in the
    /// targets. For a weighting, these shares contain the outputs, which have rounding errors
    /// themselves.
    pub fn back(mut self, of_outputs: &DMatrix<T>, weightings: Option<&DMatrix<T>>) -> Rounded<T> {
        let (outputs, targets) = of_outputs.shape();
        // N and E of the module's formula, outputs x targets.
        let mut n: Vec<T> = of_outputs.iter().map(|share| share.abs()).collect();
        let mut e = vec![T::zero(); n.len()];
        for (at, c) in weightings.into_iter().flatten().enumerate() {
            e[at] = c.abs() * self.error[at % outputs] + gamma::<T>(FEW) * n[at];
        }
        let mut kappas = Vec::with_capacity(self.layers.len());
        let layers = std::mem::take(&mut self.layers);
        if !self.plain {
            let of_layer = |kappa: &[T]| {
                kappa.iter().copied().enumerate().filter(|(_, kappa)| *kappa != T::zero()).collect()
            };
            return Rounded {
                kappas: layers.iter().map(|(_, passed)| of_layer(&passed.kappa)).collect(),
                bounds: None,
            };
        }
        for (number, passed) in layers.iter().rev() {
            let (Kind::Ruled(prepared), Some(magnitudes)) =
                (&self.network.factors[*number].kind, &self.magnitudes[*number])
            else {
                continue;
            };
            let outputs = prepared.outputs;
            // Only these outputs take part in the sums, so only they count in γ.
            let reached = |j: &usize| (0..targets).any(|k| n[k * outputs + j] != T::zero());
            let live: Vec<usize> = (0..outputs).filter(reached).collect();
            kappas.push(
                live.iter()
                    .map(|&j| (j, passed.kappa[j]))
                    .filter(|(_, kappa)| *kappa != T::zero())
                    .collect(),
            );
            let was = n.iter().any(|n| *n != T::zero());
            let mut next = [
                vec![T::zero(); prepared.inputs * targets],
                vec![T::zero(); prepared.inputs * targets],
            ];
            for (term, [u, of_u]) in prepared.terms.iter().zip(&passed.u) {
                let [t, of_t] = &passed.t[term.t];
                let scaled = |by: &dyn Fn(usize, usize) -> T| -> Vec<T> {
                    (0..n.len()).map(|at| by(at, at % outputs)).collect()
                };
                // An infinite error times 0 is 0, not NaN.
                let times = |a: T, b: T| if b == T::zero() { b } else { a * b };
                // What this term contributes to the new N, to the new E through the error of t, and
                // to the new E through the error of u.
                let [of_n, of_a, of_b] = [
                    scaled(&|at, j| t[j] * n[at]),
                    scaled(&|at, j| t[j] * e[at] + times(of_t[j], n[at] + e[at])),
                    scaled(&|at, j| times(t[j] + of_t[j], n[at] + e[at])),
                ];
                let v = magnitudes.map(term.v);
                for (of, u, to) in [(of_n, u, 0), (of_a, u, 1), (of_b, of_u, 1)] {
                    let of = self.finite(of);
                    let mut x = vec![T::zero(); prepared.inputs * targets];
                    v.apply_transposed(&of, &mut x);
                    let x = self.finite(x);
                    next[to]
                        .iter_mut()
                        .enumerate()
                        .for_each(|(at, next)| *next += u[at % u.len()] * x[at]);
                }
            }
            let [next_n, next_e] = next;
            n = self.finite(next_n);
            e = self.finite(next_e);
            linalg::add_scaled(gamma(live.len() + prepared.terms.len() + FEW), &n, &mut e);
            // The bound on relative errors does not hold for shares below the number type's range.
            let largest = n.iter().fold(T::zero(), |max, &n| max.max(n));
            self.bounded &=
                !was || largest == T::zero() || largest > T::min_positive_value() / T::epsilon();
        }
        kappas.reverse();
        let e = self.finite(e);
        let inputs = e.len() / targets;
        let bounds = e
            .chunks_exact(inputs)
            .map(|column| column.iter().fold(T::zero(), |max, &e| max.max(e)))
            .collect();
        Rounded { kappas, bounds: self.bounded.then_some(bounds) }
    }

    /// Replaces values that are not finite by a large number, and notes that there is no bound.
    fn finite(&mut self, mut values: Vec<T>) -> Vec<T> {
        for v in values.iter_mut().filter(|v| !v.is_finite()) {
            self.bounded = false;
            *v = T::max_value() * T::epsilon();
        }
        values
    }
}

/// The u of a term.
fn u_of<T: Scalar>(ruled: &Ruled<T>, shares: &Shares<T>, term: &Term) -> Vec<T> {
    match term.u {
        Scale::Inputs => shares.z.to_vec(),
        Scale::Ones => vec![T::one(); ruled.inputs],
        Scale::Mapped(index) => shares.mapped[index * ruled.inputs..][..ruled.inputs].to_vec(),
    }
}
