//! Permutations after a softmax at the end.

use std::sync::Arc;

use crate::io::onnx::ir::{Computation, Ir, Layers};
use crate::io::onnx::shapes::shape_of;
use crate::layer::{Layer, Operator, Softmax, Unflatten};
use crate::scalar::Scalar;

impl<T: Scalar> Ir<T> {
    /// Swaps a softmax at the end with the permutations after it, so that they permute the logits,
    /// because the logits are explained. The outputs stay the same.
    pub(super) fn permute_logits(&mut self, output: usize, last: usize) {
        let mut softmax = last;
        for next in self.moves_after(last, output) {
            let Some((of, layers)) = self.permuted(softmax, next) else { return };
            // Swap the two nodes, with their names. The values of both now have the permuted shape.
            let (first, second) = (&self[softmax], &self[next]);
            let Computation::Layers(_, permutation) = &second.computation else { return };
            let (permutation, dims) =
                (Computation::Layers(of, permutation.clone()), second.dims.clone());
            let names = (first.name.clone(), first.place, second.name.clone(), second.place);
            let first = &mut self[softmax];
            (first.computation, first.dims, first.name, first.place) =
                (permutation, dims, names.2, names.3);
            let second = &mut self[next];
            (second.computation, second.name, second.place) =
                (Computation::Layers(softmax, layers), names.0, names.1);
            softmax = next;
        }
    }

    /// The input of a softmax, and the layers that replace the softmax once the permutation after
    /// it has been moved before it.
    fn permuted(&self, softmax: usize, permutation: usize) -> Option<(usize, Layers<T>)> {
        let (Computation::Layers(of, layers), Computation::Layers(_, moves)) =
            (&self[softmax].computation, &self[permutation].computation)
        else {
            return None;
        };
        let [permute] = moves.as_slice() else { return None };
        let shape = shape_of(self[softmax].dims.as_deref()?).ok()?;
        match layers.as_slice() {
            [only] => {
                let Ok(Operator::Softmax(axis)) = only.operator(&[shape]) else { return None };
                Some((
                    *of,
                    vec![Arc::new(Softmax::over(moved_axis(
                        &**permute,
                        axis,
                        shape.dims().len(),
                    )?))],
                ))
            }
            // A softmax over all values does not depend on their order.
            [flatten, softmax, _] => {
                let back = Unflatten::new(shape_of(self[permutation].dims.as_deref()?).ok()?);
                Some((*of, vec![flatten.clone(), softmax.clone(), Arc::new(back)]))
                    .filter(|_| is_permutation(moves))
            }
            _ => None,
        }
    }
}

pub(super) fn is_permutation<T: Scalar>(layers: &Layers<T>) -> bool {
    matches!(layers.as_slice(), [layer] if layer.kind() == "Permute")
}

/// The position to which a permutation moves an axis. To find it, permute a shape in which only
/// this axis has the size 2.
fn moved_axis<T: Scalar>(permute: &dyn Layer<T>, axis: usize, axes: usize) -> Option<usize> {
    let mut dims = vec![1; axes];
    *dims.get_mut(axis)? = 2;
    let Ok(Operator::Route(route)) = permute.operator(&[shape_of(&dims).ok()?]) else {
        return None;
    };
    route.output_shape().dims().iter().position(|&dim| dim == 2)
}
