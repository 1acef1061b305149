//! What a socket is: from the tables of the network namespace it belongs to, and what the kernel says of sockets that
//! listen and of unix sockets' peers. <https://man7.org/linux/man-pages/man5/proc_pid_net.5.html>,
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
    pub(crate) const ALL: [Self; 5] = [Self::Unix, Self::Tcp, Self::Tcp6, Self::Udp, Self::Udp6];

    /// The table with the sockets of a protocol, by the name that the kernel gives it (`struct proto`).
    pub(crate) fn of(protocol: &str) -> Option<Self> {
        Some(match protocol {
            "TCP" => Self::Tcp,
            "TCPv6" => Self::Tcp6,
            "UDP" => Self::Udp,
            "UDPv6" => Self::Udp6,
            "UNIX" | "UNIX-STREAM" => Self::Unix,
            _ => return None,
        })
    }

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

/// `TCP_LISTEN` of `include/net/tcp_states.h` of Linux.
const LISTEN: u8 = 10;

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
        LISTEN => "LISTEN",
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

/// Asks the kernel about sockets in this program's own network namespace.
#[derive(Debug)]
pub(crate) struct SockDiag(OwnedFd);

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h and linux/unix_diag.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// Where what a message holds begins: `sizeof(struct nlmsghdr)`.
const NLMSG_HDRLEN: usize = 16;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const INET_DIAG_REQUEST: u32 = 72;
/// How many bytes of answers are taken: some 100 000 sockets that listen.
const MAX_DUMP_BYTES: usize = 8 << 20;

impl SockDiag {
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

