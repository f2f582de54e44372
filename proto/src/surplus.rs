//! How many keys of a server are no client's, as the server itself carries it.
//!
//! While slots move, some of their keys are at two servers: staged at the target, or not yet deleted at the
//! source; and whoever copies them has keys of its own there. The leader counts them, and writes their number
//! down in each database, in a field of the migration's own. Proxies leave them out when a client asks how
//! many keys there are. The record goes by itself when nobody counts any more.

/// Where the record is: a hash in each database that has such keys. No client gets there
/// ([`crate::slot::RESERVED`]).
pub const KEY: &str = "{sluice}:surplus";
