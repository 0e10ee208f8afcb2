//! What is wrong with the configuration, where, and how to mend it.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object, or a part of it, has no effect; `check` fails.
    Error,
    /// It has an effect, but maybe not the one that was meant.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Diagnostic {
    /// Stable code.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// File, as it was named; empty for what is in none.
    pub file: String,
    /// Line in the file, from 1; 0 without a file.
    pub line: usize,
    /// For example `VirtualService default/greeter`; empty when the file cannot be read at all.
    pub object: String,
    /// For example `spec.http[0].route[1].weight`; may be empty.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        if !self.file.is_empty() {
            write!(f, "{}:{}: ", self.file, self.line)?;
        }
        write!(f, "{severity}[{}]: ", self.code)?;
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)?;
        if !self.help.is_empty() {
            write!(f, " (help: {})", self.help)?;
        }
        Ok(())
    }
}

/// The file is not YAML, or cannot be read.
pub const UNREADABLE: &str = "MESH0100";
/// The object's kind is not known.
pub const UNKNOWN_KIND: &str = "MESH0101";
/// A field is not known, missing, or of the wrong type.
pub const BAD_FIELD: &str = "MESH0102";
/// The same object twice.
pub const DUPLICATE: &str = "MESH0103";
/// A host or subset that is not there.
pub const UNKNOWN_REFERENCE: &str = "MESH0104";
/// A value that cannot be used.
pub const BAD_VALUE: &str = "MESH0105";
/// A security object that cannot be used: its target is closed.
pub const FAILS_CLOSED: &str = "MESH0106";
/// A field that cannot be served: the object is not used.
pub const REJECTED_FIELD: &str = "MESH0107";
/// A field without effect.
pub const IGNORED_FIELD: &str = "MESH0108";
/// A field that some classes of clients do not honour.
pub const CLASS_LIMIT: &str = "MESH0109";
/// More than a client takes in one message: it keeps what it has.
pub const TOO_LARGE: &str = "MESH0110";
/// The source cannot be read, or is empty: what was read last is served.
pub const STALE: &str = "MESH0111";
/// A client does not know what would make a resource safe with it: it does not get it.
pub const LACKS: &str = "MESH0112";
/// An object that is not followed because another one goes before it.
pub const PASSED_OVER: &str = "MESH0113";
/// Endpoints that seem lost are kept, because too many were lost at once.
pub const KEPT: &str = "MESH0114";
/// A policy by which a provider's servers would have to ask themselves.
pub const ASKS_ITSELF: &str = "MESH0115";
