//! The controller's parts.
