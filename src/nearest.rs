//! Suggestions for misspelled names.

/// The name that is most similar to an unknown one, if any is close enough. Case is ignored, and at
/// most a third of the letters can differ.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let distance = |other: &str| strsim::osa_distance(&lower, &other.to_lowercase());
    let (distance, other) = names
        .into_iter()
        .map(|other| (distance(other), other))
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= other.chars().count().max(name.chars().count()).div_ceil(3)).then_some(other)
}

/// The suggestion as the end of a sentence, such as `, did you mean 'head'?`, or an empty string.
pub(crate) fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, names).map_or_else(String::new, |name| format!(", did you mean '{name}'?"))
}
