//! The daemon on the kernel's real paths: kicks through KVM_IOEVENTFD, interrupts through KVM_IRQFD, a guest that counts.

use std::io::Write;
use std::time::{Duration, Instant};

use outboard_tests::daemon::{Daemon, Site};
use outboard_tests::kvm::back_end::BackEnd;
use outboard_tests::kvm::program::{SECTORS, SLOTS};
use outboard_tests::kvm::vm::{Vm, eventfd};
use outboard_tests::kvm::{self, DEADLINE};
use vmm_sys_util::eventfd::EventFd;

/// An image whose every sector begins with its own number, which the guest checks.
fn numbered_image(site: &Site) {
    let mut image =
        std::io::BufWriter::new(std::fs::File::create(site.path("numbered.raw")).unwrap());
    let mut sector = [0; 512];
    for number in 0..SECTORS {
        sector[..4].copy_from_slice(&number.to_le_bytes());
        image.write_all(&sector).unwrap();
    }
    image.flush().unwrap();
}

#[test]
fn no_interrupt_is_lost_in_20_000_reads() {
    const READS: u32 = 20_000;
    if !kvm::usable("no_interrupt_is_lost_in_20_000_reads") {
        return;
    }
    let site = Site::new();
    numbered_image(&site);
    let daemon = site.blk(&["--blk-file", "{}/numbered.raw"]);

    let mut vm = Vm::new(READS, 1).unwrap();
    let (kick, call) = (eventfd(), eventfd());
    vm.bind_kick(&kick).unwrap();
    vm.bind_call(&call).unwrap();
    let mut back_end = BackEnd::connect(daemon.socket(), &vm);
    back_end.start(0, &kick, &call);
    vm.start();
    vm.wait_for_end(10 * DEADLINE).unwrap();
    vm.fence();

    // The guest waited for each interrupt before its next request: as many were owed as requests were answered, no
    // fewer (it would sleep still), and one more at most: that of the ring's start.
    let interrupts = vm.view().interrupts();
    assert!(
        (READS..=READS + 1).contains(&interrupts),
        "{interrupts} interrupts; {}",
        vm.state()
    );
    assert_eq!(u32::from(vm.view().used_index()), READS, "{}", vm.state());
    assert_eq!(vm.loose_doorbells(), 0, "a kick went by the ioeventfd");
    drop(back_end);
    daemon.process.stop();
}

#[test]
fn get_vring_base_under_io_is_the_last_word_with_one_request_in_flight() {
    stop_under_io(
        "get_vring_base_under_io_is_the_last_word_with_one_request_in_flight",
        "file:",
        1,
    );
}

#[test]
fn get_vring_base_under_io_is_the_last_word_with_a_batch_in_flight() {
    stop_under_io(
        "get_vring_base_under_io_is_the_last_word_with_a_batch_in_flight",
        "file:",
        SLOTS,
    );
}

#[test]
fn get_vring_base_under_io_is_the_last_word_with_late_and_unordered_completions() {
    // Every request takes its own time, so at each stop some are in flight for sure, and complete during the drain.
    stop_under_io(
        "get_vring_base_under_io_is_the_last_word_with_late_and_unordered_completions",
        "delay:0ms-2ms:file:",
        SLOTS,
    );
}

