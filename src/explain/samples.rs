//! Explaining samples, one by one or in batches.

#[cfg(feature = "rayon")]
use std::sync::atomic::{AtomicBool, Ordering};

use nalgebra::{DMatrix, DVector};

use super::explainer::Explainer;
use super::explanation::Explanation;
use super::pass::PartMemory;
use crate::error::Error;
use crate::graph::{Feed, Inputs};
use crate::linalg;
use crate::scalar::Scalar;

/// Reusable memory for [`Explainer::explain_into`] and [`Explainer::explain_batch_into`].
///
/// A workspace also holds the results of the last call. It works with any explainer and grows as
/// needed. Each thread needs its own.
#[derive(Debug, Default)]
pub struct Workspace<T: Scalar> {
    parts: Vec<PartMemory<T>>,
    explanations: Vec<Explanation<T>>,
}

/// Permission to split a batch among the threads of a pool.
///
/// Of the callers that do not belong to a pool themselves, only one has it at a time. Several
/// batches on the same threads would wait for each other and displace each other's memory from the
/// caches, so the other callers go through their samples on their own threads. Large products are
/// split in any case.
#[cfg(feature = "rayon")]
struct Split {
    is_from_outside: bool,
}

#[cfg(feature = "rayon")]
static IS_SPLIT: AtomicBool = AtomicBool::new(false);

#[cfg(feature = "rayon")]
impl Split {
    fn begin() -> Option<Self> {
        let is_from_outside = rayon::current_thread_index().is_none();
        // Not `then_some`: dropping an unused permission would give back that of another caller.
        (!is_from_outside || !IS_SPLIT.swap(true, Ordering::Acquire))
            .then(|| Self { is_from_outside })
    }
}

#[cfg(feature = "rayon")]
impl Drop for Split {
    fn drop(&mut self) {
        if self.is_from_outside {
            IS_SPLIT.store(false, Ordering::Release);
        }
    }
}

impl<T: Scalar> Explainer<T> {
    /// Creates a workspace for [`explain_into`](Self::explain_into) and
    /// [`explain_batch_into`](Self::explain_batch_into).
    #[must_use]
    pub fn workspace(&self) -> Workspace<T> {
        Workspace::default()
    }

    /// Explains the targets for one sample.
    ///
    /// If the model has several inputs, the sample contains the values of all of them, one input
    /// after another. For inputs of whole numbers, use [`explain_inputs`](Self::explain_inputs).
    ///
    /// For cost and memory, see [`Accumulation`](crate::Accumulation) and [`plan`](Self::plan).
    ///
    /// # Errors
    /// [`Error::InputShape`], [`Error::NonFiniteInput`], [`Error::NonFiniteOutput`],
    /// [`Error::Overflow`], [`Error::TooLarge`], or [`Error::OutsideRange`] if a rule such as
    /// [`ZBox`](crate::ZBox) assumes a range of values and the sample is outside it.
    pub fn explain(&self, sample: &DVector<T>) -> Result<Explanation<T>, Error> {
        self.explain_slice(sample.as_slice())
    }

    /// Explains the targets for one sample, given as a slice.
    ///
    /// # Errors
    /// See [`explain`](Self::explain).
    pub fn explain_slice(&self, sample: &[T]) -> Result<Explanation<T>, Error> {
        let mut workspace = self.workspace();
        self.explain_into(sample, &mut workspace)?;
        // There is always one after a successful call.
        Ok(workspace.explanations.pop().unwrap_or_else(|| self.empty()))
    }

    /// Explains the targets for one sample, reusing the memory of a workspace.
    ///
    /// The workspace holds the explanation until its next use.
    ///
    /// After the first successful call, nothing is allocated for a network of the crate's own layers
    /// and rules. There are four exceptions. A convolution whose fast product would lose digits for
    /// a sample arranges its weights for the plain product when it first needs that.
    /// [`with_health`](Self::with_health) and findings allocate in each call. With the `rayon`
    /// feature, splitting the work of a large layer among threads can allocate. So does explaining
    /// many targets of a network whose hidden layers are much wider than its input: their shares
    /// would need much more memory than the results, so some targets are explained at a time.
    ///
    /// # Errors
    /// See [`explain`](Self::explain). The workspace remains usable after an error.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?;
    /// let mut workspace = explainer.workspace();
    /// for x in [[1.0, 2.0], [3.0, 4.0]] {
    ///     let explanation = explainer.explain_into(&x, &mut workspace)?;
    ///     println!("{explanation}");
    /// }
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_into<'w>(
        &self,
        sample: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w Explanation<T>, Error> {
        (T::compiled().explain_into)(self, sample, workspace)
    }

