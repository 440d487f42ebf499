//! The line protocol's decoder.

use crate::ways::{Way, run as steps};
use crate::{limits, pieces};

/// See [`crate`].
pub fn run(data: &[u8]) {
    let Some((input, pieces)) = pieces(data) else {
        return;
    };
    let limits = limits();
    let whole = steps(&[input], &limits, Way::Decode);
    // The memory of the decoder is looked at after each piece.
    for way in [Way::Decode, Way::Space, Way::General] {
        assert_eq!(steps(&pieces, &limits, way), whole, "{way:?}");
    }
}
