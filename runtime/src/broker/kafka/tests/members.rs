use std::time::Duration;

use millrace_core::progress::Progress;

use super::support::*;
use crate::broker::{CommitOutcome, Log, Partition};

type Properties<'a> = &'a [(&'a str, &'a str)];

#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_takes_over_where_the_first_one_was() {
    check_taking_over(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_takes_over_by_the_consumer_protocol() {
    check_taking_over(&[("group.protocol", "consumer")]).await;
}

async fn check_taking_over(protocol: Properties<'_>) {
    let Some(cluster) = Cluster::find() else { return };
    let first = cluster.open_with(protocol).await;
    crate::broker::Catalog::create_topic(&first, cluster.topic("orders"), 2).await.unwrap();
    cluster.publish(&first, "orders", 0, &["a", "b"]).await;
    cluster.publish(&first, "orders", 1, &["a", "b"]).await;
    let mut receiver = cluster.subscribe(&first).await;
    let mut units = assigned(&mut receiver, 2).await;
    let progress = after(&Progress::default(), 1);
    for unit in &mut units {
        commits(&mut unit.partition, commit(&progress)).await;
    }
    let second = cluster.open_with(protocol).await;
    let mut others = cluster.subscribe(&second).await;
    let mut taken = assigned(&mut others, 1).await.swap_remove(0);
    assert_eq!(taken.restored.progress, progress, "{protocol:?}");
    let number = taken.partition.unit().partition as usize;
    let lost = &mut units[number];
    within(lost.revoked.wait_for(|revoked| *revoked)).await.unwrap();
    let next = after(&progress, 1);
    assert_eq!(within(lost.partition.commit(commit(&next))).await.unwrap(), CommitOutcome::Aborted);
    commits(&mut taken.partition, commit(&next)).await;
    // The other one stays where it was.
    let kept = &mut units[1 - number];
    commits(&mut kept.partition, commit(&next)).await;
    drop((units, receiver));
    first.close(Duration::from_secs(10)).await;
    let rest = assigned(&mut others, 1).await.swap_remove(0);
    assert_eq!(rest.restored.progress, next, "{protocol:?}");
}
