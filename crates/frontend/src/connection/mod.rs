//! A session with a back end: negotiation, memory, rings, configuration.
//!
//! Messages go out in the order in which QEMU sends them. Each has a deadline: a back end that does not answer loses
//! its connection and the caller gets [`Error::NoReply`].

mod rings;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};

use crate::channel::BackendChannel;
use crate::config::{BlkConfig, CONFIG_SIZE};
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::options::{Options, TableMessage};
use crate::watchdog::Watchdog;
use crate::wire::Wire;

/// A negotiated session. Dropping it hangs up.
pub struct Connection {
    frontend: Frontend,
    stream: UnixStream,
    watchdog: Watchdog,
    options: Options,
    memory: Arc<Memory>,
    offered: u64,
    features: u64,
    protocol_offered: VhostUserProtocolFeatures,
    protocol: VhostUserProtocolFeatures,
    queues: u64,
    channel: Option<BackendChannel>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.options.socket)
            .field("features", &format_args!("{:#x}", self.features))
            .field("protocol", &self.protocol)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, negotiates and hands over new guest memory. Rings are started one by one.
    pub fn open(options: &Options) -> Result<Self> {
        let memory = Memory::new(&options.regions)?;
        Self::open_with(options, memory)
    }

    /// The same with memory that exists already: how a VMM reconnects.
    pub fn open_with(options: &Options, memory: Arc<Memory>) -> Result<Self> {
        let mut connection = Self::connect(options, memory)?;
        connection.negotiate()?;
        connection.set_memory_table()?;
        Ok(connection)
    }

    /// Connects and says nothing yet.
    pub fn connect(options: &Options, memory: Arc<Memory>) -> Result<Self> {
        let stream = UnixStream::connect(&options.socket).map_err(|source| Error::Connect {
            path: options.socket.clone(),
            source,
        })?;
        Self::from_stream(stream, options, memory)
    }

    /// Speaks over a connected socket and says nothing yet.
    pub fn from_stream(stream: UnixStream, options: &Options, memory: Arc<Memory>) -> Result<Self> {
        let duplicate = || stream.try_clone().map_err(Error::io("dup of the socket"));
        let watchdog =
            Watchdog::new(duplicate()?).map_err(Error::io("start of the watchdog thread"))?;
        Ok(Self {
            // As many queues as the protocol allows: the back end's own limit is what tests are about.
            frontend: Frontend::from_stream(duplicate()?, 256),
            stream,
            watchdog,
            options: options.clone(),
            memory,
            offered: 0,
            features: 0,
            protocol_offered: VhostUserProtocolFeatures::empty(),
            protocol: VhostUserProtocolFeatures::empty(),
            queues: 1,
            channel: None,
        })
    }

    /// Sends one message of the `vhost` crate under the deadline. `name` is for the error.
    pub fn message<T>(
        &mut self,
        name: &'static str,
        send: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T> {
        let frontend = &mut self.frontend;
        let (result, late) = self.watchdog.run(self.options.timeout, || send(frontend));
        if late {
            return Err(Error::NoReply {
                message: name,
                after: self.options.timeout,
            });
        }
        result.map_err(|source| Error::Message {
            message: name,
            source,
        })
    }

    /// Features and protocol features, queue count, back-end channel, owner.
    pub fn negotiate(&mut self) -> Result<()> {
        self.offered = self.message("GET_FEATURES", |f| f.get_features())?;
        let missing = self.options.required & !self.offered;
        if missing != 0 {
            let what = format!("required features {missing:#x}");
            return Err(Error::NotOffered {
                what,
                offered: self.offered,
            });
        }
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if self.offered & protocol_bit != 0 {
            self.protocol_offered =
                self.message("GET_PROTOCOL_FEATURES", |f| f.get_protocol_features())?;
            let protocol = self.protocol_offered & self.options.protocol;
            self.message("SET_PROTOCOL_FEATURES", |f| {
                f.set_protocol_features(protocol)
            })?;
            self.protocol = protocol;
            self.acknowledge(self.options.acknowledge);
        }
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            self.queues = self.message("GET_QUEUE_NUM", |f| f.get_queue_num())?;
        }
        if self
            .protocol
            .contains(VhostUserProtocolFeatures::BACKEND_REQ)
        {
            let (channel, theirs) = BackendChannel::pair()?;
            self.message("SET_BACKEND_REQ_FD", |f| f.set_backend_request_fd(&theirs))?;
            self.channel = Some(channel);
        }
        self.message("SET_OWNER", |f| f.set_owner())?;
        let features = self.offered & (self.options.features | protocol_bit);
        self.message("SET_FEATURES", |f| f.set_features(features))?;
        self.features = features;
        Ok(())
    }

    /// Asks for a reply to every message from now on, or no more. Without REPLY_ACK nothing changes.
    pub fn acknowledge(&mut self, on: bool) {
        let on = on && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        self.frontend.set_hdr_flags(if on {
            VhostUserHeaderFlag::NEED_REPLY
        } else {
            VhostUserHeaderFlag::empty()
        });
    }

    /// Tells the back end of all memory regions.
    pub fn set_memory_table(&mut self) -> Result<()> {
        let table = self.memory.table()?;
        match self.options.table {
            TableMessage::SetMemTable => {
                self.message("SET_MEM_TABLE", |f| f.set_mem_table(&table).map(drop))
            }
            TableMessage::AddMemReg => table.iter().try_for_each(|region| {
                self.message("ADD_MEM_REG", |f| f.add_mem_region(region).map(drop))
            }),
        }
    }

    /// Takes one region away from the back end (REM_MEM_REG).
    pub fn remove_region(&mut self, index: usize) -> Result<()> {
        let table = self.memory.table()?;
        let region = table
            .get(index)
            .ok_or_else(|| Error::Memory(format!("there is no region {index}")))?;
        self.message("REM_MEM_REG", |f| f.remove_mem_region(region))
    }

    /// Gives one region to the back end (ADD_MEM_REG).
    pub fn add_region(&mut self, index: usize) -> Result<()> {
        let table = self.memory.table()?;
        let region = table
            .get(index)
            .ok_or_else(|| Error::Memory(format!("there is no region {index}")))?;
        self.message("ADD_MEM_REG", |f| f.add_mem_region(region).map(drop))
    }

    /// Virtio features that the back end offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Virtio features that were agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Says whether a virtio feature (by bit number) was agreed on.
    #[must_use]
    pub fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// Protocol features that the back end offers.
    #[must_use]
    pub fn protocol_offered(&self) -> VhostUserProtocolFeatures {
        self.protocol_offered
    }

    /// Protocol features that were agreed on.
    #[must_use]
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// Number of queues that the back end serves.
    #[must_use]
    pub fn queue_count(&self) -> u64 {
        self.queues
    }

    /// The guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The back-end channel, if negotiated.
    #[must_use]
    pub fn channel(&self) -> Option<&BackendChannel> {
        self.channel.as_ref()
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The same socket without any checks. Replies are read by whoever sends: do not mix a raw message that has a
    /// reply with a typed one before the reply was received.
    pub fn wire(&self) -> Result<Wire> {
        self.stream
            .try_clone()
            .map(Wire::from_stream)
            .map_err(Error::io("dup of the socket"))
    }

    /// Process id of the back end, as the kernel noted it when the socket began to listen.
    pub fn server_pid(&self) -> Result<i32> {
        rustix::net::sockopt::socket_peercred(&self.stream)
            .map(|peer| peer.pid.as_raw_nonzero().get())
            .map_err(Error::errno("SO_PEERCRED"))
    }

    /// Returns when the back end has worked off every message sent before.
    pub fn barrier(&mut self) -> Result<()> {
        self.message("GET_FEATURES", |f| f.get_features()).map(drop)
    }

    /// The configuration space.
    pub fn config(&mut self) -> Result<BlkConfig> {
        self.get_config(0, CONFIG_SIZE)
            .map(|bytes| BlkConfig::parse(&bytes))
    }

    /// Any part of the configuration space.
    pub fn get_config(&mut self, offset: u32, size: usize) -> Result<Vec<u8>> {
        let space = vec![0; size];
        self.message("GET_CONFIG", |f| {
            f.get_config(offset, size as u32, VhostUserConfigFlags::empty(), &space)
        })
        .map(|(_, bytes)| bytes)
    }

    /// Writes into the configuration space, as the guest's driver does.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        self.message("SET_CONFIG", |f| {
            f.set_config(offset, VhostUserConfigFlags::WRITABLE, bytes)
        })
    }

    /// RESET_DEVICE. The drivers must be [reset](crate::Driver::reset) and their rings started anew.
    pub fn reset_device(&mut self) -> Result<()> {
        self.message("RESET_DEVICE", |f| f.reset_device())
    }

    /// The socket's fd.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// The socket's fd as a number.
    #[must_use]
    pub fn raw_fd(&self) -> i32 {
        self.stream.as_raw_fd()
    }
}
