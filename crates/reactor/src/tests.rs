//! Against the real kernel: eventfds, pipes, files. Time is used only as a bound after which a test fails loudly.
#![allow(unsafe_code)]

mod ports;
mod watches;

use super::*;
use std::{
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Instant,
};

/// A deadline that only a broken build meets.
const DEADLINE: Duration = Duration::from_secs(20);

fn reactor() -> Reactor {
    Reactor::new(Config::default()).expect("io_uring")
}

/// Waits until something is reported.
fn next(reactor: &mut Reactor) -> Vec<Wake> {
    let start = Instant::now();
    let mut wakes = Vec::new();
    while wakes.is_empty() {
        assert!(start.elapsed() < DEADLINE, "nothing happened");
        reactor.wait(&mut wakes, Some(DEADLINE)).expect("wait");
    }
    wakes
}

/// What is there now, without sleeping.
fn look(reactor: &mut Reactor) -> Vec<Wake> {
    let mut wakes = Vec::new();
    reactor
        .wait(&mut wakes, Some(Duration::ZERO))
        .expect("wait");
    wakes
}

/// Pops `n` completions, waiting as needed.
fn collect(reactor: &mut Reactor, port: &IoPort, n: usize) -> Vec<PortCompletion> {
    let start = Instant::now();
    let mut done = Vec::new();
    let mut wakes = Vec::new();
    while done.len() < n {
        assert!(start.elapsed() < DEADLINE, "{} of {n} came", done.len());
        reactor.wait(&mut wakes, Some(DEADLINE)).expect("wait");
        wakes.clear();
        done.extend(std::iter::from_fn(|| port.pop()));
    }
    done
}

#[test]
fn the_mailbox_wakes_from_another_thread_and_before_the_first_wait() {
    let mut reactor = reactor();
    reactor.waker().notify();
    assert_eq!(next(&mut reactor), [Wake::Mailbox]);
    assert_eq!(look(&mut reactor), []);
    let waker = reactor.waker();
    let thread = std::thread::spawn(move || waker.notify());
    assert_eq!(next(&mut reactor), [Wake::Mailbox]);
    thread.join().unwrap();
}

#[test]
fn a_storm_of_mail_from_two_threads_is_never_lost() {
    use std::sync::atomic::{AtomicU32, Ordering};
    const EACH: u32 = 20_000;
    let mut reactor = reactor();
    let mail = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (mail, waker) = (mail.clone(), reactor.waker());
            std::thread::spawn(move || {
                for _ in 0..EACH {
                    mail.fetch_add(1, Ordering::Release);
                    waker.notify();
                }
            })
        })
        .collect();
    let mut got = 0;
    while got < 2 * EACH {
        // A lost notification leaves this waiting with mail in the box.
        next(&mut reactor);
        got += mail.swap(0, Ordering::Acquire);
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn an_idle_reactor_enters_the_kernel_once_per_wait_and_reports_nothing() {
    let mut reactor = reactor();
    look(&mut reactor); // the polls of its own events
    let before = reactor.counters();
    let mut wakes = Vec::new();
    let limit = Duration::from_millis(30);
    let start = Instant::now();
    reactor.wait(&mut wakes, Some(limit)).unwrap();
    assert!(start.elapsed() >= limit, "came back early");
    assert_eq!(wakes, []);
    let after = reactor.counters();
    assert_eq!(after.enters - before.enters, 1);
    assert_eq!(after.sleeps - before.sleeps, 1);
    assert_eq!((after.cqes, after.sqes), (before.cqes, before.sqes));
}

#[test]
fn looking_costs_no_system_call_when_there_is_nothing() {
    let mut reactor = reactor();
    look(&mut reactor);
    let before = reactor.counters().enters;
    for _ in 0..1000 {
        assert_eq!(look(&mut reactor), []);
    }
    assert_eq!(reactor.counters().enters, before);
}

#[test]
fn looking_finds_deferred_completions() {
    let mut reactor = reactor();
    look(&mut reactor);
    reactor.waker().notify();
    // The poll's completion is task work of this thread: it comes only to those who ask the kernel for it.
    assert_eq!(look(&mut reactor), [Wake::Mailbox]);
}

#[test]
fn a_signal_does_not_end_or_fail_the_reactor() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: installs a handler that does nothing, for a signal that nothing else here uses.
    unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t) };
    let mut reactor = reactor();
    let waker = reactor.waker();
    // SAFETY: plain identification of this thread.
    let sleeper = unsafe { libc::pthread_self() };
    let thread = std::thread::spawn(move || {
        for _ in 0..50 {
            // SAFETY: the sleeper is joined only by the test's end, after this thread.
            unsafe { libc::pthread_kill(sleeper, libc::SIGUSR1) };
            std::thread::yield_now();
        }
        waker.notify();
    });
    assert_eq!(next(&mut reactor), [Wake::Mailbox]);
    thread.join().unwrap();
}
