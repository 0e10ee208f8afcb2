//! Pointers that requests read without telling anybody, and that are replaced now and then
//! (read-copy-update).
//!
//! Stage: configuration on the request path. A read costs what a load costs; whoever replaces a value
//! pays instead: what was there before is let go when every thread that could still look at it has
//! left its [reading](read). Readings are short, as they cannot wait: a request is decided and sent in
//! one.
//!
//! The only folder with `unsafe` code: a pointer that is followed in `cell.rs`, and a system call in
//! `barrier.rs`. What it is for: the same by counted references is six atomic operations a call, a
//! sixth of what a call costs here (docs/benchmarks.md). `tests/loom.rs` runs [`Domain`] in every
//! order that is possible.

mod barrier;
#[cfg(not(mesh_loom))]
mod cell;
mod domain;
#[cfg(all(test, not(mesh_loom)))]
mod tests;
#[cfg(not(mesh_loom))]
mod thread;

#[doc(hidden)]
pub use self::domain::{Domain, Reader};
#[cfg(not(mesh_loom))]
pub use self::{
    cell::Rcu,
    thread::{Reading, read},
};
