//! The arguments of a printed layer, which are listed between its brackets.

use std::cell::Cell;

use super::shortened;

/// The position of an argument that is always printed with its name.
pub(super) const NAMED: usize = usize::MAX;

/// The arguments of a layer. [`finish`](Self::finish) rejects arguments that were never asked for,
/// because they could change what the layer computes.
pub(super) struct Arguments<'a>(Vec<Argument<'a>>);

struct Argument<'a> {
    name: Option<&'a str>,
    value: &'a str,
    seen: Cell<bool>,
}

impl<'a> Arguments<'a> {
    /// Splits the text at the commas outside brackets.
    pub fn new(text: &'a str) -> Self {
        let (mut depth, mut from, mut all) = (0, 0, Vec::new());
        let mut put = |text: &'a str| {
            // An equals sign inside brackets belongs to a nested argument list.
            let (name, value) =
                match text.split_once('=').filter(|(name, _)| !name.contains(['(', '['])) {
                    Some((name, value)) => (Some(name.trim()), value.trim()),
                    None => (None, text.trim()),
                };
            if name.is_some() || !value.is_empty() {
                all.push(Argument { name, value, seen: Cell::new(false) });
            }
        };
        for (at, c) in text.char_indices() {
            depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
            if c == ',' && depth == 0 {
                put(&text[from..at]);
                from = at + 1;
            }
        }
        put(&text[from..]);
        Self(all)
    }

    /// The value of an argument, found by name, or by position if it was printed without a name.
    pub fn text(&self, name: &str, place: usize) -> Option<&'a str> {
        let named = self.0.iter().find(|argument| argument.name == Some(name));
        // An argument with another name at this position is not the one asked for.
        let found =
            named.or_else(|| self.0.get(place).filter(|argument| argument.name.is_none()))?;
        found.seen.set(true);
        Some(found.value)
    }

    /// Checks that all arguments have been asked for.
    pub fn finish(&self) -> Result<(), String> {
        let Some(Argument { name, value, .. }) =
            self.0.iter().find(|argument| !argument.seen.get())
        else {
            return Ok(());
        };
        let name = name.map_or_else(String::new, |name| format!("{name}="));
        Err(format!(
            "the argument {} is unsupported: remove it if it does not change the layer's outputs",
            shortened(&format!("{name}{value}"))
        ))
    }

    /// Marks all arguments as seen, for a layer that they do not affect.
    pub fn ignore_all(&self) {
        self.0.iter().for_each(|argument| argument.seen.set(true));
    }

    /// Accepts `inplace`, which does not change the outputs. Early versions of PyTorch printed the
    /// word alone.
    pub fn inplace(&self, place: usize) -> Result<(), String> {
        match self.text("inplace", place) {
            None | Some("True" | "False" | "inplace") => Ok(()),
            Some(other) => Err(wrong("inplace", other, "True or False")),
        }
    }

    /// Checks that an argument is absent or has one of the supported values.
    pub fn only(&self, name: &str, place: usize, values: &[&str], why: &str) -> Result<(), String> {
        match self.text(name, place) {
            Some(value) if !values.contains(&value) => {
                Err(format!("{name}={} is unsupported: {why}", shortened(value)))
            }
            _ => Ok(()),
        }
    }

    pub fn number(&self, name: &str, place: usize, default: f64) -> Result<f64, String> {
        let Some(text) = self.text(name, place) else { return Ok(default) };
        text.parse().map_err(|_| wrong(name, text, "a number"))
    }

    pub fn size(&self, name: &str, place: usize) -> Result<usize, String> {
        let text = self.text(name, place).ok_or_else(|| format!("{name} is missing"))?;
        text.parse().map_err(|_| wrong(name, text, "a non-negative integer"))
    }

    pub fn flag(&self, name: &str, place: usize, default: bool) -> Result<bool, String> {
        match self.text(name, place) {
            None => Ok(default),
            Some("True") => Ok(true),
            Some("False") => Ok(false),
            Some(other) => Err(wrong(name, other, "True or False")),
        }
    }

    /// A list of sizes, such as `(3, 4, 5)`.
    pub fn sizes(&self, name: &str, place: usize) -> Result<Vec<usize>, String> {
        let text = self.text(name, place).ok_or_else(|| format!("{name} is missing"))?;
        numbers(text).ok_or_else(|| wrong(name, text, "sizes in brackets"))
    }

    /// One size, such as `3` or `(3,)`, or for an image two, such as `(3, 4)`; `None` if the
    /// argument is absent.
    pub fn pair(
        &self,
        name: &str,
        place: usize,
        rank: usize,
    ) -> Result<Option<[usize; 2]>, String> {
        let Some(text) = self.text(name, place).filter(|text| *text != "None") else {
            return Ok(None);
        };
        match numbers(text).as_deref() {
            Some(&[both]) => Ok(Some([both, both])),
            Some(&[height, width]) if rank == 2 => Ok(Some([height, width])),
            _ => Err(wrong(name, text, if rank == 2 { "one or two sizes" } else { "one size" })),
        }
    }
}

fn wrong(name: &str, text: &str, what: &str) -> String {
    format!("{name} is {}, not {what}", shortened(text))
}

fn numbers(text: &str) -> Option<Vec<usize>> {
    // A tuple of one number has a comma after it, so empty parts are skipped.
    let inner = text.trim_start_matches(['(', '[']).trim_end_matches([')', ']']);
    inner
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().ok())
        .collect()
}
