//! Steps, the intermediate representation of the ONNX reader. Each step stands for a node whose
//! values depend on the model's input.

use std::collections::{HashMap, HashSet};
use std::ops::{Index, IndexMut};
use std::rc::Rc;
use std::sync::Arc;

use super::budget::Budget;
use super::constant::{Constant, Values};
use super::expression::{Expression, binary, unary};
use super::proto::Node;
use crate::error::Error;
use crate::io::tensor::Tensor;
use crate::layer::{Joined, Layer, Operator};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The maximum number of inputs of one sum or concatenation, and of all of them together.
const JOINED: usize = 1 << 10;
const ALL_JOINED: usize = 1 << 15;

/// The value to which a name in the graph refers.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Constant(Constant),
    /// The values of the step with this index.
    Step(usize),
}

/// Values that depend on the input, and how they are computed.
#[derive(Debug)]
pub(super) struct Step<T: Scalar> {
    /// The index of the node, or `None` for the input.
    pub node: Option<usize>,
    pub name: String,
    pub operator: Rc<str>,
    pub kind: Kind<T>,
    /// The shape of the values for one sample. It can be unknown after an unsupported node.
    pub dims: Option<Vec<usize>>,
    pub nonnegative: bool,
    /// Whether the values are integers.
    pub whole: bool,
    /// Whether the step should be a constant, but could not be computed, because it depends on an
    /// unknown shape or because its node is unsupported.
    pub uncomputed: bool,
    /// The values as elementwise functions of the values of other steps.
    pub expressions: Vec<(usize, Rc<Expression>)>,
}

/// How a step's values are computed. The numbers are the indices of the steps that are its inputs.
#[derive(Debug)]
pub(super) enum Kind<T: Scalar> {
    Input,
    /// By layers, one after another.
    Layers(usize, Vec<Arc<dyn Layer<T>>>),
    /// By padding with zeros before and after each spatial axis, which the next convolution or
    /// pooling includes.
    Padded(usize, Vec<[usize; 2]>),
    /// By multiplication by a number. It becomes part of the activation before or after it, or
    /// otherwise a scaling.
    Factor(usize, f64),
    /// By adding or concatenating several steps.
    Joined {
        of: Vec<usize>,
        joined: Joined,
    },
    /// The step is unsupported, for this reason.
    Refused(Vec<usize>, String),
    /// The step comes after an unsupported one, and there is no known reason to reject it as well.
    Behind(Vec<usize>),
}

impl<T: Scalar> Kind<T> {
    pub fn inputs(&self) -> &[usize] {
        match self {
            Self::Input => &[],
            Self::Layers(of, _) | Self::Padded(of, _) | Self::Factor(of, _) => {
                std::slice::from_ref(of)
            }
            Self::Joined { of, .. } | Self::Refused(of, _) | Self::Behind(of) => of,
        }
    }
}

/// The result of converting a node.
pub(super) enum Made<T: Scalar> {
    /// The values of an existing step, because the node changes nothing.
    Same(usize),
    /// A new step of this kind, with the values as functions of those of other steps.
    Step(Kind<T>, Vec<(usize, Rc<Expression>)>),
}

/// The reason for rejecting an unknown operator.
pub(super) const UNSUPPORTED: &str = "the operator is unsupported: explain the model up to its \
    input, with OnnxFile::output, or export the model without it";

/// The reason for rejecting a function that is not part of a known activation.
pub(super) const PART: &str = "it is supported only as part of a known activation, such as SiLU \
    or GELU: explain the model up to its input, with OnnxFile::output";

pub(super) type Layers<T> = Vec<Arc<dyn Layer<T>>>;

pub(super) fn one<T: Scalar>(layer: impl Layer<T> + 'static) -> Layers<T> {
    vec![Arc::new(layer)]
}

/// The text of an error, as the reason for rejecting a node.
#[allow(clippy::needless_pass_by_value)] // for use in map_err
pub(super) fn refused(error: Error) -> String {
    error.to_string()
}

/// All steps, and what is known about the graph.
#[derive(Debug)]
pub(super) struct Steps<T: Scalar> {
    list: Vec<Step<T>>,
    /// The version of ONNX's operator set.
    pub opset: i64,
    /// How many times nodes read each name.
    pub uses: HashMap<String, usize>,
    /// The names of the graph's outputs.
    pub outputs: HashSet<String>,
    /// The steps that have more than one name.
    pub aliased: HashSet<usize>,
    /// The batch size for which the file is made, or 1 if it is not fixed.
    pub batch: usize,
    /// The number of inputs of all sums and concatenations.
    joined: usize,
    pub budget: Budget,
}

impl<T: Scalar> Index<usize> for Steps<T> {
    type Output = Step<T>;

    fn index(&self, step: usize) -> &Step<T> {
        &self.list[step]
    }
}

impl<T: Scalar> IndexMut<usize> for Steps<T> {
    fn index_mut(&mut self, step: usize) -> &mut Step<T> {
        &mut self.list[step]
    }
}

