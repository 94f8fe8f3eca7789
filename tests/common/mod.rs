//! Random dense networks, and the rules written straight from their formulas: explicit loops over vectors of vectors, in
//! double precision. Nothing here is shared with the crate, so that a mistake there is not repeated here.

// Each test file uses its own part of this module.
#![allow(dead_code)]
// The loops are the formulas, index by index.
#![allow(clippy::needless_range_loop)]

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use relprop::nalgebra::{DMatrix, DVector};
use relprop::{BiasMode, Cause, Epsilon, Explanation, Linear, Relative, RelevanceRule, Relu, Scalar, Sequential};

/// Rows of numbers.
pub type Matrix = Vec<Vec<f64>>;

/// A dense layer, outputs x inputs.
#[derive(Debug, Clone)]
pub struct Dense {
    pub weights: Matrix,
    pub bias: Option<Vec<f64>>,
}

/// A network of dense layers with an optional `ReLU` between them, and a sample.
#[derive(Debug, Clone)]
pub struct Net {
    pub layers: Vec<Dense>,
    pub relu: bool,
    pub x: Vec<f64>,
}

/// A rule of the reference.
#[derive(Debug, Clone, Copy)]
pub enum Formula {
    Epsilon { epsilon: f64, relative: bool, bias: BiasMode },
    Relative { bias: BiasMode },
}

/// What an explanation should be.
#[derive(Debug)]
pub struct Expected {
    pub output: Vec<f64>,
    /// Inputs x outputs.
    pub shares: Matrix,
    /// Layer, cause and one share for each output.
    pub sinks: Vec<(usize, Cause, Vec<f64>)>,
}

/// The same cases at every run; a failing one is printed and needs no file.
pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(0x1234_5678), ..ProptestConfig::default() }
}

pub fn number() -> impl Strategy<Value = f64> {
    prop_oneof![1 => Just(0.0), 7 => -1.0..1.0_f64]
}

pub fn vector(size: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(number(), size)
}

pub fn matrix(rows: usize, columns: usize) -> impl Strategy<Value = Matrix> {
    prop::collection::vec(vector(columns), rows)
}

/// A network of 1 to 5 linear layers, 1 to 12 wide.
pub fn net(biases: bool, relu: bool) -> impl Strategy<Value = Net> {
    prop::collection::vec(1..=12_usize, 2..=6).prop_flat_map(move |sizes| {
        let layers: Vec<_> = sizes
            .windows(2)
            .map(|pair| {
                let bias = if biases { prop::option::of(vector(pair[1])).boxed() } else { Just(None).boxed() };
                (matrix(pair[1], pair[0]), bias).prop_map(|(weights, bias)| Dense { weights, bias })
            })
            .collect();
        (layers, vector(sizes[0])).prop_map(move |(layers, x)| Net { layers, relu, x })
    })
}

/// Any rule, with an epsilon of at least `smallest`: with a vanishing one a total near zero leaves no digits to compare.
pub fn formula(smallest: f64) -> impl Strategy<Value = Formula> {
    let bias = prop_oneof![Just(BiasMode::Absorb), Just(BiasMode::Ignore), Just(BiasMode::Distribute)];
    let of_relative = prop_oneof![Just(BiasMode::Ignore), Just(BiasMode::Distribute)];
    prop_oneof![
        3 => (smallest..1.0, any::<bool>(), bias)
            .prop_map(|(epsilon, relative, bias)| Formula::Epsilon { epsilon, relative, bias }),
        1 => of_relative.prop_map(|bias| Formula::Relative { bias }),
    ]
}

impl Formula {
    /// The crate's rule of the same name.
    pub fn rule<T: Scalar>(self) -> Box<dyn RelevanceRule<T>> {
        match self {
            Self::Epsilon { epsilon, relative: false, bias } => Box::new(Epsilon::new(epsilon).unwrap().with_bias(bias)),
            Self::Epsilon { epsilon, relative: true, bias } => Box::new(Epsilon::relative_to_rms(epsilon).unwrap().with_bias(bias)),
            Self::Relative { bias } => Box::new(Relative::new(bias).unwrap()),
        }
    }

