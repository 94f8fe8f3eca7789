//! Poolings: the largest value or the mean of each window.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::pair::{Pair, dims, pair_of};
use super::{Bias, Layer, LinearMap, Operator, Route, WeightFn, only_input, same_layer_in_f64};
use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The position of a pooling's windows along height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Windows {
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    padding_end: [usize; 2],
    dilation: [usize; 2],
    ceil: bool,
}

impl Windows {
    fn new(kernel: [usize; 2]) -> Self {
        Self {
            kernel,
            stride: kernel,
            padding: [0, 0],
            padding_end: [0, 0],
            dilation: [1, 1],
            ceil: false,
        }
    }

    /// The number of windows along an axis, as in PyTorch.
    fn count(&self, kind: &str, input: Shape, axis: usize) -> Result<usize, Error> {
        let (size, kernel, stride) = (input.plane()[axis], self.kernel[axis], self.stride[axis]);
        let (padding, padding_end, dilation) =
            (self.padding[axis], self.padding_end[axis], self.dilation[axis]);
        for (name, value) in [("kernel_size", kernel), ("stride", stride), ("dilation", dilation)] {
            if value == 0 {
                return Err(Error::parameter(kind, name, value, "at least 1"));
            }
        }
        let expected = if self.ceil {
            "an input longer than its window minus its stride"
        } else {
            "an input at least as long as its window"
        };
        let too_small = || {
            Error::shape(
                kind,
                input,
                format!("{expected} (kernel {kernel}, stride {stride}, dilation {dilation})"),
            )
        };
        // The length of a window from its first value to its last, including both.
        let reach = dilation
            .checked_mul(kernel - 1)
            .and_then(|reach| reach.checked_add(1))
            .ok_or_else(too_small)?;
        // PyTorch has the same limit. Without dilation, it ensures that each window covers some
        // input.
        if padding.max(padding_end) > kernel / 2 {
            return Err(Error::parameter(
                kind,
                "padding",
                padding.max(padding_end),
                "at most half of kernel_size",
            ));
        }
        if self.has_empty(axis, size) {
            return Err(Error::shape(
                kind,
                input,
                format!(
                    "an input at least as long as its dilation of {dilation}, so that no window \
                     covers only padding"
                ),
            ));
        }
        let all = size.checked_add(padding + padding_end).ok_or_else(too_small)?;
        if !self.ceil {
            return Ok(all.checked_sub(reach).ok_or_else(too_small)? / stride + 1);
        }
        // As in PyTorch, the last window can reach beyond the input by less than a stride, but it
        // cannot begin in the padding after the input.
        let room = all
            .checked_add(stride - 1)
            .and_then(|all| all.checked_sub(reach))
            .ok_or_else(too_small)?;
        let count = room / stride + 1;
        Ok(if (count - 1) * stride >= size + padding { count - 1 } else { count })
    }

    /// Whether some window covers only padding, because its dilation steps over the whole input.
    fn has_empty(&self, axis: usize, size: usize) -> bool {
        // Longer inputs are rejected without a search.
        const LONGEST: usize = 1 << 20;
        // A window can begin before the input, at a negative index.
        let [padding, dilation, stride] =
            [self.padding[axis], self.dilation[axis], self.stride[axis]].map(|value| value as i128);
        // Without padding, a window begins with an input. A smaller dilation cannot step over all
        // inputs.
        if self.padding[axis].max(self.padding_end[axis]) == 0 || self.dilation[axis] <= size {
            return false;
        }
        if size > LONGEST {
            return true;
        }
        // For each window that begins before the input, find the first tap that is not before it.
        // If size + 1 windows all hit the input, two of them hit the same value, and from there on
        // the taps repeat.
        let begins = (0..=size as i128)
            .map(|window| window * stride - padding)
            .take_while(|begin| *begin < 0);
        begins.map(|begin| begin.rem_euclid(dilation)).any(|first| first >= size as i128)
    }

    /// The input indices that a window covers along an axis, without padding.
    fn window(
        &self,
        axis: usize,
        index: usize,
        size: usize,
    ) -> impl Iterator<Item = usize> + Clone + use<> {
        let (first, padding, dilation) =
            (index * self.stride[axis], self.padding[axis], self.dilation[axis]);
        (0..self.kernel[axis])
            // A tap in the padding is below 0 before the input, and at or above `size` after it.
            .filter_map(move |tap| (first + tap * dilation).checked_sub(padding))
            .filter(move |&at| at < size)
    }

