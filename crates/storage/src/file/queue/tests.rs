//! What the kernel seldom does, done to it: results are posted in its place, and the operation has to go on from there.
use super::super::{
    FileDisk,
    slot::{Work, ZeroMethod},
};
use super::*;
use crate::uri::{CacheMode, OpenOptions};
use outboard_reactor::{Config, Reactor};
use std::{os::unix::fs::MetadataExt, path::PathBuf, sync::atomic::Ordering, time::Instant};

const LEN: usize = 64 << 10;
/// A size that no direct I/O finds too small.
const BLOCK: usize = 4096;

struct Bench {
    reactor: Reactor,
    queue: FileQueue,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// An image full of ones.
    fn new(cache: CacheMode) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [1; LEN]).unwrap();
        let options = OpenOptions {
            cache,
            ..Default::default()
        };
        let FileDisk { image } = super::super::open("x", &path, &options).unwrap();
        let mut reactor = Reactor::new(Config::default()).unwrap();
        // So that operations of its own are not counted among ours.
        reactor.wait(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        let queue = FileQueue::new(image, reactor.port());
        Bench {
            reactor,
            queue,
            path,
            _dir: dir,
        }
    }

    /// An operation on the whole image that the kernel seems to have answered with `result`.
    fn answered(&mut self, work: Work, buf: Buffers, result: i32) -> u32 {
        let key = self.queue.slots.insert(77, work, 0, LEN as u64, buf);
        self.queue.port.complete_now(key, result);
        key
    }

    fn finish(&mut self) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut wakes = Vec::new();
        loop {
            if let Some(completion) = self.queue.next_completion() {
                assert_eq!(self.queue.in_flight(), 0);
                return completion;
            }
            assert!(Instant::now() < deadline, "the operation did not complete");
            self.reactor
                .wait(&mut wakes, Some(Duration::from_secs(1)))
                .unwrap();
            wakes.clear();
        }
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

fn twos() -> Buffers {
    let buf = Buffers::alloc(LEN, 4096);
    buf.fill(0, LEN as u64, 2);
    buf
}

fn bytes(buf: &Buffers) -> Vec<u8> {
    let mut bytes = vec![0; buf.len() as usize];
    buf.copy_to(0, &mut bytes);
    bytes
}

const WRITE: Work = Work::Write { durable: false };

#[test]
fn an_interrupted_operation_is_started_again() {
    for errno in [libc::EINTR, libc::EAGAIN] {
        let mut bench = Bench::new(CacheMode::Writeback);
        bench.answered(WRITE, twos(), -errno);
        bench.finish().result.unwrap();
        assert_eq!(bench.content(), [2; LEN]);
        bench.answered(Work::Flush, Buffers::empty(), -errno);
        bench.finish().result.unwrap();
    }
}

#[test]
fn a_kernel_that_stays_short_of_something_is_an_error_in_the_end() {
    let mut bench = Bench::new(CacheMode::Writeback);
    let key = bench.answered(WRITE, twos(), -libc::EAGAIN);
    bench.queue.slots.get_mut(key).unwrap().attempts = MAX_ATTEMPTS;
    let error = bench.finish().result.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn a_short_write_is_resumed_where_it_stopped() {
    let mut bench = Bench::new(CacheMode::Writeback);
    // Nothing was really written: the first bytes stay as they were.
    bench.answered(WRITE, twos(), 1000);
    let done = bench.finish();
    done.result.unwrap();
    assert_eq!(done.buf.len(), LEN as u64);
    let content = bench.content();
    assert!(content[..1000].iter().all(|b| *b == 1));
    assert!(content[1000..].iter().all(|b| *b == 2));
}

#[test]
fn a_short_direct_write_is_resumed_at_a_whole_block() {
    let mut bench = Bench::new(CacheMode::None);
    bench.answered(WRITE, twos(), BLOCK as i32 + 1);
    bench.finish().result.unwrap();
    let content = bench.content();
    let first = content.iter().position(|b| *b == 2).unwrap();
    assert!(first <= BLOCK && first.is_multiple_of(512), "{first}");
    assert!(content[first..].iter().all(|b| *b == 2));
}

#[test]
fn a_write_that_makes_no_progress_is_an_error() {
    let mut bench = Bench::new(CacheMode::Writeback);
    bench.answered(WRITE, twos(), 0);
    assert_eq!(
        bench.finish().result.unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
}

#[test]
fn a_short_read_is_resumed_where_it_stopped() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let mut bench = Bench::new(cache);
        bench.answered(Work::Read, twos(), BLOCK as i32);
        let done = bench.finish();
        done.result.unwrap();
        let read = bytes(&done.buf);
        assert!(read[..BLOCK].iter().all(|b| *b == 2));
        assert!(read[BLOCK..].iter().all(|b| *b == 1));
    }
}

