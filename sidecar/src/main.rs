//! Reads a Python process and runs scripts in it: agent, relay, and the same actions by hand.

fn main() {}
