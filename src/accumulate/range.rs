//! The range that a rule supposes of a layer's inputs, such as the box of [`ZBox`](crate::ZBox).

use std::sync::Arc;

use crate::check::{Code, Finding};
use crate::error::Error;
use crate::rule::{InputRange, Outside, Site};
use crate::scalar::Scalar;

/// The range that a rule supposes of a layer's inputs.
#[derive(Debug)]
pub(crate) struct Range<T> {
    low: Arc<[T]>,
    high: Arc<[T]>,
    outside: Outside,
    rule: String,
    factor: usize,
    layer: usize,
    kind: String,
}

/// A sample with inputs outside the range that a rule supposes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutOfRange {
    pub sample: usize,
    /// The number of the factor whose range it is.
    pub factor: usize,
    /// The input that is farthest outside, and its value.
    pub input: usize,
    pub value: f64,
    /// How many inputs are outside.
    pub count: usize,
}

impl<T: Scalar> Range<T> {
    pub fn new(
        range: InputRange<T>,
        rule: String,
        factor: usize,
        site: &Site<'_>,
    ) -> Result<Self, String> {
        let InputRange { low, high, outside } = range;
        if [low.len(), high.len()] != [site.inputs; 2] {
            return Err(format!(
                "its range has {} and {} values, the layer {} inputs",
                low.len(),
                high.len(),
                site.inputs
            ));
        }
        if !low.iter().zip(high.iter()).all(|(low, high)| low <= high) {
            return Err(
                "its range ends below where it begins, or a bound is not a number".to_owned()
            );
        }
        Ok(Self { low, high, outside, rule, factor, layer: site.layer, kind: site.kind.to_owned() })
    }

    fn bounds(&self, input: usize) -> (f64, f64) {
        (self.low[input].as_f64(), self.high[input].as_f64())
    }

    /// Whether a sample has inputs outside, by more than rounding explains.
    fn find(&self, sample: usize, z: &[T]) -> Option<OutOfRange> {
        let few = T::epsilon() * T::from_f64(16.0);
        let mut found: Option<(usize, T)> = None;
        let mut count = 0;
        for (input, ((&z, &low), &high)) in z.iter().zip(&*self.low).zip(&*self.high).enumerate() {
            let by = (low - z).max(z - high);
            // A bound at infinity bounds nothing, and has no size.
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
        found.map(|(input, _)| OutOfRange {
            sample,
            factor: self.factor,
            input,
            value: z[input].as_f64(),
            count,
        })
    }

    /// Looks at the inputs of some samples, each as a column: one that is outside is an error, or
    /// noted.
    ///
    /// # Errors
    /// [`Error::OutsideRange`].
    pub fn check(&self, z: &[T], noted: &mut Vec<OutOfRange>) -> Result<(), Error> {
        for found in z
            .chunks_exact(self.low.len())
            .enumerate()
            .filter_map(|(sample, z)| self.find(sample, z))
        {
            match self.outside {
                Outside::Refuse => return Err(self.error(&found)),
                Outside::Report => noted.push(found),
            }
        }
        Ok(())
    }

    /// What is said of a sample that was noted.
    pub fn finding(&self, found: &OutOfRange) -> Finding {
        let &OutOfRange { input, value, count, .. } = found;
        let (low, high) = self.bounds(input);
        let rule = &self.rule;
        Finding {
            code: Code::OutsideRange,
            layer: self.layer,
            kind: self.kind.clone(),
            sentence: format!(
                "Input {input} is {value}, outside the range from {low} to {high} that {rule} \
                 supposes; inputs outside: {count}."
            ),
            advice: "Do not trust the size and the sign of its relevances; widen the range."
                .to_owned(),
        }
    }

    fn error(&self, found: &OutOfRange) -> Error {
        let &OutOfRange { sample, input, value, count, .. } = found;
        let (low, high) = self.bounds(input);
        let (rule, layer, kind) = (self.rule.clone(), self.layer, self.kind.clone());
        Error::OutsideRange { rule, layer, kind, sample, input, value, low, high, count }
    }
}
