//! Random dense networks, and a reference implementation of the rules. It consists of explicit
//! loops over vectors of vectors, in double precision, written directly from the formulas. It
//! shares no code with the crate, so that it does not repeat the crate's mistakes.

// The loops follow the formulas, index by index.
#![allow(clippy::needless_range_loop)]

#[cfg(feature = "onnx")]
pub mod onnx;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use relprop::nalgebra::{DMatrix, DVector};
use relprop::rule::{Outside, Stabilizer};
use relprop::{
    AbsLrp, AlphaBeta, BiasMode, Cause, Epsilon, Explanation, Flat, Gamma, GammaPlain, Linear,
    Lrp0, Relative, RelevanceRule, Relu, Scalar, Sequential, Sign, WSquare, ZBox, ZPlus,
};

/// A matrix as rows of numbers.
pub type Matrix = Vec<Vec<f64>>;

/// A dense layer, with weights of shape outputs x inputs.
#[derive(Debug, Clone)]
pub struct Dense {
    pub weights: Matrix,
    pub bias: Option<Vec<f64>>,
}

/// A network of dense layers, optionally with `ReLU`s between them, and a sample.
#[derive(Debug, Clone)]
pub struct Net {
    pub layers: Vec<Dense>,
    pub relu: bool,
    pub x: Vec<f64>,
}

/// A rule of the reference implementation.
#[derive(Debug, Clone, Copy)]
pub enum Formula {
    Lrp0 { bias: BiasMode },
    Epsilon { epsilon: f64, relative: bool, bias: BiasMode },
    Gamma { gamma: f64, epsilon: f64, bias: BiasMode },
    GammaPlain { gamma: f64, epsilon: f64, bias: BiasMode },
    ZPlus { epsilon: f64, bias: BiasMode },
    AlphaBeta { alpha: f64, epsilon: f64, bias: BiasMode },
    ZBox { low: f64, high: f64, epsilon: f64 },
    WSquare { epsilon: f64, bias: BiasMode },
    Flat,
    AbsLrp { epsilon: f64 },
    Sign { epsilon: f64, bias: BiasMode },
    Relative { bias: BiasMode },
}

/// The expected explanation.
#[derive(Debug)]
pub struct Expected {
    pub output: Vec<f64>,
    /// The shares, inputs x outputs.
    pub shares: Matrix,
    /// For each sink, its layer, its cause and one share for each output.
    pub sinks: Vec<(usize, Cause, Vec<f64>)>,
}

/// Every run tests the same cases, so a failing one is reproducible without a file.
pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x1234_5678),
        ..ProptestConfig::default()
    }
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

/// A network of 1 to 5 linear layers with widths from 1 to 12.
pub fn net(biases: bool, relu: bool) -> impl Strategy<Value = Net> {
    prop::collection::vec(1..=12_usize, 2..=6).prop_flat_map(move |sizes| {
        let layers: Vec<_> = sizes
            .windows(2)
            .map(|pair| {
                let bias = if biases {
                    prop::option::of(vector(pair[1])).boxed()
                } else {
                    Just(None).boxed()
                };
                (matrix(pair[1], pair[0]), bias).prop_map(|(weights, bias)| Dense { weights, bias })
            })
            .collect();
        (layers, vector(sizes[0])).prop_map(move |(layers, x)| Net { layers, relu, x })
    })
}

