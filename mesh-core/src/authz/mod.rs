//! Authorisation decisions.
