//! Asking the kernel for a ring, and saying what to do when it refuses.

use io_uring::{IoUring, cqueue, squeue};
use std::{fs, io};

pub(crate) type Ring = IoUring<squeue::Entry, cqueue::Entry>;

/// Makes a ring of `entries` submission entries and four times as many completion entries.
///
/// From Linux 6.1 on completions are posted only while this thread waits (`DEFER_TASKRUN`): a thousand kicks while the
/// worker is busy become one completion, and no interrupt of the kernel's disturbs the thread. Linux 5.19 and 6.0 get
/// `COOP_TASKRUN`, which is correct but posts one completion for each. Both set a flag in the submission ring when the
/// thread must enter the kernel to be given completions (`TASKRUN_FLAG`), which a spinning worker relies on.
pub(crate) fn ring(entries: u32) -> io::Result<Ring> {
    let entries = entries.clamp(2, 4096).next_power_of_two();
    let completions = entries.saturating_mul(4);
    let deferred = IoUring::builder()
        .setup_cqsize(completions)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    let ring = match deferred {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
            .setup_cqsize(completions)
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries),
        other => other,
    }
    .map_err(explain)?;
    let params = ring.params();
    if !(params.is_feature_ext_arg() && params.is_feature_nodrop()) {
        return Err(explain(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    Ok(ring)
}

/// The refusal, why it usually happens, and the remedy.
fn explain(e: io::Error) -> io::Error {
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    io::Error::new(e.kind(), refusal(&e, sysctl.trim()))
}

fn refusal(e: &io::Error, sysctl: &str) -> String {
    let why = match (e.raw_os_error(), sysctl) {
        (Some(libc::EPERM | libc::EACCES), "2") => {
            "it is switched off for everybody: `sysctl kernel.io_uring_disabled=0`"
        }
        (Some(libc::EPERM | libc::EACCES), "1") => {
            "it is kept for privileged processes: `sysctl kernel.io_uring_disabled=0`, or add the user to the group \
             named by kernel.io_uring_group"
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a seccomp filter or security module forbids it: allow io_uring_setup, io_uring_enter and \
             io_uring_register in the container's or service's profile (docker: --security-opt seccomp=PROFILE; \
             systemd: SystemCallFilter=@io-event)"
        }
        (Some(libc::ENOSYS), _) => {
            "this kernel is built without it, or a seccomp filter hides it: use Linux 5.19 or later with \
             CONFIG_IO_URING=y, and allow io_uring_setup, io_uring_enter and io_uring_register"
        }
        (Some(libc::EINVAL), _) => "this kernel is too old: Linux 5.19 or later is needed",
        (Some(libc::ENOMEM), _) => {
            "the locked-memory limit is too small or memory is short: raise it (`ulimit -l`, systemd: LimitMEMLOCK=)"
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "too many files are open: raise the limit (`ulimit -n`, systemd: LimitNOFILE=)"
        }
        _ => "the cause is unknown",
    };
    format!("the kernel refused an io_uring ({e}): {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_its_own_remedy() {
        let text = |errno, sysctl| refusal(&io::Error::from_raw_os_error(errno), sysctl);
        assert!(text(libc::EPERM, "2").contains("sysctl kernel.io_uring_disabled=0"));
        assert!(text(libc::EPERM, "1").contains("io_uring_group"));
        assert!(text(libc::EPERM, "0").contains("seccomp"));
        assert!(text(libc::EPERM, "").contains("seccomp"));
        assert!(text(libc::ENOSYS, "").contains("CONFIG_IO_URING"));
        assert!(text(libc::EINVAL, "0").contains("5.19"));
        assert!(text(libc::ENOMEM, "0").contains("LimitMEMLOCK"));
        assert!(text(libc::EMFILE, "0").contains("LimitNOFILE"));
    }
}
