//! Activations with a scaled argument and a scaled value, c f(a x), recognized by their values like
//! the other activations ([`Expression`]).
//!
//! For each kind of function f, the values at a few powers of two determine what a and c would have
//! to be. A comparison at many points then decides whether the function really is c f(a x).

use std::f64::consts::{FRAC_2_PI, LN_2, PI};
use std::sync::Arc;

use super::expression::Expression;
use crate::layer::{
    Celu, Elementwise, Elu, Gelu, HardSigmoid, HardSwish, HardTanh, Layer, LeakyRelu, Mish, Relu,
    Scaled, Sigmoid, Silu, Softplus, Softsign, Tanh,
};
use crate::scalar::Scalar;

/// The exponents of the powers of two at which a function is evaluated.
const POWERS: std::ops::RangeInclusive<i32> = -12..=16;

type OptionalLayer<T> = Option<Arc<dyn Layer<T>>>;

impl Expression {
    /// The activation c f(a x) with the same values up to the precision of f32.
    pub fn scaled_activation<T: Scalar>(&self) -> OptionalLayer<T> {
        let zero = Some(self.value(0.0)).filter(|value| value.is_finite())?;
        let sides = Sides::of(self)?;
        let turned = sides.turned();
        // Symmetries decide which kinds of functions are possible.
        let even_part = |[right, left]: [f64; 2]| 0.5 * (right + left);
        if zero.abs() < 1e-12 {
            // Linear on both sides. `turned` is f(-x), so its slope is that of the left side,
            // negated.
            if let (Some(right), Some(left)) = (sides.slope(), turned.slope()) {
                return self.bent(right, -left);
            }
            // x g(a x) with g(t) + g(-t) = 1, for which f(x) - f(-x) is linear.
            if let Some(slope) = sides.slope_of_odd_part() {
                return self.gate(&sides, slope);
            }
            if sides.values.iter().all(|&[right, left]| near(right, -left)) {
                return self.odd(&sides);
            }
            let exponential =
                self.exponential(&sides, 1.0).or_else(|| self.exponential(&turned, -1.0));
            return exponential
                .or_else(|| self.mish(&sides, 1.0))
                .or_else(|| self.mish(&turned, -1.0));
        }
        // For sigmoids, f(x) + f(-x) is constant.
        if sides.values.iter().all(|&values| near(even_part(values), zero)) {
            return self.step(&sides, zero);
        }
        // For c softplus(a x), f(x) - f(-x) = c a x and f(0) = c ln 2.
        sides.slope_of_odd_part().and_then(|slope| self.softplus(slope, zero))
    }

    /// If the values are f(a x) for a sigmoid or hard sigmoid f, returns f and a.
    pub fn probability<T: Scalar>(&self) -> Option<(Arc<dyn Layer<T>>, f64)> {
        let sides = Sides::of(self)?;
        // A value that is close to neither 1/2 nor saturation determines the argument well.
        let (x, [value, _]) = sides.find(|[right, _]| right.max(1.0 - right), 0.55..=0.95)?;
        let argument = tidy((value / (1.0 - value)).ln() / x);
        if self.agrees(&Sigmoid, argument, 1.0, false) {
            return Some((Arc::new(Sigmoid), argument));
        }
        let argument = tidy((6.0 * value - 3.0) / x);
        self.agrees(&HardSigmoid, argument, 1.0, true)
            .then(|| (Arc::new(HardSigmoid) as Arc<dyn Layer<T>>, argument))
    }

    /// A function with the value p x if x > 0, otherwise q x.
    fn bent<T: Scalar>(&self, p: f64, q: f64) -> OptionalLayer<T> {
        if near(p, q) {
            // The function is a factor, not an activation.
            return None;
        }
        let (p, q) = (tidy(p), tidy(q));
        if p.abs() <= 1e-9 * q.abs() {
            // Only the left side is not 0, and q x = -q relu(-x) there.
            return self.made(Relu, -1.0, -q, true);
        }
        if q.abs() <= 1e-9 * p.abs() {
            return self.made(Relu, 1.0, p, true);
        }
        self.made(LeakyRelu::new(tidy(q / p)).ok()?, 1.0, p, true)
    }