impl<T: Scalar> Steps<T> {
    /// Starts with the model's input. `dims` is the shape of a sample, and `whole` is true if it
    /// consists of integers.
    pub fn new(
        name: &str,
        opset: i64,
        batch: usize,
        dims: Vec<usize>,
        whole: bool,
        budget: Budget,
    ) -> Self {
        let first = Step {
            node: None,
            name: name.to_owned(),
            operator: "".into(),
            kind: Kind::Input,
            dims: Some(dims),
            nonnegative: false,
            whole,
            uncomputed: false,
            expressions: Vec::new(),
        };
        let (uses, outputs, aliased) = Default::default();
        Self { list: vec![first], opset, uses, outputs, aliased, batch, joined: 0, budget }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Adds a step and finds the shape and sign of its values. A step that does not fit its inputs
    /// becomes an unsupported one.
    pub fn push(
        &mut self,
        index: usize,
        name: &str,
        operator: &Rc<str>,
        mut kind: Kind<T>,
    ) -> usize {
        if let Kind::Joined { of, .. } = &kind {
            // `follow` compares this total with the limit.
            self.joined += of.len();
        }
        let (mut dims, mut nonnegative) = (None, false);
        match self.follow(&kind) {
            Ok(known) => (dims, nonnegative) = known,
            Err(reason) => kind = Kind::Refused(kind.inputs().to_vec(), reason),
        }
        if dims.is_none() && keeps_shape(operator) {
            // Assume a shape, so that the nodes after an unsupported one are checked too.
            let of = kind.inputs().iter().filter_map(|&step| self[step].dims.as_ref());
            // With broadcasting, the output is as large as the largest input.
            dims = of.max_by_key(|dims| Tensor::count(dims)).cloned();
        }
        // Casts to integers are rejected, so the output of a cast is never whole.
        let whole = &**operator != "Cast" && kind.inputs().iter().any(|&step| self[step].whole);
        self.list.push(Step {
            node: Some(index),
            name: name.to_owned(),
            operator: operator.clone(),
            kind,
            dims,
            nonnegative,
            whole,
            uncomputed: false,
            expressions: Vec::new(),
        });
        self.list.len() - 1
    }

    /// The shape of the values of a kind of step, and whether they are never negative.
    fn follow(&self, kind: &Kind<T>) -> Result<(Option<Vec<usize>>, bool), String> {
        match kind {
            Kind::Layers(of, layers) => {
                let Some(dims) = &self[*of].dims else { return Ok((None, false)) };
                let mut shape = shape_of(dims)?;
                // Whether the values after the layers so far are known to be nonnegative.
                let mut sign = self[*of].nonnegative;
                for layer in layers {
                    (shape, sign) = match layer.operator(&[shape]).map_err(|e| e.to_string())? {
                        Operator::Linear(map) | Operator::Average(map) => {
                            if map.inputs() != shape.size() {
                                return Err(format!(
                                    "it needs {} values, but its input has {}: check the shape of \
                                     the model's input",
                                    map.inputs(),
                                    shape.size()
                                ));
                            }
                            (map.output_shape(), sign && map.keeps_sign())
                        }
                        Operator::Elementwise(function) => (shape, function.is_nonnegative(sign)),
                        Operator::Route(route) => (route.output_shape(), sign),
                        Operator::Reshape(shape) => (shape, sign),
                        Operator::PerChannel(functions) => {
                            (shape, functions.iter().all(|function| function.is_nonnegative(sign)))
                        }
                        // No operator becomes a layer with branches.
                        _ => (shape, false),
                    };
                }
                Ok((Some(shape.dims().to_vec()), sign))
            }
            Kind::Padded(of, by) => {
                let Some(mut dims) = self[*of].dims.clone() else { return Ok((None, false)) };
                for (dim, [before, behind]) in dims.iter_mut().skip(1).zip(by) {
                    *dim = dim
                        .checked_add(*before)
                        .and_then(|dim| dim.checked_add(*behind))
                        .ok_or("its shape is too large")?;
                }
                Ok((Some(dims), self[*of].nonnegative))
            }
            Kind::Factor(of, factor) => {
                Ok((self[*of].dims.clone(), self[*of].nonnegative && *factor >= 0.0))
            }
            Kind::Joined { of, .. } if of.len() > JOINED => {
                Err(format!("it has {} inputs, but at most {JOINED} are supported", of.len()))
            }
            Kind::Joined { .. } if self.joined > ALL_JOINED => Err(format!(
                "the sums and concatenations of this graph have more than {ALL_JOINED} inputs in \
                 total, which is unsupported: choose an earlier output, with OnnxFile::output"
            )),
            Kind::Joined { of, joined } => {
                let summed = *joined == Joined::Summed;
                let all: Option<Vec<&Vec<usize>>> =
                    of.iter().map(|&step| self[step].dims.as_ref()).collect();
                let Some(all) = all else { return Ok((None, false)) };
                let mut dims = (*all.first().ok_or("it has no inputs")?).clone();
                let fits = |other: &&Vec<usize>| {
                    if summed {
                        **other == dims
                    } else {
                        other.len() == dims.len() && other.get(1..) == dims.get(1..)
                    }
                };
                if !all.iter().all(fits) {
                    return Err(format!(
                        "its inputs must have the same shape{}, but have {:?} (without the batch \
                         axis)",
                        if summed { "" } else { " except for the channels" },
                        &all[..all.len().min(8)]
                    ));
                }
                if !summed && !dims.is_empty() {
                    dims[0] = all
                        .iter()
                        .try_fold(0_usize, |sum, dims| sum.checked_add(dims[0]))
                        .ok_or("its shape is too large")?;
                }
                Ok((Some(dims), of.iter().all(|&step| self[step].nonnegative)))
            }
            Kind::Input | Kind::Refused(..) | Kind::Behind(_) => Ok((None, false)),
        }
    }

    /// The shape of a step's values with the batch axis, as in ONNX.
    pub fn full_dims(&self, step: usize) -> Option<Vec<usize>> {
        self[step].dims.as_ref().map(|dims| [&[self.batch], dims.as_slice()].concat())
    }
}

/// Whether an operator's output has the shape of its largest input, as for elementwise functions
/// and normalizations. This includes operators that are unsupported.
fn keeps_shape(operator: &str) -> bool {
    let settings =
        ["Where", "Clip", "PRelu", "HardSigmoid", "Selu", "Swish", "Softmax", "LogSoftmax"];
    unary(operator).is_some()
        || binary(operator).is_some()
        || settings.contains(&operator)
        || operator.ends_with("Normalization")
}

/// A node with its inputs.
pub(super) struct Given<'a> {
    pub node: &'a Node,
    pub inputs: &'a [Option<Value>],
    /// The step that is the first input.
    pub step: usize,
    /// The shape of the first input for one sample.
    pub dims: &'a [usize],
    pub budget: &'a Budget,
}

