//! Sending: a reply is whole or the session ends.

use super::{HEADER, VERSION, WireError};
use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use std::os::fd::AsFd;
use vhost::vhost_user::message::VhostUserHeaderFlag;

/// The bytes of a reply to the request `code`.
pub fn reply(code: u32, body: &[u8]) -> Vec<u8> {
    message(code, VERSION | VhostUserHeaderFlag::REPLY.bits(), body)
}

/// The bytes of a request of our own, on the back-end channel; it asks for no acknowledgement.
pub fn request(code: u32) -> Vec<u8> {
    message(code, VERSION, &[])
}

fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&code.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&size.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Sends from `bytes` what fits now, never waits, never raises SIGPIPE. `Ok(0)`: the peer must read first.
pub fn some(socket: impl AsFd, bytes: &[u8]) -> Result<usize, WireError> {
    loop {
        match send(
            socket.as_fd(),
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => return Ok(sent),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(e) => {
                return Err(WireError::Io {
                    what: "sending",
                    source: e.into(),
                });
            }
        }
    }
}
