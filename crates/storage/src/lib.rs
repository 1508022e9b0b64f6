//! Disks behind one contract.
//!
//! [`disk`] is the contract: a shared [`Disk`](disk::Disk), and one [`DiskQueue`](disk::DiskQueue) for each worker that uses it.
//! [`uri::open`] makes a disk from its name. The engines:
//!
//! | URI | what it is | how it finishes |
//! |-|-|-|
//! | `file:PATH` | raw image file or block device ([`mod@file`]) | through the worker's io_uring |
//! | `ram:SIZE` | memory of this process ([`ram`]) | at once, inside `submit` |
//! | `null:SIZE` | nothing ([`null`]) | at once, inside `submit` |
//! | `delay:MIN-MAX:URI` | another disk, slower and out of order ([`delay`]) | by the worker's timers |
//!
//! # Who flushes
//!
//! Only a [`Flush`](disk::Op::Flush) (or a durable write) makes data durable. Dropping a queue or a disk flushes nothing: what a
//! guest wrote and never flushed is in the kernel's page cache, which outlives this process, so a daemon that ends or is killed
//! loses nothing; a host that loses power loses what was not flushed, exactly as a real disk with a volatile cache would. A back
//! end that wants more on its way out (say, before a migration hands over to another host) submits a `Flush` and waits for it.
pub mod delay;
pub mod disk;
pub mod file;
pub mod null;
pub mod ram;
pub mod uri;
