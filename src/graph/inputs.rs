//! The values of a model's inputs.

use std::borrow::Cow;

use super::{Graph, Input, InputSource, floats};
use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;

/// The values of a model's inputs, by name, for one sample or for several.
///
/// The values of an input are those of one sample after another, each in C order.
///
/// ```
/// use relprop::{Graph, Inputs, Linear, Rule};
/// use relprop::nalgebra::{self, dmatrix};
///
/// let mut graph = Graph::builder();
/// let (a, b) = (graph.input("a", 2), graph.input("b", 1));
/// let joined = graph.concat([a, b]);
/// let y = graph.layer(Linear::new(dmatrix![1.0, 2.0, 3.0], None)?, [joined]);
/// graph.output("y", y);
/// let explainer = graph.build()?.explainer(Rule::Lrp0)?;
///
/// let inputs = Inputs::new().value("a", &[1.0, 1.0][..]).value("b", &[2.0][..]);
/// let explanation = explainer.explain_inputs(&inputs)?;
/// assert_eq!(explanation.relevance_of("b", 0)?.as_slice(), [6.0]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Inputs<'a, T: Scalar> {
    list: Vec<(Cow<'a, str>, Values<'a, T>)>,
}

/// The values of one input: floating-point numbers, or whole numbers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Values<'a, T: Scalar> {
    /// Floating-point numbers.
    Floats(Cow<'a, [T]>),
    /// Whole numbers.
    Whole(Cow<'a, [i64]>),
}

macro_rules! values_from {
    ($number:ty, $variant:ident, [$($generics:tt)*]) => {
        impl<'a, T: Scalar> From<&'a [$number]> for Values<'a, T> {
            fn from(values: &'a [$number]) -> Self {
                Self::$variant(Cow::Borrowed(values))
            }
        }

        impl<'a, T: Scalar> From<&'a Vec<$number>> for Values<'a, T> {
            fn from(values: &'a Vec<$number>) -> Self {
                Self::$variant(Cow::Borrowed(values))
            }
        }

        impl<T: Scalar> From<Vec<$number>> for Values<'_, T> {
            fn from(values: Vec<$number>) -> Self {
                Self::$variant(Cow::Owned(values))
            }
        }
    };
}
values_from!(T, Floats, []);
values_from!(i64, Whole, []);

impl<T: Scalar> Values<'_, T> {
    fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Whole(values) => values.len(),
        }
    }
}

impl<'a, T: Scalar> Inputs<'a, T> {
    /// Creates a list without values.
    #[must_use]
    pub fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// Sets the values of an input. A second call for the same input replaces them.
    #[must_use]
    pub fn value(
        mut self,
        name: impl Into<Cow<'a, str>>,
        values: impl Into<Values<'a, T>>,
    ) -> Self {
        let (name, values) = (name.into(), values.into());
        self.list.retain(|(other, _)| *other != name);
        self.list.push((name, values));
        self
    }

    /// Sets the values of a given input, such as a mask or the ids of tokens. The same as
    /// [`value`](Self::value).
    #[must_use]
    pub fn given(self, name: impl Into<Cow<'a, str>>, values: impl Into<Values<'a, T>>) -> Self {
        self.value(name, values)
    }

    /// Finds the values of each of a model's inputs, for exactly one sample.
    ///
    /// # Errors
    /// [`Error::Inputs`].
    pub(crate) fn bind_one<'b>(&'b self, graph: &Graph<T>) -> Result<Feed<'b, T>, Error> {
        let feed = self.bind(graph)?;
        match feed.samples() {
            1 => Ok(feed),
            samples => Err(Error::Inputs {
                reason: format!(
                    "the inputs have the values of {samples} samples, but one is needed: explain \
                     several with explain_batch_inputs"
                ),
            }),
        }
    }

    /// Finds the values of each of a model's inputs.
    ///
    /// # Errors
    /// [`Error::Inputs`].
    pub(crate) fn bind<'b>(&'b self, graph: &Graph<T>) -> Result<Feed<'b, T>, Error> {
        let names: Vec<_> = graph.input_names();
        let listed =
            || names.iter().map(|(name, shape)| format!("'{name}' ({shape})")).collect::<Vec<_>>();
        let wrong = |reason: String| Error::Inputs {
            reason: format!("{reason} (the model's inputs are {})", listed().join(", ")),
        };
        if let Some((name, _)) =
            self.list.iter().find(|(name, _)| names.iter().all(|(other, _)| name != other))
        {
            return Err(wrong(format!("the model has no input '{name}'")));
        }
        let mut samples = None;
        let mut bound = Vec::with_capacity(graph.input_list().len());
        for input in graph.input_list() {
            let found = self.list.iter().find(|(name, _)| *name == input.name);
            if matches!(input.source, InputSource::Constant(_)) {
                bound.push(None);
                continue;
            }
            let Some((name, values)) = found else {
                return Err(wrong(format!("the values of input '{}' are missing", input.name)));
            };
            let (size, len) = (input.shape.size(), values.len());
            if !len.is_multiple_of(size) || samples.is_some_and(|samples| samples != len / size) {
                return Err(wrong(format!(
                    "input '{name}' has {len} values, which is not {size} for each sample{}",
                    samples.map_or_else(String::new, |samples| format!(
                        " (there are {samples} samples)"
                    ))
                )));
            }
            samples = Some(len / size);
            match (values, matches!(input.source, InputSource::Whole)) {
                (Values::Floats(_), false) | (Values::Whole(_), true) => {}
                (Values::Floats(_), true) => {
                    return Err(wrong(format!("input '{name}' takes whole numbers (i64)")));
                }
                (Values::Whole(_), false) => {
                    return Err(wrong(format!("input '{name}' takes floating-point numbers")));
                }
            }
            bound.push(Some(values));
        }
        Ok(Feed::Named { values: bound, first: 0, samples: samples.unwrap_or(0) })
    }
}