impl Given<'_> {
    pub fn constant(&self, place: usize) -> Option<&Constant> {
        if let Some(Some(Value::Constant(constant))) = self.inputs.get(place) {
            Some(constant)
        } else {
            None
        }
    }

    pub fn is_given(&self, place: usize) -> bool {
        self.inputs.get(place).is_some_and(Option::is_some)
    }

    /// The numbers of an input that must be a constant.
    pub fn numbers<T: Scalar>(&self, place: usize, what: &str) -> Result<Vec<T>, String> {
        self.convert(self.constant(place), what)
    }

    /// The numbers of a constant, converted for a layer.
    pub fn convert<T: Scalar>(
        &self,
        constant: Option<&Constant>,
        what: &str,
    ) -> Result<Vec<T>, String> {
        let Some(constant @ Constant { values: Values::Floats(tensor), .. }) = constant else {
            return Err(format!("its {what} must be constant floating-point numbers"));
        };
        // Before the conversion, which allocates this many numbers.
        self.budget.keep(constant.count())?;
        tensor.convert(what).map_err(refused)
    }

    /// The numbers of an optional input that must be a constant if it is given.
    pub fn optional<T: Scalar>(&self, place: usize, what: &str) -> Result<Option<Vec<T>>, String> {
        if self.is_given(place) { self.numbers(place, what).map(Some) } else { Ok(None) }
    }

    pub fn ints(&self, place: usize) -> Option<&[i64]> {
        self.constant(place).and_then(Constant::as_ints)
    }

    /// The number of spatial axes, 1 or 2.
    pub fn rank(&self) -> Result<usize, String> {
        match self.dims.len() {
            2 | 3 => Ok(self.dims.len() - 1),
            axes => Err(format!(
                "it is supported only for sequences and images, but its values have {axes} axes \
                 (without the batch axis)"
            )),
        }
    }

    /// An attribute with a number for each spatial axis.
    pub fn sizes(&self, name: &str, rank: usize, usual: usize) -> Result<[usize; 2], String> {
        let wrong = || format!("its {name} must have {rank} non-negative numbers");
        match self.node.ints(name) {
            None => Ok([usual; 2]),
            Some(sizes) if sizes.len() == rank => pair(sizes).ok_or_else(wrong),
            Some(_) => Err(wrong()),
        }
    }
}

/// Converts one or two sizes to sizes for two axes.
pub(super) fn pair(sizes: &[i64]) -> Option<[usize; 2]> {
    let size = |&size: &i64| usize::try_from(size).ok();
    match sizes {
        [both] => Some([size(both)?; 2]),
        [height, width] => Some([size(height)?, size(width)?]),
        _ => None,
    }
}

/// The shape with these one to three sizes. No sizes stand for a single value.
pub(super) fn shape_of(dims: &[usize]) -> Result<Shape, String> {
    if dims.is_empty() {
        return Ok(Shape::from(1));
    }
    super::super::shape(dims).ok_or_else(|| {
        format!(
            "its values have {} axes (without the batch axis), but at most 3 are supported",
            dims.len()
        )
    })
}
