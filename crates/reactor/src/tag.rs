//! What an entry's `user_data` says about whom its completion is for.
//!
//! ```text
//! 63    60 59         48 47       32 31        0
//! [ kind ] [ generation ] [ index   ] [ token   ]
//! ```
//! Index and generation are a [`SlotId`]. A slot is freed only after the final completion of its last operation, so a
//! stale completion should not exist; the generation turns "should not" into "is recognised and ignored".

/// A place in one of the reactor's slabs, distinguishable from the place's earlier tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SlotId {
    pub index: u16,
    /// Twelve bits.
    pub generation: u16,
}

const GENERATIONS: u16 = 1 << 12;

impl SlotId {
    /// In 28 bits.
    pub fn pack(self) -> u32 {
        u32::from(self.generation) << 16 | u32::from(self.index)
    }

    pub fn unpack(bits: u32) -> SlotId {
        SlotId {
            index: bits as u16,
            generation: (bits >> 16) as u16 % GENERATIONS,
        }
    }
}

/// Hands out generations.
#[derive(Debug, Default)]
pub(crate) struct Generations(u16);

impl Generations {
    /// The id of slab key `key`, if it can be named in a completion.
    pub fn next(&mut self, key: usize) -> Option<SlotId> {
        let index = u16::try_from(key).ok()?;
        self.0 = self.0 % (GENERATIONS - 1) + 1; // never 0
        Some(SlotId {
            index,
            generation: self.0,
        })
    }
}

/// Whom a completion is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// An operation of a port.
    Port { slot: SlotId, token: u32 },
    /// The poll of a watched descriptor; `token` counts its armings.
    Watch { slot: SlotId, token: u32 },
    /// The poll of one of the reactor's own events.
    Own(OwnEvent),
    /// The answer to a request to end a watch's poll.
    Cancel { slot: SlotId, token: u32 },
    /// The answer to a request to end everything.
    CancelAll,
}

/// The reactor's own event descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnEvent {
    /// `Reactor::waker`.
    Mailbox,
    /// `RemotePort::complete`.
    Remote,
}

impl Tag {
    pub fn encode(self) -> u64 {
        let (kind, slot, token) = match self {
            Tag::Port { slot, token } => (1u64, slot.pack(), token),
            Tag::Watch { slot, token } => (2, slot.pack(), token),
            Tag::Own(OwnEvent::Mailbox) => (3, 0, 0),
            Tag::Own(OwnEvent::Remote) => (4, 0, 0),
            Tag::Cancel { slot, token } => (5, slot.pack(), token),
            Tag::CancelAll => (6, 0, 0),
        };
        kind << 60 | u64::from(slot) << 32 | u64::from(token)
    }

    /// `None`: not one of ours.
    pub fn decode(user_data: u64) -> Option<Tag> {
        let slot = SlotId::unpack((user_data >> 32) as u32);
        let token = user_data as u32;
        match user_data >> 60 {
            1 => Some(Tag::Port { slot, token }),
            2 => Some(Tag::Watch { slot, token }),
            3 => Some(Tag::Own(OwnEvent::Mailbox)),
            4 => Some(Tag::Own(OwnEvent::Remote)),
            5 => Some(Tag::Cancel { slot, token }),
            6 => Some(Tag::CancelAll),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_survives_the_kernel() {
        let slot = SlotId {
            index: u16::MAX,
            generation: GENERATIONS - 1,
        };
        for tag in [
            Tag::Port {
                slot,
                token: u32::MAX,
            },
            Tag::Port {
                slot: SlotId {
                    index: 0,
                    generation: 1,
                },
                token: 0,
            },
            Tag::Watch { slot, token: 77 },
            Tag::Own(OwnEvent::Mailbox),
            Tag::Own(OwnEvent::Remote),
            Tag::Cancel { slot, token: 9 },
            Tag::CancelAll,
        ] {
            assert_eq!(Tag::decode(tag.encode()), Some(tag));
        }
        assert_eq!(Tag::decode(0), None);
    }

    #[test]
    fn a_reused_place_gets_another_id() {
        let mut ids = Generations::default();
        assert_ne!(ids.next(5), ids.next(5));
        assert_eq!(ids.next(1 << 16), None, "cannot be named in user_data");
    }
}
