//! The plan: the order in which the chain S = A¹ … Aᴸ is multiplied.

use std::fmt;

use super::Accumulation;

/// The longest chain for which the best order is searched, because the search takes cubic time.
const SEARCHED: usize = 256;

/// The sizes and costs of a factor of the chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub inputs: usize,
    pub outputs: usize,
    pub sinks: usize,
    /// The cost of applying the factor to one column.
    pub multiply_adds: f64,
    /// The cost of forming one row.
    pub row: f64,
    /// The cost of forming one column.
    pub column: f64,
    /// The cost of carrying the factor's own sinks to its end, if it has several nodes.
    pub carry: f64,
    /// The size of the largest value inside the factor, if it has several nodes.
    pub widest: usize,
}

impl Link {
    /// The cost of forming the whole share matrix by rows.
    pub fn of_rows(&self) -> f64 {
        self.row * self.inputs as f64 + self.carry
    }

    /// The cost of forming the whole share matrix by columns.
    pub fn of_columns(&self) -> f64 {
        self.column * self.outputs as f64
    }
}

/// What the chain ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing: all outputs are explained.
    All,
    /// This many outputs of the last factor.
    Selected(usize),
    /// This many weightings of the outputs.
    Weighted(usize),
}

/// One step of the accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait for the next factor or, at the end, for the targets.
    Shift,
    /// Multiply the block on the left by the factor on the right. The block grows to the right.
    Append,
    /// Multiply the factor on the left by the block on the right. The block grows to the left.
    Prepend,
    /// Multiply two blocks.
    Join,
    /// Keep the selected outputs of the item on the left.
    Select,
}

/// How a plan uses a factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Its share matrix is formed.
    Formed,
    /// It is multiplied by a block on its left: a product Aᵀ X.
    Appended,
    /// It is multiplied by a block on its right: a product A X.
    Prepended,
}

/// The order in which an explainer multiplies the share matrices, and its cost.
///
/// A network is a chain of share matrices A1 … AL, one for each segment: a layer, or all layers
/// between two values that all relevance flows through ([the guide](crate::guide::graphs) has
/// examples). If not all outputs are explained, the chain ends with the targets T. `Display` shows the bracketing of the chain and
/// the multiply-adds per sample for each order. The counts ignore the work that zeros save, and do
/// not include the forward pass.
///
/// ```
/// use relprop::{Accumulation, Linear, Relu, Rule, Sequential};
/// use relprop::nalgebra::DMatrix;
///
/// let layer = |inputs, outputs| {
///     Linear::new(DMatrix::from_element(outputs, inputs, 0.1_f32), None)
/// };
/// let model = Sequential::builder()
///     .layer(layer(784, 128)?)
///     .layer(Relu)
///     .layer(layer(128, 32)?)
///     .layer(Relu)
///     .layer(layer(32, 128)?)
///     .layer(Relu)
///     .layer(layer(128, 784)?)
///     .build()?;
/// let explainer = model.explainer(Rule::Epsilon)?;
/// println!("{}", explainer.plan());
/// assert_eq!(explainer.plan().bracketing(Accumulation::Optimal), "(A1 A2) (A3 A4)");
/// assert!(explainer.plan().multiply_adds(Accumulation::Optimal) < 27e6);
/// assert!(explainer.plan().multiply_adds(Accumulation::Forward) > 85e6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    accumulation: Accumulation,
    steps: Vec<Step>,
    orders: [Order; 3],
    /// The names of the layers that each factor consists of.
    layers: Vec<Vec<String>>,
}

/// One order, given by how often the two topmost items are multiplied after each shift.
#[derive(Debug, Clone, PartialEq)]
struct Order {
    accumulation: Accumulation,
    reductions: Vec<usize>,
    multiply_adds: f64,
    /// The number of values in the largest block.
    largest: f64,
    has_targets: bool,
}

/// A product of neighboring elements of the chain.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: usize,
    last: usize,
    kind: SpanKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpanKind {
    Factor,
    Block,
    Selection,
}

/// The chain, with everything needed to compute the cost of a product.
struct Chain<'a> {
    links: &'a [Link],
    end: End,
}

