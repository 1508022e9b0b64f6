//! Where front ends come in: a path we bind, or a descriptor we inherited.

mod inherited;
mod path;

use std::os::fd::RawFd;
use std::path::PathBuf;

use outboard_vhost_user::server::Endpoint;

pub use path::BoundPath;

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointSpec {
    /// Bind and listen here.
    Path(PathBuf),
    /// Take this descriptor: listening or connected.
    Fd(RawFd),
}

impl EndpointSpec {
    /// Opens the endpoint. The guard, if any, removes the socket file when dropped.
    pub fn open(&self) -> anyhow::Result<(Endpoint, Option<BoundPath>)> {
        match self {
            EndpointSpec::Path(path) => {
                let (listener, bound) = path::bind(path)?;
                Ok((Endpoint::Listen(listener), Some(bound)))
            }
            EndpointSpec::Fd(fd) => Ok((inherited::take(*fd)?, None)),
        }
    }
}
