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
    /// Takes an inherited descriptor. To be called before the process opens any descriptor of its own, which would otherwise
    /// answer to the number of one that was not inherited. A path is not touched yet.
    pub fn claim(&self) -> anyhow::Result<Claim> {
        Ok(match self {
            EndpointSpec::Path(path) => Claim::Path(path.clone()),
            EndpointSpec::Fd(fd) => Claim::Inherited(inherited::take(*fd)?),
        })
    }
}

/// What is still to be opened of an endpoint.
pub enum Claim {
    Path(PathBuf),
    Inherited(Endpoint),
}

impl Claim {
    /// Opens the endpoint. The guard, if any, removes the socket file when dropped.
    pub fn open(self) -> anyhow::Result<(Endpoint, Option<BoundPath>)> {
        Ok(match self {
            Claim::Path(path) => {
                let (listener, bound) = path::bind(&path)?;
                (Endpoint::Listen(listener), Some(bound))
            }
            Claim::Inherited(endpoint) => (endpoint, None),
        })
    }
}
