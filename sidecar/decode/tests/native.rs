//! The machine code of a target that was never run: an interpreter, a libc with tables for unwinding, a foreign library
//! and stacks, laid out byte by byte.
#![expect(
    clippy::unwrap_used,
    reason = "a test states what must hold; a panic is its report"
)]

mod machine;

use std::collections::BTreeMap;

use machine::*;
use proptest::prelude::*;
use sidewinder_decode::native::{Caller, Native, NativeError, Registers};
use sidewinder_decode::{Addr, Mapping};

/// What looking everything up may take: the reads of symbols, of the code of every file and of libc's tables.
const PREPARE_READS: u64 = 20_000;
const PREPARE_BYTES: u64 = 400 << 20;
/// What one thread may take while it stands still: its stack at once, at most seven words of each frame, and the call.
const CALLER_READS: u64 = 1 + 33 * 7 + 1;

fn prepare(machine: &Machine) -> Native {
    Native::prepare(machine, &machine.mappings, &machine.runtime)
}

fn caller(machine: &Machine, registers: &Registers) -> Option<Caller> {
    prepare(machine).caller(machine, registers)
}

#[test]
fn the_functions_are_found_in_memory_by_either_table() {
    for hash in [Hash::Gnu, Hash::SystemV] {
        for relocated in [false, true] {
            let machine = Machine::with(hash, relocated);
            let entry = prepare(&machine).entry.unwrap();
            assert_eq!(entry.restore_thread, Addr(TEXT + 0x100));
            assert_eq!(entry.check_signals, Addr(TEXT + 0x200));
            assert_eq!(entry.save_thread, Addr(TEXT + 0x300));
            assert_eq!(entry.ret, Addr(TEXT + 0x123));
            assert_eq!(entry.sigreturn, Addr(SIGRETURN));
        }
    }
}

/// The bytes lie across the end of a piece of what is read at a time.
#[test]
fn the_call_of_sigreturn_may_lie_anywhere_in_libc() {
    for at in [0, 1, 0xffff, 0x1_0000 - 8, 0x1_0000 - 9, LIBC_TEXT_SIZE - 9] {
        let machine = Machine::new();
        machine.erase_sigreturn();
        machine.put(LIBC_TEXT + at, &SIGRETURN_BYTES);
        let entry = prepare(&machine).entry.unwrap();
        assert_eq!(entry.sigreturn, Addr(LIBC_TEXT + at), "{at:#x}");
    }
}

#[test]
fn libc_is_known_by_its_name_or_by_its_call_of_sigreturn() {
    for name in [
        "libc.so.6",
        "libc-2.31.so",
        "libc.so",
        "libc.musl-x86_64.so.1",
        "ld-musl-x86_64.so.1",
        "libc.so.6 (deleted)",
        "anything.so",
    ] {
        let mut machine = Machine::new();
        machine.rename(LIBC, &format!("/lib/{name}"));
        assert_eq!(prepare(&machine).entry.unwrap().sigreturn, Addr(SIGRETURN));
        let caller = caller(&machine, &machine.wait_of(PYTHON_CALL)).unwrap();
        assert_eq!((caller.own, caller.libc_frames), (true, 3), "{name}");
    }
    // Another library of which nothing is known stays foreign, whatever it is called like.
    let mut machine = Machine::new();
    machine.rename(FOREIGN, "/usr/lib/libc-client.so.2007e");
    assert!(
        !caller(&machine, &machine.wait_of(FOREIGN_CALL))
            .unwrap()
            .own
    );
}

/// Before 2.34, glibc had its locks in a file of their own.
#[test]
fn the_library_of_threads_is_a_part_of_libc() {
    for (name, expected) in [("libpthread-2.31.so", true), ("libthreads.so", false)] {
        let mut machine = Machine::new();
        // Python calls it, it calls libc.
        machine.second_libc(&format!("/lib/x86_64-linux-gnu/{name}"));
        let registers = machine.wait_through_second_libc();
        let caller = caller(&machine, &registers).unwrap();
        assert_eq!(caller.own, expected, "{caller:?}");
        assert_eq!(caller.file.ends_with("python3.14"), expected, "{caller:?}");
    }
}

#[test]
fn a_static_program_has_all_in_one_file_and_no_known_caller() {
    let mut machine = Machine::new();
    machine
        .mappings
        .retain(|mapping| !(LIBC..LIBC + (1 << 32)).contains(&mapping.start));
    machine.put(TEXT + 0x800, &SIGRETURN_BYTES);
    let native = prepare(&machine);
    assert_eq!(native.entry.as_ref().unwrap().sigreturn, Addr(TEXT + 0x800));
    let registers = Registers {
        rip: TEXT + 0x809,
        rsp: STACK,
        ..Registers::default()
    };
    let caller = native.caller(&machine, &registers).unwrap();
    assert_eq!((caller.own, caller.libc_frames), (false, 0));
}