    pub(crate) fn explain_into_inner<'w>(
        &self,
        sample: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w Explanation<T>, Error> {
        self.model().check_input(sample.len())?;
        let feed = Feed::Columns(sample, self.model().inputs());
        feed.check(self.model())?;
        self.check_size(1, 1)?;
        self.reserve(workspace, 1, 1);
        self.explain_part(&feed, &mut workspace.parts[0], &mut workspace.explanations[..1])?;
        Ok(&workspace.explanations[0])
    }

    /// Explains the targets for one sample, given as the values of each input by name. For an
    /// example, see [`Inputs`].
    ///
    /// # Errors
    /// See [`explain`](Self::explain). [`Error::Inputs`] is returned if the values do not fit the
    /// model's inputs or are those of several samples.
    pub fn explain_inputs(&self, inputs: &Inputs<'_, T>) -> Result<Explanation<T>, Error> {
        let feed = inputs.bind_one(self.model())?;
        let mut workspace = self.workspace();
        (T::compiled().explain_feed_into)(self, &feed, &mut workspace)?;
        // There is always one after a successful call.
        Ok(workspace.explanations.pop().unwrap_or_else(|| self.empty()))
    }

    /// Explains the targets for each sample of a batch, given as the values of each input by name.
    ///
    /// # Errors
    /// See [`explain_batch`](Self::explain_batch), and [`Error::Inputs`].
    pub fn explain_batch_inputs(
        &self,
        inputs: &Inputs<'_, T>,
    ) -> Result<Vec<Explanation<T>>, Error> {
        let feed = inputs.bind(self.model())?;
        let mut workspace = self.workspace();
        (T::compiled().explain_feed_into)(self, &feed, &mut workspace)?;
        Ok(workspace.explanations)
    }

    /// Explains the targets for each sample of a batch.
    ///
    /// Samples are columns: `samples` is inputs x samples. A batch can have any number of samples,
    /// including zero. With the `rayon` feature, the batch is split among the threads of the
    /// caller's pool. The results are bit-for-bit identical for any number of threads and any split
    /// of the batch. While the batch of another caller is split, the samples of this one stay on the
    /// caller's thread.
    ///
    /// Cost: as for single samples, except that several samples share each read of the weights.
    /// Memory: the explanations, and for each thread the blocks of its part of the batch.
    ///
    /// # Errors
    /// See [`explain`](Self::explain). If several samples fail, the error of one of them is
    /// returned. [`Error::TooLarge`] is returned if the explanations of all samples exceed the
    /// memory limit; in that case, explain the batch in parts.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential, Targets};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let linear = Linear::new(dmatrix![1.0, 2.0; 2.0, 1.0], None)?;
    /// let model = Sequential::builder().layer(linear).build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?.targets(Targets::Predicted)?;
    /// for explanation in explainer.explain_batch(&dmatrix![1.0, 0.0, 5.0; 0.0, 1.0, 2.0])? {
    ///     println!("{}", explanation.relevance(explanation.predicted())?);
    /// }
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_batch(&self, samples: &DMatrix<T>) -> Result<Vec<Explanation<T>>, Error> {
        self.model().check_input(samples.nrows())?;
        let mut workspace = self.workspace();
        self.explain_batch_into(samples.as_slice(), &mut workspace)?;
        Ok(workspace.explanations)
    }

    /// Explains the targets for each sample in a slice, reusing the memory of a workspace.
    ///
    /// The slice holds one sample after another: a C-order array of shape (samples, inputs), as in
    /// PyTorch and NumPy. The workspace holds the explanations until its next use.
    ///
    /// A server that explains batch after batch thus avoids the cost of allocating memory each
    /// time.
    ///
    /// # Errors
    /// See [`explain_batch`](Self::explain_batch). [`Error::BatchLength`] is returned if the length
    /// is not a multiple of the number of inputs. The workspace remains usable after an error.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?;
    /// let mut workspace = explainer.workspace();
    /// let samples = [1.0, 0.0, 0.0, 1.0, 5.0, 2.0];
    /// assert_eq!(explainer.explain_batch_into(&samples, &mut workspace)?.len(), 3);
    /// assert_eq!(explainer.explain_batch_into(&[1.0, 0.0], &mut workspace)?.len(), 1);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_batch_into<'w>(
        &self,
        samples: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error> {
        (T::compiled().explain_batch_into)(self, samples, workspace)
    }

