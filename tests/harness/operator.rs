//! An operator who asks whichever controller leads, and does not forget what it was told.
//!
//! Any controller may be dead, hang, or not lead: then the next one is asked, with the same request id, so
//! that nothing is done twice. What was acknowledged must be there afterwards, and nothing else.

use std::time::Duration;

use proto::v1::{self, admin_service_client::AdminServiceClient, cluster::Role};
use tokio::time::timeout;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{Cluster, Controller, within};

/// How long a call may take, before another controller is asked.
const CALL: Duration = Duration::from_secs(2);

/// How long it may take until somebody leads: processes start, and sessions end, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of a controller.
pub type Admin = AdminServiceClient<Channel>;

/// See the module. What it changes is the description of group `g1`.
pub struct Operator {
    addrs: Vec<String>,
    told: u64,
}

impl Operator {
    /// Knows all controllers of a cluster.
    pub fn new(cluster: &Cluster) -> Self {
        let controllers = [&cluster.controller].into_iter().chain(&cluster.stand_bys);
        Self {
            addrs: controllers.map(|c| c.addr.clone()).collect(),
            told: 0,
        }
    }

    /// Changes something, and reads it back from who has done it.
    pub async fn works(&mut self) {
        self.told += 1;
        let text = self.told.to_string();
        let request = description(&text, &format!("operator-{text}"));
        let done_by = call_any(&self.addrs, |mut admin| {
            let request = request.clone();
            async move {
                admin.update_group(request).await?;
                admin
                    .get_group(v1::GetGroupRequest { id: G1.to_owned() })
                    .await
            }
        });
        assert_eq!(done_by.await.into_inner().description, text);
    }

    /// What there is now, by whoever answers.
    pub async fn reads(&self) -> String {
        let group = call_any(&self.addrs, |mut admin| async move {
            admin
                .get_group(v1::GetGroupRequest { id: G1.to_owned() })
                .await
        });
        group.await.into_inner().description
    }

    /// Returns once every controller has what was acknowledged last.
    pub async fn finds_all(&self) {
        for addr in &self.addrs {
            within(PATIENCE, || async {
                let ask = |mut admin: Admin| async move {
                    admin
                        .get_group(v1::GetGroupRequest { id: G1.to_owned() })
                        .await
                };
                let found = call(addr, ask).await.map_err(|e| e.to_string())?;
                let (found, told) = (found.into_inner().description, self.told.to_string());
                match found == told {
                    true => Ok(()),
                    false => Err(format!("{addr} has {found}, and {told} was acknowledged")),
                }
            })
            .await;
        }
    }
}

const G1: &str = "g1";

fn description(text: &str, request_id: &str) -> v1::UpdateGroupRequest {
    v1::UpdateGroupRequest {
        id: G1.to_owned(),
        description: text.to_owned(),
        request_id: request_id.to_owned(),
        ..v1::UpdateGroupRequest::default()
    }
}

/// Has one controller describe group `g1`.
pub async fn describe(controller: &Controller, text: &str) -> Result<Response<v1::Group>, Status> {
    describe_once(controller, text, "").await
}

/// The same, with a request id.
pub async fn describe_once(
    controller: &Controller,
    text: &str,
    request_id: &str,
) -> Result<Response<v1::Group>, Status> {
    let request = description(text, request_id);
    let ask = |mut admin: Admin| async move { admin.update_group(request).await };
    call(&controller.addr, ask).await
}

/// What a controller is to its cluster.
pub async fn role(addr: &str) -> Result<Role, Status> {
    let ask = |mut admin: Admin| async move { admin.get_cluster(v1::GetClusterRequest {}).await };
    Ok(call(addr, ask).await?.into_inner().role())
}

/// Returns once a controller is that to its cluster.
pub async fn becomes(controller: &Controller, wanted: Role) {
    within(PATIENCE, || async {
        match role(&controller.addr).await {
            Ok(role) if role == wanted => Ok(()),
            other => Err(format!("it is {other:?}, not {wanted:?}")),
        }
    })
    .await;
}

/// Returns the one of them that leads, once one does.
pub async fn leader(controllers: [&Controller; 2]) -> &Controller {
    within(PATIENCE, || async {
        for controller in controllers {
            if matches!(role(&controller.addr).await, Ok(Role::Leader)) {
                return Ok(controller);
            }
        }
        Err("nobody leads".to_owned())
    })
    .await
}

/// Asks one controller, which may hang.
pub async fn call<T, F: Future<Output = Result<T, Status>>>(
    addr: &str,
    ask: impl FnOnce(Admin) -> F,
) -> Result<T, Status> {
    let answer = async {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|e| Status::unavailable(format!("{addr}: {e}")))?;
        ask(AdminServiceClient::new(channel)).await
    };
    let silent = |_| Status::deadline_exceeded(format!("{addr} does not answer"));
    timeout(CALL, answer).await.map_err(silent)?
}

/// Asks all of them in turn until one has done it.
pub async fn call_any<T, F: Future<Output = Result<T, Status>>>(
    addrs: &[String],
    ask: impl Fn(Admin) -> F,
) -> T {
    within(PATIENCE, || async {
        let mut whys = Vec::new();
        for addr in addrs {
            match call(addr, &ask).await {
                Ok(answer) => return Ok(answer),
                Err(why) => whys.push(why.to_string()),
            }
        }
        Err(whys.join("; "))
    })
    .await
}
