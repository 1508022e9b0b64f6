//! Driver and device in random step: nobody sleeps through work, and every request comes back exactly once.
use super::{EVENT_IDX, INDIRECT};
use crate::mock::{Buffer, MockDriver, MockMemory};
use crate::queue::{Queue, QueueError};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// One step of either side. Steps are whole calls; what happens between their loads and stores is the loom tests' part.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The driver makes up to so many requests available, and kicks if that is wanted.
    Submit(u16),
    /// The driver takes what is used.
    Take,
    /// The driver goes to sleep unless something is used.
    DriverSleeps,
    /// The driver does not want calls for the time being.
    NoCalls,
    /// A call arrives, if one was made.
    CallArrives,
    /// The device, if awake, pops up to so many.
    Pop(u16),
    /// The device finishes up to so many requests, starting with the n-th in flight.
    Finish(u16, usize),
    /// The device publishes, and calls if that is wanted.
    Publish,
    /// The device does not want kicks for the time being.
    NoKicks,
    /// The device goes to sleep unless something is available.
    DeviceSleeps,
    /// A kick arrives, if one was made.
    KickArrives,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u16..6).prop_map(Step::Submit),
        Just(Step::Take),
        Just(Step::DriverSleeps),
        Just(Step::NoCalls),
        Just(Step::CallArrives),
        (1u16..6).prop_map(Step::Pop),
        ((1u16..6), any::<usize>()).prop_map(|(count, from)| Step::Finish(count, from)),
        Just(Step::Publish),
        Just(Step::NoKicks),
        Just(Step::DeviceSleeps),
        Just(Step::KickArrives),
    ]
}

struct Model {
    driver: MockDriver,
    queue: Queue,
    table: u64,
    /// Requests by head: what the device will say it wrote, once it has said so.
    expected: BTreeMap<u16, Option<u32>>,
    in_flight: Vec<u16>,
    submitted: u32,
    taken: u32,
    finished: u32,
    call: bool,
    kick: bool,
    driver_sleeps: bool,
    device_sleeps: bool,
}

impl Model {
    fn new(size: u16, features: u64, start: u16) -> Model {
        let memory = MockMemory::flat(0x10_0000);
        let mut driver = MockDriver::starting_at(&memory, 0, size, features, start);
        let table = driver.alloc(16 * 0x1_0000, 16);
        let queue = Queue::new(&driver.config(), memory.lease()).unwrap();
        Model {
            driver,
            queue,
            table: table + 1,
            expected: BTreeMap::new(),
            in_flight: vec![],
            submitted: 0,
            taken: 0,
            finished: 0,
            call: false,
            kick: false,
            driver_sleeps: false,
            device_sleeps: false,
        }
    }

    fn take(&mut self) {
        while let Some((head, written)) = self.driver.take_used() {
            assert_eq!(
                self.expected.remove(&head),
                Some(Some(written)),
                "head {head}"
            );
            self.taken += 1;
        }
    }

    fn run(&mut self, step: Step) -> Result<(), QueueError> {
        match step {
            Step::Submit(count) => {
                for n in 0..count {
                    let buffers = [Buffer::readable(0x4000, 8), Buffer::writable(0x5000, 8)];
                    let head = match n % 2 {
                        0 => self.driver.add(&buffers),
                        _ => self
                            .driver
                            .add_indirect(self.table + 16 * u64::from(n), &buffers[..1]),
                    };
                    let Some(head) = head else { break };
                    assert_eq!(self.expected.insert(head, None), None);
                    self.submitted += 1;
                }
                self.kick |= self.driver.make_available();
            }
            Step::Take => self.take(),
            Step::DriverSleeps => {
                self.driver_sleeps = !self.driver.enable_calls();
            }
            Step::NoCalls if !self.driver_sleeps => self.driver.disable_calls(),
            Step::CallArrives if std::mem::take(&mut self.call) => {
                self.driver_sleeps = false;
                self.take();
            }
            Step::Pop(count) if !self.device_sleeps => {
                for _ in 0..count {
                    let Some(chain) = self.queue.pop()? else {
                        break;
                    };
                    assert_eq!(
                        self.expected.get(&chain.head),
                        Some(&None),
                        "popped twice or never submitted"
                    );
                    self.in_flight.push(chain.head);
                }
            }
            Step::Finish(count, from) => {
                for _ in 0..count.min(self.in_flight.len() as u16) {
                    let head = self.in_flight.swap_remove(from % self.in_flight.len());
                    self.finished += 1;
                    self.expected.insert(head, Some(self.finished));
                    self.queue.push_used(head, self.finished)?;
                }
            }
            Step::Publish => self.call |= self.queue.publish(),
            Step::NoKicks if !self.device_sleeps => self.queue.mute_kicks(),
            Step::DeviceSleeps => self.device_sleeps = !self.queue.arm_kicks(),
            Step::KickArrives if std::mem::take(&mut self.kick) => self.device_sleeps = false,
            _ => {}
        }
        Ok(())
    }