    /// A function k x g(a x) with g(t) + g(-t) = 1: SiLU, GELU or hard swish.
    fn gate<T: Scalar>(&self, sides: &Sides, slope: f64) -> OptionalLayer<T> {
        let gate = |x: f64, value: f64| value / (slope * x);
        // The larger of g(t) and g(-t). If that is g(-t), a is negative.
        let open = |x: f64, [right, left]: [f64; 2]| gate(x, right).max(gate(-x, left));
        let (x, values) = sides.find_at(open, 0.55..=0.95)?;
        let (open, sign) = (open(x, values), if gate(x, values[0]) < 0.5 { -1.0 } else { 1.0 });
        // Each candidate's inverse of g gives t = a x. Since c f(a x) = c a x g(a x), c is k / a.
        let with = |t: f64| (tidy(sign * t / x), tidy(slope));
        let (a, k) = with((open / (1.0 - open)).ln());
        let silu = self.made(Silu, a, k / a, false);
        silu.or_else(|| {
            let (a, k) = with(normal_quantile(open));
            self.made(Gelu::Exact, a, k / a, false)
        })
        .or_else(|| {
            let (a, k) = with(cubic_root((2.0 * open - 1.0).atanh() / FRAC_2_PI.sqrt()));
            self.made(Gelu::Tanh, a, k / a, false)
        })
        .or_else(|| {
            let (a, k) = with(6.0 * open - 3.0);
            self.made(HardSwish, a, k / a, true)
        })
    }

    /// A function c f(a x) with f(-t) = -f(t): tanh or softsign.
    fn odd<T: Scalar>(&self, sides: &Sides) -> OptionalLayer<T> {
        // The ratio f(t) / f(2 t) determines t, whatever c is.
        let (x, [value, _], part) = sides.find_part(0.52..=0.95)?;
        // tanh(2 t) = 2 tanh t / (1 + tanh² t), so the ratio is (1 + tanh² t) / 2.
        let t = (2.0 * part - 1.0).sqrt().atanh();
        let tanh = self.made(Tanh, tidy(t / x), tidy(value / t.tanh()), false);
        tanh.or_else(|| {
            // For softsign, the ratio is (1 + 2 t) / (2 + 2 t).
            let t = (2.0 * part - 1.0) / (2.0 - 2.0 * part);
            let (a, c) = (tidy(t / x), tidy(value * (1.0 + t) / t));
            self.made(Softsign, a, c, true)
        })
    }

    /// A function c f(a x) with f(t) + f(-t) = 1: sigmoid or hard sigmoid.
    fn step<T: Scalar>(&self, sides: &Sides, zero: f64) -> OptionalLayer<T> {
        let c = 2.0 * zero;
        let open = |[right, left]: [f64; 2]| (right / c).max(left / c);
        let (x, values) = sides.find(open, 0.55..=0.95)?;
        let (open, sign) = (open(values), if values[0] / c < 0.5 { -1.0 } else { 1.0 });
        let a = |t: f64| tidy(sign * t / x);
        let sigmoid = self.made(Sigmoid, a((open / (1.0 - open)).ln()), tidy(c), false);
        sigmoid.or_else(|| self.made(HardSigmoid, a(6.0 * open - 3.0), tidy(c), true))
    }

    fn softplus<T: Scalar>(&self, slope: f64, zero: f64) -> OptionalLayer<T> {
        let c = tidy(zero / LN_2);
        let a = tidy(slope / c);
        // This is PyTorch's softplus with beta = a.
        if near(a * c, 1.0) {
            let natural = Softplus::new(a, 20.0).ok()?;
            return self
                .agrees(&Softplus::default(), a, c, false)
                .then(|| Arc::new(natural) as Arc<dyn Layer<T>>);
        }
        self.made(Softplus::default(), a, c, false)
    }

    /// A function with the value p x if x > 0, otherwise q (exp(b x) - 1): ELU, CELU or SELU.
    /// `sign` is -1 if the sides are swapped.
    fn exponential<T: Scalar>(&self, sides: &Sides, sign: f64) -> OptionalLayer<T> {
        let p = sides.slope()?;
        let (x, [value, _], part) = sides.turned().find_part(0.52..=0.95)?;
        // With t = b x, the ratio is (1 - exp(-t)) / (1 - exp(-2 t)) = 1 / (1 + exp(-t)).
        let t = (part / (1.0 - part)).ln();
        let (p, b, q) = (tidy(p), tidy(t / x), tidy(value / (-t).exp_m1()));
        // c ELU(b x) has the slope c b on the right and the factor c alpha on the left.
        let (c, alpha) = (p / b, tidy(q * b / p));
        // With these, b = 1 / q, so the function is CELU with alpha = q.
        if near(alpha, 1.0) && near(p, 1.0) && sign > 0.0 {
            let natural = Celu::new(q).ok()?;
            return self
                .agrees(&Elu::default(), b, c, false)
                .then(|| Arc::new(natural) as Arc<dyn Layer<T>>);
        }
        self.made(Elu::new(alpha).ok()?, sign * b, c, false)
    }

