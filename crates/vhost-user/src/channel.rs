//! The back-end channel: how the session tells the front end something unasked.
//!
//! The front end gives the socket, so it may be any socket. Two rules keep a hostile one harmless:
//!
//! - **It must not keep our own connection alive.** A front end could give its own end of the session's connection: we
//!   would hold both ends, and no hang-up would ever be seen. Two front ends could give each other's. So reading is shut down
//!   on the given socket, which shuts down writing on its other end; a send of no bytes on the session's own connection
//!   then fails if that is the other end, or if another session has taken this session's other end before. No circle of
//!   sessions can close: the last one to take its part finds its own connection shut down.
//! - **It must not carry anything to us.** Descriptors lying unread in a socket's queue are kept open by it, among them,
//!   again, the end of a connection. Reading is shut down for good and a queue that is not empty is refused. So no
//!   acknowledgement is ever asked for on the channel, which is what we want anyway: a front end that waits for us while we
//!   wait for it is a deadlock.

use crate::wire::{WireError, send};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, sockopt};
use std::{
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
};
use vhost::vhost_user::message::BackendReq;

/// Why a socket is not taken as channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAChannel {
    /// Not a Unix stream socket, or a listening or unconnected one.
    #[error("the back-end channel must be a connected Unix stream socket")]
    Kind,
    /// Our own connection, or part of a circle.
    #[error(
        "the back-end channel would keep this connection open: it is the front end's own end of it, or of another that holds it"
    )]
    Ours,
    /// Something has been sent on it already.
    #[error("the back-end channel carries data for us, where we asked for nothing")]
    NotEmpty,
}

/// The back-end channel of a session.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    /// the rest of a message that did not fit
    unsent: Vec<u8>,
    /// the configuration changed again since `unsent` was begun
    again: bool,
}

impl Channel {
    /// Takes the socket that the front end gave to the session on `connection`.
    pub fn adopt(fd: OwnedFd, connection: &UnixStream) -> Result<Channel, NotAChannel> {
        let kind = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
            && sockopt::socket_acceptconn(&fd) == Ok(false);
        let socket = UnixStream::from(fd);
        if !kind || socket.peer_addr().is_err() {
            return Err(NotAChannel::Kind);
        }
        socket
            .shutdown(Shutdown::Read)
            .map_err(|_| NotAChannel::Kind)?;
        if rustix::net::send(connection, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_err() {
            return Err(NotAChannel::Ours);
        }
        // Nothing can be sent to a socket that is shut down for reading: what is empty now stays empty.
        match rustix::net::recv(
            &socket,
            &mut [0_u8; 1],
            RecvFlags::DONTWAIT | RecvFlags::PEEK,
        ) {
            Ok((0, _)) => Ok(Channel {
                socket,
                unsent: Vec::new(),
                again: false,
            }),
            _ => Err(NotAChannel::NotEmpty),
        }
    }

    /// Notes that the front end has to be told of a changed configuration. Several changes that it has not been told of
    /// are one.
    pub fn config_changed(&mut self) {
        if self.unsent.is_empty() {
            self.unsent = send::request(u32::from(BackendReq::CONFIG_CHANGE_MSG));
        } else {
            self.again = true;
        }
    }

    /// Something waits for room in the socket.
    pub fn is_waiting(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what fits. An error is a channel that is closed.
    pub fn flush(&mut self) -> Result<(), WireError> {
        while !self.unsent.is_empty() {
            let sent = send::some(&self.socket, &self.unsent)?;
            if sent == 0 {
                break;
            }
            self.unsent.drain(..sent.min(self.unsent.len()));
            if self.unsent.is_empty() && std::mem::take(&mut self.again) {
                self.config_changed();
            }
        }
        Ok(())
    }

    /// To wait for room.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }
}
