//! "Did you mean …?"

/// `; did you mean "x"?` if a name is near, else `; there are: a, b, c`.
pub(super) fn hint<'a>(text: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let near = names
        .clone()
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(text, name), name))
        .filter(|(distance, name)| *distance <= name.len() / 2)
        .min();
    match near {
        Some((_, name)) => format!("; did you mean \"{name}\"?"),
        None => format!(
            "; there are: {}",
            names.into_iter().collect::<Vec<_>>().join(", ")
        ),
    }
}