    /// One layer's A (inputs x outputs) and its sinks.
    fn factor(self, layer: &Dense, z: &[f64]) -> (Matrix, Vec<(Cause, Vec<f64>)>) {
        let (inputs, outputs) = (z.len(), layer.weights.len());
        let fan_in = inputs as f64;
        let bias = layer.bias.clone().unwrap_or_else(|| vec![0.0; outputs]);
        let mode = match self {
            Self::Epsilon { bias, .. } | Self::Relative { bias } => bias,
        };
        let numerator = |i: usize, j: usize| {
            let distributed = if mode == BiasMode::Distribute { bias[j] / fan_in } else { 0.0 };
            z[i] * layer.weights[j][i] + distributed
        };
        let mut shares = vec![vec![0.0; outputs]; inputs];
        match self {
            Self::Relative { .. } => {
                let mut rest = vec![1.0; outputs];
                for j in 0..outputs {
                    for i in 0..inputs {
                        shares[i][j] = numerator(i, j) / fan_in;
                        rest[j] -= shares[i][j];
                    }
                }
                (shares, vec![(Cause::Rest, rest)])
            }
            Self::Epsilon { epsilon, relative, .. } => {
                let mut totals = vec![0.0; outputs];
                for j in 0..outputs {
                    for i in 0..inputs {
                        totals[j] += z[i] * layer.weights[j][i];
                    }
                    if mode != BiasMode::Ignore {
                        totals[j] += bias[j];
                    }
                }
                let mean_square = totals.iter().map(|t| t * t).sum::<f64>() / outputs as f64;
                let epsilon = if relative { epsilon * mean_square.sqrt() } else { epsilon };
                let (mut of_bias, mut stabilizer, mut dead) = (vec![0.0; outputs], vec![0.0; outputs], vec![0.0; outputs]);
                for j in 0..outputs {
                    let signed = if totals[j] < 0.0 { -epsilon } else { epsilon };
                    let divisor = totals[j] + signed;
                    if divisor == 0.0 {
                        dead[j] = 1.0;
                        continue;
                    }
                    for i in 0..inputs {
                        shares[i][j] = numerator(i, j) / divisor;
                    }
                    if mode == BiasMode::Absorb {
                        of_bias[j] = bias[j] / divisor;
                    }
                    stabilizer[j] = signed / divisor;
                }
                (shares, vec![(Cause::Bias, of_bias), (Cause::Stabilizer, stabilizer), (Cause::Dead, dead)])
            }
        }
    }
}

fn multiply(a: &[Vec<f64>], b: &[Vec<f64>]) -> Matrix {
    let mut product = vec![vec![0.0; b[0].len()]; a.len()];
    for i in 0..a.len() {
        for (k, row) in b.iter().enumerate() {
            for j in 0..row.len() {
                product[i][j] += a[i][k] * row[j];
            }
        }
    }
    product
}

impl Net {
    /// The inputs of each layer and, last, the output.
    pub fn activations(&self) -> Matrix {
        let mut values = vec![self.x.clone()];
        for (index, (_, totals)) in self.layers.iter().zip(self.totals()).enumerate() {
            let inner = self.relu && index + 1 < self.layers.len();
            values.push(totals.iter().map(|&t| if inner && t < 0.0 { 0.0 } else { t }).collect());
        }
        values
    }

    /// W z + b of each layer.
    pub fn totals(&self) -> Matrix {
        let mut z = self.x.clone();
        let mut all = Vec::new();
        for layer in &self.layers {
            let mut totals = Vec::new();
            for (j, row) in layer.weights.iter().enumerate() {
                let mut total = 0.0;
                for i in 0..row.len() {
                    total += row[i] * z[i];
                }
                totals.push(total + layer.bias.as_ref().map_or(0.0, |b| b[j]));
            }
            z = totals.iter().map(|&t| if self.relu && t < 0.0 { 0.0 } else { t }).collect();
            all.push(totals);
        }
        all
    }

