//! Constants of each channel, and the layer y = a z + b.

use std::sync::Arc;

use super::budget::Budget;
use super::constant::Constant;
use super::context::reason;
use super::ir::Layers;
use crate::layer::{BatchNorm1d, BatchNorm2d};
use crate::scalar::Scalar;

/// Checks that a constant has no more axes than the values with their batch axis. Otherwise,
/// broadcasting would add axes to the values.
pub(super) fn no_more_axes(constant: &Constant, dims: &[usize]) -> Result<(), String> {
    if constant.dims.len() <= dims.len() + 1 {
        return Ok(());
    }
    Err(format!(
        "its constant has {} axes, but its values only have {} (with the batch axis): reshape the \
         constant, because adding axes is unsupported",
        constant.dims.len(),
        dims.len() + 1
    ))
}

/// A constant's value for each channel, if it is the same within each channel.
pub(super) fn per_channel(
    constant: &Constant,
    dims: &[usize],
    budget: &Budget,
) -> Result<Vec<f64>, String> {
    let channels = dims.first().copied().unwrap_or(1);
    // A normalization layer holds four numbers for each channel.
    budget.keep(channels.saturating_mul(4))?;
    let values = constant.numbers().ok_or("its constant must consist of numbers")?;
    if let [value] = *values {
        return Ok(vec![value; channels]);
    }
    // Broadcasting aligns shapes at their last axes, which are the spatial ones. The channel axis
    // comes before them.
    let space = dims.len().saturating_sub(1);
    let at = constant.dims.len().checked_sub(space + 1);
    let alone = constant.dims.iter().enumerate().all(|(axis, &dim)| dim == 1 || Some(axis) == at);
    if values.len() == channels && alone {
        return Ok(values);
    }
    Err(format!(
        "its constant has the shape {:?}, but only a single number or one number for each of the \
         {channels} channels is supported",
        constant.dims
    ))
}

/// The layers that compute y = a z + b for each channel, written as a batch norm.
pub(super) fn affine<T: Scalar>(dims: &[usize], a: &[f64], b: &[f64]) -> Result<Layers<T>, String> {
    let of =
        |values: &[f64]| -> Vec<T> { values.iter().map(|&value| T::from_f64(value)).collect() };
    let (weight, bias, mean, variance) =
        (of(a), of(b), vec![T::zero(); a.len()], vec![T::one(); a.len()]);
    if dims.len() == 3 {
        Ok(vec![Arc::new(BatchNorm2d::new(weight, bias, mean, variance, 0.0).map_err(reason)?)])
    } else {
        Ok(vec![Arc::new(BatchNorm1d::new(weight, bias, mean, variance, 0.0).map_err(reason)?)])
    }
}