#[test]
fn a_direct_read_that_ends_within_a_block_has_met_the_end_of_the_file() {
    let mut bench = Bench::new(CacheMode::None);
    bench.answered(Work::Read, twos(), 100);
    let done = bench.finish();
    done.result.unwrap();
    let read = bytes(&done.buf);
    assert!(read[..100].iter().all(|b| *b == 2));
    assert!(read[100..].iter().all(|b| *b == 0));
}

#[test]
fn a_resumed_transfer_skips_whole_segments_and_parts() {
    let mut whole = Buffers::alloc(100, 1);
    let tail = whole.split_off(30);
    let mut slots = Slots::default();
    // Two segments that happen to be neighbours, made from two halves.
    let mut iov = whole.iovecs().to_vec();
    iov.extend_from_slice(tail.iovecs());
    // SAFETY: both halves live to the end of the test.
    let both = unsafe { Buffers::from_raw(iov.into(), std::rc::Rc::new(())) };
    let base = both.iovecs()[0].iov_base.addr();
    let key = slots.insert(0, Work::Read, 0, 100, both);
    for (done, wanted) in [
        (0, vec![(0, 30), (30, 70)]),
        (10, vec![(10, 20), (30, 70)]),
        (30, vec![(30, 70)]),
        (99, vec![(99, 1)]),
    ] {
        let slot = slots.get_mut(key).unwrap();
        slot.done = done;
        let left: Vec<_> = transfer::next_segments(slot)
            .iter()
            .map(|v| (v.iov_base.addr() - base, v.iov_len))
            .collect();
        assert_eq!(left, wanted);
    }
}

/// One guest's huge transfer from the page cache must not be one copy that every ring of the worker waits for.
#[test]
fn a_long_transfer_is_cut_into_operations() {
    const MAX: usize = transfer::MAX_LENGTH;
    let whole = Buffers::alloc(3 * MAX, 4096);
    let base = whole.iovecs()[0].iov_base;
    let segments = |lens: &[usize]| {
        let mut at = 0;
        let iov = lens.iter().map(|&len| {
            at += len;
            libc::iovec {
                iov_base: base.wrapping_byte_add(at - len),
                iov_len: len,
            }
        });
        // SAFETY: `whole` lives to the end of the test and is longer than the segments together.
        unsafe { Buffers::from_raw(iov.collect(), std::rc::Rc::new(())) }
    };
    for (lens, done, wanted) in [
        (vec![3 * MAX], 0, vec![3 * MAX]),
        (vec![MAX / 2; 6], 0, vec![MAX / 2; 2]),
        (vec![MAX / 2; 6], MAX, vec![MAX / 2; 2]),
        (vec![512, MAX, 512], 0, vec![512]),
        (vec![512, MAX, 512], 512, vec![MAX]),
        (vec![16; 3000], 0, vec![16; 1024]),
        (vec![16; 3000], 16, vec![16; 1024]),
        (vec![16; 3000], 16 * 2999, vec![16]),
    ] {
        let mut slots = Slots::default();
        let len = lens.iter().sum::<usize>() as u64;
        let key = slots.insert(0, Work::Read, 0, len, segments(&lens));
        let slot = slots.get_mut(key).unwrap();
        slot.done = done as u64;
        let next = transfer::next_segments(slot).iter().map(|v| v.iov_len);
        assert_eq!(next.collect::<Vec<_>>(), wanted);
    }

    let mut bench = Bench::new(CacheMode::Writeback);
    let file = std::fs::File::options().write(true).open(&bench.path);
    file.unwrap().set_len(3 * MAX as u64).unwrap();
    let image = Arc::get_mut(&mut bench.queue.image).expect("the queue alone has it");
    image.size = 3 * MAX as u64;
    let before = bench.reactor.counters().sqes;
    let buf = segments(&[3 * MAX]);
    bench.queue.submit(1, Op::Read { offset: 0, buf });
    bench.finish().result.unwrap();
    assert_eq!(bench.reactor.counters().sqes - before, 3);
    assert_eq!(bytes(&whole)[..LEN], [1; LEN]);
}

#[test]
fn an_error_of_the_kernel_is_the_operations_error() {
    for work in [Work::Read, WRITE, Work::Flush, Work::Discard] {
        let mut bench = Bench::new(CacheMode::Writeback);
        bench.answered(work, twos(), -libc::EIO);
        let done = bench.finish();
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!((done.token, done.buf.len()), (77, LEN as u64));
    }
}