impl Plan {
    pub(crate) fn new(
        accumulation: Accumulation,
        links: &[Link],
        end: End,
        layers: Vec<Vec<String>>,
    ) -> Self {
        let chain = Chain { links, end };
        let length = links.len() + usize::from(end != End::All);
        // Forward multiplies after every element except the first. Reverse waits for the last one.
        let forward: Vec<usize> = (0..length).map(|element| usize::from(element > 0)).collect();
        let reverse: Vec<usize> =
            (0..length).map(|element| if element + 1 == length { element } else { 0 }).collect();
        let order = |accumulation, reductions: Vec<usize>| {
            let (steps, multiply_adds, largest) = chain.run(&reductions, accumulation);
            (
                steps,
                Order {
                    accumulation,
                    reductions,
                    multiply_adds,
                    largest,
                    has_targets: end != End::All,
                },
            )
        };
        let forward = order(Accumulation::Forward, forward);
        let reverse = order(Accumulation::Reverse, reverse);
        let searched = if length <= SEARCHED { chain.cheapest() } else { chain.cheapest_split() };
        let mut optimal = order(Accumulation::Optimal, searched);
        for other in [&reverse, &forward] {
            // Never worse than forward or reverse accumulation. Forward wins a tie, because it
            // keeps no activations.
            if other.1.multiply_adds <= optimal.1.multiply_adds {
                optimal = (
                    other.0.clone(),
                    Order { accumulation: Accumulation::Optimal, ..other.1.clone() },
                );
            }
        }
        let steps = match accumulation {
            Accumulation::Optimal => optimal.0,
            Accumulation::Forward => forward.0,
            Accumulation::Reverse => reverse.0,
        };
        Self { accumulation, steps, orders: [optimal.1, forward.1, reverse.1], layers }
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How the steps use each factor.
    pub(crate) fn uses(&self) -> Vec<Use> {
        let mut uses = vec![Use::Formed; self.layers.len()];
        // The factors on the machine's stack, and `None` for blocks and targets.
        let mut stack = Vec::new();
        let mut factors = 0..self.layers.len();
        for step in &self.steps {
            if *step == Step::Shift {
                stack.push(factors.next());
                continue;
            }
            let (right, left) = (stack.pop().flatten(), stack.pop().flatten());
            match (step, left, right) {
                (Step::Append, _, Some(right)) => uses[right] = Use::Appended,
                (Step::Prepend, Some(left), _) => uses[left] = Use::Prepended,
                _ => {}
            }
            stack.push(None);
        }
        uses
    }

    /// The names of the layers that each of A1 … AL consists of.
    ///
    /// A factor has several layers where values bypass them, as in a residual block. Between its
    /// ends, nothing can be bracketed.
    pub fn factors(&self) -> impl Iterator<Item = &[String]> {
        self.layers.iter().map(Vec::as_slice)
    }

    /// The order in use.
    #[must_use]
    pub fn accumulation(&self) -> Accumulation {
        self.accumulation
    }

    /// The multiply-adds for one sample in the given order.
    #[must_use]
    pub fn multiply_adds(&self, accumulation: Accumulation) -> f64 {
        self.order(accumulation).multiply_adds
    }

    /// The number of values in the largest block of shares, for one sample in the given order.
    #[must_use]
    pub fn largest_block(&self, accumulation: Accumulation) -> f64 {
        self.order(accumulation).largest
    }

    /// The given order, shown as brackets around A1 … AL.
    ///
    /// The targets T are included if not all outputs are explained.
    #[must_use]
    pub fn bracketing(&self, accumulation: Accumulation) -> String {
        let order = self.order(accumulation);
        let mut stack: Vec<String> = Vec::new();
        let last = order.reductions.len() - 1;
        for (element, &reductions) in order.reductions.iter().enumerate() {
            stack.push(if element == last && order.has_targets {
                "T".to_owned()
            } else {
                format!("A{}", element + 1)
            });
            for _ in 0..reductions {
                if let (Some(right), Some(left)) = (stack.pop(), stack.pop()) {
                    stack.push(format!("({left} {right})"));
                }
            }
        }
        let text = stack.pop().unwrap_or_default();
        text.strip_prefix('(')
            .and_then(|text| text.strip_suffix(')'))
            .map_or(text.clone(), str::to_owned)
    }

    fn order(&self, accumulation: Accumulation) -> &Order {
        let [optimal, forward, reverse] = &self.orders;
        match accumulation {
            Accumulation::Optimal => optimal,
            Accumulation::Forward => forward,
            Accumulation::Reverse => reverse,
        }
    }
}

impl fmt::Display for Plan {
    /// Prints one line for each order, with an arrow before the one in use, and one for each factor
    /// of several layers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, order) in self.orders.iter().enumerate() {
            let arrow = if order.accumulation == self.accumulation { "->" } else { "  " };
            let name = format!("{:?}", order.accumulation).to_lowercase();
            let cost = match order.multiply_adds {
                cost if cost < 1e6 => format!("{:.1} k", cost / 1e3),
                cost => format!("{:.1} M", cost / 1e6),
            };
            let line = if index == 0 { "" } else { "\n" };
            write!(
                f,
                "{line}{arrow} {name:<8} {cost:>10} multiply-adds  {}",
                self.bracketing(order.accumulation)
            )?;
        }
        for (index, layers) in self.layers.iter().enumerate() {
            if let [first, .., last] = layers.as_slice() {
                let count = layers.len();
                write!(f, "\n   A{} has {count} layers, from {first} to {last}", index + 1)?;
            }
        }
        Ok(())
    }
}

