//! The memory allocator of every program made of this library.
//!
//! Handling events makes and drops many small texts, and buffers of a few hundred KiB. mimalloc gives memory that was free for a second
//! back to the system. Under a load that comes in bursts that memory is soon wanted again, and the kernel clears it each time: the
//! threads that handle events spent a tenth of their time on that. So it waits longer; 400,000 events then cost 1,500 page faults
//! where it had been 20,000.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long free memory is kept before the system gets it back, in milliseconds.
const KEPT_MILLIS: std::ffi::c_long = 10_000;
/// `mi_option_purge_delay` in the enumeration of mimalloc 3, for which the bindings have no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps free memory for some seconds, unless the environment (`MIMALLOC_PURGE_DELAY`) says how long. For the beginning of `main`.
pub(crate) fn keep_free_memory() {
    // SAFETY: it stores one number in a table, and must not run while another thread does; there is none yet.
    #[expect(unsafe_code, reason = "the allocator's options have no safe binding")]
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEPT_MILLIS);
    }
}