/// Any rule, with an epsilon of at least `smallest`. If epsilon is too small, a total close to zero
/// leaves no accurate digits to compare.
pub fn formula(smallest: f64) -> impl Strategy<Value = Formula> {
    let bias =
        || prop_oneof![Just(BiasMode::Absorb), Just(BiasMode::Ignore), Just(BiasMode::Distribute)];
    let either = || prop_oneof![Just(BiasMode::Absorb), Just(BiasMode::Ignore)];
    let of_relative = prop_oneof![Just(BiasMode::Ignore), Just(BiasMode::Distribute)];
    let epsilon = move || smallest..1.0;
    prop_oneof![
        3 => (epsilon(), any::<bool>(), bias())
            .prop_map(|(epsilon, relative, bias)| Formula::Epsilon { epsilon, relative, bias }),
        2 => (0.0..2.0, epsilon(), bias()).prop_map(|(gamma, epsilon, bias)| Formula::Gamma { gamma, epsilon, bias }),
        1 => (0.0..2.0, epsilon(), bias()).prop_map(|(gamma, epsilon, bias)| Formula::GammaPlain { gamma, epsilon, bias }),
        1 => (epsilon(), bias()).prop_map(|(epsilon, bias)| Formula::ZPlus { epsilon, bias }),
        2 => (prop_oneof![Just(1.0), 1.0..3.0], epsilon(), bias())
            .prop_map(|(alpha, epsilon, bias)| Formula::AlphaBeta { alpha, epsilon, bias }),
        1 => (-1.0..0.5, 0.0..2.0, epsilon())
            .prop_map(|(low, size, epsilon)| Formula::ZBox { low, high: low + size, epsilon }),
        1 => (epsilon(), either()).prop_map(|(epsilon, bias)| Formula::WSquare { epsilon, bias }),
        1 => Just(Formula::Flat),
        1 => epsilon().prop_map(|epsilon| Formula::AbsLrp { epsilon }),
        1 => (epsilon(), bias()).prop_map(|(epsilon, bias)| Formula::Sign { epsilon, bias }),
        1 => of_relative.prop_map(|bias| Formula::Relative { bias }),
    ]
}

fn positive(v: f64) -> f64 {
    if v > 0.0 { v } else { 0.0 }
}

fn negative(v: f64) -> f64 {
    if v < 0.0 { v } else { 0.0 }
}

/// The shares of one output during their computation.
struct Column {
    shares: Vec<f64>,
    sinks: Vec<(Cause, f64)>,
}

impl Column {
    /// Adds `c` times each numerator, divided by the stabilized sum of all numerators and the bias
    /// term. If there is nothing to divide by, the sink `lost` gets `c`.
    fn share(
        &mut self,
        c: f64,
        numerators: &[f64],
        bias: f64,
        mode: BiasMode,
        epsilon: f64,
        lost: Cause,
    ) {
        let mut total = 0.0;
        for numerator in numerators {
            total += numerator;
        }
        if mode != BiasMode::Ignore {
            total += bias;
        }
        if total == 0.0 && (epsilon == 0.0 || lost == Cause::Empty) {
            self.sinks.push((lost, c));
            return;
        }
        let signed = if total < 0.0 { -epsilon } else { epsilon };
        let divisor = total + signed;
        for (share, numerator) in self.shares.iter_mut().zip(numerators) {
            let distributed =
                if mode == BiasMode::Distribute { bias / numerators.len() as f64 } else { 0.0 };
            *share += c * (numerator + distributed) / divisor;
        }
        if mode == BiasMode::Absorb {
            self.sinks.push((Cause::Bias, c * bias / divisor));
        }
        self.sinks.push((Cause::Stabilizer, c * signed / divisor));
    }
}

impl Column {
    /// Adds each numerator, divided by a stabilized total that is not their sum. The difference
    /// between 1 and the sum of shares and sinks is a sink too.
    fn share_by(
        &mut self,
        numerators: &[f64],
        bias: f64,
        total: f64,
        mode: BiasMode,
        epsilon: f64,
    ) {
        let signed = if total < 0.0 { -epsilon } else { epsilon };
        let divisor = total + signed;
        let mut rest = 1.0 - signed / divisor;
        for (share, numerator) in self.shares.iter_mut().zip(numerators) {
            let distributed =
                if mode == BiasMode::Distribute { bias / numerators.len() as f64 } else { 0.0 };
            *share += (numerator + distributed) / divisor;
            rest -= (numerator + distributed) / divisor;
        }
        if mode == BiasMode::Absorb {
            self.sinks.push((Cause::Bias, bias / divisor));
            rest -= bias / divisor;
        }
        self.sinks.push((Cause::Stabilizer, signed / divisor));
        self.sinks.push((Cause::Rest, rest));
    }
}

