//! TLS contexts, authorisation filters and secrets.
//!
//! Stage 3. What weakens security when left out is refused, not ignored (gRFC A29, A41).

mod address;
mod cel;
mod outside;
pub(super) mod rbac;
pub(super) mod secret;
pub(super) mod tls;
