//! Where in a resource decode is, and what it found wrong there.
//!
//! Stage 3. A [`Sink`] collects every error with its field path, such as
//! `virtual_hosts[2].routes[0].match.safe_regex`, instead of stopping at the first; it also notes
//! the fields that are set but have no effect here.

use std::fmt::Write as _;

use mesh_core::ConfigError;

/// Collects what decode has to say about one resource.
#[derive(Debug)]
pub(crate) struct Sink {
    resource: String,
    path: String,
    errors: Vec<ConfigError>,
    ignored: Vec<String>,
}

impl Sink {
    /// A sink for `resource`, for example `cluster outbound|80||greeter`.
    pub(crate) fn new(resource: impl Into<String>) -> Self {
        Self {
            resource: resource.into(),
            path: String::new(),
            errors: Vec::new(),
            ignored: Vec::new(),
        }
    }

    /// Runs `decode` one field deeper.
    pub(crate) fn field<T>(&mut self, name: &str, decode: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let value = decode(self);
        self.path.truncate(length);
        value
    }

    /// Runs `decode` for each element of a repeated field; keeps what it returns.
    pub(crate) fn each<I: IntoIterator, T>(
        &mut self,
        name: &str,
        items: I,
        mut decode: impl FnMut(&mut Self, I::Item) -> Option<T>,
    ) -> Vec<T> {
        let mut kept = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            let length = self.path.len();
            if length > 0 {
                self.path.push('.');
            }
            // Into the path itself: a large resource has thousands of elements.
            _ = write!(self.path, "{name}[{i}]");
            kept.extend(decode(self, item));
            self.path.truncate(length);
        }
        // Held for as long as the resource is.
        kept.shrink_to_fit();
        kept
    }

    /// Records an error here; returns `None` for use as a decode result.
    pub(crate) fn error<T>(&mut self, reason: impl Into<String>) -> Option<T> {
        self.errors.push(ConfigError::new(
            self.resource.clone(),
            self.path.clone(),
            reason,
        ));
        None
    }

    /// Records an error at a field of this place.
    pub(crate) fn error_at<T>(&mut self, name: &str, reason: impl Into<String>) -> Option<T> {
        self.field(name, |sink| sink.error(reason))
    }

    /// Records an error at a field when it is set.
    pub(crate) fn refuse(&mut self, name: &str, is_set: bool, reason: &str) {
        if is_set {
            self.error_at::<()>(name, reason);
        }
    }

    /// Notes fields that are set and have no effect.
    pub(crate) fn ignore<const N: usize>(&mut self, fields: [(&str, bool); N]) {
        for (name, is_set) in fields {
            if is_set {
                self.field(name, |sink| sink.ignored.push(sink.path.clone()));
            }
        }
    }

    /// The value if there was no error.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<String>), Vec<ConfigError>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok((value, self.ignored)),
            _ if !self.errors.is_empty() => Err(self.errors),
            _ => Err(vec![ConfigError::new(self.resource, "", "cannot be used")]),
        }
    }
}

/// One error that stands for all of `errors`.
pub(crate) fn combine(resource: &str, mut errors: Vec<ConfigError>) -> ConfigError {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let reasons: Vec<_> = errors
        .iter()
        .map(|error| match error.path.as_str() {
            "" => error.reason.clone(),
            path => format!("{path}: {}", error.reason),
        })
        .collect();
    ConfigError::new(resource, "", reasons.join("; "))
}
