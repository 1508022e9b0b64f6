//! A virtual machine of one CPU, made with KVM alone: what a VMM is to a vhost-user back end, and nothing more.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::fd::IntoRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::program::{self, View};

/// What the guest told through a port.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// One write of the three of a fence.
    Fence,
    /// The program's end: 0 well, 1 a wrong answer of the device.
    End(u8),
    /// The CPU cannot go on.
    Broken(String),
}

/// The machine. Its guest runs from [`start`](Self::start) to the drop.
pub struct Vm {
    // The CPU and the machine go before the memory that they run in.
    idle: Option<Cpu>,
    running: Option<JoinHandle<()>>,
    vm: VmFd,
    memory: GuestMemoryMmap,
    events: Receiver<Event>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Doorbells that no ioeventfd took.
    loose_doorbells: AtomicU64,
}

impl Vm {
    /// Makes a machine whose guest will run `rounds` rounds of `batch` requests. Errors tell why KVM cannot be used.
    pub fn new(rounds: u32, batch: u16) -> anyhow::Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        // Three pages that some processors need for real mode; anywhere out of the way.
        vm.set_tss_address(0xfffb_d000)
            .context("KVM_SET_TSS_ADDR")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;

        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)
            .context("memfd_create")?;
        let file = File::from(fd);
        file.set_len(program::MEMORY as u64)
            .context("guest memory")?;
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            program::MEMORY,
            Some(FileOffset::new(file, 0)),
        )])
        .context("guest memory")?;
        let host = memory
            .get_host_address(GuestAddress(0))
            .context("guest memory")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: program::MEMORY as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping is as long as said and outlives the machine: the CPU's thread is joined by Drop, and `memory` is
        // dropped after `idle` and `vm` (order of the fields).
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        program::load(&memory, rounds, batch);

        let cpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let mut sregs = cpu.get_sregs().context("KVM_GET_SREGS")?;
        for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            segment.base = 0;
            segment.selector = 0;
        }
        cpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        let mut regs = cpu.get_regs().context("KVM_GET_REGS")?;
        regs.rip = program::CODE;
        regs.rsp = program::STACK;
        regs.rflags = 2;
        cpu.set_regs(&regs).context("KVM_SET_REGS")?;

        let shared = Arc::new(Shared::default());
        let (sender, events) = mpsc::channel();
        let idle = Some(Cpu {
            fd: cpu,
            events: sender,
            shared: Arc::clone(&shared),
        });
        Ok(Self {
            idle,
            running: None,
            vm,
            memory,
            events,
            shared,
        })
    }

    /// Lets the guest run; does nothing if it runs already.
    pub fn start(&mut self) {
        let Some(cpu) = self.idle.take() else { return };
        // Its arrival alone ends KVM_RUN.
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), nothing).expect("a signal handler");
        self.running = Some(std::thread::spawn(move || cpu.run()));
    }

    /// Guest memory, shared through its file.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// What is in it.
    pub fn view(&self) -> View<'_> {
        View(&self.memory)
    }

    /// The doorbell signals this eventfd from now on, inside the kernel.
    pub fn bind_kick(&self, kick: &EventFd) -> anyhow::Result<()> {
        let address = IoEventAddress::Pio(u64::from(program::DOORBELL));
        self.vm
            .register_ioevent(kick, &address, 0u16)
            .context("KVM_IOEVENTFD")
    }

    /// Takes it back.
    pub fn unbind_kick(&self, kick: &EventFd) {
        let address = IoEventAddress::Pio(u64::from(program::DOORBELL));
        self.vm
            .unregister_ioevent(kick, &address, 0u16)
            .expect("KVM_IOEVENTFD, deassign");
    }

    /// This eventfd raises the queue's interrupt from now on, inside the kernel.
    pub fn bind_call(&self, call: &EventFd) -> anyhow::Result<()> {
        self.vm
            .register_irqfd(call, program::QUEUE_GSI)
            .context("KVM_IRQFD")
    }

    /// Takes it back. Up to two handler runs that are queued already may follow: see [`fence`](Self::fence).
    pub fn unbind_call(&self, call: &EventFd) {
        self.vm
            .unregister_irqfd(call, program::QUEUE_GSI)
            .expect("KVM_IRQFD, deassign");
    }

    /// Doorbells that came to the host as plain exits, since no eventfd was bound.
    pub fn loose_doorbells(&self) -> u64 {
        self.shared.loose_doorbells.load(Ordering::SeqCst)
    }

    /// Returns when every interrupt that was raised before this call has been handled by the guest.
    ///
    /// The host wakes the guest, which then leaves to the host three times with interrupts enabled.
    pub fn fence(&self) {
        self.view().request_fence();
        self.vm
            .set_irq_line(program::WAKE_GSI, true)
            .expect("KVM_IRQ_LINE");
        self.vm
            .set_irq_line(program::WAKE_GSI, false)
            .expect("KVM_IRQ_LINE");
        for _ in 0..3 {
            match self.events.recv_timeout(super::DEADLINE) {
                Ok(Event::Fence) => {}
                other => panic!(
                    "the guest answered a fence with {other:?}; {}",
                    self.state()
                ),
            }
        }
    }

    /// Waits for the program's good end.
    pub fn wait_for_end(&self, deadline: Duration) -> anyhow::Result<()> {
        match self.events.recv_timeout(deadline) {
            Ok(Event::End(0)) => Ok(()),
            Ok(Event::End(_)) => bail!(
                "the guest found a wrong status or wrong data; {}",
                self.state()
            ),
            Ok(event) => bail!("the guest did not end but: {event:?}; {}", self.state()),
            Err(RecvTimeoutError::Timeout) => bail!(
                "the guest sleeps: an interrupt or a kick was lost; {}",
                self.state()
            ),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest's CPU is gone; {}", self.state())
            }
        }
    }

    /// Panics if the guest has said anything but the answers to fences: a wrong answer of the device above all.
    pub fn assert_well(&self) {
        if let Ok(event) = self.events.try_recv() {
            panic!("the guest said {event:?}; {}", self.state());
        }
    }

    /// The counters, for messages.
    pub fn state(&self) -> String {
        let view = self.view();
        format!(
            "rounds done {}, avail {}, used {}, interrupts {}, loose doorbells {}",
            view.rounds_done(),
            view.avail_index(),
            view.used_index(),
            view.interrupts(),
            self.loose_doorbells()
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let Some(cpu) = self.running.take() else {
            return;
        };
        self.shared.stop.store(true, Ordering::SeqCst);
        // A signal that comes just before KVM_RUN interrupts nothing: it is sent until it has worked.
        while !cpu.is_finished() {
            cpu.kill(SIGRTMIN()).ok();
            std::thread::sleep(Duration::from_millis(1));
        }
        cpu.join().ok();
    }
}

struct Cpu {
    fd: VcpuFd,
    events: Sender<Event>,
    shared: Arc<Shared>,
}

impl Cpu {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let event = match self.fd.run() {
                Ok(VcpuExit::IoOut(program::DOORBELL, _)) => {
                    self.shared.loose_doorbells.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                Ok(VcpuExit::IoOut(program::PORT_FENCE, _)) => Event::Fence,
                Ok(VcpuExit::IoOut(program::PORT_END, data)) => Event::End(data[0]),
                Ok(exit) => Event::Broken(format!("{exit:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error) => Event::Broken(format!("KVM_RUN: {error}")),
            };
            let broken = matches!(event, Event::Broken(_));
            if self.events.send(event).is_err() || broken {
                break;
            }
        }
    }
}

/// An eventfd as a VMM makes them.
pub fn eventfd() -> EventFd {
    let fd: OwnedFd = rustix::event::eventfd(
        0,
        rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
    )
    .expect("eventfd");
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}
