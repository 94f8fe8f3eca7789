//! Values that depend on the input, each of which a node makes: what all that reads nodes works
//! with.

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
use crate::layer::{Layer, Operator};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// At most this many values may be added up or concatenated by a node, and by all.
const JOINED: usize = 1 << 10;
const ALL_JOINED: usize = 1 << 15;

/// What a name in the graph stands for.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Constant(Constant),
    /// What a step gives.
    Step(usize),
}

/// Values that depend on the input, and how they are made.
#[derive(Debug)]
pub(super) struct Step<T: Scalar> {
    /// The node, `None` for the input.
    pub node: Option<usize>,
    pub name: String,
    pub operator: Rc<str>,
    pub kind: Kind<T>,
    /// The sizes of a sample's values, where they are known: they are not after a node that is
    /// refused.
    pub dims: Option<Vec<usize>>,
    pub nonnegative: bool,
    /// The values are whole numbers.
    pub whole: bool,
    /// It does not depend on the input's values, and yet is not known: it is computed of shapes
    /// after a node that is refused, or by a node that cannot be computed.
    pub uncomputed: bool,
    /// The values as functions of other steps' values, one by one.
    pub expressions: Vec<(usize, Rc<Expression>)>,
}

#[derive(Debug)]
pub(super) enum Kind<T: Scalar> {
    Input,
    /// Layers one after the other.
    Layers(usize, Vec<Arc<dyn Layer<T>>>),
    /// Zeros before and behind along each of the axes of space, for the convolution or pooling that
    /// follows.
    Padded(usize, Vec<[usize; 2]>),
    /// The values times a number: a part of the activation before or after it, or else a scaling.
    Factor(usize, f64),
    Joined {
        of: Vec<usize>,
        summed: bool,
    },
    /// It is unsupported, and why.
    Refused(Vec<usize>, String),
    /// Nothing is wrong with it as far as is known, but it comes after a node that is refused.
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

/// What a node's values are.
pub(super) enum Made<T: Scalar> {
    /// Those of another step.
    Same(usize),
    Step(Kind<T>, Vec<(usize, Rc<Expression>)>),
}

/// Why an operator is refused that is unknown here.
pub(super) const UNSUPPORTED: &str = "the operator is unsupported: explain the model up to its \
    input, with OnnxFile::output, or export the \
                                      model without it";

/// Why a function is refused by itself.
pub(super) const PART: &str =
    "it is supported only as a part of a known activation, such as SiLU or GELU";

pub(super) type Layers<T> = Vec<Arc<dyn Layer<T>>>;

pub(super) fn one<T: Scalar>(layer: impl Layer<T> + 'static) -> Layers<T> {
    vec![Arc::new(layer)]
}

/// An error's text as a reason.
#[allow(clippy::needless_pass_by_value)] // to be called as it is where an error is mapped
pub(super) fn refused(error: Error) -> String {
    error.to_string()
}

/// All steps, and what is known of how they hang together.
#[derive(Debug)]
pub(super) struct Steps<T: Scalar> {
    list: Vec<Step<T>>,
    /// The version of ONNX's operators.
    pub opset: i64,
    /// How often each name is read by nodes, and which are the graph's outputs.
    pub uses: HashMap<String, usize>,
    pub outputs: HashSet<String>,
    /// Steps that have more than one name.
    pub aliased: HashSet<usize>,
    /// How many samples the file is made for, 1 where it says none.
    pub batch: usize,
    /// Concatenations by what they are of.
    pub concatenated: HashMap<Vec<usize>, usize>,
    /// How many values are joined in all.
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
    /// Begins with the input: its name, how large a sample is, and whether it is of whole numbers.
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
        let (uses, outputs, aliased, concatenated) = Default::default();
        Self {
            list: vec![first],
            opset,
            uses,
            outputs,
            aliased,
            batch,
            concatenated,
            joined: 0,
            budget,
        }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Adds a step, with the shape and sign of its values.
    pub fn push(
        &mut self,
        index: usize,
        name: &str,
        operator: &Rc<str>,
        mut kind: Kind<T>,
    ) -> usize {
        if let Kind::Joined { of, .. } = &kind {
            self.joined += of.len();
        }
        let (mut dims, mut nonnegative) = (None, false);
        match self.follow(&kind) {
            Ok(known) => (dims, nonnegative) = known,
            Err(reason) => kind = Kind::Refused(kind.inputs().to_vec(), reason),
        }
        if dims.is_none() && keeps_shape(operator) {
            // So that what stands behind it is looked at, too.
            let of = kind.inputs().iter().filter_map(|&step| self[step].dims.as_ref());
            dims = of.max_by_key(|dims| Tensor::count(dims)).cloned();
        }
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

    /// The sizes of what a kind of step gives, and whether it is never negative.
    fn follow(&self, kind: &Kind<T>) -> Result<(Option<Vec<usize>>, bool), String> {
        match kind {
            Kind::Layers(of, layers) => {
                let Some(dims) = &self[*of].dims else { return Ok((None, false)) };
                let mut shape = shape_of(dims)?;
                let mut sign = self[*of].nonnegative;
                for layer in layers {
                    (shape, sign) = match layer.operator(shape).map_err(|e| e.to_string())? {
                        Operator::Linear(map) | Operator::Average(map) => {
                            if map.inputs() != shape.size() {
                                return Err(format!(
                                    "it needs {} values, and its input has {}",
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
                        Operator::Branches(..) | Operator::Softmax(_) => (shape, false),
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
                        .ok_or("its sizes are too large")?;
                }
                Ok((Some(dims), self[*of].nonnegative))
            }
            Kind::Factor(of, factor) => {
                Ok((self[*of].dims.clone(), self[*of].nonnegative && *factor >= 0.0))
            }
            Kind::Joined { of, .. } if of.len() > JOINED => {
                Err(format!("it has {} inputs, and at most {JOINED} are supported", of.len()))
            }
            Kind::Joined { .. } if self.joined > ALL_JOINED => {
                Err("sums and concatenations in this graph have too many inputs in all".to_owned())
            }
            Kind::Joined { of, summed } => {
                let all: Option<Vec<&Vec<usize>>> =
                    of.iter().map(|&step| self[step].dims.as_ref()).collect();
                let Some(all) = all else { return Ok((None, false)) };
                let mut dims = (*all.first().ok_or("it has no inputs")?).clone();
                let fits = |other: &&Vec<usize>| {
                    if *summed {
                        **other == dims
                    } else {
                        other.len() == dims.len() && other.get(1..) == dims.get(1..)
                    }
                };
                if !all.iter().all(fits) {
                    return Err(format!(
                        "its inputs have different shapes, which is unsupported: {:?} (without \
                         the axis of the samples)",
                        &all[..all.len().min(8)]
                    ));
                }
                if !summed && !dims.is_empty() {
                    dims[0] = all
                        .iter()
                        .try_fold(0_usize, |sum, dims| sum.checked_add(dims[0]))
                        .ok_or("its sizes are too large")?;
                }
                Ok((Some(dims), of.iter().all(|&step| self[step].nonnegative)))
            }
            Kind::Input | Kind::Refused(..) | Kind::Behind(_) => Ok((None, false)),
        }
    }

    /// The sizes of a step's values with the samples' axis, as ONNX counts them.
    pub fn full_dims(&self, step: usize) -> Option<Vec<usize>> {
        self[step].dims.as_ref().map(|dims| [&[self.batch], dims.as_slice()].concat())
    }
}

/// Functions of each value, and normalizations: what they give has the shape of the largest of what
/// they take, though they may not be read.
fn keeps_shape(operator: &str) -> bool {
    let settings =
        ["Where", "Clip", "PRelu", "HardSigmoid", "Selu", "Swish", "Softmax", "LogSoftmax"];
    unary(operator).is_some()
        || binary(operator).is_some()
        || settings.contains(&operator)
        || operator.ends_with("Normalization")
}

/// What a node is given.
pub(super) struct Given<'a> {
    pub node: &'a Node,
    pub inputs: &'a [Option<Value>],
    /// The step that the first input is, and a sample's sizes there.
    pub step: usize,
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

    /// The numbers of an input that has to be constant.
    pub fn numbers<T: Scalar>(&self, place: usize, what: &str) -> Result<Vec<T>, String> {
        self.convert(self.constant(place), what)
    }

    /// The numbers of a constant, as a layer holds them.
    pub fn convert<T: Scalar>(
        &self,
        constant: Option<&Constant>,
        what: &str,
    ) -> Result<Vec<T>, String> {
        let Some(constant @ Constant { values: Values::Floats(tensor), .. }) = constant else {
            return Err(format!("its {what} has to be a constant of floating-point numbers"));
        };
        self.budget.keep(constant.count())?;
        tensor.convert(what).map_err(refused)
    }

    /// The same where it may be left out.
    pub fn optional<T: Scalar>(&self, place: usize, what: &str) -> Result<Option<Vec<T>>, String> {
        if self.is_given(place) { self.numbers(place, what).map(Some) } else { Ok(None) }
    }

    pub fn ints(&self, place: usize) -> Option<&[i64]> {
        self.constant(place).and_then(Constant::as_ints)
    }

    /// How many axes of space there are: 1 or 2.
    pub fn rank(&self) -> Result<usize, String> {
        match self.dims.len() {
            2 | 3 => Ok(self.dims.len() - 1),
            axes => Err(format!(
                "it is supported on sequences and images, and its values have {axes} axes \
                 (without that of the samples)"
            )),
        }
    }

    /// A setting with a number for each axis of space.
    pub fn sizes(&self, name: &str, rank: usize, usual: usize) -> Result<[usize; 2], String> {
        let wrong = || format!("its {name} have to be {rank} sizes");
        match self.node.ints(name) {
            None => Ok([usual; 2]),
            Some(sizes) if sizes.len() == rank => pair(sizes).ok_or_else(wrong),
            Some(_) => Err(wrong()),
        }
    }
}

/// One or two sizes for two axes.
pub(super) fn pair(sizes: &[i64]) -> Option<[usize; 2]> {
    let size = |&size: &i64| usize::try_from(size).ok();
    match sizes {
        [both] => Some([size(both)?; 2]),
        [height, width] => Some([size(height)?, size(width)?]),
        _ => None,
    }
}

/// One to three sizes; none at all is one value.
pub(super) fn shape_of(dims: &[usize]) -> Result<Shape, String> {
    if dims.is_empty() {
        return Ok(Shape::from(1));
    }
    super::super::shape(dims).ok_or_else(|| {
        format!(
            "its values have {} axes (without that of the samples): at most 3 are supported",
            dims.len()
        )
    })
}
