//! How an entry that holds no message is written.

use super::entry::{
    BIND, DEFINE, DELETE_QUEUE, Entry, GROUP, IN, OPEN, OUT, PART, RELEASE, ROUTE, SCHEDULE,
    SETTLE, UNBIND,
};
use crate::broker::varint;

/// Appends an entry that holds no message.
///
/// # Panics
/// If it holds one: those need a place in a table and a checksum.
pub(crate) fn put_plain(out: &mut Vec<u8>, scratch: &mut Vec<u8>, entry: &Entry<'_>) {
    scratch.clear();
    let kind = match entry {
        Entry::Settle {
            queue,
            group,
            reason,
            runs,
        } => {
            varint::put(scratch, queue.0);
            varint::put(scratch, u64::from(*group));
            scratch.push(*reason as u8);
            varint::put(scratch, runs.len() as u64);
            for run in *runs {
                varint::put(scratch, run.first);
                varint::put(scratch, run.count);
            }
            SETTLE
        }
        Entry::Release {
            queue,
            group,
            run,
            tries,
            not_before_us,
        } => {
            varint::put(scratch, queue.0);
            varint::put(scratch, u64::from(*group));
            varint::put(scratch, run.first);
            varint::put(scratch, run.count);
            varint::put(scratch, u64::from(*tries));
            varint::put(scratch, *not_before_us);
            RELEASE
        }
        Entry::Define {
            uid,
            name,
            settings,
            flags,
        } => {
            varint::put(scratch, uid.0);
            varint::put(scratch, u64::from(*flags));
            varint::put(scratch, name.len() as u64);
            scratch.extend_from_slice(name);
            scratch.extend_from_slice(settings);
            DEFINE
        }
        Entry::DeleteQueue { uid } => {
            varint::put(scratch, uid.0);
            DELETE_QUEUE
        }
        Entry::Bind { queue, pattern } | Entry::Unbind { queue, pattern } => {
            varint::put(scratch, queue.0);
            scratch.extend_from_slice(pattern);
            match entry {
                Entry::Bind { .. } => BIND,
                _ => UNBIND,
            }
        }
        Entry::Group {
            uid,
            queue,
            first,
            name,
        } => {
            varint::put(scratch, uid.0);
            varint::put(scratch, queue.0);
            varint::put(scratch, *first);
            scratch.extend_from_slice(name);
            GROUP
        }
        Entry::Schedule {
            queue,
            number,
            next_us,
            definition,
        } => {
            varint::put(scratch, queue.0);
            varint::put(scratch, *number);
            varint::put(scratch, *next_us);
            scratch.extend_from_slice(definition);
            SCHEDULE
        }
        Entry::Out {
            seq,
            shard,
            queue,
            id,
            reason,
            tries,
            target,
            why,
        } => {
            varint::put(scratch, *seq);
            varint::put(scratch, u64::from(*shard));
            varint::put(scratch, queue.0);
            varint::put(scratch, *id);
            varint::put(scratch, *reason as u64);
            varint::put(scratch, u64::from(*tries));
            varint::put(scratch, target.len() as u64);
            scratch.extend_from_slice(target);
            scratch.extend_from_slice(why);
            OUT
        }
        Entry::In {
            shard,
            seq,
            below,
            origin,
        } => {
            varint::put(scratch, u64::from(*shard));
            varint::put(scratch, *seq);
            varint::put(scratch, *below);
            varint::put(scratch, *origin);
            IN
        }
        Entry::Part { seq, shard, part } => {
            varint::put(scratch, *seq);
            varint::put(scratch, u64::from(*shard));
            scratch.extend_from_slice(part);
            PART
        }
        Entry::Route { change } => {
            scratch.extend_from_slice(change);
            ROUTE
        }
        Entry::Open { incarnation } => {
            varint::put(scratch, *incarnation);
            OPEN
        }
        Entry::Publish { .. } | Entry::Transfer { .. } => {
            panic!("a message is not a plain entry")
        }
    };
    out.push(kind);
    varint::put(out, scratch.len() as u64);
    out.extend_from_slice(scratch);
}
