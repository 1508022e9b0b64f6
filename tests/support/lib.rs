//! What the whole-daemon tests share.

pub mod process;
pub mod qsd;
