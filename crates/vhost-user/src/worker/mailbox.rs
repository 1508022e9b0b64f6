//! How sessions talk to a worker.

use super::{
    RingStart, StartError,
    shared::{HandBack, Shared},
};
use outboard_notifier::{Event, KickTicket, PeerFd};
use outboard_virtio::memory::MemoryMap;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::SyncSender},
};

/// Names a ring on its worker; never used twice.
pub(super) type RingId = u64;

/// What a worker may be asked for. Where there is a reply, dropping it says that the worker, or the ring, is gone.
pub(super) enum Command {
    Start {
        id: RingId,
        ring: Box<RingStart>,
        reply: SyncSender<Result<Arc<Shared>, StartError>>,
    },
    /// Look at the ring: it was enabled, or its gate closed.
    Look { id: RingId },
    SwapKick {
        id: RingId,
        kick: Option<PeerFd>,
        reply: SyncSender<Option<KickTicket>>,
    },
    SetMemory {
        id: RingId,
        memory: Arc<MemoryMap>,
        reply: SyncSender<Result<(), StartError>>,
    },
    /// Hand the ring back when its gate is done and its kick closed. The gate was closed before.
    Stop { id: RingId, hand_back: HandBack },
    /// End the thread.
    End,
}

/// A worker's post box.
///
/// A poster pushes, then notifies; the worker, when woken, takes everything. So each command is followed by a wake-up that
/// finds it or comes too late for it.
pub(super) struct Mailbox {
    state: Mutex<State>,
    waker: Arc<Event>,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    closed: bool,
}

impl Mailbox {
    pub fn new(waker: Arc<Event>) -> Mailbox {
        Mailbox {
            state: Mutex::default(),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the command (outside the lock) if the worker is gone.
    pub fn post(&self, command: Command) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            drop(command);
            return;
        }
        state.commands.push_back(command);
        drop(state);
        self.waker.notify();
    }

    pub fn take(&self) -> VecDeque<Command> {
        std::mem::take(&mut self.lock().commands)
    }

    /// The worker ends: what was not read is dropped, and so is what comes later.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let unread = std::mem::take(&mut state.commands);
        drop(state);
        drop(unread);
    }
}
