//! What both sides of a migration have is compared, and it goes as fast as it may.

use std::process::{Command, Output};

use proto::v1::{self, key_difference::What, migration::Phase};
use redis::{cmd, pipe};
use tests::{
    Cluster, binary, eventually,
    migration::{enters, get},
};

/// What the operator's tool says of it.
fn tool(cluster: &Cluster, words: &[&str]) -> Output {
    Command::new(binary("sluice"))
        .args([
            "--endpoint",
            &cluster.controller.addr,
            "-o",
            "json",
            "migration",
        ])
        .args(words)
        .output()
        .unwrap()
}

/// What a comparison ends with.
async fn verify(cluster: &Cluster, id: &str) -> Result<v1::VerifyMigrationResponse, String> {
    let request = v1::VerifyMigrationRequest {
        id: id.to_owned(),
        one_in: 0,
    };
    let mut admin = cluster.controller.admin().await;
    let stream = admin.verify_migration(request).await;
    let mut stream = stream.map_err(|e| e.to_string())?.into_inner();
    let mut last = v1::VerifyMigrationResponse::default();
    while let Some(told) = stream.message().await.map_err(|e| e.to_string())? {
        last = told;
    }
    assert!(last.done, "{last:?}");
    Ok(last)
}

#[tokio::test]
async fn both_sides_are_compared_until_the_sources_copies_go() {
    let cluster = Cluster::builder().groups(2).proxies(1).start().await;
    let mut client = cluster.proxies[0].connect().await;
    let mut fill = pipe();
    for n in 0..3000 {
        fill.cmd("SET").arg(format!("k{n}")).arg(n).ignore();
    }
    fill.exec_async(&mut client).await.unwrap();
    let mut admin = cluster.controller.admin().await;
    let request = v1::CreateMigrationRequest {
        id: "m".to_owned(),
        slots: "0-299".to_owned(),
        target_group_id: "g2".to_owned(),
        rate: 50,
        keep_source: true,
        ..v1::CreateMigrationRequest::default()
    };
    admin.create_migration(request).await.unwrap();
    // Nine hundred keys are to be copied, which takes far longer than this.
    eventually(|| async {
        let copied = get(&cluster.controller, "m").await?.copy;
        match copied.map_or(0, |copy| copy.keys_copied) {
            0 => Err("nothing is copied".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let slow = get(&cluster.controller, "m").await.unwrap();
    let copied = slow.copy.clone().unwrap().keys_copied;
    assert!(slow.rate == 50 && copied < 500, "{slow:?}");
    let early = verify(&cluster, "m").await.unwrap_err();
    assert!(early.contains("has not copied all keys"), "{early}");

    let output = tool(&cluster, &["update", "m", "--rate", "unlimited"]);
    assert!(output.status.success(), "{output:?}");
    let kept = enters(&cluster.controller, "m", Phase::Committed).await;
    assert!(kept.paused && kept.rate == 0, "{kept:?}");
    let late = v1::UpdateMigrationRequest {
        id: "m".to_owned(),
        rate: 7,
        ..v1::UpdateMigrationRequest::default()
    };
    let late = admin.update_migration(late).await.unwrap_err();
    assert!(late.message().contains("copies nothing"), "{late:?}");

    let same = verify(&cluster, "m").await.unwrap();
    assert!(
        same.keys_compared > 500 && same.keys_different == 0,
        "{same:?}"
    );
    assert_eq!(
        (same.slots.as_str(), same.moved_slots.as_str()),
        ("0-299", "0-299")
    );
    let output = tool(&cluster, &["verify", "m", "--sample", "50%"]);
    assert!(output.status.success(), "{output:?}");

    // A client changes one key and deletes another at their new owner.
    let moved = (0..3000).map(|n| format!("k{n}"));
    let mut moved = moved.filter(|key| proto::Slot::of_key(key.as_bytes()).number() < 300);
    let (one, other) = (moved.next().unwrap(), moved.next().unwrap());
    cmd("SET")
        .arg(&one)
        .arg("x")
        .exec_async(&mut client)
        .await
        .unwrap();
    cmd("DEL")
        .arg(&other)
        .exec_async(&mut client)
        .await
        .unwrap();
    let found = verify(&cluster, "m").await.unwrap();
    let mut named: Vec<_> = found
        .differences
        .iter()
        .map(|d| (d.key.clone(), d.what()))
        .collect();
    named.sort();
    let mut expected = [
        (one.into_bytes(), What::Value),
        (other.into_bytes(), What::Missing),
    ];
    expected.sort();
    assert_eq!(named, expected);
    let output = tool(&cluster, &["verify", "m"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let shown: v1::VerifyMigrationResponse = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown.keys_different, 2);

    let output = tool(&cluster, &["resume", "m"]);
    assert!(output.status.success(), "{output:?}");
    enters(&cluster.controller, "m", Phase::Succeeded).await;
    let over = verify(&cluster, "m").await.unwrap_err();
    assert!(over.contains("nothing to compare"), "{over}");
}
