//! The block device (virtio 1.3, 5.2): a disk behind request queues.
//!
//! [`Blk`] is what the session sees: features, configuration space, one handler per queue. What a request means is in
//! [`request`], what becomes of it in `queue`, which writes are stable in [`cache`].

pub mod cache;
pub mod config;
mod queue;
pub mod request;
pub mod status;

use cache::Cache;
use outboard_storage::disk::{Disk, DiskQueue};
use outboard_virtio::device::{ConfigError, Device, DeviceError, QueueHandler, QueueSetup};
use queue::BlkQueue;
use request::{ID_BYTES, Rules, SECTOR};
use std::sync::{Arc, Mutex, PoisonError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// What a block device is made with, besides its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkOptions {
    /// Request queues, at least one.
    pub num_queues: u16,
    /// Descriptors of a queue at most: a power of two from 2 to 32768.
    pub queue_size: u16,
    /// The device ID string: at most 20 bytes of ASCII, without NUL.
    pub serial: String,
    /// Writeback cache at the start (VIRTIO_BLK_F_CONFIG_WCE lets the guest change it).
    pub writeback: bool,
}

type Listener = Arc<dyn Fn() + Send + Sync>;

/// A virtio block device. Everything about the disk itself is asked from the disk when it is needed, so that a resize shows
/// at once.
pub struct Blk {
    disk: Arc<dyn Disk>,
    options: BlkOptions,
    id: [u8; ID_BYTES],
    cache: Arc<Cache>,
    listener: Mutex<Option<Listener>>,
}

impl Blk {
    /// A device that serves `disk`.
    ///
    /// # Errors
    /// An option out of its range, or a disk whose geometry virtio cannot express; one line for the operator.
    pub fn new(disk: Arc<dyn Disk>, options: BlkOptions) -> Result<Blk, DeviceError> {
        let BlkOptions {
            num_queues,
            queue_size,
            ref serial,
            writeback,
        } = options;
        if num_queues == 0 {
            return Err(DeviceError(
                "num-queues is 0: a block device needs at least one queue".into(),
            ));
        }
        if !queue_size.is_power_of_two() || queue_size < 2 {
            return Err(DeviceError(format!(
                "queue-size is {queue_size}: give a power of two from 2 to 32768"
            )));
        }
        if serial.len() > ID_BYTES || !serial.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(DeviceError(format!(
                "serial is {serial:?}: give at most {ID_BYTES} printable ASCII characters"
            )));
        }
        let block = disk.limits().logical_block;
        if !block.is_power_of_two() || u64::from(block) < SECTOR {
            return Err(DeviceError(format!(
                "{} has logical blocks of {block} bytes: virtio-blk needs a power of two from {SECTOR}",
                disk.name()
            )));
        }
        let size = disk.size();
        if !size.is_multiple_of(u64::from(block)) {
            return Err(DeviceError(format!(
                "{} has {size} bytes, not a multiple of its block size of {block}",
                disk.name()
            )));
        }
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let cache = Arc::new(Cache::new(writeback));
        Ok(Blk {
            disk,
            options,
            id,
            cache,
            listener: Mutex::new(None),
        })
    }

    /// Tells the front end that the configuration space changed: to be called after the disk was resized.
    pub fn config_changed(&self) {
        let listener = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Under no lock: a listener may unsubscribe.
        if let Some(listener) = listener {
            listener();
        }
    }

    fn fields(&self) -> config::Fields {
        config::Fields {
            size: self.disk.size(),
            limits: self.disk.limits(),
            queue_size: self.options.queue_size,
            num_queues: self.options.num_queues,
            writeback: !self.cache.is_write_through(),
            read_only: self.disk.is_read_only(),
        }
    }

    /// The handler of a queue that does its I/O through `io`.
    fn handler(&self, features: u64, io: Box<dyn DiskQueue>) -> BlkQueue {
        let fields = self.fields();
        let negotiated = |feature, sectors: u32| {
            if features & bit(feature) == 0 {
                0
            } else {
                u64::from(sectors) * SECTOR
            }
        };
        let rules = Rules {
            block: fields.limits.logical_block,
            read_only: fields.read_only,
            max_discard: negotiated(VIRTIO_BLK_F_DISCARD, fields.max_discard_sectors()),
            max_write_zeroes: negotiated(
                VIRTIO_BLK_F_WRITE_ZEROES,
                fields.max_write_zeroes_sectors(),
            ),
            max_segments: config::MAX_SEGMENTS,
        };
        BlkQueue::new(
            Arc::clone(&self.disk),
            io,
            Arc::clone(&self.cache),
            rules,
            self.id,
        )
    }

    /// The bytes `offset..offset + len` of the space as positions in an image.
    fn range(offset: u32, len: usize) -> Result<std::ops::Range<usize>, ConfigError> {
        let start = offset as usize;
        match start.checked_add(len) {
            Some(end) if end <= config::SIZE => Ok(start..end),
            _ => Err(ConfigError(format!(
                "{len} bytes at offset {offset} are outside the configuration space of {} bytes",
                config::SIZE
            ))),
        }
    }
}

