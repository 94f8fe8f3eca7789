//! Explaining in parts, so that memory does not grow with the number of samples.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use relprop::{Explainer, Explanation, Graph, RelevanceRule, Targets};

use super::labels;
use super::options::Target;
use super::samples::Samples;
use crate::hints::in_options;
use crate::{Failure, usage};

/// A part has at most this many shares (or one sample), and at most `MOST` samples.
const SHARES: usize = 1 << 21;
const MOST: usize = 1024;

/// A model, a rule and samples to be explained.
pub struct Work<'a> {
    samples: &'a Samples,
    /// One explainer for each label, or a single one under `None` if all samples have the same
    /// targets.
    explainers: BTreeMap<Option<usize>, Explainer<f32>>,
    labels: Option<Vec<usize>>,
    part: usize,
}

impl<'a> Work<'a> {
    pub fn new(
        model: &Graph<f32>,
        rule: &dyn RelevanceRule<f32>,
        target: &Target,
        samples: &'a Samples,
    ) -> Result<Self, Failure> {
        let explainer = model.explainer(rule)?;
        let of = |targets: Targets<f32>| explainer.clone().targets(targets);
        let (explainers, labels) = match target {
            Target::Predicted => ([(None, of(Targets::Predicted)?)].into(), None),
            Target::All => ([(None, of(Targets::All)?)].into(), None),
            Target::Output(output) => {
                let explainer =
                    of((*output).into()).map_err(|error| usage(format!("--target: {error}")))?;
                ([(None, explainer)].into(), None)
            }
            Target::Labels(path) => {
                let labels = labels::read(path, samples.count(), model.outputs())?;
                let mut explainers = BTreeMap::new();
                for &label in &labels {
                    if let Entry::Vacant(place) = explainers.entry(Some(label)) {
                        place.insert(of(label.into())?);
                    }
                }
                (explainers, Some(labels))
            }
        };
        let targets = if *target == Target::All { model.outputs() } else { 1 };
        let shares = model.inputs().saturating_mul(targets).max(1);
        Ok(Self { samples, explainers, labels, part: (SHARES / shares).clamp(1, MOST) })
    }

    /// The number of samples that are explained together.
    pub fn part(&self) -> usize {
        self.part
    }

    pub fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (count, part) = (self.samples.count(), self.part);
        (0..count).step_by(part).map(move |first| first..count.min(first + part))
    }

    /// The explanations of these samples, in their order.
    pub fn explain(&self, part: Range<usize>) -> Result<Vec<Explanation<f32>>, Failure> {
        // Samples with the same label have the same targets, so they are explained in one batch.
        let mut groups: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for sample in part {
            groups
                .entry(self.labels.as_ref().map(|labels| labels[sample]))
                .or_default()
                .push(sample);
        }
        let mut found = Vec::new();
        for (label, samples) in groups {
            let explainer = &self.explainers[&label];
            let explanations = explainer
                .explain_batch(&self.samples.values.select_columns(&samples))
                .map_err(|error| {
                    // Explain the samples one by one to find the first that fails, and its number
                    // in the file.
                    self.of_sample(explainer, &samples)
                        .unwrap_or_else(|| in_options(&error.to_string()))
                })?;
            found.extend(samples.into_iter().zip(explanations));
        }
        // The groups are in the order of the labels.
        found.sort_by_key(|(sample, _)| *sample);
        Ok(found.into_iter().map(|(_, explanation)| explanation).collect())
    }

    /// The error of the first sample that has one, with the sample's number.
    fn of_sample(&self, explainer: &Explainer<f32>, samples: &[usize]) -> Option<String> {
        samples.iter().find_map(|&sample| {
            let error =
                explainer.explain_slice(self.samples.values.column(sample).as_slice()).err()?;
            let text = in_options(&error.to_string());
            // Some errors have the sample's index in the batch, which is 0 here.
            let alone = "sample 0";
            let named = format!("sample {sample}");
            Some(if text.contains(alone) {
                text.replace(alone, &named)
            } else {
                format!("{named}: {text}")
            })
        })
    }
}
