use super::*;

/// Ranges of the given lengths at odd distances in one block, plus the block's own view of all bytes.
fn scattered(lengths: &[usize]) -> (Buffers, Rc<Vec<std::cell::Cell<u8>>>) {
    let total: usize = lengths.iter().map(|n| n + 3).sum::<usize>() + 1;
    let block = Rc::new(vec![std::cell::Cell::new(0xee); total]);
    let mut at = 1;
    let mut iov = Iovecs::new();
    for &n in lengths {
        iov.push(libc::iovec {
            iov_base: block[at].as_ptr().cast(),
            iov_len: n,
        });
        at += n + 3;
    }
    // SAFETY: the cells belong to the `Rc` given along; they are never borrowed as plain bytes.
    let buffers = unsafe { Buffers::from_raw(iov, block.clone()) };
    (buffers, block)
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + 1) as u8).collect()
}

#[test]
fn every_offset_and_length_copies_the_right_bytes_and_no_others() {
    let lengths = [1, 13, 8, 40, 3];
    let total: usize = lengths.iter().sum();
    for at in 0..=total + 1 {
        for n in [0, 1, 7, 8, 9, 21, total] {
            let (buffers, block) = scattered(&lengths);
            let src = bytes(n);
            let fit = n.min(total.saturating_sub(at));
            assert_eq!(buffers.copy_from(at as u64, &src), fit);
            let mut back = vec![0u8; total];
            assert_eq!(buffers.copy_to(0, &mut back), total);
            let mut want = vec![0xee; total];
            if fit > 0 {
                want[at..at + fit].copy_from_slice(&src[..fit]);
            }
            assert_eq!(back, want, "at {at}, {n} bytes");
            let touched = block.iter().filter(|c| c.get() != 0xee).count();
            assert!(touched <= fit, "bytes between the ranges were written");
            let mut part = vec![0u8; n];
            assert_eq!(buffers.copy_to(at as u64, &mut part), fit);
            assert_eq!(part[..fit], src[..fit]);
        }
    }
}

#[test]
fn fill_stops_at_the_end_and_longer_than_its_pattern() {
    let buffers = Buffers::alloc(1000, 8);
    assert_eq!(buffers.fill(3, 700, 0x5a), 700);
    assert_eq!(buffers.fill(990, 100, 0x77), 10);
    assert_eq!(buffers.fill(1000, 1, 1), 0);
    assert_eq!(buffers.fill(u64::MAX, 1, 1), 0);
    let mut back = vec![0; 1000];
    buffers.copy_to(0, &mut back);
    assert!(back[..3].iter().all(|b| *b == 0));
    assert!(back[3..703].iter().all(|b| *b == 0x5a));
    assert!(back[703..990].iter().all(|b| *b == 0));
    assert!(back[990..].iter().all(|b| *b == 0x77));
}

#[test]
fn split_and_advance_agree_with_a_flat_model() {
    let lengths = [5, 1, 9, 16, 2, 30];
    let total: usize = lengths.iter().sum();
    let want = bytes(total);
    for at in 0..=total + 2 {
        let (mut head, _block) = scattered(&lengths);
        head.copy_from(0, &want);
        let mut tail = head.split_off(at as u64);
        let cut = at.min(total);
        assert_eq!((head.len(), tail.len()), (cut as u64, (total - cut) as u64));
        for (part, want) in [(&head, &want[..cut]), (&tail, &want[cut..])] {
            assert!(part.iovecs().iter().all(|v| v.iov_len > 0), "empty range");
            let sum: usize = part.iovecs().iter().map(|v| v.iov_len).sum();
            assert_eq!(sum as u64, part.len());
            let mut back = vec![0; want.len()];
            assert_eq!(part.copy_to(0, &mut back), want.len());
            assert_eq!(back, want);
        }
        let step = 7.min(tail.len());
        tail.advance(step);
        assert!(tail.iovecs().iter().all(|v| v.iov_len > 0), "empty range");
        let mut back = vec![0; tail.len() as usize];
        tail.copy_to(0, &mut back);
        assert_eq!(back, want[cut + step as usize..]);
        tail.advance(u64::MAX);
        assert!(tail.is_empty() && tail.iovecs().is_empty());
    }
}

#[test]
fn a_split_keeps_the_owner_of_both_halves() {
    let (mut head, block) = scattered(&[8, 8]);
    let tail = head.split_off(4);
    drop(head);
    assert_eq!(Rc::strong_count(&block), 2, "the tail must hold the owner");
    drop(tail);
    assert_eq!(Rc::strong_count(&block), 1);
}

#[test]
fn alignment_looks_at_address_and_length() {
    let mut buffers = Buffers::alloc(4096, 4096);
    assert!(buffers.is_aligned(4096) && buffers.is_aligned(512) && buffers.is_aligned(1));
    let tail = buffers.split_off(512);
    assert!(tail.is_aligned(512) && !tail.is_aligned(4096));
    buffers.advance(1);
    assert!(!buffers.is_aligned(2));
    assert!(Buffers::empty().is_aligned(4096));
}

#[test]
fn storage_is_reused_and_comes_back_empty() {
    let (buffers, block) = scattered(&[1, 2, 3, 4, 5, 6]);
    let storage = buffers.into_iovecs();
    assert!(storage.is_empty() && storage.spilled() && storage.capacity() >= 6);
    assert_eq!(Rc::strong_count(&block), 1, "the owner is let go");
}

#[test]
fn impossible_sizes_are_refused_not_wrapped() {
    assert!(Buffers::try_alloc(usize::MAX, 4096).is_none());
    assert!(Buffers::try_alloc(1, usize::MAX).is_none());
    assert!(Buffers::try_alloc(0, 4096).is_some_and(|b| b.is_empty()));
}
