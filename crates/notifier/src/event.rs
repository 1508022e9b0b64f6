//! Our own eventfd.

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Our own eventfd (close-on-exec, non-blocking): how one thread wakes another.
///
/// Nobody outside the process holds it, so unlike a [`PeerFd`](crate::PeerFd) its flags are ours and cannot change.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A new, unsignalled event. Fails when the process or the system is out of descriptors or memory.
    pub fn new() -> io::Result<Event> {
        Ok(Event(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Makes the descriptor readable. Never blocks; a full counter is already readable.
    ///
    /// Everything this thread did before is seen by whoever finds the descriptor readable because of it: the kernel
    /// updates the count under a lock.
    pub fn notify(&self) {
        while rustix::io::write(&self.0, &1u64.to_ne_bytes()) == Err(Errno::INTR) {}
    }

    /// Takes the count back to zero; true if it was not.
    pub fn clear(&self) -> bool {
        let mut count = [0u8; 8];
        loop {
            match rustix::io::read(&self.0, &mut count) {
                Err(Errno::INTR) => continue,
                other => return other == Ok(count.len()),
            }
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
