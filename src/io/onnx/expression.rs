//! Functions of one value that exporters write as several operators, such as x · sigmoid(x) or
//! x/2 · (1 + erf(x/√2)).
//!
//! A function is recognized by its values, not by its operators, because exporters and their
//! versions write the same function in different ways.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::layer::{
    Elementwise, Elu, Gelu, HardSigmoid, HardSwish, Layer, Mish, Relu, Selu, Sigmoid, Silu,
    Softplus, Softsign,
};
use crate::scalar::Scalar;

/// A function of x.
#[derive(Debug)]
pub(super) enum Expression {
    X,
    Number(f64),
    Activation(Rc<dyn Elementwise<f64>>, Rc<Expression>),
    Unary(fn(f64) -> f64, Rc<Expression>),
    Binary(fn(f64, f64) -> f64, Rc<Expression>, Rc<Expression>),
    /// The second if the first is not 0, otherwise the third.
    Choice(Rc<Expression>, Rc<Expression>, Rc<Expression>),
}

/// The maximum length of an expression, and the maximum number of its constants that determine
/// where it is evaluated. They limit the time that recognition takes.
const LONGEST: usize = 40;
const NUMBERS: usize = 12;

/// Up to this distance from 0, exponentials and their squares do not overflow.
const FAR: f64 = 300.0;

/// A node's values as functions of the values of other nodes.
pub(super) type Expressions = Vec<(usize, Rc<Expression>)>;

impl Expression {
    pub fn value(&self, x: f64) -> f64 {
        match self {
            Self::X => x,
            Self::Number(number) => *number,
            Self::Activation(f, a) => f.value(a.value(x)),
            Self::Unary(f, a) => f(a.value(x)),
            Self::Binary(f, a, b) => f(a.value(x), b.value(x)),
            Self::Choice(whether, a, b) => {
                if whether.value(x) == 0.0 {
                    b.value(x)
                } else {
                    a.value(x)
                }
            }
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::X | Self::Number(_) => 1,
            Self::Activation(_, a) | Self::Unary(_, a) => 1 + a.length(),
            Self::Binary(_, a, b) => 1 + a.length() + b.length(),
            Self::Choice(whether, a, b) => 1 + whether.length() + a.length() + b.length(),
        }
    }

    /// Returns the expression unless it is too long.
    pub fn short(self) -> Option<Rc<Self>> {
        Some(Rc::new(self)).filter(|all| all.length() <= LONGEST)
    }

    fn numbers(&self, found: &mut Vec<f64>) {
        match self {
            Self::X => {}
            Self::Number(number) => found.push(*number),
            Self::Activation(_, a) | Self::Unary(_, a) => a.numbers(found),
            Self::Binary(_, a, b) => [a, b].iter().for_each(|part| part.numbers(found)),
            Self::Choice(whether, a, b) => {
                for part in [whether, a, b] {
                    part.numbers(found);
                }
            }
        }
    }

    /// The points at which to compare functions. They are close to 0, far from it, and on both
    /// sides of the points where the constants of the expression may cause a kink.
    fn points(&self) -> Vec<f64> {
        let mut numbers = Vec::new();
        self.numbers(&mut numbers);
        numbers.truncate(NUMBERS);
        let turns = numbers
            .iter()
            .flat_map(|&a| numbers.iter().flat_map(move |&b| [a, a + b, a - b, a * b, a / b]));
        let beside = turns.flat_map(|at| [at * 0.9999, at * 1.0001]).filter(|at| at.abs() <= FAR);
        // The bound of a clip can be far from 0.
        let caps = numbers.iter().map(|number| number * 1.001).filter(|at| at.abs() <= 1e30);
        let own: Vec<f64> = beside.chain(caps).flat_map(|x| [x, -x]).collect();
        grid().chain(own).collect()
    }

    /// The activation with the same values up to the precision of f32.
    pub fn activation<T: Scalar>(&self) -> Option<Arc<dyn Layer<T>>> {
        let points = OnceCell::new();
        let agree = |known: &dyn Elementwise<f64>, x: f64| {
            (self.value(x) - known.value(x)).abs() <= 2e-6 * known.value(x).abs().max(1.0)
        };
        let is = |known: &dyn Elementwise<f64>| {
            // Most candidates do not agree, and a few points rule them out.
            FEW.iter().all(|&x| agree(known, x))
                && points.get_or_init(|| self.points()).iter().all(|&x| agree(known, x))
        };
        // Functions without exponentials are also compared far from 0, where exponentials overflow.
        let is_straight =
            |known: &dyn Elementwise<f64>| is(known) && far().all(|x| agree(known, x));
        macro_rules! first_that {
            ($is:ident: $($known:expr),+) => {
                $(if $is(&$known) {
                    return Some(Arc::new($known));
                })+
            };
        }
        first_that!(is: Silu, Gelu::Exact, Gelu::Tanh, Softplus::default(), Mish, Sigmoid);
        first_that!(is: Selu, Elu::default());
        first_that!(is_straight: Relu, HardSwish, HardSigmoid, Softsign);
        None
    }

    /// Whether the values are c f(a x) up to the precision of f32. If `straight` is set, f has no
    /// exponentials, and the values are also compared far from 0.
    pub fn agrees(&self, f: &dyn Elementwise<f64>, a: f64, c: f64, straight: bool) -> bool {
        let agree = |x: f64| {
            let (t, scaled) = (a * x, f.value(a * x));
            // Relative to |f(t)| or, where that is smaller, to |t| up to 1.
            let precision = 2e-6 * scaled.abs().max(t.abs().min(1.0)) + 1e-12;
            (self.value(x) - c * scaled).abs() <= precision * c.abs()
        };
        a != 0.0
            && c != 0.0
            && FEW.iter().all(|t| agree(t / a))
            && grid().all(|t| agree(t / a))
            && self.points().into_iter().filter(|x| straight || (a * x).abs() <= FAR).all(agree)
            && (!straight || far().all(agree))
    }
}

/// A few points at which most functions differ.
const FEW: [f64; 4] = [-2.5, -0.25, 0.75, 3.5];

/// Points close to 0 and far from it, on both sides.
fn grid() -> impl Iterator<Item = f64> {
    // Steps of 1/64 up to 9, and a geometric series from 1e-6 to about `FAR`.
    let even = (0..=576).map(|step| f64::from(step) / 64.0);
    let wide = (0..=400).map(|step| 1e-6 * 1.05_f64.powi(step));
    even.chain(wide).flat_map(|x| [x, -x])
}

/// Points so far from 0 that exponentials overflow.
fn far() -> impl Iterator<Item = f64> {
    (3..=30).map(|power| 10.0_f64.powi(power)).flat_map(|x| [x, -x])
}