    pub(crate) fn explain_batch_into_inner<'w>(
        &self,
        samples: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error> {
        let inputs = self.model().inputs();
        if !samples.len().is_multiple_of(inputs) {
            return Err(Error::BatchLength { inputs, found: samples.len() });
        }
        self.explain_feed_into_inner(&Feed::Columns(samples, inputs), workspace)
    }

    pub(crate) fn explain_feed_into_inner<'w>(
        &self,
        feed: &Feed<'_, T>,
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error> {
        // Checked before the batch is split, so that the error has the sample's index in the batch.
        feed.check(self.model())?;
        let count = feed.samples();
        let (each, together) = self.split(count);
        self.check_size(count, count.div_ceil(each.max(1)).saturating_mul(together).min(count))?;
        self.reserve(workspace, count.div_ceil(each), count);
        let Workspace { parts, explanations } = workspace;
        let explanations = &mut explanations[..count];
        let of_part = |(number, (explanations, part)): (
            usize,
            (&mut [Explanation<T>], &mut PartMemory<T>),
        )| {
            let mut first = number * each;
            for explanations in explanations.chunks_mut(together) {
                let feed = feed.part(first, explanations.len());
                self.explain_part(&feed, part, explanations)
                    .map_err(|error| error.in_batch(first))?;
                first += explanations.len();
            }
            Ok(())
        };
        #[cfg(feature = "rayon")]
        let split = Split::begin();
        #[cfg(feature = "rayon")]
        let results: Vec<Result<(), Error>> = if split.is_some() {
            use rayon::prelude::*;
            explanations.par_chunks_mut(each).zip(parts).enumerate().map(of_part).collect()
        } else {
            explanations.chunks_mut(each).zip(parts).enumerate().map(of_part).collect()
        };
        #[cfg(not(feature = "rayon"))]
        let results: Vec<Result<(), Error>> =
            explanations.chunks_mut(each).zip(parts).enumerate().map(of_part).collect();
        // In the order of the samples, so the error reported does not depend on the threads.
        results.into_iter().collect::<Result<(), Error>>()?;
        Ok(explanations)
    }

    /// Makes sure that a workspace has at least this many parts and explanations.
    fn reserve(&self, workspace: &mut Workspace<T>, parts: usize, explanations: usize) {
        let Workspace { parts: those, explanations: these } = workspace;
        those.resize_with(those.len().max(parts), PartMemory::default);
        these.resize_with(these.len().max(explanations), || self.empty());
    }

    /// How many samples of a batch each part covers, and how many of them pass through the layers
    /// together. The results depend on neither.
    fn split(&self, samples: usize) -> (usize, usize) {
        /// The largest size of a part's blocks, so that they stay in a thread's cache.
        const BLOCK: f64 = 32_768.0;
        /// The largest number of samples that pass through the layers together.
        const MOST: usize = 64;
        let threads = linalg::threads();
        let maps = || {
            let nodes = self.network.nodes.iter().map(|&node| self.model().node(node));
            nodes.filter_map(|node| node.operation.linear()).map(|linear| &*linear.map)
        };
        if self.network.explains_one_by_one() {
            return (samples.div_ceil(threads).max(1), 1);
        }
        // The number of weights in dense layers with at least `from` weights.
        let weights = |from: usize| -> usize {
            let dense = maps().filter(|map| map.forms_matrix());
            let sizes = dense.map(|map| map.inputs() * map.outputs());
            sizes.filter(|&weights| weights >= from).sum()
        };
        if 2 * weights(linalg::LARGE) >= weights(0) {
            // The products themselves are split among the threads, and many samples should share
            // each read of the weights.
            let together = samples.clamp(1, MOST);
            return (together, together);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
        let fits = (BLOCK / self.plan.largest_block(self.plan.accumulation())) as usize;
        let together = samples.div_ceil(threads).min(fits).clamp(1, MOST);
        (together, together)
    }
}
