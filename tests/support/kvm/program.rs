//! The guest: a real-mode program that drives one split virtqueue with interrupts, and the memory that it lives in.
//!
//! Each round it makes `batch` read requests available, writes the doorbell, sleeps in `hlt` until the interrupt handler has run
//! and the used index has caught up, and checks every status byte and the first word of every sector read. It stops
//! with a fault at the first that is wrong; it sleeps for ever where an interrupt is lost.
//!
//! Sleeping is `sti; hlt` with the condition tested under `cli`: an interrupt between the test and the sleep stays pending
//! until `sti`, whose effect begins after the next instruction, so it ends the `hlt`. No wake-up can fall between.
//!
//! With a batch of one the guest waits for the interrupt of each request before it makes the next, so interrupts and
//! completions must be equal in number. With more, several completions may share one interrupt.

use std::arch::global_asm;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory. All that matters is below 64 KiB, where real mode reaches everything with segment 0.
pub const MEMORY: usize = 1 << 20;
/// Descriptors in the ring.
pub const QUEUE_SIZE: u16 = 64;
/// Requests prepared: the largest batch. Divides the queue size, so that ring entry `i` always names slot `i % SLOTS`.
pub const SLOTS: u16 = 16;
/// Descriptor table.
pub const DESCRIPTORS: u64 = 0x8000;
/// Available ring.
pub const AVAIL: u64 = 0x9000;
/// Used ring.
pub const USED: u64 = 0xa000;
const HEADERS: u64 = 0xb000;
const STATUSES: u64 = 0xb800;
const DATA: u64 = 0xc000;
/// Sectors of the disk, a power of two: each request of a slot reads the sector after the slot's last one.
pub const SECTORS: u32 = 1 << 16;
const SECTOR: u64 = 512;

/// Where the program starts.
pub const CODE: u64 = 0x1000;
/// Top of its stack.
pub const STACK: u64 = 0x7000;

const ROUNDS: u64 = 0x500;
const BATCH: u64 = 0x504;
const INTERRUPTS: u64 = 0x508;
const FENCE: u64 = 0x50c;
const DONE: u64 = 0x510;
const CURRENT_BATCH: u64 = 0x514;

/// Port of the doorbell: 16 bits, value 0 (the queue's index).
pub const DOORBELL: u16 = 0xd0;
/// Port where the program says that it has ended: byte 0 well, byte 1 a wrong answer of the device.
pub const PORT_END: u16 = 0xf4;
/// Port written three times for a fence.
pub const PORT_FENCE: u16 = 0xf5;
/// Interrupt line of the queue, on the PIC.
pub const QUEUE_GSI: u32 = 5;
/// Interrupt line by which the host wakes the guest.
pub const WAKE_GSI: u32 = 3;
const VECTORS: u8 = 0x20;

