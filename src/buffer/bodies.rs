//! Memory of large bodies, kept to be used again: fresh memory costs a page fault for every 4 KiB, which is most of
//! what a body of a megabyte costs.
//!
//! The buffers are kept by each thread that takes any. What they hold never matters, so this is no state
//! that a program could see; only how long things take depends on it.

use std::cell::RefCell;

use bytes::Bytes;

/// Smaller bodies are left to the allocator, bytes: it gives memory again that was touched before.
const BYTES_MIN: usize = 16 << 10;
/// Kept at most, bytes in all and buffers.
const KEPT_BYTES_MAX: usize = 16 << 20;
const KEPT_MAX: usize = 256;

/// What a thread keeps.
#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    /// This thread takes buffers; what others drop goes to the system.
    takes: bool,
    /// One was taken since [`trim_if_idle`].
    was_used: bool,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// A kept buffer for a body of `len` bytes, of that length and with anything in it; it takes at most a quarter more
/// memory. `None`: there is none, and memory is to be had as ever.
pub fn take(len: usize) -> Option<Vec<u8>> {
    if len < BYTES_MIN {
        return None;
    }
    KEPT.with_borrow_mut(|kept| {
        kept.takes = true;
        kept.was_used = true;
        let fits = |buffer: &Vec<u8>| (len..=len + len / 4).contains(&buffer.capacity());
        let at = kept.buffers.iter().rposition(fits)?;
        let mut buffer = kept.buffers.swap_remove(at);
        kept.bytes -= buffer.capacity();
        buffer.resize(len, 0);
        Some(buffer)
    })
}

/// A buffer for a body of `len` bytes, of that length and with anything in it.
pub fn take_or_make(len: usize) -> Vec<u8> {
    take(len).unwrap_or_else(|| vec![0; len])
}

/// Keeps a buffer of which nobody else has anything.
pub fn give_back(buffer: Vec<u8>) {
    // A thread that ends has nothing to keep any more.
    let _ = KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        let bytes = kept.bytes + buffer.capacity();
        let is_large = buffer.capacity() >= BYTES_MIN;
        if is_large && kept.takes && bytes <= KEPT_BYTES_MAX && kept.buffers.len() < KEPT_MAX {
            kept.bytes = bytes;
            kept.buffers.push(buffer);
        }
    });
}

/// A whole body, whose memory is kept when the last one who has it drops it.
pub fn share(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() < BYTES_MIN {
        return Bytes::from(buffer);
    }
    Bytes::from_owner(Large(buffer))
}

/// Gives the kept buffers back to the system if nobody took one since the last call.
pub fn trim_if_idle() {
    KEPT.with_borrow_mut(|kept| {
        if !std::mem::take(&mut kept.was_used) {
            kept.buffers = Vec::new();
            kept.bytes = 0;
        }
    });
}

struct Large(Vec<u8>);

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_taken_again_and_goes_when_idle() {
        let mib = 1 << 20;
        assert!(take(mib).is_none());
        let body = share(vec![1; mib]);
        let at = body.as_ptr();
        let also = body.clone();
        drop(body);
        assert!(take(mib).is_none(), "somebody has it still");
        drop(also);
        assert!(take(mib / 2).is_none(), "too large for that");
        assert!(take(mib + 1).is_none(), "too small for that");
        let again = take(mib - mib / 8).expect("it was kept");
        assert_eq!((again.as_ptr(), again.len()), (at, mib - mib / 8));
        drop(share(again));
        trim_if_idle();
        trim_if_idle();
        assert!(take(mib).is_none());
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        assert!(take(BYTES_MIN).is_none());
        let bodies: Vec<_> = (0..40).map(|_| share(vec![0; 1 << 20])).collect();
        drop(bodies);
        let kept = std::iter::from_fn(|| take(1 << 20)).count();
        assert_eq!(kept, KEPT_BYTES_MAX >> 20);
    }

    #[test]
    fn small_ones_are_not_kept_nor_those_that_another_thread_drops() {
        assert!(take(BYTES_MIN).is_none());
        drop(share(vec![0; BYTES_MIN - 1]));
        let body = share(vec![0; BYTES_MIN]);
        let other = std::thread::spawn(move || drop(body));
        other.join().expect("it drops it");
        assert!(take(BYTES_MIN).is_none());
    }
}
