//! What a socket is: from the tables of the network namespace it belongs to, and what the kernel says of unix
//! sockets' peers. <https://man7.org/linux/man-pages/man5/proc_pid_net.5.html>,
//! <https://man7.org/linux/man-pages/man7/sock_diag.7.html>

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// One of the tables in `/proc/PID/net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Table {
    Tcp,
    Tcp6,
    Udp,
    Udp6,
    Unix,
}

impl Table {
    /// Every table, the likeliest first.
    pub(crate) const ALL: [Self; 5] = [Self::Tcp, Self::Unix, Self::Tcp6, Self::Udp, Self::Udp6];

    /// Its file below `/proc/PID`.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Tcp => "net/tcp",
            Self::Tcp6 => "net/tcp6",
            Self::Udp => "net/udp",
            Self::Udp6 => "net/udp6",
            Self::Unix => "net/unix",
        }
    }

    /// Its sockets by inode. A line that cannot be read is left out.
    pub(crate) fn parse(self, text: &[u8]) -> HashMap<u64, Socket> {
        text.split(|byte| *byte == b'\n')
            .skip(1)
            .filter_map(|line| {
                let line = String::from_utf8_lossy(line);
                match self {
                    Self::Unix => unix(&line),
                    Self::Tcp | Self::Tcp6 => inet(&line, true),
                    Self::Udp | Self::Udp6 => inet(&line, false),
                }
            })
            .collect()
    }
}

/// What a table says of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    Inet {
        tcp: bool,
        local: SocketAddr,
        peer: SocketAddr,
        state: &'static str,
        send_queue: u64,
    },
    Unix {
        kind: &'static str,
        listens: bool,
        connected: bool,
        path: String,
    },
}

/// A line of `net/{tcp,tcp6,udp,udp6}`.
fn inet(line: &str, tcp: bool) -> Option<(u64, Socket)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let peer = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let (send_queue, _) = fields.next()?.split_once(':')?;
    let socket = Socket::Inet {
        tcp,
        local,
        peer,
        state: tcp_state(state),
        send_queue: u64::from_str_radix(send_queue, 16).ok()?,
    };
    // The timer, retransmits, the user and a timeout stand between.
    let inode = fields.nth(4)?.parse().ok()?;
    Some((inode, socket))
}

/// `0100007F:1F90`: the words of the address as this machine writes them, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// `include/net/tcp_states.h` of Linux.
fn tcp_state(state: u8) -> &'static str {
    match state {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 | 12 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        6 => "TIME_WAIT",
        7 => "CLOSE",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        _ => "UNKNOWN",
    }
}

/// A line of `net/unix`. The path may hold blanks, and whatever else the target put there.
fn unix(line: &str) -> Option<(u64, Socket)> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_start_matches(' ');
        let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        field
    };
    let (_number, _references, _protocol) = (field(), field(), field());
    let flags = u32::from_str_radix(field(), 16).ok()?;
    let kind = match field() {
        "0001" => "stream",
        "0002" => "datagram",
        "0005" => "seqpacket",
        _ => return None,
    };
    // SS_CONNECTED of include/uapi/linux/net.h, __SO_ACCEPTCON.
    let connected = field() == "03";
    let inode = field().parse().ok()?;
    let socket = Socket::Unix {
        kind,
        listens: flags & 0x1_0000 != 0,
        connected,
        path: rest.trim_start_matches(' ').to_owned(),
    };
    Some((inode, socket))
}

impl Socket {
    /// What it is, in words. `peer` says what is known of the other end of a unix socket.
    pub(crate) fn describe(&self, peer: Option<&str>) -> String {
        match self {
            Self::Inet {
                tcp,
                local,
                peer,
                state,
                send_queue,
            } => {
                let mut text = format!("{} socket {local}", if *tcp { "TCP" } else { "UDP" });
                let connected = peer.port() != 0;
                if connected {
                    let _ = write!(text, " -> {peer}");
                }
                if *tcp {
                    let _ = write!(text, ", {state}");
                }
                if connected && *send_queue > 0 {
                    let _ = write!(text, ", {send_queue} bytes not acknowledged");
                }
                text
            }
            Self::Unix {
                kind,
                listens,
                connected,
                path,
            } => {
                let mut text = format!("unix {kind} socket");
                if !path.is_empty() {
                    let _ = write!(text, " {path}");
                }
                match (listens, connected, peer) {
                    (true, ..) => text.push_str(", LISTEN"),
                    (false, _, Some(peer)) => {
                        let _ = write!(text, ", connected to {peer}");
                    }
                    (false, true, None) => text.push_str(", connected"),
                    (false, false, None) => text.push_str(", not connected"),
                }
                text
            }
        }
    }

