//! Why a session ends, and why a message is refused.

use crate::wire::WireError;
use std::{io, time::Duration};

/// The end of a session.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The front end closed the connection.
    #[error("the front end left")]
    HungUp {
        /// in the middle of a message
        midway: bool,
    },
    /// The server was asked to stop, and every ring is drained.
    #[error("stopped")]
    Stopped,
    /// The peer does not speak the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A message that cannot be obeyed, and that has no way to say so in a reply.
    #[error("{name} refused: {why}")]
    Refused {
        /// the request
        name: String,
        /// why
        why: String,
    },
    /// A descriptor of a kind that must not be kept.
    #[error("{name}: {why}")]
    Descriptor {
        /// the request
        name: String,
        /// what it is, and what it must be
        why: String,
    },
    /// Nobody spoke.
    #[error("no message within {0:?} of connecting")]
    Silent(Duration),
    /// Guest memory went away under us.
    #[error(
        "a file behind guest memory was truncated by its owner: what the guest holds there is lost"
    )]
    Damaged,
    /// A running ring could not follow a change of the memory table.
    #[error("ring {index} does not fit the new memory table: {why}")]
    RingLost {
        /// the ring
        index: u16,
        /// why
        why: String,
    },
    /// The session itself failed.
    #[error("{what} failed: {source}")]
    Internal {
        /// what
        what: &'static str,
        /// what the kernel said
        source: io::Error,
    },
}

/// What a message came to, if it did not succeed.
#[derive(Debug)]
pub enum Fault {
    /// It had no effect. Said in the acknowledgement if there is one, else the session ends.
    Refused(String),
    /// The session ends, whatever the message could answer.
    Fatal(End),
}

impl<E: Into<End>> From<E> for Fault {
    fn from(end: E) -> Fault {
        Fault::Fatal(end.into())
    }
}

/// Refuses a message with a text.
pub fn refuse<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Refused(why.into()))
}
