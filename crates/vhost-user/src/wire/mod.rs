//! The wire: messages of the vhost-user protocol as they come from a peer that is not trusted.
//!
//! A message is a twelve-byte header, a body of the length that the header names, and descriptors that travel beside the
//! bytes. What this module promises about all that comes in:
//!
//! - **Memory is bounded.** A header whose length does not fit its request is refused before one byte of the body is read,
//!   so a message never holds more than [`MAX_BODY`] bytes and [`MAX_FDS`] descriptors.
//! - **Descriptors stay with their message.** Never a byte past the end of the message in hand is asked for, so the kernel
//!   cannot hand over descriptors that belong to the next one. They are close-on-exec from the moment they exist here, and
//!   closed wherever a message ends that has no use for them.
//! - **Bytes come in any portions.** A header or a body may arrive in as many pieces as the peer likes, within a deadline
//!   for the whole message that begins with its first byte.
//! - **Nobody waits here.** Every call is `MSG_DONTWAIT`; the session sleeps in `poll`, where it sees the hang-up, the stop
//!   request and the deadline as well. `O_NONBLOCK` is never set: it belongs to the file, which the peer shares.
//!
//! [`table`] says what each request may carry and when it is legal; [`request`] turns a message into one [`request::Request`].

pub mod recv;
pub mod request;
pub mod send;
pub mod table;

use std::{io, time::Duration};

/// Bytes of the header: request, flags, length of the body.
pub const HEADER: usize = 12;
/// The largest body that any request may have: the head of a configuration access and the whole 4 KiB space.
pub const MAX_BODY: usize = 12 + 4096;
/// Regions, and so descriptors, that one SET_MEM_TABLE may carry. The specification draws eight; front ends built on the
/// rust-vmm crates send as many as this.
pub const MAX_FDS: usize = 32;
/// Version 1 of the protocol, in the lowest two bits of the flags.
pub const VERSION: u32 = 1;

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From connecting to the first byte. A connection holds the device, so one that never speaks must go.
    pub first_message: Duration,
    /// From the first byte of a message to its last.
    pub message: Duration,
    /// From a reply that did not fit into the socket until the peer has read enough to let it in.
    pub reply: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            first_message: Duration::from_secs(30),
            message: Duration::from_secs(10),
            reply: Duration::from_secs(10),
        }
    }
}

/// A peer that does not speak the protocol. What follows in the stream has no meaning, so the session ends.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Receiving or sending failed.
    #[error("{what} failed: {source}")]
    Io {
        /// `receiving` or `sending`
        what: &'static str,
        /// what the kernel said
        source: io::Error,
    },
    /// A header that no version 1 front end sends.
    #[error("bad header (request {request}, flags {flags:#x}, length {size}): {why}")]
    Header {
        /// request code as received
        request: u32,
        /// flags as received
        flags: u32,
        /// length as received
        size: u32,
        /// which rule it breaks
        why: &'static str,
    },
    /// More or fewer descriptors than the message takes.
    #[error("{name}: {found} descriptors, where {expected} belong")]
    Descriptors {
        /// the request
        name: String,
        /// how many came
        found: usize,
        /// how many it takes
        expected: String,
    },
    /// The kernel could not hand over all descriptors.
    #[error(
        "descriptors were lost on the way: more than {MAX_FDS} in one message, or this process has reached its limit \
         of open files (see RLIMIT_NOFILE)"
    )]
    DescriptorsLost,
    /// A message that did not become whole in time.
    #[error("half a message: {have} bytes after {after:?}")]
    Half {
        /// bytes of header and body that came
        have: usize,
        /// the deadline
        after: Duration,
    },
    /// A peer that does not read.
    #[error("a reply was not read within {0:?}")]
    Unread(Duration),
    /// A body that contradicts itself.
    #[error("{name}: {why}")]
    Body {
        /// the request
        name: String,
        /// the contradiction
        why: String,
    },
}
