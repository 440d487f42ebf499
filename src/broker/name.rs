//! A name as the key of a table. A short one lies in the table itself, so that a look-up among very many names need
//! not follow a pointer to compare them.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Longer names have memory of their own, octets.
const SHORT_BYTES_MAX: usize = 22;

/// Octets of a name.
#[derive(Clone)]
pub struct Name(Octets);

#[derive(Clone)]
enum Octets {
    Short {
        len: u8,
        octets: [u8; SHORT_BYTES_MAX],
    },
    Long(Box<[u8]>),
}

const _: () = assert!(size_of::<(Name, u32)>() == 32);

impl Name {
    /// The octets.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Octets::Short { len, octets } => &octets[..usize::from(*len)],
            Octets::Long(octets) => octets,
        }
    }
}

impl From<&[u8]> for Name {
    fn from(name: &[u8]) -> Name {
        if name.len() > SHORT_BYTES_MAX {
            return Name(Octets::Long(name.into()));
        }
        let mut octets = [0; SHORT_BYTES_MAX];
        octets[..name.len()].copy_from_slice(name);
        let len = name.len() as u8;
        Name(Octets::Short { len, octets })
    }
}

/// Hashed and compared as its octets are.
impl Borrow<[u8]> for Name {
    #[inline]
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Hash for Name {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl PartialEq for Name {
    #[inline]
    fn eq(&self, other: &Name) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Name {}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_slice().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn names_of_every_length_are_found_by_their_octets() {
        let name = |len: usize| (0..len).map(|nth| nth as u8).collect::<Vec<u8>>();
        let mut table = HashMap::new();
        for len in 0..=255 {
            assert_eq!(Name::from(&name(len)[..]).as_slice(), name(len));
            assert_eq!(table.insert(Name::from(&name(len)[..]), len), None);
        }
        for len in 0..=255 {
            assert_eq!(table.get(&name(len)[..]), Some(&len));
            let mut other = name(len);
            if let Some(last) = other.last_mut() {
                *last ^= 1;
                assert_eq!(table.get(&other[..]), None);
            }
        }
        assert_eq!(table.remove(&name(22)[..]), Some(22));
        assert_eq!(table.get(&name(22)[..]), None);
        assert_eq!(format!("{:?}", Name::from(&b"q\n"[..])), "q\\n");
    }
}
