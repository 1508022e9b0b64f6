//! virtio-blk (virtio 1.3, 5.2).
use outboard_storage::disk::Disk;
use outboard_virtio::device::*;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct BlkOptions { pub num_queues: u16, pub queue_size: u16, /// at most 20 bytes
    pub serial: String, /// writeback cache at the start (VIRTIO_BLK_F_CONFIG_WCE lets the guest change it)
    pub writeback: bool }
pub struct Blk {}
impl Blk {
    pub fn new(disk: Arc<dyn Disk>, options: BlkOptions) -> Result<Blk, DeviceError> { let _ = (disk, options); todo!() }
}
impl Device for Blk {
    fn id(&self) -> u32 { 2 }
    fn features(&self) -> u64 { todo!() }
    fn max_queues(&self) -> u16 { todo!() }
    fn max_queue_size(&self) -> u16 { todo!() }
    fn ack_features(&self, features: u64) { let _ = features; todo!() }
    fn config_size(&self) -> u32 { todo!() }
    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), ConfigError> { let _ = (offset, data); todo!() }
    fn write_config(&self, offset: u32, data: &[u8]) -> Result<(), ConfigError> { let _ = (offset, data); todo!() }
    fn reset(&self) { todo!() }
    fn on_config_change(&self, listener: Option<Arc<dyn Fn() + Send + Sync>>) { let _ = listener; todo!() }
    fn open_queue(&self, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, DeviceError> { let _ = setup; todo!() }
}
