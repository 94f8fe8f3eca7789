//! Limits on the memory that a file can use, so that a small file never uses much.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::PathBuf;

/// How many numbers folding can produce, and how many numbers the layers can hold, even for a file
/// without weights.
const FOLDED: usize = 1 << 16;
const KEPT: usize = 1 << 14;

/// How many more numbers folding can produce and layers can hold. The budget grows in proportion to
/// the size of the file and of its external data.
#[derive(Debug)]
pub(super) struct Budget {
    folded: Cell<usize>,
    kept: Cell<usize>,
    files: RefCell<HashSet<PathBuf>>,
}

impl Budget {
    /// The budget for a file with this number of bytes.
    pub fn of(file: usize) -> Self {
        let budget =
            Self { folded: Cell::new(FOLDED), kept: Cell::new(KEPT), files: RefCell::default() };
        budget.grow(file);
        budget
    }

    /// Adds the budget for a file of external data. Each file counts only once.
    pub fn add(&self, path: PathBuf, length: usize) {
        if self.files.borrow_mut().insert(path) {
            self.grow(length);
        }
    }

    /// Adds one number for folding and two for layers per byte, so that layers can use each weight
    /// of four bytes eight times.
    fn grow(&self, bytes: usize) {
        self.folded.set(self.folded.get().saturating_add(bytes));
        self.kept.set(self.kept.get().saturating_add(bytes.saturating_mul(2)));
    }

    /// Takes `count` numbers from the budget for folding, or returns `None` if fewer are left.
    pub fn fold(&self, count: usize) -> Option<()> {
        self.folded.get().checked_sub(count).map(|left| self.folded.set(left))
    }

    /// Takes `count` numbers from the budget for layers.
    pub fn keep(&self, count: usize) -> Result<(), String> {
        let left = self.kept.get().checked_sub(count).ok_or(
            "its weights would be many times larger than the file, which is unsupported: export \
             the model with fewer shared weights",
        )?;
        self.kept.set(left);
        Ok(())
    }
}
