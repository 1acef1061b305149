//! Large results at the same time wait for each other. One test in a process of its own: it measures the process.

#[path = "../examples/result_memory.rs"]
mod result_memory;

use result_memory::{Kind, measure};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn results_take_their_budget_and_no_more() {
    let taken = |bytes: u64| usize::try_from(bytes).unwrap();
    // Each takes the whole budget, so one after the other.
    let measured = measure(12, 2 * MIB, 6 * MIB, Kind::Output).await.unwrap();
    assert_eq!(measured.stored, 12);
    let peak = taken(measured.peak - measured.before);
    assert!(peak < 40 * MIB, "{} MiB", peak / MIB);
    // What would take more than there is, is refused on the way in.
    let refused = measure(4, 4 * MIB, 6 * MIB, Kind::Dense).await.unwrap();
    assert_eq!(refused.stored, 0);
    let peak = taken(refused.peak - measured.before);
    assert!(peak < 40 * MIB, "{} MiB", peak / MIB);
}
