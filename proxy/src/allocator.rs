//! What gives memory back. Here are the crate's two unsafe blocks: calls to the allocator and to the kernel that have
//! no safe form.

use std::ffi::c_void;
use std::io;

use rustix::mm::{Advice, madvise};

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

/// Gives back what of the program's own file the start has touched and nobody may need again: code and constants, some
/// four MiB, which count as resident memory. What is needed comes again, from the system's cache of the file.
///
/// # Errors
/// When the kernel does not say what is mapped. Nothing is lost by that.
pub(crate) fn forget_start() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let program = program.to_string_lossy();
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        if let Some((start, length)) = unchanging(line, &program) {
            unmap(start, length)?;
        }
    }
    Ok(())
}

/// Where a line of `/proc/self/maps` says that the program's code or constants are (proc_pid_maps(5)). Not what was
/// relocated at the start: that cannot be written any more either, and is not as it is in the file.
fn unchanging(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.splitn(6, ' ');
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?.trim_start();
    let is_constant = permissions == "r-xp" || permissions == "r--p" && offset == "00000000";
    if path != program || !is_constant {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[allow(unsafe_code, reason = "a system call on a range of memory")]
fn unmap(start: usize, length: usize) -> io::Result<()> {
    let start = std::ptr::with_exposed_provenance_mut::<c_void>(start);
    // SAFETY: the range is a private mapping of a file that was never writable, so that all of its pages are as they are
    // in the file, and are read from there again (madvise(2), MADV_DONTNEED).
    Ok(unsafe { madvise(start, length, Advice::LinuxDontNeed) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_are_told_from_what_was_relocated() {
        let found = |line: &str| unchanging(line, "/usr/bin/pontoon-proxy").is_some();
        let line = |permissions: &str, offset: &str, path: &str| {
            format!("55e4a000-55e4b000 {permissions} {offset} fd:00 1234                       {path}")
        };
        let program = "/usr/bin/pontoon-proxy";
        assert!(found(&line("r--p", "00000000", program)) && found(&line("r-xp", "00346000", program)));
        for (permissions, offset, path) in [
            ("r--p", "00d7c000", program),
            ("rw-p", "00000000", program),
            ("r-xs", "00346000", program),
            ("r-xp", "00000000", "/usr/lib/libc.so.6"),
            ("r-xp", "00000000", "/usr/bin/pontoon-proxy (deleted)"),
            ("r-xp", "00000000", ""),
        ] {
            assert!(!found(&line(permissions, offset, path)), "{permissions} {offset} {path}");
        }
        assert_eq!(unchanging(&line("r-xp", "00000000", program), program), Some((0x55e4_a000, 0x1000)));
    }

    /// It goes on as it was.
    #[test]
    fn what_is_forgotten_comes_again() {
        forget_start().unwrap();
        assert_eq!("a constant".to_uppercase(), "A CONSTANT");
    }
}
