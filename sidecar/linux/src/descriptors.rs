//! What a target's descriptors are, each looked at once.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::fdinfo::{self, Link};
use crate::process::Process;
use crate::sockets::{SockDiag, Socket, Table};

/// The longest path that is shown, in characters.
const PATH_CHARS: usize = 256;
/// The largest table of sockets that is read: some 50 000 of them.
const MAX_TABLE_BYTES: u64 = 8 << 20;
/// How many links are followed in search of who has the other end of a pipe, over all processes.
const MAX_LINKS: usize = 4096;
/// How many processes are searched for it.
const MAX_PROCESSES: usize = 256;
/// When looking things up ends, whatever is still open: a machine may have a great many processes and sockets.
const TIME_LIMIT: Duration = Duration::from_millis(250);

/// Somebody's descriptor.
#[derive(Clone, Copy, Debug)]
struct Holder {
    pid: i32,
    number: u64,
    ends: Ends,
}

/// Which ends of a pipe a descriptor is: what it was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Read,
    Write,
    Both,
}

impl Ends {
    /// From the mode of the link in `/proc/PID/fd`.
    fn of(mode: u32) -> Self {
        match mode & 0o600 {
            0o200 => Self::Write,
            0o600 => Self::Both,
            _ => Self::Read,
        }
    }
}

/// What was looked up of one target's descriptors.
#[derive(Debug)]
pub(crate) struct Descriptors<'a> {
    process: &'a Process,
    until: Instant,
    /// Where the target's root lies for us, to show paths as the target sees them.
    root: OnceCell<String>,
    known: HashMap<u32, String>,
    tables: HashMap<Table, HashMap<u64, Socket>>,
    listening: HashMap<Table, HashMap<u64, Socket>>,
    diag: OnceCell<Option<SockDiag>>,
    /// Pipes, FIFOs and sockets by the text of their links.
    own_holders: OnceCell<HashMap<String, Vec<Holder>>>,
    other_holders: OnceCell<HashMap<String, Vec<Holder>>>,
    locks: OnceCell<String>,
}

impl<'a> Descriptors<'a> {
    pub(crate) fn new(process: &'a Process) -> Self {
        Self {
            process,
            until: Instant::now() + TIME_LIMIT,
            root: OnceCell::new(),
            known: HashMap::new(),
            tables: HashMap::new(),
            listening: HashMap::new(),
            diag: OnceCell::new(),
            own_holders: OnceCell::new(),
            other_holders: OnceCell::new(),
            locks: OnceCell::new(),
        }
    }

    /// `fd 7: TCP socket …`, or `fd 7` where nothing more can be known.
    pub(crate) fn describe(&mut self, number: u32) -> String {
        if let Some(known) = self.known.get(&number) {
            return known.clone();
        }
        let text = match self.what(number) {
            Some(what) => format!("fd {number}: {what}"),
            None => format!("fd {number}"),
        };
        self.known.insert(number, text.clone());
        text
    }

    fn late(&self) -> bool {
        Instant::now() >= self.until
    }

    fn what(&mut self, number: u32) -> Option<String> {
        if self.late() {
            return None;
        }
        let link = self.process.readlink(format!("fd/{number}")).ok()?;
        let link = link.to_string_lossy();
        Some(match Link::parse(&link) {
            Link::Socket(inode) => self
                .socket(number, inode)
                .unwrap_or_else(|| link.clone().into_owned()),
            Link::Pipe(_) => self.pipe(number, &link, &link),
            Link::Anonymous(name) => {
                let info = self
                    .process
                    .proc_file(format!("fdinfo/{number}"))
                    .unwrap_or_default();
                fdinfo::anonymous(name, &String::from_utf8_lossy(&info))
            }
            Link::Path(path) => {
                let clipped: String = self.in_root(path).chars().take(PATH_CHARS).collect();
                match self.file_type(number) {
                    Some(rustix::fs::FileType::Fifo) => {
                        self.pipe(number, path, &format!("FIFO {clipped}"))
                    }
                    Some(
                        rustix::fs::FileType::CharacterDevice | rustix::fs::FileType::BlockDevice,
                    ) => format!("device {clipped}"),
                    Some(rustix::fs::FileType::RegularFile) => format!("file {clipped}"),
                    _ => clipped,
                }
            }
        })
    }