    fn output(&self, kind: &str, input: Shape, rank: usize) -> Result<Shape, Error> {
        if input.dims().len() != rank + 1 {
            return Err(Error::shape(kind, input, dims(rank)));
        }
        let rows = if rank == 2 { self.count(kind, input, 0)? } else { 1 };
        Ok(input.with(input.channels(), [rows, self.count(kind, input, 1)?]))
    }

    fn arguments(&self, rank: usize) -> String {
        let text = |pair| pair_of(pair, rank);
        let end = if self.padding_end == self.padding {
            String::new()
        } else {
            format!(", padding_end={}", text(self.padding_end))
        };
        format!(
            "kernel_size={}, stride={}, padding={}{end}",
            text(self.kernel),
            text(self.stride),
            text(self.padding)
        )
    }
}

macro_rules! windows {
    () => {
        /// Sets the distance between windows. By default, it is the kernel size.
        #[must_use]
        pub fn stride(mut self, stride: impl Into<Pair>) -> Self {
            self.windows.stride = stride.into().along(Self::RANK, 1);
            self
        }

        /// Sets the padding on each side, at most half the kernel size.
        #[must_use]
        pub fn padding(mut self, padding: impl Into<Pair>) -> Self {
            self.windows.padding = padding.into().along(Self::RANK, 0);
            self.windows.padding_end = self.windows.padding;
            self
        }

        /// Sets the padding below and on the right, if it differs from the padding above and on the
        /// left. Call it after [`padding`](Self::padding).
        #[must_use]
        pub fn padding_end(mut self, padding: impl Into<Pair>) -> Self {
            self.windows.padding_end = padding.into().along(Self::RANK, 0);
            self
        }

        /// Sets whether a last, partial window covers the values that whole windows do not reach.
        #[must_use]
        pub fn ceil_mode(mut self, ceil: bool) -> Self {
            self.windows.ceil = ceil;
            self
        }
    };
}

macro_rules! max_pool {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rank:literal) => {
        $(#[$doc])*
        ///
        /// All relevance is assigned to the winner, the first one in case of a tie (Bach et al.
        /// 2015).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            windows: Windows,
        }

        impl $name {
            const RANK: usize = $rank;

            /// Creates a pooling with windows of this size, side by side.
            pub fn new(kernel: impl Into<Pair>) -> Self {
                Self { windows: Windows::new(kernel.into().along(Self::RANK, 1)) }
            }

            windows!();

            /// Sets the dilation: the distance from one value of a window to the next.
            #[must_use]
            pub fn dilation(mut self, dilation: impl Into<Pair>) -> Self {
                self.windows.dilation = dilation.into().along(Self::RANK, 1);
                self
            }
        }

        impl<T: Scalar> Layer<T> for $name {
            fn kind(&self) -> &str {
                $kind
            }

            fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
                let input = only_input(Layer::<T>::kind(self), inputs)?;
                let output = self.windows.output($kind, input, $rank)?;
                let windows = self.windows;
                let largest = Largest { windows, input, output, taps: OnceLock::new() };
                Ok(Operator::Route(Arc::new(largest)))
            }

            fn arguments(&self) -> String {
                let Windows { dilation, ceil, .. } = self.windows;
                let ceil = if ceil { "True" } else { "False" };
                let (windows, dilation) =
                    (self.windows.arguments($rank), pair_of(dilation, $rank));
                format!("{windows}, dilation={dilation}, ceil_mode={ceil}")
            }

            same_layer_in_f64!();
        }
    };
}
max_pool!(
    /// The largest value of each window of an image.
    MaxPool2d, "MaxPool2d", 2
);
max_pool!(
    /// The largest value of each window of a sequence.
    MaxPool1d, "MaxPool1d", 1
);

#[derive(Debug)]
struct Largest {
    windows: Windows,
    input: Shape,
    output: Shape,
    /// The windows along each axis, which are listed when they are first needed: building a model
    /// must not allocate memory of a size that only a shape claims.
    taps: OnceLock<[Vec<Taps>; 2]>,
}

/// The indices that a window covers along an axis: `count` of them, from `first` on.
#[derive(Debug, Clone, Copy)]
struct Taps {
    first: usize,
    count: usize,
}

