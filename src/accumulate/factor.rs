//! Factors: the share matrix of a layer of any kind, for the current samples.
//!
//! | layer | factor |
//! |---|---|
//! | linear | a rule's terms ([`Ruled`]) |
//! | max pooling and the like | 1 where an output is a copy of an input |
//! | branches | the products of each branch's own factors, side by side |

use crate::accumulate::Cause;
use crate::accumulate::range::OutOfRange;
use crate::accumulate::ruled::{self, Ruled, Shares};
use crate::buffer::{Buffer, Buffers};
use crate::check::Finding;
use crate::error::Error;
use crate::linalg;
use crate::memory::MemoryLimit;
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;
use crate::sequential::{Bound, Chain, Leaving, Linear, Sequential};

/// All factors of a model under a rule, with everything that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Network<T: Scalar> {
    /// The factors, indexed by their numbers.
    pub factors: Vec<Prepared<T>>,
    /// The numbers of the factors outside branches. S is the product of these factors.
    pub chain: Vec<usize>,
}

/// One factor, with everything that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Prepared<T: Scalar> {
    pub layer: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// The layer and the cause of each row of sinks.
    pub sinks: Vec<(usize, Cause)>,
    pub kind: Kind<T>,
}

#[derive(Debug)]
pub(crate) enum Kind<T: Scalar> {
    Ruled(Box<Ruled<T>>),
    Route,
    /// The numbers of the factors of each branch.
    Branches(Vec<Vec<usize>>),
}

/// A factor for some samples.
#[derive(Debug)]
pub(crate) struct Factor<T> {
    pub number: usize,
    pub samples: usize,
    pub values: Values<T>,
}

#[derive(Debug)]
pub(crate) enum Values<T> {
    Ruled(Shares<T>),
    /// For each output of each sample, the input that it is a copy of.
    Route(Buffer<usize>),
    Branches(Vec<Vec<Factor<T>>>),
}

impl<T: Scalar> Network<T> {
    /// Prepares the rule at every linear layer of the model.
    pub fn new(model: &Sequential<T>, rule: &dyn RelevanceRule<T>) -> Result<Self, Error> {
        let mut ruled: Vec<Option<Ruled<T>>> = Vec::new();
        let sites = model.sites();
        rule.check_sites(&sites.iter().map(|(site, _)| site.clone()).collect::<Vec<_>>())?;
        for (site, linear) in sites {
            // A rule prepares a few values for each input and output. A file with a wrong input
            // shape could make their number arbitrarily large.
            let what = || {
                format!(
                    "preparing the rule at layer {} ({} inputs, {} outputs)",
                    site.layer, site.inputs, site.outputs
                )
            };
            let remedy = || "give the model a smaller input".to_owned();
            MemoryLimit::default().check::<T>(
                2.0 * (site.inputs as f64 + site.outputs as f64),
                what,
                remedy,
            )?;
            let prepared = Ruled::new(rule, &site, linear)?;
            // The numbers of routes and branches stay empty here.
            ruled.resize_with(ruled.len().max(linear.factor + 1), || None);
            ruled[linear.factor] = Some(prepared);
        }
        let mut network = Self { factors: Vec::new(), chain: Vec::new() };
        network.chain = network.add(model.chain(), &mut ruled);
        Ok(network)
    }

