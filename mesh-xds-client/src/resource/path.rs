//! Where in a resource decode is, and what it found wrong there.
//!
//! Stage 3. A [`Sink`] collects every error with its field path, such as
//! `virtual_hosts[2].routes[0].match.safe_regex`, instead of stopping at the first; it also notes
//! the fields that are set but have no effect here.

use mesh_core::{ConfigError, route::Feature};

/// Of most paths: one that grows piece by piece costs more.
const PATH_LENGTH: usize = 64;

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
            path: String::with_capacity(PATH_LENGTH),
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
        let items = items.into_iter();
        let mut kept = Vec::with_capacity(items.size_hint().0);
        for (i, item) in items.enumerate() {
            let length = self.path.len();
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(name);
            self.path.push('[');
            self.push_number(i);
            self.path.push(']');
            kept.extend(decode(self, item));
            self.path.truncate(length);
        }
        // Held for as long as the resource is.
        kept.shrink_to_fit();
        kept
    }

    /// `write!` without what formatting costs: a large resource has thousands of elements.
    fn push_number(&mut self, number: usize) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.path.push(char::from(b'0' + (number % 10) as u8));
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

    /// Notes a field that is set, and that the data plane does not execute yet.
    pub(crate) fn pending(&mut self, name: &str, feature: Feature, is_set: bool) {
        self.ignore([(name, is_set && !feature.is_executed())]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_where_they_are() {
        let mut sink = Sink::new("cluster c");
        sink.field("a", |sink| {
            sink.each("b", 0..=1_205, |sink, n| -> Option<()> {
                let is_wrong = [0, 7, 10, 1_205].contains(&n);
                is_wrong.then(|| sink.error_at("c", "is wrong"))?
            })
        });
        let errors = sink.finish(Some(())).unwrap_err();
        let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["a.b[0].c", "a.b[7].c", "a.b[10].c", "a.b[1205].c"]);
    }
}
