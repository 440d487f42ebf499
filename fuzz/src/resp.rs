//! The decoder of RESP.

use ringmq::protocol::resp::decode::{Decoder, Step};
use ringmq::protocol::resp::encode;

use crate::{limits, pieces};

/// A command's words, or why there is none.
type Found = Vec<Result<Vec<Vec<u8>>, &'static str>>;

fn decoded(pieces: &[&[u8]], takes_lines: bool) -> Found {
    let limits = limits();
    let mut decoder = Decoder::new(takes_lines);
    let (mut found, mut kept) = (Vec::new(), Vec::new());
    let mut longest = 0;
    for piece in pieces {
        kept.extend_from_slice(piece);
        longest = longest.max(kept.len());
        loop {
            let (used, step) = decoder.decode(&kept, &limits);
            match step {
                Step::Incomplete => break,
                Step::Command => {
                    let words = decoder.words(&kept);
                    found.push(Ok(words.into_iter().map(<[u8]>::to_vec).collect()));
                }
                Step::Broken(why) => {
                    found.push(Err(why.0));
                    return found;
                }
            }
            assert!(used > 0, "a command has octets");
            kept.drain(..used);
        }
        // A word has two octets at least, its place sixteen, and the list of places may have room for as many again.
        assert!(decoder.memory() <= 16 * (64 + longest));
        assert_eq!(decoder.in_frame(), !kept.is_empty());
    }
    found
}

/// See [`crate`].
pub fn run(data: &[u8]) {
    let Some((input, pieces)) = pieces(data) else {
        return;
    };
    for takes_lines in [false, true] {
        let whole = decoded(&[input], takes_lines);
        assert_eq!(decoded(&pieces, takes_lines), whole);
        // What was found, said as a client says it, is found again.
        let mut said = Vec::new();
        let commands: Found = whole.into_iter().filter(Result::is_ok).collect();
        for words in commands.iter().flatten() {
            encode::array(&mut said, words.len());
            words.iter().for_each(|word| encode::bulk(&mut said, word));
        }
        assert_eq!(decoded(&[&said], false), commands);
    }
}
