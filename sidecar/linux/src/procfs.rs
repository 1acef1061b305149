//! The text that `/proc` shows, into data. Names and paths in it belong to the target, so every parser takes anything
//! and gives back what it understood: <https://man7.org/linux/man-pages/man5/proc.5.html>.

use sidewinder_decode::Mapping;

/// Most mappings of one process that are looked at; `vm.max_map_count` is 65530 unless somebody raised it.
pub const MAX_MAPPINGS: usize = 1 << 18;

/// `/proc/PID/maps`, at most [`MAX_MAPPINGS`] lines; a line that cannot be read is left out.
pub fn mappings(text: &[u8]) -> Vec<Mapping> {
    text.split(|byte| *byte == b'\n')
        .filter_map(mapping)
        .take(MAX_MAPPINGS)
        .collect()
}

fn mapping(line: &[u8]) -> Option<Mapping> {
    let line = String::from_utf8_lossy(line);
    let mut rest = line.as_ref();
    let mut field = || {
        rest = rest.trim_start_matches(' ');
        let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        field
    };
    let (start, end) = field().split_once('-')?;
    let permissions = field().as_bytes();
    let offset = field();
    let device = field().to_owned();
    let inode = field();
    let mapping = Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        readable: permissions.first() == Some(&b'r'),
        writable: permissions.get(1) == Some(&b'w'),
        executable: permissions.get(2) == Some(&b'x'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device,
        inode: inode.parse().ok()?,
        path: rest.trim_start_matches(' ').to_owned(),
    };
    (mapping.start < mapping.end).then_some(mapping)
}

/// What is needed of `/proc/PID/stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The kernel's name of the thread, at most 15 bytes, as it is.
    pub comm: String,
    /// The state letter.
    pub state: char,
    /// The parent's id.
    pub ppid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// `/proc/PID/stat` or `/proc/PID/task/TID/stat`. The name may hold blanks and parentheses: it ends at the last `)`.
pub fn stat(text: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(text);
    let (_, after) = text.split_once('(')?;
    let (comm, after) = after.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let ppid = fields.next()?.parse().ok()?;
    // Field 22, counted from 1; state is field 3.
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        comm: comm.to_owned(),
        state,
        ppid,
        start_time,
    })
}

/// What is needed of `/proc/PID/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The thread group's id.
    pub tgid: i32,
    /// Who traces it, 0 when nobody does or the tracer is not visible from here.
    pub tracer: i32,
    /// Real, effective, saved and file system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group id.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Its id in each PID namespace, from the reader's to its own.
    pub ns_pids: Vec<i32>,
    /// Permitted capabilities.
    pub permitted: u64,
    /// Effective capabilities.
    pub effective: u64,
    /// How many threads the process has.
    pub threads: u32,
    /// Whether the processor keeps the return addresses a second time, on a stack that nobody may write:
    /// <https://docs.kernel.org/arch/x86/shstk.html>.
    pub shadow_stack: bool,
    /// A bit for each signal that it has a handler for, signal 1 in the lowest.
    pub caught: u64,
}

impl Status {
    /// Whether it has a handler for the signal of this number.
    pub fn catches(&self, signal: u8) -> bool {
        matches!(signal, 1..=64) && self.caught >> (signal - 1) & 1 == 1
    }
}

/// `/proc/PID/status`. `None` when the lines every kernel prints are not there.
pub fn status(text: &[u8]) -> Option<Status> {
    let text = String::from_utf8_lossy(text);
    let mut status = Status::default();
    let mut seen = 0;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let mut numbers = value.split_ascii_whitespace();
        match key {
            "Tgid" => {
                status.tgid = numbers.next()?.parse().ok()?;
                seen |= 1;
            }
            "TracerPid" => status.tracer = numbers.next()?.parse().ok()?,
            "Uid" => {
                status.uids = four(numbers)?;
                seen |= 2;
            }
            "Gid" => {
                status.gids = four(numbers)?;
                seen |= 4;
            }
            "Groups" => status.groups = numbers.map_while(|n| n.parse().ok()).collect(),
            "NSpid" => status.ns_pids = numbers.map_while(|n| n.parse().ok()).collect(),
            "CapPrm" => status.permitted = u64::from_str_radix(numbers.next()?, 16).ok()?,
            "CapEff" => status.effective = u64::from_str_radix(numbers.next()?, 16).ok()?,
            "SigCgt" => status.caught = u64::from_str_radix(numbers.next()?, 16).ok()?,
            "Threads" => status.threads = numbers.next()?.parse().ok()?,
            "x86_Thread_features" => status.shadow_stack = numbers.any(|name| name == "shstk"),
            _ => {}
        }
    }
    (seen == 7).then_some(status)
}

