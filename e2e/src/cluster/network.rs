//! How a cluster is reached: everything of it runs in one network namespace, tied to the machine by a pair of virtual interfaces with a
//! subnet of its own, so that any kubectl on the machine reaches the API server and clusters run side by side.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{cache, command};

/// The address of the node and of the API server inside the cluster. There is no kube-proxy, so pods use it in place of the service's address.
pub const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// The `kubernetes` service's address, which stands in the certificate.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const STEP: Duration = Duration::from_secs(10);
/// 198.18.0.0/15 is for tests between devices (RFC 2544) and is routed nowhere: 2^15 subnets of four addresses.
const SUBNETS: u32 = 1 << 15;

/// The two ends of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) machine: Ipv4Addr,
    pub(crate) cluster: Ipv4Addr,
}

impl Link {
    fn of(subnet: u32) -> Self {
        let base = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (subnet % SUBNETS) * 4;
        Self {
            machine: Ipv4Addr::from(base + 1),
            cluster: Ipv4Addr::from(base + 2),
        }
    }
}

/// The machine's end of a cluster's pair.
pub(crate) fn interface(id: &str) -> String {
    format!("sw-{id}")
}

/// Makes the machine's end, with the first subnet from the one that `id` hashes to which nobody on the machine uses. The other end is still on
/// the machine, as [`peer`].
pub(crate) fn make_link(id: &str) -> Result<Link> {
    // Two clusters that start at once must not choose the same subnet.
    let _lock = cache::lock(
        &cache::root()?.join(".subnets.lock"),
        Duration::from_secs(30),
    )?;
    let routes = ip(&["-4", "-oneline", "address", "show"])?;
    let link = free_subnet(id, &routes).context("every subnet of 198.18.0.0/15 is in use")?;
    let name = interface(id);
    ip(&[
        "link",
        "add",
        &name,
        "type",
        "veth",
        "peer",
        "name",
        &peer(id),
    ])?;
    ip(&[
        "address",
        "add",
        &format!("{}/30", link.machine),
        "dev",
        &name,
    ])?;
    ip(&["link", "set", &name, "up"])?;
    Ok(link)
}

/// The name of the cluster's end while it is still on the machine.
pub(crate) fn peer(id: &str) -> String {
    format!("swp-{id}")
}

/// Hands the other end to the network namespace of `pid`.
pub(crate) fn hand_over(id: &str, pid: u32) -> Result<()> {
    ip(&["link", "set", &peer(id), "netns", &pid.to_string()])?;
    Ok(())
}

/// Removes the machine's end, and with it the other one; one that is not there is fine.
pub(crate) fn remove_link(id: &str) -> Result<()> {
    let name = interface(id);
    if std::path::Path::new("/sys/class/net").join(&name).exists()
        && let Err(error) = ip(&["link", "delete", &name])
        && std::path::Path::new("/sys/class/net").join(&name).exists()
    {
        return Err(error);
    }
    Ok(())
}

/// Inside the namespace: loopback, the pods' bridge and our end of the pair.
pub(crate) fn set_up_inside(id: &str, link: Link) -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "set", &peer(id), "name", "host0"])?;
    ip(&[
        "address",
        "add",
        &format!("{}/30", link.cluster),
        "dev",
        "host0",
    ])?;
    ip(&["link", "set", "host0", "up"])?;
    ip(&["link", "add", "cni0", "type", "bridge"])?;
    ip(&["address", "add", &format!("{BRIDGE}/16"), "dev", "cni0"])?;
    ip(&["link", "set", "cni0", "up"])?;
    // It leads nowhere; the detection of the node's own address wants to find a default route.
    ip(&["route", "add", "default", "via", "10.88.0.254"])?;
    Ok(())
}

fn free_subnet(id: &str, addresses: &str) -> Option<Link> {
    let start = u32::from_str_radix(id, 16).unwrap_or_default() % SUBNETS;
    (0..SUBNETS)
        .map(|step| Link::of(start.wrapping_add(step)))
        .find(|link| {
            let mut taken = addresses
                .split_whitespace()
                .filter_map(|word| word.split('/').next());
            !taken.any(|word| word == link.machine.to_string() || word == link.cluster.to_string())
        })
}

fn ip(arguments: &[&str]) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    command::text(
        Command::new("ip")
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .args(arguments),
        STEP,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_four_addresses_apart_and_stay_in_the_block() {
        assert_eq!(
            Link::of(0),
            Link {
                machine: Ipv4Addr::new(198, 18, 0, 1),
                cluster: Ipv4Addr::new(198, 18, 0, 2)
            }
        );
        assert_eq!(
            Link::of(SUBNETS - 1).cluster,
            Ipv4Addr::new(198, 19, 255, 254)
        );
        assert_eq!(Link::of(SUBNETS), Link::of(0));
    }

    #[test]
    fn a_subnet_in_use_is_passed_over() {
        let first = free_subnet("0000000a", "1: lo inet 127.0.0.1/8 scope host lo").unwrap();
        assert_eq!(first, Link::of(10));
        let taken = format!("4: sw-x    inet {}/30 scope global sw-x", first.machine);
        assert_eq!(free_subnet("0000000a", &taken), Some(Link::of(11)));
        // An address that merely begins alike is another one.
        let alike = format!("4: sw-x    inet {}9/30 scope global sw-x", first.machine);
        assert_eq!(free_subnet("0000000a", &alike), Some(Link::of(10)));
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        assert!(interface("0123abcd").len() <= 15 && peer("0123abcd").len() <= 15);
    }
}
