//! The table of requests: what each may carry, whether it answers by itself, and what must be negotiated first.
//!
//! Every code that the `vhost` crate's [`FrontendReq`] knows has its row; any other code is [`UNKNOWN`]. What depends on the
//! state of one ring (a new size while it runs, say) is judged where the ring is, in `session::rings`.

use super::MAX_FDS;
use std::mem::size_of;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserProtocolFeatures, VhostUserSingleMemoryRegion, VhostUserVringAddr,
    VhostUserVringState,
};

/// The shape of a body, and so its exact length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// nothing
    Empty,
    /// one 64-bit number
    U64,
    /// a ring's index and a number
    VringState,
    /// a ring's addresses
    VringAddr,
    /// a head, and one to [`MAX_FDS`] regions
    Memory,
    /// one region
    Region,
    /// a head, and one to 4096 bytes of configuration
    Config,
    /// never looked at, the request being never legal here
    Unread,
}

impl Body {
    /// Whether a body of `size` bytes can be of this shape. (For those with a variable part their own count must agree
    /// with the length: that is seen when the body is read.)
    pub fn takes(self, size: usize) -> bool {
        match self {
            Body::Empty => size == 0,
            Body::U64 => size == size_of::<u64>(),
            Body::VringState => size == size_of::<VhostUserVringState>(),
            Body::VringAddr => size == size_of::<VhostUserVringAddr>(),
            Body::Memory => size
                .checked_sub(size_of::<VhostUserMemory>())
                .is_some_and(|rest| {
                    let one = size_of::<VhostUserMemoryRegion>();
                    rest.is_multiple_of(one) && (1..=MAX_FDS).contains(&(rest / one))
                }),
            Body::Region => size == size_of::<VhostUserSingleMemoryRegion>(),
            Body::Config => size
                .checked_sub(size_of::<VhostUserConfig>())
                .is_some_and(|rest| (1..=4096).contains(&rest)),
            Body::Unread => true,
        }
    }
}

/// What must be negotiated before a request is legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// nothing
    Always,
    /// this protocol feature, by SET_PROTOCOL_FEATURES
    Protocol(VhostUserProtocolFeatures),
    /// VHOST_USER_F_PROTOCOL_FEATURES, by SET_FEATURES
    RingEnable,
    /// belongs to a feature that is never offered
    Never(&'static str),
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// the body
    pub body: Body,
    /// the fewest and the most descriptors
    pub fds: (usize, usize),
    /// it has a reply of its own, with or without REPLY_ACK
    pub answers: bool,
    /// what it needs
    pub when: When,
}

const fn rule_of(body: Body, fds: (usize, usize), answers: bool, when: When) -> Rule {
    Rule {
        body,
        fds,
        answers,
        when,
    }
}

/// A request that nobody knows: read to its end, then refused.
pub const UNKNOWN: Rule = rule_of(
    Body::Unread,
    (0, 0),
    false,
    When::Never("an extension not known here"),
);