    /// The path of a unix socket, where it has one.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::Unix { path, .. } if !path.is_empty() => Some(path),
            _ => None,
        }
    }
}

/// A `struct sockaddr` in words; `None` for what is not known, or cut off.
pub(crate) fn sockaddr(bytes: &[u8]) -> Option<String> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    match i32::from(u16::from_ne_bytes(*family)) {
        nix::libc::AF_UNIX => {
            // An abstract name begins with a zero byte, which is shown as `@` everywhere.
            let path = if let Some((0, name)) = rest.split_first() {
                format!("@{}", String::from_utf8_lossy(name))
            } else {
                let end = rest.iter().position(|byte| *byte == 0);
                String::from_utf8_lossy(rest.get(..end.unwrap_or(rest.len()))?).into_owned()
            };
            Some(path)
        }
        nix::libc::AF_INET => {
            let (port, rest) = rest.split_first_chunk::<2>()?;
            let ip = Ipv4Addr::from(*rest.first_chunk::<4>()?);
            Some(SocketAddr::new(ip.into(), u16::from_be_bytes(*port)).to_string())
        }
        nix::libc::AF_INET6 => {
            let (port, rest) = rest.split_first_chunk::<2>()?;
            // Behind the flow label.
            let ip = Ipv6Addr::from(*rest.get(4..)?.first_chunk::<16>()?).to_canonical();
            Some(SocketAddr::new(ip, u16::from_be_bytes(*port)).to_string())
        }
        _ => None,
    }
}

/// Asks the kernel for the peers of unix sockets in this program's own network namespace.
#[derive(Debug)]
pub(crate) struct Peers(OwnedFd);

// linux/sock_diag.h and linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;

impl Peers {
    /// `None` where the kernel or its policy has no such socket.
    pub(crate) fn open() -> Option<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )
        .ok()?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).ok()?;
        // It answers at once or never.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).ok()?;
        Some(Self(fd))
    }

    /// The inode of the socket at the other end.
    pub(crate) fn of(&self, inode: u64) -> Option<u64> {
        let request = request(u32::try_from(inode).ok()?);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), &request, &kernel, MsgFlags::empty()).ok()?;
        let mut answer = [0; 1024];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
        peer(answer.get(..len)?, inode).map(u64::from)
    }
}

