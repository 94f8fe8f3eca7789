//! The embedding: rows of a table.

use std::sync::Arc;

use nalgebra::DMatrix;

use super::{Layer, Operator};
use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;
use crate::shape::Shape;

const KIND: &str = "Embedding";

/// A table with one row for each token or category. It turns each whole number into its row.
///
/// It reads an input that was declared with
/// [`GraphBuilder::given_whole`](crate::GraphBuilder::given_whole). The numbers are given, not
/// explained. To explain the rows, use [`Graph::explain_from`](crate::Graph::explain_from); the
/// relevance of a token is then the sum over its row.
///
/// ```
/// use relprop::{Embedding, Flatten, Graph, Inputs, Linear, Rule};
/// use relprop::nalgebra::{self, dmatrix};
///
/// let mut graph = Graph::builder();
/// let ids = graph.given_whole("ids", 2);
/// let table = dmatrix![1.0, 0.0; 0.0, 1.0; 2.0, 3.0]; // three tokens, two values each
/// let rows = graph.named("embeddings", Embedding::new(&table)?, [ids]);
/// let flat = graph.layer(Flatten, [rows]);
/// let y = graph.layer(Linear::new(dmatrix![1.0, 1.0, 10.0, 10.0], None)?, [flat]);
/// graph.output("y", y);
/// let explainer = graph.build()?.explain_from(["embeddings"])?.explainer(Rule::Lrp0)?;
///
/// let explanation = explainer.explain_inputs(&Inputs::new().given("ids", vec![0, 2]))?;
/// assert_eq!(explanation.relevance(0)?.as_slice(), [1.0, 0.0, 20.0, 30.0]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Embedding<T: Scalar> {
    lookup: Arc<Lookup<T>>,
}

/// The lookup of rows in a table, for [`Operator::Lookup`].
#[derive(Debug)]
pub struct Lookup<T> {
    /// Row by row.
    table: Vec<T>,
    width: usize,
}

impl<T: Scalar> Embedding<T> {
    /// Creates a layer from a table with one row per token.
    ///
    /// # Errors
    /// [`Error::ZeroSized`] and [`Error::NonFiniteWeight`].
    pub fn new(table: &DMatrix<T>) -> Result<Self, Error> {
        let (rows, width) = table.shape();
        if rows == 0 || width == 0 {
            return Err(Error::ZeroSized { kind: KIND.to_owned(), outputs: width, inputs: rows });
        }
        if let Some((at, value)) = linalg::first_non_finite(table.as_slice()) {
            return Err(Error::NonFiniteWeight {
                kind: KIND.to_owned(),
                output: at / rows,
                input: at % rows,
                value: value.as_f64(),
            });
        }
        let table = table.transpose().as_slice().to_vec();
        Ok(Self { lookup: Arc::new(Lookup { table, width }) })
    }
}

impl<T: Scalar> Lookup<T> {
    fn rows(&self) -> usize {
        self.table.len() / self.width
    }

    /// The shape of the rows for whole numbers of this shape: an axis more, for the row's values.
    pub(crate) fn output_shape(&self, input: Shape) -> Result<Shape, Error> {
        Ok(Shape::try_from(&[input.dims(), &[self.width]].concat()[..])?)
    }

    /// Writes the row of each number.
    ///
    /// # Errors
    /// [`Error::Inputs`] for a number without a row.
    pub(crate) fn write(&self, numbers: &[i64], rows: &mut [T]) -> Result<(), Error> {
        for (&number, row) in numbers.iter().zip(rows.chunks_exact_mut(self.width)) {
            let from = usize::try_from(number).ok().filter(|&number| number < self.rows());
            let Some(from) = from else {
                return Err(Error::Inputs {
                    reason: format!(
                        "the number {number} has no row in the table of an embedding, whose rows \
                         are 0 to {}",
                        self.rows() - 1
                    ),
                });
            };
            row.copy_from_slice(&self.table[from * self.width..][..self.width]);
        }
        Ok(())
    }
}

impl<T: Scalar> Layer<T> for Embedding<T> {
    fn kind(&self) -> &str {
        KIND
    }

    fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(Operator::Lookup(self.lookup.clone()))
    }

    fn arguments(&self) -> String {
        format!("{}, {}", self.lookup.rows(), self.lookup.width)
    }

    fn parameters(&self) -> usize {
        self.lookup.table.len()
    }

    fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
        let Lookup { table, width } = &*self.lookup;
        vec![("weight", vec![self.lookup.rows(), *width], table.clone())]
    }

    fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
        let Lookup { table, width } = &*self.lookup;
        let table = table.iter().map(|v| v.as_f64()).collect();
        Some(Arc::new(Embedding { lookup: Arc::new(Lookup { table, width: *width }) }))
    }
}
