//! Repetition of values along the spatial axes.

use crate::io::onnx::constant::Constant;
use crate::io::onnx::context::{Context, TranslationResult, reason};
use crate::io::onnx::shortened;
use crate::layer::Upsample;
use crate::scalar::Scalar;

/// The layer that repeats values by an integer factor, whatever rounding mode the node uses.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
// the factor is an integer from 1 to 1024
pub(super) fn resize<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let operator = context.operator;
    let (node, rank) = (context.node, context.rank()?);
    if !matches!(node.text("mode"), "" | "nearest") {
        return Err(format!(
            "its mode '{}' is unsupported: only 'nearest' is supported",
            shortened(node.text("mode"))
        ));
    }
    // Since version 11 of the operator set, Resize has a region of interest before the scales.
    let scales = if operator == "Upsample" || context.operands.len() == 2 { 1 } else { 2 };
    let scales = match context.constant(scales).and_then(Constant::numbers) {
        Some(scales) if !scales.is_empty() => scales,
        _ => {
            let sizes = context
                .constant(3)
                .and_then(Constant::numbers)
                .ok_or("its scales or sizes must be constants")?;
            // The scale of the batch axis is always 1, so its size is compared with itself.
            let given_sizes = std::iter::once(sizes.first().copied().unwrap_or(1.0))
                .chain(context.dims.iter().map(|&dim| dim as f64));
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
    for &size in &context.dims[1..] {
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
                        shortened(other)
                    ));
                }
            };
            let at = match rounding {
                "" | "round_prefer_floor" => (at - 0.5).ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                "floor" => at.floor(),
                "ceil" => at.ceil(),
                other => {
                    return Err(format!("its nearest_mode '{}' is unsupported", shortened(other)));
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
    context.layer(Upsample::new(factor as usize).map_err(reason)?)
}
