//! One request at a time, for tests that care about what a request does.

use std::time::{Duration, Instant};

use super::Driver;
use crate::error::Result;
use crate::request::{Range, Reply, Request};
use crate::slots::Slot;

/// The deadline of the one-request calls: far beyond what any disk needs on a loaded machine.
pub const WAIT: Duration = Duration::from_secs(30);

impl Driver {
    /// Submits a request, kicks, and waits for its reply, whatever its status. Completions of other requests that
    /// come meanwhile are kept for [`next`](Self::next).
    pub fn run(&mut self, request: &Request<'_>, within: Duration) -> Result<Reply> {
        let slot = self.submit(request)?;
        self.kick()?;
        self.wait_for(slot, within)
    }

    /// Waits for the reply of one request.
    pub fn wait_for(&mut self, slot: Slot, within: Duration) -> Result<Reply> {
        if let Some(at) = self.stash.iter().position(|done| done.slot == Some(slot))
            && let Some(done) = self.stash.remove(at)
        {
            return Ok(self.reply(done));
        }
        let deadline = Instant::now() + within;
        loop {
            match self.take()? {
                Some(done) if done.slot == Some(slot) => return Ok(self.reply(done)),
                Some(done) => self.stash.push_back(done),
                None => self.wait_until(deadline, within)?,
            }
        }
    }

    /// Reads bytes; an error if the status is not OK.
    pub fn read(&mut self, sector: u64, length: u32) -> Result<Vec<u8>> {
        self.run(&Request::read(sector, length), WAIT)?
            .ok()
            .map(|reply| reply.data)
    }

    /// Writes bytes; an error if the status is not OK.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        self.run(&Request::write(sector, data), WAIT)?
            .ok()
            .map(drop)
    }

    /// Flushes; an error if the status is not OK.
    pub fn flush(&mut self) -> Result<()> {
        self.run(&Request::flush(), WAIT)?.ok().map(drop)
    }

    /// Asks for the serial number, up to its first zero byte.
    pub fn get_id(&mut self) -> Result<Vec<u8>> {
        let mut id = self.run(&Request::get_id(), WAIT)?.ok()?.data;
        if let Some(end) = id.iter().position(|byte| *byte == 0) {
            id.truncate(end);
        }
        Ok(id)
    }

    /// Discards ranges; an error if the status is not OK.
    pub fn discard(&mut self, ranges: &[Range]) -> Result<()> {
        self.run(&Request::discard(ranges), WAIT)?.ok().map(drop)
    }

    /// Zeroes ranges; an error if the status is not OK.
    pub fn write_zeroes(&mut self, ranges: &[Range]) -> Result<()> {
        self.run(&Request::write_zeroes(ranges), WAIT)?
            .ok()
            .map(drop)
    }
}
