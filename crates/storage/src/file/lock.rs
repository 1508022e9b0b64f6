//! QEMU's image locks, so that its tools and we respect each other.
//!
//! QEMU describes what a user of an image does, and what it lets others do at the same time, by permissions, one bit each:
//! consistent read, write, write-unchanged, resize. A user holds a *shared* lock on byte `100 + bit` for each permission
//! it uses, and on byte `200 + bit` for each permission it does **not** share with others. Nobody ever holds an exclusive lock; a
//! user asks instead whether an exclusive lock *would* succeed: on `200 + bit` for each permission it wants (does somebody refuse to
//! share it?), on `100 + bit` for each it does not share (does somebody use it?).
//!
//! Locks first, questions after: of two users that start together at least one sees the other. (Both may see each other and both
//! give up, as with QEMU.)
//!
//! The locks are OFD locks: they belong to the open file description, not to the process. They travel with a descriptor that is
//! handed to another process, and go when its last copy is closed, also when the process is killed.
#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd};

const PERMISSION_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

const CONSISTENT_READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
const RESIZE: u8 = 1 << 3;
/// Consistent read, write, write-unchanged, resize.
const BITS: std::ops::Range<u8> = 0..4;

/// What we do with the image and do not let others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    uses: u8,
    unshared: u8,
}

impl Claim {
    /// The only writer; readers that insist on nothing may look on.
    pub(super) const WRITER: Claim = Claim {
        uses: CONSISTENT_READ | WRITE,
        unshared: WRITE | RESIZE,
    };
    /// One of several readers, none of whom lets anybody write.
    pub(super) const READER: Claim = Claim {
        uses: CONSISTENT_READ,
        unshared: WRITE | RESIZE,
    };
}

/// Why there is no lock.
#[derive(Debug)]
pub(super) enum LockError {
    /// Somebody uses the image in a way that we do not share, or does not share what we want.
    Conflict,
    /// The filesystem cannot lock.
    Unsupported(io::Error),
}

/// Claims the image for the open file description of `file`. After an error the caller closes the file, which takes back what was
/// locked so far.
pub(super) fn acquire(file: &File, claim: Claim) -> Result<(), LockError> {
    for bit in BITS {
        if claim.uses & (1 << bit) != 0 {
            lock_shared(file, PERMISSION_BASE + i64::from(bit))?;
        }
        if claim.unshared & (1 << bit) != 0 {
            lock_shared(file, UNSHARED_BASE + i64::from(bit))?;
        }
    }
    for bit in BITS {
        if claim.uses & (1 << bit) != 0 {
            require_no_other(file, UNSHARED_BASE + i64::from(bit))?;
        }
        if claim.unshared & (1 << bit) != 0 {
            require_no_other(file, PERMISSION_BASE + i64::from(bit))?;
        }
    }
    Ok(())
}

fn one_byte(kind: i32, at: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0, // OFD locks want it so
    }
}

fn lock_shared(file: &File, at: i64) -> Result<(), LockError> {
    let lock = one_byte(libc::F_RDLCK, at);
    // SAFETY: the descriptor is open as long as `file` lives, and the kernel reads one flock from `lock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(refused(io::Error::last_os_error())),
    }
}

fn require_no_other(file: &File, at: i64) -> Result<(), LockError> {
    let mut lock = one_byte(libc::F_WRLCK, at);
    // SAFETY: the descriptor is open as long as `file` lives, and the kernel reads and writes one flock at `lock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } {
        0 if lock.l_type == libc::F_UNLCK as libc::c_short => Ok(()),
        0 => Err(LockError::Conflict),
        _ => Err(refused(io::Error::last_os_error())),
    }
}

fn refused(error: io::Error) -> LockError {
    match error.raw_os_error() {
        // Somebody holds an exclusive lock, which QEMU never does, but a backup tool may.
        Some(libc::EAGAIN | libc::EACCES) => LockError::Conflict,
        _ => LockError::Unsupported(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        (dir, path)
    }

    fn writable(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn is_conflict(result: Result<(), LockError>) -> bool {
        matches!(result, Err(LockError::Conflict))
    }

    #[test]
    fn a_writer_keeps_writers_and_readers_out_even_in_one_process() {
        let (_dir, path) = image();
        let first = writable(&path);
        acquire(&first, Claim::WRITER).unwrap();
        assert!(is_conflict(acquire(&writable(&path), Claim::WRITER)));
        assert!(is_conflict(acquire(
            &File::open(&path).unwrap(),
            Claim::READER
        )));
        drop(first);
        acquire(&writable(&path), Claim::WRITER).unwrap();
    }

    #[test]
    fn readers_share_and_keep_a_writer_out() {
        let (_dir, path) = image();
        let readers = [File::open(&path).unwrap(), File::open(&path).unwrap()];
        for reader in &readers {
            acquire(reader, Claim::READER).unwrap();
        }
        assert!(is_conflict(acquire(&writable(&path), Claim::WRITER)));
    }

    #[test]
    fn the_lock_lives_as_long_as_a_copy_of_the_descriptor() {
        let (_dir, path) = image();
        let first = writable(&path);
        acquire(&first, Claim::WRITER).unwrap();
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(is_conflict(acquire(&writable(&path), Claim::WRITER)));
        drop(copy);
        acquire(&writable(&path), Claim::WRITER).unwrap();
    }

    #[test]
    fn an_exclusive_lock_of_somebody_else_is_a_conflict() {
        let (_dir, path) = image();
        let other = writable(&path);
        let mut whole = one_byte(libc::F_WRLCK, 0);
        whole.l_len = 0;
        // SAFETY: as in `lock_shared`.
        let locked = unsafe { libc::fcntl(other.as_raw_fd(), libc::F_OFD_SETLK, &whole) };
        assert_eq!(locked, 0);
        assert!(is_conflict(acquire(&writable(&path), Claim::READER)));
    }
}
