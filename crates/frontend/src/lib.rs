//! A vhost-user front end with a virtio-blk driver: no guest, no VMM, any back end.
//!
//! It is the independent witness of tests and benches: built on the `vhost` crate's front end, on `vm-memory` and on
//! the kernel's constants, and on nothing of ours.
//!
//! ```no_run
//! use outboard_frontend::{Connection, Options, QueueOptions};
//!
//! # fn main() -> outboard_frontend::Result<()> {
//! let mut connection = Connection::open(&Options::new("/run/disk.sock"))?;
//! let mut queue = connection.queue(0, QueueOptions::default())?;
//! connection.start(&mut queue)?;
//! queue.write(0, &[7; 4096])?;
//! assert_eq!(queue.read(0, 4096)?, [7; 4096]);
//! let next = connection.stop(&mut queue)?; // GET_VRING_BASE
//! # let _ = next; Ok(()) }
//! ```
//!
//! | what for | where |
//! |-|-|
//! | negotiate, memory, rings, configuration | [`Connection`], [`Options`] |
//! | requests and completions of a queue | [`Driver`], [`Request`] |
//! | chains that no driver would send | [`Driver::submit_chain`], [`ring::SplitRing::write_descriptor`] |
//! | messages that no front end would send | [`wire::Wire`] |
//! | data that proves itself | [`verify`] |
//! | load and figures | [`mod@bench`] |
//! | messages of the back end | [`channel::BackendChannel`] |

pub mod bench;
pub mod channel;
pub mod config;
mod connection;
pub mod driver;
pub mod error;
pub mod memory;
pub mod options;
pub mod peer;
pub mod request;
pub mod ring;
mod slots;
pub mod verify;
mod watchdog;
pub mod wire;

pub use connection::Connection;
pub use driver::{Completion, Counters, Done, Driver, Io, QueueOptions, Slot};
pub use error::{Error, Result};
pub use memory::Memory;
pub use options::{Options, TableMessage};
pub use request::{
    Layout, Range, Reply, Request, STATUS_IOERR, STATUS_NONE, STATUS_OK, STATUS_UNSUPP,
};
pub use ring::{Descriptor, RingState, Segment};
