//! Ephemeral nodes below one path, in a session of their own that outlives this process for a while.

use std::{collections::BTreeMap, time::Duration};

use zookeeper_client::{Client, CreateMode, CreateOptions, MultiWriteError};

use super::{Failure, Place, answered, connect, failure};
use crate::jodis::Step;

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
    options: CreateOptions<'static>,
    most: Duration,
}

impl Roster {
    /// Opens a session, and makes the path where it is missing.
    pub(crate) async fn open(place: &Place, path: &str) -> Result<Self, Failure> {
        let acls = place.acls();
        let place = Place {
            session_timeout: SESSION,
            ..place.clone()
        };
        let client = connect(&place, |connector| connector.with_detached()).await?;
        let most = client.session_timeout() / 3;
        let folder = CreateMode::Persistent.with_acls(acls);
        answered(most, client.mkdir(path, &folder)).await?;
        let chrooted = client.chroot(path);
        let client = chrooted.map_err(|_| Failure::Unusable(format!("`{path}` is no path")))?;
        Ok(Self {
            client,
            options: CreateMode::Ephemeral.with_acls(acls),
            most,
        })
    }

    /// All nodes, by name.
    pub(crate) async fn list(&mut self) -> Result<BTreeMap<String, Entry>, Failure> {
        let own = self.client.session_id().0;
        let names = answered(self.most, self.client.list_children("/")).await?;
        let mut entries = BTreeMap::new();
        for name in names {
            let path = format!("/{name}");
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

    /// Does one step; whoever looks sees the node as it was or as it is then.
    pub(crate) async fn take(&mut self, step: Step) -> Result<(), Failure> {
        let client = self.client.clone();
        let mut writer = client.new_multi_writer();
        let added = match step {
            Step::Create { name, data } => {
                writer.add_create(&format!("/{name}"), &data, &self.options)
            }
            Step::Replace {
                name,
                version,
                data,
            } => {
                let path = format!("/{name}");
                let deleted = writer.add_delete(&path, Some(version));
                deleted.and_then(|()| writer.add_create(&path, &data, &self.options))
            }
            Step::Remove { name, version } => writer.add_delete(&format!("/{name}"), Some(version)),
        };
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
