//! What the whole-daemon tests share.

pub mod daemon;
pub mod load;
pub mod process;
pub mod qsd;
