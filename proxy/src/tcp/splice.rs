//! Bytes from socket to socket through a pipe of the kernel's, without a copy in this process. It pays where much
//! flows at once; a worker has some pipes for it, and who gets none copies.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe holds, where the system allows that much.
const SIZE: usize = 256 * 1024;
/// Pipes that one worker has in use or keeps. Each is two open files.
const MOST: usize = 64;

/// The pipes of this thread.
#[derive(Default)]
struct Pipes {
    idle: Vec<(OwnedFd, OwnedFd)>,
    lent: usize,
}

thread_local! {
    static PIPES: RefCell<Pipes> = RefCell::default();
}

/// A pipe on loan, with what it holds.
pub(super) struct Pipe {
    /// Read and write end. `None` only while it is dropped.
    ends: Option<(OwnedFd, OwnedFd)>,
    held: usize,
}

impl Pipe {
    /// One that is empty, if there is one to be had.
    pub(super) fn borrow() -> Option<Pipe> {
        PIPES.with_borrow_mut(|pipes| {
            let ends = match pipes.idle.pop() {
                Some(ends) => ends,
                None if pipes.lent >= MOST => return None,
                None => new()?,
            };
            pipes.lent += 1;
            Some(Pipe { ends: Some(ends), held: 0 })
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes bytes in; 0 at the end of what `from` has. The pipe must be empty.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        let Some((_, into)) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || transfer(from, into, SIZE)) {
                Ok(length) => {
                    self.held = length;
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives on all that it holds.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        let Some((from, _)) = &self.ends else { return Poll::Ready(Ok(())) };
        while self.held > 0 {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || transfer(from, to, self.held)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(length) => self.held -= length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        // At the end of a thread there may be nothing to give it back to.
        let _ = PIPES.try_with(|pipes| {
            let mut pipes = pipes.borrow_mut();
            pipes.lent -= 1;
            // One that still holds bytes of another's is of no use.
            if self.held == 0 {
                pipes.idle.push(ends);
            }
        });
    }
}

fn new() -> Option<(OwnedFd, OwnedFd)> {
    let ends = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    // A smaller one does as well, only less at once.
    let _ = fcntl_setpipe_size(&ends.1, SIZE);
    Some(ends)
}

fn transfer(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, length: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, length, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}