impl Chain<'_> {
    fn length(&self) -> usize {
        self.links.len() + usize::from(self.end != End::All)
    }

    fn element(&self, index: usize) -> Span {
        let kind = match self.end {
            _ if index < self.links.len() => SpanKind::Factor,
            End::Weighted(_) => SpanKind::Block,
            _ => SpanKind::Selection,
        };
        Span { first: index, last: index, kind }
    }

    /// The number of rows of a span: the inputs of its first factor and all of its sinks.
    fn rows(&self, span: Span) -> f64 {
        // The targets at the end of the chain have no link.
        let links = &self.links[span.first..self.links.len().min(span.last + 1)];
        (self.inner(span.first) + links.iter().map(|link| link.sinks).sum::<usize>()) as f64
    }

    /// The number of columns of a span.
    fn columns(&self, span: Span) -> f64 {
        match self.end {
            End::Selected(k) | End::Weighted(k) if span.last >= self.links.len() => k as f64,
            _ => self.links[span.last].outputs as f64,
        }
    }

    /// The number of inputs of an element. For the targets, this is the number of outputs of the
    /// last factor.
    fn inner(&self, element: usize) -> usize {
        self.links
            .get(element)
            .map_or_else(|| self.links[self.links.len() - 1].outputs, |link| link.inputs)
    }

    fn widest(&self, factor: usize) -> f64 {
        self.links[factor].widest as f64
    }

    /// The cost of forming a factor's matrix at the end of a product, by rows or by columns.
    fn formed_last(&self, factor: usize) -> f64 {
        self.links[factor].of_rows().min(self.links[factor].of_columns())
    }

    /// The step that multiplies two neighbors, and its cost.
    fn product(&self, left: Span, right: Span, order: Accumulation) -> (Step, f64) {
        // One product Vᵀ x for each row of the block on the left.
        let append = || {
            let link = self.links[right.first];
            self.rows(left) * link.multiply_adds + link.carry
        };
        // One product V x for each column of the block on the right. The sinks are scalar products.
        let prepend = || {
            let link = self.links[left.first];
            self.columns(right) * (link.multiply_adds + link.sinks as f64 * link.outputs as f64)
        };
        match (left.kind, right.kind) {
            (SpanKind::Factor, SpanKind::Selection) => {
                (Step::Select, self.links[left.first].column * self.columns(right))
            }
            // Columns of a block are only copied.
            (_, SpanKind::Selection) => (Step::Select, 0.0),
            // One of the two is formed first, and the other is applied to it.
            (SpanKind::Factor, SpanKind::Factor) => {
                // A block that grows to the right is formed by rows.
                let append = append() + self.links[left.first].of_rows();
                let prepend = prepend() + self.formed_last(right.first);
                let appends = match order {
                    Accumulation::Forward => true,
                    Accumulation::Reverse => false,
                    Accumulation::Optimal => append <= prepend,
                };
                if appends { (Step::Append, append) } else { (Step::Prepend, prepend) }
            }
            (SpanKind::Factor, SpanKind::Block) => (Step::Prepend, prepend()),
            (_, SpanKind::Factor) => (Step::Append, append()),
            (_, SpanKind::Block) => {
                (Step::Join, self.rows(left) * self.inner(right.first) as f64 * self.columns(right))
            }
        }
    }

    /// The steps, the cost and the largest block of an order.
    fn run(&self, reductions: &[usize], order: Accumulation) -> (Vec<Step>, f64, f64) {
        let (mut steps, mut cost, mut largest) = (Vec::new(), 0.0, 0.0_f64);
        let mut stack: Vec<Span> = Vec::new();
        for (element, &reductions) in reductions.iter().enumerate() {
            steps.push(Step::Shift);
            stack.push(self.element(element));
            for _ in 0..reductions {
                if let (Some(right), Some(left)) = (stack.pop(), stack.pop()) {
                    let (step, of_step) = self.product(left, right, order);
                    steps.push(step);
                    cost += of_step;
                    let product =
                        Span { first: left.first, last: right.last, kind: SpanKind::Block };
                    largest = largest.max(self.rows(product) * self.columns(product));
                    // The values inside a factor of several nodes have as many rows or columns.
                    let inside = match step {
                        Step::Append => self.rows(left) * self.widest(right.first),
                        Step::Prepend => self.columns(right) * self.widest(left.first),
                        _ => 0.0,
                    };
                    largest = largest.max(inside);
                    // If two factors are multiplied, one of them is formed as a block first.
                    match (step, left.kind, right.kind) {
                        (Step::Append, SpanKind::Factor, _) => {
                            largest = largest.max(self.rows(left) * self.columns(left));
                        }
                        (Step::Prepend, _, SpanKind::Factor) => {
                            largest = largest.max(self.rows(right) * self.columns(right));
                        }
                        _ => {}
                    }
                    stack.push(product);
                }
            }
        }
        // A single factor is never multiplied, only formed.
        if let [only] = self.links
            && self.end == End::All
        {
            cost += self.formed_last(0);
            let inside = only.inputs.min(only.outputs) as f64 * self.widest(0);
            largest = (self.rows(self.element(0)) * only.outputs as f64).max(inside);
        }
        (steps, cost, largest)
    }

    /// The cheapest of all orders, found by matrix-chain dynamic programming. Cost: cubic in the
    /// number of elements.
    fn cheapest(&self) -> Vec<usize> {
        let n = self.length();
        let at = |first: usize, last: usize| first * n + last;
        // The least cost of each span, and the last element of the left half at this cost.
        let (mut costs, mut splits) = (vec![0.0; n * n], vec![0; n * n]);
        let span = |first: usize, last: usize| {
            if first == last {
                self.element(first)
            } else {
                Span { first, last, kind: SpanKind::Block }
            }
        };
        // Shorter spans first, because longer ones are made of them.
        for length in 2..=n {
            for first in 0..=n - length {
                let last = first + length - 1;
                let (mut best, mut split) = (f64::INFINITY, last - 1);
                for middle in first..last {
                    let (_, product) = self.product(
                        span(first, middle),
                        span(middle + 1, last),
                        Accumulation::Optimal,
                    );
                    let cost = costs[at(first, middle)] + costs[at(middle + 1, last)] + product;
                    if cost < best {
                        (best, split) = (cost, middle);
                    }
                }
                (costs[at(first, last)], splits[at(first, last)]) = (best, split);
            }
        }
        // The reductions after an element are the products that end with it.
        let mut reductions = vec![0; n];
        let mut open = vec![(0, n - 1)];
        while let Some((first, last)) = open.pop() {
            if first < last {
                reductions[last] += 1;
                let middle = splits[at(first, last)];
                open.extend([(first, middle), (middle + 1, last)]);
            }
        }
        reductions
    }

    /// The cheapest of the orders that multiply forward up to some layer, in reverse from the end
    /// down to the next layer, and then join the two blocks.
    fn cheapest_split(&self) -> Vec<usize> {
        let n = self.length();
        let split = |middle: usize| -> Vec<usize> {
            let reductions = |element| match element {
                0 => 0,
                _ if element < middle => 1,
                // By now, the stack holds the left block and all later elements.
                _ if element + 1 == n => n - middle,
                _ => 0,
            };
            (0..n).map(reductions).collect()
        };
        // Only about 256 candidates, because computing the cost of each takes time.
        let candidates = (1..n).step_by(1 + n / 256).map(split);
        let cost = |reductions: &Vec<usize>| self.run(reductions, Accumulation::Optimal).1;
        candidates.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or_default()
    }
}
