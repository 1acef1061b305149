//! Many pods that run the same program and share a label.

use std::collections::BTreeMap;

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::PostParams;

use crate::namespace::TestNamespace;
use crate::workload;

/// The label that they share.
pub(super) const LABEL: (&str, &str) = ("example.com/bench", "operator");
/// The program: an asyncio server that sleeps.
pub(super) const PROGRAM: &str = "idle_server.py";
/// So many are started at the same time.
const AT_ONCE: usize = 8;

/// Starts `count` pods and returns their names once all are ready.
///
/// # Errors
/// When one is not ready in time.
pub(super) async fn start(namespace: &TestNamespace, count: usize) -> Result<Vec<String>> {
    let pods = namespace.pods();
    stream::iter(0..count)
        .map(|number| {
            let pods = pods.clone();
            async move {
                let name = format!("python-{number:03}");
                let mut pod = namespace.python(&name, PROGRAM).pod()?;
                let labels = pod.metadata.labels.get_or_insert_with(BTreeMap::new);
                labels.insert(LABEL.0.to_owned(), LABEL.1.to_owned());
                pods.create(&PostParams::default(), &pod).await?;
                workload::ready(&pods, &name).await?;
                anyhow::Ok(name)
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}
