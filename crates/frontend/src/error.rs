//! What can go wrong on the front end's side, said in full.
//!
//! The crate is a witness: when a wait ends without its event, the error carries the state of the ring, so that
//! "the back end lost the interrupt" and "the back end never finished the request" are never the same message.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::ring::RingState;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the front end could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No back end answers at the socket.
    #[error("cannot connect to the back end at {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A vhost-user message could not be sent, was refused, or its reply was wrong.
    #[error("{message} failed")]
    Message {
        /// The message's name in the specification.
        message: &'static str,
        /// What the `vhost` crate found.
        source: vhost::Error,
    },
    /// The back end did not answer in time; the socket has been shut down.
    #[error("{message}: no reply within {after:?}; the connection was shut down")]
    NoReply {
        /// The message's name in the specification.
        message: &'static str,
        /// How long the front end waited.
        after: Duration,
    },
    /// The back end does not offer what the test or the user asks for.
    #[error("the back end does not offer {what} (offered: {offered:#x})")]
    NotOffered {
        /// The features' names or bits.
        what: String,
        /// The bits it does offer.
        offered: u64,
    },
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Guest memory could not be made, or is too small for what was asked.
    #[error("guest memory: {0}")]
    Memory(String),
    /// All descriptors or request slots are in flight.
    #[error("the ring has no room for {wanted} more descriptor(s); {state}")]
    RingFull {
        /// Descriptors wanted.
        wanted: usize,
        /// The ring at that moment.
        state: RingState,
    },
    /// The request does not fit the queue's slots, or its layout does not fit the request.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// Nothing was completed in time, and the used index did not move.
    #[error("no completion within {after:?}; {state}")]
    Timeout {
        /// How long the driver waited.
        after: Duration,
        /// The ring at that moment.
        state: RingState,
    },
    /// The used index moved past the armed event, and the call eventfd stayed silent.
    #[error("lost interrupt: requests completed, but no call came within {after:?}; {state}")]
    LostCall {
        /// How long the driver waited.
        after: Duration,
        /// The ring at that moment.
        state: RingState,
    },
    /// A used element names a descriptor chain that is not in flight, or the used index jumped.
    #[error("the back end broke the used ring: {what}; {state}")]
    BadUsed {
        /// What was found.
        what: String,
        /// The ring at that moment.
        state: RingState,
    },
    /// A request ended with a status other than the one the caller needs.
    #[error("{request} at sector {sector} ended with status {status} (0 OK, 1 IOERR, 2 UNSUPP)")]
    Status {
        /// The request's name.
        request: &'static str,
        /// Its first sector.
        sector: u64,
        /// The device's answer.
        status: u8,
    },
    /// The back end closed the connection.
    #[error("the back end closed the connection while the front end waited for {0}")]
    Closed(&'static str),
    /// The bench was asked for something it cannot do.
    #[error("bench: {0}")]
    Bench(String),
}

impl Error {
    /// Wraps a failed system call.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Wraps a failed `rustix` call.
    pub(crate) fn errno(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }
}
