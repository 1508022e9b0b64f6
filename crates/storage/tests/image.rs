//! What an image file sees of the disk: durability, space, and what happens when somebody else cuts it short.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use outboard_storage::{
    disk::{Disk, Op},
    uri::{CacheMode, OpenOptions, open},
};
use std::{fs::File, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};
use support::{Driver, memory::Memory, pattern};

const MIB: u64 = 1 << 20;

struct Image {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Image {
    fn new(size: u64) -> Image {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        File::create(&path).unwrap().set_len(size).unwrap();
        Image { path, _dir: dir }
    }

    fn open(&self, cache: CacheMode) -> Arc<dyn Disk> {
        let options = OpenOptions {
            cache,
            ..Default::default()
        };
        open(self.path.to_str().unwrap(), &options).unwrap()
    }

    fn set_len(&self, len: u64) {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.set_len(len).unwrap();
    }

    fn space(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().blocks() * 512
    }
}

#[allow(unsafe_code)]
mod cachestat {
    use std::{fs::File, os::fd::AsRawFd, path::Path};

    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cache: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }

    /// Pages of the file that the kernel has still to write; `None` before Linux 6.5.
    pub fn unwritten_pages(path: &Path) -> Option<u64> {
        const CACHESTAT: libc::c_long = 451;
        let file = File::open(path).unwrap();
        let range = [0u64, 0]; // to the end
        let mut counts = Counts::default();
        // SAFETY: the kernel reads two numbers from `range` and writes five to `counts`.
        let result =
            unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), &mut counts, 0) };
        (result == 0).then_some(counts.dirty + counts.writeback)
    }
}

/// Whether this machine shows what is not written back yet (it may write back at any time, so ask more than once).
fn shows_unwritten_pages() -> bool {
    let image = Image::new(MIB);
    let disk = image.open(CacheMode::Writeback);
    let mut driver = Driver::new(&*disk);
    let shown = (0..100).any(|round| {
        driver.write(0, &pattern(round, 65_536));
        cachestat::unwritten_pages(&image.path).is_some_and(|pages| pages > 0)
    });
    if !shown {
        eprintln!("SKIP(cachestat): the kernel does not tell what is dirty");
    }
    shown
}

#[test]
fn durable_writes_and_flushes_leave_nothing_to_write_back() {
    if !shows_unwritten_pages() {
        return;
    }
    let bytes = pattern(1, 65_536);
    for (cache, durable, flush) in [
        (CacheMode::Writeback, true, false),
        (CacheMode::Writeback, false, true),
        (CacheMode::Writethrough, false, false),
    ] {
        let image = Image::new(MIB);
        let disk = image.open(cache);
        let mut driver = Driver::new(&*disk);
        for round in 0..10 {
            driver.write_as(round * 65_536, &bytes, durable);
            if flush {
                driver.run(Op::Flush).unwrap();
            }
            let unwritten = cachestat::unwritten_pages(&image.path);
            assert_eq!(
                unwritten,
                Some(0),
                "{cache} durable={durable} flush={flush}"
            );
        }
    }
}

#[test]
fn space_is_released_when_it_may_be_and_kept_when_not() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let image = Image::new(MIB);
        let disk = image.open(cache);
        assert!(
            disk.limits().max_discard > 0,
            "no hole punching in the temporary directory"
        );
        let mut driver = Driver::new(&*disk);
        let whole = |unmap| Op::WriteZeroes {
            offset: 0,
            len: MIB,
            unmap,
        };
        let full = pattern(2, MIB as usize);
        let fill = |driver: &mut Driver| {
            driver.write(0, &full);
            driver.run(Op::Flush).unwrap();
            assert!(image.space() >= MIB);
        };
        fill(&mut driver);
        driver.run(whole(false)).unwrap();
        assert!(
            image.space() >= MIB,
            "{cache}: zeroes without unmap gave space away"
        );
        driver.run(whole(true)).unwrap();
        assert!(
            image.space() < MIB / 2,
            "{cache}: zeroes with unmap kept the space"
        );
        fill(&mut driver);
        driver
            .run(Op::Discard {
                offset: 0,
                len: MIB,
            })
            .unwrap();
        assert!(image.space() < MIB / 2, "{cache}: a discard kept the space");
    }
}

#[test]
fn reads_behind_the_end_of_an_image_cut_short_give_zeroes() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let image = Image::new(MIB);
        let disk = image.open(cache);
        let mut driver = Driver::new(&*disk);
        let bytes = pattern(3, MIB as usize);
        driver.write(0, &bytes);
        driver.run(Op::Flush).unwrap();
        let end = MIB as usize / 2 + 100;
        image.set_len(end as u64);
        for (skew, offset) in [
            (0, 0),
            (1, 0),
            (0, MIB / 2),
            (1, MIB / 2),
            (0, 3 * MIB / 4),
            (1, 3 * MIB / 4),
        ] {
            let len = (MIB - offset) as usize;
            let memory = Memory::scattered(&[(len / 2, skew), (len / 2, skew)]);
            let buf = memory.buffers();
            driver.run(Op::Read { offset, buf }).unwrap();
            let mut wanted = bytes.clone();
            wanted[end..].fill(0);
            assert!(
                memory.get() == wanted[offset as usize..],
                "{cache} {skew} {offset}"
            );
        }
    }
}

#[test]
fn zeroing_and_discarding_do_not_grow_an_image_cut_short() {
    let image = Image::new(MIB);
    let disk = image.open(CacheMode::Writeback);
    let mut driver = Driver::new(&*disk);
    image.set_len(MIB / 2);
    let (offset, len) = (MIB / 4, MIB / 2);
    for op in [
        Op::Discard { offset, len },
        Op::WriteZeroes {
            offset,
            len,
            unmap: true,
        },
        Op::WriteZeroes {
            offset,
            len,
            unmap: false,
        },
    ] {
        driver.run(op).unwrap();
        assert_eq!(std::fs::metadata(&image.path).unwrap().len(), MIB / 2);
    }
}

#[test]
fn a_queue_dropped_too_early_leaks_what_the_kernel_may_touch() {
    let image = Image::new(MIB);
    let disk = image.open(CacheMode::Writeback);
    let mut driver = Driver::new(&*disk);
    let memory = Memory::plain(4096);
    driver.start(Op::Read {
        offset: 0,
        buf: memory.buffers(),
    });
    driver.drop_queue();
    drop(driver);
    drop(disk);
    assert_eq!(memory.holders(), 1);
    // The descriptor too: the image is still open, and locked.
    assert!(open(image.path.to_str().unwrap(), &OpenOptions::default()).is_err());
}

#[test]
fn the_image_is_unlocked_when_disk_and_queues_are_gone() {
    let image = Image::new(MIB);
    let disk = image.open(CacheMode::Writeback);
    let again = || open(image.path.to_str().unwrap(), &OpenOptions::default());
    let driver = Driver::new(&*disk);
    drop(disk);
    assert!(again().is_err(), "a queue keeps the image locked");
    drop(driver);
    assert!(again().is_ok());
}

#[test]
fn what_was_written_outlives_a_disk_that_was_not_flushed() {
    let image = Image::new(MIB);
    let bytes = pattern(4, 4096);
    let disk = image.open(CacheMode::Writeback);
    Driver::new(&*disk).write(8192, &bytes);
    drop(disk);
    assert_eq!(std::fs::read(&image.path).unwrap()[8192..12_288], bytes);
}