    /// Adds the factors of a chain and returns their numbers.
    fn add(&mut self, chain: &Chain<T>, ruled: &mut [Option<Ruled<T>>]) -> Vec<usize> {
        // Factors must be pushed in the order of their numbers, which index `factors`. The model
        // numbers a layer with branches before its branches, and their sum after them.
        let mut numbers = Vec::new();
        for node in &chain.nodes {
            let layer = node.index;
            match &node.bound {
                Bound::Linear(linear) => self.take(layer, linear, ruled, &mut numbers),
                Bound::Route { factor, inputs, .. } => {
                    let (inputs, outputs) = (*inputs, node.output.size());
                    self.factors.push(Prepared {
                        layer,
                        inputs,
                        outputs,
                        sinks: Vec::new(),
                        kind: Kind::Route,
                    });
                    numbers.push(*factor);
                }
                Bound::Branches { factor, branches, inputs, sum } => {
                    let outputs = branches.iter().map(|branch| branch.output.size()).sum();
                    // Added before the branches with placeholders, because its sinks are known only
                    // after them.
                    let place = self.factors.len();
                    let kind = Kind::Branches(Vec::new());
                    self.factors.push(Prepared {
                        layer,
                        inputs: *inputs,
                        outputs,
                        sinks: Vec::new(),
                        kind,
                    });
                    let inner: Vec<Vec<usize>> =
                        branches.iter().map(|branch| self.add(branch, ruled)).collect();
                    let sinks = inner
                        .iter()
                        .flatten()
                        .flat_map(|&number| self.factors[number].sinks.clone())
                        .collect();
                    self.factors[place].sinks = sinks;
                    self.factors[place].kind = Kind::Branches(inner);
                    numbers.push(*factor);
                    if let Some(sum) = sum {
                        self.take(layer, sum, ruled, &mut numbers);
                    }
                }
                Bound::Elementwise(_) | Bound::Reshape | Bound::Softmax(_) | Bound::Link(_) => {}
            }
        }
        numbers
    }

    fn take(
        &mut self,
        layer: usize,
        linear: &Linear<T>,
        ruled: &mut [Option<Ruled<T>>],
        numbers: &mut Vec<usize>,
    ) {
        if let Some(ruled) = ruled.get_mut(linear.factor).and_then(Option::take) {
            let sinks = ruled.causes.iter().map(|&cause| (layer, cause)).collect();
            let (inputs, outputs) = (ruled.inputs, ruled.outputs);
            self.factors.push(Prepared {
                layer,
                inputs,
                outputs,
                sinks,
                kind: Kind::Ruled(Box::new(ruled)),
            });
            numbers.push(linear.factor);
        }
    }

    /// The factors of the chain, in order.
    pub fn chain(&self) -> impl Iterator<Item = &Prepared<T>> {
        self.chain.iter().map(|&number| &self.factors[number])
    }

    /// Removes the ranges that rules assume, so that no sample is refused or noted.
    pub fn remove_ranges(&mut self) {
        for prepared in &mut self.factors {
            if let Kind::Ruled(ruled) = &mut prepared.kind {
                ruled.range = None;
            }
        }
    }

    /// The cost of applying a factor to one column.
    pub fn multiply_adds(&self, prepared: &Prepared<T>) -> f64 {
        match &prepared.kind {
            Kind::Ruled(ruled) => ruled.multiply_adds(),
            Kind::Route => prepared.outputs as f64,
            Kind::Branches(branches) => {
                let inner = branches
                    .iter()
                    .flatten()
                    .map(|&number| self.multiply_adds(&self.factors[number]));
                inner.sum::<f64>() + prepared.outputs as f64
            }
        }
    }

    /// The costs of forming one row and one column of a factor.
    pub fn formed(&self, prepared: &Prepared<T>) -> (f64, f64) {
        match &prepared.kind {
            Kind::Ruled(ruled) => ruled.formed(),
            Kind::Route => (prepared.outputs as f64, prepared.inputs as f64),
            Kind::Branches(_) => (self.multiply_adds(prepared), self.multiply_adds(prepared)),
        }
    }

    /// The factor of the linear layer that the pass leaves. A sample outside the range that the
    /// layer's rule assumes causes an error or is noted, depending on the rule.
    pub fn factor(
        &self,
        leaving: Leaving<'_, T>,
        buffers: &mut Buffers<T>,
        noted: &mut Vec<OutOfRange>,
    ) -> Result<Factor<T>, Error> {
        let number = leaving.factor;
        match &self.factors[number].kind {
            Kind::Ruled(ruled) => {
                if let Some(range) = &ruled.range {
                    range.check(&leaving.inputs, noted)?;
                }
                let shares = ruled.shares(leaving, buffers);
                Ok(Factor { number, samples: shares.samples, values: Values::Ruled(shares) })
            }
            // Never reached: a linear layer's factor is always ruled.
            Kind::Route | Kind::Branches(_) => {
                Ok(Factor { number, samples: 0, values: Values::Branches(Vec::new()) })
            }
        }
    }

