//! Explaining: a model and a rule, prepared for use, and the results.

mod checkup;
mod explainer;
mod explanation;
mod health;
mod ledger;
mod parts;
mod pass;
mod paths;
mod samples;
mod sizes;
mod sweep;
mod targets;
mod trace;

pub use explainer::Explainer;
pub use explanation::{Contribution, Explanation};
pub use health::{Health, LayerHealth};
pub use ledger::{Ledger, LedgerEntry};
pub use paths::Path;
pub use samples::Workspace;
pub use sweep::Sweep;
pub use targets::Targets;
pub use trace::Trace;
