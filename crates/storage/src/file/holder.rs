//! Who holds an image, for the text of an error.
//!
//! Neither `F_OFD_GETLK` nor `/proc/locks` names the holder of an OFD lock (they say pid -1), but `/proc/PID/fdinfo/FD` lists the
//! locks of its file description. So look for a descriptor that is our file and has locks. Processes of other users stay invisible
//! without privilege: then the text names nobody.
use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// A process that has the file with these numbers open and locked: `qemu-system-x86 (pid 1234)`.
pub(super) fn find(device: u64, inode: u64) -> Option<String> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if holds(&process.path(), device, inode) {
            if pid == std::process::id() {
                return Some("this very process".into());
            }
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let command: String = command.trim().chars().filter(|c| !c.is_control()).collect();
            return Some(format!("{command} (pid {pid})"));
        }
    }
    None
}

fn holds(process: &Path, device: u64, inode: u64) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    descriptors.flatten().any(|fd| {
        // Follows the link to the open file itself.
        let same =
            fs::metadata(fd.path()).is_ok_and(|file| file.dev() == device && file.ino() == inode);
        same && fs::read_to_string(process.join("fdinfo").join(fd.file_name()))
            .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    })
}
