//! Bugs planted on purpose, to prove that the simulator would see them. Only tests can plant one, and only in a
//! build with debug assertions; in any other [`planted`] is `false` and costs nothing.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A sync reports success and does nothing.
    SyncSkipped,
    /// `disk` receipts leave when the record is written, before it is synced.
    ConfirmedBeforeSync,
    /// `disk` messages are handed out before they are durable.
    VisibleBeforeDurable,
    /// Recovery takes the first bad record for the end of the log, whatever is behind it.
    TruncatedAtFirstBadRecord,
    /// Recovery goes on with a tail that may only be in the page cache.
    TailNotRewritten,
    /// The leases of a connection that ends never return.
    LeaseLostAtClose,
    /// A handle settles whatever lease its message has now.
    StaleAckWins,
    /// Clients' ids are not taken over from the log.
    DedupInMemoryOnly,
    /// An ack is confirmed and not logged.
    AckNotLogged,
    /// A dead-lettered message stays in its queue's log.
    DeadLetterNotSettled,
    /// A failed try isn't counted.
    TriesForgotten,
    /// Some leases that expire are forgotten with their message.
    ExpiryLost,
    /// A returned message stands before its place.
    OrderLostOnReturn,
    /// Waiting consumers are not told of some messages.
    WaiterNotWoken,
    /// A nack's delay is not waited for.
    NackDelayIgnored,
    /// Queue definitions are confirmed before they are durable.
    DefinitionNotSynced,
    /// A limit is off by one.
    LimitOffByOne,
    /// A message that waits for its retry does not hold its key.
    KeyFreeDuringRetry,
    /// A checkpoint does not say which keys messages have.
    KeysNotInCheckpoint,
    /// With `single=1`, a pull is served beside the active consumer.
    StandbyServed,
    /// A pull doesn't wait until its connection's publishes are visible.
    OwnPublishesUnseen,
    /// What a transaction acks and what it publishes are in two records.
    TransactionInTwoRecords,
    /// What a schedule has published is not remembered.
    FiringNotLogged,
    /// Where a group begins is not remembered.
    GroupNotLogged,
    /// A message is freed when the first of its readers has settled it.
    FreedByOne,
    /// The receipt of a cast waits for no queue's level.
    CastConfirmedEarly,
    /// A binding is confirmed and not logged.
    BindingNotLogged,
    /// Live copies that a reader misses are not counted.
    LagNotCounted,
    /// A connection has a live copy for each of its patterns.
    LiveCopyTwice,
    /// An answer goes to the one who has asked first.
    AnswerMisdirected,
    /// Some requests have no timeout.
    RequestTimeoutLost,
    /// An error in a transaction does not void it.
    ErrorVoidsNothing,
    /// A drain ends the leases that it is to wait for.
    LeasesEndAtDrain,
    /// RESP: what was popped is settled by the next command, whether its reply was written out or not.
    PopSettledEarly,
    /// RESP: what is pushed at the head of a list stands behind what was pushed there before.
    HeadNotSet,
    /// RESP: an `EXEC` that had to wait runs its commands from the first again.
    ExecBeginsAgain,
    /// AMQP: an ack of several deliveries settles the last one alone.
    MultipleAckOfOne,
    /// AMQP: what a commit does is in several records.
    CommitInTwoRecords,
    /// RESP: what is read of several streams at once belongs to the consumer of the first one's group.
    StreamsOfOneConsumer,
    /// RESP: a read of several streams leaves out those whose next entry is on the disk.
    ColdStreamLeftOut,
    /// AMQP: a confirm leaves before its message has reached its level.
    ConfirmSentEarly,
    /// AMQP: a method is answered before what was published in front of it is safe.
    AnswerBeforePublishes,
    /// What came from another shard is not remembered.
    ArrivalNotLogged,
    /// What a transaction does on one shard and what it has others do are in two records.
    PartsInRecordsOfTheirOwn,
    /// What another shard refuses of a `MOVE` is not put back where it was.
    RefusedMoveLost,
    /// A row of dead-letter queues over several shards may lead back.
    DeadCircleMade,
    /// A sync waits for publishers that are gone, as long as it takes, whoever else waits for it.
    GoneWaitedFor,
}

/// Every one of them.
pub const ALL: [Fault; 47] = [
    Fault::SyncSkipped,
    Fault::ConfirmedBeforeSync,
    Fault::VisibleBeforeDurable,
    Fault::TruncatedAtFirstBadRecord,
    Fault::TailNotRewritten,
    Fault::LeaseLostAtClose,
    Fault::StaleAckWins,
    Fault::DedupInMemoryOnly,
    Fault::AckNotLogged,
    Fault::DeadLetterNotSettled,
    Fault::TriesForgotten,
    Fault::ExpiryLost,
    Fault::OrderLostOnReturn,
    Fault::WaiterNotWoken,
    Fault::NackDelayIgnored,
    Fault::DefinitionNotSynced,
    Fault::LimitOffByOne,
    Fault::KeyFreeDuringRetry,
    Fault::KeysNotInCheckpoint,
    Fault::StandbyServed,
    Fault::OwnPublishesUnseen,
    Fault::TransactionInTwoRecords,
    Fault::FiringNotLogged,
    Fault::GroupNotLogged,
    Fault::FreedByOne,
    Fault::CastConfirmedEarly,
    Fault::BindingNotLogged,
    Fault::LagNotCounted,
    Fault::LiveCopyTwice,
    Fault::AnswerMisdirected,
    Fault::RequestTimeoutLost,
    Fault::ErrorVoidsNothing,
    Fault::LeasesEndAtDrain,
    Fault::PopSettledEarly,
    Fault::HeadNotSet,
    Fault::ExecBeginsAgain,
    Fault::MultipleAckOfOne,
    Fault::CommitInTwoRecords,
    Fault::StreamsOfOneConsumer,
    Fault::ColdStreamLeftOut,
    Fault::ConfirmSentEarly,
    Fault::AnswerBeforePublishes,
    Fault::ArrivalNotLogged,
    Fault::PartsInRecordsOfTheirOwn,
    Fault::RefusedMoveLost,
    Fault::DeadCircleMade,
    Fault::GoneWaitedFor,
];

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in everything that this thread runs from now on, or none.
#[cfg(debug_assertions)]
pub fn plant(fault: Option<Fault>) {
    PLANTED.set(fault);
}

/// Whether this bug is planted.
#[inline(always)]
pub fn planted(fault: Fault) -> bool {
    #[cfg(debug_assertions)]
    {
        PLANTED.get() == Some(fault)
    }
    #[cfg(not(debug_assertions))]
    {
        let _ = fault;
        false
    }
}
