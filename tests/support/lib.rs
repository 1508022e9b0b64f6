//! What the whole-daemon tests share.

use std::io::Write;
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

/// Says that a test cannot run here, on stderr itself: `eprintln!` is hidden by the test harness where the test passes.
/// `tests/run` counts these lines.
pub fn skip(what: &str, test: &str, reason: &str) {
    writeln!(std::io::stderr(), "SKIP({what}): {test}: {reason}").ok();
}
