//! What the examples share: the greeter's generated code.

/// `greeter.v1`.
pub mod greeter {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::pedantic,
        clippy::use_self,
        reason = "generated code"
    )]
    tonic::include_proto!("greeter.v1");
}
