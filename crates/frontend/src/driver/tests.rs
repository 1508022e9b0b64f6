//! The driver's waits, against a device that obeys the test.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::wait::fd;
use super::*;
use crate::request::STATUS_NONE;
use crate::wire::wait_readable;

const LONG: Duration = Duration::from_secs(60);

/// The device's side of a ring with one request in flight, by guest addresses alone.
struct Device {
    memory: Arc<Memory>,
    avail: u64,
    used: u64,
    size: u64,
    call: EventFd,
}

impl Device {
    fn of(driver: &mut Driver) -> Self {
        let [_, avail, used] = driver.ring().guest_addresses();
        Self {
            memory: Arc::clone(driver.memory()),
            avail: avail.0,
            used: used.0,
            size: u64::from(driver.options().size),
            call: driver.call_fd().try_clone().unwrap(),
        }
    }

    /// Returns when the driver has asked for a call at entry `index`.
    fn wait_armed(&self, index: u16) {
        let at = GuestAddress(self.avail + 4 + 2 * self.size);
        while self.memory.map().load::<u16>(at, Ordering::SeqCst).unwrap() != index {
            std::thread::yield_now();
        }
    }

    /// Completes the first chain of the avail ring.
    fn complete_first(&self) {
        let map = self.memory.map();
        let head: u16 = map.read_obj(GuestAddress(self.avail + 4)).unwrap();
        map.write_obj(u32::from(head), GuestAddress(self.used + 4))
            .unwrap();
        map.write_obj(1_u32, GuestAddress(self.used + 8)).unwrap();
        map.store(1_u16, GuestAddress(self.used + 2), Ordering::SeqCst)
            .unwrap();
    }
}

fn driver(completion: Completion) -> Driver {
    let memory = Memory::new(&[1 << 20]).unwrap();
    let options = QueueOptions {
        size: 4,
        slots: 2,
        max_data: 512,
        completion,
        ..QueueOptions::default()
    };
    Driver::new(&memory, 0, options, true, true).unwrap()
}

#[test]
fn a_completion_without_its_call_is_a_lost_interrupt() {
    // The silent completion must fall into a wait, not between two of them: on a machine that stalls for so long that
    // it does not, the scenario is set up again.
    for _ in 0..10 {
        let mut driver = driver(Completion::Event);
        let device = Device::of(&mut driver);
        let slot = driver.submit(&Request::flush()).unwrap();
        driver.kick().unwrap();
        let silent = std::thread::spawn(move || {
            device.wait_armed(0);
            device.complete_first();
        });
        let result = driver.wait_used(Duration::from_millis(200));
        silent.join().unwrap();
        match result {
            Err(Error::LostCall { state, .. }) => {
                assert_eq!(state.used_idx, 1);
                let reply = driver.wait_for(slot, LONG).unwrap();
                assert_eq!(reply.status, STATUS_NONE, "the device wrote no status");
                return;
            }
            Err(Error::Timeout { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("the completion never came within the wait");
}

#[test]
fn a_completion_with_its_call_wakes_the_driver_and_counts() {
    let mut driver = driver(Completion::Event);
    let device = Device::of(&mut driver);
    let slot = driver.submit(&Request::flush()).unwrap();
    assert!(driver.kick().unwrap());
    let call = std::thread::spawn(move || {
        device.wait_armed(0);
        // First a call for nothing: the driver must look, count it, and sleep on.
        device.call.write(1).unwrap();
        while wait_readable(fd(&device.call), Instant::now()).unwrap() {
            std::thread::yield_now();
        }
        device.complete_first();
        device.call.write(1).unwrap();
    });
    driver.wait_for(slot, LONG).unwrap();
    call.join().unwrap();
    let counters = driver.counters();
    assert_eq!(
        (
            counters.kicks,
            counters.calls,
            counters.empty_wakeups,
            counters.completed
        ),
        (1, 2, 1, 1)
    );
}

#[test]
fn a_polling_driver_asks_for_no_call_and_still_sees_the_completion() {
    let mut driver = driver(Completion::Polled);
    let device = Device::of(&mut driver);
    let slot = driver.submit(&Request::flush()).unwrap();
    let before = driver.state().used_event;
    driver.kick().unwrap();
    let silent = std::thread::spawn(move || device.complete_first());
    driver.wait_for(slot, LONG).unwrap();
    silent.join().unwrap();
    assert_eq!(driver.state().used_event, before, "never armed");
    assert_eq!(driver.counters().calls, 0);
}

#[test]
fn a_slow_device_is_a_timeout_that_shows_the_ring() {
    for completion in [Completion::Event, Completion::Polled] {
        let mut driver = driver(completion);
        let slot = driver.submit(&Request::read(0, 512)).unwrap();
        driver.kick().unwrap();
        let error = driver.wait_for(slot, Duration::from_millis(1)).unwrap_err();
        assert!(
            matches!(error, Error::Timeout { state, .. } if state.in_flight == 1),
            "{error}"
        );
        assert!(
            error.to_string().contains("avail.idx 1, used.idx 0"),
            "{error}"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_and_costs_nothing() {
    let mut driver = driver(Completion::Event);
    assert!(
        matches!(
            driver.submit(&Request::read(0, 1024)),
            Err(Error::BadRequest(_))
        ),
        "beyond the slot"
    );
    let many = Request::read(0, 512).cut(&[16], &[1; 200]).indirect(true);
    assert!(
        matches!(driver.submit(&many), Err(Error::BadRequest(_))),
        "beyond the indirect table"
    );
    let many = Request::read(0, 512).cut(&[16], &[1; 4]);
    assert!(matches!(
        driver.submit(&many),
        Err(Error::RingFull { wanted: 5, .. })
    ));
    assert_eq!((driver.free_slots(), driver.in_flight()), (2, 0));
    driver.submit(&Request::read(0, 512)).unwrap();
}
