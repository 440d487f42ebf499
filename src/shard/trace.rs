//! What a dead letter tells of its death: kept as a field table of its own among a message's sections, and shown
//! to consumers as headers.

use crate::broker::headers;
use crate::broker::id::MessageId;
use crate::log::{SectionKind, Sections, SectionsBuilder, TransferReason};

/// One death.
#[derive(Debug)]
pub struct Note<'a> {
    /// Octets of the name of the queue it died in.
    pub queue: &'a [u8],
    /// Its id there.
    pub id: MessageId,
    /// Why.
    pub reason: TransferReason,
    /// How often it was tried.
    pub tries: u16,
    /// What the consumer said; empty if nothing.
    pub why: &'a [u8],
}

/// The word that `h.dead-reason=` says.
fn word(reason: TransferReason) -> &'static str {
    match reason {
        TransferReason::Tries => "tries",
        TransferReason::Expired => "ttl",
        TransferReason::DroppedOld => "full",
        TransferReason::Rejected => "rejected",
        TransferReason::Moved => "moved",
    }
}

/// The sections of a message that died, for its new place: what belonged to its old queue (its client id, due
/// time, deadline, priority) is left out, the death replaces an earlier one.
pub fn add(sections: Sections<'_>, note: &Note<'_>) -> Vec<u8> {
    let mut table = Vec::new();
    headers::push_text(&mut table, b"dead-queue", note.queue);
    headers::push_text(&mut table, b"dead-id", note.id.to_string().as_bytes());
    headers::push_text(&mut table, b"dead-reason", word(note.reason).as_bytes());
    headers::push_text(&mut table, b"dead-tries", note.tries.to_string().as_bytes());
    if !note.why.is_empty() {
        headers::push_text(&mut table, b"dead-why", note.why);
    }
    let mut out = Vec::new();
    let mut builder = copy(sections, &mut out, false);
    builder.trace(&table);
    out
}

/// The sections of a message that is moved to another queue: its trace stays.
pub fn keep(sections: Sections<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    copy(sections, &mut out, true);
    out
}

fn copy<'a>(sections: Sections<'_>, out: &'a mut Vec<u8>, trace: bool) -> SectionsBuilder<'a> {
    let mut builder = SectionsBuilder::new(out);
    for section in sections.iter() {
        let stays = match section.kind() {
            Some(SectionKind::Trace) => trace,
            Some(
                SectionKind::Once
                | SectionKind::Due
                | SectionKind::ExpiresAt
                | SectionKind::Priority,
            ) => false,
            _ => true,
        };
        if stays {
            builder.copy(section);
        }
    }
    builder
}
