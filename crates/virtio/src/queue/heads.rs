use super::QueueError;

/// The chains that are in flight, by their first descriptor.
#[derive(Debug)]
pub(super) struct Heads {
    words: Box<[u64]>,
    count: u16,
}

impl Heads {
    /// For heads below `size`.
    pub(super) fn new(size: u16) -> Heads {
        Heads {
            words: vec![0; usize::from(size).div_ceil(64)].into_boxed_slice(),
            count: 0,
        }
    }

    pub(super) fn len(&self) -> u16 {
        self.count
    }

    /// False when `head` is out of range.
    #[inline]
    pub(super) fn contains(&self, head: u16) -> bool {
        self.words
            .get(usize::from(head / 64))
            .is_some_and(|word| word & bit(head) != 0)
    }

    /// The caller made sure that it is in range and not contained.
    #[inline]
    pub(super) fn insert(&mut self, head: u16) {
        if let Some(word) = self.words.get_mut(usize::from(head / 64)) {
            *word |= bit(head);
            self.count += 1;
        }
    }

    /// Fails when the head is not contained.
    #[inline]
    pub(super) fn remove(&mut self, head: u16) -> Result<(), QueueError> {
        match self.words.get_mut(usize::from(head / 64)) {
            Some(word) if *word & bit(head) != 0 => {
                *word &= !bit(head);
                self.count -= 1;
                Ok(())
            }
            _ => Err(QueueError::NotInFlight(head)),
        }
    }
}

fn bit(head: u16) -> u64 {
    1 << (head % 64)
}