global_asm!(
    ".pushsection .rodata.kvm_guest, \"a\", @progbits",
    ".code16",
    "kvm_guest_start:",
    // The PIC: vectors from 0x20, end of interrupt by itself, all lines masked but the two in use.
    "cli",
    "mov al, 0x11",
    "out 0x20, al",
    "mov al, {vectors}",
    "out 0x21, al",
    "mov al, 0x04",
    "out 0x21, al",
    "mov al, 0x03",
    "out 0x21, al",
    "mov al, {mask}",
    "out 0x21, al",
    // A round: in every slot of the batch spoil the status and the data, so that only a fresh answer looks right, and go on
    // to another sector.
    "2:",
    "mov cx, word ptr [{batch}]",
    "mov word ptr [{current}], cx",
    "mov si, word ptr [{avail} + 2]",
    "3:",
    "mov bx, si",
    "and bx, {slots} - 1",
    "mov byte ptr [bx + {statuses}], 0xff",
    "mov di, bx",
    "shl di, 4",
    "mov eax, dword ptr [di + {headers} + 8]",
    "inc eax",
    "and eax, {sectors} - 1",
    "mov dword ptr [di + {headers} + 8], eax",
    "shl bx, 9",
    "mov dword ptr [bx + {data}], 0xffffffff",
    "inc si",
    "dec cx",
    "jnz 3b",
    // Publish and kick. x86 keeps the order of stores.
    "mov bp, word ptr [{interrupts}]",
    "mov word ptr [{avail} + 2], si",
    "xor ax, ax",
    "mov dx, {doorbell}",
    "out dx, ax",
    // Sleep until an interrupt has come and the used index has caught up.
    "4:",
    "cli",
    "cmp word ptr [{fence}], 0",
    "je 5f",
    "call 8f",
    "jmp 4b",
    "5:",
    "cmp bp, word ptr [{interrupts}]",
    "jne 6f",
    "sti",
    "hlt",
    "jmp 4b",
    "6:",
    "mov bp, word ptr [{interrupts}]",
    "mov ax, word ptr [{used} + 2]",
    "cmp ax, word ptr [{avail} + 2]",
    "jne 4b",
    "sti",
    // Check.
    "mov cx, word ptr [{current}]",
    "mov si, word ptr [{avail} + 2]",
    "sub si, cx",
    "7:",
    "mov bx, si",
    "and bx, {slots} - 1",
    "cmp byte ptr [bx + {statuses}], 0",
    "jne 9f",
    "mov di, bx",
    "shl di, 4",
    "mov eax, dword ptr [di + {headers} + 8]",
    "shl bx, 9",
    "cmp eax, dword ptr [bx + {data}]",
    "jne 9f",
    "inc si",
    "dec cx",
    "jnz 7b",
    "inc dword ptr [{done}]",
    "dec dword ptr [{rounds}]",
    "jnz 2b",
    "xor al, al",
    "out {port_end}, al",
    // Afterwards: fences are still answered.
    "22:",
    "cli",
    "cmp word ptr [{fence}], 0",
    "je 23f",
    "call 8f",
    "23:",
    "sti",
    "hlt",
    "jmp 22b",
    // A fence: three exits to the host with interrupts on, so that every handler that was pending before has run.
    "8:",
    "mov word ptr [{fence}], 0",
    "sti",
    "nop",
    "out {port_fence}, al",
    "out {port_fence}, al",
    "out {port_fence}, al",
    "ret",
    // A wrong status or wrong data.
    "9:",
    "mov al, 1",
    "out {port_end}, al",
    "24:",
    "sti",
    "hlt",
    "jmp 24b",
    // The handlers.
    "kvm_guest_queue_handler:",
    "inc dword ptr [{interrupts}]",
    "iret",
    "kvm_guest_wake_handler:",
    "iret",
    "kvm_guest_end:",
    ".code64",
    ".popsection",
    vectors = const VECTORS,
    mask = const !((1u8 << QUEUE_GSI) | (1 << WAKE_GSI)),
    batch = const BATCH,
    current = const CURRENT_BATCH,
    avail = const AVAIL,
    used = const USED,
    statuses = const STATUSES,
    headers = const HEADERS,
    data = const DATA,
    slots = const SLOTS,
    sectors = const SECTORS,
    interrupts = const INTERRUPTS,
    fence = const FENCE,
    done = const DONE,
    rounds = const ROUNDS,
    doorbell = const DOORBELL,
    port_end = const PORT_END,
    port_fence = const PORT_FENCE,
);

unsafe extern "C" {
    static kvm_guest_start: u8;
    static kvm_guest_end: u8;
    static kvm_guest_queue_handler: u8;
    static kvm_guest_wake_handler: u8;
}

fn code() -> &'static [u8] {
    let start = &raw const kvm_guest_start;
    let end = &raw const kvm_guest_end;
    // SAFETY: both symbols lie in one read-only section, the second behind the first (see the assembly above), with
    // initialised bytes in between.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// Where a label of the program is in guest memory.
fn place(label: *const u8) -> u16 {
    let offset = label as usize - &raw const kvm_guest_start as usize;
    u16::try_from(CODE as usize + offset).expect("the program is below 64 KiB")
}

