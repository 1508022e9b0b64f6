//! Block devices made of files, where the machine lets us (root, loop driver).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

pub struct LoopDevice {
    pub path: PathBuf,
}

impl LoopDevice {
    /// A device over `file` with blocks of `block` bytes; `None` (and a line why) if that is impossible here. With
    /// `REQUIRE_LOOP=1` impossible is a failure.
    pub fn over(file: &Path, block: u32) -> Option<LoopDevice> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block.to_string()])
            .arg(file)
            .output();
        let why = match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap().trim().into();
                return Some(LoopDevice { path });
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(e) => e.to_string(),
        };
        assert!(
            std::env::var_os("REQUIRE_LOOP").is_none(),
            "no loop device: {why}"
        );
        eprintln!("SKIP(loop): {}", why.trim());
        None
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let done = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("cannot detach {}", self.path.display());
        }
    }
}
