//! What both planes of Sluice must agree on, bit for bit.
//!
//! * [`v1`]: the gRPC contract, generated from `sluice/v1/*.proto`, where it is explained.
//! * [`slot`]: which slot a key belongs to.
//! * [`id`]: the ids of clusters, groups, proxies and migrations, and addresses of servers.
//! * [`topology`]: the validated topology, and how one becomes the next.
//! * [`fence`]: who may use a server.
//! * [`settled`]: what a proxy says of what it sent before.
//! * [`surplus`]: how many keys of a server are no client's.
//! * [`reason`]: machine-readable reasons of gRPC errors.
//! * [`credentials`]: what the planes present to the servers.
//! * [`settings`]: how every Sluice process reads its settings.
//! * [`identity`]: what a process shows of itself over TLS, and whom it trusts.
//! * [`tls`]: gRPC over it, both ends.
//!
//! At this boundary foreign bytes become types that cannot be wrong; inside the planes nothing is
//! checked again. Nothing here does I/O, but for reading the files that settings name, and for opening and
//! taking the connections of [`tls`].

#![warn(missing_docs)]

pub mod credentials;
pub mod fence;
pub mod id;
pub mod identity;
pub mod reason;
pub mod seeded;
pub mod settings;
pub mod settled;
pub mod slot;
pub mod surplus;
pub mod tls;
pub mod topology;

pub use id::{ClusterId, GroupId, MigrationId, ProxyId, ServerAddr};
pub use settled::Settled;
pub use slot::{SLOT_COUNT, Slot, SlotRange, SlotSet};
pub use topology::{Group, SlotRoute, SlotState, Topology, Version};

/// The generated messages, services and their canonical JSON.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::restriction
)]
pub mod v1 {
    tonic::include_proto!("sluice.v1");
    include!(concat!(env!("OUT_DIR"), "/sluice.v1.serde.rs"));

    /// All of the package, encoded as a `FileDescriptorSet`, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
}
