//! The thread that does what io_uring cannot: the BLKDISCARD ioctl, which blocks until the device is done.
//!
//! One thread per disk, made by the first discard and ended with the disk. It gets jobs through a channel and answers by posting
//! a completion to the queue's port, so a queue sees a discard finish like everything else.
use super::{Image, blockdev};
use outboard_reactor::RemotePort;
use std::{
    io,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

/// A discard for the thread.
pub(super) struct Job {
    /// Keeps the descriptor open.
    pub(super) image: Arc<Image>,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Where the completion goes, and its token.
    pub(super) port: RemotePort,
    pub(super) token: u32,
}

/// The way to the thread.
pub(super) struct Helper {
    jobs: OnceLock<Sender<Job>>,
}

impl Helper {
    pub(super) fn new() -> Helper {
        Helper {
            jobs: OnceLock::new(),
        }
    }

    /// Hands a job over; never blocks. The error is an errno: there is no thread.
    pub(super) fn submit(&self, job: Job) -> Result<(), i32> {
        let jobs = match self.jobs.get() {
            Some(jobs) => jobs,
            None => {
                let jobs = start().map_err(|e| e.raw_os_error().unwrap_or(libc::EAGAIN))?;
                // If another queue was faster, its thread stays and ours sees its channel closed and ends.
                self.jobs.get_or_init(|| jobs)
            }
        };
        jobs.send(job).map_err(|_| libc::EIO)
    }
}

fn start() -> io::Result<Sender<Job>> {
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("discard".into())
        .spawn(move || run(&receiver))?;
    Ok(sender)
}

/// Ends when the disk, and with it the sender, is gone. (A job holds the image and so the sender: none is ever lost.)
fn run(jobs: &Receiver<Job>) {
    while let Ok(Job {
        image,
        offset,
        len,
        port,
        token,
    }) = jobs.recv()
    {
        let result = match blockdev::discard(&image.file, offset, len) {
            Ok(()) => 0,
            Err(e) => -e.raw_os_error().unwrap_or(libc::EIO),
        };
        // First let go of the image: who sees the completion may close the disk and expect the lock to be gone.
        drop(image);
        port.complete(token, result);
    }
}