    /// Mish. `sign` is -1 if the sides are swapped.
    fn mish<T: Scalar>(&self, sides: &Sides, sign: f64) -> OptionalLayer<T> {
        // Far from 0, mish is linear on one side.
        let slope = |at: usize| sides.values[at][0] / sides.x(at);
        let last = sides.values.len() - 1;
        let slope = Some(slope(last)).filter(|&end| near(end, slope(last - 1)))?;
        let (x, values) = sides.find_at(|x, [right, _]| right / (slope * x), 0.65..=0.95)?;
        // mish(t) / t = tanh(softplus(t)), and exp(softplus(t)) - 1 = exp(t).
        let softplus = (values[0] / (slope * x)).atanh();
        let (a, k) = (tidy(softplus.exp_m1().ln() / x), tidy(slope));
        self.made(Mish, sign * a, k / a, false)
    }

    /// A clip, which is k x limited by a lower and an upper bound, either of which can be missing.
    pub fn cut<T: Scalar>(&self) -> OptionalLayer<T> {
        let sides = Sides::of(self)?;
        // Far from 0, each side is constant, which gives a bound, or proportional to x.
        let end = |sign: f64| {
            let (last, before) = (self.value(sign * 1e30), self.value(sign * 1e29));
            if near(last, before) {
                Some(Some(last))
            } else {
                near(last, 10.0 * before).then_some(None)
            }
        };
        let ends = [end(-1.0)?, end(1.0)?];
        let within = |value: f64| ends.iter().flatten().all(|&bound| !near(value, bound));
        // A value that is not a bound is k x.
        let slope = sides.values.iter().enumerate().find_map(|(at, &[right, left])| {
            let x = sides.x(at);
            within(right).then_some(right / x).or_else(|| within(left).then_some(-left / x))
        })?;
        let slope = Some(tidy(slope)).filter(|&slope| slope != 0.0 && slope.is_finite())?;
        let [at_left, at_right] = ends.map(|bound| bound.map(|bound| tidy(bound / slope)));
        // Divided by the slope, the function increases with x, so the bound on the left is the
        // lower one.
        let scale = [at_left, at_right]
            .into_iter()
            .flatten()
            .fold(0.0, |max: f64, bound| max.max(bound.abs()));
        if scale == 0.0 {
            return None;
        }
        let bounds = |scale: f64| {
            let (low, high) = (
                at_left.map_or(f32::MIN.into(), |at| at / scale),
                at_right.map_or(f32::MAX.into(), |at| at / scale),
            );
            HardTanh::new(low, high).ok()
        };
        // Compare with the larger bound scaled to 1, because the points of comparison are dense
        // there.
        if !self.agrees(&bounds(scale)?, 1.0 / scale, slope * scale, true) {
            return None;
        }
        natural(bounds(1.0)?, 1.0, slope)
    }

    /// The activation c f(a x), if it has the same values.
    fn made<T: Scalar, F>(&self, f: F, a: f64, c: f64, straight: bool) -> OptionalLayer<T>
    where
        F: Layer<T> + Elementwise<T> + Elementwise<f64> + Copy + 'static,
    {
        (a.is_finite() && c.is_finite() && self.agrees(&f, a, c, straight))
            .then(|| natural(f, a, c))
            .flatten()
    }
}

/// The activation c f(a x), which is f itself if a and c are 1.
fn natural<T: Scalar>(
    f: impl Layer<T> + Elementwise<T> + Copy + 'static,
    a: f64,
    c: f64,
) -> OptionalLayer<T> {
    if near(a, 1.0) && near(c, 1.0) {
        return Some(Arc::new(f));
    }
    Some(Arc::new(Scaled::new(f, a, c).ok()?))
}

