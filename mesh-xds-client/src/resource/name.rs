//! Resource names in one spelling.
//!
//! Stage 3. `xdstp:` names carry context parameters whose order means nothing (gRFC A47): sorted,
//! equal names are equal text everywhere. Other names are any text and stay as they are.

/// `name` in the one spelling that the cache, the graph and requests use.
pub(crate) fn canonical(name: String) -> String {
    if !name.starts_with("xdstp:") {
        return name;
    }
    let (rest, fragment) = match name.split_once('#') {
        Some((rest, fragment)) => (rest, Some(fragment)),
        None => (&*name, None),
    };
    let Some((path, query)) = rest.split_once('?') else {
        return name;
    };
    let mut parameters: Vec<&str> = query.split('&').filter(|p| !p.is_empty()).collect();
    parameters.sort_unstable();
    let mut text = path.to_owned();
    if !parameters.is_empty() {
        text.push('?');
        text.push_str(&parameters.join("&"));
    }
    if let Some(fragment) = fragment {
        text.push('#');
        text.push_str(fragment);
    }
    text
}

/// Whether a name stands for all resources of a folder (xRFC TP1), which is not spoken.
pub(crate) fn is_glob_collection(name: &str) -> bool {
    let path = name.split(['?', '#']).next().unwrap_or_default();
    name.starts_with("xdstp:") && path.ends_with("/*")
}

/// The authority in an `xdstp:` name; `None` for names of the old style.
pub(crate) fn authority(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("xdstp:")?;
    let rest = rest.strip_prefix("//").unwrap_or("");
    Some(rest.split(['/', '?', '#']).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_context_parameters_means_nothing() {
        let one = canonical("xdstp://a/t/id?b=2&a=1".into());
        assert_eq!(one, canonical("xdstp://a/t/id?a=1&b=2".into()));
        assert_eq!(one, "xdstp://a/t/id?a=1&b=2");
        assert_eq!(canonical("xdstp://a/t/id?&".into()), "xdstp://a/t/id");
        assert_eq!(
            canonical("xdstp://a/t/id?b&a#x".into()),
            "xdstp://a/t/id?a&b#x"
        );
        assert_eq!(canonical("old?b=2&a=1".into()), "old?b=2&a=1");
    }

    #[test]
    fn the_authority_may_be_empty_and_old_names_have_none() {
        assert_eq!(authority("xdstp://a.com/t/id"), Some("a.com"));
        assert_eq!(authority("xdstp:///t/id"), Some(""));
        assert_eq!(authority("xdstp:t/id"), Some(""));
        assert_eq!(authority("greeter"), None);
    }
}