/// `struct nlmsghdr` and `struct unix_diag_req`.
fn request(inode: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    bytes.extend(40_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(1_u16.to_ne_bytes()); // NLM_F_REQUEST
    bytes.extend([0; 8]); // sequence number, port
    bytes.extend([1, 0, 0, 0]); // AF_UNIX
    bytes.extend(u32::MAX.to_ne_bytes()); // in any state
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    bytes.extend([0xff; 8]); // no cookie
    bytes
}

/// The peer's inode in an answer: `struct nlmsghdr`, `struct unix_diag_msg`, then attributes.
fn peer(answer: &[u8], inode: u64) -> Option<u32> {
    let half = |at: usize| Some(u16::from_ne_bytes(*answer.get(at..)?.first_chunk::<2>()?));
    let word = |at: usize| Some(u32::from_ne_bytes(*answer.get(at..)?.first_chunk::<4>()?));
    if half(4)? != SOCK_DIAG_BY_FAMILY || u64::from(word(20)?) != inode {
        return None;
    }
    let mut at = 32;
    while let Some(len) = half(at).map(usize::from) {
        if half(at + 2)? == UNIX_DIAG_PEER {
            return word(at + 4);
        }
        if len < 4 {
            return None;
        }
        at += len.next_multiple_of(4);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_tcp_and_udp() {
        let text = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000001 00:00000000 00000000  1000        0 12345 1 0000000000000000 100 0 0 10 0\n\
            \x20  1: 0100007F:A1B2 0100007F:1F90 01 00000010:00000000 01:00000014 00000000     0        0 777 2 0000000000000000 20 4 30 10 -1\n\
            torn\n";
        let table = Table::Tcp.parse(text);
        assert_eq!(table.len(), 2);
        assert_eq!(
            table[&12345].describe(None),
            "TCP socket 127.0.0.1:8080, LISTEN"
        );
        assert_eq!(
            table[&777].describe(None),
            "TCP socket 127.0.0.1:41394 -> 127.0.0.1:8080, ESTABLISHED, 16 bytes not acknowledged"
        );
        let text = b"header\n  10: 00000000000000000000000001000000:1F90 0000000000000000FFFF00000100007F:C350 08 00000000:00000000 00:00000000 00000000 0 0 9 1 0 100 0 0 10 0\n";
        assert_eq!(
            Table::Tcp6.parse(text)[&9].describe(None),
            "TCP socket [::1]:8080 -> 127.0.0.1:50000, CLOSE_WAIT"
        );
        let text = b"header\n 1: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 5 2 0 0\n";
        assert_eq!(
            Table::Udp.parse(text)[&5].describe(None),
            "UDP socket 0.0.0.0:53"
        );
    }

    #[test]
    fn a_table_of_unix_sockets_with_blanks_in_a_path() {
        let text = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 20 /run/my app.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 1145\n\
            0000000000000000: 00000003 00000000 00000000 0002 01 3 @abstract\n\
            0000000000000000: 00000003 00000000 00000000 0009 01 4\n\
            \xff\xfe\n";
        let table = Table::Unix.parse(text);
        assert_eq!(table.len(), 3);
        assert_eq!(
            table[&20].describe(None),
            "unix stream socket /run/my app.sock, LISTEN"
        );
        assert_eq!(table[&20].path(), Some("/run/my app.sock"));
        assert_eq!(table[&1145].describe(None), "unix stream socket, connected");
        assert_eq!(
            table[&1145].describe(Some("fd 4 of this process")),
            "unix stream socket, connected to fd 4 of this process"
        );
        assert_eq!(
            table[&3].describe(None),
            "unix datagram socket @abstract, not connected"
        );
    }

    #[test]
    fn damaged_addresses_are_none() {
        for text in [
            "",
            ":",
            "0100007F",
            "0100007F:XYZ",
            "0100:1F90",
            "é00007F:0050",
        ] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_that_a_connect_was_given() {
        let inet = [2, 0, 0x15, 0x38, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(sockaddr(&inet).as_deref(), Some("10.0.0.2:5432"));
        assert_eq!(sockaddr(&inet[..6]), None);
        let mut inet6 = [0_u8; 28];
        inet6[0] = 10;
        inet6[3] = 80;
        inet6[23] = 1;
        assert_eq!(sockaddr(&inet6).as_deref(), Some("[::1]:80"));
        assert_eq!(sockaddr(b"\x01\0/run/x\0\0").as_deref(), Some("/run/x"));
        assert_eq!(sockaddr(b"\x01\0\0name").as_deref(), Some("@name"));
        assert_eq!(sockaddr(b"\x63\0abc"), None);
        assert_eq!(sockaddr(b""), None);
    }

    #[test]
    fn the_peer_of_a_socket_pair_is_the_other_one() {
        use std::os::unix::fs::MetadataExt as _;
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = |socket: &std::os::unix::net::UnixStream| {
            std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))
                .unwrap()
                .ino()
        };
        // A kernel without unix_diag has no answer, and that is not ours to test.
        if let Some(found) = Peers::open().unwrap().of(inode(&one)) {
            assert_eq!(found, inode(&other));
        }
    }

    #[test]
    fn a_damaged_answer_has_no_peer() {
        let mut answer = vec![0; 32];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[20] = 7;
        assert_eq!(peer(&answer, 7), None);
        let attribute = |len: u16, kind: u16| {
            let mut bytes = answer.clone();
            bytes.extend(len.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(9_u32.to_ne_bytes());
            bytes
        };
        assert_eq!(peer(&attribute(8, UNIX_DIAG_PEER), 7), Some(9));
        assert_eq!(peer(&attribute(8, UNIX_DIAG_PEER), 8), None);
        assert_eq!(peer(&attribute(0, 1), 7), None);
        assert_eq!(peer(&attribute(0xffff, 1), 7), None);
        assert_eq!(peer(&attribute(8, UNIX_DIAG_PEER)[..38], 7), None);
        assert_eq!(peer(&[], 7), None);
    }
}