    /// The finding for a sample that was noted.
    pub fn finding(&self, found: &OutOfRange) -> Option<Finding> {
        let Kind::Ruled(ruled) = &self.factors[found.factor].kind else { return None };
        ruled.range.as_ref().map(|range| range.finding(found))
    }
}

impl<T: Scalar> Factor<T> {
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        match self.values {
            Values::Ruled(shares) => shares.give_back(buffers),
            Values::Route(from) => buffers.indices.give(from),
            Values::Branches(branches) => {
                branches.into_iter().flatten().for_each(|factor| factor.give_back(buffers));
            }
        }
    }
}

/// The factors of branches that are not complete yet.
#[derive(Debug)]
pub(crate) struct Open<T>(Vec<Vec<Vec<Factor<T>>>>);

impl<T> Default for Open<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Open<T> {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn open(&mut self) {
        // Branches can be nested. The innermost open layer is last.
        self.0.push(Vec::new());
    }

    pub fn next(&mut self) {
        self.0.iter_mut().next_back().into_iter().for_each(|branches| branches.push(Vec::new()));
    }

    /// Puts a factor into the open branch, or returns it if no branch is open.
    pub fn place(&mut self, factor: Factor<T>) -> Option<Factor<T>> {
        match self.0.last_mut().and_then(|branches| branches.last_mut()) {
            Some(branch) => {
                branch.push(factor);
                None
            }
            None => Some(factor),
        }
    }

    /// The factor of the branches that end here.
    pub fn close(&mut self, number: usize, samples: usize) -> Factor<T> {
        Factor { number, samples, values: Values::Branches(self.0.pop().unwrap_or_default()) }
    }
}

/// A factor together with its network.
#[derive(Clone, Copy)]
pub(crate) struct Linked<'a, T: Scalar> {
    pub factor: &'a Factor<T>,
    pub network: &'a Network<T>,
}