#[test]
fn what_is_missing_is_said() {
    let error = |change: &dyn Fn(&mut Machine)| {
        let mut machine = Machine::new();
        change(&mut machine);
        prepare(&machine).entry.unwrap_err()
    };
    assert_eq!(
        error(&|m| m.put(PYTHON, b"\x7fELF\x01")),
        NativeError::NoFile
    );
    assert_eq!(error(&|m| m.mappings.clear()), NativeError::NoFile);
    // EM_AARCH64.
    assert_eq!(
        error(&|m| m.put(PYTHON + 18, &[183, 0])),
        NativeError::Machine
    );
    assert_eq!(
        error(&|m| m.rename_symbol(b"PyEval_SaveThread", b"PyEval_LoveThread")),
        NativeError::Symbol("PyEval_SaveThread")
    );
    assert_eq!(
        error(&|m| m.not_executable(TEXT)),
        NativeError::NotCode("PyEval_RestoreThread")
    );
    assert_eq!(
        error(&|m| m.fill(TEXT, 0x1000, 0x90)),
        NativeError::NoReturn
    );
    assert_eq!(error(&|m| m.erase_sigreturn()), NativeError::NoSigreturn);
}

/// One thread after another, each through three frames of libc of which the middle one has a frame pointer.
#[test]
fn the_caller_is_whose_code_calls_libc_by_name() {
    let machine = Machine::new();
    for (at, own, file) in [
        (PYTHON_CALL, true, PYTHON_FILE),
        (PYTHON_CALL_BY_SLOT, true, PYTHON_FILE),
        // What libffi does, linked into the interpreter's own file.
        (PYTHON_CALL_OF_REGISTER, false, PYTHON_FILE),
        (DYNLOAD_CALL, true, DYNLOAD_FILE),
        (FOREIGN_CALL, false, FOREIGN_FILE),
        (ANONYMOUS_CALL, false, ""),
    ] {
        let caller = caller(&machine, &machine.wait_of(at)).unwrap();
        let expected = Caller {
            own,
            libc_frames: 3,
            at: Addr(at),
            file: file.to_owned(),
        };
        assert_eq!(caller, expected);
    }
}

#[test]
fn a_call_by_name_leads_into_the_same_file() {
    for distance in [i32::MAX, i32::MIN, 0x10_0000, -0x10_0000] {
        let machine = Machine::new();
        machine.put(PYTHON_CALL - 4, &distance.to_le_bytes());
        assert!(!caller(&machine, &machine.wait_of(PYTHON_CALL)).unwrap().own);
    }
}

#[test]
fn more_than_a_wrapper_between_is_a_loop_of_libcs_own() {
    for (frames, own) in [(1, true), (5, true), (6, false), (20, false)] {
        let machine = Machine::new();
        let registers = machine.wait_through(frames, PYTHON_CALL);
        let caller = caller(&machine, &registers).unwrap();
        assert_eq!((caller.own, caller.libc_frames), (own, frames));
    }
    let machine = Machine::new();
    let registers = machine.wait_through(33, PYTHON_CALL);
    assert_eq!(caller(&machine, &registers), None);
}

#[test]
fn a_stack_that_leads_nowhere_has_no_caller() {
    let machine = Machine::new();
    let native = prepare(&machine);
    let sound = machine.wait_of(PYTHON_CALL);
    assert!(native.caller(&machine, &sound).is_some());
    for registers in [
        // No stack there.
        Registers { rsp: 0, ..sound },
        Registers {
            rsp: u64::MAX - 7,
            ..sound
        },
        // The second frame's canonical address is the frame pointer's.
        Registers { rbp: 0, ..sound },
        Registers {
            rbp: STACK - 0x100,
            ..sound
        },
        Registers {
            rbp: u64::MAX,
            ..sound
        },
        // Between two functions, and in one that says it has no caller.
        Registers {
            rip: LIBC_TEXT + 0x800,
            ..sound
        },
        Registers {
            rip: ENTRY_POINT + 1,
            ..sound
        },
        // Mapped nowhere.
        Registers { rip: 0, ..sound },
        Registers {
            rip: u64::MAX,
            ..sound
        },
    ] {
        assert_eq!(native.caller(&machine, &registers), None, "{registers:x?}");
    }
}

