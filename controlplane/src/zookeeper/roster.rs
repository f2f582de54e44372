//! Ephemeral nodes below one path, in a session of their own that outlives this process for a while.
//!
//! Each write is one multi with the epoch node's version, at which this controller leads: so what a leader has
//! sent that was replaced since is not taken.

use std::{collections::BTreeMap, time::Duration};

use zookeeper_client::{Client, CreateMode, CreateOptions, MultiWriteError};

use super::{Failure, Place, answered, connect, failure};
use crate::{
    jodis::Step,
    tree::{EPOCH, Epoch},
};

/// After so long the nodes of a process that is gone are gone, too. Longer than it takes that another
/// controller leads and proxies are connected to it; as Codis has it.
const SESSION: Duration = Duration::from_secs(20);

/// A node that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) data: Vec<u8>,
    pub(crate) version: i32,
    /// It is of this session.
    pub(crate) is_own: bool,
}

/// See the module.
pub(crate) struct Roster {
    client: Client,
    path: String,
    /// The cluster's epoch node.
    epoch: String,
    options: CreateOptions<'static>,
    most: Duration,
}

impl Roster {
    /// Opens a session, and makes the path where it is missing.
    pub(crate) async fn open(place: &Place, path: &str) -> Result<Self, Failure> {
        let acls = place.acls();
        let epoch = format!("{}{EPOCH}", place.root);
        let place = Place {
            session_timeout: SESSION,
            ..place.clone()
        };
        let client = connect(&place, |connector| connector.with_detached()).await?;
        let most = client.session_timeout() / 3;
        let folder = CreateMode::Persistent.with_acls(acls);
        answered(most, client.mkdir(path, &folder)).await?;
        Ok(Self {
            client,
            path: path.to_owned(),
            epoch,
            options: CreateMode::Ephemeral.with_acls(acls),
            most,
        })
    }

    fn node(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// All nodes, by name.
    pub(crate) async fn list(&mut self) -> Result<BTreeMap<String, Entry>, Failure> {
        let own = self.client.session_id().0;
        let names = answered(self.most, self.client.list_children(&self.path)).await?;
        let mut entries = BTreeMap::new();
        for name in names {
            let path = self.node(&name);
            match answered(self.most, self.client.get_data(&path)).await {
                Ok((data, stat)) => {
                    let entry = Entry {
                        data,
                        version: stat.version,
                        is_own: stat.ephemeral_owner == own,
                    };
                    entries.insert(name, entry);
                }
                Err(Failure::Conflict(_)) => {} // it has gone meanwhile
                Err(e) => return Err(e),
            }
        }
        Ok(entries)
    }

    /// Does one step, in the name of the leader of a term; whoever looks sees the node as it was or as it is
    /// then. A conflict: the node was changed, or the epoch was, perhaps by the leader of a later term.
    pub(crate) async fn take(&mut self, step: Step, term: u64) -> Result<(), Failure> {
        let client = self.client.clone();
        let (data, stat) = answered(self.most, client.get_data(&self.epoch)).await?;
        let now: Epoch = serde_json::from_slice(&data)
            .map_err(|e| Failure::Unusable(format!("{}: {e}", self.epoch)))?;
        if now.head.leader_term != term {
            return Err(Failure::Conflict(format!(
                "a leader of term {} was elected",
                now.head.leader_term
            )));
        }
        let mut writer = client.new_multi_writer();
        let leads = writer.add_check_version(&self.epoch, stat.version);
        let added = leads.and_then(|()| match step {
            Step::Create { name, data } => {
                writer.add_create(&self.node(&name), &data, &self.options)
            }
            Step::Replace {
                name,
                version,
                data,
            } => {
                let path = self.node(&name);
                let deleted = writer.add_delete(&path, Some(version));
                deleted.and_then(|()| writer.add_create(&path, &data, &self.options))
            }
            Step::Remove { name, version } => writer.add_delete(&self.node(&name), Some(version)),
        });
        added.map_err(|e| Failure::Unusable(e.to_string()))?;
        let written = async {
            match writer.commit().await {
                Ok(_) => Ok(Ok(())),
                Err(MultiWriteError::OperationFailed { source, .. }) => Ok(Err(failure(source))),
                Err(MultiWriteError::RequestFailed { source }) => Err(source),
            }
        };
        answered::<Result<(), Failure>>(self.most, written).await?
    }
}
