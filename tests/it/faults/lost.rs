//! Connections that are lost in the midst of something, once each: of a copy at every of its stages, of a proxy
//! in the midst of a request. Every increment that was answered has been made once, and no other.

use tokio::sync::oneshot;

use super::*;

/// One that increments [`KEY`] again and again.
struct Counter {
    stop: oneshot::Sender<()>,
    counted: tokio::task::JoinHandle<Counted>,
}

/// What it was told.
#[derive(Default)]
struct Counted {
    done: i64,
    unknown: i64,
}

impl Counter {
    fn start(mut client: MultiplexedConnection) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let counted = tokio::spawn(async move {
            let mut counted = Counted::default();
            while stopped.try_recv().is_err() {
                match cmd("INCR").arg(KEY).query_async::<i64>(&mut client).await {
                    Ok(_) => counted.done += 1,
                    Err(e) => match e.code() {
                        Some("UNKNOWNOUTCOME") => counted.unknown += 1,
                        Some("CLUSTERDOWN" | "TRYAGAIN") => {} // it was not executed
                        _ => panic!("{e}"),
                    },
                }
                sleep(Duration::from_millis(3)).await;
            }
            counted
        });
        Self { stop, counted }
    }

    /// What it was told, and what there is.
    async fn end(self, cluster: &Cluster) -> (Counted, i64) {
        self.stop.send(()).ok(); // it may have panicked, as is seen now
        let counted = self.counted.await.unwrap();
        let mut client = cluster.proxies[0].connect().await;
        let value = cmd("GET").arg(KEY).query_async(&mut client).await.unwrap();
        (counted, value)
    }
}

/// Where the connection is on which something is lost.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Target,
}

#[tokio::test]
async fn a_copy_loses_a_connection_at_each_of_its_stages() {
    let cluster = cluster(1, None).await;
    let mut client = cluster.proxies[0].connect().await;
    set(&mut client, "{foo}still", "copied").await.unwrap();
    let counter = Counter::start(client);
    let leader = &cluster.controller.process;
    let swallow = |piece: &[u8]| Fault::SwallowReply(piece.to_vec());
    // The switch to tracking, the pass, a key that is read, one that is written, what is left at the end; and
    // in the midst of whatever is sent to the target.
    let losses = [
        (Side::Source, swallow(b"TRACKING")),
        (Side::Source, swallow(b"SCAN")),
        (Side::Source, swallow(b"{foo}still")),
        (Side::Target, swallow(b"copied")),
        (Side::Source, swallow(BARRIER)),
        (Side::Target, Fault::Truncate(2000)),
    ];
    for (round, (side, fault)) in losses.into_iter().enumerate() {
        let source = round % 2;
        let group = match side {
            Side::Source => source,
            Side::Target => 1 - source,
        };
        let edge = &cluster.edges().servers[group];
        edge.set_for(leader, fault);
        let id = create(&cluster.controller, SLOT, ["g2", "g1"][source])
            .await
            .id;
        edge.becomes(leader, Fault::Pass).await;
        edge.heal(); // now it does not matter any more whose a connection is, which takes long to find out
        enters(&cluster.controller, &id, Phase::Succeeded).await;
    }
    let (counted, value) = counter.end(&cluster).await;
    assert_eq!((counted.unknown, counted.done), (0, value));
    assert_eq!(misplaced_keys(&cluster).await, Violations::new());
}

/// Half of a request arrives, while slots move.
#[tokio::test]
async fn a_proxy_loses_a_connection_in_the_midst_of_a_request() {
    let cluster = cluster(1, None).await;
    let mut client = cluster.proxies[0].connect().await;
    set(&mut client, KEY, "0").await.unwrap();
    let counter = Counter::start(client);
    let proxy = &cluster.proxies[0].process;
    for (round, most) in [7, 40, 103].into_iter().enumerate() {
        let source = round % 2;
        let edge = &cluster.edges().servers[source];
        let id = create(&cluster.controller, SLOT, ["g2", "g1"][source])
            .await
            .id;
        edge.set_for(proxy, Fault::Truncate(most));
        edge.becomes(proxy, Fault::Pass).await;
        edge.heal();
        enters(&cluster.controller, &id, Phase::Succeeded).await;
    }
    let (Counted { done, unknown }, value) = counter.end(&cluster).await;
    assert!(
        (done..=done + unknown).contains(&value),
        "{done} {unknown} {value}"
    );
    assert_eq!(misplaced_keys(&cluster).await, Violations::new());
}