impl Largest {
    fn taps(&self) -> &[Vec<Taps>; 2] {
        let (input, output) = (self.input.plane(), self.output.plane());
        self.taps.get_or_init(|| {
            [0, 1].map(|axis| {
                let taps = |index: usize| {
                    let mut window = self.windows.window(axis, index, input[axis]);
                    // No window is empty (see `count`).
                    let first = window.next().unwrap_or(0);
                    Taps { first, count: 1 + window.count() }
                };
                (0..output[axis]).map(taps).collect()
            })
        })
    }
}

impl<T: Scalar> Route<T> for Largest {
    fn output_shape(&self) -> Shape {
        self.output
    }

    fn route(&self, values: &[T], from: &mut [usize]) {
        let ([height, width], [tall, wide]) = (self.input.plane(), self.output.plane());
        let ([rows, columns], [down, across]) = (self.taps(), self.windows.dilation);
        linalg::each_chunk(from, tall * wide, |channel, from| {
            let first = channel * height * width;
            let plane = &values[first..first + height * width];
            for (rows, from) in rows.iter().zip(from.chunks_exact_mut(wide)) {
                for (columns, from) in columns.iter().zip(from) {
                    // The first value of a window wins if none compares as larger, as with NaN.
                    let begin = rows.first * width + columns.first;
                    let (mut best, mut largest) = (begin, T::neg_infinity());
                    for row in 0..rows.count {
                        for column in 0..columns.count {
                            let at = begin + row * down * width + column * across;
                            // A strict comparison makes the first of equal values win.
                            if plane[at] > largest {
                                (best, largest) = (at, plane[at]);
                            }
                        }
                    }
                    *from = first + best;
                }
            }
        });
    }
}

macro_rules! avg_pool {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rank:literal) => {
        $(#[$doc])*
        ///
        /// Relevance is shared by the rule [`Norm`](crate::Norm).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            windows: Windows,
            count_padding: bool,
            divisor: Option<usize>,
            assumed: Assumed,
        }

        impl $name {
            const RANK: usize = $rank;

            /// Creates a pooling with windows of this size, side by side.
            pub fn new(kernel: impl Into<Pair>) -> Self {
                let windows = Windows::new(kernel.into().along(Self::RANK, 1));
                Self { windows, count_padding: true, divisor: None, assumed: Assumed::default() }
            }

            windows!();

            /// Sets whether padding counts as zeros in a mean. By default it does.
            #[must_use]
            pub fn count_include_pad(mut self, count: bool) -> Self {
                self.count_padding = count;
                self
            }

            /// Records which settings were assumed because the architecture text omits them.
            #[cfg(feature = "io")]
            pub(crate) fn assuming(mut self, assumed: Assumed) -> Self {
                self.assumed = assumed;
                self
            }
        }

        impl<T: Scalar> Layer<T> for $name {
            fn kind(&self) -> &str {
                $kind
            }

            fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
                let input = only_input(Layer::<T>::kind(self), inputs)?;
                let output = self.windows.output($kind, input, $rank)?;
                if self.divisor == Some(0) {
                    return Err(Error::parameter($kind, "divisor_override", 0, "at least 1"));
                }
                let (windows, count_padding) = (self.windows, self.count_padding);
                let window = move |axis: usize, index: usize| {
                    let (size, padding) = (input.plane()[axis], windows.padding[axis]);
                    // As in PyTorch, the part of a last window beyond the padding does not count
                    // (`ceil_mode`).
                    let all = size + padding + windows.padding_end[axis];
                    let first = index * windows.stride[axis];
                    let end = (first + windows.kernel[axis]).min(all);
                    // The sum needs only the inputs, because padding adds zeros.
                    let inside =
                        first.saturating_sub(padding)..end.saturating_sub(padding).min(size);
                    let count = if count_padding { end - first } else { inside.len() };
                    (inside, count)
                };
                let mean = Mean::new(window, input, output);
                Ok(Operator::Average(Arc::new(Mean { divisor: self.divisor, ..mean })))
            }

            fn arguments(&self) -> String {
                let [ceil, count] = [self.windows.ceil, self.count_padding]
                    .map(|yes| if yes { "True" } else { "False" });
                let divisor = match self.divisor {
                    // PyTorch's AvgPool1d has no such setting.
                    _ if $rank == 1 => String::new(),
                    None => ", divisor_override=None".to_owned(),
                    Some(divisor) => format!(", divisor_override={divisor}"),
                };
                let windows = self.windows.arguments($rank);
                format!("{windows}, ceil_mode={ceil}, count_include_pad={count}{divisor}")
            }

            same_layer_in_f64!();

            fn assumed(&self, input: Shape) -> Option<String> {
                self.assumed.matters(&self.windows, $kind, input, $rank)
            }
        }
    };
}
avg_pool!(
    /// The mean of each window of an image.
    AvgPool2d, "AvgPool2d", 2
);
avg_pool!(
    /// The mean of each window of a sequence.
    AvgPool1d, "AvgPool1d", 1
);