fn four<'a>(mut numbers: impl Iterator<Item = &'a str>) -> Option<[u32; 4]> {
    let mut out = [0; 4];
    for slot in &mut out {
        *slot = numbers.next()?.parse().ok()?;
    }
    Some(out)
}

/// A soft limit by its name in `/proc/PID/limits`, in its own unit: `u64::MAX` when there is none, `None` when the line
/// cannot be read.
pub fn soft_limit(text: &[u8], name: &str) -> Option<u64> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// How much room there is below an address on a thread's own stack, in bytes; 0 when it is on another one: that of a
/// coroutine or a signal handler may lie in the midst of an application's memory. The first thread's stack grows as far as
/// `limit` allows and nothing is in its way. Those of others are as large as they are mapped, and the C library keeps what
/// belongs to the thread at the upper end, where its `thread_pointer` leads.
pub fn stack_room(mappings: &[Mapping], limit: u64, at: u64, thread_pointer: u64) -> u64 {
    let Some(index) = mappings
        .iter()
        .position(|mapping| (mapping.start..mapping.end).contains(&at))
    else {
        return 0;
    };
    let below = index
        .checked_sub(1)
        .and_then(|index| mappings.get(index))
        .map_or(0, |mapping| mapping.end.saturating_add(STACK_GUARD));
    let Some(stack) = mappings.get(index).filter(|mapping| mapping.writable) else {
        return 0;
    };
    let floor = if stack.path == "[stack]" {
        stack.start.min(stack.end.saturating_sub(limit).max(below))
    } else if (at..stack.end).contains(&thread_pointer) {
        stack.start
    } else {
        return 0;
    };
    at.saturating_sub(floor)
}

/// What the kernel keeps free below a stack that grows: `stack_guard_gap`, 256 pages.
const STACK_GUARD: u64 = 1 << 20;

/// The system call a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyscallLine {
    /// Its number.
    pub number: u64,
    /// Its six arguments.
    pub args: [u64; 6],
}

