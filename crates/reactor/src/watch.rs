//! Watched descriptors: a multishot poll each, never a read.
//!
//! # Who knows what
//! The states of a descriptor, and when it may be closed, are [`KickSource`]'s: armed, cancelling, closed after the
//! *final* completion of its poll (the one without `F_MORE`), because until then a queued entry names its number (R6).
//! This module keeps the sources of one reactor, and turns their events into wakes and entries.
//!
//! # Why no kick is lost
//! A poll armed on a descriptor that is readable fires at once, so whatever was signalled before `watch`, or between
//! the end of one multishot poll (a full completion ring ends it) and the next, is reported. As the count is never
//! read, a signal is a wake-up of the poll's wait queue, not a change of level; a thousand while the thread is busy
//! become one completion, since the poll's task work runs once.

use crate::{
    Wake,
    tag::{Generations, SlotId},
};
use outboard_notifier::{KickEvent, KickSource, KickTicket, PeerFd, Release};
use slab::Slab;
use std::{convert::Infallible, io, os::fd::RawFd};

/// Names a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchId(pub(crate) u32);

/// A poll to be queued at once: the source counts it as queued already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Poll {
    pub fd: RawFd,
    pub token: u32,
}

struct Watch {
    id: SlotId,
    key: u64,
    source: KickSource,
    /// `unwatch` was called: only the final completion is missing.
    closing: bool,
    /// The pass in which it was last reported.
    reported: u64,
}

impl Watch {
    fn arm(&mut self) -> Option<Poll> {
        let mut poll = None;
        let queue = |fd, token| {
            poll = Some(Poll { fd, token });
            Ok::<(), Infallible>(())
        };
        let _ = self.source.arm(queue);
        poll
    }
}

/// All watches of a reactor.
#[derive(Default)]
pub(crate) struct Watches {
    slots: Slab<Watch>,
    ids: Generations,
}

impl Watches {
    /// A place for the descriptor, and its first poll.
    pub fn open(&mut self, fd: PeerFd, key: u64) -> io::Result<(SlotId, Option<Poll>)> {
        let place = self.slots.vacant_entry();
        let id = self.ids.next(place.key()).ok_or_else(|| {
            io::Error::other("more than 65,536 descriptors watched by one worker")
        })?;
        let watch = place.insert(Watch {
            id,
            key,
            source: KickSource::new(fd, Release::none()),
            closing: false,
            reported: 0,
        });
        Ok((id, watch.arm()))
    }

    fn get(&mut self, id: SlotId) -> Option<&mut Watch> {
        self.slots
            .get_mut(usize::from(id.index))
            .filter(|watch| watch.id == id)
    }

    /// Asks for the end of a watch. With the token of the poll that the caller has to cancel, if one is queued. `None`:
    /// no such watch, or asked before.
    pub fn begin_close(&mut self, id: SlotId) -> Option<(KickTicket, Option<u32>)> {
        let watch = self.get(id).filter(|watch| !watch.closing)?;
        let detaching = watch.source.begin_detach();
        watch.closing = true;
        if watch.source.is_closed() {
            self.slots.remove(usize::from(id.index));
        }
        Some((detaching.ticket, detaching.cancel))
    }

    /// The reactor ends: nothing is reported or armed any more. The caller cancels all polls.
    pub fn close_all(&mut self) {
        self.slots.retain(|_, watch| {
            drop(watch.source.begin_detach());
            watch.closing = true;
            !watch.source.is_closed()
        });
    }

    pub fn is_closing(&mut self, id: SlotId) -> bool {
        self.get(id).is_some_and(|watch| watch.closing)
    }

    /// The poll's completion came. Returns the poll to queue next, if one.
    pub fn fired(
        &mut self,
        id: SlotId,
        token: u32,
        completion: (i32, bool),
        pass: u64,
        wakes: &mut Vec<Wake>,
    ) -> Option<Poll> {
        let watch = self.get(id)?;
        let (result, more) = completion;
        let event = watch.source.completion(token, result, more);
        match event {
            KickEvent::Stale => return None,
            KickEvent::Closed => {
                self.slots.remove(usize::from(id.index));
                return None;
            }
            KickEvent::Fire | KickEvent::FireRearm | KickEvent::Failed(_) => {}
        }
        if std::mem::replace(&mut watch.reported, pass) != pass {
            wakes.push(Wake::Kick { key: watch.key });
        }
        match event {
            KickEvent::FireRearm => watch.arm(),
            // Memory may come back; and nobody but us cancels, so a stray cancel is not the end either.
            KickEvent::Failed(libc::ENOMEM | libc::EAGAIN | libc::ECANCELED) => watch.arm(),
            KickEvent::Failed(_) => {
                wakes.push(Wake::WatchLost { key: watch.key });
                None
            }
            _ => None,
        }
    }
}
