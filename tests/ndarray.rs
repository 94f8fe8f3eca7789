//! Arrays of ndarray are passed in and out without a copy, as described in `docs/ndarray.md`.

use ndarray::{Array1, Array2, Array4, ArrayView2, Axis, ShapeBuilder};
use relprop::nalgebra::DMatrix;
use relprop::{Conv2d, Error, Explainer, Flatten, Linear, Relu, Rule, Sequential};

fn weights(count: usize) -> Vec<f32> {
    (0..count).map(|k| (k as f32 * 0.7).sin()).collect()
}

fn explainer() -> Result<Explainer<f32>, Error> {
    let model = Sequential::builder()
        .layer(Linear::from_rows(5, 3, &weights(15), None)?)
        .layer(Relu)
        .layer(Linear::from_rows(4, 5, &weights(20), None)?)
        .build()?;
    model.explainer(Rule::Epsilon)
}

#[test]
fn a_batch_in_c_order_is_the_matrix_of_its_samples() -> Result<(), Error> {
    let explainer = explainer()?;
    let batch = Array2::from_shape_fn((6, 3), |(sample, input)| (sample * 3 + input) as f32 - 7.0);
    let mut workspace = explainer.workspace();
    let found = explainer.explain_batch_into(batch.as_slice().unwrap(), &mut workspace)?;
    assert_eq!(found.len(), 6);
    for (explanation, row) in found.iter().zip(batch.rows()) {
        assert_eq!(explanation, &explainer.explain_slice(row.as_slice().unwrap())?);
    }

    let expected = found.to_vec();
    let memory = batch.as_ptr();
    let (values, offset) = batch.into_raw_vec_and_offset();
    assert_eq!((offset, values.as_ptr()), (Some(0), memory), "the same memory");
    let matrix = DMatrix::from_vec(3, 6, values);
    assert_eq!(matrix.as_ptr(), memory, "the same memory");
    assert_eq!(explainer.explain_batch(&matrix)?, expected);
    Ok(())
}

#[test]
fn shares_are_viewed_in_place() -> Result<(), Error> {
    let explanation =
        explainer()?.explain_slice(Array1::from_vec(vec![1.0, -2.0, 0.5]).as_slice().unwrap())?;
    let shares = explanation.shares();
    let view = ArrayView2::from_shape(shares.shape().f(), shares.as_slice()).unwrap();
    assert_eq!(view.as_ptr(), shares.as_ptr(), "the same memory");
    assert_eq!(view.dim(), (3, 4));
    for ((input, target), share) in view.indexed_iter() {
        assert_eq!(share.to_bits(), shares[(input, target)].to_bits());
    }
    for target in 0..4 {
        let relevance = &view.column(target) * explanation.output()[target];
        assert_eq!(relevance.as_slice().unwrap(), explanation.relevance(target)?.as_slice());
    }
    Ok(())
}

#[test]
fn relevances_are_written_into_rows() -> Result<(), Error> {
    let explainer = explainer()?;
    let batch = Array2::from_shape_fn((2, 3), |(sample, input)| (sample + 2 * input) as f32 - 1.0);
    let mut workspace = explainer.workspace();
    let explanations = explainer.explain_batch_into(batch.as_slice().unwrap(), &mut workspace)?;
    let mut relevances = Array2::zeros(batch.dim());
    for (explanation, mut row) in explanations.iter().zip(relevances.rows_mut()) {
        explanation.relevance_into(1, row.as_slice_mut().unwrap())?;
        assert_eq!(row.as_slice().unwrap(), explanation.relevance(1)?.as_slice());
    }
    Ok(())
}

#[test]
fn images_are_channels_by_height_by_width() -> Result<(), Error> {
    let model = Sequential::builder()
        .input([2, 4, 3])
        .layer(Conv2d::new([1, 2, 2, 2], weights(8), None)?)
        .layer(Flatten)
        .layer(Linear::from_rows(1, 6, &weights(6), None)?)
        .build()?;
    let explainer = model.explainer(Rule::Epsilon)?;
    let batch = Array4::from_shape_fn((3, 2, 4, 3), |(n, c, h, w)| {
        ((n * 24 + c * 12 + h * 3 + w) as f32 * 0.3).cos()
    });
    let mut workspace = explainer.workspace();
    let found = explainer.explain_batch_into(batch.as_slice().unwrap(), &mut workspace)?;
    let third = batch.index_axis(Axis(0), 2);
    assert_eq!(found[2], explainer.explain_slice(third.as_slice().unwrap())?);
    Ok(())
}

/// An array in another order is not a slice, so it cannot be mistaken for a batch. Its copy in C
/// order can be passed as one.
#[test]
fn a_transposed_array_is_not_a_batch() -> Result<(), Error> {
    let explainer = explainer()?;
    let turned = Array2::from_shape_fn((3, 6), |(input, sample)| (sample * 3 + input) as f32)
        .reversed_axes();
    assert_eq!(turned.dim(), (6, 3));
    assert!(turned.as_slice().is_none());
    let mut workspace = explainer.workspace();
    let found = explainer
        .explain_batch_into(turned.as_standard_layout().as_slice().unwrap(), &mut workspace)?;
    let row = turned.row(1).to_vec();
    assert_eq!(found[1], explainer.explain_slice(&row)?);
    Ok(())
}
