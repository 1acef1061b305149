//! Snapshots into text and one-line summaries, with no I/O.