    /// A path as the target sees it.
    fn in_root<'p>(&self, path: &'p str) -> &'p str {
        let root = self.root.get_or_init(|| {
            let root = self.process.readlink("root").unwrap_or_default();
            root.to_string_lossy().into_owned()
        });
        if root == "/" {
            return path;
        }
        path.strip_prefix(root.as_str())
            .filter(|rest| rest.starts_with('/'))
            .unwrap_or(path)
    }

    /// Without asking a file server that may not answer any more, which is what a thread may be blocked for.
    fn statx(&self, number: u32, mask: StatxFlags) -> Option<rustix::fs::Statx> {
        rustix::fs::statx(
            self.process.dir(),
            format!("fd/{number}"),
            AtFlags::STATX_DONT_SYNC,
            mask,
        )
        .ok()
    }

    fn file_type(&self, number: u32) -> Option<rustix::fs::FileType> {
        let stat = self.statx(number, StatxFlags::TYPE)?;
        Some(rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()))
    }

    fn socket(&mut self, number: u32, inode: u64) -> Option<String> {
        let protocol = self.protocol(number);
        let named = protocol.as_deref().and_then(Table::of);
        let socket = match (named, &protocol) {
            (Some(table), _) => self.find(table, inode),
            // Its protocol has no table that is read here.
            (None, Some(_)) => None,
            (None, None) => Table::ALL
                .into_iter()
                .find_map(|table| self.find(table, inode)),
        };
        let Some(socket) = socket else {
            // It is in no table before it is bound or connected.
            return Some(format!("{} socket", protocol?));
        };
        let peer = match &socket {
            Socket::Unix { listens: false, .. } => self.peer(inode),
            _ => None,
        };
        Some(socket.describe(peer.as_deref()))
    }

    /// The kernel's name of a socket's protocol, an attribute of the socket.
    fn protocol(&self, number: u32) -> Option<String> {
        let own = self.process.dir().as_raw_fd();
        let link = format!("/proc/self/fd/{own}/fd/{number}");
        let mut name = [0; 64];
        let len = rustix::fs::getxattr(link, "system.sockprotoname", &mut name).ok()?;
        let name = String::from_utf8_lossy(name.get(..len)?);
        Some(name.trim_end_matches('\0').to_owned())
    }

    fn find(&mut self, table: Table, inode: u64) -> Option<Socket> {
        let listens = self.listening(table).get(&inode).cloned();
        listens.or_else(|| self.table(table).get(&inode).cloned())
    }

    /// The sockets that listen, where that can be known without the whole table.
    fn listening(&mut self, table: Table) -> &HashMap<u64, Socket> {
        let known = if self.listening.contains_key(&table) {
            None
        } else {
            self.diag().map(|_| SockDiag::listening(table))
        };
        self.listening
            .entry(table)
            .or_insert_with(|| known.unwrap_or_default())
    }

    fn diag(&self) -> Option<&SockDiag> {
        let diag = self.diag.get_or_init(|| {
            // The kernel answers for the namespace of whoever asks.
            let own = std::fs::read_link("/proc/self/ns/net").ok()?;
            let its = self.process.namespace("net")?;
            (own.as_os_str() == its).then(SockDiag::open).flatten()
        });
        diag.as_ref()
    }

    fn table(&mut self, table: Table) -> &HashMap<u64, Socket> {
        self.tables.entry(table).or_insert_with(|| {
            let text = self
                .process
                .read_bounded(table.file(), 16 << 10, MAX_TABLE_BYTES)
                .unwrap_or_default();
            table.parse(&text)
        })
    }

    /// The other end of a unix socket: its path, or whose it is.
    fn peer(&mut self, inode: u64) -> Option<String> {
        let peer = self.diag()?.peer(inode)?;
        if let Some(path) = self.table(Table::Unix).get(&peer).and_then(Socket::path) {
            return Some(path.chars().take(PATH_CHARS).collect());
        }
        let link = format!("socket:[{peer}]");
        let holders = match self.own_holders(&link) {
            [] => self.other_holders(&link),
            own => own,
        };
        Some(self.named(holders).unwrap_or(link))
    }

    /// A pipe, which end of it this is, and who has the other one.
    fn pipe(&self, number: u32, link: &str, what: &str) -> String {
        let mut text = what.to_owned();
        let Some(own) = ends(self.process, u64::from(number)) else {
            return text;
        };
        let (end, other) = match own {
            Ends::Read => ("read end", "write end"),
            Ends::Write => ("write end", "read end"),
            // It is its own other end.
            Ends::Both => return format!("{text}, both ends"),
        };
        let _ = write!(text, ", {end}");
        let all = self
            .own_holders(link)
            .iter()
            .chain(self.other_holders(link));
        let holders: Vec<Holder> = all.filter(|holder| holder.ends != own).copied().collect();
        if let Some(named) = self.named(&holders) {
            let _ = write!(text, "; {other}: {named}");
        }
        text
    }

    fn named(&self, holders: &[Holder]) -> Option<String> {
        let (first, others) = holders.split_first()?;
        let mut text = if first.pid == self.process.pid() {
            format!("fd {} of this process", first.number)
        } else {
            process_name(first.pid)
        };
        if !others.is_empty() {
            let _ = write!(text, " and {} more", others.len());
        }
        Some(text)
    }

    /// Those who have a pipe or socket, among the target's own descriptors.
    fn own_holders(&self, link: &str) -> &[Holder] {
        let holders = self.own_holders.get_or_init(|| {
            let mut found = HashMap::new();
            self.held_by(self.process.pid(), &mut { MAX_LINKS }, &mut found);
            found
        });
        holders.get(link).map_or(&[], Vec::as_slice)
    }

    /// Those who have a pipe or socket in other processes that can be seen.
    fn other_holders(&self, link: &str) -> &[Holder] {
        let holders = self.other_holders.get_or_init(|| {
            let mut found = HashMap::new();
            let mut links = MAX_LINKS;
            let others = std::fs::read_dir("/proc")
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
                .filter(|pid| *pid != self.process.pid())
                .take(MAX_PROCESSES);
            for pid in others {
                if links == 0 || self.late() {
                    break;
                }
                self.held_by(pid, &mut links, &mut found);
            }
            found
        });
        holders.get(link).map_or(&[], Vec::as_slice)
    }

    /// Adds what one process has. One that may not be looked into, or has ended, has nothing.
    fn held_by(&self, pid: i32, links: &mut usize, found: &mut HashMap<String, Vec<Holder>>) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(folder) = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty()) else {
            return;
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&folder) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            if *links == 0 || self.late() {
                return;
            }
            let number = entry
                .file_name()
                .to_str()
                .ok()
                .and_then(|name| name.parse().ok());
            let (Some(number), Ok(link)) = (
                number,
                rustix::fs::readlinkat(&folder, entry.file_name(), Vec::with_capacity(64)),
            ) else {
                continue;
            };
            *links -= 1;
            let link = link.to_string_lossy();
            let ends = match Link::parse(&link) {
                Link::Anonymous(_) => continue,
                Link::Socket(_) => Ends::Both,
                Link::Pipe(_) | Link::Path(_) => {
                    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
                    match rustix::fs::statat(&folder, entry.file_name(), no_follow) {
                        Ok(stat) => Ends::of(stat.st_mode),
                        Err(_) => continue,
                    }
                }
            };
            let holder = Holder { pid, number, ends };
            found.entry(link.into_owned()).or_default().push(holder);
        }
    }

    /// `process 12 (name)` for the process that has the lock on this file for which the target waits.
    pub(crate) fn lock_holder(&self, number: u32) -> Option<String> {
        let locks = self.locks.get_or_init(|| {
            let text = std::fs::read("/proc/locks").unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        });
        let inode = self.statx(number, StatxFlags::INO).map(|stat| stat.stx_ino);
        let holder = fdinfo::lock_holder(locks, self.process.pid(), inode)?;
        Some(if holder == self.process.pid() {
            "this process".to_owned()
        } else {
            process_name(holder)
        })
    }

    /// What an epoll watches.
    pub(crate) fn watched(&self, number: u32) -> Vec<u32> {
        let info = self
            .process
            .proc_file(format!("fdinfo/{number}"))
            .unwrap_or_default();
        fdinfo::watched(&String::from_utf8_lossy(&info))
    }
}

fn ends(process: &Process, number: u64) -> Option<Ends> {
    let link = format!("fd/{number}");
    let stat = rustix::fs::statat(process.dir(), link, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(Ends::of(stat.st_mode))
}

/// `process 12 (name)`.
fn process_name(pid: i32) -> String {
    format!("process {}", named_pid(pid))
}

/// `12 (name)`, with the name where it can be had.
pub(crate) fn named_pid(pid: i32) -> String {
    match std::fs::read(format!("/proc/{pid}/comm")) {
        Ok(name) => format!(
            "{pid} ({})",
            String::from_utf8_lossy(&name).trim_end_matches('\n')
        ),
        Err(_) => pid.to_string(),
    }
}
