//! The controller of DebugSessions.

fn main() {}
