//! Negotiation: what is offered, and what may be acknowledged.

use super::{
    Outcome, Session,
    end::{Fault, refuse},
};
use outboard_virtio::{device::Device, memory};
use vhost::vhost_user::message::{VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// The protocol features of every session.
///
/// Two are left out because a front end acknowledges whatever it is offered without being able to do it: with
/// INBAND_NOTIFICATIONS no ring would ever be signalled, with XEN_MMAP every region would be misread.
pub fn protocol() -> Protocol {
    Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::BACKEND_REQ
        | Protocol::CONFIG
        | Protocol::RESET_DEVICE
        | Protocol::CONFIGURE_MEM_SLOTS
}

/// The features of `device` with the ring's and the transport's.
pub fn virtio(device: &dyn Device) -> u64 {
    device.features()
        | 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// A `u64` as reply.
pub fn number(value: u64) -> Outcome {
    Outcome::Reply(value.to_ne_bytes().to_vec())
}

impl Session {
    pub(super) fn get_features(&self) -> Outcome {
        number(virtio(&*self.device))
    }

    pub(super) fn set_features(&mut self, features: u64) -> Result<Outcome, Fault> {
        let strange = features & !virtio(&*self.device);
        if strange != 0 {
            return refuse(format!("feature bits {strange:#x} were not offered"));
        }
        if self.any_running() {
            // Front ends repeat the message to turn logging on or off; nothing else may change under a running ring.
            if features != self.negotiated.features {
                return refuse("features cannot change while rings run");
            }
            return Ok(Outcome::Done);
        }
        self.negotiated.features = features;
        self.device.ack_features(self.negotiated.virtio());
        Ok(Outcome::Done)
    }

    pub(super) fn set_protocol_features(&mut self, bits: u64) -> Result<Outcome, Fault> {
        let strange = bits & !protocol().bits();
        if strange != 0 {
            return refuse(format!(
                "protocol feature bits {strange:#x} were not offered"
            ));
        }
        self.negotiated.protocol = Protocol::from_bits_truncate(bits);
        Ok(Outcome::Done)
    }

    pub(super) fn get_queue_num(&self) -> Outcome {
        number(u64::from(self.device.max_queues()))
    }

    pub(super) fn get_max_mem_slots(&self) -> Outcome {
        number(u64::try_from(memory::MAX_REGIONS).unwrap_or(u64::MAX))
    }
}
