//! The only crate that talks to the kernel: processes, ptrace, memory, namespaces, credentials, memfds.
