//! Verified load: random reads and writes of one part of a disk, each read compared with what was written last.

use std::collections::HashMap;

use outboard_frontend::{Done, Driver, Io, STATUS_OK, Slot};

use crate::process::SOON;

/// Bytes that differ from sector to sector and from seed to seed; zeroes for seed 0, which is how a new disk reads.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    if seed == 0 {
        return vec![0; length];
    }
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// The requests of one queue on its own part of the disk, and what that part must hold.
///
/// The model knows no order among requests of one block, so a block has one request in flight at most.
pub struct Load {
    first: u64,
    block: usize,
    /// Seed of the last write of each block that was answered.
    answered: Vec<u64>,
    busy: Vec<bool>,
    flying: HashMap<Slot, Flight>,
    random: fastrand::Rng,
    submitted: u64,
    /// Blocks whose last write was never answered: written anew before anything else.
    uncertain: Vec<usize>,
    /// Requests answered while an older one was still in flight.
    pub overtakings: u64,
}

struct Flight {
    number: u64,
    block: usize,
    /// Seed of a write.
    write: Option<u64>,
}

impl Load {
    /// `blocks` of `block` bytes from sector `first`, now all zeroes.
    pub fn new(first: u64, blocks: usize, block: usize, seed: u64) -> Self {
        Self {
            first,
            block,
            answered: vec![0; blocks],
            busy: vec![false; blocks],
            flying: HashMap::new(),
            random: fastrand::Rng::with_seed(seed),
            submitted: 0,
            uncertain: vec![],
            overtakings: 0,
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// The front end goes away: nothing in flight will be answered. A write among it may be done, or not, now; but not
    /// any more once a later front end's write of the same block was answered.
    pub fn hang_up(&mut self) {
        for (_, flight) in self.flying.drain() {
            self.busy[flight.block] = false;
            if flight.write.is_some() {
                self.uncertain.push(flight.block);
            }
        }
    }

    /// Submits until `depth` requests are in flight, or `left` more were submitted, or the random choice falls on a
    /// busy block; does not kick. Returns how many it submitted.
    pub fn submit(&mut self, queue: &mut Driver, depth: usize, left: usize) -> usize {
        let mut submitted = 0;
        while self.flying.len() < depth && submitted < left {
            let again = self.uncertain.pop();
            let block = again.unwrap_or_else(|| self.random.usize(..self.busy.len()));
            if std::mem::replace(&mut self.busy[block], true) {
                break;
            }
            let slot = queue.take_slot().expect("a free slot");
            let write = (again.is_some() || self.random.bool()).then(|| self.random.u64(1..));
            if let Some(seed) = write {
                queue.write_data(slot, &pattern(seed, self.block));
            }
            let io = if write.is_some() { Io::Write } else { Io::Read };
            let sector = self.first + (block * self.block / 512) as u64;
            queue
                .submit_io(slot, io, sector, self.block as u32)
                .expect("room on the ring");
            self.flying.insert(
                slot,
                Flight {
                    number: self.submitted,
                    block,
                    write,
                },
            );
            self.submitted += 1;
            submitted += 1;
        }
        submitted
    }

    /// Checks one answer and counts it.
    pub fn answered(&mut self, queue: &mut Driver, done: Done) {
        let slot = done.slot.expect("a request of this load");
        let Flight {
            number,
            block,
            write,
        } = self.flying.remove(&slot).expect("a request in flight");
        assert_eq!(done.status, STATUS_OK, "block {block}");
        match write {
            Some(seed) => {
                assert_eq!(done.used, 1);
                self.answered[block] = seed;
            }
            None => {
                assert_eq!(done.used as usize, self.block + 1);
                let mut bytes = vec![0; self.block];
                queue.read_data(slot, &mut bytes);
                assert!(
                    bytes == pattern(self.answered[block], self.block),
                    "block {block} reads something else"
                );
            }
        }
        if self.flying.values().any(|other| other.number < number) {
            self.overtakings += 1;
        }
        self.busy[block] = false;
        queue.release(slot);
    }

    /// Keeps `depth` requests in flight until `total` are answered.
    pub fn run(&mut self, queue: &mut Driver, depth: usize, total: usize) {
        let (mut submitted, mut finished) = (0, 0);
        while finished < total {
            submitted += self.submit(queue, depth, total - submitted);
            queue.kick().expect("a kick");
            let done = queue
                .next(SOON)
                .unwrap_or_else(|error| panic!("after {finished} requests: {error}"));
            self.answered(queue, done);
            finished += 1;
        }
    }

    /// Compares the part of the disk, found in `image`, with what was answered: every block holds exactly the last
    /// write that the device answered, so nothing answered is missing and nothing unanswered was done.
    pub fn verify(&self, image: &[u8]) {
        let start = self.first as usize * 512;
        for (block, seed) in self.answered.iter().enumerate() {
            let at = start + block * self.block;
            let bytes = &image[at..at + self.block];
            assert!(
                bytes == pattern(*seed, self.block),
                "block {block} is not what was answered last"
            );
        }
    }
}
