//! Values by the texts that they are about: one text, or all that begin with it.

use hashbrown::HashMap;

/// The texts that a value is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key<'t> {
    /// This one.
    Equal(&'t str),
    /// Those that begin with this.
    Prefix(&'t str),
}

/// Finds the values that are about a text, without looking at the others.
#[derive(Clone, Debug)]
pub(super) struct Texts<T> {
    equal: HashMap<Box<str>, T>,
    /// In order of their texts.
    prefixes: Box<[Prefix<T>]>,
}

#[derive(Clone, Debug)]
struct Prefix<T> {
    text: Box<str>,
    value: T,
    /// The longest other prefix that this one begins with.
    within: Option<usize>,
}

impl<T> Texts<T> {
    /// Each key once.
    pub(super) fn new<'t>(values: impl IntoIterator<Item = (Key<'t>, T)>) -> Self {
        let (mut equal, mut prefixes) = (HashMap::new(), Vec::new());
        for (key, value) in values {
            match key {
                Key::Equal(text) => drop(equal.insert(text.into(), value)),
                Key::Prefix(text) => prefixes.push(Prefix {
                    text: text.into(),
                    value,
                    within: None,
                }),
            }
        }
        prefixes.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        for at in 1..prefixes.len() {
            let text = &prefixes[at].text;
            let mut within = Some(at - 1);
            while let Some(shorter) = within.map(|at| &prefixes[at])
                && !text.starts_with(&*shorter.text)
            {
                within = shorter.within;
            }
            prefixes[at].within = within;
        }
        Self {
            equal,
            prefixes: prefixes.into(),
        }
    }

    /// Shows the values that are about `text` to `see`.
    pub(super) fn about(&self, text: &str, mut see: impl FnMut(&T)) {
        if let Some(value) = self.equal.get(text) {
            see(value);
        }
        // Whatever is between a prefix of `text` and `text` begins with that prefix, too.
        let behind = self
            .prefixes
            .partition_point(|prefix| *prefix.text <= *text);
        let mut next = behind.checked_sub(1);
        while let Some(prefix) = next.map(|at| &self.prefixes[at]) {
            if text.starts_with(&*prefix.text) {
                see(&prefix.value);
            }
            next = prefix.within;
        }
    }

    /// All of them.
    #[cfg(test)]
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        let prefixes = self.prefixes.iter().map(|prefix| &prefix.value);
        self.equal.values().chain(prefixes)
    }
}
