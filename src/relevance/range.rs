//! The range that a rule assumes for a layer's inputs, such as the box of [`ZBox`](crate::ZBox).

use std::sync::Arc;

use crate::error::Error;
use crate::finding::{Code, Finding};
use crate::rule::{InputRange, Outside, Site};
use crate::scalar::Scalar;

/// The range that a rule assumes for a layer's inputs.
#[derive(Debug)]
pub(crate) struct Range<T> {
    low: Arc<[T]>,
    high: Arc<[T]>,
    outside: Outside,
    rule: String,
    layer: usize,
    name: String,
    kind: String,
}

/// A sample with inputs outside the range that a rule assumes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutOfRange {
    pub sample: usize,
    /// The number of the node that has the range.
    pub node: usize,
    /// The input that is farthest outside, and its value.
    pub input: usize,
    pub value: f64,
    /// The number of inputs outside the range.
    pub count: usize,
}

impl<T: Scalar> Range<T> {
    pub fn new(range: InputRange<T>, rule: String, site: &Site<'_>) -> Result<Self, String> {
        let InputRange { low, high, outside } = range;
        if [low.len(), high.len()] != [site.inputs; 2] {
            return Err(format!(
                "its range has {} lower and {} upper bounds, but the layer has {} inputs",
                low.len(),
                high.len(),
                site.inputs
            ));
        }
        if !low.iter().zip(high.iter()).all(|(low, high)| low <= high) {
            return Err(
                "a lower bound of its range is above the upper bound, or a bound is NaN".to_owned()
            );
        }
        Ok(Self {
            low,
            high,
            outside,
            rule,
            layer: site.layer,
            name: site.name.to_owned(),
            kind: site.kind.to_owned(),
        })
    }

    fn bounds(&self, input: usize) -> (f64, f64) {
        (self.low[input].as_f64(), self.high[input].as_f64())
    }

    /// Finds the inputs of a sample that are outside by more than rounding can explain.
    fn find(&self, node: usize, sample: usize, z: &[T]) -> Option<OutOfRange> {
        let few = T::epsilon() * T::from_f64(16.0);
        let mut found: Option<(usize, T)> = None;
        let mut count = 0;
        for (input, ((&z, &low), &high)) in z.iter().zip(&*self.low).zip(&*self.high).enumerate() {
            let by = (low - z).max(z - high);
            // The tolerance is relative to the finite bounds. An infinite bound does not restrict
            // the inputs.
            let size = [low, high]
                .into_iter()
                .filter(|bound| bound.is_finite())
                .fold(T::zero(), |size, bound| size.max(bound.abs()));
            if by > few * size {
                count += 1;
                if found.is_none_or(|(_, most)| by > most) {
                    found = Some((input, by));
                }
            }
        }
        found.map(|(input, _)| OutOfRange { sample, node, input, value: z[input].as_f64(), count })
    }

    /// Checks the inputs of some samples, one per column. A sample outside the range causes an
    /// error or is noted, depending on the rule.
    ///
    /// # Errors
    /// [`Error::OutsideRange`].
    pub fn check(&self, node: usize, z: &[T], noted: &mut Vec<OutOfRange>) -> Result<(), Error> {
        for found in z
            .chunks_exact(self.low.len())
            .enumerate()
            .filter_map(|(sample, z)| self.find(node, sample, z))
        {
            match self.outside {
                Outside::Refuse => return Err(self.error(&found)),
                Outside::Report => noted.push(found),
            }
        }
        Ok(())
    }

    /// The finding for a sample that was noted.
    pub fn finding(&self, found: &OutOfRange) -> Finding {
        let &OutOfRange { input, value, count, .. } = found;
        let (low, high) = self.bounds(input);
        let rule = &self.rule;
        Finding {
            code: Code::OutsideRange,
            layer: self.layer,
            name: self.name.clone(),
            kind: self.kind.clone(),
            sentence: format!(
                "Input {input} is {value}, outside the range from {low} to {high} that {rule} \
                 assumes; inputs outside: {count}."
            ),
            advice: "Do not trust the size or the sign of its relevance. Widen the range."
                .to_owned(),
        }
    }

    fn error(&self, found: &OutOfRange) -> Error {
        let &OutOfRange { sample, input, value, count, .. } = found;
        let (low, high) = self.bounds(input);
        let (rule, layer) = (self.rule.clone(), self.layer);
        let (name, kind) = (self.name.clone(), self.kind.clone());
        Error::OutsideRange { rule, layer, name, kind, sample, input, value, low, high, count }
    }
}
