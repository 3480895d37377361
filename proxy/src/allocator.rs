//! The one call to the allocator that has no safe form, and the crate's one unsafe block.

/// Gives back to the system what the calling thread has freed a while ago. mimalloc does that on its own only as
/// memory is asked for, so a thread that falls quiet after a burst would keep the burst's memory.
#[allow(unsafe_code, reason = "a C function without arguments that could be wrong")]
pub(crate) fn collect() {
    // SAFETY: it may be called at any time by any thread, also where mimalloc is not the global allocator
    // (mimalloc.h, `mi_collect`).
    unsafe { libmimalloc_sys::mi_collect(false) }
}
