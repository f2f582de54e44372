//! The controller: keeps the truth of one cluster and streams its topology to the proxies.
//!
//! # The life of a change
//!
//! 1. A call, if there is room for it ([`calls`]), comes to [`admin`], is parsed ([`parse`]), and what it names is asked what it is, if it
//!    is a server ([`probe`], [`admission`]).
//! 2. [`store`] runs the decision ([`change`], [`assign`]) on its one thread against the newest
//!    [`snapshot`] of the records ([`model`]): refused, or a change.
//! 3. The change goes to the disk ([`disk`]) in one batch with its events and is synced; then a file
//!    beside it says so ([`witness`]). The revision is one higher. Only now the next snapshot is
//!    published, the events are told ([`events`]), and the caller is answered.
//! 4. [`topology`] compiles the snapshot, once for all proxies.
//! 5. [`publish`] sends each proxy what it lacks, as its [`feed`] decides, and writes down in the
//!    [`registry`] what it acknowledges.
//!
//! One direction. Nobody is told *what* changed; each looks at the newest snapshot. A restart takes
//! the same way: it is a change of its own, the election of a new leader term.
//!
//! [`mover`] copies the keys of slots from one server to another.
//!
//! Beside it: [`fence`] says at each server who may use it, [`prober`] watches the servers, [`backup`]
//! writes everything down and takes it in again, [`http`] and [`metrics`] show how it goes, [`app`] puts
//! it together.

#![warn(missing_docs)]

pub mod admin;
pub mod admission;
pub mod app;
pub mod assign;
pub mod backup;
pub mod calls;
pub mod change;
pub mod clock;
pub mod config;
pub mod disk;
pub mod embedded;
pub mod ensemble;
pub mod events;
pub mod failpoint;
pub mod feed;
pub mod fence;
pub mod http;
pub mod jodis;
pub mod metrics;
pub mod migration;
mod mirror;
pub mod model;
pub mod mover;
pub mod orchestrator;
pub mod page;
pub mod parse;
pub mod probe;
pub mod prober;
pub mod publish;
pub mod rebalance;
pub mod registry;
pub mod retire;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod topology;
mod tree;
pub mod view;
pub mod witness;
pub mod zookeeper;
