//! Optional sections of a message: what most messages do not carry.
//!
//! Each is `kind u8, length varint, octets`. The top bit of the kind says that a reader that does
//! not know the section must not go on; others are copied along untouched.

use std::borrow::Cow;

use crate::broker::varint;

/// What a section holds. The number is the kind on disk without its top bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum SectionKind {
    /// Exchange and routing key, or topic, that the message was published to.
    Source = 1,
    /// AMQP property flags and list as received.
    Props = 2,
    /// Headers, as AMQP field-table octets.
    Headers = 3,
    /// Ordering key.
    Key = 4,
    /// The client's id for deduplication.
    Once = 5,
    /// Where an answer goes.
    Reply = 6,
    /// Unix time at which the message expires, microseconds, u64.
    ExpiresAt = 7,
    /// Unix time at which the message becomes ready, microseconds, u64.
    Due = 8,
    /// Priority, u8.
    Priority = 9,
    /// The message stands before all others; no octets.
    Front = 10,
    /// Earlier dead-letterings: queue, reason, keys, count, time.
    Trace = 11,
}

/// Top bit of the kind byte: must be understood.
const CRITICAL: u8 = 0x80;

impl SectionKind {
    /// The kind byte as written: sections that decide when and to whom a message goes must be
    /// understood.
    fn byte(self) -> u8 {
        use SectionKind::*;
        match self {
            Key | Once | ExpiresAt | Due | Priority | Front => self as u8 | CRITICAL,
            Source | Props | Headers | Reply | Trace => self as u8,
        }
    }

    /// The kind a byte stands for, if this version knows it.
    pub fn from_byte(byte: u8) -> Option<SectionKind> {
        use SectionKind::*;
        let all = [
            Source, Props, Headers, Key, Once, Reply, ExpiresAt, Due, Priority, Front, Trace,
        ];
        all.get((byte & !CRITICAL).wrapping_sub(1) as usize)
            .copied()
    }
}

/// Appends sections to a buffer. Each kind at most once; the order is free.
#[derive(Debug)]
pub struct SectionsBuilder<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> SectionsBuilder<'a> {
    /// Appends to `out`, which belongs to the caller and is reused from message to message.
    pub fn new(out: &'a mut Vec<u8>) -> SectionsBuilder<'a> {
        SectionsBuilder { out }
    }

    /// Appends one section with its octets as they are.
    pub fn add(&mut self, kind: SectionKind, octets: &[u8]) -> &mut Self {
        self.out.push(kind.byte());
        varint::put(self.out, octets.len() as u64);
        self.out.extend_from_slice(octets);
        self
    }

    /// The ordering key.
    pub fn key(&mut self, octets: &[u8]) -> &mut Self {
        self.add(SectionKind::Key, octets)
    }

    /// The deduplication id.
    pub fn once(&mut self, octets: &[u8]) -> &mut Self {
        self.add(SectionKind::Once, octets)
    }

    /// The reply address.
    pub fn reply(&mut self, octets: &[u8]) -> &mut Self {
        self.add(SectionKind::Reply, octets)
    }

    /// The headers.
    pub fn headers(&mut self, octets: &[u8]) -> &mut Self {
        self.add(SectionKind::Headers, octets)
    }

    /// The trace of earlier dead-letterings.
    pub fn trace(&mut self, octets: &[u8]) -> &mut Self {
        self.add(SectionKind::Trace, octets)
    }

    /// When the message expires, unix time in microseconds.
    pub fn expires_at(&mut self, unix_us: u64) -> &mut Self {
        self.add(SectionKind::ExpiresAt, &unix_us.to_le_bytes())
    }

    /// When the message becomes ready, unix time in microseconds.
    pub fn due(&mut self, unix_us: u64) -> &mut Self {
        self.add(SectionKind::Due, &unix_us.to_le_bytes())
    }

    /// The priority.
    pub fn priority(&mut self, priority: u8) -> &mut Self {
        self.add(SectionKind::Priority, &[priority])
    }

    /// The message stands before all others.
    pub fn front(&mut self) -> &mut Self {
        self.add(SectionKind::Front, &[])
    }

    /// Copies one section read elsewhere, known or not.
    pub fn copy(&mut self, section: Section<'_>) -> &mut Self {
        self.out.push(section.kind_byte);
        varint::put(self.out, section.octets.len() as u64);
        self.out.extend_from_slice(section.octets);
        self
    }
}

/// Bytes of the section of a priority.
pub const PRIORITY_BYTES: usize = 3;

