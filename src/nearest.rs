//! The name that was probably meant.

/// The name that is most like one that does not exist, if any is: case does not count, and at most
/// a third of the letters may differ.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let distance = |other: &str| strsim::osa_distance(&lower, &other.to_lowercase());
    let (distance, other) = names
        .into_iter()
        .map(|other| (distance(other), other))
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= other.chars().count().max(name.chars().count()).div_ceil(3)).then_some(other)
}

/// The same as the end of a sentence: `, did you mean 'head'?`, or nothing.
pub(crate) fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, names).map_or_else(String::new, |name| format!(", did you mean '{name}'?"))
}
