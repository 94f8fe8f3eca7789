//! How much may be made of a file, so that a small one takes little memory whatever it says.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::PathBuf;

/// So many numbers may be made of a file without a single byte of weights, by folding and for
/// layers.
const FOLDED: usize = 1 << 16;
const KEPT: usize = 1 << 14;

/// The numbers that may still be made, in proportion to the bytes that there are.
#[derive(Debug)]
pub(super) struct Budget {
    folded: Cell<usize>,
    kept: Cell<usize>,
    files: RefCell<HashSet<PathBuf>>,
}

impl Budget {
    /// Of a file of so many bytes.
    pub fn of(file: usize) -> Self {
        let budget =
            Self { folded: Cell::new(FOLDED), kept: Cell::new(KEPT), files: RefCell::default() };
        budget.grow(file);
        budget
    }

    /// With another file; one that is known adds nothing.
    pub fn add(&self, path: PathBuf, length: usize) {
        if self.files.borrow_mut().insert(path) {
            self.grow(length);
        }
    }

    /// A number of folding for each byte; two for layers, which may share weights of four bytes a
    /// number eight times over.
    fn grow(&self, bytes: usize) {
        self.folded.set(self.folded.get().saturating_add(bytes));
        self.kept.set(self.kept.get().saturating_add(bytes.saturating_mul(2)));
    }

    /// Takes so many numbers of what folding may make; `None` where there are not so many left.
    pub fn fold(&self, count: usize) -> Option<()> {
        self.folded.get().checked_sub(count).map(|left| self.folded.set(left))
    }

    /// Takes so many numbers of what layers may hold.
    pub fn keep(&self, count: usize) -> Result<(), String> {
        let left = self.kept.get().checked_sub(count).ok_or(
            "its weights would be many times larger than the file: shared weights are \
                supported up to a few copies",
        )?;
        self.kept.set(left);
        Ok(())
    }
}
