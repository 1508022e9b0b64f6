//! Disks behind one contract.
// SKELETON: signatures other crates build against; the bodies are the author's.
pub mod disk;
pub mod uri;
