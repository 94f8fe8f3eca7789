//! Functions of one value, as exporters spell them out: x · sigmoid(x), or x/2 · (1 + erf(x/√2)).
//!
//! They are told by what they give, not by how they are written: exporters, and their versions, write the same one differently.

use std::rc::Rc;
use std::sync::Arc;

use crate::layer::{Elementwise, Elu, Gelu, HardSigmoid, HardSwish, Layer, Mish, Relu, Selu, Sigmoid, Silu, Softplus, Softsign};
use crate::scalar::Scalar;

/// A function of x.
#[derive(Debug)]
pub(super) enum Expression {
    X,
    Number(f64),
    Activation(Rc<dyn Elementwise<f64>>, Rc<Expression>),
    Unary(fn(f64) -> f64, Rc<Expression>),
    Binary(fn(f64, f64) -> f64, Rc<Expression>, Rc<Expression>),
    /// The second where the first is not 0, else the third.
    Choice(Rc<Expression>, Rc<Expression>, Rc<Expression>),
}

/// None is longer.
const LONGEST: usize = 40;

impl Expression {
    fn value(&self, x: f64) -> f64 {
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

    /// The same, where it is not too long.
    pub fn short(self) -> Option<Rc<Self>> {
        Some(Rc::new(self)).filter(|all| all.length() <= LONGEST)
    }

    /// The activation that has the same values, to the precision of f32.
    pub fn activation<T: Scalar>(&self) -> Option<Arc<dyn Layer<T>>> {
        let agree =
            |known: &dyn Elementwise<f64>, x: f64| (self.value(x) - known.value(x)).abs() <= 2e-6 * known.value(x).abs().max(1.0);
        let near = |known: &dyn Elementwise<f64>| (-60..=60).all(|step| agree(known, f64::from(step) * 0.137));
        let is = |known: &dyn Elementwise<f64>| {
            near(known) && [20.0, 50.0, 100.0, 300.0].iter().all(|&x| agree(known, x) && agree(known, -x))
        };
        // Exponentials overflow there.
        let is_straight =
            |known: &dyn Elementwise<f64>| is(known) && [1e4, 1e6].iter().all(|&x| agree(known, x) && agree(known, -x));
        macro_rules! first_that {
            ($is:ident: $($known:expr),+) => {
                $(if $is(&$known) {
                    return Some(Arc::new($known));
                })+
            };
        }
        first_that!(is: Silu, Gelu::Exact, Gelu::Tanh, Softplus::default(), Mish, Sigmoid, Selu, Elu::default());
        first_that!(is_straight: Relu, HardSwish, HardSigmoid, Softsign);
        None
    }
}