impl AvgPool2d {
    /// Sets the divisor of each window's sum, at least 1. By default it is the window's size.
    ///
    /// ```
    /// use relprop::{AvgPool2d, Sequential};
    /// use relprop::nalgebra::DVector;
    ///
    /// let sum = AvgPool2d::new(2).divisor_override(1);
    /// let model = Sequential::<f64>::builder().input([1, 2, 2]).layer(sum).build()?;
    /// assert_eq!(model.forward(&DVector::from_element(4, 1.5))?[0], 6.0);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    #[must_use]
    pub fn divisor_override(mut self, divisor: usize) -> Self {
        self.divisor = Some(divisor);
        self
    }
}

/// Which settings of an average pooling an architecture text omits. PyTorch prints none of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Assumed {
    pub ceil_mode: bool,
    pub count_include_pad: bool,
    pub divisor_override: bool,
}

impl Assumed {
    /// The omitted settings that can matter for this input, with their assumed values.
    fn matters(self, windows: &Windows, kind: &str, input: Shape, rank: usize) -> Option<String> {
        let output = |ceil| Windows { ceil, ..*windows }.output(kind, input, rank).ok();
        // ceil_mode matters only if it changes the number of windows.
        let uncovered = output(true) != output(false);
        let padded = windows.padding != [0, 0] || windows.padding_end != [0, 0];
        let settings = [
            (self.ceil_mode && uncovered, "ceil_mode=False"),
            (self.count_include_pad && padded, "count_include_pad=True"),
            (self.divisor_override, "divisor_override=None"),
        ];
        let settings: Vec<&str> = settings
            .into_iter()
            .filter(|(matters, _)| *matters)
            .map(|(_, setting)| setting)
            .collect();
        (!settings.is_empty()).then(|| settings.join(", "))
    }
}

macro_rules! adaptive {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rank:literal) => {
        $(#[$doc])*
        ///
        /// An output size of 1 gives the mean of each channel (global average pooling).
        ///
        /// Relevance is shared by the rule [`Norm`](crate::Norm).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            output: [usize; 2],
        }

        impl $name {
            /// Creates a pooling with this many windows along each axis, which cover the input
            /// evenly.
            pub fn new(output: impl Into<Pair>) -> Self {
                Self { output: output.into().along($rank, 1) }
            }
        }

        impl<T: Scalar> Layer<T> for $name {
            fn kind(&self) -> &str {
                $kind
            }

            fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
                let input = only_input(Layer::<T>::kind(self), inputs)?;
                if input.dims().len() != $rank + 1 {
                    return Err(Error::shape($kind, input, dims($rank)));
                }
                if self.output.contains(&0) {
                    return Err(Error::parameter($kind, "output_size", 0, "at least 1"));
                }
                let counts = self.output;
                let window = move |axis: usize, index: usize| {
                    let (size, count) = (input.plane()[axis], counts[axis]);
                    // As in PyTorch, windows overlap where the size is not a multiple of their
                    // number.
                    let window = index * size / count..((index + 1) * size).div_ceil(count);
                    (window.clone(), window.len())
                };
                let output = input.with(input.channels(), self.output);
                Ok(Operator::Average(Arc::new(Mean::new(window, input, output))))
            }

            fn arguments(&self) -> String {
                format!("output_size={}", pair_of(self.output, $rank))
            }

            same_layer_in_f64!();
        }
    };
}
adaptive!(
    /// Average pooling to a fixed output size, for images of any size.
    AdaptiveAvgPool2d, "AdaptiveAvgPool2d", 2
);
adaptive!(
    /// Average pooling to a fixed output length, for sequences of any length.
    AdaptiveAvgPool1d, "AdaptiveAvgPool1d", 1
);

/// A sum over each window of each channel, with one weight per window.
struct Mean<T> {
    /// Maps an axis and the index of a window to the range of inputs that the window covers and the
    /// number by which its sum is divided.
    window: Arc<dyn Fn(usize, usize) -> (Range<usize>, usize) + Send + Sync>,
    /// The divisor that replaces that number, if it is set.
    divisor: Option<usize>,
    /// The function that maps the weights.
    mapped: Option<WeightFn<T>>,
    input: Shape,
    output: Shape,
    /// Created on first use, so that a model can be inspected before memory is allocated for its
    /// values.
    all: OnceLock<AllWindows<T>>,
}

