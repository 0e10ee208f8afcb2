//! Fields that are set and have no effect here.
//!
//! Stage 3. What would change behaviour elsewhere and does not here is never taken in silence: it is
//! refused where traffic or security depends on it, and listed otherwise. docs/xds-fields.md has the
//! fate of every field; a test holds it against the decoders.

use std::collections::HashMap;

/// Whether a protobuf field differs from its default.
pub(super) trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

impl IsSet for i32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

impl IsSet for i64 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

impl IsSet for u32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

/// Notes those of a message's fields that are set: they have no effect here.
macro_rules! report {
    ($sink:expr, $proto:expr, [$($field:ident),* $(,)?]) => {{
        use $crate::resource::report::IsSet as _;
        $sink.ignore([$((stringify!($field), $proto.$field.is_set())),*]);
    }};
}

pub(super) use report;