    /// The TCP sockets that listen, by inode: those of `Tcp` or `Tcp6`. Empty where the kernel does not say.
    ///
    /// A server that waits for connections is what is met most. In the tables its sockets stand before the connections,
    /// but the kernel does not give them out before it has walked over its whole hash table of connections, whose size
    /// goes with the machine's memory: milliseconds, however few there are.
    pub(crate) fn listening(table: Table) -> HashMap<u64, Socket> {
        let family = match table {
            Table::Tcp => nix::libc::AF_INET,
            Table::Tcp6 => nix::libc::AF_INET6,
            Table::Udp | Table::Udp6 | Table::Unix => return HashMap::new(),
        };
        let request = listening_request(family.unsigned_abs().to_le_bytes()[0]);
        let kernel = NetlinkAddr::new(0, 0);
        let mut found = HashMap::new();
        // One of its own: what is left of a dump that was given up is no answer to another question.
        let Some(Self(fd)) = Self::open() else {
            return found;
        };
        if sendto(fd.as_raw_fd(), &request, &kernel, MsgFlags::empty()).is_err() {
            return found;
        }
        let mut answer = vec![0; 32 << 10];
        let mut taken = 0;
        while taken < MAX_DUMP_BYTES {
            let Ok(len @ 1..) = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()) else {
                break;
            };
            taken += len;
            if !listening(answer.get(..len).unwrap_or_default(), &mut found) {
                break;
            }
        }
        found
    }

    /// The inode of the socket at the other end of a unix socket.
    pub(crate) fn peer(&self, inode: u64) -> Option<u64> {
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
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number, port
    bytes.extend([1, 0, 0, 0]); // AF_UNIX
    bytes.extend(u32::MAX.to_ne_bytes()); // in any state
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    bytes.extend([0xff; 8]); // no cookie
    bytes
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` for all that listen.
fn listening_request(family: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(INET_DIAG_REQUEST as usize);
    bytes.extend(INET_DIAG_REQUEST.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]); // sequence number, port
    bytes.extend([family, 6, 0, 0]); // IPPROTO_TCP
    bytes.extend((1_u32 << LISTEN).to_ne_bytes());
    bytes.resize(INET_DIAG_REQUEST as usize, 0); // whatever its addresses
    bytes
}

/// Takes the sockets out of one datagram of a dump, each a `struct nlmsghdr` and a `struct inet_diag_msg`; whether there
/// is more to come.
fn listening(mut datagram: &[u8], found: &mut HashMap<u64, Socket>) -> bool {
    let half = |bytes: &[u8], at| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk::<2>()?));
    let word = |bytes: &[u8], at| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    while let (Some(len), Some(kind)) = (word(datagram, 0), half(datagram, 4)) {
        let len = len as usize;
        // An error, too, ends a dump.
        if kind != SOCK_DIAG_BY_FAMILY || len < NLMSG_HDRLEN {
            return false;
        }
        let Some(message) = datagram.get(NLMSG_HDRLEN..len) else {
            return false;
        };
        if let Some((inode, socket)) = inet_diag(message) {
            found.insert(inode, socket);
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

/// `struct inet_diag_msg`.
fn inet_diag(message: &[u8]) -> Option<(u64, Socket)> {
    let word = |at: usize| Some(u32::from_ne_bytes(*message.get(at..)?.first_chunk::<4>()?));
    let port = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk::<2>()?));
    let family = i32::from(*message.first()?);
    let ip = |at: usize| {
        let bytes = message.get(at..)?;
        match family {
            nix::libc::AF_INET => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
            nix::libc::AF_INET6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_canonical()),
            _ => None,
        }
    };
    let socket = Socket::Inet {
        tcp: true,
        local: SocketAddr::new(ip(8)?, port(4)?),
        peer: SocketAddr::new(ip(24)?, port(6)?),
        state: tcp_state(*message.get(1)?),
        // Of one that listens this is how many connections it lets wait.
        send_queue: 0,
    };
    Some((word(68)?.into(), socket))
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
        if let Some(found) = SockDiag::open().unwrap().peer(inode(&one)) {
            assert_eq!(found, inode(&other));
        }
    }

    #[test]
    fn sockets_that_listen_are_what_the_tables_say() {
        let sockets = [
            std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            std::net::TcpListener::bind("[::1]:0").unwrap(),
        ];
        let connected = std::net::TcpStream::connect(sockets[0].local_addr().unwrap()).unwrap();
        let inode = |fd: i32| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(format!("/proc/self/fd/{fd}"))
                .unwrap()
                .ino()
        };
        for (socket, table) in sockets.iter().zip([Table::Tcp, Table::Tcp6]) {
            let all = table.parse(&std::fs::read(format!("/proc/self/{}", table.file())).unwrap());
            let listening = SockDiag::listening(table);
            // A kernel without inet_diag has no answer, and that is not ours to test.
            if listening.is_empty() {
                continue;
            }
            let inode = inode(socket.as_raw_fd());
            assert_eq!(
                listening[&inode].describe(None),
                format!("TCP socket {}, LISTEN", socket.local_addr().unwrap())
            );
            assert_eq!(listening[&inode].describe(None), all[&inode].describe(None));
        }
        let listening = SockDiag::listening(Table::Tcp);
        assert_eq!(listening.get(&inode(connected.as_raw_fd())), None);
        assert!(SockDiag::listening(Table::Udp).is_empty());
    }

    #[test]
    fn a_damaged_dump_ends() {
        let mut message = vec![0; 88];
        message[0] = 88;
        message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message[16..18].copy_from_slice(&[2, LISTEN]);
        message[84] = 9;
        let mut found = HashMap::new();
        assert!(listening(&message, &mut found));
        assert_eq!(found[&9].describe(None), "TCP socket 0.0.0.0:0, LISTEN");
        for (at, byte) in [(0, 15), (0, 89), (4, 3), (4, 2)] {
            let mut damaged = message.clone();
            damaged[at] = byte;
            assert!(!listening(&damaged, &mut found), "{at}: {byte}");
        }
        found.clear();
        for len in 0..message.len() {
            // It ends, and nothing is found in a part.
            listening(&message[..len], &mut found);
        }
        message[16] = 77;
        assert!(listening(&message, &mut found));
        assert_eq!(found, HashMap::new());
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
