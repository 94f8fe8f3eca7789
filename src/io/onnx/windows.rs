//! Operators on windows of sequences and images: convolution, pooling, padding and upsampling.

use std::sync::Arc;

use super::constant::Constant;
use super::shapes::wrapped;
use super::step::{Given, Kind, Layers, Made, Steps, one, pair, refused};
use crate::layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, Conv1d, Conv2d, ConvTranspose2d,
    Flatten, MaxPool1d, MaxPool2d, Upsample,
};
use crate::scalar::Scalar;

/// The positions of windows along the spatial axes.
struct Windows {
    rank: usize,
    stride: [usize; 2],
    dilation: [usize; 2],
    before: [usize; 2],
    behind: [usize; 2],
}

impl Windows {
    fn of(given: &Given<'_>, kernel: [usize; 2]) -> Result<Self, String> {
        let rank = given.rank()?;
        let (stride, dilation) =
            (given.sizes("strides", rank, 1)?, given.sizes("dilations", rank, 1)?);
        let mut windows = Self { rank, stride, dilation, before: [0; 2], behind: [0; 2] };
        match given.node.text("auto_pad") {
            "" | "NOTSET" => {
                if let Some(pads) = given.node.ints("pads") {
                    let (before, behind) = pads.split_at(pads.len() / 2);
                    let both = (
                        pair(before).filter(|_| before.len() == rank),
                        pair(behind).filter(|_| behind.len() == rank),
                    );
                    let (Some(before), Some(behind)) = both else {
                        return Err(format!("its pads must be {} non-negative numbers", 2 * rank));
                    };
                    (windows.before, windows.behind) = (before, behind);
                }
            }
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                // The output has one window for each stride. The padding that this requires is
                // divided equally between both sides, and if it is odd, one side gets one more.
                for axis in 0..2 {
                    // For a sequence, both entries describe its only spatial axis.
                    let size =
                        *given.dims.get(given.dims.len() - rank + axis.min(rank - 1)).unwrap_or(&1);
                    let (kernel, stride, dilation) = (kernel[axis], stride[axis], dilation[axis]);
                    let reach = kernel
                        .saturating_sub(1)
                        .checked_mul(dilation)
                        .and_then(|reach| reach.checked_add(1));
                    // The last window begins at `far`, and all windows together cover `whole`
                    // values.
                    let far = size.div_ceil(stride.max(1)).saturating_sub(1).checked_mul(stride);
                    let whole = far
                        .zip(reach)
                        .and_then(|(far, reach)| far.checked_add(reach))
                        .ok_or("its shape is too large")?;
                    if whole.saturating_add(1) < size {
                        return Err("its auto_pad is unsupported where the stride is larger than \
                            the window: export the model with explicit pads"
                            .to_owned());
                    }
                    let missing = whole.saturating_sub(size);
                    let (less, more) = (missing / 2, missing.div_ceil(2));
                    (windows.before[axis], windows.behind[axis]) =
                        if same == "SAME_UPPER" { (less, more) } else { (more, less) };
                }
            }
            other => {
                return Err(format!(
                    "its auto_pad '{}' is unsupported: export the model with explicit pads",
                    super::shortened(other)
                ));
            }
        }
        Ok(windows)
    }

    /// Adds the padding of an operator before this one.
    fn padded(mut self, by: &[[usize; 2]]) -> Result<Self, String> {
        for axis in 0..2 {
            let [before, behind] = by.get(axis.min(self.rank - 1)).copied().unwrap_or([0; 2]);
            let sum = |a: usize, b: usize| a.checked_add(b).ok_or("its padding is too large");
            (self.before[axis], self.behind[axis]) =
                (sum(self.before[axis], before)?, sum(self.behind[axis], behind)?);
        }
        Ok(self)
    }
}

macro_rules! with_windows {
    ($layer:expr, $windows:expr) => {
        $layer.stride($windows.stride).padding($windows.before).padding_end($windows.behind)
    };
}

