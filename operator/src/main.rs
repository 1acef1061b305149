//! The controller of `DebugSession`s.

fn main() -> anyhow::Result<()> {
    sidewinder_operator::app::main()
}
