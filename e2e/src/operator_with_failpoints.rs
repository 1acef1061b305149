//! The operator with the points at which a test may hold it or kill it. Built beside the cluster's tests, and in no image.

fn main() -> anyhow::Result<()> {
    sidewinder_operator::app::main()
}
