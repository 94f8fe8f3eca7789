//! ONNX's conventions for axes, and the effect of its operators on shapes.

use crate::io::tensor::Tensor;
use crate::shape::Shape;

/// The first index, the stride and the number of indices of a slice along an axis.
pub(super) fn slice(dim: usize, start: i64, end: i64, stride: i64) -> Option<(usize, i64, usize)> {
    let dim = i64::try_from(dim).ok()?;
    let from_end = |at: i64| if at < 0 { at.saturating_add(dim) } else { at };
    if dim == 0 {
        return Some((0, stride, 0));
    }
    let (start, end) = if stride > 0 {
        (from_end(start).clamp(0, dim), from_end(end).clamp(0, dim))
    } else {
        // Backwards, the end is exclusive too, so -1 includes index 0.
        (from_end(start).clamp(0, dim - 1), from_end(end).clamp(-1, dim - 1))
    };
    // The distance divided by the stride, rounded up.
    let count = match stride {
        0 => return None,
        1.. => (end - start).max(0).checked_add(stride - 1)? / stride,
        _ => (start - end).max(0).checked_add(-(stride + 1))? / stride.checked_neg()?,
    };
    Some((usize::try_from(start).unwrap_or(0), stride, usize::try_from(count).ok()?))
}

/// Resolves an index, which counts from the end if it is negative, or returns `None` if it is out
/// of range.
pub(super) fn wrapped(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index.checked_add(length)? } else { index };
    usize::try_from(index).ok().filter(|_| index < length)
}

/// The order of the axes after a transpose. If none is specified, the axes are reversed.
pub(super) fn permutation(asked: Option<&[i64]>, rank: usize) -> Option<Vec<usize>> {
    let Some(asked) = asked else { return Some((0..rank).rev().collect()) };
    let order: Vec<usize> =
        asked.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<_>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..rank).then_some(order)
}

/// The shape after a reshape. In `asked`, a 0 stands for the size of the same axis in the old shape
/// (unless `allow_zero` is set), and a single -1 for the size that the number of values requires.
pub(super) fn target(dims: &[usize], asked: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let size = |(axis, &asked): (usize, &i64)| match asked {
        -1 => Some(None),
        0 if !allow_zero => dims.get(axis).copied().map(Some),
        asked => usize::try_from(asked).ok().map(Some),
    };
    let sizes: Vec<Option<usize>> = asked.iter().enumerate().map(size).collect::<Option<_>>()?;
    let known = sizes.iter().flatten().try_fold(1_usize, |count, &size| count.checked_mul(size))?;
    let all = Tensor::count(dims)?;
    // The size for which a -1 stands. Without a -1, it is not used.
    let rest = match sizes.iter().filter(|size| size.is_none()).count() {
        0 if known == all => 1,
        1 if known > 0 && all.is_multiple_of(known) => all / known,
        _ => return None,
    };
    Some(sizes.into_iter().map(|size| size.unwrap_or(rest)).collect())
}

/// The shape with axes of size 1 inserted or removed.
pub(super) fn resized(dims: &[usize], axes: Option<&[i64]>, insert: bool) -> Option<Vec<usize>> {
    let rank = if insert { dims.len().checked_add(axes?.len())? } else { dims.len() };
    let axes: Option<Vec<usize>> = match axes {
        Some(axes) => axes.iter().map(|&axis| wrapped(axis, rank)).collect(),
        None => Some((0..rank).filter(|&axis| dims[axis] == 1).collect()),
    };
    // Marks the inserted or removed axes. An axis that is listed twice is an error.
    let mut chosen = vec![false; rank];
    for axis in axes? {
        if std::mem::replace(&mut chosen[axis], true) {
            return None;
        }
    }
    let mut rest = dims.iter().copied();
    if insert {
        return chosen.into_iter().map(|new| if new { Some(1) } else { rest.next() }).collect();
    }
    if chosen.iter().zip(dims).any(|(&chosen, &dim)| chosen && dim != 1) {
        return None;
    }
    Some(chosen.into_iter().zip(rest).filter(|(chosen, _)| !chosen).map(|(_, dim)| dim).collect())
}

/// The shape with these one to three sizes. A single value has no sizes.
pub(super) fn shape_of(dims: &[usize]) -> Result<Shape, String> {
    if dims.is_empty() {
        return Ok(Shape::from(1));
    }
    crate::io::shape(dims).ok_or_else(|| {
        format!(
            "its values have {} axes (without the batch axis), but at most 3 are supported",
            dims.len()
        )
    })
}