/// A function's values at the powers of two and their negatives, up to the first that is not
/// finite.
struct Sides {
    values: Vec<[f64; 2]>,
}

impl Sides {
    fn of(expression: &Expression) -> Option<Self> {
        let values = POWERS
            .map(|power| 2.0_f64.powi(power))
            .map(|x| [expression.value(x), expression.value(-x)]);
        let values: Vec<_> =
            values.take_while(|values| values.iter().all(|value| value.is_finite())).collect();
        (values.len() >= 8).then_some(Self { values })
    }

    /// The values of the mirrored function, f(-x).
    fn turned(&self) -> Self {
        Self { values: self.values.iter().map(|&[right, left]| [left, right]).collect() }
    }

    fn x(&self, at: usize) -> f64 {
        self.values.iter().zip(POWERS).nth(at).map_or(f64::NAN, |(_, power)| 2.0_f64.powi(power))
    }

    fn all_near(&self, part: impl Fn(f64, [f64; 2]) -> f64) -> Option<f64> {
        let parts: Vec<f64> =
            self.values.iter().enumerate().map(|(at, &values)| part(self.x(at), values)).collect();
        let last = *parts.last()?;
        parts.iter().all(|&part| near(part, last)).then_some(last)
    }

    /// The slope for positive x, if the function is linear there.
    fn slope(&self) -> Option<f64> {
        self.all_near(|x, [right, _]| right / x)
    }

    /// The slope of f(x) - f(-x), if it is linear and not 0.
    fn slope_of_odd_part(&self) -> Option<f64> {
        self.all_near(|x, [right, left]| (right - left) / x).filter(|slope| *slope != 0.0)
    }

    /// The first x, with its values, for which `of` is within a range.
    fn find_at(
        &self,
        of: impl Fn(f64, [f64; 2]) -> f64,
        range: std::ops::RangeInclusive<f64>,
    ) -> Option<(f64, [f64; 2])> {
        let mut all = self.values.iter().enumerate().map(|(at, &values)| (self.x(at), values));
        all.find(|&(x, values)| range.contains(&of(x, values)))
    }

    fn find(
        &self,
        of: impl Fn([f64; 2]) -> f64,
        range: std::ops::RangeInclusive<f64>,
    ) -> Option<(f64, [f64; 2])> {
        self.find_at(|_, values| of(values), range)
    }

    /// The first x for which f(x) / f(2 x) is within a range, with its values and this ratio.
    fn find_part(&self, range: std::ops::RangeInclusive<f64>) -> Option<(f64, [f64; 2], f64)> {
        // Neighboring values belong to x and 2 x. There are at least 8 (see `of`).
        let part = |at: usize| self.values[at][0] / self.values[at + 1][0];
        let at = (0..self.values.len() - 1).find(|&at| range.contains(&part(at)))?;
        Some((self.x(at), self.values[at], part(at)))
    }
}

/// Whether two numbers are the same up to the precision of f32.
fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

/// Rounds to a short decimal number that was probably intended, if one is close.
fn tidy(value: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation)] // the model's own number may be an f32
    let single = value as f32;
    let short = |text: String| text.parse::<f64>().ok();
    let close = |to: f64, precision: f64| (to - value).abs() <= precision * value.abs();
    // In this case, the number is an f32. Display gives the shortest decimal that rounds to it.
    if close(single.into(), 1e-10) {
        return short(single.to_string()).unwrap_or(value);
    }
    // Otherwise it was computed from f32 constants, which have a relative spacing of 1.2e-7.
    short(format!("{value:.5e}")).filter(|&rounded| close(rounded, 1.2e-7)).unwrap_or(value)
}

/// The t with Φ(t) = p, for p from 1/2 to 0.95. Newton's method converges from below.
fn normal_quantile(p: f64) -> f64 {
    let step = |t: f64| {
        t - (0.5 * (1.0 + libm::erf(t * std::f64::consts::FRAC_1_SQRT_2)) - p)
            * (2.0 * PI).sqrt()
            * (0.5 * t * t).exp()
    };
    (0..12).fold(0.0, |t, _| step(t))
}

/// The t with t + 0.044715 t³ = u, for positive u, by Newton's method.
fn cubic_root(u: f64) -> f64 {
    (0..12)
        .fold(u, |t: f64, _| t - (t + 0.044_715 * t.powi(3) - u) / (1.0 + 3.0 * 0.044_715 * t * t))
}
