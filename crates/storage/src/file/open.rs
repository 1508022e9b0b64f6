//! From a path to a disk. Every reason to refuse is one line that says what to do.
//!
//! The order matters: nothing is opened before it is known to be a file of the right kind (opening a pipe blocks, opening a tape
//! rewinds it), nothing is measured before the lock is held, and the only thing ever tried on the image (can it
//! punch holes? behind its end) comes last. The image is never created, and a refused one is not changed.
use super::{
    Abilities, FileDisk, Image, Kind, Loss, blockdev, helper::Helper, holder, lock, probe,
};
use crate::uri::{OpenError, OpenOptions};
use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, atomic::AtomicI32},
    time::{Duration, Instant},
};

/// Direct I/O that needs more than this fits no guest.
const MAX_BLOCK: u32 = 65536;

/// How long to wait for a lock that nobody visible holds: a killed process is gone before its last operations are, and
/// until these are done its open file, and with it the lock, lives on in the kernel. So whoever starts a daemon again right after it was
/// killed must not be refused, nor let in before the old one's last write has landed.
const LINGER: Duration = Duration::from_secs(5);

/// Opens and locks the image at `path`; `uri` is its name from then on.
pub(crate) fn open(uri: &str, path: &Path, options: &OpenOptions) -> Result<FileDisk, OpenError> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|e| cannot_open(path, options, &e))?;
    let kind = kind_of(path, &meta)?;
    let deadline = Instant::now() + LINGER;
    let file = open_locked(path, options, &meta, kind, || {
        std::thread::sleep(LINGER / 200);
        Instant::now() < deadline
    })?;

    let failed = |what: &str, e: &dyn std::fmt::Display| {
        OpenError(format!("cannot ask {shown} for its {what}: {e}"))
    };
    let size = match kind {
        Kind::Regular => file.metadata().map(|meta| meta.len()),
        Kind::BlockDevice => blockdev::size(&file),
    }
    .map_err(|e| failed("size", &e))?;
    if size == 0 {
        return Err(OpenError(format!(
            "{shown} is empty, and a disk cannot be; give it a size with: truncate -s 10G {shown}"
        )));
    }

    let direct = if options.cache.is_direct() {
        match probe::alignment(&file, kind).map_err(|e| failed("alignment", &e))? {
            probe::Direct::Possible(align) => Some(align),
            probe::Direct::Impossible => return Err(no_direct(path, options)),
        }
    } else {
        None
    };
    let block = block_size(path, &file, kind, direct, options)?;
    if size % u64::from(block) != 0 {
        return Err(OpenError(format!(
            "the size of {shown}, {size} bytes, is not a multiple of the block size {block}; lengthen it with: truncate -s %{block} {shown}"
        )));
    }

    let limits = match kind {
        Kind::Regular => probe::file_limits(&file, block, options.read_only),
        Kind::BlockDevice => probe::device_limits(&file, block, options.read_only),
    }
    .map_err(|e| failed("limits", &e))?;
    Ok(FileDisk {
        image: Arc::new(Image {
            name: uri.to_owned(),
            file,
            kind,
            size,
            limits,
            read_only: options.read_only,
            writethrough: options.cache.is_writethrough(),
            volatile: options.cache == crate::uri::CacheMode::Unsafe,
            direct,
            can: Abilities::new(),
            loss: Loss(AtomicI32::new(0)),
            helper: Helper::new(),
        }),
    })
}