    /// The index in the model of a linear layer.
    pub fn index(&self, linear: usize) -> usize {
        if self.relu { 2 * linear } else { linear }
    }

    pub fn sample<T: Scalar>(&self) -> DVector<T> {
        DVector::from_iterator(self.x.len(), self.x.iter().map(|&v| T::from_f64(v)))
    }

    pub fn model<T: Scalar>(&self) -> Sequential<T> {
        let mut builder = Sequential::builder();
        for (index, layer) in self.layers.iter().enumerate() {
            let weights = DMatrix::from_fn(layer.weights.len(), layer.weights[0].len(), |j, i| T::from_f64(layer.weights[j][i]));
            let bias = layer.bias.as_ref().map(|b| DVector::from_iterator(b.len(), b.iter().map(|&v| T::from_f64(v))));
            builder = builder.layer(Linear::new(weights, bias).unwrap());
            if self.relu && index + 1 < self.layers.len() {
                builder = builder.layer(Relu);
            }
        }
        builder.build().unwrap()
    }

    pub fn expected(&self, formula: Formula) -> Expected {
        let values = self.activations();
        let factors: Vec<_> = self.layers.iter().zip(&values).map(|(layer, z)| formula.factor(layer, z)).collect();
        let mut shares: Option<Matrix> = None;
        let mut sinks = Vec::new();
        for (linear, (a, rows)) in factors.into_iter().enumerate().rev() {
            for (cause, row) in rows {
                let row = shares.as_ref().map_or(row.clone(), |above| multiply(std::slice::from_ref(&row), above).remove(0));
                sinks.push((self.index(linear), cause, row));
            }
            shares = Some(shares.map_or(a.clone(), |above| multiply(&a, &above)));
        }
        Expected { output: values[values.len() - 1].clone(), shares: shares.unwrap(), sinks }
    }
}

impl Expected {
    /// The largest of all shares, the sinks' included; they sum to 1, so it is not small.
    fn largest(&self) -> f64 {
        let sinks = self.sinks.iter().flat_map(|(_, _, row)| row);
        self.shares.iter().flatten().chain(sinks).fold(0.0, |max: f64, v| max.max(v.abs()))
    }

    /// Panics unless the explanation is this one, to `tolerance` of the largest entry.
    pub fn assert_is<T: Scalar>(&self, found: &Explanation<T>, tolerance: f64) {
        let largest_output = self.output.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
        for (k, output) in self.output.iter().enumerate() {
            let error = (found.output()[k].as_f64() - output).abs();
            assert!(error <= tolerance * largest_output.max(1.0), "output {k}: {} for {output}", found.output()[k]);
        }
        let allowed = tolerance * self.largest();
        let scale = f64::from(found.exponent()).exp2();
        assert_eq!(found.shares().shape(), (self.shares.len(), self.output.len()));
        for (i, row) in self.shares.iter().enumerate() {
            for (k, &share) in row.iter().enumerate() {
                let is = found.shares()[(i, k)].as_f64() * scale;
                assert!((is - share).abs() <= allowed, "share of input {i} in output {k}: {is} for {share}");
            }
        }
        for k in 0..self.output.len() {
            let ledger = found.ledger(k).unwrap();
            for (layer, cause, row) in &self.sinks {
                let entries = ledger.entries().iter().filter(|e| e.layer() == *layer && e.cause() == *cause);
                let is: f64 = entries.map(relprop::LedgerEntry::share).sum();
                assert!((is - row[k]).abs() <= allowed, "layer {layer} {cause:?} in output {k}: {is} for {}", row[k]);
            }
            for entry in ledger.entries() {
                let known = self.sinks.iter().any(|(layer, cause, _)| entry.layer() == *layer && entry.cause() == *cause);
                assert!(known, "a sink that the formulas do not have: {entry:?}");
            }
        }
    }
}