impl Formula {
    /// The crate's rule with the same name.
    pub fn rule<T: Scalar>(self) -> Box<dyn RelevanceRule<T>> {
        let absolute = Stabilizer::Absolute;
        match self {
            Self::Lrp0 { bias } => Box::new(Lrp0::default().with_bias(bias)),
            Self::Epsilon { epsilon, relative: false, bias } => {
                Box::new(Epsilon::new(epsilon).unwrap().with_bias(bias))
            }
            Self::Epsilon { epsilon, relative: true, bias } => {
                Box::new(Epsilon::relative_to_rms(epsilon).unwrap().with_bias(bias))
            }
            Self::Gamma { gamma, epsilon, bias } => Box::new(
                Gamma::new(gamma)
                    .unwrap()
                    .with_stabilizer(absolute(epsilon))
                    .unwrap()
                    .with_bias(bias),
            ),
            Self::GammaPlain { gamma, epsilon, bias } => Box::new(
                GammaPlain::new(gamma)
                    .unwrap()
                    .with_stabilizer(absolute(epsilon))
                    .unwrap()
                    .with_bias(bias),
            ),
            Self::ZPlus { epsilon, bias } => Box::new(
                ZPlus::default().with_stabilizer(absolute(epsilon)).unwrap().with_bias(bias),
            ),
            Self::AlphaBeta { alpha, epsilon, bias } => {
                let rule = AlphaBeta::new(alpha, alpha - 1.0).unwrap();
                Box::new(rule.with_stabilizer(absolute(epsilon)).unwrap().with_bias(bias))
            }
            Self::ZBox { low, high, epsilon } => {
                let zbox = ZBox::new(low, high).unwrap().with_outside(Outside::Report);
                Box::new(zbox.with_stabilizer(absolute(epsilon)).unwrap())
            }
            Self::WSquare { epsilon, bias } => Box::new(
                WSquare::default().with_stabilizer(absolute(epsilon)).unwrap().with_bias(bias),
            ),
            Self::Flat => Box::new(Flat),
            Self::AbsLrp { epsilon } => {
                Box::new(AbsLrp::default().with_stabilizer(absolute(epsilon)).unwrap())
            }
            Self::Sign { epsilon, bias } => Box::new(
                Sign::default().with_stabilizer(absolute(epsilon)).unwrap().with_bias(bias),
            ),
            Self::Relative { bias } => Box::new(Relative::new(bias).unwrap()),
        }
    }

