//! Completions that come from other threads: thread pools, C libraries.
//!
//! # Protocol
//! A poster pushes under the lock and notifies only if the inbox was empty before; the reactor clears the event
//! *before* it empties the inbox. So whoever finds the inbox non-empty may rely on a notification that the reactor has
//! not consumed yet, or on a reactor that is about to take the lock and will see the entry.

use crate::{port::PortCompletion, tag::SlotId};
use outboard_notifier::Event;
use std::sync::{Arc, Mutex, PoisonError};

/// Posts completions to one port, from any thread. Those for a port (or reactor) that is gone are dropped.
#[derive(Clone)]
pub struct RemotePort {
    inbox: Arc<Inbox>,
    slot: SlotId,
}

impl RemotePort {
    pub(crate) fn new(inbox: Arc<Inbox>, slot: SlotId) -> RemotePort {
        RemotePort { inbox, slot }
    }

    /// Hands over a completion and wakes the port's thread.
    pub fn complete(&self, token: u32, result: i32) {
        let mut posts = self
            .inbox
            .posts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let first = posts.is_empty();
        posts.push((self.slot, PortCompletion { token, result }));
        drop(posts);
        if first {
            self.inbox.event.notify();
        }
    }
}

/// Where foreign threads leave completions.
pub(crate) struct Inbox {
    posts: Mutex<Vec<(SlotId, PortCompletion)>>,
    pub event: Event,
}

impl Inbox {
    pub fn new(event: Event) -> Inbox {
        Inbox {
            posts: Mutex::default(),
            event,
        }
    }

    /// Swaps the posts against the empty `into`. Clear the event first.
    pub fn take(&self, into: &mut Vec<(SlotId, PortCompletion)>) {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *posts, into);
    }
}
