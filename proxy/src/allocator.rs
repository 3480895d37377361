//! What gives memory back. Here is the crate's one unsafe block: the call to the allocator that has no safe form.

/// Gives back to the system what the calling thread has freed a while ago. mimalloc does that on its own only as
/// memory is asked for, so a thread that falls quiet after a burst would keep the burst's memory.
pub(crate) fn collect() {
    give_back(false);
}

/// Does what takes much memory for a moment in a thread of its own, and gives all of that back. What the process keeps
/// would otherwise lie between it, and few of its pages could go.
pub(crate) fn apart<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    let done = || {
        let done = what();
        give_back(true);
        done
    };
    std::thread::scope(|scope| {
        scope.spawn(done).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `at_once`: also what was freed just now.
#[allow(unsafe_code, reason = "a C function whose one argument is a flag")]
fn give_back(at_once: bool) {
    // SAFETY: it may be called at any time by any thread, also where mimalloc is not the global allocator
    // (mimalloc.h, `mi_collect`).
    unsafe { libmimalloc_sys::mi_collect(at_once) }
}
