//! Templates of paths (Envoy `envoy.path.match.uri_template`, `envoy.path.rewrite.uri_template`).
//!
//! `*` stands for one segment, or for a part of one; `**` for any number of them, and is the last
//! operator; `{name}` and `{name=pattern}` give what they stand for a name.

use std::{fmt, fmt::Write as _, sync::Arc};

use super::REGEX_SIZE_MAX;

/// Most variables in a template, as in Envoy.
const VARIABLES_MAX: usize = 5;
/// Longest name of a variable, as in Envoy.
const NAME_MAX: usize = 16;
/// What `*` stands for: `pchar` of RFC 3986 without `*`.
const SEGMENT: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+";
/// What `**` stands for.
const SEGMENTS: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*";

/// A template that whole paths are compared with.
#[derive(Clone)]
pub struct PathTemplate {
    source: Arc<str>,
    regex: regex::Regex,
}

impl PathTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(source: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("path template {source:?} {why}");
        if !source.starts_with('/') {
            return Err(wrong("must begin with /"));
        }
        let mut parser = Parser {
            rest: source,
            regex: "^".to_owned(),
            names: Vec::new(),
            is_done: false,
        };
        parser.pattern(false).map_err(|why| wrong(&why))?;
        parser.regex.push('$');
        let regex = regex::RegexBuilder::new(&parser.regex)
            .size_limit(REGEX_SIZE_MAX)
            .build()
            .map_err(|e| wrong(&format!("cannot be used: {e}")))?;
        Ok(Self {
            source: source.into(),
            regex,
        })
    }

    /// The template as it was declared.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether all of `path` matches.
    pub fn is_match(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }
}

struct Parser<'s> {
    rest: &'s str,
    regex: String,
    names: Vec<&'s str>,
    /// Whether `**` was seen, behind which only text may follow.
    is_done: bool,
}

impl<'s> Parser<'s> {
    /// Reads to the end, or to the `}` that closes a variable.
    fn pattern(&mut self, is_inside: bool) -> Result<(), String> {
        while let Some(c) = self.rest.chars().next() {
            match c {
                '}' if is_inside => return Ok(()),
                '{' if is_inside => return Err("has a variable in a variable".into()),
                '{' => self.variable()?,
                '*' => {
                    if self.is_done {
                        return Err("has an operator behind **".into());
                    }
                    if let Some(rest) = self.rest.strip_prefix("**") {
                        self.rest = rest;
                        self.is_done = true;
                        self.regex.push_str(SEGMENTS);
                    } else {
                        self.rest = &self.rest[1..];
                        self.regex.push_str(SEGMENT);
                    }
                    if self.rest.starts_with('*') {
                        return Err("has an operator next to another".into());
                    }
                }
                c if c.is_ascii_alphanumeric() || "/-._~%!$&'()+,;:@=".contains(c) => {
                    self.rest = &self.rest[1..];
                    self.regex
                        .push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
                }
                c => return Err(format!("holds {c:?}, which no path has")),
            }
        }
        if is_inside {
            return Err("has a { without a }".into());
        }
        Ok(())
    }

    fn variable(&mut self) -> Result<(), String> {
        let inside = &self.rest[1..];
        let end = inside.find(['=', '}']).ok_or("has a { without a }")?;
        let name = &inside[..end];
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && name.len() <= NAME_MAX;
        if !is_name {
            return Err(format!(
                "names a variable {name:?}: a letter, then letters, digits and _, at most {NAME_MAX}"
            ));
        }
        if self.names.contains(&name) || self.names.len() == VARIABLES_MAX {
            return Err(format!(
                "names a variable twice, or more than {VARIABLES_MAX} of them"
            ));
        }
        self.names.push(name);
        _ = write!(self.regex, "(?P<{name}>");
        if inside[end..].starts_with('=') {
            self.rest = &inside[end + 1..];
            let start = self.regex.len();
            self.pattern(true)?;
            if self.regex.len() == start {
                return Err(format!("gives the variable {name:?} nothing to stand for"));
            }
        } else {
            if self.is_done {
                return Err("has an operator behind **".into());
            }
            self.rest = &inside[end..];
            self.regex.push_str(SEGMENT);
        }
        self.rest = self.rest.strip_prefix('}').ok_or("has a { without a }")?;
        self.regex.push(')');
        if self.rest.starts_with(['*', '{']) {
            return Err("has an operator next to another".into());
        }
        Ok(())
    }
}

impl PartialEq for PathTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}
impl Eq for PathTemplate {}

impl fmt::Debug for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({})", self.source)
    }
}

/// A path put together from the variables of a [`PathTemplate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateRewrite {
    source: Arc<str>,
    template: PathTemplate,
    /// Text, and whether it is the name of a variable.
    parts: Box<[(String, bool)]>,
}

impl TemplateRewrite {
    /// Parses `source`, such as `/new/{name}`, whose variables are those of `template`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(template: &PathTemplate, source: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("path rewrite template {source:?} {why}");
        if !source.starts_with('/') {
            return Err(wrong("must begin with /".into()));
        }
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}', '*']) {
            let inside = rest[at..].strip_prefix('{');
            let named = inside.and_then(|inside| inside.split_once('}'));
            let Some((name, behind)) = named else {
                return Err(wrong("holds more than text and {variables}".into()));
            };
            let mut known = template.regex.capture_names().flatten();
            if !known.any(|known| known == name) {
                let template = template.as_str();
                return Err(wrong(format!(
                    "names {name:?}, which {template:?} does not"
                )));
            }
            parts.push((rest[..at].to_owned(), false));
            parts.push((name.to_owned(), true));
            rest = behind;
        }
        parts.push((rest.to_owned(), false));
        Ok(Self {
            source: source.into(),
            template: template.clone(),
            parts: parts.into(),
        })
    }

    /// The rewrite as it was declared.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// The new path, or `None` when `path` does not match.
    pub fn rewrite(&self, path: &str) -> Option<String> {
        let found = self.template.regex.captures(path)?;
        let mut out = String::new();
        for (text, is_variable) in &self.parts {
            out.push_str(match is_variable {
                true => found.name(text).map_or("", |group| group.as_str()),
                false => text,
            });
        }
        Some(out)
    }
}
