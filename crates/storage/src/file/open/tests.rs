use super::*;
use crate::{disk::Disk, uri::CacheMode};
use std::path::PathBuf;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn image(&self, len: u64) -> PathBuf {
        let path = self.0.path().join("image");
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

fn open_with(path: &Path, options: &OpenOptions) -> Result<FileDisk, String> {
    open("file:x", path, options).map_err(|e| e.to_string())
}

fn error(path: &Path, options: &OpenOptions) -> String {
    let text = open_with(path, options).map(|_| ()).unwrap_err();
    assert!(!text.contains('\n') && !text.contains("os error"), "{text}");
    text
}

#[test]
fn a_missing_image_is_named_and_not_created() {
    let dir = Dir::new();
    let path = dir.0.path().join("missing");
    let text = error(&path, &OpenOptions::default());
    assert!(
        text.contains(path.to_str().unwrap()) && text.contains("truncate"),
        "{text}"
    );
    assert!(!path.exists());
}

#[test]
fn what_is_no_image_is_refused_by_its_kind() {
    let dir = Dir::new();
    let options = OpenOptions::default();
    assert!(error(dir.0.path(), &options).contains("a directory"));
    assert!(error(Path::new("/dev/null"), &options).contains("a character device"));
    let pipe = dir.0.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    // Would hang if it were opened for reading.
    assert!(
        error(
            &pipe,
            &OpenOptions {
                read_only: true,
                ..options.clone()
            }
        )
        .contains("a pipe")
    );
    let socket = dir.0.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(error(&socket, &options).contains("a socket"));
}

#[test]
fn an_empty_image_and_one_with_a_broken_last_block_are_refused_and_left_alone() {
    let dir = Dir::new();
    let path = dir.image(0);
    assert!(error(&path, &OpenOptions::default()).contains("is empty"));
    let path = dir.image(10_000);
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    let text = error(&path, &OpenOptions::default());
    assert!(
        text.contains("10000 bytes") && text.contains("multiple of the block size 512"),
        "{text}"
    );
    let after = std::fs::metadata(&path).unwrap();
    assert_eq!((after.len(), after.modified().unwrap()), (10_000, before));
    let path = dir.image(512 * 9);
    let options = OpenOptions {
        block_size: Some(4096),
        ..Default::default()
    };
    assert!(error(&path, &options).contains("block size 4096"));
}

#[test]
fn the_advice_for_a_broken_last_block_works() {
    let dir = Dir::new();
    let path = dir.image(10_000);
    let text = error(&path, &OpenOptions::default());
    let advice = text.split("with: ").nth(1).unwrap();
    assert!(
        std::process::Command::new("sh")
            .args(["-c", advice])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        open_with(&path, &OpenOptions::default()).unwrap().size(),
        10_240
    );
}

#[test]
fn a_second_open_is_refused_and_names_the_holder() {
    let dir = Dir::new();
    let path = dir.image(1 << 20);
    let options = OpenOptions::default();
    let readers = OpenOptions {
        read_only: true,
        ..Default::default()
    };
    let first = open_with(&path, &options).unwrap();
    for second in [&options, &readers] {
        let text = error(&path, second);
        assert!(text.contains("is locked: this very process"), "{text}");
    }
    drop(first);
    let _readers = [
        open_with(&path, &readers).unwrap(),
        open_with(&path, &readers).unwrap(),
    ];
    assert!(error(&path, &options).contains("is locked"));
}

#[test]
fn a_read_only_open_needs_no_permission_to_write() {
    let dir = Dir::new();
    let path = dir.image(1 << 20);
    let disk = open_with(
        &path,
        &OpenOptions {
            read_only: true,
            ..Default::default()
        },
    )
    .unwrap();
    assert!(disk.is_read_only());
    let flags = rustix::fs::fcntl_getfl(&disk.image.file).unwrap();
    assert_eq!(
        flags & rustix::fs::OFlags::RWMODE,
        rustix::fs::OFlags::RDONLY
    );
}

#[test]
fn errors_of_the_kernel_come_with_advice() {
    let path = Path::new("/images/a");
    let options = OpenOptions::default();
    let text = |errno, options: &OpenOptions| {
        cannot_open(path, options, &io::Error::from_raw_os_error(errno)).to_string()
    };
    assert!(text(libc::EACCES, &options).contains("read-only"));
    assert!(
        !text(
            libc::EACCES,
            &OpenOptions {
                read_only: true,
                ..Default::default()
            }
        )
        .contains("read-only")
    );
    assert!(text(libc::EROFS, &options).contains("open it read-only"));
    let direct = OpenOptions {
        cache: CacheMode::Directsync,
        ..Default::default()
    };
    assert!(text(libc::EINVAL, &direct).contains("use cache mode writethrough"));
    for errno in [libc::EACCES, libc::EROFS, libc::ENOENT, libc::EIO] {
        assert!(
            !text(errno, &options).contains("os error"),
            "{}",
            text(errno, &options)
        );
    }
}

#[test]
fn direct_io_sets_the_smallest_block() {
    let dir = Dir::new();
    let path = dir.image(1 << 20);
    let file = File::open(&path).unwrap();
    let wants = |io| Some(probe::Alignment { memory: 512, io });
    let block = |direct, size| {
        let options = OpenOptions {
            block_size: size,
            ..Default::default()
        };
        block_size(&path, &file, Kind::Regular, direct, &options).map_err(|e| e.to_string())
    };
    assert_eq!(block(None, None), Ok(512));
    assert_eq!(block(wants(1), None), Ok(512));
    assert_eq!(block(wants(4096), None), Ok(4096));
    assert_eq!(block(wants(512), Some(4096)), Ok(4096));
    assert!(
        block(wants(4096), Some(512))
            .unwrap_err()
            .contains("use block size 4096 or cache mode writeback")
    );
    assert!(block(wants(1 << 20), None).is_err());
}

/// A locked descriptor in a message that nobody received yet: as with a killed process's last operations, the lock is held and no
/// process has the file open.
#[test]
fn a_lock_that_nobody_visible_holds_is_waited_for() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::{os::fd::AsFd, os::unix::net::UnixStream};

    let dir = Dir::new();
    let path = dir.image(1 << 20);
    let meta = std::fs::metadata(&path).unwrap();
    let options = OpenOptions::default();
    let (sender, receiver) = UnixStream::pair().unwrap();
    {
        let file = open_same(&path, &options, &meta).unwrap();
        lock::acquire(&file, lock::Claim::WRITER).unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let data = [std::io::IoSlice::new(b"x")];
        sendmsg(&sender, &data, &mut ancillary, SendFlags::empty()).unwrap();
    }

    let said = open_locked(&path, &options, &meta, Kind::Regular, || false).unwrap_err();
    assert!(said.to_string().contains("another program"), "{said}");

    let mut message = Some((sender, receiver));
    open_locked(&path, &options, &meta, Kind::Regular, || {
        message.take().is_some()
    })
    .unwrap();
    assert!(message.is_none(), "it was open at once");
}