/// The sections of a message that gets the priority of its new queue, which has none of its own: a message without the
/// section has priority 0, whatever the queue's default is later.
pub fn with_priority(sections: &[u8], priority: u8) -> Cow<'_, [u8]> {
    if priority == 0 {
        return Cow::Borrowed(sections);
    }
    let mut all = Vec::with_capacity(sections.len() + PRIORITY_BYTES);
    all.extend_from_slice(sections);
    SectionsBuilder::new(&mut all).priority(priority);
    Cow::Owned(all)
}

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    kind_byte: u8,
    /// What it holds.
    pub octets: &'a [u8],
}

impl Section<'_> {
    /// Its kind, if this version knows it.
    pub fn kind(&self) -> Option<SectionKind> {
        SectionKind::from_byte(self.kind_byte)
    }

    /// A reader that does not know the kind must not go on.
    pub fn must_be_understood(&self) -> bool {
        self.kind_byte & CRITICAL != 0
    }
}

/// Sections as they stand in an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sections<'a>(pub &'a [u8]);

impl<'a> Sections<'a> {
    /// The octets of the section of a kind.
    pub fn get(&self, kind: SectionKind) -> Option<&'a [u8]> {
        self.iter()
            .find(|section| section.kind() == Some(kind))
            .map(|section| section.octets)
    }

    /// The value of a section that holds a u64 ([`SectionKind::ExpiresAt`], [`SectionKind::Due`]).
    pub fn number(&self, kind: SectionKind) -> Option<u64> {
        Some(u64::from_le_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// The value of [`SectionKind::Priority`].
    pub fn priority(&self) -> Option<u8> {
        self.get(SectionKind::Priority)?.first().copied()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them in the order written; ends at octets that are no section.
    pub fn iter(&self) -> impl Iterator<Item = Section<'a>> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (section, after) = split(rest)?;
            rest = after;
            Some(section)
        })
    }

    /// Checks that the octets are whole sections and that this version knows all that must be
    /// understood.
    ///
    /// # Errors
    /// One sentence on the first that is not so.
    pub fn validate(&self) -> Result<(), SectionsError> {
        let mut rest = self.0;
        while !rest.is_empty() {
            let (section, after) = split(rest).ok_or(SectionsError::Cut)?;
            if section.must_be_understood() && section.kind().is_none() {
                return Err(SectionsError::Unknown(section.kind_byte));
            }
            rest = after;
        }
        Ok(())
    }
}

/// Why sections cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionsError {
    /// The octets end inside a section.
    Cut,
    /// A section that must be understood has this unknown kind.
    Unknown(u8),
}

/// The first section and what follows it.
fn split(octets: &[u8]) -> Option<(Section<'_>, &[u8])> {
    let (&kind_byte, rest) = octets.split_first()?;
    let mut at = 0;
    let length = varint::get(rest, &mut at)?;
    let end = at.checked_add(usize::try_from(length).ok()?)?;
    let octets = rest.get(at..end)?;
    Some((Section { kind_byte, octets }, &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read_as_they_were_written() {
        let mut out = Vec::new();
        SectionsBuilder::new(&mut out)
            .key(b"k")
            .headers(&[7; 300])
            .due(5)
            .priority(9)
            .front();
        let sections = Sections(&out);
        assert_eq!(sections.validate(), Ok(()));
        assert_eq!(sections.get(SectionKind::Key), Some(&b"k"[..]));
        assert_eq!(sections.get(SectionKind::Headers), Some(&[7; 300][..]));
        assert_eq!(sections.number(SectionKind::Due), Some(5));
        assert_eq!(sections.priority(), Some(9));
        assert_eq!(sections.get(SectionKind::Front), Some(&b""[..]));
        assert_eq!(sections.get(SectionKind::Once), None);
        assert_eq!(sections.iter().count(), 5);

        let mut copy = Vec::new();
        for section in sections.iter() {
            SectionsBuilder::new(&mut copy).copy(section);
        }
        assert_eq!(copy, out);
        for cut in 1..out.len() {
            let cut = Sections(&out[..cut]);
            assert!(
                cut.validate().is_ok()
                    == (cut.iter().map(|s| s.octets.len()).sum::<usize>() > 0
                        && cut.0.len()
                            == cut
                                .iter()
                                .map(|s| encoded_bytes(s.octets.len()))
                                .sum::<usize>())
            );
        }
    }

    fn encoded_bytes(octets: usize) -> usize {
        let mut out = Vec::new();
        varint::put(&mut out, octets as u64);
        1 + out.len() + octets
    }

    #[test]
    fn unknown_sections_are_kept_unless_they_must_be_understood() {
        let harmless = [0x55, 2, b'h', b'i'];
        assert_eq!(Sections(&harmless).validate(), Ok(()));
        assert_eq!(
            Sections(&harmless).iter().next().map(|s| s.kind()),
            Some(None)
        );
        let critical = [0xd5, 0];
        assert_eq!(
            Sections(&critical).validate(),
            Err(SectionsError::Unknown(0xd5))
        );
    }
}