/// Refuses to write to a block device that the kernel itself uses (mounted, swap, part of a volume group or RAID). The exclusive open
/// is for this question only and given back at once: kept, it would lock out readers and a successor process.
fn require_unclaimed(path: &Path) -> Result<(), OpenError> {
    match File::options()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_NOCTTY)
        .open(path)
    {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(OpenError(format!(
            "the device {} is in use on this host (mounted, swap, or part of a larger device); release it, or open it read-only",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn kind_of(path: &Path, meta: &Metadata) -> Result<Kind, OpenError> {
    let shown = path.display();
    let kind = meta.file_type();
    let what = if kind.is_file() {
        return Ok(Kind::Regular);
    } else if kind.is_block_device() {
        return Ok(Kind::BlockDevice);
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "something unknown"
    };
    Err(OpenError(format!(
        "{shown} is {what}; give an image file or a block device"
    )))
}

fn cannot_open(path: &Path, options: &OpenOptions, error: &io::Error) -> OpenError {
    let shown = path.display();
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT) => format!("make an image with: truncate -s 10G {shown}"),
        Some(libc::EACCES | libc::EPERM) if options.read_only => {
            "run as a user who may read it".into()
        }
        Some(libc::EACCES | libc::EPERM) => {
            "run as a user who may write to it, or open it read-only".into()
        }
        Some(libc::EROFS) => "open it read-only".into(),
        Some(libc::EINVAL) if options.cache.is_direct() => return no_direct(path, options),
        Some(libc::ENOTDIR) => "a part of the path is no directory".into(),
        Some(libc::ELOOP) => "too many symbolic links".into(),
        Some(libc::EBUSY) => "something else uses the device; unmount or release it".into(),
        Some(libc::ETXTBSY) => "it is being executed, or in use as swap space".into(),
        Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => {
            "there is no such device, or no medium in it".into()
        }
        _ => "check the path".into(),
    };
    // Without "(os error 2)", which helps nobody.
    let why = error.raw_os_error().map_or_else(
        || error.to_string(),
        |e| rustix::io::Errno::from_raw_os_error(e).to_string(),
    );
    let why = why
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned();
    OpenError(format!("cannot open the image {shown}: {why}; {advice}"))
}

fn no_direct(path: &Path, options: &OpenOptions) -> OpenError {
    let instead = if options.cache.is_writethrough() {
        "writethrough"
    } else {
        "writeback"
    };
    OpenError(format!(
        "{} lies on a filesystem without direct I/O, which cache mode {} needs; use cache mode {instead}",
        path.display(),
        options.cache
    ))
}

/// The logical block size: what was asked for, if direct I/O and the device can do with it.
fn block_size(
    path: &Path,
    file: &File,
    kind: Kind,
    direct: Option<probe::Alignment>,
    options: &OpenOptions,
) -> Result<u32, OpenError> {
    let shown = path.display();
    let of_device = match kind {
        Kind::Regular => probe::SECTOR,
        Kind::BlockDevice => rustix::fs::ioctl_blksszget(file)
            .map_err(|e| OpenError(format!("cannot ask {shown} for its block size: {e}")))?,
    };
    let smallest = of_device
        .max(probe::SECTOR)
        .max(direct.map_or(0, |align| align.io));
    if smallest > MAX_BLOCK || !smallest.is_power_of_two() {
        return Err(OpenError(format!(
            "{shown} has blocks of {smallest} bytes, which no guest can use; use cache mode writeback"
        )));
    }
    match options.block_size {
        Some(size) if size < smallest && of_device < smallest => Err(OpenError(format!(
            "block size {size} is too small for direct I/O on {shown}, which needs {smallest}; use block size {smallest} or cache mode writeback"
        ))),
        Some(size) if size < smallest => Err(OpenError(format!(
            "block size {size} is smaller than the blocks of {shown}; use block size {smallest}"
        ))),
        Some(size) => Ok(size),
        None => Ok(smallest),
    }
}

/// Opens and locks. While the lock is taken by nobody who can be seen, asks again as long as `wait` says so.
fn open_locked(
    path: &Path,
    options: &OpenOptions,
    meta: &Metadata,
    kind: Kind,
    mut wait: impl FnMut() -> bool,
) -> Result<File, OpenError> {
    let claim = if options.read_only {
        lock::Claim::READER
    } else {
        lock::Claim::WRITER
    };
    loop {
        let file = open_same(path, options, meta)?;
        if kind == Kind::BlockDevice && !options.read_only {
            require_unclaimed(path)?;
        }
        match lock::acquire(&file, claim) {
            Ok(()) => return Ok(file),
            Err(lock::LockError::Unsupported(e)) => {
                return Err(OpenError(format!(
                    "cannot lock {} against a second writer: {e}; put the image on a filesystem with byte-range locks",
                    path.display()
                )));
            }
            Err(lock::LockError::Conflict) => {
                // Closed first, so that the search for the holder does not find ourselves.
                drop(file);
                let holder = holder::find(meta.dev(), meta.ino());
                if holder.is_some() || !wait() {
                    return Err(locked(path, options, holder));
                }
            }
        }
    }
}

/// Opens the file that `meta` is about.
fn open_same(path: &Path, options: &OpenOptions, meta: &Metadata) -> Result<File, OpenError> {
    let direct = if options.cache.is_direct() {
        libc::O_DIRECT
    } else {
        0
    };
    let file = File::options()
        .read(true)
        .write(!options.read_only)
        .custom_flags(direct | libc::O_NOCTTY)
        .open(path)
        .map_err(|e| cannot_open(path, options, &e))?;
    let opened = file
        .metadata()
        .map_err(|e| cannot_open(path, options, &e))?;
    if (opened.dev(), opened.ino(), opened.rdev()) != (meta.dev(), meta.ino(), meta.rdev()) {
        return Err(OpenError(format!(
            "{} was replaced while it was being opened; try again",
            path.display()
        )));
    }
    Ok(file)
}

fn locked(path: &Path, options: &OpenOptions, holder: Option<String>) -> OpenError {
    let who = holder.unwrap_or_else(|| "another program".into());
    let advice = if options.read_only {
        "wait until it lets go"
    } else {
        "stop it, or wait until it lets go"
    };
    OpenError(format!(
        "the image {} is locked: {who} uses it; {advice}",
        path.display()
    ))
}

#[cfg(test)]
mod tests;
