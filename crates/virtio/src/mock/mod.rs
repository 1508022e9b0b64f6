//! The driver's side of a split ring, for tests (feature `mock`).
//!
//! An independent witness: it reads and writes guest memory through `vm-memory`'s own mapping of the same files and shares no code with
//! [`crate::queue`]. It can be a well-behaved driver (`add`, `make_available`, `take_used`, both notification handshakes with their
//! fences) and, by its raw writes, a hostile one.
//!
//! What a driver can see of a device's mistakes, it checks: a used element for a chain that is not outstanding panics.
//!
//! ```
//! use outboard_virtio::mock::{Buffer, MockDriver, MockMemory};
//! use outboard_virtio::queue::Queue;
//!
//! let memory = MockMemory::flat(1 << 20);
//! let mut driver = MockDriver::new(&memory, 0, 16, 0);
//! let mut queue = Queue::new(&driver.config(), memory.lease()).unwrap();
//!
//! let data = driver.alloc(512, 512);
//! memory.write(data, b"hello");
//! let head = driver.add(&[Buffer::readable(data, 5), Buffer::writable(data + 256, 1)]).unwrap();
//! assert!(driver.make_available(), "the device wants a kick");
//!
//! let chain = queue.pop().unwrap().unwrap();
//! assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (head, 5, 1));
//! queue.push_used(chain.head, 1).unwrap();
//! assert!(queue.publish(), "the driver wants a call");
//! assert_eq!(driver.take_used(), Some((head, 1)));
//! ```
// A mistake in here is a mistake of a test, and panicking is how tests fail.
#![allow(clippy::expect_used, clippy::panic)]
mod driver;
mod memory;

pub use driver::{Buffer, Descriptor, MockDriver};
pub use memory::MockMemory;
