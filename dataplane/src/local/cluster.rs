//! `CLUSTER`, for clients that want Redis Cluster: one node, this proxy, owns all 16,384 slots.
//!
//! These slots are not Sluice's: they only satisfy clients, which then send everything here. So `KEYSLOT`
//! computes what such clients compute, and to find keys by it all have to be gone through
//! ([`crate::lease::gather`]). What groups there are
//! behind the proxy is not shown: they come and go without a client's notice, and none is ever `MOVED`.

use std::net::SocketAddr;

use super::Context;
use crate::{
    error,
    resp::{Request, put_bulk, put_error, put_header, put_int, put_map, put_verbatim},
};

/// The last of Redis Cluster's slots.
pub(crate) const LAST: u16 = 16_383;

/// This proxy as a node of a cluster.
struct Node {
    id: String,
    host: String,
    port: u16,
}

impl Node {
    /// Where clients are told to reach it: where it says, or where this one did.
    fn new(context: &Context<'_>) -> Self {
        let local = context.session.client.identity.local;
        let announced = context.serving.announced.as_deref().and_then(host_and_port);
        let (host, port) = announced.unwrap_or_else(|| (plain_ip(local), local.port()));
        Self {
            id: node_id(context),
            host,
            port,
        }
    }
}

/// As long as Redis's.
pub(super) fn node_id(context: &Context<'_>) -> String {
    format!("{:0<40}", context.proxy.incarnation)
}

fn host_and_port(addr: &str) -> Option<(String, u16)> {
    let (host, port) = addr.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

fn plain_ip(addr: SocketAddr) -> String {
    addr.ip().to_canonical().to_string()
}

pub(super) fn slots(context: &Context<'_>, out: &mut Vec<u8>) {
    let node = Node::new(context);
    put_header(out, b'*', 1);
    put_header(out, b'*', 3);
    put_int(out, 0);
    put_int(out, LAST.into());
    put_header(out, b'*', 4);
    put_bulk(out, node.host.as_bytes());
    put_int(out, node.port.into());
    put_bulk(out, node.id.as_bytes());
    put_header(out, b'*', 0); // names of the host besides
}

pub(super) fn shards(context: &Context<'_>, out: &mut Vec<u8>) {
    let node = Node::new(context);
    put_header(out, b'*', 1);
    put_map(out, context.session.client.protocol, 2);
    put_bulk(out, b"slots");
    put_header(out, b'*', 2);
    put_int(out, 0);
    put_int(out, LAST.into());
    put_bulk(out, b"nodes");
    put_header(out, b'*', 1);
    put_map(out, context.session.client.protocol, 7);
    put_pair(out, "id", &node.id);
    put_bulk(out, b"port");
    put_int(out, node.port.into());
    put_pair(out, "ip", &node.host);
    put_pair(out, "endpoint", &node.host);
    put_pair(out, "role", "master");
    put_bulk(out, b"replication-offset");
    put_int(out, 0);
    put_pair(out, "health", "online");
}

fn put_pair(out: &mut Vec<u8>, name: &str, value: &str) {
    put_bulk(out, name.as_bytes());
    put_bulk(out, value.as_bytes());
}

pub(super) fn nodes(context: &Context<'_>, out: &mut Vec<u8>) {
    let Node { id, host, port } = Node::new(context);
    let epoch = epoch(context);
    // The port of the bus, which no client uses, stands behind the `@`.
    let bus = port.saturating_add(10_000);
    let line = format!("{id} {host}:{port}@{bus} myself,master - 0 0 {epoch} connected 0-{LAST}\n");
    put_verbatim(out, context.session.client.protocol, &line);
}

/// Well, as far as a client needs to know, once there is a topology.
pub(super) fn info(context: &Context<'_>, out: &mut Vec<u8>) {
    let epoch = epoch(context);
    let (state, slots) = match context.topology {
        Some(_) => ("ok", LAST + 1),
        None => ("fail", 0),
    };
    let text = format!(
        "cluster_state:{state}\r\n\
         cluster_slots_assigned:{slots}\r\n\
         cluster_slots_ok:{slots}\r\n\
         cluster_slots_pfail:0\r\n\
         cluster_slots_fail:0\r\n\
         cluster_known_nodes:1\r\n\
         cluster_size:1\r\n\
         cluster_current_epoch:{epoch}\r\n\
         cluster_my_epoch:{epoch}\r\n\
         cluster_stats_messages_sent:0\r\n\
         cluster_stats_messages_received:0\r\n\
         total_cluster_links_buffer_limit_exceeded:0\r\n"
    );
    put_verbatim(out, context.session.client.protocol, &text);
}

fn epoch(context: &Context<'_>) -> u64 {
    context
        .topology
        .map_or(0, |topology| topology.version().epoch)
}

/// Who replicates this node: nobody. Of others nothing is known.
pub(super) fn replicas(context: &Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) {
    if request.arg(2) == node_id(context).as_bytes() {
        put_header(out, b'*', 0);
    } else {
        put_error(out, &error::unknown_node(request.arg(2)));
    }
}

pub(super) fn key_slot(request: &Request<'_>, out: &mut Vec<u8>) {
    put_int(out, slot_of(request.arg(2)).into());
}

/// As Redis Cluster computes it; an empty hash tag is none.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    let position = |bytes: &[u8], brace| bytes.iter().position(|&b| b == brace);
    let tag = position(key, b'{').and_then(|open| {
        let behind = &key[open + 1..];
        position(behind, b'}')
            .filter(|&len| len > 0)
            .map(|len| &behind[..len])
    });
    crc16(tag.unwrap_or(key)) & LAST
}

/// CRC-16/XMODEM. Bit by bit: it is seldom asked for.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x1021
            }
        })
    })
}

/// Redis's, of what is served.
pub(super) const HELP: &[&str] = &[
    "COUNTKEYSINSLOT <slot>",
    "    Return the number of keys in <slot>.",
    "GETKEYSINSLOT <slot> <count>",
    "    Return key names stored by current node in a slot.",
    "INFO",
    "    Return information about the cluster.",
    "KEYSLOT <key>",
    "    Return the hash slot for <key>.",
    "MYID",
    "    Return the node id.",
    "NODES",
    "    Return cluster configuration seen by node. Output format:",
    "    <id> <ip:port> <flags> <master> <pings> <pongs> <epoch> <link> <slot> ...",
    "REPLICAS <node-id>",
    "    Return <node-id> replicas.",
    "SLOTS",
    "    Return information about slots range mappings. Each range is made of:",
    "    start, end, master and replicas IP addresses, ports and ids",
    "SHARDS",
    "    Return information about slot range mappings and the nodes associated with them.",
    "LINKS",
    "    Return information about all network links between this node and its peers.",
    "    Output format is an array where each array element is a map containing attributes of a link",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a server with `cluster-enabled yes`.
    #[test]
    fn slots_are_those_of_redis_cluster() {
        for (key, slot) in [
            ("123456789", 12_739),
            ("foo", 12_182),
            ("{}a", 10_875),
            ("{a}{b}", 15_495),
            ("x{a}y", 15_495),
            ("a", 15_495),
            ("", 0),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        let expected = |host: &str| Some((host.to_owned(), 6379));
        assert_eq!(
            host_and_port("redis.example:6379"),
            expected("redis.example")
        );
        assert_eq!(host_and_port("[::1]:6379"), expected("::1"));
        assert_eq!(host_and_port("redis.example"), None);
    }
}