/// `/proc/PID/task/TID/syscall`: `None` when the thread runs, or is blocked outside a system call.
pub fn syscall(text: &[u8]) -> Option<SyscallLine> {
    let text = String::from_utf8_lossy(text);
    let mut fields = text.split_ascii_whitespace();
    let number = fields.next()?.parse().ok()?;
    let mut args = [0; 6];
    for slot in &mut args {
        *slot = u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some(SyscallLine { number, args })
}

/// `/proc/PID/cmdline`: at most `count` arguments of at most `bytes` bytes each.
pub fn command(text: &[u8], count: usize, bytes: usize) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0)
        .take(count)
        .map(|argument| {
            String::from_utf8_lossy(argument.get(..bytes).unwrap_or(argument)).into_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_has_room_down_to_its_mapping_and_the_first_down_to_its_limit() {
        let text = b"1000000-1100000 rw-p 00000000 00:00 0 \n\
            1100000-1101000 ---p 00000000 00:00 0 \n\
            1101000-1201000 rw-p 00000000 00:00 0 \n\
            7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \n\
            7fff00000000-7fff00021000 rw-p 00000000 00:00 0      [stack]\n";
        let maps = mappings(text);
        assert_eq!(
            stack_room(&maps, 8 << 20, 0x0120_0000, 0x0120_0f00),
            0xff000
        );
        // Somebody else's stack in memory of the application's.
        assert_eq!(stack_room(&maps, 8 << 20, 0x0120_0000, 0x7f00_0008_0000), 0);
        assert_eq!(stack_room(&maps, 8 << 20, 0x0120_0000, 0x0110_1000), 0);
        assert_eq!(
            stack_room(&maps, 8 << 20, 0x7fff_0002_0000, 0),
            (8 << 20) - 0x1000
        );
        // What is mapped already is there, whatever the limit is now.
        assert_eq!(stack_room(&maps, 4096, 0x7fff_0002_0000, 0), 0x20000);
        let room = 0x7fff_0002_0000 - 0x7f00_0010_0000 - (1 << 20);
        assert_eq!(stack_room(&maps, u64::MAX, 0x7fff_0002_0000, 0), room);
        assert_eq!(stack_room(&maps, 8 << 20, 0x0110_0800, 0), 0);
        assert_eq!(stack_room(&maps, 8 << 20, 0x5000, 0), 0);
        assert_eq!(stack_room(&[], 8 << 20, 0x5000, 0), 0);
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        let text =
            b"Limit                     Soft Limit           Hard Limit           Units     \n\
            Max stack size            8388608              unlimited            bytes     \n\
            Max open files            1024                 4096                 files     \n\
            Max file size             unlimited            unlimited            bytes     \n\
            Max nice priority         many\n";
        assert_eq!(soft_limit(text, "Max stack size"), Some(8 << 20));
        assert_eq!(soft_limit(text, "Max open files"), Some(1024));
        assert_eq!(soft_limit(text, "Max file size"), Some(u64::MAX));
        assert_eq!(soft_limit(text, "Max nice priority"), None);
        assert_eq!(soft_limit(b"", "Max stack size"), None);
    }

    #[test]
    fn a_mapping_with_blanks_in_its_path() {
        let text =
            b"00400000-0065f000 r-xp 00001000 fe:01 2621444    /opt/my app/python3.14 (deleted)\n\
            7ffd2c5e1000-7ffd2c602000 rw-p 00000000 00:00 0      [stack]\n\
            7f0000000000-7f0000001000 ---p 00000000 00:00 0 \n";
        let maps = mappings(text);
        assert_eq!(maps.len(), 3);
        assert_eq!(
            maps[0],
            Mapping {
                start: 0x0040_0000,
                end: 0x0065_f000,
                readable: true,
                writable: false,
                executable: true,
                offset: 0x1000,
                device: "fe:01".into(),
                inode: 2_621_444,
                path: "/opt/my app/python3.14 (deleted)".into(),
            }
        );
        assert_eq!(maps[1].path, "[stack]");
        assert!(maps[1].writable && !maps[1].executable);
        assert_eq!(maps[2].path, "");
        assert!(!maps[2].readable);
    }

    #[test]
    fn a_torn_or_foreign_line_is_left_out() {
        assert_eq!(mappings(b"00400000-0065f000 r-xp\n"), []);
        assert_eq!(mappings(b"zz-yy r-xp 0 0:0 0\n"), []);
        assert_eq!(mappings(b"2000-1000 r-xp 0 0:0 0\n"), []);
        assert_eq!(mappings(b"\xff\xfe\n\n \n"), []);
        assert_eq!(
            mappings(b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]").len(),
            1
        );
    }

    #[test]
    fn a_name_with_parentheses_and_blanks() {
        let tail = "S 41 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3";
        let stat = stat(format!("42 (a) R 1 (b) {tail}").as_bytes()).unwrap();
        assert_eq!(stat.comm, "a) R 1 (b");
        assert_eq!((stat.state, stat.ppid, stat.start_time), ('S', 41, 987_654));
    }

    #[test]
    fn a_torn_stat_is_nothing() {
        assert_eq!(stat(b""), None);
        assert_eq!(stat(b"42 (python"), None);
        assert_eq!(stat(b"42 (python) S 1 2"), None);
    }

    #[test]
    fn the_last_of_nspid_is_its_own() {
        let text = b"Name:\tUid:\t0\nTgid:\t10186\nTracerPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nNSpid:\t10186\t3\nThreads:\t4\nCapPrm:\t00000000a80425fb\nCapEff:\t0000000000080000\nSigCgt:\t0000000180004002\n";
        let status = status(text).unwrap();
        assert_eq!(
            status,
            Status {
                tgid: 10186,
                tracer: 7,
                uids: [1, 2, 3, 4],
                gids: [5, 6, 7, 8],
                groups: vec![9, 10],
                ns_pids: vec![10186, 3],
                permitted: 0xa804_25fb,
                effective: 1 << 19,
                threads: 4,
                shadow_stack: false,
                caught: 0x1_8000_4002,
            }
        );
        let caught: Vec<u8> = (0..=u8::MAX).filter(|n| status.catches(*n)).collect();
        assert_eq!(caught, [2, 15, 32, 33]);
        assert_eq!(super::status(b"Name:\tpython\n"), None);
    }

    #[test]
    fn the_three_forms_of_the_syscall_file() {
        assert_eq!(syscall(b"running\n"), None);
        assert_eq!(syscall(b"-1 0x7ffd 0x7f00\n"), None);
        assert_eq!(
            syscall(b"202 0x7f01 0x189 0x0 0x0 0x0 0xffffffff 0x7ffd 0x7f00\n"),
            Some(SyscallLine {
                number: 202,
                args: [0x7f01, 0x189, 0, 0, 0, 0xffff_ffff],
            })
        );
        assert_eq!(syscall(b"202 0x7f01"), None);
    }

    #[test]
    fn arguments_are_clipped_and_need_not_be_utf8() {
        assert_eq!(
            command(b"python\0-c\0\xffprint\0", 8, 4),
            ["pyth", "-c", "\u{fffd}pri"]
        );
        assert_eq!(command(b"a\0\0b\0", 8, 8), ["a", "", "b"]);
        assert_eq!(command(b"a\0b\0c\0", 2, 8), ["a", "b"]);
        assert_eq!(command(b"", 8, 8), Vec::<String>::new());
    }
}
