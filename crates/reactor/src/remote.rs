//! Completions that come from other threads: thread pools, C libraries.
//!
//! # Protocol
//! A poster pushes under the lock and notifies only if the inbox was empty before; the reactor, when notified, takes all.
//! So whoever finds the inbox non-empty relies on the poster who found it empty: that one's notification is still to
//! come, or to be answered, and the answer takes every entry there is by then.

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

    /// Swaps the posts against the empty `into`.
    pub fn take(&self, into: &mut Vec<(SlotId, PortCompletion)>) {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *posts, into);
    }
}
