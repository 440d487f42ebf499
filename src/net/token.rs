//! What an event is about, packed into mio's token.
//!
//! ```text
//!   63        32  31  30        0
//!   generation  | own |   slot        own = 0: a connection of the shard, the other bits its key
//! ```

use mio::Token;

use crate::shard::ConnKey;

const _: () = assert!(
    usize::BITS >= 64,
    "a token holds a slot and a generation of 32 bits each"
);

/// Set in tokens of what the reactor owns itself; a shard's slots stay below.
const OWN: usize = 1 << 31;
const SIGNAL: usize = OWN;
const WAKER: usize = OWN + 1;
/// Listeners follow from here.
const LISTENER: usize = OWN + 2;
/// Lingering sockets follow from here.
const LINGERING: usize = OWN + (1 << 16);

/// Most listeners of one reactor.
pub(super) const LISTENERS_MAX: usize = LINGERING - LISTENER;

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A connection that the shard knows.
    Connection(ConnKey),
    /// The pipe that signals write to.
    Signal,
    /// Somebody on another thread has something for the shard.
    Waker,
    /// A listening socket, by index.
    Listener(usize),
    /// A socket that is on its way out, by slot and generation of [`super::linger::Lingering`].
    Lingering { slot: usize, generation: u32 },
}

impl Source {
    /// The token that events of this source carry.
    pub(super) fn token(self) -> Token {
        Token(match self {
            Source::Connection(key) => {
                assert!(
                    (key.slot as usize) < OWN,
                    "a shard's slots stay below the reactor's own"
                );
                key.slot as usize | ((key.generation as usize) << 32)
            }
            Source::Signal => SIGNAL,
            Source::Waker => WAKER,
            Source::Listener(index) => LISTENER + index,
            Source::Lingering { slot, generation } => {
                assert!(slot < OWN - (1 << 16), "lingering sockets are few");
                (LINGERING + slot) | ((generation as usize) << 32)
            }
        })
    }
}

impl From<Token> for Source {
    fn from(token: Token) -> Source {
        let slot = token.0 & 0xffff_ffff;
        let generation = (token.0 >> 32) as u32;
        match slot {
            SIGNAL => Source::Signal,
            WAKER => Source::Waker,
            slot if slot < OWN => Source::Connection(ConnKey {
                slot: slot as u32,
                generation,
            }),
            slot if slot < LINGERING => Source::Listener(slot - LISTENER),
            slot => Source::Lingering {
                slot: slot - LINGERING,
                generation,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_comes_back_from_its_token() {
        let key = |slot, generation| Source::Connection(ConnKey { slot, generation });
        let lingering = |slot, generation| Source::Lingering { slot, generation };
        for source in [
            key(0, 0),
            key(7, 1),
            key((1 << 31) - 1, u32::MAX),
            Source::Signal,
            Source::Waker,
            Source::Listener(0),
            Source::Listener(LISTENERS_MAX - 1),
            lingering(0, 0),
            lingering(5000, u32::MAX),
        ] {
            assert_eq!(Source::from(source.token()), source);
        }
    }
}