    /// The shares of one output with the weights w, the bias b and the value y. `rms` is the root
    /// mean square of the layer's totals.
    fn column(self, z: &[f64], w: &[f64], b: f64, y: f64, rms: f64) -> Column {
        let n = z.len();
        let mut column = Column { shares: vec![0.0; n], sinks: Vec::new() };
        let numerators =
            |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> { (0..n).map(|i| f(z[i], w[i])).collect() };
        let product = numerators(&|z, w| z * w);
        match self {
            Self::Lrp0 { bias } => column.share(1.0, &product, b, bias, 0.0, Cause::Dead),
            Self::Epsilon { epsilon, relative, bias } => {
                column.share(
                    1.0,
                    &product,
                    b,
                    bias,
                    if relative { epsilon * rms } else { epsilon },
                    Cause::Dead,
                );
            }
            Self::Gamma { gamma: g, epsilon, bias } => {
                let of = |with: fn(f64) -> f64, against: fn(f64) -> f64| {
                    numerators(&|z, w| {
                        positive(z) * (w + g * with(w)) + negative(z) * (w + g * against(w))
                    })
                };
                if y > 0.0 {
                    column.share(
                        1.0,
                        &of(positive, negative),
                        b + g * positive(b),
                        bias,
                        epsilon,
                        Cause::Dead,
                    );
                } else if y < 0.0 {
                    column.share(
                        1.0,
                        &of(negative, positive),
                        b + g * negative(b),
                        bias,
                        epsilon,
                        Cause::Dead,
                    );
                } else {
                    column.sinks.push((Cause::Dead, 1.0));
                }
            }
            Self::GammaPlain { gamma: g, epsilon, bias } => {
                column.share(
                    1.0,
                    &numerators(&|z, w| z * (w + g * positive(w))),
                    b + g * positive(b),
                    bias,
                    epsilon,
                    Cause::Dead,
                );
            }
            Self::ZPlus { epsilon, bias } => {
                let fors =
                    numerators(&|z, w| positive(z) * positive(w) + negative(z) * negative(w));
                column.share(1.0, &fors, positive(b), bias, epsilon, Cause::Empty);
            }
            Self::AlphaBeta { alpha, epsilon, bias } => {
                let fors =
                    numerators(&|z, w| positive(z) * positive(w) + negative(z) * negative(w));
                let againsts =
                    numerators(&|z, w| positive(z) * negative(w) + negative(z) * positive(w));
                column.share(alpha, &fors, positive(b), bias, epsilon, Cause::Empty);
                if alpha > 1.0 {
                    column.share(1.0 - alpha, &againsts, negative(b), bias, epsilon, Cause::Empty);
                }
            }
            Self::ZBox { low, high, epsilon } => {
                let corner = numerators(&|z, w| z * w - low * positive(w) - high * negative(w));
                column.share(1.0, &corner, 0.0, BiasMode::Ignore, epsilon, Cause::Dead);
            }
            Self::WSquare { epsilon, bias } => {
                column.share(1.0, &numerators(&|_, w| w * w), b * b, bias, epsilon, Cause::Empty);
            }
            Self::Flat => column.shares.fill(1.0 / n as f64),
            Self::AbsLrp { epsilon } => {
                let magnitude = product.iter().map(|p| p.abs()).sum();
                column.share_by(&product, 0.0, magnitude, BiasMode::Ignore, epsilon);
            }
            Self::Sign { epsilon, bias } => {
                let total =
                    product.iter().sum::<f64>() + if bias == BiasMode::Ignore { 0.0 } else { b };
                column.share_by(
                    &numerators(&|z, w| if z < 0.0 { -w } else { w }),
                    b,
                    total,
                    bias,
                    epsilon,
                );
            }
            Self::Relative { bias } => {
                let mut rest = 1.0;
                for i in 0..n {
                    let distributed = if bias == BiasMode::Distribute { b / n as f64 } else { 0.0 };
                    column.shares[i] = (product[i] + distributed) / n as f64;
                    rest -= column.shares[i];
                }
                column.sinks.push((Cause::Rest, rest));
            }
        }
        column
    }

    /// The share matrix A (inputs x outputs) and the sinks of one layer.
    fn factor(self, layer: &Dense, z: &[f64]) -> (Matrix, Vec<(Cause, Vec<f64>)>) {
        let outputs = layer.weights.len();
        let bias = layer.bias.clone().unwrap_or_else(|| vec![0.0; outputs]);
        let products: Vec<f64> =
            layer.weights.iter().map(|w| w.iter().zip(z).map(|(w, z)| w * z).sum()).collect();
        let y: Vec<f64> = products.iter().zip(&bias).map(|(product, b)| product + b).collect();
        let totals = match self {
            Self::Epsilon { bias: BiasMode::Ignore, .. } => &products,
            _ => &y,
        };
        let rms = (totals.iter().map(|t| t * t).sum::<f64>() / outputs as f64).sqrt();
        let mut shares = vec![vec![0.0; outputs]; z.len()];
        let mut sinks: Vec<(Cause, Vec<f64>)> = Vec::new();
        for j in 0..outputs {
            let column = self.column(z, &layer.weights[j], bias[j], y[j], rms);
            for i in 0..z.len() {
                shares[i][j] = column.shares[i];
            }
            for (cause, share) in column.sinks {
                match sinks.iter_mut().find(|(known, _)| *known == cause) {
                    Some((_, row)) => row[j] += share,
                    None => sinks.push((
                        cause,
                        (0..outputs).map(|k| if k == j { share } else { 0.0 }).collect(),
                    )),
                }
            }
        }
        (shares, sinks)
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
    /// The inputs of each layer, followed by the output.
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

    /// The index of a linear layer in the model.
    pub fn index(&self, linear: usize) -> usize {
        if self.relu { 2 * linear } else { linear }
    }

    pub fn sample<T: Scalar>(&self) -> DVector<T> {
        DVector::from_iterator(self.x.len(), self.x.iter().map(|&v| T::from_f64(v)))
    }

    pub fn model<T: Scalar>(&self) -> Sequential<T> {
        let mut builder = Sequential::builder();
        for (index, layer) in self.layers.iter().enumerate() {
            let weights = DMatrix::from_fn(layer.weights.len(), layer.weights[0].len(), |j, i| {
                T::from_f64(layer.weights[j][i])
            });
            let bias = layer
                .bias
                .as_ref()
                .map(|b| DVector::from_iterator(b.len(), b.iter().map(|&v| T::from_f64(v))));
            builder = builder.layer(Linear::new(weights, bias).unwrap());
            if self.relu && index + 1 < self.layers.len() {
                builder = builder.layer(Relu);
            }
        }
        builder.build().unwrap()
    }

    pub fn expected(&self, formula: Formula) -> Expected {
        self.expected_by(&vec![formula; self.layers.len()])
    }

    /// The expected explanation with a formula for each layer.
    pub fn expected_by(&self, formulas: &[Formula]) -> Expected {
        let values = self.activations();
        let layers = self.layers.iter().zip(&values);
        let factors: Vec<_> =
            layers.zip(formulas).map(|((layer, z), formula)| formula.factor(layer, z)).collect();
        let mut shares: Option<Matrix> = None;
        let mut sinks = Vec::new();
        for (linear, (a, rows)) in factors.into_iter().enumerate().rev() {
            for (cause, row) in rows {
                let row = shares.as_ref().map_or(row.clone(), |above| {
                    multiply(std::slice::from_ref(&row), above).remove(0)
                });
                sinks.push((self.index(linear), cause, row));
            }
            shares = Some(shares.map_or(a.clone(), |above| multiply(&a, &above)));
        }
        Expected { output: values[values.len() - 1].clone(), shares: shares.unwrap(), sinks }
    }
}

impl Expected {
    /// The largest of all shares, including sinks. It is not small, because they sum to 1.
    fn largest(&self) -> f64 {
        let sinks = self.sinks.iter().flat_map(|(_, _, row)| row);
        self.shares.iter().flatten().chain(sinks).fold(0.0, |max: f64, v| max.max(v.abs()))
    }

