//! What a channel dials: `xds:///name`, or `xds://authority/name` (gRFC A27, A47).

use std::{error, fmt, str::FromStr};

/// A parsed target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    authority: String,
    name: String,
}

/// Why a target cannot be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetError {
    target: String,
    reason: &'static str,
}

impl Target {
    /// Whose control plane knows the name, an authority of the bootstrap; empty for the default.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The service name, as the data-plane authority.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(target: &str) -> Result<Self, TargetError> {
        let fail = |reason| Err(TargetError::new(target, reason));
        let Some(rest) = target.strip_prefix("xds:") else {
            return fail("it must begin with xds:, as in xds:///greeter.default");
        };
        let (authority, name) = match rest.strip_prefix("//") {
            None => ("", rest),
            Some(rest) => match rest.split_once('/') {
                Some(parts) => parts,
                None => return fail("a name must follow the authority: write xds:///NAME"),
            },
        };
        if name.is_empty()
            || name.contains(['/', '?', '#', '@'])
            || name.contains(char::is_whitespace)
        {
            return fail("the name must look like greeter.default or greeter.default:8080");
        }
        Ok(Self {
            authority: authority.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl TargetError {
    pub(crate) fn new(target: &str, reason: &'static str) -> Self {
        Self {
            target: target.to_owned(),
            reason,
        }
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "target {:?} cannot be dialled: {}",
            self.target, self.reason
        )
    }
}

impl error::Error for TargetError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_path_of_the_uri() {
        for (target, name) in [
            ("xds:///greeter", Some("greeter")),
            ("xds:///greeter.default:8080", Some("greeter.default:8080")),
            ("xds:greeter", Some("greeter")),
            ("xds://authority/greeter", Some("greeter")),
            ("xds://authority", None),
            ("xds:///", None),
            ("xds:///a/b", None),
            ("http://greeter", None),
            ("greeter", None),
        ] {
            let parsed = target.parse::<Target>();
            assert_eq!(parsed.as_ref().ok().map(Target::name), name, "{target}");
            if let Err(error) = parsed {
                assert!(error.to_string().contains(target), "{error}");
            }
        }
    }
}
