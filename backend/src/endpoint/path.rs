//! Binding a unix socket path so that it never takes a live daemon's place and never leaves a stale one in the way.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How long another daemon may take its turn in the directory: its turn is a few system calls.
const TURN: Duration = Duration::from_secs(5);

/// The socket file we made; removed on drop if it is still the one we made.
#[derive(Debug)]
pub struct BoundPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        // A successor may have replaced the file: leave that one alone.
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on `path`, replacing a stale socket.
///
/// The socket is bound beside the path and renamed onto it once it listens, so that a front end that
/// sees the path can connect to it. Daemons that start at once on one path take turns by a lock on the
/// directory, which leaves no lock file behind.
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, BoundPath)> {
    let shown = path.display();
    let Some(name) = path.file_name() else {
        bail!("socket {shown}: the path has no file name");
    };
    if SocketAddr::from_pathname(path).is_err() {
        bail!(
            "socket {shown}: no unix socket can have this path of {} bytes; choose one of at most 107",
            path.as_os_str().len()
        );
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let turn = File::open(dir).with_context(|| {
        format!(
            "socket {shown}: cannot open the directory {}",
            dir.display()
        )
    })?;
    wait_for_turn(&turn).with_context(|| {
        format!(
            "socket {shown}: cannot lock the directory {}",
            dir.display()
        )
    })?;
    refuse_if_taken(path)?;

    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    // A socket's address is shorter than a path may be, and this name is longer than the one asked for: then the way to it
    // leads through the open directory.
    let through = format!("/proc/self/fd/{}", turn.as_raw_fd());
    let short = Path::new(&through).join(&beside);
    let beside = dir.join(beside);
    let _ = fs::remove_file(&beside);
    let fits = SocketAddr::from_pathname(&beside).is_ok();
    let listener = UnixListener::bind(if fits { &beside } else { &short })
        .with_context(|| format!("socket {shown}: cannot listen"))?;
    let identity = identity(&beside).with_context(|| format!("socket {shown}"))?;
    if let Err(error) = fs::rename(&beside, path) {
        let _ = fs::remove_file(&beside);
        return Err(error)
            .with_context(|| format!("socket {shown}: cannot put the socket in place"));
    }
    Ok((
        listener,
        BoundPath {
            path: path.to_owned(),
            identity,
        },
    ))
}

/// Anybody who can open the directory can lock it for good, so the wait has an end.
fn wait_for_turn(dir: &File) -> io::Result<()> {
    let deadline = Instant::now() + TURN;
    loop {
        match dir.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process holds a lock on it"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// An error unless the path is free or holds a socket on which nobody listens.
fn refuse_if_taken(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("socket {shown}")),
        Ok(meta) if !meta.file_type().is_socket() => {
            bail!("socket {shown}: the path exists and is no socket; remove it or choose another");
        }
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path).with_context(|| format!("socket {shown}"))?;
    // Non-blocking: a live daemon with a full backlog says EAGAIN instead of holding us up.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .with_context(|| format!("socket {shown}"))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => {
            bail!("socket {shown}: in use by a live daemon; stop it or choose another path")
        }
        Err(error) => {
            Err(error).with_context(|| format!("socket {shown}: cannot tell whether it is in use"))
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let (listener, bound) = bind(&path).unwrap();
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("live daemon"), "{error}");
        // The live one was not harmed (the probe of the refused bind comes first in its backlog).
        let _front_end = UnixStream::connect(&path).unwrap();
        drop((listener, bound));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left behind"
        );
    }

    #[test]
    fn a_successors_socket_outlives_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, bound) = bind(&path).unwrap();
        drop(listener);
        let (_successor, _kept) = bind(&path).unwrap();
        drop(bound);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn every_path_that_a_socket_can_have_is_served_and_a_longer_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        // Room for a name of one letter, and for one of two.
        let deep = dir
            .path()
            .join("d".repeat(105 - dir.path().as_os_str().len() - 1));
        fs::create_dir(&deep).unwrap();
        let path = deep.join("s");
        assert_eq!(path.as_os_str().len(), 107);
        let (_listener, bound) = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(bound);
        let error = bind(&deep.join("ss")).unwrap_err().to_string();
        assert!(error.contains("108 bytes"), "{error}");
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_stays_locked_is_an_error_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let other = File::open(dir.path()).unwrap();
        other.lock().unwrap();
        let error = format!("{:#}", bind(&dir.path().join("s")).unwrap_err());
        assert!(error.contains("holds a lock"), "{error}");
        other.unlock().unwrap();
        bind(&dir.path().join("s")).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