/// Stops and restarts the ring a thousand times while the guest keeps requests in flight.
///
/// After each reply: the used index equals the base (nothing was left in flight), it never moves again, and no interrupt
/// comes after a fence. At the end no call eventfd of a stopped ring was ever written after the kernel had let go of it,
/// every request was answered rightly (the guest checks), and the daemon holds the descriptors that it held at first.
fn stop_under_io(test: &str, uri: &str, batch: u16) {
    const STOPS: usize = 1_000;
    if !kvm::usable(test) {
        return;
    }
    let site = Site::new();
    numbered_image(&site);
    let daemon = site.blk(&[
        "--workers",
        "1",
        "--disk",
        &format!("{uri}{{}}/numbered.raw"),
    ]);
    // One worker, so that an answered request proves that all of the daemon is up.
    one_session(&daemon);
    let fds_before = {
        let vm = Vm::new(1, 1).unwrap();
        let _connected = BackEnd::connect(daemon.socket(), &vm);
        daemon.process.fds()
    };

    let mut vm = Vm::new(u32::MAX, batch).unwrap();
    let mut back_end = BackEnd::connect(daemon.socket(), &vm);
    let mut random = fastrand::Rng::with_seed(0x0b0a_7d00);
    let mut base = 0;
    let mut retired: Vec<EventFd> = Vec::with_capacity(STOPS);
    for stop in 0..STOPS {
        let (kick, call) = (eventfd(), eventfd());
        vm.bind_kick(&kick).unwrap();
        vm.bind_call(&call).unwrap();
        back_end.start(base, &kick, &call);
        vm.start();

        // The ring serves again, and then some: the stop comes at any point of a round.
        let done = vm.view().rounds_done();
        let more = random.u32(1..=4);
        let deadline = Instant::now() + DEADLINE;
        while vm.view().rounds_done().wrapping_sub(done) < more {
            vm.assert_well();
            assert!(
                Instant::now() < deadline,
                "stop {stop}: the guest sleeps: an interrupt or a kick was lost; {}",
                vm.state()
            );
            std::thread::yield_now();
        }
        let pause = Instant::now() + Duration::from_micros(random.u64(0..100));
        while Instant::now() < pause {
            std::hint::spin_loop();
        }

        // QEMU disables a ring first; another front end need not.
        if stop % 2 == 1 {
            back_end.disable();
        }
        base = back_end.stop();
        let used = vm.view().used_index();
        assert_eq!(
            base,
            used,
            "stop {stop}: requests below the base are unanswered; {}",
            vm.state()
        );
        // The kernel raises an interrupt of the PIC from a work queue, which the deassignment waits for: what was signalled
        // before the reply is with the guest's CPU then, and the fence lets its handler run.
        vm.unbind_call(&call);
        vm.unbind_kick(&kick);
        vm.fence();
        let interrupts = vm.view().interrupts();
        if batch == 1 {
            // Each answer owed one interrupt. One more may come from each start (for a back end that died before it
            // signalled) and one from each stop (the last word before the call descriptor goes).
            let more = (interrupts as u16).wrapping_sub(used);
            assert!(
                usize::from(more) <= 2 * (stop + 1),
                "stop {stop}: {more} interrupts more than answers; {}",
                vm.state()
            );
        }
        vm.fence();
        assert_eq!(
            vm.view().interrupts(),
            interrupts,
            "stop {stop}: an interrupt after the fence; {}",
            vm.state()
        );
        assert_eq!(
            vm.view().used_index(),
            used,
            "stop {stop}: the used index moved after the reply; {}",
            vm.state()
        );
        retired.push(call);
    }
    assert_eq!(
        vm.view().used_index(),
        base,
        "the used index moved after the last reply"
    );
    for (stop, call) in retired.iter().enumerate() {
        assert!(
            call.read().is_err(),
            "stop {stop}: the call eventfd was written after its ring had stopped"
        );
    }
    vm.assert_well();

    drop(back_end);
    // Connected again, as at first: the daemon has taken leave of the last front end.
    let connected = BackEnd::connect(daemon.socket(), &vm);
    let deadline = Instant::now() + DEADLINE;
    while daemon.process.fds() != fds_before {
        assert!(
            Instant::now() < deadline,
            "descriptors after {STOPS} stops:\n{:?}\nbefore:\n{fds_before:?}",
            daemon.process.fds()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(connected);
    daemon.process.stop();
}

/// The whole life of a front end, with one answered request.
fn one_session(daemon: &Daemon) {
    let mut vm = Vm::new(1, 1).unwrap();
    let (kick, call) = (eventfd(), eventfd());
    vm.bind_kick(&kick).unwrap();
    vm.bind_call(&call).unwrap();
    let mut back_end = BackEnd::connect(daemon.socket(), &vm);
    back_end.start(0, &kick, &call);
    vm.start();
    vm.wait_for_end(DEADLINE).unwrap();
    assert_eq!(back_end.stop(), 1);
}