#[test]
fn tables_that_are_not_there_or_of_another_form_leave_everybody_unknown() {
    let unknown = |change: &dyn Fn(&Machine)| {
        let machine = Machine::new();
        change(&machine);
        let native = prepare(&machine);
        assert!(native.entry.is_ok());
        assert_eq!(native.caller(&machine, &machine.wait_of(PYTHON_CALL)), None);
    };
    unknown(&|m| m.put(EH_FRAME_HDR, &[2]));
    unknown(&|m| m.put(EH_FRAME_HDR + 3, &[0xff]));
    // No functions.
    unknown(&|m| m.put(EH_FRAME_HDR + 8, &[0; 4]));
    // `.eh_frame` lies nowhere.
    unknown(&|m| m.put(EH_FRAME_HDR + 4, &i32::MAX.to_le_bytes()));
    // No such header, and one whose table lies nowhere.
    unknown(&|m| m.put(LIBC + 64 + 56, &[0; 4]));
    unknown(&|m| m.put(LIBC + 64 + 56 + 16, &[0xff; 8]));
    // The return address is in another register.
    unknown(&|m| m.put(EH_FRAME + 14, &[17]));
    // An entry longer than any, and some that contradict themselves.
    unknown(&|m| m.long_entry(0x900));
    unknown(&|m| m.fill(EH_FRAME, 0x200, 0xff));
}

#[test]
fn an_entry_may_do_nothing_at_length() {
    let machine = Machine::new();
    machine.long_entry(0x700);
    assert!(caller(&machine, &machine.wait_of(PYTHON_CALL)).unwrap().own);
}

#[test]
fn a_file_that_is_mapped_to_be_read_is_not_libc() {
    let mut machine = Machine::new();
    for n in 0..10 {
        let start = 0x7e00_0000_0000 + (n << 24);
        let end = start + 0x10_0000;
        let mapping = Mapping {
            start,
            end,
            ..machine.mapping(LIBC)
        };
        machine.mappings.insert(0, mapping);
    }
    let caller = caller(&machine, &machine.wait_of(PYTHON_CALL)).unwrap();
    assert!(caller.own);
}

fn bounded(machine: &Machine, registers: &[Registers]) -> Result<(), TestCaseError> {
    machine.counted();
    let native = prepare(machine);
    let (reads, bytes) = machine.counted();
    prop_assert!(
        reads <= PREPARE_READS && bytes <= PREPARE_BYTES,
        "{reads} reads of {bytes} bytes"
    );
    for registers in registers {
        let _ = native.caller(machine, registers);
        let (reads, _) = machine.counted();
        prop_assert!(reads <= CALLER_READS, "{reads} reads");
    }
    Ok(())
}

/// Values that lead into the made-up parts, or anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..0x1000_u64).prop_map(|n| LIBC_TEXT + n),
        (0..0x1000_u64).prop_map(|n| TEXT + n),
        (0..STACK_SIZE).prop_map(|n| STACK + n),
        Just(0),
        Just(u64::MAX),
    ]
}

fn registers() -> impl Strategy<Value = Registers> {
    [address(), address(), address(), address()].prop_map(|[rip, rsp, rbp, rbx]| Registers {
        rip,
        rsp,
        rbp,
        rbx,
        ..Registers::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Every byte of the headers, symbols, tables and stacks may be any, and every register.
    #[test]
    fn a_target_may_hold_anything(
        changes in prop::collection::vec((0..6_usize, any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 0..40),
        stack in prop::collection::vec(address(), 64),
        registers in prop::collection::vec(registers(), 8),
        protections in prop::collection::vec(any::<(bool, bool, bool)>(), 0..4),
    ) {
        let mut machine = Machine::new();
        let parts = [
            (PYTHON, 0x600_u64), (LIBC, 0x100), (EH_FRAME_HDR, 0x60), (EH_FRAME, 0x200), (EH_FRAME, 0x40), (TEXT, 0x400),
        ];
        let changes: BTreeMap<u64, u8> = changes
            .into_iter()
            .map(|(part, index, byte)| {
                let (at, len) = parts[part];
                (at + index.index(usize::try_from(len).unwrap()) as u64, byte)
            })
            .collect();
        for (at, byte) in changes {
            machine.put(at, &[byte]);
        }
        let mut registers = registers;
        registers.push(machine.wait_of(PYTHON_CALL));
        for (n, word) in stack.iter().enumerate() {
            machine.put(STACK + 0x1800 + 8 * n as u64, &word.to_le_bytes());
        }
        for (mapping, (readable, writable, executable)) in machine.mappings.iter_mut().zip(protections) {
            (mapping.readable, mapping.writable, mapping.executable) = (readable, writable, executable);
        }
        bounded(&machine, &registers)?;
    }
}