    /// Whoever sleeps has nothing to do, or will be woken.
    fn check(&self) {
        assert!(
            !self.device_sleeps || self.kick || !self.queue.has_avail(),
            "the device sleeps through requests"
        );
        let waiting = self.queue.next_used() != self.config_start().wrapping_add(self.taken as u16);
        assert!(
            !self.driver_sleeps || self.call || !waiting,
            "the driver sleeps through used elements"
        );
        assert_eq!(usize::from(self.queue.in_flight()), self.in_flight.len());
    }

    fn config_start(&self) -> u16 {
        self.driver.config().next_avail
    }

    /// What the sides do when nothing new comes in; they only move when awake or woken.
    fn settle(&mut self) -> Result<(), QueueError> {
        let all = self.driver.config().size;
        // A side that is awake works and goes to sleep; one that sleeps is woken only by what was signalled.
        for _ in 0..4 {
            let device = [
                Step::KickArrives,
                Step::Pop(all),
                Step::Finish(all, 0),
                Step::Publish,
                Step::DeviceSleeps,
            ];
            let driver = [Step::CallArrives, Step::Take, Step::DriverSleeps];
            for step in device.into_iter().chain(driver) {
                if !(matches!(step, Step::Take) && self.driver_sleeps) {
                    self.run(step)?;
                    self.check();
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nobody_sleeps_through_work_and_every_request_comes_back_once(
        steps in vec(step(), 1..200),
        log in 0u32..6,
        event_idx in any::<bool>(),
        start in prop_oneof![any::<u16>(), 0xff80u16..],
    ) {
        let features = INDIRECT | if event_idx { EVENT_IDX } else { 0 };
        let mut model = Model::new(1 << log, features, start);
        for step in steps {
            model.run(step)?;
            model.check();
        }
        model.settle()?;
        prop_assert_eq!(model.taken, model.submitted);
        prop_assert!(model.expected.is_empty() && model.driver.outstanding() == 0);
        prop_assert_eq!(model.driver.free_descriptors(), 1usize << log);
    }
}

/// A flag that is set to wake and cleared by waking, as an eventfd is.
#[derive(Default)]
struct Doorbell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Doorbell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }
    /// Generous: only a lost notification waits for so long.
    fn wait(&self, who: &str) {
        let rung = self.rung.lock().unwrap();
        let (mut rung, timeout) = self
            .changed
            .wait_timeout_while(rung, Duration::from_secs(60), |rung| !*rung)
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "{who} waits for a notification that does not come"
        );
        *rung = false;
    }
}

/// Both sides on threads of their own, sleeping whenever they may, through more than one wrap of the indices.
fn two_threads(features: u64) {
    const REQUESTS: u32 = 70_000;
    let memory = MockMemory::flat(0x10_0000);
    let mut driver = MockDriver::new(&memory, 0, 16, features);
    let config = driver.config();
    let (kick, call) = (Doorbell::default(), Doorbell::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A queue belongs to its thread.
            let mut queue = Queue::new(&config, memory.lease()).unwrap();
            let mut served = 0;
            while served < REQUESTS {
                queue.mute_kicks();
                while let Some(chain) = queue.pop().unwrap() {
                    queue.push_used(chain.head, served).unwrap();
                    served += 1;
                    // Batches of varying size.
                    if served % 7 < 2 && queue.publish() {
                        call.ring();
                    }
                }
                if queue.publish() {
                    call.ring();
                }
                if served < REQUESTS && !queue.arm_kicks() {
                    kick.wait("the device");
                }
            }
        });
        let (mut submitted, mut taken) = (0, 0);
        while taken < REQUESTS {
            driver.disable_calls();
            while submitted < REQUESTS {
                let count = 1 + submitted as usize % 3;
                if driver
                    .add(&vec![Buffer::readable(0x4000, 8); count])
                    .is_none()
                {
                    break;
                }
                submitted += 1;
                if driver.make_available() {
                    kick.ring();
                }
            }
            while let Some((_, written)) = driver.take_used() {
                assert_eq!(written, taken, "in the order served");
                taken += 1;
            }
            if taken < REQUESTS
                && driver.free_descriptors() < 3 | (submitted == REQUESTS) as usize
                && !driver.enable_calls()
            {
                call.wait("the driver");
            }
        }
        assert_eq!((submitted, driver.outstanding()), (REQUESTS, 0));
    });
}

#[test]
fn two_threads_with_event_idx() {
    two_threads(EVENT_IDX);
}

#[test]
fn two_threads_with_flags() {
    two_threads(0);
}
