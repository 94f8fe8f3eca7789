//! Serialization of results, with the `serde` feature. The code must follow the schema that
//! `docs/json.md` promises.
//!
//! Types whose fields match the schema derive [`Serialize`]. This module implements the trait for
//! types whose serialized values are computed.

use serde::ser::{Error, SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

use crate::explain::{Explanation, Health, Ledger, LedgerEntry};
use crate::finding::Code;
use crate::relevance::{Accumulation, Cause, Plan};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Implements [`Serialize`] for types that are serialized as their `Display` text.
macro_rules! as_displayed {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
as_displayed!(Cause, Code);

/// Serializes a struct with the given fields, in this order.
macro_rules! fields {
    ($serializer:ident, $name:literal, { $($key:literal: $value:expr),* $(,)? }) => {{
        let mut fields = $serializer.serialize_struct($name, [$($key),*].len())?;
        $(fields.serialize_field($key, &$value)?;)*
        fields.end()
    }};
}

/// The items of the iterator that a closure returns, serialized as a list.
struct List<F>(F);

impl<F: Fn() -> I, I: IntoIterator<Item: Serialize>> Serialize for List<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.dims().serialize(serializer)
    }
}

impl<T: Scalar + Serialize> Serialize for Explanation<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fields!(serializer, "Explanation", {
            "rule": self.rule(),
            "output": self.output().as_slice(),
            "probabilities": self.probabilities().map(nalgebra::Matrix::as_slice),
            "predicted": self.predicted(),
            "exponent": self.exponent(),
            "weighted": self.is_weighted(),
            "targets": List(|| self.targets().map(|target| TargetFields { explanation: self, target })),
            "health": self.health(),
            "findings": self.findings(),
        })
    }
}

/// The part of an explanation for one target.
struct TargetFields<'a, T: Scalar> {
    explanation: &'a Explanation<T>,
    target: usize,
}

impl<T: Scalar + Serialize> Serialize for TargetFields<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { explanation, target } = self;
        fields!(serializer, "TargetFields", {
            "target": target,
            "relevance": explanation.relevance(*target).map_err(S::Error::custom)?.as_slice(),
            "ledger": explanation.ledger(*target).map_err(S::Error::custom)?,
        })
    }
}

impl Serialize for Ledger {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fields!(serializer, "Ledger", {
            "target": self.target(),
            "output": self.output(),
            "inputs": self.inputs(),
            "causes": Causes(self),
            "rounding": self.rounding(),
            "imbalance": self.imbalance(),
            "entries": self.entries(),
        })
    }
}

/// The relevance absorbed for each cause, over all sinks of the ledger.
struct Causes<'a>(&'a Ledger);

impl Serialize for Causes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let causes = self.0.causes();
        let mut map = serializer.serialize_map(Some(causes.len()))?;
        for cause in causes {
            map.serialize_entry(&cause, &self.0.total(cause))?;
        }
        map.end()
    }
}

impl Serialize for LedgerEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fields!(serializer, "LedgerEntry", {
            "layer": self.layer(),
            "name": self.name(),
            "kind": self.kind(),
            "cause": self.cause(),
            "share": self.share(),
            "relevance": self.relevance(),
        })
    }
}

impl Serialize for Health {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fields!(serializer, "Health", {
            "layers": self.layers(),
            "targets": List(|| self.targets().map(|target| TargetHealthFields { health: self, target })),
            "prevented": self.prevented(),
        })
    }
}

struct TargetHealthFields<'a> {
    health: &'a Health,
    target: usize,
}

impl Serialize for TargetHealthFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { health, target } = self;
        fields!(serializer, "TargetHealthFields", {
            "target": target,
            "error": health.error(*target),
            "relative_error": health.relative_error(*target),
        })
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let orders = [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse];
        fields!(serializer, "Plan", {
            "accumulation": self.accumulation(),
            "orders": orders.map(|accumulation| OrderFields { plan: self, accumulation }),
        })
    }
}

/// One of a plan's orders.
struct OrderFields<'a> {
    plan: &'a Plan,
    accumulation: Accumulation,
}

impl Serialize for OrderFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { plan, accumulation } = self;
        fields!(serializer, "OrderFields", {
            "accumulation": accumulation,
            "bracketing": plan.bracketing(*accumulation),
            "multiply_adds": plan.multiply_adds(*accumulation),
            "largest_block": plan.largest_block(*accumulation),
        })
    }
}
