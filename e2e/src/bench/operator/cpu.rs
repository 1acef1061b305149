//! Who used the processors: the cluster's processes, the sidecars, the operator and we ourselves.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

use crate::operator::Operator;

/// What a process used, by what it is called.
#[derive(Clone, Debug, Default)]
pub(super) struct Use(BTreeMap<(u32, String), Duration>);

impl Use {
    /// What every process of this machine has used until now.
    pub(super) fn now() -> Self {
        let mut used = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Some((name, time)) = stat(pid) else {
                continue;
            };
            used.insert((pid, name), time);
        }
        Self(used)
    }

    /// What was used since `earlier` by those that are still there, by name, the most first.
    pub(super) fn since(&self, earlier: &Self) -> Vec<(String, Duration)> {
        let mut by_name = BTreeMap::<&str, Duration>::new();
        for (process, time) in &self.0 {
            let before = earlier.0.get(process).copied().unwrap_or_default();
            *by_name.entry(shown(&process.1)).or_default() += time.saturating_sub(before);
        }
        let mut most: Vec<(String, Duration)> = by_name
            .into_iter()
            .map(|(name, time)| (name.to_owned(), time))
            .collect();
        most.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        most
    }
}

/// The kernel's name of a process as the tables have it.
fn shown(name: &str) -> &str {
    match name {
        // etcd's binary installs as `server`.
        "server" => "etcd",
        name if name.starts_with("sidewinder-side") => "agents and relays",
        name if name.starts_with("sidewinder-e2e") => "the benchmark",
        name if name.starts_with("sidewinder-oper") => "the operator",
        name if name.starts_with("containerd-shim") => "containerd-shim",
        name if name.starts_with("python") => "python",
        "kube-apiserver" | "kubelet" | "containerd" => name,
        name if name.starts_with("kube-") => "kube-scheduler, kube-controller-manager",
        _ => "everything else on the machine",
    }
}

/// The processor time that an operator has used.
///
/// # Errors
/// When it has ended.
pub(super) fn of_operator(operator: &mut Operator) -> Result<Duration> {
    operator.check()?;
    of(operator.pid()).context("the operator has ended")
}

/// The processor time of a process that has not ended.
fn of(pid: u32) -> Option<Duration> {
    stat(pid).map(|(_, time)| time)
}

fn stat(pid: u32) -> Option<(String, Duration)> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): the name stands in parentheses and may itself contain them; `utime` and `stime` are fields 14 and 15.
fn parse(stat: &str) -> Option<(String, Duration)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let second = sysconf(SysconfVar::CLK_TCK).ok()??;
    let second = u64::try_from(second).ok().filter(|second| *second > 0)?;
    Some((
        name.to_owned(),
        Duration::from_millis(ticks.saturating_mul(1000) / second),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat =
            "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 99 1000 10 18446744";
        let (name, time) = parse(stat).unwrap();
        assert_eq!(name, "a) b (c");
        // Two hundred ticks, of which Linux has shown programs a hundred a second for ever.
        assert_eq!(time, Duration::from_secs(2));
        assert_eq!(parse("42 (a) S 1"), None);
    }

    #[test]
    fn what_was_used_is_a_difference_by_name() {
        let used = |pairs: &[(u32, &str, u64)]| {
            Use(pairs
                .iter()
                .map(|&(pid, name, seconds)| ((pid, name.to_owned()), Duration::from_secs(seconds)))
                .collect())
        };
        let before = used(&[(1, "kubelet", 5), (2, "server", 1), (9, "gone", 3)]);
        let after = used(&[(1, "kubelet", 6), (2, "server", 4), (3, "server", 1)]);
        assert_eq!(
            after.since(&before),
            [
                ("etcd".to_owned(), Duration::from_secs(4)),
                ("kubelet".to_owned(), Duration::from_secs(1))
            ]
        );
    }
}
