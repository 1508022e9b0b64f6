//! What the front end wants of a connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// Every virtio feature that this driver can use, whether or not the back end offers it.
#[must_use]
pub fn driver_features() -> u64 {
    [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ]
    .iter()
    .fold(0, |bits, bit| bits | 1 << bit)
}

/// Every protocol feature that this front end can use.
#[must_use]
pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// How the memory table is told to the back end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableMessage {
    /// One SET_MEM_TABLE with all regions.
    #[default]
    SetMemTable,
    /// One ADD_MEM_REG for each region; needs CONFIGURE_MEM_SLOTS.
    AddMemReg,
}

/// What to ask of a back end. Everything is wanted by default; take away what a test is about.
#[derive(Clone, Debug)]
pub struct Options {
    /// The back end's socket.
    pub socket: PathBuf,
    /// Virtio features to accept if offered.
    pub features: u64,
    /// Virtio features that must be offered.
    pub required: u64,
    /// Protocol features to accept if offered.
    pub protocol: VhostUserProtocolFeatures,
    /// Sizes in bytes of the regions of guest memory.
    pub regions: Vec<u64>,
    /// How the regions are told.
    pub table: TableMessage,
    /// Ask for a reply to every message if REPLY_ACK is negotiated, so that its errors come back at once.
    pub acknowledge: bool,
    /// Deadline of every message.
    pub timeout: Duration,
}

impl Options {
    /// Everything the driver can use, and 64 MiB of guest memory in one region.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: socket.as_ref().to_path_buf(),
            features: driver_features(),
            required: 1 << VIRTIO_F_VERSION_1,
            protocol: protocol_features(),
            regions: vec![64 << 20],
            table: TableMessage::default(),
            acknowledge: true,
            timeout: Duration::from_secs(30),
        }
    }

    /// Takes virtio features away.
    #[must_use]
    pub fn without(mut self, bits: &[u32]) -> Self {
        for bit in bits {
            self.features &= !(1 << bit);
        }
        self
    }

    /// Takes protocol features away.
    #[must_use]
    pub fn without_protocol(mut self, features: VhostUserProtocolFeatures) -> Self {
        self.protocol.remove(features);
        self
    }

    /// Sets the sizes of the memory regions.
    #[must_use]
    pub fn regions(mut self, sizes: &[u64]) -> Self {
        self.regions = sizes.to_vec();
        self
    }
}
