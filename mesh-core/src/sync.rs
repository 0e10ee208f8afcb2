//! Atomics of the request path: the standard library's, or those of a model checker.
//!
//! Built with `--cfg mesh_loom`, what threads share without a lock is run by `tests/loom.rs` in every
//! order that is possible.

#[cfg(mesh_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence},
};
#[cfg(not(mesh_loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence},
};
