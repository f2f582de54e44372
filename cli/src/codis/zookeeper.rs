//! Reads a product's nodes from Codis's ZooKeeper. Writes nothing there.
//!
//! Only what every ZooKeeper has is used, for Codis's are old. Nodes are read one by one, while a
//! dashboard may be changing them: so all are read twice, and must be the same both times.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use tokio::time::timeout;
use zookeeper_client::{Client, Error};

/// Below this, Codis 3 keeps its products.
const ROOT: &str = "/codis3";

/// Where and how to read.
pub(crate) struct Source<'a> {
    /// `HOST:PORT,…`.
    pub ensemble: &'a str,
    /// The product's name.
    pub product: &'a str,
    /// `USER:PASSWORD` of ZooKeeper's digest scheme.
    pub auth: Option<&'a str>,
    /// For connecting and reading, all in all.
    pub timeout: Duration,
}

impl Source<'_> {
    /// The nodes that have data, by their paths below the product's.
    pub(crate) async fn read(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let Self {
            ensemble,
            timeout: most,
            ..
        } = self;
        timeout(*most, self.read_stable())
            .await
            .unwrap_or_else(|_| bail!("no answer within {most:?}"))
            .with_context(|| format!("read from ZooKeeper at {ensemble}"))
    }

    async fn read_stable(&self) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let mut connector = Client::connector()
            .with_session_timeout(self.timeout)
            .with_fail_eagerly();
        if let Some(auth) = self.auth {
            connector = connector.with_auth("digest", auth.as_bytes());
        }
        let client = connector.connect(self.ensemble).await?;
        let first = self.read_once(&client).await?;
        if self.read_once(&client).await? != first {
            bail!("Codis is changing it at this moment: try again when it is quiet");
        }
        Ok(first)
    }

    async fn read_once(&self, client: &Client) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
        let root = format!("{ROOT}/{}", self.product);
        let children = match client.list_children(&root).await {
            Ok(children) => children,
            Err(Error::NoNode) => {
                let products = client.list_children(ROOT).await.unwrap_or_default();
                bail!(
                    "there is no product `{}` of Codis 3 there; there is: {}",
                    self.product,
                    if products.is_empty() {
                        "none".to_owned()
                    } else {
                        products.join(", ")
                    }
                );
            }
            Err(e) => return Err(e).context(root),
        };
        let mut paths = Vec::new();
        for child in children {
            let below = client.list_children(&format!("{root}/{child}")).await?;
            paths.extend(below.into_iter().map(|node| format!("{child}/{node}")));
            paths.push(child);
        }
        let read = |path: String| {
            let data = client.get_data(&format!("{root}/{path}"));
            async move {
                let (data, _) = data.await.with_context(|| path.clone())?;
                anyhow::Ok((path, data))
            }
        };
        let nodes = try_join_all(paths.into_iter().map(read)).await?;
        Ok(nodes
            .into_iter()
            .filter(|(_, data)| !data.is_empty())
            .collect())
    }
}
