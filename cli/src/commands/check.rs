//! `sluice check`: the doctor. Looks at everything once, judges it ([`diagnose()`]), and says of every
//! fault what to do about it.

mod diagnose;

use std::time::SystemTime;

use proto::{Version, v1};
use serde::Serialize;

use self::diagnose::{Cluster, Finding, Severity, World, diagnose};
use super::Context;
use crate::{
    client::{self, Admin, Client},
    error::Error,
    output::Colour,
};

pub(crate) const HELP: &str = "\
Each finding has a mark: √ as it should be, ‼ worth a look, × to be repaired; and what to do about
it. Exits with 1 if there is any ×.

Examples:
  sluice check
  sluice check -o json | jq '.findings[] | select(.severity != \"ok\")'

RPC: AdminService.GetCluster, ListGroups, ListServers, GetSlotMap, GetTopology, ListProxies";

/// What `--output json` prints. It may grow, and never changes otherwise.
#[derive(Serialize)]
struct Report {
    /// Whether there is nothing to be repaired.
    healthy: bool,
    findings: Vec<Finding>,
}

/// Does it.
pub(crate) async fn run(context: &mut Context) -> Result<(), Error> {
    let cluster = match look(&mut context.client).await {
        Ok(cluster) => Ok(cluster),
        Err(error) if error.is_lost() => Err(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let findings = diagnose(&World {
        now: SystemTime::now(),
        endpoint: context.client.endpoint().to_string(),
        build_version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster,
    });
    let healthy = findings.iter().all(|f| f.severity != Severity::Error);
    let report = Report { healthy, findings };
    let output = &context.output;
    output.show_text(&report, || {
        text(&report, |colour, text| output.paint(colour, text))
    })?;
    if healthy {
        Ok(())
    } else {
        Err(Error::Unhealthy)
    }
}

async fn look(client: &mut Client) -> Result<Cluster, client::Error> {
    let about = client
        .read(Admin::get_cluster, v1::GetClusterRequest {})
        .await?;
    let topology = client
        .read(Admin::get_topology, v1::GetTopologyRequest {})
        .await?;
    Ok(Cluster {
        about,
        version: topology.version.as_ref().map(Version::from),
        groups: client.list_groups(Default::default()).await?.groups,
        servers: client.list_servers(Default::default()).await?.servers,
        slots: client
            .read(Admin::get_slot_map, v1::GetSlotMapRequest {})
            .await?
            .assignments,
        // Last: a proxy is behind only if it has not acked what was there before it was asked.
        proxies: client.list_proxies(Default::default()).await?.proxies,
    })
}

fn text(report: &Report, paint: impl Fn(Colour, &str) -> String) -> String {
    let mut text = String::new();
    let mut category = None;
    for finding in &report.findings {
        if category != Some(finding.category) {
            let gap = if category.is_some() { "\n" } else { "" };
            text.push_str(&format!("{gap}{}\n", finding.category));
            category = Some(finding.category);
        }
        let mark = match finding.severity {
            Severity::Ok => paint(Colour::Green, "√"),
            Severity::Warning => paint(Colour::Yellow, "‼"),
            Severity::Error => paint(Colour::Red, "×"),
        };
        text.push_str(&format!("  {mark} {}\n", finding.message));
        if !finding.advice.is_empty() {
            text.push_str(&format!("      {}\n", finding.advice));
        }
    }
    text.push_str(&format!("\n{}\n", summary(&report.findings)));
    text
}

fn summary(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => "All is well".to_owned(),
        (0, warnings) => format!("Works; {warnings} worth a look"),
        (errors, 0) => format!("{errors} to be repaired"),
        (errors, warnings) => format!("{errors} to be repaired, {warnings} worth a look"),
    }
}

#[cfg(test)]
mod tests {
    use super::{diagnose::Category, *};

    #[test]
    fn a_report_is_read_from_top_to_bottom() {
        let finding = |category, severity, message: &str, advice: &str| Finding {
            category,
            severity,
            message: message.to_owned(),
            advice: advice.to_owned(),
        };
        let report = Report {
            healthy: false,
            findings: vec![
                finding(Category::Controller, Severity::Ok, "it answers", ""),
                finding(
                    Category::Slots,
                    Severity::Error,
                    "none is served",
                    "assign them",
                ),
                finding(Category::Slots, Severity::Warning, "one is held", "wait"),
            ],
        };
        insta::assert_snapshot!(text(&report, |_, text| text.to_owned()), @"
        Controller
          √ it answers

        Slots
          × none is served
              assign them
          ‼ one is held
              wait

        1 to be repaired, 1 worth a look
        ");
        insta::assert_snapshot!(serde_json::to_string(&report).unwrap(), @r#"{"healthy":false,"findings":[{"category":"controller","severity":"ok","message":"it answers"},{"category":"slots","severity":"error","message":"none is served","advice":"assign them"},{"category":"slots","severity":"warning","message":"one is held","advice":"wait"}]}"#);
    }
}
