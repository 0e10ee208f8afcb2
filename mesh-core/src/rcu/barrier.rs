//! Memory barriers of which one side is free.
//!
//! Two threads that each write, and then look at what the other wrote, need a barrier between both, or
//! each may miss the other. Where the kernel puts one into all threads that run (Linux `membarrier`),
//! the side that does this seldom has it done for the other.

#![allow(unsafe_code)]

use std::sync::{
    OnceLock,
    atomic::{Ordering::SeqCst, compiler_fence},
};

use crate::sync::fence;

/// Whether the rare side pays for both: settled by the first that asks.
pub(super) fn is_asymmetric() -> bool {
    static IS_REGISTERED: OnceLock<bool> = OnceLock::new();
    *IS_REGISTERED.get_or_init(kernel::register)
}

/// The frequent side; `is_asymmetric` is what [`is_asymmetric`] says.
#[inline]
pub(super) fn light(is_asymmetric: bool) {
    if is_asymmetric {
        compiler_fence(SeqCst);
    } else {
        fence(SeqCst);
    }
}

/// The rare side. `false` when the kernel did not, against what it said before: nothing is known of
/// other threads then.
#[must_use]
pub(super) fn heavy() -> bool {
    fence(SeqCst);
    !is_asymmetric() || kernel::barrier_everywhere()
}

#[cfg(all(target_os = "linux", not(mesh_loom), not(miri)))]
mod kernel {
    use std::ffi::c_int;

    pub(super) fn register() -> bool {
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
    }

    pub(super) fn barrier_everywhere() -> bool {
        membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    }

    fn membarrier(command: c_int) -> bool {
        // SAFETY: it reads three numbers and touches no memory; a kernel that does not know it says so.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }
}

#[cfg(not(all(target_os = "linux", not(mesh_loom), not(miri))))]
mod kernel {
    pub(super) fn register() -> bool {
        false
    }

    pub(super) fn barrier_everywhere() -> bool {
        false
    }
}
