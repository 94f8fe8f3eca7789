//! Recognition of activations that exporters write as several operators.
//!
//! A node's values are known as functions of the values of its *bases*: nodes before it that
//! determine its values by a known function of each value. A function that is a known activation
//! replaces all nodes from the base on.

use std::rc::Rc;

use super::expression::{Expression, Expressions};
use super::ir::{Computation, Ir};
use crate::scalar::Scalar;

/// The maximum number of bases of a node.
const BASES: usize = 8;

impl<T: Scalar> Ir<T> {
    /// A node's values as functions of the values of its bases. The node itself comes first.
    pub fn bases(&self, node: usize) -> Expressions {
        let own = (node, Rc::new(Expression::X));
        std::iter::once(own).chain(self[node].expressions.iter().cloned()).take(BASES).collect()
    }

    /// A function of a node's values, as functions of the values of its bases.
    pub fn composed(&self, node: usize, f: impl Fn(Rc<Expression>) -> Expression) -> Expressions {
        self.bases(node)
            .into_iter()
            .filter_map(|(base, own)| Some((base, f(own).short()?)))
            .collect()
    }

    /// A function of the values of two nodes, as functions of the values of their common bases. The
    /// nearest base comes first.
    pub fn combined(&self, a: usize, b: usize, f: fn(f64, f64) -> f64) -> Expressions {
        let others = self.bases(b);
        let with = |(base, own): (usize, Rc<Expression>)| {
            let (_, other) = others.iter().find(|(other, _)| *other == base)?;
            Some((base, Expression::Binary(f, own, other.clone()).short()?))
        };
        self.bases(a).into_iter().filter_map(with).collect()
    }
}

/// The computation for the first of the expressions that is a known activation.
pub(super) fn unscaled<T: Scalar>(expressions: &Expressions) -> Option<Computation<T>> {
    expressions.iter().find_map(|(base, expression)| {
        Some(Computation::Layers(*base, vec![expression.activation()?]))
    })
}

/// The computation for the first of the expressions that is a known activation, perhaps with a scaled
/// argument and value. This excludes clips, because a clip of a shifted value can be part of a hard
/// activation.
pub(super) fn recognized_but_cuts<T: Scalar>(expressions: &Expressions) -> Option<Computation<T>> {
    let scaled = |(base, expression): &(usize, Rc<Expression>)| {
        Some(Computation::Layers(*base, vec![expression.scaled_activation()?]))
    };
    unscaled(expressions).or_else(|| expressions.iter().find_map(scaled))
}

/// The computation for the first of the expressions that is a known activation, or else for the last that
/// is a clip.
pub(super) fn recognized<T: Scalar>(expressions: &Expressions) -> Option<Computation<T>> {
    let cut = |(base, expression): &(usize, Rc<Expression>)| {
        Some(Computation::Layers(*base, vec![expression.cut()?]))
    };
    recognized_but_cuts(expressions).or_else(|| expressions.iter().rev().find_map(cut))
}

/// The computation for a sum that is a known activation, except for scaled ones.
pub(super) fn recognized_sum<T: Scalar>(expressions: &Expressions) -> Option<Computation<T>> {
    let has_name = |computation: &Computation<T>| match computation {
        Computation::Layers(_, layers) => layers.iter().all(|layer| layer.kind() != "Scaled"),
        _ => false,
    };
    recognized_but_cuts(expressions).filter(has_name)
}