/// Puts the program, its rings and its requests into guest memory: `rounds` rounds of `batch` requests.
pub fn load(memory: &GuestMemoryMmap, rounds: u32, batch: u16) {
    assert!((1..=SLOTS).contains(&batch));
    let write = |at: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(at))
            .expect("inside guest memory")
    };
    write(CODE, code());
    for (gsi, handler) in [
        (QUEUE_GSI, &raw const kvm_guest_queue_handler),
        (WAKE_GSI, &raw const kvm_guest_wake_handler),
    ] {
        // A real-mode vector: offset, segment 0.
        let vector = u64::from(VECTORS) + u64::from(gsi);
        write(vector * 4, &u32::from(place(handler)).to_le_bytes());
    }
    write(ROUNDS, &rounds.to_le_bytes());
    write(BATCH, &batch.to_le_bytes());

    for entry in 0..QUEUE_SIZE {
        write(
            AVAIL + 4 + 2 * u64::from(entry),
            &(entry % SLOTS * 3).to_le_bytes(),
        );
    }
    for slot in 0..SLOTS {
        let index = u64::from(slot);
        // VIRTIO_BLK_T_IN is 0; the sectors of the slots start far apart.
        write(
            HEADERS + index * 16 + 8,
            &(u64::from(slot) * 4099).to_le_bytes(),
        );
        descriptor(memory, slot * 3, HEADERS + index * 16, 16, NEXT);
        descriptor(
            memory,
            slot * 3 + 1,
            DATA + index * SECTOR,
            SECTOR as u32,
            NEXT | WRITE,
        );
        descriptor(memory, slot * 3 + 2, STATUSES + index, 1, WRITE);
    }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// One descriptor; a chain goes on with the one after it.
fn descriptor(memory: &GuestMemoryMmap, index: u16, address: u64, length: u32, flags: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    let next = if flags & NEXT == 0 { 0 } else { index + 1 };
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    memory
        .write_slice(&bytes, GuestAddress(DESCRIPTORS + u64::from(index) * 16))
        .expect("inside guest memory");
}

/// What the program and the device write, seen from the host.
pub struct View<'a>(pub &'a GuestMemoryMmap);

impl View<'_> {
    fn u16(&self, at: u64) -> u16 {
        self.0
            .load(GuestAddress(at), Ordering::SeqCst)
            .expect("inside guest memory")
    }

    fn u32(&self, at: u64) -> u32 {
        self.0
            .load(GuestAddress(at), Ordering::SeqCst)
            .expect("inside guest memory")
    }

    /// Requests made available since the start, modulo 2^16.
    pub fn avail_index(&self) -> u16 {
        self.u16(AVAIL + 2)
    }

    /// Requests answered since the start, modulo 2^16.
    pub fn used_index(&self) -> u16 {
        self.u16(USED + 2)
    }

    /// Runs of the queue's interrupt handler.
    pub fn interrupts(&self) -> u32 {
        self.u32(INTERRUPTS)
    }

    /// Rounds finished and found right.
    pub fn rounds_done(&self) -> u32 {
        self.u32(DONE)
    }

    /// Asks for a fence; the guest must then be woken.
    pub fn request_fence(&self) {
        self.0
            .store(1u16, GuestAddress(FENCE), Ordering::SeqCst)
            .expect("inside guest memory");
    }

    /// Answers the request in slot 0 as the device would: for a test of the paths alone.
    pub fn answer_first_request(&self) {
        let mut sector = [0; 4];
        self.0
            .read_slice(&mut sector, GuestAddress(HEADERS + 8))
            .expect("inside guest memory");
        self.0
            .write_slice(&sector, GuestAddress(DATA))
            .expect("inside guest memory");
        self.0
            .write_slice(&[0], GuestAddress(STATUSES))
            .expect("inside guest memory");
        self.0
            .store(1u16, GuestAddress(USED + 2), Ordering::SeqCst)
            .expect("inside guest memory");
    }
}
