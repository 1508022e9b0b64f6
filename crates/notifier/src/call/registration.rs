//! What a slot holds: a descriptor, and what is to happen when it goes.

use crate::PeerFd;
use crate::latch::Latch;
use crate::release::Release;
use crate::sync::Arc;

/// One attached descriptor.
pub(super) struct Registration {
    fd: PeerFd,
    latch: Arc<Latch>,
    release: Release,
}

impl Registration {
    pub(super) fn new(mut fd: PeerFd, release: Release) -> Registration {
        fd.look_at_mode();
        Registration {
            fd,
            latch: Latch::new(),
            release,
        }
    }

    #[inline]
    pub(super) fn fd(&self) -> &PeerFd {
        &self.fd
    }

    pub(super) fn latch(&self) -> &Arc<Latch> {
        &self.latch
    }

    /// The end, in this order: the close; then those who wait for it; then the callbacks. The callbacks come last, so a wait
    /// never waits for one, and each finds the descriptor closed.
    #[cold]
    pub(super) fn retire(self) {
        let Registration { fd, latch, release } = self;
        drop(fd);
        let after = latch.open();
        release.fire();
        after.into_iter().for_each(Release::fire);
    }
}
