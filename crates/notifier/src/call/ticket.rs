//! The claim to a descriptor's end.

use crate::here;
use crate::latch::Latch;
use crate::release::Release;
use crate::sync::Arc;
use std::fmt;

/// Proof that a detach has been asked for; done once the old descriptor is closed.
///
/// It may be dropped without waiting: the detach goes on by itself.
#[must_use = "the old descriptor may still be open: wait for it, or say that it does not matter by dropping this"]
pub struct DetachTicket {
    /// None: nothing was attached.
    latch: Option<Arc<Latch>>,
    refused: bool,
}

/// The descriptor is closed; no thread and no queued kernel operation can reach it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detached;

/// The wait would never end: what is waited for is held by the thread that wants to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WouldDeadlock;

impl DetachTicket {
    pub(super) fn new(latch: Option<Arc<Latch>>, refused: bool) -> DetachTicket {
        DetachTicket { latch, refused }
    }

    /// Sleeps until the old descriptor is closed: for signals and pins in progress, not for callbacks.
    pub fn wait(self) -> Result<Detached, WouldDeadlock> {
        let Some(latch) = &self.latch else {
            return Ok(Detached);
        };
        if !latch.is_done() && here::holds(latch) {
            return Err(WouldDeadlock);
        }
        latch.wait();
        Ok(Detached)
    }

    /// As `wait`, but for a limited time; None when it has passed. What a watchdog asks: a signal in progress that takes
    /// milliseconds is a write that the peer has blocked, and tgkill(2) of the worker breaks it (see [`PeerFd`](crate::PeerFd)).
    #[cfg(not(loom))]
    pub fn wait_timeout(
        &self,
        limit: std::time::Duration,
    ) -> Option<Result<Detached, WouldDeadlock>> {
        let Some(latch) = &self.latch else {
            return Some(Ok(Detached));
        };
        if !latch.is_done() && here::holds(latch) {
            return Some(Err(WouldDeadlock));
        }
        latch.wait_timeout(limit).then_some(Ok(Detached))
    }

    /// Whether the old descriptor is closed.
    pub fn is_done(&self) -> bool {
        self.latch.as_ref().is_none_or(|latch| latch.is_done())
    }

    /// Runs `release` when the old descriptor is closed; at once if it is already. Its own callback may run before or after. For who must
    /// not sleep, such as a session that owes a reply.
    pub fn on_done(self, release: Release) {
        self.hang(release);
    }

    /// Whether the new descriptor was *not* attached because the cell had no slot left: see
    /// [`CallCell::swap`](super::CallCell::swap).
    pub fn refused(&self) -> bool {
        self.refused
    }

    pub(super) fn hang(&self, release: Release) {
        match &self.latch {
            Some(latch) => latch.then(release),
            None => release.fire(),
        }
    }
}

impl fmt::Debug for DetachTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachTicket")
            .field("done", &self.is_done())
            .field("refused", &self.refused)
            .finish()
    }
}

impl fmt::Display for WouldDeadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the wait would never end: this thread holds what it waits for")
    }
}

impl std::error::Error for WouldDeadlock {}
