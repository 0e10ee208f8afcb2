//! The generated echo service.

#![allow(missing_docs, missing_debug_implementations, reason = "generated code")]
#![allow(clippy::all, unused_qualifications, reason = "generated code")]

tonic::include_proto!("echo.v1");
