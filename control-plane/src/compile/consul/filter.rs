//! Expressions that select instances by their metadata (go-bexpr, as far as it is about
//! `Service.Meta`).
//!
//! An instance's metadata are its labels.

use std::{collections::BTreeMap, str::FromStr};

/// Deepest nesting of parentheses and `not`.
const DEPTH_MAX: usize = 32;

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Equal(String, String),
    Contains(String, String),
    IsEmpty(String),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

impl Filter {
    pub(super) fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = |key: &String| labels.get(key).map_or("", String::as_str);
        match self {
            Self::Equal(key, wanted) => value(key) == wanted,
            Self::Contains(key, part) => value(key).contains(part.as_str()),
            Self::IsEmpty(key) => value(key).is_empty(),
            Self::Not(inner) => !inner.has(labels),
            Self::And(a, b) => a.has(labels) && b.has(labels),
            Self::Or(a, b) => a.has(labels) || b.has(labels),
        }
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parser = Parser {
            words: words(text)?,
            at: 0,
            depth: 0,
        };
        let filter = parser.any()?;
        match parser.next() {
            None => Ok(filter),
            Some(word) => Err(format!("{:?} is not expected there", word.text)),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Word {
    text: String,
    is_quoted: bool,
}

fn words(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (end, word) = match first {
            '"' | '`' => {
                let end = rest[1..].find(first);
                let end = end.ok_or_else(|| format!("{first} is not closed"))? + 1;
                (end + 1, Some(rest[1..end].to_owned()))
            }
            '(' | ')' => (1, None),
            '=' | '!' if rest[1..].starts_with('=') => (2, None),
            '=' | '!' => return Err(format!("{first} alone means nothing: write {first}=")),
            _ => {
                let mut is_in_brackets = false;
                let end = rest.find(|c: char| {
                    is_in_brackets = (is_in_brackets || c == '[') && c != ']';
                    !is_in_brackets && (c.is_whitespace() || "()=!\"`".contains(c))
                });
                (end.unwrap_or(rest.len()), None)
            }
        };
        words.push(Word {
            is_quoted: word.is_some(),
            text: word.unwrap_or_else(|| rest[..end].to_owned()),
        });
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

struct Parser {
    words: Vec<Word>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Word> {
        let word = self.words.get(self.at).cloned();
        self.at += 1;
        word
    }

    /// Takes the next word if it is this one.
    fn takes(&mut self, wanted: &str) -> bool {
        let is = self
            .words
            .get(self.at)
            .is_some_and(|word| !word.is_quoted && word.text.eq_ignore_ascii_case(wanted));
        self.at += usize::from(is);
        is
    }

    fn any(&mut self) -> Result<Filter, String> {
        let mut filter = self.all()?;
        while self.takes("or") {
            filter = Filter::Or(Box::new(filter), Box::new(self.all()?));
        }
        Ok(filter)
    }

    fn all(&mut self) -> Result<Filter, String> {
        let mut filter = self.one()?;
        while self.takes("and") {
            filter = Filter::And(Box::new(filter), Box::new(self.one()?));
        }
        Ok(filter)
    }

    fn one(&mut self) -> Result<Filter, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX}"));
        }
        let filter = if self.takes("not") {
            Filter::Not(Box::new(self.one()?))
        } else if self.takes("(") {
            let inner = self.any()?;
            if !self.takes(")") {
                return Err("a parenthesis is not closed".to_owned());
            }
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(filter)
    }

    fn comparison(&mut self) -> Result<Filter, String> {
        let first = self.word()?;
        let not = |is_not: bool, filter: Filter| match is_not {
            true => Filter::Not(Box::new(filter)),
            false => filter,
        };
        // `"a" in Service.Meta.b`
        let is_not = self
            .words
            .get(self.at + 1)
            .is_some_and(|word| word.text == "in")
            && self.takes("not");
        if self.takes("in") {
            let key = key(&self.word()?)?;
            return Ok(not(is_not, Filter::Contains(key, first.text)));
        }
        let key = key(&first)?;
        if self.takes("==") {
            return Ok(Filter::Equal(key, self.word()?.text));
        }
        if self.takes("!=") {
            return Ok(not(true, Filter::Equal(key, self.word()?.text)));
        }
        if self.takes("is") {
            let is_not = self.takes("not");
            return match self.takes("empty") {
                true => Ok(not(is_not, Filter::IsEmpty(key))),
                false => Err("after `is` comes empty or not empty".to_owned()),
            };
        }
        let is_not = self.takes("not");
        if self.takes("contains") {
            return Ok(not(is_not, Filter::Contains(key, self.word()?.text)));
        }
        Err(format!(
            "after {} comes ==, !=, contains, not contains, is empty or is not empty",
            first.text
        ))
    }

    fn word(&mut self) -> Result<Word, String> {
        self.next().ok_or_else(|| "it ends too early".to_owned())
    }
}

/// The key in `Service.Meta.KEY` or `Service.Meta["KEY"]`.
fn key(word: &Word) -> Result<String, String> {
    let text = word
        .text
        .strip_prefix("Service.Meta")
        .filter(|_| !word.is_quoted);
    let key = text.and_then(|rest| match rest.strip_prefix('.') {
        Some(key) => Some(key),
        None => rest.strip_prefix("[\"")?.strip_suffix("\"]"),
    });
    match key {
        Some(key) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(format!(
            "{:?} is not of Service.Meta, which alone is known here",
            word.text
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_select_by_metadata() {
        let labels = [("version", "v1"), ("dc-name", "a b"), ("empty", "")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels = BTreeMap::from(labels);
        for (text, expected) in [
            ("Service.Meta.version == v1", true),
            ("Service.Meta.version==\"v1\"", true),
            ("Service.Meta.version != `v1`", false),
            ("Service.Meta[\"dc-name\"] == \"a b\"", true),
            ("Service.Meta.nothing is empty", true),
            ("Service.Meta.version is not empty", true),
            ("Service.Meta.version contains \"1\"", true),
            ("Service.Meta.version not contains \"1\"", false),
            ("\"v\" in Service.Meta.version", true),
            ("\"v\" not in Service.Meta.version", false),
            ("not Service.Meta.version == v1", false),
            (
                "Service.Meta.version == v2 or Service.Meta.version == v1 and Service.Meta.empty is empty",
                true,
            ),
            (
                "(Service.Meta.version == v1 or Service.Meta.version == v2) and Service.Meta.a == b",
                false,
            ),
        ] {
            let filter: Filter = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.has(&labels), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_said() {
        for (text, expected) in [
            ("", "ends too early"),
            ("Node.Meta.a == b", "not of Service.Meta"),
            ("Service.Meta.a", "after Service.Meta.a comes"),
            ("Service.Meta.a = b", "write =="),
            ("Service.Meta.a == b c", "not expected"),
            ("(Service.Meta.a == b", "not closed"),
            ("Service.Meta.a == \"b", "not closed"),
            ("Service.Meta.a is red", "empty"),
            (&"not ".repeat(40), "nested deeper"),
        ] {
            let error = text.parse::<Filter>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
