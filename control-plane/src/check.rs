//! `control-plane check`: what is wrong with a directory, without serving it.

use std::{io, path::Path};

use crate::{
    class::Classes,
    compile::{CompileOptions, compile},
    diagnostic::Diagnostic,
    source::load_folder,
};

/// Reads and compiles a directory; what was found, and what these clients would not honour.
///
/// # Errors
/// When the directory cannot be read.
pub fn check(
    folder: &Path,
    options: &CompileOptions,
    clients: &Classes,
) -> io::Result<Vec<Diagnostic>> {
    let loaded = load_folder(folder)?;
    let (_, findings) = compile(&loaded.objects, options);
    let limits = loaded
        .objects
        .values()
        .flat_map(|object| object.limits_for(clients));
    let found = loaded
        .diagnostics
        .iter()
        .cloned()
        .chain(findings)
        .chain(limits);
    Ok(found.collect())
}
