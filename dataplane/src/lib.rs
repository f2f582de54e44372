//! The proxy: many stock Redis servers behind one RESP endpoint.
//!
//! # The life of a request
//!
//! 1. `app` accepts a connection and hands it to the `worker` with the fewest: a thread with a runtime
//!    of its own, which shares nothing with the others.
//! 2. The `session` reads. `resp` finds where each request ends and where its arguments are, in place.
//! 3. `command` says what it is: arity, keys, who answers it.
//! 4. `route` decides by the topology: this proxy (`local`), one group, several (`fanout`), nobody
//!    yet (the slot is held), or an error (`error`).
//! 5. `backend` puts the bytes, as they came, into the pipe to the group's primary. All pipes are
//!    flushed once, at the end of the turn.
//! 6. The server's reply comes back on the pipe, goes into the session's `outbox`, which puts replies
//!    in the order of the requests, and leaves with one write at the end of that turn.
//!
//! `control` brings the topology from the controller; `admin` shows what there is; `metrics` counts.
//! Three files tell the story: `session`, `route`, `backend`. The session knows no groups, the router
//! no sockets, the backend no slots.

mod admin;
mod app;
mod backend;
mod backoff;
mod buffer;
mod client;
pub mod command;
mod config;
pub mod control;
mod crew;
mod error;
mod fanout;
pub mod framer;
mod glob;
mod info;
mod lease;
mod local;
mod memory;
mod metrics;
mod monitor;
mod outbox;
mod pause;
mod pubsub;
pub mod resp;
pub mod route;
mod scripts;
mod session;
pub mod settling;
mod socket;
mod thread;
mod tracking;
mod transaction;
mod upload;
mod worker;

pub use app::App;
pub use config::{Args, Config};
