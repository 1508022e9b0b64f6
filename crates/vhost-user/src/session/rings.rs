//! Ring messages.
//!
//! A ring starts when its kick is given (SET_VRING_KICK) and its size, its addresses and memory are known; if they come
//! later, when it is enabled or the memory comes. A ring that is set up only in part simply does not start. Whether requests are taken is a
//! second question: with VHOST_USER_F_PROTOCOL_FEATURES only while it is enabled.
//!
//! Stopping takes as long as the I/O in flight, so whatever waits for it is answered later (see `super::quiesce`).

use super::{
    Outcome, Session,
    end::{End, Fault, refuse},
    quiesce::Goal,
    ring::{Ring, Surroundings},
    state::RingAddresses,
};
use crate::wire::request::{VringAddr, VringFd};
use outboard_notifier::PeerFd;
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::VhostUserVringState;
use vm_memory::ByteValued;

impl Session {
    pub(super) fn any_running(&self) -> bool {
        self.rings.iter().any(Ring::is_running)
    }

    fn ring(&mut self, index: u32) -> Result<(usize, &mut Ring), Fault> {
        let most = self.rings.len();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        match self.rings.get_mut(at) {
            Some(ring) => Ok((at, ring)),
            None => refuse(format!("ring {index} of {most}")),
        }
    }

    pub(super) fn set_vring_num(&mut self, index: u32, num: u32) -> Result<Outcome, Fault> {
        let most = self.device.max_queue_size();
        let (_, ring) = self.ring(index)?;
        match u16::try_from(num) {
            Ok(size) if size.is_power_of_two() && size <= most => {
                ring.set_size(size).map_err(Fault::Refused)?;
                Ok(Outcome::Done)
            }
            _ => refuse(format!(
                "a ring of {num} descriptors; it must be a power of two, at most {most}"
            )),
        }
    }

    /// Alignment: virtio 1.3, 2.7.
    pub(super) fn set_vring_addr(&mut self, addr: VringAddr) -> Result<Outcome, Fault> {
        let VringAddr {
            index,
            flags,
            descriptor,
            used,
            available,
        } = addr;
        let (_, ring) = self.ring(index)?;
        if flags != 0 {
            return refuse(format!("flags {flags:#x}: logging was not offered"));
        }
        if descriptor % 16 != 0 || available % 2 != 0 || used % 4 != 0 {
            return refuse(format!(
                "misaligned ring (descriptor table {descriptor:#x}, available {available:#x}, used {used:#x})"
            ));
        }
        ring.set_addresses(RingAddresses {
            descriptor,
            available,
            used,
        })
        .map_err(Fault::Refused)?;
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_base(&mut self, index: u32, num: u32) -> Result<Outcome, Fault> {
        let (_, ring) = self.ring(index)?;
        match u16::try_from(num) {
            Ok(base) => ring.set_base(base).map_err(Fault::Refused)?,
            Err(_) => return refuse(format!("base {num:#x} is no 16-bit index")),
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_enable(&mut self, index: u32, num: u32) -> Result<Outcome, Fault> {
        let (at, ring) = self.ring(index)?;
        match num {
            0 => ring.set_enabled(false),
            1 => {
                ring.set_enabled(true);
                self.try_start(at)?;
            }
            _ => return refuse(format!("neither on (1) nor off (0): {num}")),
        }
        Ok(Outcome::Done)
    }

    /// SET_VRING_KICK, _CALL, _ERR.
    pub(super) fn set_vring_fd(
        &mut self,
        which: VringFd,
        index: u32,
        fd: Option<OwnedFd>,
    ) -> Result<Outcome, Fault> {
        let name = || format!("SET_VRING_{which:?} of ring {index}").to_uppercase();
        let fd = match fd.map(PeerFd::new).transpose() {
            Ok(fd) => fd,
            Err(wrong) => {
                let why = format!(
                    "the descriptor must be an eventfd or a pipe, not {}",
                    wrong.found
                );
                return Err(End::Descriptor { name: name(), why }.into());
            }
        };
        let (at, ring) = self.ring(index)?;
        match which {
            VringFd::Kick => {
                ring.set_kick(fd);
                self.try_start(at)?;
            }
            VringFd::Call => ring.set_call(fd).map_err(Fault::Refused)?,
            VringFd::Err => ring.set_err(fd).map_err(Fault::Refused)?,
        }
        Ok(Outcome::Done)
    }

    /// Answered when the ring is drained; one that does not run, at once.
    pub(super) fn get_vring_base(&mut self, index: u32) -> Result<Outcome, Fault> {
        let (at, _) = self.ring(index)?;
        self.drain(at);
        Ok(Outcome::Later(Goal::Base(at)))
    }

    /// The reply to GET_VRING_BASE for a ring that is stopped.
    pub(super) fn vring_base(&self, at: usize) -> Outcome {
        let (index, num) = self
            .rings
            .get(at)
            .map_or((0, 0), |r| (r.index(), r.settings().base));
        Outcome::Reply(
            VhostUserVringState::new(u32::from(index), u32::from(num))
                .as_slice()
                .to_vec(),
        )
    }

    /// Starts the ring if nothing is missing.
    pub(super) fn try_start(&mut self, at: usize) -> Result<(), Fault> {
        let Some(ring) = self.rings.get_mut(at) else {
            return Ok(());
        };
        let around = Surroundings {
            tenure: &self.tenure,
            name: &self.name,
            pool: &self.pool,
            device: &self.device,
            memory: &self.memory,
            features: self.negotiated.virtio(),
            always_enabled: !self.negotiated.rings_begin_disabled(),
            on_broken: &self.on_broken,
        };
        match ring.try_start(&around) {
            Ok(started) => {
                self.counters.starts += u64::from(started);
                Ok(())
            }
            Err(why) => refuse(format!("ring {} cannot start: {why}", ring.index())),
        }
    }
}
