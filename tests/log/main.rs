//! The log on a disk in memory and on real files.

mod basic;
mod bench;
mod brokers;
mod cold;
mod damage;
mod faults;
mod files;
mod gather;
mod reshard;
mod runs;
mod scrub;
mod upkeep;
