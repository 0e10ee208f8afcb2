//! `control-plane check`: what is wrong with a directory, without serving it.

use std::{io, path::Path};

use crate::{
    compile::{CompileOptions, compile},
    diagnostic::Diagnostic,
    source::load_folder,
};

/// Reads and compiles a directory; what was found.
///
/// # Errors
/// When the directory cannot be read.
pub fn check(folder: &Path, options: &CompileOptions) -> io::Result<Vec<Diagnostic>> {
    let loaded = load_folder(folder)?;
    let (_, findings) = compile(&loaded.objects, options);
    Ok(loaded.diagnostics.into_iter().chain(findings).collect())
}
