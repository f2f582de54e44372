//! What must be true of a whole cluster, shown with real processes. One file a subject.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test fails by panicking

mod auth;
mod backend;
mod backup;
mod calls;
mod clients;
mod cluster;
mod commands;
mod config;
mod connections;
mod controller;
mod corpus;
mod dev;
mod differential;
mod door;
mod drain;
mod ensemble;
mod fanout;
mod fence;
mod hold;
mod hostile;
mod import;
mod info;
mod jodis;
mod lease;
mod memory;
mod migration;
mod model;
mod monitor;
mod mover;
mod partition;
mod pipeline;
mod protocol;
mod proxies;
mod pubsub;
mod routing;
mod scan;
mod scripts;
mod store;
mod tls;
mod topology;
mod touch;
mod tracking;
mod transaction;
mod workload;
