//! The back-end channel (BACKEND_REQ): the back end asks, the front end answers.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::wire::{NEED_REPLY, REPLY, RawMessage, VERSION, Wire};

/// Number of VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
pub const CONFIG_CHANGE: u32 = 2;

/// This side of the channel.
#[derive(Debug)]
pub struct BackendChannel {
    wire: Wire,
}

impl BackendChannel {
    /// Makes the channel; the second end is for SET_BACKEND_REQ_FD.
    pub(crate) fn pair() -> Result<(Self, UnixStream)> {
        let (mine, theirs) =
            UnixStream::pair().map_err(Error::io("socketpair for the back-end channel"))?;
        Ok((
            Self {
                wire: Wire::from_stream(mine),
            },
            theirs,
        ))
    }

    /// Receives the next message and answers it with success if it asks for an answer. `None` if the back end closed
    /// the channel; [`Error::NoReply`] if nothing came in time.
    pub fn next(&self, within: Duration) -> Result<Option<RawMessage>> {
        let Some(message) = self.wire.receive(within)? else {
            return Ok(None);
        };
        if message.flags & NEED_REPLY != 0 {
            self.wire
                .send(message.request, VERSION | REPLY, &0_u64.to_ne_bytes(), &[])?;
        }
        Ok(Some(message))
    }

    /// Waits for a message that says that the configuration space changed.
    pub fn wait_config_change(&self, within: Duration) -> Result<()> {
        let message = self
            .next(within)?
            .ok_or(Error::Closed("a configuration change"))?;
        if message.request == CONFIG_CHANGE && message.payload.is_empty() {
            return Ok(());
        }
        Err(Error::BadRequest(format!(
            "the back end sent {message:?} instead of a configuration change"
        )))
    }
}