impl<T: Scalar> Steps<T> {
    /// The input of a node. If it is a padding, returns the padding's own input, and the number of
    /// zeros before and after each spatial axis.
    fn unpadded<'a>(&'a self, given: &Given<'_>) -> (usize, &'a [[usize; 2]]) {
        if let Kind::Padded(of, by) = &self[given.step].kind {
            (*of, by)
        } else {
            (given.step, &[])
        }
    }

    pub(super) fn convolution(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let node = given.node;
        let weight = given.constant(1).ok_or("its weights must be constants")?;
        let shape = weight.dims.clone();
        let rank = given.rank()?;
        if shape.len() != rank + 2 {
            return Err(format!(
                "its weights have {} axes, but for values with {} axes (without the batch axis) \
                 they must have {}",
                shape.len(),
                rank + 1,
                rank + 2
            ));
        }
        let kernel = if rank == 1 { [shape[2]; 2] } else { [shape[2], shape[3]] };
        let (step, by) = self.unpadded(given);
        if operator == "ConvTranspose"
            && (!matches!(node.text("auto_pad"), "" | "NOTSET")
                || node.attribute("output_shape").is_some())
        {
            return Err(
                "its auto_pad or output_shape is unsupported: export the model with explicit pads"
                    .to_owned(),
            );
        }
        let windows = Windows::of(given, kernel)?;
        // A padding before a transposed convolution is rejected below.
        let windows = if operator == "Conv" { windows.padded(by)? } else { windows };
        let groups = usize::try_from(node.int("group", 1)).map_err(|_| "its group is negative")?;
        let (weights, bias): (Vec<T>, Option<Vec<T>>) =
            (given.numbers(1, "weights")?, given.optional(2, "bias")?);
        macro_rules! with_settings {
            ($layer:expr) => {
                with_windows!($layer.map_err(refused)?, windows)
                    .dilation(windows.dilation)
                    .groups(groups)
            };
        }
        let layers = match (operator, rank) {
            ("Conv", 1) => {
                one(with_settings!(Conv1d::new([shape[0], shape[1], shape[2]], weights, bias)))
            }
            ("Conv", _) => one(with_settings!(Conv2d::new(
                [shape[0], shape[1], shape[2], shape[3]],
                weights,
                bias
            ))),
            (_, 2) if by.is_empty() => {
                let more = given.sizes("output_padding", rank, 0)?;
                let layer =
                    ConvTranspose2d::new([shape[0], shape[1], shape[2], shape[3]], weights, bias);
                one(with_settings!(layer).output_padding(more))
            }
            _ => {
                return Err(
                    "it is supported only for images and without a padding before it".to_owned()
                );
            }
        };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    pub(super) fn pooling(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let (node, rank) = (given.node, given.rank()?);
        let kernel = given
            .node
            .attribute("kernel_shape")
            .map(|_| given.sizes("kernel_shape", rank, 1))
            .ok_or("its kernel_shape is missing: export the model again")??;
        let (step, by) = self.unpadded(given);
        let windows = Windows::of(given, kernel)?;
        let own = windows.before != [0; 2] || windows.behind != [0; 2];
        let ceil = node.int("ceil_mode", 0) != 0;
        if ceil && by.iter().any(|by| *by != [0; 2]) {
            return Err(
                "ceil_mode after a padding is unsupported, because the last window can begin in \
                 the padding: export the model without ceil_mode"
                    .to_owned(),
            );
        }
        if windows.dilation != [1; 2] && node.text("auto_pad").starts_with("SAME") {
            return Err(
                "its auto_pad is unsupported together with dilations: export the model with \
                 explicit pads"
                    .to_owned(),
            );
        }
        let counted = node.int("count_include_pad", 0) != 0;
        let windows = windows.padded(by)?;
        macro_rules! pool {
            ($layer:ident) => {
                with_windows!($layer::new(kernel), windows).ceil_mode(ceil)
            };
        }
        let layers = if operator == "MaxPool" {
            // If no value is negative, a padding with zeros does not change the maximum of a
            // window.
            if !by.is_empty() && !self[step].nonnegative {
                return Err(
                    "a padding with zeros before it is supported only if its values cannot be \
                     negative, because a zero could be the maximum: use the pads of the pooling"
                        .to_owned(),
                );
            }
            match rank {
                1 => one(pool!(MaxPool1d).dilation(windows.dilation)),
                _ => one(pool!(MaxPool2d).dilation(windows.dilation)),
            }
        } else {
            if windows.dilation != [1; 2] {
                return Err("dilations are unsupported in an average pooling".to_owned());
            }
            if !by.is_empty() && own && !counted {
                return Err(
                    "its average counts the padding of the node before it, but not its own, which \
                     is unsupported: export the model with only one of the two paddings"
                        .to_owned(),
                );
            }
            // The zeros of a separate padding are inputs of the pooling, so they always count.
            let counted = counted || !by.is_empty();
            match rank {
                1 => one(pool!(AvgPool1d).count_include_pad(counted)),
                _ => one(pool!(AvgPool2d).count_include_pad(counted)),
            }
        };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    /// The mean over all spatial axes, which are kept with the size 1 if `keep` is set.
    pub(super) fn average(given: &Given<'_>, keep: bool) -> Result<Layers<T>, String> {
        let mut layers = match given.rank()? {
            1 => one(AdaptiveAvgPool1d::new(1)),
            _ => one(AdaptiveAvgPool2d::new(1)),
        };
        if !keep {
            layers.push(Arc::new(Flatten));
        }
        Ok(layers)
    }

    pub(super) fn padded(given: &Given<'_>) -> Result<Made<T>, String> {
        let node = given.node;
        let rank = given.rank()?;
        if !matches!(node.text("mode"), "" | "constant") {
            return Err(format!(
                "its mode '{}' is unsupported: only padding with zeros is supported (mode \
                 'constant')",
                super::shortened(node.text("mode"))
            ));
        }
        // Up to version 10 of the operator set, the value and the pads are attributes.
        let value = given
            .constant(2)
            .and_then(Constant::scalar)
            .or_else(|| (!given.is_given(2)).then(|| node.float("value", 0.0).into()));
        if value != Some(0.0) {
            return Err("only padding with constant zeros is supported".to_owned());
        }
        let pads = given.ints(1).or(node.ints("pads")).ok_or("its pads must be constants")?;
        let axes: Vec<Option<usize>> = match given.ints(3) {
            Some(axes) => axes.iter().map(|&axis| wrapped(axis, rank + 2)).collect(),
            None => (0..rank + 2).map(Some).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err("its pads must have two numbers for each axis".to_owned());
        }
        let mut by = vec![[0; 2]; rank];
        let (before, behind) = pads.split_at(axes.len());
        for (axis, (&before, &behind)) in axes.into_iter().zip(before.iter().zip(behind)) {
            let axis = axis.ok_or("one of its axes does not exist")?;
            // Axes 0 and 1 are samples and channels.
            match (axis.checked_sub(2), usize::try_from(before), usize::try_from(behind)) {
                (Some(axis), Ok(before), Ok(behind)) => by[axis] = [before, behind],
                _ if before == 0 && behind == 0 => {}
                (None, ..) => {
                    return Err(
                        "it pads samples or channels, but only padding of spatial axes is \
                         supported"
                            .to_owned(),
                    );
                }
                _ => {
                    return Err("its pads are negative (cropping), which is unsupported".to_owned());
                }
            }
        }
        Ok(Made::Step(Kind::Padded(given.step, by), Vec::new()))
    }
}

/// The layer that repeats values by an integer factor, whatever rounding mode the node uses.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
// the factor is an integer from 1 to 1024
pub(super) fn upsampled<T: Scalar>(operator: &str, given: &Given<'_>) -> Result<Layers<T>, String> {
    let (node, rank) = (given.node, given.rank()?);
    if !matches!(node.text("mode"), "" | "nearest") {
        return Err(format!(
            "its mode '{}' is unsupported: only 'nearest' is supported",
            super::shortened(node.text("mode"))
        ));
    }
    // Since version 11 of the operator set, Resize has a region of interest before the scales.
    let scales = if operator == "Upsample" || given.inputs.len() == 2 { 1 } else { 2 };
    let scales = match given.constant(scales).and_then(Constant::numbers) {
        Some(scales) if !scales.is_empty() => scales,
        _ => {
            let sizes = given
                .constant(3)
                .and_then(Constant::numbers)
                .ok_or("its scales or sizes must be constants")?;
            // The scale of the batch axis is always 1, so its size is compared with itself.
            let given_sizes = std::iter::once(sizes.first().copied().unwrap_or(1.0))
                .chain(given.dims.iter().map(|&dim| dim as f64));
            sizes.iter().zip(given_sizes).map(|(size, dim)| size / dim).collect()
        }
    };
    let factor = scales.last().copied().unwrap_or(0.0);
    let even =
        scales.len() == rank + 2 && scales[2..].iter().all(|&scale| (scale - factor).abs() < 1e-9);
    let rest = scales.iter().take(2).all(|&scale| (scale - 1.0).abs() < 1e-9);
    if !even || !rest || factor.fract() != 0.0 || !(1.0..=1024.0).contains(&factor) {
        return Err(format!(
            "its scales {:?} are unsupported: they must be the same integer from 1 to 1024 for all \
             spatial axes, and 1 for samples and channels",
            &scales[..scales.len().min(5)]
        ));
    }
    if !matches!(node.text("keep_aspect_ratio_policy"), "" | "stretch")
        || node.attribute("axes").is_some()
    {
        return Err(
            "only the keep_aspect_ratio_policy 'stretch' without axes is supported".to_owned()
        );
    }
    let (mode, rounding) = match operator {
        "Upsample" => ("asymmetric", "floor"),
        _ => (node.text("coordinate_transformation_mode"), node.text("nearest_mode")),
    };
    // Compute the source of each value as ONNX does, in f32, and check that it is the one that
    // repeating each value would give. This covers all combinations of modes.
    let factor32 = factor as f32;
    for &size in &given.dims[1..] {
        let count = size
            .checked_mul(factor as usize)
            .filter(|&count| count <= 1 << 16)
            .ok_or("its output is too large")?;
        let (last, end) = (size as f32 - 1.0, size as f32 * factor32 - 1.0);
        for index in 0..count {
            let x = index as f32;
            let at = match mode {
                "" | "half_pixel" | "pytorch_half_pixel" | "half_pixel_symmetric" => {
                    (x + 0.5) / factor32 - 0.5
                }
                "asymmetric" => x / factor32,
                "tf_half_pixel_for_nn" => (x + 0.5) / factor32,
                "align_corners" => x * last / end.max(1.0),
                other => {
                    return Err(format!(
                        "its coordinate_transformation_mode '{}' is unsupported",
                        super::shortened(other)
                    ));
                }
            };
            let at = match rounding {
                "" | "round_prefer_floor" => (at - 0.5).ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                "floor" => at.floor(),
                "ceil" => at.ceil(),
                other => {
                    return Err(format!(
                        "its nearest_mode '{}' is unsupported",
                        super::shortened(other)
                    ));
                }
            };
            #[allow(clippy::float_cmp)] // both are integers
            if at.clamp(0.0, last) != (x / factor32).floor() {
                return Err("its nearest_mode does not repeat each value equally often, which is \
                     unsupported: export the model with the nearest_mode 'floor' and the \
                     coordinate_transformation_mode 'asymmetric'"
                    .to_owned());
            }
        }
    }
    Ok(one(Upsample::new(factor as usize).map_err(refused)?))
}