/// The values that a pass starts with.
#[derive(Debug, Clone)]
pub(crate) enum Feed<'a, T: Scalar> {
    /// Samples as columns, with the values of all inputs one after another, and the size of a
    /// sample.
    Columns(&'a [T], usize),
    /// For each input, its values for `samples` samples from the sample `first` on.
    Named { values: Vec<Option<&'a Values<'a, T>>>, first: usize, samples: usize },
}

impl<'a, T: Scalar> Feed<'a, T> {
    pub fn samples(&self) -> usize {
        match self {
            Self::Columns(values, size) => values.len() / size,
            Self::Named { samples, .. } => *samples,
        }
    }

    /// The samples in this range.
    pub fn part(&self, from: usize, count: usize) -> Self {
        match self {
            Self::Columns(values, size) => {
                Self::Columns(&values[from * size..(from + count) * size], *size)
            }
            Self::Named { values, first, .. } => {
                Self::Named { values: values.clone(), first: first + from, samples: count }
            }
        }
    }

    /// Checks that the values fit the model and are finite.
    ///
    /// # Errors
    /// [`Error::NonFiniteInput`], or [`Error::Inputs`] for a model with whole numbers among its
    /// inputs that is given only columns.
    pub fn check(&self, graph: &Graph<T>) -> Result<(), Error> {
        let error = |input: &Input<T>, sample, index, value: T| {
            let (input, value) = (input.name.clone(), value.as_f64());
            Err(Error::NonFiniteInput { input, index, sample, value })
        };
        match self {
            Self::Columns(values, size) => {
                let whole = graph
                    .input_list()
                    .iter()
                    .find(|input| matches!(input.source, InputSource::Whole));
                if let Some(input) = whole {
                    return Err(Error::Inputs {
                        reason: format!(
                            "input '{}' takes whole numbers: give the values of each input by \
                             name, with explain_inputs",
                            input.name
                        ),
                    });
                }
                let Some((at, value)) = linalg::first_non_finite(values) else { return Ok(()) };
                let (sample, mut index) = (at / size, at % size);
                for input in floats(graph.input_list()) {
                    if index < input.shape.size() {
                        return error(input, sample, index, value);
                    }
                    index -= input.shape.size();
                }
                Ok(())
            }
            Self::Named { values, .. } => {
                for (input, values) in graph.input_list().iter().zip(values) {
                    if let Some(Values::Floats(values)) = values
                        && let Some((at, value)) = linalg::first_non_finite(values)
                    {
                        let size = input.shape.size();
                        return error(input, at / size, at % size, value);
                    }
                }
                Ok(())
            }
        }
    }

    /// Writes the values of an input, samples as columns.
    pub fn write(&self, graph: &Graph<T>, number: usize, to: &mut [T]) {
        let input = &graph.input_list()[number];
        let size = input.shape.size();
        match (&input.source, self) {
            (InputSource::Constant(values), _) => {
                to.chunks_exact_mut(size).for_each(|to| to.copy_from_slice(values));
            }
            (_, Self::Columns(values, whole)) if *whole == size => to.copy_from_slice(values),
            (_, Self::Columns(values, whole)) => {
                let first: usize =
                    floats(&graph.input_list()[..number]).map(|input| input.shape.size()).sum();
                for (to, values) in to.chunks_exact_mut(size).zip(values.chunks_exact(*whole)) {
                    to.copy_from_slice(&values[first..first + size]);
                }
            }
            (_, Self::Named { values, first, samples }) => {
                if let Some(Some(Values::Floats(values))) = values.get(number) {
                    to.copy_from_slice(&values[first * size..(first + samples) * size]);
                }
            }
        }
    }

    /// The whole numbers of an input, for all samples.
    pub fn whole(&self, graph: &Graph<T>, number: usize) -> &'a [i64] {
        let size = graph.shape_of(number).size();
        match self {
            Self::Named { values, first, samples } => match values.get(number) {
                Some(Some(Values::Whole(values))) => {
                    &values[first * size..(first + samples) * size]
                }
                _ => &[],
            },
            Self::Columns(..) => &[],
        }
    }

    /// The values in double precision, by name.
    pub fn to_f64(&self, graph: &Graph<T>) -> Inputs<'static, f64> {
        let mut inputs = Inputs::new();
        for (number, input) in graph.input_list().iter().enumerate() {
            let values = match input.source {
                InputSource::Constant(_) => continue,
                InputSource::Whole => Values::Whole(self.whole(graph, number).to_vec().into()),
                InputSource::Explained | InputSource::Given => {
                    let mut values = vec![T::zero(); input.shape.size() * self.samples()];
                    self.write(graph, number, &mut values);
                    Values::Floats(values.iter().map(|v| v.as_f64()).collect())
                }
            };
            inputs = inputs.value(input.name.clone(), values);
        }
        inputs
    }
}
