//! The real cluster, the workloads, the end-to-end tests, the demo and the benchmarks.

fn main() {}