impl Device for Blk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let fields = self.fields();
        let mut features = bit(VIRTIO_BLK_F_SEG_MAX)
            | bit(VIRTIO_BLK_F_BLK_SIZE)
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_TOPOLOGY)
            | bit(VIRTIO_BLK_F_CONFIG_WCE)
            | bit(VIRTIO_BLK_F_MQ);
        if fields.read_only {
            features |= bit(VIRTIO_BLK_F_RO);
        }
        if fields.max_discard_sectors() != 0 {
            features |= bit(VIRTIO_BLK_F_DISCARD);
        }
        if fields.max_write_zeroes_sectors() != 0 {
            features |= bit(VIRTIO_BLK_F_WRITE_ZEROES);
        }
        features
    }

    fn max_queues(&self) -> u16 {
        self.options.num_queues
    }

    fn max_queue_size(&self) -> u16 {
        self.options.queue_size
    }

    fn ack_features(&self, features: u64) {
        self.cache.negotiated(features);
    }

    fn config_size(&self) -> u32 {
        config::SIZE as u32
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), ConfigError> {
        let range = Blk::range(offset, data.len())?;
        if let Some(bytes) = self.fields().image().get(range) {
            data.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Only `writeback` can be written. A write over more than that byte is taken if it changes nothing else, since a front
    /// end may write whole structures.
    fn write_config(&self, offset: u32, data: &[u8]) -> Result<(), ConfigError> {
        let range = Blk::range(offset, data.len())?;
        let image = self.fields().image();
        let mut chosen = None;
        for (at, (new, old)) in range
            .clone()
            .zip(data.iter().zip(image.get(range).unwrap_or_default()))
        {
            match (at, *new) {
                (config::WRITEBACK, 0 | 1) => chosen = Some(*new == 1),
                (config::WRITEBACK, other) => {
                    return Err(ConfigError(format!(
                        "writeback is {other}: it can be 0 or 1"
                    )));
                }
                (_, new) if new == *old => {}
                _ => {
                    return Err(ConfigError(format!(
                        "byte {at} of the configuration space is read-only"
                    )));
                }
            }
        }
        match chosen {
            Some(writeback) if !self.cache.choose(writeback) => Err(ConfigError(
                "writeback is read-only: VIRTIO_BLK_F_CONFIG_WCE was not negotiated".into(),
            )),
            _ => Ok(()),
        }
    }

    fn reset(&self) {
        self.cache.reset();
    }

    fn on_config_change(&self, listener: Option<Listener>) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = listener;
    }

    fn open_queue(&self, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, DeviceError> {
        let QueueSetup {
            index,
            features,
            port,
        } = setup;
        if index >= self.options.num_queues {
            return Err(DeviceError(format!(
                "there is no queue {index}: the device has {}",
                self.options.num_queues
            )));
        }
        let io = self.disk.open_queue(port).map_err(|cause| {
            DeviceError(format!(
                "queue {index} of {} cannot be opened: {cause}",
                self.disk.name()
            ))
        })?;
        Ok(Box::new(self.handler(features, io)))
    }
}

fn bit(feature: u32) -> u64 {
    1 << feature
}

#[cfg(test)]
mod harness;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
