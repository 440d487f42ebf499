//! The log on a disk in memory and on real files.

mod basic;
mod bench;
mod cold;
mod damage;
mod faults;
mod files;
mod scrub;
mod upkeep;
