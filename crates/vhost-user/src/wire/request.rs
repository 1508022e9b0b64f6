//! A message, read: its numbers and descriptors as one value. Nothing here looks at the session.

use super::{WireError, recv::Message, table};
use outboard_virtio::memory::RegionInfo;
use std::{fs::File, os::fd::OwnedFd};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

/// A ring's descriptors are told apart by the request that brings them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VringFd {
    /// the driver has made buffers available
    Kick,
    /// the device has used buffers
    Call,
    /// the ring is broken
    Err,
}

/// A request of the front end that may be legal.
#[derive(Debug)]
#[allow(missing_docs)] // the specification's own names and fields
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionInfo, File)>),
    SetVringNum {
        index: u32,
        num: u32,
    },
    SetVringAddr(VringAddr),
    SetVringBase {
        index: u32,
        num: u32,
    },
    GetVringBase {
        index: u32,
    },
    /// `fd`: `None` is the invalid-FD flag
    SetVringFd {
        which: VringFd,
        index: u32,
        fd: Option<OwnedFd>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: u32,
        num: u32,
    },
    SetBackendReqFd(OwnedFd),
    GetConfig {
        offset: u32,
        size: u32,
        flags: u32,
    },
    SetConfig {
        offset: u32,
        data: Vec<u8>,
    },
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionInfo, File),
    RemMemReg(RegionInfo),
}

/// SET_VRING_ADDR, in the front end's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the specification's own names
pub struct VringAddr {
    pub index: u32,
    pub flags: u32,
    pub descriptor: u64,
    pub used: u64,
    pub available: u64,
}

/// The bytes of a plain structure; the length was checked with the header.
fn plain<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    let target = value.as_mut_slice();
    if target.len() != bytes.len() {
        return None;
    }
    target.copy_from_slice(bytes);
    Some(value)
}

fn region(r: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        guest_addr: r.guest_phys_addr,
        size: r.memory_size,
        user_addr: r.user_addr,
        file_offset: r.mmap_offset,
    }
}

impl Request {
    /// Reads a message. An error is a message that contradicts itself, or carries the wrong number of descriptors.
    /// A request that is never legal here has been refused before.
    pub fn read(message: Message) -> Result<Request, WireError> {
        let Message {
            code, body, fds, ..
        } = message;
        let bad = |why: &str| WireError::Body {
            name: table::name(code),
            why: why.to_owned(),
        };
        let short = || bad("the body is too short");
        let Ok(request) = FrontendReq::try_from(code) else {
            return Err(bad("not known"));
        };
        let least = table::rule(code).fds.0;
        let found = fds.len();
        let count = |expected: usize| WireError::Descriptors {
            name: table::name(code),
            found,
            expected: expected.to_string(),
        };
        if found < least {
            return Err(count(least));
        }
        let mut fds = fds.into_iter();
        use FrontendReq as R;
        Ok(match request {
            R::GET_FEATURES => Request::GetFeatures,
            R::SET_OWNER => Request::SetOwner,
            R::RESET_OWNER => Request::ResetOwner,
            R::GET_PROTOCOL_FEATURES => Request::GetProtocolFeatures,
            R::GET_QUEUE_NUM => Request::GetQueueNum,
            R::RESET_DEVICE => Request::ResetDevice,
            R::GET_MAX_MEM_SLOTS => Request::GetMaxMemSlots,
            R::SET_FEATURES | R::SET_PROTOCOL_FEATURES => {
                let VhostUserU64 { value } = plain(&body).ok_or_else(short)?;
                match request {
                    R::SET_FEATURES => Request::SetFeatures(value),
                    _ => Request::SetProtocolFeatures(value),
                }
            }
            R::SET_VRING_NUM | R::SET_VRING_BASE | R::GET_VRING_BASE | R::SET_VRING_ENABLE => {
                let VhostUserVringState { index, num } = plain(&body).ok_or_else(short)?;
                match request {
                    R::SET_VRING_NUM => Request::SetVringNum { index, num },
                    R::SET_VRING_BASE => Request::SetVringBase { index, num },
                    R::SET_VRING_ENABLE => Request::SetVringEnable { index, num },
                    _ => Request::GetVringBase { index },
                }
            }
            R::SET_VRING_ADDR => {
                let a: VhostUserVringAddr = plain(&body).ok_or_else(short)?;
                Request::SetVringAddr(VringAddr {
                    index: a.index,
                    flags: a.flags,
                    descriptor: a.descriptor,
                    used: a.used,
                    available: a.available,
                })
            }
            R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => {
                let VhostUserU64 { value } = plain(&body).ok_or_else(short)?;
                let which = match request {
                    R::SET_VRING_KICK => VringFd::Kick,
                    R::SET_VRING_CALL => VringFd::Call,
                    _ => VringFd::Err,
                };
                let nofd = value & 0x100 != 0;
                if value & !0x1ff != 0 {
                    return Err(bad(
                        "bits above the ring's index and the invalid-FD flag are set",
                    ));
                }
                if nofd == (found == 1) {
                    return Err(count(usize::from(!nofd)));
                }
                let index = u32::try_from(value & 0xff).map_err(|_| short())?;
                Request::SetVringFd {
                    which,
                    index,
                    fd: fds.next(),
                }
            }
            R::SET_BACKEND_REQ_FD => Request::SetBackendReqFd(fds.next().ok_or_else(|| count(1))?),
            R::SET_MEM_TABLE => {
                let (head, rest) = body
                    .split_at_checked(size_of::<VhostUserMemory>())
                    .ok_or_else(short)?;
                let head: VhostUserMemory = plain(head).ok_or_else(short)?;
                let regions: Vec<VhostUserMemoryRegion> = rest
                    .chunks_exact(size_of::<VhostUserMemoryRegion>())
                    .filter_map(plain)
                    .collect();
                if u32::try_from(regions.len()) != Ok(head.num_regions) {
                    return Err(bad("the number of regions does not fit the length"));
                }
                if found != regions.len() {
                    return Err(count(regions.len()));
                }
                Request::SetMemTable(
                    regions
                        .iter()
                        .map(region)
                        .zip(fds.map(File::from))
                        .collect(),
                )
            }
            R::ADD_MEM_REG | R::REM_MEM_REG => {
                let one: VhostUserSingleMemoryRegion = plain(&body).ok_or_else(short)?;
                match request {
                    R::ADD_MEM_REG => {
                        Request::AddMemReg(region(&one), fds.next().ok_or_else(|| count(1))?.into())
                    }
                    _ => Request::RemMemReg(region(&one)),
                }
            }
            R::GET_CONFIG | R::SET_CONFIG => {
                let (head, data) = body
                    .split_at_checked(size_of::<VhostUserConfig>())
                    .ok_or_else(short)?;
                let VhostUserConfig {
                    offset,
                    size,
                    flags,
                } = plain(head).ok_or_else(short)?;
                if u32::try_from(data.len()) != Ok(size) {
                    return Err(bad("the size of the access does not fit the length"));
                }
                match request {
                    R::GET_CONFIG => Request::GetConfig {
                        offset,
                        size,
                        flags,
                    },
                    _ => Request::SetConfig {
                        offset,
                        data: data.to_vec(),
                    },
                }
            }
            _ => return Err(bad("never legal here")),
        })
    }
}
