//! What the whole-daemon tests share.

use std::path::Path;

pub mod daemon;
pub mod guest;
pub mod kvm;
pub mod load;
pub mod process;
pub mod qsd;

/// The top of the source tree.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the repository")
}
