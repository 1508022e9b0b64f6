//! The device's configuration space.

use super::{
    Outcome, Session,
    end::{Fault, refuse},
};
use vhost::vhost_user::message::{VhostUserConfig, VhostUserProtocolFeatures as Protocol};
use vm_memory::ByteValued;

impl Session {
    /// Answers with exactly the bytes that were asked for. A range that is not in the configuration space is answered with
    /// a head that announces no bytes: the specification's "zero length of payload", read as the field of that name.
    pub(super) fn get_config(&mut self, offset: u32, size: u32, flags: u32) -> Outcome {
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut head = VhostUserConfig {
            offset,
            size,
            flags,
        };
        if let Err(error) = self.device.read_config(offset, &mut data) {
            self.complain(&format!("GET_CONFIG of {size} bytes at {offset}: {error}"));
            head.size = 0;
            data.clear();
        }
        let mut reply = head.as_slice().to_vec();
        reply.append(&mut data);
        Outcome::Reply(reply)
    }

    /// The flags are not looked at: whether they say "by the driver" or "by a migration", only writable fields change.
    pub(super) fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<Outcome, Fault> {
        match self.device.write_config(offset, data) {
            Ok(()) => Ok(Outcome::Done),
            Err(error) => refuse(error.to_string()),
        }
    }

    /// The device changed its configuration by itself: tells the front end, if it wants to know. Never waits: the front
    /// end may itself be waiting for us.
    pub(super) fn tell_config_change(&mut self) {
        if !self.negotiated.protocol.contains(Protocol::CONFIG) {
            return;
        }
        if let Some(channel) = &mut self.channel {
            channel.config_changed();
            self.flush_channel();
        }
    }

    /// Sends what the channel owes, as far as it fits.
    pub(super) fn flush_channel(&mut self) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        if let Err(error) = channel.flush() {
            self.complain(&format!("the back-end channel is gone: {error}"));
            self.channel = None;
        }
    }
}