/// The row of `code`.
pub fn rule(code: u32) -> Rule {
    use FrontendReq as R;
    use VhostUserProtocolFeatures as P;
    let Ok(request) = R::try_from(code) else {
        return UNKNOWN;
    };
    let never = |fds, answers, what| rule_of(Body::Unread, (0, fds), answers, When::Never(what));
    match request {
        R::GET_FEATURES => rule_of(Body::Empty, (0, 0), true, When::Always),
        R::SET_FEATURES => rule_of(Body::U64, (0, 0), false, When::Always),
        R::SET_OWNER | R::RESET_OWNER => rule_of(Body::Empty, (0, 0), false, When::Always),
        R::SET_MEM_TABLE => rule_of(Body::Memory, (1, MAX_FDS), false, When::Always),
        R::SET_VRING_NUM | R::SET_VRING_BASE => {
            rule_of(Body::VringState, (0, 0), false, When::Always)
        }
        R::SET_VRING_ADDR => rule_of(Body::VringAddr, (0, 0), false, When::Always),
        R::GET_VRING_BASE => rule_of(Body::VringState, (0, 0), true, When::Always),
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => {
            rule_of(Body::U64, (0, 1), false, When::Always)
        }
        R::GET_PROTOCOL_FEATURES => rule_of(Body::Empty, (0, 0), true, When::Always),
        R::SET_PROTOCOL_FEATURES => rule_of(Body::U64, (0, 0), false, When::Always),
        // Legal once MQ is offered, which it always is.
        R::GET_QUEUE_NUM => rule_of(Body::Empty, (0, 0), true, When::Always),
        R::SET_VRING_ENABLE => rule_of(Body::VringState, (0, 0), false, When::RingEnable),
        R::SET_BACKEND_REQ_FD => {
            rule_of(Body::Empty, (1, 1), false, When::Protocol(P::BACKEND_REQ))
        }
        R::GET_CONFIG => rule_of(Body::Config, (0, 0), true, When::Protocol(P::CONFIG)),
        R::SET_CONFIG => rule_of(Body::Config, (0, 0), false, When::Protocol(P::CONFIG)),
        R::RESET_DEVICE => rule_of(Body::Empty, (0, 0), false, When::Protocol(P::RESET_DEVICE)),
        R::GET_MAX_MEM_SLOTS => rule_of(
            Body::Empty,
            (0, 0),
            true,
            When::Protocol(P::CONFIGURE_MEM_SLOTS),
        ),
        R::ADD_MEM_REG => rule_of(
            Body::Region,
            (1, 1),
            false,
            When::Protocol(P::CONFIGURE_MEM_SLOTS),
        ),
        // Old front ends send the region's descriptor once more; it is closed unused.
        R::REM_MEM_REG => rule_of(
            Body::Region,
            (0, 1),
            false,
            When::Protocol(P::CONFIGURE_MEM_SLOTS),
        ),

        R::SET_LOG_BASE => never(1, false, "LOG_SHMFD"),
        R::SET_LOG_FD => never(1, false, "LOG_SHMFD"),
        R::SEND_RARP => never(0, false, "RARP"),
        R::NET_SET_MTU => never(0, false, "MTU"),
        R::IOTLB_MSG => never(0, true, "IOMMU_PLATFORM"),
        R::SET_VRING_ENDIAN => never(0, false, "CROSS_ENDIAN"),
        R::CREATE_CRYPTO_SESSION => never(0, true, "CRYPTO_SESSION"),
        R::CLOSE_CRYPTO_SESSION => never(0, false, "CRYPTO_SESSION"),
        R::POSTCOPY_ADVISE => never(0, true, "PAGEFAULT"),
        R::POSTCOPY_LISTEN => never(0, false, "PAGEFAULT"),
        R::POSTCOPY_END => never(0, true, "PAGEFAULT"),
        R::GET_INFLIGHT_FD => never(0, true, "INFLIGHT_SHMFD"),
        R::SET_INFLIGHT_FD => never(1, false, "INFLIGHT_SHMFD"),
        R::GPU_SET_SOCKET => never(1, false, "a GPU"),
        R::VRING_KICK => never(0, false, "INBAND_NOTIFICATIONS"),
        R::SET_STATUS => never(0, false, "STATUS"),
        R::GET_STATUS => never(0, true, "STATUS"),
        R::GET_SHARED_OBJECT => never(0, true, "SHARED_OBJECT"),
        R::SET_DEVICE_STATE_FD => never(1, true, "DEVICE_STATE"),
        R::CHECK_DEVICE_STATE => never(0, true, "DEVICE_STATE"),
        R::GET_SHMEM_CONFIG => never(0, true, "SHMEM"),
    }
}

/// The specification's name of a request, for people.
pub fn name(code: u32) -> String {
    match FrontendReq::try_from(code) {
        Ok(request) => format!("{request:?}"),
        Err(_) => format!("request {code}"),
    }
}