    /// Panics if the explanation differs from the expected one by more than `tolerance` times the
    /// largest entry.
    pub fn assert_is<T: Scalar>(&self, found: &Explanation<T>, tolerance: f64) {
        let largest_output = self.output.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
        for (k, output) in self.output.iter().enumerate() {
            let error = (found.output()[k].as_f64() - output).abs();
            assert!(
                error <= tolerance * largest_output.max(1.0),
                "output {k}: {} for {output}",
                found.output()[k]
            );
        }
        let allowed = tolerance * self.largest();
        let scale = f64::from(found.exponent()).exp2();
        assert_eq!(found.shares().shape(), (self.shares.len(), self.output.len()));
        for (i, row) in self.shares.iter().enumerate() {
            for (k, &share) in row.iter().enumerate() {
                let is = found.shares()[(i, k)].as_f64() * scale;
                assert!(
                    (is - share).abs() <= allowed,
                    "share of input {i} in output {k}: {is} for {share}"
                );
            }
        }
        for k in 0..self.output.len() {
            let ledger = found.ledger(k).unwrap();
            for (layer, cause, row) in &self.sinks {
                let entries =
                    ledger.entries().iter().filter(|e| e.layer() == *layer && e.cause() == *cause);
                let is: f64 = entries.map(relprop::LedgerEntry::share).sum();
                assert!(
                    (is - row[k]).abs() <= allowed,
                    "layer {layer} {cause:?} in output {k}: {is} for {}",
                    row[k]
                );
            }
            for entry in ledger.entries().iter().filter(|entry| entry.share() != 0.0) {
                let known = self
                    .sinks
                    .iter()
                    .any(|(layer, cause, _)| entry.layer() == *layer && entry.cause() == *cause);
                assert!(known, "a sink that the formulas do not have: {entry:?}");
            }
        }
    }
}

/// The beginning of a zip archive whose first file has this name.
#[cfg(any(feature = "onnx", all(feature = "npz", feature = "pytorch", feature = "safetensors")))]
pub fn zip_of(name: &str) -> Vec<u8> {
    let mut file = b"PK\x03\x04".to_vec();
    file.resize(26, 0);
    file.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
    file.extend([0, 0]);
    file.extend(name.as_bytes());
    file
}
