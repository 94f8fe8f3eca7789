//! Implements a custom rule: relevance in proportion to |z w|, regardless of its sign.
//!
//! ```text
//!     A_ij = |z_i w_ij| / S(Σ_i |z_i w_ij| + |b_j|)
//! ```
//!
//! All shares are non-negative and no total can cancel, so relevance never explodes. The drawback
//! is that evidence against an output looks like evidence for it. A rule is data, so nothing else
//! is needed: both directions of accumulation, the ledger and the prepared weights work with it as
//! with the crate's own rules.
//!
//! `cargo run --example custom_rule`

use relprop::nalgebra::{self, dmatrix, dvector};
use relprop::rule::{Decomposition, Divisor, Group, Part, Site, Stabilizer, Transform};
use relprop::{BiasMode, Error, Linear, RelevanceRule, Relu, Rule, Scalar, Sequential};

struct Magnitude;

impl<T: Scalar> RelevanceRule<T> for Magnitude {
    fn name(&self) -> String {
        "Magnitude".to_owned()
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let abs = || Transform::map(|v: T| v.abs());
        let group =
            Group::new(vec![Part::new(abs(), abs())], Divisor::Total(Stabilizer::Absolute(1e-9)));
        Ok(group.with_bias(BiasMode::Absorb, abs()).into())
    }
}

fn main() -> Result<(), Error> {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], dvector![0.0, -0.1])?)
        .layer(Relu)
        .layer(Linear::new(dmatrix![1.0, -0.99], dvector![0.05])?)
        .build()?;
    let x = dvector![2.0, 0.5];
    for explanation in [model.explain(&x, Magnitude)?, model.explain(&x, Rule::Epsilon)?] {
        println!("{explanation}\n{}\n", explanation.ledger(0)?);
    }
    Ok(())
}
