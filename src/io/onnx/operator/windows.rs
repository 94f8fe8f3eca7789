//! The positions of the windows of convolutions and poolings.

use crate::io::onnx::context::{Context, pair};
use crate::io::onnx::ir::Computation;
use crate::io::onnx::shortened;
use crate::scalar::Scalar;

/// The positions of windows along the spatial axes.
pub(super) struct WindowGrid {
    pub rank: usize,
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub before: [usize; 2],
    pub after: [usize; 2],
}

impl WindowGrid {
    pub fn of<T: Scalar>(context: &Context<'_, T>, kernel: [usize; 2]) -> Result<Self, String> {
        let rank = context.rank()?;
        let (stride, dilation) =
            (context.sizes("strides", rank, 1)?, context.sizes("dilations", rank, 1)?);
        let mut windows = Self { rank, stride, dilation, before: [0; 2], after: [0; 2] };
        match context.node.text("auto_pad") {
            "" | "NOTSET" => {
                if let Some(pads) = context.node.ints("pads") {
                    let (before, after) = pads.split_at(pads.len() / 2);
                    let both = (
                        pair(before).filter(|_| before.len() == rank),
                        pair(after).filter(|_| after.len() == rank),
                    );
                    let (Some(before), Some(after)) = both else {
                        return Err(format!("its pads must be {} non-negative numbers", 2 * rank));
                    };
                    (windows.before, windows.after) = (before, after);
                }
            }
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                // The output has one window for each stride. The padding that this requires is
                // divided equally between both sides, and if it is odd, one side gets one more.
                for axis in 0..2 {
                    // For a sequence, both entries describe its only spatial axis.
                    let size = *context
                        .dims
                        .get(context.dims.len() - rank + axis.min(rank - 1))
                        .unwrap_or(&1);
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
                    (windows.before[axis], windows.after[axis]) =
                        if same == "SAME_UPPER" { (less, more) } else { (more, less) };
                }
            }
            other => {
                return Err(format!(
                    "its auto_pad '{}' is unsupported: export the model with explicit pads",
                    shortened(other)
                ));
            }
        }
        Ok(windows)
    }

    /// Adds the padding of an operator before this one.
    pub fn padded(mut self, by: &[[usize; 2]]) -> Result<Self, String> {
        for axis in 0..2 {
            let [before, after] = by.get(axis.min(self.rank - 1)).copied().unwrap_or([0; 2]);
            let sum = |a: usize, b: usize| a.checked_add(b).ok_or("its padding is too large");
            (self.before[axis], self.after[axis]) =
                (sum(self.before[axis], before)?, sum(self.after[axis], after)?);
        }
        Ok(self)
    }
}

/// Applies the positions of windows to a layer.
macro_rules! with_windows {
    ($layer:expr, $windows:expr) => {
        $layer.stride($windows.stride).padding($windows.before).padding_end($windows.after)
    };
}
pub(super) use with_windows;

/// The input of a node. If it is a padding, returns the padding's own input, and the number of zeros
/// before and after each spatial axis.
pub(super) fn unpadded<'a, T: Scalar>(context: &Context<'a, T>) -> (usize, &'a [[usize; 2]]) {
    match &context.ir[context.input()].computation {
        Computation::Padding(of, by) => (*of, by),
        _ => (context.input(), &[]),
    }
}
