//! A message: is it legal now, what does it do, how is it answered.
//!
//! One policy for everything that goes wrong. A peer that breaks the protocol (framing, lengths, number or kind of
//! descriptors) loses the session: nothing after that can be trusted to mean what it says. A message that is well formed
//! but cannot be obeyed is *refused*: it has no effect, and says so in its acknowledgement if the front end asked for one
//! (REPLY_ACK); if there is no way to say it, the session ends, as the front end must not go on believing that it worked.

use super::{
    Outcome, Owed, Session,
    end::{End, Fault, refuse},
    quiesce::Goal,
};
use crate::{
    channel::Channel,
    wire::{
        recv::Message,
        request::Request,
        send,
        table::{self, When},
    },
};
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

impl Session {
    pub(super) fn handle(&mut self, message: Message) -> Result<(), End> {
        self.counters.messages += 1;
        let owed = Owed {
            code: message.code,
            need_reply: message.need_reply,
        };
        tracing::trace!(device = %self.name, fds = message.fds.len(), "{}", table::name(message.code));
        let outcome = match self.legal(message.code) {
            Ok(()) => match Request::read(message) {
                Ok(request) => self.act(request),
                Err(error) => Err(error.into()),
            },
            Err(fault) => Err(fault),
        };
        self.answer(owed, outcome)
    }

    /// Whether what the request needs has been negotiated.
    fn legal(&self, code: u32) -> Result<(), Fault> {
        match table::rule(code).when {
            When::Always => Ok(()),
            When::Protocol(feature) if self.negotiated.protocol.contains(feature) => Ok(()),
            When::Protocol(feature) => {
                refuse(format!("protocol feature {feature:?} was not negotiated"))
            }
            When::RingEnable if self.negotiated.rings_begin_disabled() => Ok(()),
            When::RingEnable => refuse("VHOST_USER_F_PROTOCOL_FEATURES was not negotiated"),
            When::Never(what) => refuse(format!("belongs to {what}, which is not offered")),
        }
    }

    fn act(&mut self, request: Request) -> Result<Outcome, Fault> {
        match request {
            Request::GetFeatures => Ok(self.get_features()),
            Request::SetFeatures(features) => self.set_features(features),
            Request::SetOwner => {
                // Sent once more by front ends that begin anew on the same connection.
                self.negotiated.owner = true;
                Ok(Outcome::Done)
            }
            Request::ResetOwner => Ok(self.reset(Goal::ResetOwner)),
            Request::SetMemTable(regions) => self.set_mem_table(regions),
            Request::SetVringNum { index, num } => self.set_vring_num(index, num),
            Request::SetVringAddr(addr) => self.set_vring_addr(addr),
            Request::SetVringBase { index, num } => self.set_vring_base(index, num),
            Request::GetVringBase { index } => self.get_vring_base(index),
            Request::SetVringFd { which, index, fd } => self.set_vring_fd(which, index, fd),
            Request::GetProtocolFeatures => {
                Ok(super::features::number(super::features::protocol().bits()))
            }
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(bits),
            Request::GetQueueNum => Ok(self.get_queue_num()),
            Request::SetVringEnable { index, num } => self.set_vring_enable(index, num),
            Request::SetBackendReqFd(fd) => self.set_backend_req_fd(fd),
            Request::GetConfig {
                offset,
                size,
                flags,
            } => Ok(self.get_config(offset, size, flags)),
            Request::SetConfig { offset, data } => self.set_config(offset, &data),
            Request::ResetDevice => Ok(self.reset(Goal::ResetDevice)),
            Request::GetMaxMemSlots => Ok(self.get_max_mem_slots()),
            Request::AddMemReg(region, file) => self.add_mem_reg(region, file),
            Request::RemMemReg(region) => self.rem_mem_reg(&region),
        }
    }

    fn set_backend_req_fd(&mut self, fd: OwnedFd) -> Result<Outcome, Fault> {
        match Channel::adopt(fd, &self.socket) {
            Ok(channel) => {
                self.channel = Some(channel);
                Ok(Outcome::Done)
            }
            Err(error) => Err(End::Descriptor {
                name: "SET_BACKEND_REQ_FD".into(),
                why: error.to_string(),
            }
            .into()),
        }
    }

    /// Answers a message, or notes that its answer is still owed.
    pub(super) fn answer(
        &mut self,
        owed: Owed,
        outcome: Result<Outcome, Fault>,
    ) -> Result<(), End> {
        let Owed { code, need_reply } = owed;
        // Asked after the message has had its effect: SET_PROTOCOL_FEATURES may be what turns it on.
        let ack = need_reply
            && self.negotiated.protocol.contains(Protocol::REPLY_ACK)
            && !table::rule(code).answers;
        match outcome {
            Ok(Outcome::Done) if ack => self.send(&send::reply(code, &0_u64.to_ne_bytes())),
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Reply(body)) => self.send(&send::reply(code, &body)),
            Ok(Outcome::Later(goal)) => {
                self.pending = Some((owed, goal));
                Ok(())
            }
            Err(Fault::Refused(why)) if ack => {
                self.complain(&format!("{} refused: {why}", table::name(code)));
                self.send(&send::reply(code, &1_u64.to_ne_bytes()))
            }
            Err(Fault::Refused(why)) => Err(End::Refused {
                name: table::name(code),
                why,
            }),
            Err(Fault::Fatal(end)) => Err(end),
        }
    }
}
