//! KVM's real interrupt and doorbell paths around a back end: a VMM small enough to be controlled to the last step.
//!
//! The doorbell of the guest is a KVM_IOEVENTFD, its interrupt a KVM_IRQFD; the same eventfds go to the back end. The guest
//! ([`program`]) drives the ring by itself and counts its interrupts.

pub mod back_end;
pub mod program;
pub mod vm;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::vm::{Vm, eventfd};

/// Deadline of everything that a healthy machine does in milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Says whether KVM works here, by one whole round trip: doorbell → ioeventfd → this process → irqfd → handler.
///
/// Where it does not: "SKIP(kvm): reason" on stderr, or a failure if REQUIRE_KVM=1 says that it must.
pub fn usable(test: &str) -> bool {
    static PROBED: OnceLock<Result<(), String>> = OnceLock::new();
    match PROBED.get_or_init(|| probe().map_err(|error| format!("{error:#}"))) {
        Ok(()) => true,
        Err(reason) => {
            assert!(
                std::env::var("REQUIRE_KVM").as_deref() != Ok("1"),
                "{test}: KVM does not work here, and REQUIRE_KVM=1 says that it must: {reason}"
            );
            crate::skip("kvm", test, reason);
            false
        }
    }
}

fn probe() -> anyhow::Result<()> {
    const SOON: Duration = Duration::from_secs(5);
    let mut vm = Vm::new(1, 1)?;
    let (kick, call) = (eventfd(), eventfd());
    vm.bind_kick(&kick)?;
    vm.bind_call(&call)?;
    vm.start();
    let deadline = Instant::now() + SOON;
    while kick.read().is_err() {
        if Instant::now() > deadline {
            bail!(
                "the guest's doorbell did not come through the ioeventfd within {SOON:?}; {}",
                vm.state()
            );
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    vm.view().answer_first_request();
    call.write(1).context("write to the irqfd")?;
    vm.wait_for_end(SOON)
}
