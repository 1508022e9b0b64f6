//! One suite for every disk: what the contract in `disk` promises, asked of each engine in each mode.
//!
//! A new engine adds a line to `subjects!`; a new promise adds a case.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod cases;
mod random;
#[path = "../support/mod.rs"]
mod support;

use outboard_storage::{
    disk::Disk,
    uri::{CacheMode, OpenOptions, open},
};
use std::{any::Any, path::Path, sync::Arc};
use support::loopdev::LoopDevice;

/// A disk under test, and what must outlive it. It starts zeroed.
pub struct Subject {
    /// Open for writing.
    pub disk: Arc<dyn Disk>,
    /// Opens the same disk read-only; the first one must be gone. `None`: its content does not outlive it.
    pub reopen: Option<Box<dyn Fn() -> Arc<dyn Disk>>>,
    _keep: Vec<Box<dyn Any>>,
}

fn memory(uri: &str, block: u32, size: u64) -> Option<Subject> {
    let options = OpenOptions {
        block_size: Some(block),
        seed: 7,
        ..Default::default()
    };
    let disk = open(&format!("{uri}:{size}"), &options).unwrap();
    Some(Subject {
        disk,
        reopen: None,
        _keep: Vec::new(),
    })
}

/// An image in `dir`, opened as `prefix` + path.
fn file(dir: &Path, prefix: &str, cache: CacheMode, size: u64) -> Option<Subject> {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let path = dir.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    subject(
        format!("{prefix}{}", path.display()),
        cache,
        vec![Box::new(dir)],
    )
}

fn subject(uri: String, cache: CacheMode, keep: Vec<Box<dyn Any>>) -> Option<Subject> {
    let options = OpenOptions {
        cache,
        seed: 7,
        ..Default::default()
    };
    let disk = match open(&uri, &options) {
        Ok(disk) => disk,
        Err(e) if e.to_string().contains("without direct I/O") => {
            eprintln!("SKIP(direct): {e}");
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    let read_only = OpenOptions {
        read_only: true,
        ..options
    };
    Some(Subject {
        disk,
        reopen: Some(Box::new(move || open(&uri, &read_only).unwrap())),
        _keep: keep,
    })
}

fn tmp() -> std::path::PathBuf {
    std::env::temp_dir()
}

/// A filesystem in memory, which cannot zero ranges.
fn shm(cache: CacheMode, size: u64) -> Option<Subject> {
    let dir = Path::new("/dev/shm");
    if !dir.is_dir() {
        eprintln!("SKIP(shm): no /dev/shm");
        return None;
    }
    file(dir, "file:", cache, size)
}

fn device(cache: CacheMode, block: u32, size: u64) -> Option<Subject> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    let device = LoopDevice::over(&path, block)?;
    let uri = device.path.display().to_string();
    // The device goes before the directory.
    subject(uri, cache, vec![Box::new(device), Box::new(dir)])
}

/// Makes a module of tests for each subject.
macro_rules! subjects {
    ($($name:ident: $make:expr,)*) => {
        $(mod $name {
            use super::*;
            fn make(size: u64) -> Option<Subject> {
                ($make)(size)
            }
            subjects!(@cases
                random_operations_match_an_oracle, the_ends_of_the_disk, out_of_range_is_an_error,
                misaligned_is_an_error, nothing_to_do_completes, many_in_flight, more_segments_than_the_kernel_takes,
                long_transfers, huge_segments, discard_keeps_neighbours, write_zeroes_read_as_zero,
                flush_and_durable_writes, queues_see_each_other, buffers_come_back_whole, read_only_refuses_changes,
                limits_make_sense,
            );
        })*
    };
    (@cases $($case:ident,)*) => {
        $(#[test]
        fn $case() {
            if let Some(subject) = make(cases::size::$case) {
                cases::$case(subject);
            }
        })*
    };
}

subjects! {
    ram: |size| memory("ram", 512, size),
    ram_4k: |size| memory("ram", 4096, size),
    delayed_ram: |size| memory("delay:10us-3ms:ram", 512, size),
    writeback: |size| file(&tmp(), "", CacheMode::Writeback, size),
    direct: |size| file(&tmp(), "file:", CacheMode::None, size),
    writethrough: |size| file(&tmp(), "file:", CacheMode::Writethrough, size),
    directsync: |size| file(&tmp(), "file:", CacheMode::Directsync, size),
    unsafe_: |size| file(&tmp(), "file:", CacheMode::Unsafe, size),
    tmpfs: |size| shm(CacheMode::Writeback, size),
    tmpfs_direct: |size| shm(CacheMode::None, size),
    delayed_direct: |size| file(&tmp(), "delay:10us-3ms:file:", CacheMode::None, size),
    device: |size| device(CacheMode::Writeback, 512, size),
    device_direct: |size| device(CacheMode::None, 512, size),
    device_direct_4k: |size| device(CacheMode::None, 4096, size),
}

/// `null` keeps no data: only the protocol is asked.
mod null {
    use super::*;
    fn make(size: u64) -> Option<Subject> {
        memory("null", 512, size)
    }
    subjects!(@cases out_of_range_is_an_error, misaligned_is_an_error, nothing_to_do_completes, buffers_come_back_whole, limits_make_sense,);
}
