//! The SIGBUS guard: a truncated memory file ends one session, not the process.
//!
//! # Why
//! The front end keeps the files behind guest memory and can shrink them at any time. A load or store behind the new end raises
//! SIGBUS on the thread that touches it, and the default action kills the process with all its other guests. No check beforehand
//! helps, because the file may shrink between the check and the touch. (System calls are safe: the kernel returns EFAULT.)
//!
//! # What it does
//! A process-wide handler looks the faulting address up among the mapped regions. If it belongs to one, the region is marked damaged
//! and an anonymous page of zeros is mapped over the page at fault; the interrupted instruction runs again and finds it. The
//! bytes are lost, nobody else is affected, and the session, which looks at `MemoryMap::is_damaged`, ends. Any other SIGBUS goes to
//! the action that was installed before.
//!
//! # Protocol
//! The handler may run on any thread between any two instructions, so it takes no lock and allocates nothing. The registry is a list
//! of chunks that only grows (its chunks are never freed) of slots that are reused. Each slot is a sequence lock: writers, serialized by
//! `WRITERS`, make the sequence odd, change the fields and make it even again; the handler ignores a slot whose sequence is odd or moved
//! while it read. It may ignore such a slot because *its* region's slot cannot be moving: the faulting thread got the region
//! after `Watch::new` had returned (the map is published to it with at least release/acquire) and still holds it, so
//! `Watch::drop`, which runs when the last holder is gone, is not under way.
//!
//! A region is watched before anyone can touch it and forgotten before it is unmapped, so no foreign mapping is ever at a watched address.
//!
//! # Limits
//! The handler is installed with the first region and stays. Whoever replaces it later must chain to it. Of the previous action its
//! function is honoured, its mask and flags are not.
#![allow(unsafe_code)]
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const SLOTS_PER_CHUNK: usize = 64;

struct Slot {
    /// Odd while the fields below change.
    sequence: AtomicU32,
    start: AtomicUsize,
    /// 0: the slot is free.
    len: AtomicUsize,
    page: AtomicUsize,
    damaged: AtomicBool,
}

struct Chunk {
    slots: [Slot; SLOTS_PER_CHUNK],
    next: OnceLock<Box<Chunk>>,
}

static FIRST: Chunk = Chunk::new();
/// Serializes writers; the handler does not take it.
static WRITERS: Mutex<()> = Mutex::new(());
/// Some region was ever damaged: one load answers for all regions as long as nothing happened.
static EVER_DAMAGED: AtomicBool = AtomicBool::new(false);
/// The action before ours; set before ours is installed.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

impl Slot {
    const fn new() -> Slot {
        Slot {
            sequence: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            damaged: AtomicBool::new(false),
        }
    }

    fn set(&self, _writer: &MutexGuard<'_, ()>, start: usize, len: usize, page: usize) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        // Orders the odd sequence before the fields; pairs with the acquire fence in `page_of`: a reader that saw a new
        // field sees an odd or a later sequence in its second look.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.damaged.store(false, Ordering::Relaxed);
        // Pairs with the acquire load in `page_of`: who sees the even sequence sees the fields.
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Start and size of the page that holds `address`, if the slot's region does.
    fn page_of(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.sequence.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let page = self.page.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        if before != after || before % 2 == 1 || page == 0 {
            return None;
        }
        let offset = address.wrapping_sub(start);
        (offset < len).then(|| (address - offset % page, page))
    }
}

impl Chunk {
    const fn new() -> Chunk {
        Chunk {
            slots: [const { Slot::new() }; SLOTS_PER_CHUNK],
            next: OnceLock::new(),
        }
    }
}

fn chunks() -> impl Iterator<Item = &'static Chunk> {
    std::iter::successors(Some(&FIRST), |chunk| chunk.next.get().map(|next| &**next))
}

/// A watched range of mapped addresses; forgotten when dropped.
pub(super) struct Watch {
    slot: &'static Slot,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("damaged", &self.is_damaged())
            .finish()
    }
}

impl Watch {
    /// Watches `len` bytes at `start`, mapped in pages of `page` bytes; `start` is a multiple of `page`.
    pub(super) fn new(start: usize, len: usize, page: usize) -> Watch {
        let writer = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        install(&writer);
        let free = |chunk: &'static Chunk| {
            chunk
                .slots
                .iter()
                .find(|slot| slot.len.load(Ordering::Relaxed) == 0)
        };
        let mut last = &FIRST;
        let slot = loop {
            if let Some(slot) = free(last) {
                break slot;
            }
            last = last.next.get_or_init(|| Box::new(Chunk::new()));
        };
        slot.set(&writer, start, len, page);
        Watch { slot }
    }

    /// A fault was caught in this range.
    pub(super) fn is_damaged(&self) -> bool {
        // Acquire: who sees the mark knows that what it read before may be zeros of ours. Pairs with the stores in `patch`.
        EVER_DAMAGED.load(Ordering::Acquire) && self.slot.damaged.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let writer = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.set(&writer, 0, 0, 0);
    }
}

/// Installs the handler once. Failure leaves the default action: the truncation of a file is then fatal, nothing else changes.
fn install(_writer: &MutexGuard<'_, ()>) {
    if PREVIOUS.get().is_some() {
        return;
    }
    // SAFETY: all-zero bytes are a valid sigaction (default action, empty mask, no flags).
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with no new action this only writes the current one to `previous`.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut previous) } != 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), "no SIGBUS guard: a front end that truncates its memory kills this process");
        return;
    }
    // Before the handler can run, since it reads this.
    let _ = PREVIOUS.set(previous);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    // ONSTACK: threads of the standard library have an alternate stack; one without it uses its own.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and does only what a signal handler may: lock-free loads, system
    // calls, and the previous handler.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, null_mut()) } != 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), "no SIGBUS guard: a front end that truncates its memory kills this process");
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler, and for SIGBUS si_addr is its address field; when the signal
    // was sent by kill(2) the bytes are something else, which si_code tells, and the address is not used.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let at_fault = matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR);
    if at_fault && patch(address) {
        return;
    }
    pass_on(signal, info, context, code);
}

/// Maps zeros over the page at `address` if it is in a watched range.
fn patch(address: usize) -> bool {
    let found = chunks()
        .flat_map(|chunk| &chunk.slots)
        .find_map(|slot| slot.page_of(address).map(|page| (slot, page)));
    let Some((slot, (start, len))) = found else {
        return false;
    };
    // First the mark, then the page: whoever can read the zeros can see that they are not the guest's.
    slot.damaged.store(true, Ordering::Release);
    EVER_DAMAGED.store(true, Ordering::Release);
    // SAFETY: errno's location is valid for the calling thread; the interrupted code must find its value unchanged.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the page lies in a mapping that belongs to the faulting thread's region (module protocol), so replacing it harms no
    // foreign mapping; the bytes it held are gone already.
    let mapped = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    mapped != libc::MAP_FAILED
}

/// Does what would have happened without the guard.
fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    code: libc::c_int,
) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    let sent = code <= 0;
    if handler == libc::SIG_IGN && sent {
        return;
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // A fault cannot be ignored. With the default action in place the instruction faults again, now fatally, with the core dump
        // showing the culprit; a signal that was sent must be sent again.
        // SAFETY: all-zero bytes are a valid sigaction, the default action; sigaction and raise may be called in a handler.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &default, null_mut());
            if sent {
                libc::raise(signal);
            }
        }
        return;
    }
    if previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: the kernel would have called this address with this signature, since it was installed with SA_SIGINFO.
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: as above, without SA_SIGINFO.
        let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
}
