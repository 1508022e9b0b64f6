//! The memory table.

use super::{
    Outcome, Session,
    end::{End, Fault, refuse},
};
use outboard_virtio::memory::{MemoryError, MemoryMap, RegionInfo};
use std::{fs::File, sync::Arc};

impl Session {
    pub(super) fn set_mem_table(
        &mut self,
        regions: Vec<(RegionInfo, File)>,
    ) -> Result<Outcome, Fault> {
        self.replace_memory(MemoryMap::from_files(regions))
    }

    pub(super) fn add_mem_reg(&mut self, region: RegionInfo, file: File) -> Result<Outcome, Fault> {
        self.replace_memory(self.memory.with_region(region, file))
    }

    pub(super) fn rem_mem_reg(&mut self, region: &RegionInfo) -> Result<Outcome, Fault> {
        self.replace_memory(self.memory.without_region(region))
    }

    /// A new map, for the running rings first: when the message is answered no ring walks the old map any more. Requests
    /// in flight keep the old one mapped until they are done.
    ///
    /// A ring that does not fit the new map leaves the rings divided between two, so the session ends.
    fn replace_memory(&mut self, map: Result<MemoryMap, MemoryError>) -> Result<Outcome, Fault> {
        let map = match map {
            Ok(map) => Arc::new(map),
            Err(error) => return refuse(error.to_string()),
        };
        let features = self.negotiated.virtio();
        for ring in &mut self.rings {
            ring.follow_memory(&map, features)
                .map_err(|why| End::RingLost {
                    index: ring.index(),
                    why,
                })?;
        }
        self.memory = map;
        // A front end may give the kick before the memory, and the memory region by region: a ring that lies nowhere waits
        // for the next.
        for index in 0..self.rings.len() {
            if self.rings.get(index).is_some_and(|r| r.fits(&self.memory)) {
                self.try_start(index)?;
            }
        }
        Ok(Outcome::Done)
    }
}
