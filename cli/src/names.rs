//! Names of tensors and layers.

/// The part of a name after a module's, `None` where the name is not within that module.
pub fn within<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    name.strip_prefix(module)?.strip_prefix('.')
}

/// Splits a name at its last dot into a module and the rest. Without a dot, the module is
/// empty.
pub fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// A module's name and the name of a tensor in it.
pub fn join(module: &str, own: &str) -> String {
    if module.is_empty() { own.to_owned() } else { format!("{module}.{own}") }
}

/// The first of some names.
pub fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const LISTED: usize = 8;
    // One more than listed shows whether there are others.
    let mut names: Vec<&str> = names.take(LISTED + 1).collect();
    if names.len() > LISTED {
        names[LISTED] = "…";
    }
    names.join(", ")
}

/// A text from a file without the control characters that could act on a terminal.
pub fn printable(text: &str) -> String {
    text.chars().filter(|&c| c == '\n' || !c.is_control()).collect()
}

/// A name in parts that are compared one by one, so that `10` comes after `9`: each part is a text
/// without digits and the number after it.
pub fn parts(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0_u64)];
    let mut in_number = false;
    for c in name.chars() {
        // The first character after a number begins a new part.
        if in_number && !c.is_ascii_digit() {
            parts.push((String::new(), 0));
        }
        in_number = c.is_ascii_digit();
        let Some((text, number)) = parts.last_mut() else { continue };
        match c.to_digit(10) {
            Some(digit) => *number = number.saturating_mul(10).saturating_add(u64::from(digit)),
            None => text.push(c),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names = ["b.1", "a.10.x", "a.9.x", "a", "a.9", "", "a.99999999999999999999999"];
        names.sort_by_key(|name| parts(name));
        assert_eq!(names, ["", "a", "a.9", "a.9.x", "a.10.x", "a.99999999999999999999999", "b.1"]);
    }

    #[test]
    fn a_name_is_within_a_module_after_its_dot() {
        assert_eq!(within("net.0.weight", "net"), Some("0.weight"));
        assert_eq!(within("network.0.weight", "net"), None);
        assert_eq!(within("net", "net"), None);
        assert_eq!(split("net.0.weight"), ("net.0", "weight"));
        assert_eq!(split("weight"), ("", "weight"));
        for name in ["net.0.weight", "weight"] {
            let (module, own) = split(name);
            assert_eq!(join(module, own), name);
        }
    }

    #[test]
    fn only_some_names_are_listed() {
        assert_eq!(listed(["a", "b"].into_iter()), "a, b");
        assert_eq!(listed(["a"; 9].into_iter()), "a, a, a, a, a, a, a, a, …");
        assert_eq!(printable("a\u{1b}[31mb\nc\r"), "a[31mb\nc");
    }
}