struct AllWindows<T> {
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
    /// The weight of each window.
    weights: Vec<T>,
}

impl<T> fmt::Debug for Mean<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mean({} -> {})", self.input, self.output)
    }
}

impl<T: Scalar> Mean<T> {
    fn new(
        window: impl Fn(usize, usize) -> (Range<usize>, usize) + Send + Sync + 'static,
        input: Shape,
        output: Shape,
    ) -> Self {
        Self {
            window: Arc::new(window),
            divisor: None,
            mapped: None,
            input,
            output,
            all: OnceLock::new(),
        }
    }

    fn all(&self) -> &AllWindows<T> {
        self.all.get_or_init(|| {
            let along = |axis: usize| -> (Vec<Range<usize>>, Vec<usize>) {
                (0..self.output.plane()[axis]).map(|index| (self.window)(axis, index)).unzip()
            };
            let ((rows, heights), (columns, widths)) = (along(0), along(1));
            // The number of values in a window is the product of its counts along both axes.
            let weight = |a: usize, b: usize| {
                let weight = T::one() / T::from_f64(self.divisor.unwrap_or(a * b).max(1) as f64);
                self.mapped.as_ref().map_or(weight, |f| f.value(weight))
            };
            let weights =
                heights.iter().flat_map(|&a| widths.iter().map(move |&b| weight(a, b))).collect();
            AllWindows { rows, columns, weights }
        })
    }

    /// Visits each line of each window of a plane, with the window's index in the output and its
    /// weight.
    fn each(&self, mut visit: impl FnMut(Range<usize>, usize, T)) {
        let AllWindows { rows, columns, weights } = self.all();
        let width = self.input.plane()[1];
        for (r, rows) in rows.iter().enumerate() {
            for (c, columns) in columns.iter().enumerate() {
                let at = r * self.output.plane()[1] + c;
                for row in rows.clone() {
                    visit(row * width + columns.start..row * width + columns.end, at, weights[at]);
                }
            }
        }
    }

    fn planes(&self) -> [usize; 2] {
        [self.input, self.output].map(|shape| shape.plane()[0] * shape.plane()[1])
    }
}

impl<T: Scalar> LinearMap<T> for Mean<T> {
    fn inputs(&self) -> usize {
        self.input.size()
    }

    fn outputs(&self) -> usize {
        self.output.size()
    }

    fn output_shape(&self) -> Shape {
        self.output
    }

    fn keeps_sign(&self) -> bool {
        // Without a map, all weights are 1 / n. The windows are only needed for mapped weights.
        self.mapped.is_none() || self.all().weights.iter().all(|w| *w >= T::zero())
    }

    fn bias(&self) -> Option<Bias<'_, T>> {
        None
    }

    fn apply(&self, x: &[T], y: &mut [T]) {
        let [input, output] = self.planes();
        // `each` visits a window once for each of its lines, so the lines are added.
        y.fill(T::zero());
        for (x, y) in x.chunks_exact(input).zip(y.chunks_exact_mut(output)) {
            self.each(|line, at, weight| y[at] += weight * x[line].iter().copied().sum::<T>());
        }
    }

    fn apply_transposed(&self, y: &[T], x: &mut [T]) {
        let [input, output] = self.planes();
        // Windows can overlap, so each input adds up the contributions of all its windows.
        x.fill(T::zero());
        for (x, y) in x.chunks_exact_mut(input).zip(y.chunks_exact(output)) {
            self.each(|line, at, weight| x[line].iter_mut().for_each(|x| *x += weight * y[at]));
        }
    }

    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>> {
        let mapped = Some(f.after(self.mapped.as_ref()));
        let (window, divisor) = (self.window.clone(), self.divisor);
        Box::new(Self {
            window,
            divisor,
            mapped,
            input: self.input,
            output: self.output,
            all: OnceLock::new(),
        })
    }

    fn multiply_adds(&self) -> f64 {
        // This does not create the windows, because a plan is computed before memory is allocated.
        let along = |axis: usize| {
            (0..self.output.plane()[axis])
                .map(|index| (self.window)(axis, index).0.len() as f64)
                .sum::<f64>()
        };
        // The sum of rows x columns over all windows is the product of the sums along both axes.
        self.input.channels() as f64 * along(0) * along(1)
    }
}
