//! `control-plane check`: prints what is wrong with a directory, for people or for machines.

use std::{
    collections::HashMap,
    env, fs,
    io::{IsTerminal as _, stdout},
    path::Path,
};

use anyhow::Context as _;

use super::{Output, colours};
use crate::{
    check,
    class::Classes,
    compile::CompileOptions,
    diagnostic::{Diagnostic, Severity},
};

/// Exit code when there are errors.
const FOUND_ERRORS: u8 = 1;

/// Checks and prints; the exit code.
pub(super) fn check(directory: &Path, output: Output, clients: &Classes) -> anyhow::Result<u8> {
    let found = check::check(directory, &CompileOptions::default(), clients)
        .with_context(|| directory.display().to_string())?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        Output::Text => {
            let is_coloured = colours(stdout().is_terminal(), env::var_os("NO_COLOR"));
            print!("{}", report(&found, is_coloured));
        }
    }
    let has_errors = found
        .iter()
        .any(|finding| finding.severity == Severity::Error);
    Ok(if has_errors { FOUND_ERRORS } else { 0 })
}

/// All findings, each with its line, and a summary.
fn report(found: &[Diagnostic], is_coloured: bool) -> String {
    let paint = |code: &str, text: &str| match is_coloured {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let mut files = HashMap::new();
    let mut text = String::new();
    for finding in found {
        let (colour, severity) = match finding.severity {
            Severity::Error => ("1;31", "error"),
            Severity::Warning => ("1;33", "warning"),
        };
        let head = paint(colour, &format!("{severity}[{}]", finding.code));
        text += &format!("{head}: {}\n", finding.message);
        text += &format!(
            "   {} {}:{}\n",
            paint("34", "-->"),
            finding.file,
            finding.line
        );
        let lines = files
            .entry(&finding.file)
            .or_insert_with(|| lines(&finding.file));
        if let Some(line) = lines.get(finding.line.saturating_sub(1)) {
            let number = finding.line;
            text += &format!("{} {line}\n", paint("34", &format!("{number:5} |")));
        }
        let details = [
            ("object", &finding.object),
            ("field", &finding.field),
            ("help", &finding.help),
        ];
        for (name, value) in details.into_iter().filter(|(_, value)| !value.is_empty()) {
            text += &format!("{} {value}\n", paint("34", &format!("{name:>6}:")));
        }
        text.push('\n');
    }
    let errors = found
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    text += &format!("{errors} errors, {} warnings\n", found.len() - errors);
    text
}

/// The lines of a file, none when it cannot be read.
fn lines(file: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
