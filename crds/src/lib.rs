//! The DebugSession API: types, rules, generated YAML.