/// The kernel reports a page that it could not write back once, and drops the page. (Around the page cache there is none to drop.)
#[test]
fn after_a_failed_flush_no_flush_through_the_page_cache_succeeds() {
    for (cache, last) in [
        (CacheMode::Writeback, Some(libc::EIO)),
        (CacheMode::None, None),
    ] {
        let mut bench = Bench::new(cache);
        bench.answered(Work::Flush, Buffers::empty(), -libc::EIO);
        assert!(bench.finish().result.is_err());
        let errno = |done: Completion| done.result.err().and_then(|e| e.raw_os_error());
        bench.queue.submit(1, Op::Flush);
        assert_eq!(errno(bench.finish()), last, "{cache}");
        // One that was under way when another queue's failed.
        bench.answered(Work::Flush, Buffers::empty(), 0);
        assert_eq!(errno(bench.finish()), last, "{cache}");
        // What is written now is written for good.
        bench.answered(Work::Write { durable: true }, twos(), LEN as i32);
        assert_eq!(errno(bench.finish()), None, "{cache}");
    }
}

#[test]
fn zeroing_falls_back_to_what_the_filesystem_can_and_remembers() {
    for (method, cache) in [
        (ZeroMethod::Punch, CacheMode::Writeback),
        (ZeroMethod::ZeroRange, CacheMode::Writeback),
        (ZeroMethod::ZeroRange, CacheMode::None),
    ] {
        let mut bench = Bench::new(cache);
        bench.answered(Work::Zero(method), Buffers::empty(), -libc::EOPNOTSUPP);
        bench.finish().result.unwrap();
        assert_eq!(bench.content(), [0; LEN]);
        let can = &bench.queue.image.can;
        assert_eq!(can.punch(), method != ZeroMethod::Punch);
        if method == ZeroMethod::ZeroRange {
            assert!(!can.zero_range());
            // Written, so the space is there.
            assert!(std::fs::metadata(&bench.path).unwrap().blocks() * 512 >= LEN as u64);
        }
    }
}

#[test]
fn what_only_this_range_cannot_is_not_remembered() {
    let mut bench = Bench::new(CacheMode::Writeback);
    bench.answered(
        Work::Zero(ZeroMethod::ZeroRange),
        Buffers::empty(),
        -libc::EINVAL,
    );
    bench.finish().result.unwrap();
    assert_eq!(bench.content(), [0; LEN]);
    assert!(bench.queue.image.can.zero_range());
    bench.answered(
        Work::Zero(ZeroMethod::Punch),
        Buffers::empty(),
        -libc::ENOSPC,
    );
    assert_eq!(
        bench.finish().result.unwrap_err().raw_os_error(),
        Some(libc::ENOSPC)
    );
}

#[test]
fn a_writethrough_disk_makes_zeroes_durable_before_they_complete() {
    for (cache, operations) in [(CacheMode::Writeback, 1), (CacheMode::Writethrough, 2)] {
        let mut bench = Bench::new(cache);
        bench.queue.image.can.punch.store(true, Ordering::Relaxed);
        let before = bench.reactor.counters().sqes;
        let len = LEN as u64;
        bench.queue.submit(
            1,
            Op::WriteZeroes {
                offset: 0,
                len,
                unmap: true,
            },
        );
        bench.finish().result.unwrap();
        assert_eq!(
            bench.reactor.counters().sqes - before,
            operations,
            "{cache}"
        );
    }
}

#[test]
fn flushes_of_an_unsafe_disk_reach_nobody() {
    for (cache, operations) in [(CacheMode::Writeback, 1), (CacheMode::Unsafe, 0)] {
        let mut bench = Bench::new(cache);
        let before = bench.reactor.counters().sqes;
        bench.queue.submit(1, Op::Flush);
        bench.finish().result.unwrap();
        assert_eq!(
            bench.reactor.counters().sqes - before,
            operations,
            "{cache}"
        );
    }
}

#[test]
fn only_a_misaligned_guest_is_bounced_and_only_with_direct_io() {
    for (cache, skew, bounced) in [
        (CacheMode::Writeback, 1, false),
        (CacheMode::None, 0, false),
        (CacheMode::None, 1, true),
    ] {
        let bench = Bench::new(cache);
        let mut buf = Buffers::alloc(LEN + skew, 4096);
        buf.advance(skew as u64);
        assert_eq!(transfer::needs_bounce(&bench.queue.image, &buf), bounced);
    }
}
