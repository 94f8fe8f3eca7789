//! Paths: how relevance flows from the inputs to a target, unit by unit.

use std::fmt;

use nalgebra::DMatrix;

use super::trace::Trace;
use crate::buffer::Buffers;
use crate::error::Error;
use crate::relevance::{Factor, Overflow, Suffix};
use crate::scalar::Scalar;

/// A path from an input to an output, through one unit of each value that all relevance flows
/// through.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Path<T> {
    /// The unit of each of these values, from an input of the sample to the output where the path
    /// ends. In a row of layers, these are the inputs of each linear layer.
    pub units: Vec<usize>,
    /// The relevance that flows along this path: the product of its shares, times the output.
    pub relevance: T,
}

impl<T: fmt::Display> fmt::Display for Path<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units: Vec<String> = self.units.iter().map(usize::to_string).collect();
        write!(f, "{}: {:+.4}", units.join(" -> "), self.relevance)
    }
}

impl<T: Scalar> Trace<T> {
    /// The `count` strongest paths from the inputs to a target.
    ///
    /// A path is strong if the product of its shares is large in magnitude. It has one unit of each
    /// value that all relevance flows through; where the network branches, that is one unit where
    /// the branches begin and one where they end. The paths are found exactly, by dynamic
    /// programming over the layers. For a weighting of outputs, paths can end at any output. Cost:
    /// every share matrix is formed, and searched in at most its size times `count` steps.
    ///
    /// # Errors
    /// The errors of [`relevance`](Self::relevance), and [`Error::TooLarge`] if the share matrix of
    /// a layer exceeds the memory limit, as that of a convolution easily does.
    pub fn paths(&self, target: usize, count: usize) -> Result<Vec<Path<T>>, Error> {
        (T::compiled().paths)(self, target, count)
    }

    pub(crate) fn paths_inner(&self, target: usize, count: usize) -> Result<Vec<Path<T>>, Error> {
        let (column, scale) = self.explanation.place(target)?;
        let segments = &self.network.segments;
        // A unit has at most `count` arrivals, and at most one for each path that leads to it.
        let (mut to_each, mut arrivals) = (1.0_f64, 0.0);
        let sizes = segments.iter().map(|segment| segment.inputs);
        for units in sizes.chain([self.graph().outputs()]).map(|units| units as f64) {
            arrivals += to_each * units;
            to_each = (to_each * units).min(count as f64);
        }
        let numbers = size_of::<Arrival>() / size_of::<T>();
        self.check_size(arrivals * numbers as f64, || {
            format!("the {count} strongest paths to each unit of each layer")
        })?;
        let mut ends = Ends::at_inputs(self.network.inputs());
        for segment in 0..segments.len() {
            ends.lengthen(&self.of_segment(segment)?, count);
        }
        // The last step leads to the target itself.
        ends.lengthen(&(self.explanation.of_outputs().columns(column, 1) * scale), count);
        // There is only one column in the last step.
        let paths = ends.paths(0);
        if paths.iter().any(|path: &Path<T>| !path.relevance.is_finite()) {
            let layer = self.graph().layer_of(self.graph().output_value());
            return Err(Overflow { layer }.error(self.graph()));
        }
        Ok(paths)
    }

    /// The share matrix of a segment.
    fn of_segment(&self, segment: usize) -> Result<DMatrix<T>, Error> {
        let factor = Factor::new(&self.network, segment, &self.tape);
        let (inputs, outputs) = (factor.inputs(), factor.outputs());
        let what = || {
            format!(
                "the share matrix of layer {}, {inputs} x {outputs},",
                self.graph().layer_name(factor.layer())
            )
        };
        // The share matrix exists as a prefix, as a suffix and as a matrix.
        self.check_size(3.0 * inputs as f64 * outputs as f64, what)?;
        Suffix::of_factor(factor, &mut Buffers::default())
            .and_then(|block| block.to_matrix(0))
            .map_err(|at| at.error(self.graph()))
    }
}

/// The strongest paths to each unit of the layers so far.
struct Ends {
    /// For each step and each of its units, the ends of the strongest paths to it, strongest first.
    steps: Vec<Vec<Vec<Arrival>>>,
}

/// The end of one path.
#[derive(Clone, Copy)]
struct Arrival {
    /// The logarithm of the product's magnitude, because products of many shares exceed the range
    /// of every number type.
    size: f64,
    negative: bool,
    /// The previous unit, and the rank of the path among the arrivals there.
    from: usize,
    rank: usize,
}

impl Ends {
    fn at_inputs(inputs: usize) -> Self {
        // An empty product: ln 1 = 0.
        let start = |from| vec![Arrival { size: 0.0, negative: false, from, rank: 0 }];
        Self { steps: vec![(0..inputs).map(start).collect()] }
    }

    /// Extends each path by a step with these shares and keeps the strongest paths to each unit.
    fn lengthen<T: Scalar>(&mut self, shares: &DMatrix<T>, count: usize) {
        let before = &self.steps[self.steps.len() - 1];
        let arrive = |shares: nalgebra::DVectorView<'_, T>| {
            let mut best: Vec<Arrival> = Vec::new();
            for (from, share) in shares.iter().enumerate().filter(|(_, share)| **share != T::zero())
            {
                let step = share.as_f64().abs().ln();
                for (rank, arrival) in before[from].iter().enumerate() {
                    let size = arrival.size + step;
                    // `best` is sorted in descending order. Equal paths stay in the order of their
                    // units.
                    let place = best.partition_point(|other| other.size >= size);
                    // Arrivals are sorted, so the remaining ones are no stronger.
                    if place >= count {
                        break;
                    }
                    // `count` is at least 1 here, because `place` is less.
                    best.truncate(count - 1);
                    best.insert(
                        place,
                        Arrival {
                            size,
                            negative: arrival.negative != (*share < T::zero()),
                            from,
                            rank,
                        },
                    );
                }
            }
            best
        };
        let arrivals = shares.column_iter().map(arrive).collect();
        self.steps.push(arrivals);
    }

    /// The strongest paths to a unit of the last step. The unit itself is not listed.
    fn paths<T: Scalar>(&self, unit: usize) -> Vec<Path<T>> {
        let last = self.steps.len() - 1;
        let path = |arrival: &Arrival| {
            let mut units = vec![0; last];
            let mut at = *arrival;
            // Follows the arrivals back to the inputs.
            for place in (0..last).rev() {
                units[place] = at.from;
                at = self.steps[place][at.from][at.rank];
            }
            let size = arrival.size.exp();
            Path { units, relevance: T::from_f64(if arrival.negative { -size } else { size }) }
        };
        self.steps[last][unit].iter().map(path).collect()
    }
}