/// The parts of a factor, together with their values.
enum Parts<'a, T: Scalar> {
    Ruled(ruled::Linked<'a, T>),
    Route(&'a [usize]),
    Branches(&'a [Vec<Factor<T>>]),
}

/// Receives the values of a factor's sinks in a product A X: the sample, the index of the first
/// sink, and one value for each sink and column.
pub(crate) type Drain<'a, T> = &'a mut dyn FnMut(usize, usize, &[T]);

impl<'a, T: Scalar> Linked<'a, T> {
    pub fn prepared(self) -> &'a Prepared<T> {
        &self.network.factors[self.factor.number]
    }

    fn parts(self) -> Parts<'a, T> {
        match (&self.prepared().kind, &self.factor.values) {
            (Kind::Ruled(ruled), Values::Ruled(shares)) => {
                Parts::Ruled(ruled::Linked { shares, ruled })
            }
            (_, Values::Route(from)) => Parts::Route(from),
            (_, Values::Branches(branches)) => Parts::Branches(branches),
            // Never reached: only a ruled factor has ruled values.
            (_, Values::Ruled(_)) => Parts::Branches(&[]),
        }
    }

    fn inner(self, factor: &'a Factor<T>) -> Self {
        Self { factor, ..self }
    }

    /// For a route, the inputs that a sample's outputs are copies of.
    fn from(self, from: &'a [usize], sample: usize) -> &'a [usize] {
        &from[sample * self.prepared().outputs..][..self.prepared().outputs]
    }

    /// Lists the inputs that can have a nonzero share for a sample, and returns their number.
    pub fn live(self, sample: usize, list: &mut [usize]) -> usize {
        match self.parts() {
            Parts::Ruled(linked) => linked.live(sample, list),
            Parts::Route(from) => {
                list.fill(0);
                self.from(from, sample).iter().for_each(|&i| list[i] = 1);
                let mut count = 0;
                for i in 0..list.len() {
                    // Compacts the flags to a list of indices, in place and without branching.
                    let there = list[i];
                    list[count] = i;
                    count += there;
                }
                count
            }
            // Not examined further: all inputs are taken to be live.
            Parts::Branches(_) => {
                list.iter_mut().enumerate().for_each(|(i, at)| *at = i);
                list.len()
            }
        }
    }

    /// Writes the listed rows of A for one sample to `out`, outputs x listed rows.
    pub fn rows(self, sample: usize, listed: &[usize], out: &mut [T], buffers: &mut Buffers<T>) {
        if let Parts::Ruled(linked) = self.parts() {
            return linked.rows(sample, listed, out, buffers);
        }
        // Row i of A is Aᵀ times unit vector i.
        let units = units(listed, self.prepared().inputs, buffers);
        self.apply_transposed(sample, &units, out, buffers);
        buffers.values.give(units);
    }

    /// Writes the listed columns of A for one sample to `out`, inputs x listed columns. Only a
    /// ruled factor can do this; for any other factor, returns `false`.
    pub fn columns(
        self,
        sample: usize,
        listed: &[usize],
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) -> bool {
        if let Parts::Ruled(linked) = self.parts() {
            linked.columns(sample, listed, out, buffers);
            return true;
        }
        false
    }

    /// Writes the rows of sinks of a sample to `out`, one value per output. The rows of sinks
    /// inside a branch are carried to the end of that branch.
    pub fn sink_rows(self, sample: usize, out: &mut [T], buffers: &mut Buffers<T>) {
        match self.parts() {
            Parts::Ruled(linked) => linked.sink_rows(sample, out),
            Parts::Route(_) => {}
            Parts::Branches(branches) => {
                // A sink in one branch receives nothing from the outputs of the others.
                out.fill(T::zero());
                let outputs = self.prepared().outputs;
                // `row` counts the sinks so far, and `first` is where the outputs of the current
                // branch begin.
                let (mut row, mut first) = (0, 0);
                for branch in branches {
                    for (place, factor) in branch.iter().enumerate() {
                        let linked = self.inner(factor);
                        let sinks = linked.prepared().sinks.len();
                        let mut rows = buffers.values.take(sinks * linked.prepared().outputs);
                        linked.sink_rows(sample, &mut rows, buffers);
                        // The factor's outputs are inputs of the next factor, so its rows are
                        // carried through the rest.
                        let rows = self.through(sample, &branch[place + 1..], rows, sinks, buffers);
                        // The number of outputs at the end of the branch.
                        let size = rows.len() / sinks.max(1);
                        for (out, from) in out[row * outputs..]
                            .chunks_exact_mut(outputs)
                            .zip(rows.chunks_exact(size.max(1)))
                        {
                            out[first..first + size].copy_from_slice(from);
                        }
                        buffers.values.give(rows);
                        row += sinks;
                    }
                    first += self.size(branch);
                }
            }
        }
    }

    /// The number of outputs of a branch.
    fn size(self, branch: &[Factor<T>]) -> usize {
        branch.last().map_or(self.prepared().inputs, |factor| self.inner(factor).prepared().outputs)
    }

    /// Multiplies columns by the transposes of several factors in turn.
    fn through(
        self,
        sample: usize,
        factors: &'a [Factor<T>],
        x: Buffer<T>,
        columns: usize,
        buffers: &mut Buffers<T>,
    ) -> Buffer<T> {
        factors.iter().fold(x, |x, factor| {
            let linked = self.inner(factor);
            let mut next = buffers.values.take(linked.prepared().outputs * columns);
            linked.apply_transposed(sample, &x, &mut next, buffers);
            buffers.values.give(x);
            next
        })
    }

    /// Computes Aᵀ X for one sample. The columns of `x` have `inputs` values, and those of `out`
    /// have `outputs` values. Cost: that of the factor's product, for each column.
    pub fn apply_transposed(self, sample: usize, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        let Prepared { inputs, outputs, .. } = *self.prepared();
        if x.is_empty() {
            // There are no columns if no input is live, or if the layers so far have no sinks.
            return;
        }
        match self.parts() {
            Parts::Ruled(linked) => linked.apply_transposed(sample, x, out, buffers),
            Parts::Route(from) => {
                let from = self.from(from, sample);
                for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(outputs)) {
                    out.iter_mut().zip(from).for_each(|(out, &i)| *out = x[i]);
                }
            }
            Parts::Branches(branches) => {
                let columns = x.len() / inputs;
                let mut first = 0;
                for branch in branches {
                    let mut copy = buffers.values.take(x.len());
                    linalg::copy(x, &mut copy);
                    let of_branch = self.through(sample, branch, copy, columns, buffers);
                    let size = self.size(branch);
                    for (out, from) in
                        out.chunks_exact_mut(outputs).zip(of_branch.chunks_exact(size))
                    {
                        out[first..first + size].copy_from_slice(from);
                    }
                    buffers.values.give(of_branch);
                    first += size;
                }
            }
        }
    }

    /// Computes A X for all samples. The columns of `x` have `outputs` values, and those of `out`
    /// have `inputs` values. Each sample has the same number of columns. The values of the sinks,
    /// numbered from `first` on, are passed to `drain`. Cost: that of the factor's product, for
    /// each column.
    pub fn apply(
        self,
        x: &[T],
        out: &mut [T],
        first: usize,
        drain: Drain<'_, T>,
        buffers: &mut Buffers<T>,
    ) {
        let Prepared { inputs, outputs, .. } = *self.prepared();
        let samples = self.factor.samples;
        let columns = x.len() / outputs / samples.max(1);
        match self.parts() {
            Parts::Ruled(linked) => {
                let mut sinks = buffers.values.take(self.prepared().sinks.len() * columns);
                for (sample, block) in x.chunks_exact(outputs * columns).enumerate() {
                    linked.drain(sample, block, &mut sinks);
                    drain(sample, first, &sinks);
                }
                buffers.values.give(sinks);
                linked.apply(x, out, buffers);
            }
            Parts::Route(from) => {
                out.fill(T::zero());
                let blocks =
                    x.chunks_exact(outputs * columns).zip(out.chunks_exact_mut(inputs * columns));
                for (sample, (x, out)) in blocks.enumerate() {
                    let from = self.from(from, sample);
                    for (x, out) in x.chunks_exact(outputs).zip(out.chunks_exact_mut(inputs)) {
                        // Several outputs can be copies of the same input.
                        from.iter().zip(x).for_each(|(&i, &x)| out[i] += x);
                    }
                }
            }
            Parts::Branches(branches) => {
                // The sinks are in the order of the branches.
                let (mut sinks, mut place) = (first, 0);
                for (number, branch) in branches.iter().enumerate() {
                    let size = self.size(branch);
                    // The rows of x that belong to the outputs of this branch.
                    let mut block = buffers.values.take(size * columns * samples);
                    for (block, x) in block.chunks_exact_mut(size).zip(x.chunks_exact(outputs)) {
                        linalg::copy(&x[place..place + size], block);
                    }
                    place += size;
                    sinks += branch
                        .iter()
                        .map(|factor| self.inner(factor).prepared().sinks.len())
                        .sum::<usize>();
                    // The factors are applied from the last to the first, so their sinks are
                    // numbered downward.
                    let mut end = sinks;
                    for factor in branch.iter().rev() {
                        let linked = self.inner(factor);
                        end -= linked.prepared().sinks.len();
                        let mut next =
                            buffers.values.take(linked.prepared().inputs * columns * samples);
                        linked.apply(&block, &mut next, end, drain, buffers);
                        buffers.values.give(block);
                        block = next;
                    }
                    // All branches have the same inputs, so their relevances add up.
                    if number == 0 {
                        linalg::copy(&block, out);
                    } else {
                        linalg::add_scaled(T::one(), &block, out);
                    }
                    buffers.values.give(block);
                }
            }
        }
    }
}

/// The listed unit vectors.
pub(crate) fn units<T: Scalar>(
    listed: &[usize],
    size: usize,
    buffers: &mut Buffers<T>,
) -> Buffer<T> {
    let mut units = buffers.values.take(size * listed.len());
    units.fill(T::zero());
    units.chunks_exact_mut(size).zip(listed).for_each(|(unit, &at)| unit[at] = T::one());
    units
}
