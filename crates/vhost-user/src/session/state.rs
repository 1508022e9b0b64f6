//! What the front end has told a session, apart from threads and running rings.
//!
//! Everything that a successor would need between two messages is here or in the descriptors and the memory map beside it:
//! plain values that can be written down.

use outboard_virtio::queue::QueueConfig;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

/// What was negotiated.
#[derive(Debug, Clone, Copy)]
pub struct Negotiated {
    /// SET_OWNER came
    pub owner: bool,
    /// by SET_FEATURES
    pub features: u64,
    /// by SET_PROTOCOL_FEATURES
    pub protocol: VhostUserProtocolFeatures,
}

impl Default for Negotiated {
    fn default() -> Negotiated {
        Negotiated {
            owner: false,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
        }
    }
}

impl Negotiated {
    /// VHOST_USER_F_PROTOCOL_FEATURES was acknowledged: rings begin disabled and SET_VRING_ENABLE is legal.
    pub fn rings_begin_disabled(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// What the driver negotiated, without the transport's own bit.
    pub fn virtio(&self) -> u64 {
        self.features & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }
}

/// A ring's addresses, in the front end's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// descriptor table
    pub descriptor: u64,
    /// available ring
    pub available: u64,
    /// used ring
    pub used: u64,
}

/// What was told about one ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingSettings {
    /// SET_VRING_NUM; 0 until then
    pub size: u16,
    /// SET_VRING_ADDR
    pub addresses: Option<RingAddresses>,
    /// SET_VRING_BASE, or where the last run of the ring ended
    pub base: u16,
    /// SET_VRING_ENABLE
    pub enabled: bool,
}

impl RingSettings {
    /// The ring in guest addresses, once size and addresses are known; `Err`: an address lies in no region.
    pub fn config(
        &self,
        to_guest: impl Fn(u64) -> Option<u64>,
        features: u64,
    ) -> Option<Result<QueueConfig, u64>> {
        let addresses = self.addresses.filter(|_| self.size != 0)?;
        let guest = |user| to_guest(user).ok_or(user);
        let resolve = || {
            Ok(QueueConfig {
                size: self.size,
                desc: guest(addresses.descriptor)?,
                avail: guest(addresses.available)?,
                used: guest(addresses.used)?,
                next_avail: self.base,
                next_used: None,
                features,
            })
        };
        Some(resolve())
    }
}

/// What a session did, for the line that is logged when it ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct SessionCounters {
    /// messages received
    pub messages: u64,
    /// messages refused
    pub refused: u64,
    /// ring starts
    pub starts: u64,
    /// requests of all rings that were stopped
    pub requests: u64,
    /// their kicks
    pub kicks: u64,
    /// their interrupts
    pub calls: u64,
}
