//! Interpreters that were never run: memory laid out from the figures of [`offsets`], with threads, frames, strings and
//! tasks as CPython would have put them there.

pub(crate) mod offsets;

use sidewinder_decode::elf::{ElfFacts, Files, Segment};
use sidewinder_decode::{Addr, Mapping, Memory, OsThread, ReadError};

use offsets::{ASYNCIO_3_14, ASYNCIO_3_15, WORDS_3_14, WORDS_3_15, Word};

/// Where everything lies: the runtime first, the heap behind it.
const BASE: u64 = 0x7f00_0000_0000;
const HEAP: u64 = BASE + (1 << 20);
const SIZE: usize = 4 << 20;

/// One of the layouts that a version of CPython can be built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) minor: u8,
    pub(crate) free_threaded: bool,
}

impl Layout {
    pub(crate) const ALL: [Self; 4] = [
        Self::of(14, false),
        Self::of(14, true),
        Self::of(15, false),
        Self::of(15, true),
    ];

    const fn of(minor: u8, free_threaded: bool) -> Self {
        Self {
            minor,
            free_threaded,
        }
    }

    fn words(self) -> &'static [Word] {
        if self.minor == 14 {
            WORDS_3_14
        } else {
            WORDS_3_15
        }
    }

    fn pick(self, word: (u64, u64)) -> u64 {
        if self.free_threaded { word.1 } else { word.0 }
    }

    /// A word of the table.
    pub(crate) fn get(self, name: &str) -> u64 {
        let word = self.words().iter().find(|word| word.0 == name);
        let word = word.unwrap_or_else(|| panic!("no word {name} in 3.{}", self.minor));
        self.pick((word.1, word.2))
    }

    /// The whole table.
    pub(crate) fn table(self) -> Vec<u64> {
        let words = self.words().iter();
        words.map(|word| self.pick((word.1, word.2))).collect()
    }

    /// asyncio's table.
    pub(crate) fn asyncio(self) -> Vec<u64> {
        let words = if self.minor == 14 {
            ASYNCIO_3_14
        } else {
            ASYNCIO_3_15
        };
        words.iter().map(|word| self.pick(*word)).collect()
    }

    /// The generator's states: created, suspended, awaiting, executing.
    fn generator(self, state: Generator) -> u8 {
        let (old, new): (i8, i8) = match state {
            Generator::Created => (-3, 0),
            Generator::Awaiting => (-1, 2),
            Generator::Executing => (0, 4),
        };
        if self.minor == 14 { old } else { new }.cast_unsigned()
    }

    /// How far below its stack pointer a suspended frame keeps what it awaits.
    fn awaited_below(self) -> u64 {
        if self.minor == 14 { 8 } else { 16 }
    }
}

/// Where a coroutine stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Generator {
    Created,
    Awaiting,
    Executing,
}

/// The types that objects can have.
#[derive(Debug, Default)]
struct Types {
    meta: u64,
    str_: u64,
    bytes: u64,
    int: u64,
    tuple: u64,
    dict: u64,
    list: u64,
    set: u64,
    code: u64,
    coroutine: u64,
    module: u64,
    future: u64,
    task: u64,
    future_iter: u64,
}

/// A process that is laid out piece by piece.
pub(crate) struct Process {
    pub(crate) layout: Layout,
    memory: Vec<u8>,
    next: u64,
    types: Types,
    pub(crate) interpreter: u64,
    /// The newest thread state, which the interpreter's list begins with.
    threads: u64,
    asyncio: u64,
    pub(crate) os_threads: Vec<OsThread>,
}

impl Memory for Process {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let fault = ReadError::Fault { at, len: buf.len() };
        let start =
            at.0.checked_sub(BASE)
                .and_then(|at| usize::try_from(at).ok());
        let bytes = start.and_then(|start| self.memory.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(fault)?);
        Ok(())
    }
}

impl Files for Process {
    fn elf(&self, _: &Mapping) -> Option<ElfFacts> {
        Some(ElfFacts {
            segments: vec![Segment {
                offset: 0,
                address: 0,
                file_size: SIZE as u64,
            }],
            runtime: Some(0),
            asyncio: Some(self.asyncio - BASE),
            version: None,
        })
    }
}

impl Process {
    /// A runtime with one interpreter and no threads yet.
    pub(crate) fn new(layout: Layout) -> Self {
        let mut process = Self {
            layout,
            memory: vec![0; SIZE],
            next: HEAP,
            types: Types::default(),
            interpreter: 0,
            threads: 0,
            asyncio: 0,
            os_threads: Vec::new(),
        };
        for (n, word) in layout.table().into_iter().enumerate() {
            process.put(BASE + 8 * n as u64, word);
        }
        process.asyncio = process.allocate(13 * 8);
        for (n, word) in layout.asyncio().into_iter().enumerate() {
            process.put(process.asyncio + 8 * n as u64, word);
        }
        process.types();
        // The whole structure with asyncio's list, which lies behind what the table speaks of.
        process.interpreter = process.allocate(layout.get("interpreter_state.size"));
        let interpreter = process.interpreter;
        process.put(
            BASE + layout.get("runtime_state.interpreters_head"),
            interpreter,
        );
        let gil = interpreter + layout.get("interpreter_state.gil_runtime_state");
        process.put(interpreter + layout.get("interpreter_state.ceval_gil"), gil);
        process.empty_list(interpreter + layout.asyncio()[8]);
        process
    }

    pub(crate) fn mappings() -> Vec<Mapping> {
        vec![Mapping {
            start: BASE,
            end: BASE + SIZE as u64,
            readable: true,
            writable: true,
            executable: false,
            offset: 0,
            device: "00:01".to_owned(),
            inode: 1,
            path: "/opt/python".to_owned(),
        }]
    }

    // Memory.

    pub(crate) fn allocate(&mut self, bytes: u64) -> u64 {
        // Before every object there is room for what stands before objects: headers and the managed dict.
        let at = self.next + 64;
        self.next = (at + bytes).next_multiple_of(16);
        assert!(self.next < BASE + SIZE as u64, "the heap is full");
        at
    }

    fn put_bytes(&mut self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at - BASE).unwrap();
        self.memory[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put(&mut self, at: u64, word: u64) {
        self.put_bytes(at, &word.to_le_bytes());
    }

    fn put_u32(&mut self, at: u64, word: u32) {
        self.put_bytes(at, &word.to_le_bytes());
    }

    fn empty_list(&mut self, head: u64) {
        self.put(head + self.layout.get("llist_node.next"), head);
        self.put(head + self.layout.get("llist_node.prev"), head);
    }

    // Objects.

    fn object(&mut self, kind: u64, bytes: u64) -> u64 {
        let at = self.allocate(bytes);
        self.put(at + self.layout.get("pyobject.ob_type"), kind);
        at
    }

    fn type_object(&mut self, name: &str, flags: u64, base: u64) -> u64 {
        let meta = self.types.meta;
        let size = self.layout.get("type_object.size") + 1024;
        let at = self.object(meta, size);
        let text = self.allocate(name.len() as u64 + 1);
        self.put_bytes(text, name.as_bytes());
        self.put(at + self.layout.get("type_object.tp_name"), text);
        let flags_at = at + self.layout.get("type_object.tp_flags");
        self.put(flags_at, flags);
        // `tp_base`, eleven words further.
        self.put(flags_at + 88, base);
        at
    }

    fn types(&mut self) {
        let meta = self.type_object("type", 1 << 31, 0);
        self.put(meta + self.layout.get("pyobject.ob_type"), meta);
        self.types.meta = meta;
        self.types.str_ = self.type_object("str", 1 << 28, 0);
        self.types.bytes = self.type_object("bytes", 1 << 27, 0);
        self.types.int = self.type_object("int", 1 << 24, 0);
        self.types.tuple = self.type_object("tuple", 1 << 26, 0);
        self.types.dict = self.type_object("dict", 1 << 29, 0);
        self.types.list = self.type_object("list", 1 << 25, 0);
        self.types.set = self.type_object("set", 0, 0);
        self.types.code = self.type_object("code", 0, 0);
        self.types.coroutine = self.type_object("coroutine", 0, 0);
        self.types.module = self.type_object("module", 0, 0);
        self.types.future = self.type_object("_asyncio.Future", 0, 0);
        self.types.task = self.type_object("_asyncio.Task", 0, self.types.future);
        self.types.future_iter = self.type_object("_asyncio.FutureIter", 0, 0);
    }

    /// A `str` as the interpreter makes them: ASCII, Latin-1 or UCS-2, whichever is narrowest.
    pub(crate) fn string(&mut self, text: &str) -> u64 {
        let widest = text.chars().max().map_or(0, u32::from);
        let ascii = widest < 0x80;
        let kind: u32 = if widest < 0x100 { 1 } else { 2 };
        let mut data = Vec::new();
        for character in text.chars() {
            let code = u32::from(character).to_le_bytes();
            data.extend_from_slice(&code[..kind as usize]);
        }
        let head = self.layout.get("unicode_object.asciiobject_size");
        let head = if ascii { head } else { head + 16 };
        let at = self.object(self.types.str_, head + data.len() as u64 + 4);
        let length = text.chars().count() as u64;
        self.put(at + self.layout.get("unicode_object.length"), length);
        // interned: two bits, or a byte of its own; then kind, compact, ascii.
        let bits = kind | 1 << 3 | u32::from(ascii) << 4;
        let state = if self.layout.free_threaded {
            bits << 8 | 2
        } else {
            bits << 2 | 2
        };
        self.put_u32(at + self.layout.get("unicode_object.state"), state);
        self.put_bytes(at + head, &data);
        at
    }

    fn bytes_object(&mut self, bytes: &[u8]) -> u64 {
        let data = self.layout.get("bytes_object.ob_sval");
        let at = self.object(self.types.bytes, data + bytes.len() as u64 + 1);
        self.put(
            at + self.layout.get("bytes_object.ob_size"),
            bytes.len() as u64,
        );
        self.put_bytes(at + data, bytes);
        at
    }

    pub(crate) fn int(&mut self, value: u32) -> u64 {
        assert!(value < 1 << 30);
        let at = self.object(self.types.int, self.layout.get("long_object.size"));
        self.put(at + self.layout.get("long_object.lv_tag"), 1 << 3);
        self.put_u32(at + self.layout.get("long_object.ob_digit"), value);
        at
    }

    fn tuple(&mut self, items: &[u64]) -> u64 {
        let first = self.layout.get("tuple_object.ob_item");
        let at = self.object(self.types.tuple, first + 8 * items.len() as u64);
        self.put(
            at + self.layout.get("tuple_object.ob_size"),
            items.len() as u64,
        );
        for (n, item) in items.iter().enumerate() {
            self.put(at + first + 8 * n as u64, *item);
        }
        at
    }

    /// A dict with a general table.
    fn dict(&mut self, entries: &[(u64, u64)]) -> u64 {
        let at = self.object(self.types.dict, self.layout.get("dict_object.size"));
        let keys = self.allocate(32 + 8 + 24 * entries.len() as u64);
        // Eight indices of a byte each, no kind.
        self.put_bytes(keys + 8, &[3, 3, 0]);
        self.put(keys + 24, entries.len() as u64);
        for (n, (key, value)) in entries.iter().enumerate() {
            let entry = keys + 40 + 24 * n as u64;
            self.put(entry, 0x1234);
            self.put(entry + 8, *key);
            self.put(entry + 16, *value);
        }
        self.put(at + self.layout.get("dict_object.ma_keys"), keys);
        at
    }

    fn set(&mut self, members: &[u64]) -> u64 {
        let at = self.object(self.types.set, self.layout.get("set_object.size"));
        let table = self.allocate(16 * 8);
        self.put(
            at + self.layout.get("set_object.used"),
            members.len() as u64,
        );
        self.put(at + self.layout.get("set_object.mask"), 7);
        self.put(at + self.layout.get("set_object.table"), table);
        // A removed member before the others.
        self.put(table, self.types.set);
        self.put(table + 8, u64::MAX);
        for (n, member) in members.iter().enumerate() {
            self.put(table + 16 * (n as u64 + 1), *member);
            self.put(table + 16 * (n as u64 + 1) + 8, 77);
        }
        at
    }

    /// The names of threads, as `threading` keeps them: `sys.modules["threading"]._active[ident]._name`.
    pub(crate) fn name_threads(&mut self, names: &[(u32, &str)]) {
        let class = self.type_object("Thread", 1 << 4, 0);
        let mut active = Vec::new();
        for (ident, name) in names {
            let (key, value) = (self.string("_name"), self.string(name));
            let dict = self.dict(&[(key, value)]);
            let thread = self.object(class, 64);
            // Before the object: its dict, and in builds with a GIL the collector's two words between.
            let before = if self.layout.free_threaded { 8 } else { 24 };
            self.put(thread - before, dict);
            let ident = self.int(*ident);
            active.push((ident, thread));
        }
        let active = self.dict(&active);
        let key = self.string("_active");
        let members = self.dict(&[(key, active)]);
        let module = self.object(self.types.module, 64);
        self.put(module + self.layout.get("pyobject.size"), members);
        let (other, key) = (self.string("sys"), self.string("threading"));
        let modules = self.dict(&[(other, module), (key, module)]);
        self.put(
            self.interpreter + self.layout.get("interpreter_state.imports_modules"),
            modules,
        );
    }

    // Code and frames.

    /// A function of three lines, `first`, `first + 10` and `first + 20`, each of two code units.
    pub(crate) fn code(&mut self, name: &str, file: &str, first: u32) -> u64 {
        let size = self.layout.get("code_object.co_code_adaptive");
        let at = self.object(self.types.code, size + 12);
        let (qualname, filename) = (self.string(name), self.string(file));
        // Entries without columns (13) of two units, then the distance in lines, doubled.
        let lines = self.bytes_object(&[0xe9, 0, 0xe9, 20, 0xe9, 20]);
        let names = self.tuple(&[]);
        let kinds = self.bytes_object(&[]);
        for (member, value) in [
            ("code_object.name", qualname),
            ("code_object.qualname", qualname),
            ("code_object.filename", filename),
            ("code_object.linetable", lines),
            ("code_object.localsplusnames", names),
            ("code_object.localspluskinds", kinds),
        ] {
            self.put(at + self.layout.get(member), value);
        }
        self.put_u32(at + self.layout.get("code_object.firstlineno"), first);
        if self.layout.free_threaded {
            // `{count, copies[count]}`: the first is the inline bytecode, the second of a thread that has ended.
            let copies = self.allocate(8 + 3 * 8);
            let copy = self.allocate(12);
            self.put(copies, 3);
            self.put(copies + 8, at + size);
            self.put(copies + 24, copy);
            self.put(at + self.layout.get("code_object.co_tlbc"), copies);
        }
        at
    }

    /// Fills a frame that stands at the given line (0, 1 or 2) of its function, in the thread's own copy of the
    /// bytecode where the build has such and `copied` asks for it.
    fn fill_frame(&mut self, at: u64, previous: u64, code: u64, line: u64, copied: bool) {
        let layout = self.layout;
        let inline = code + layout.get("code_object.co_code_adaptive");
        let copied = copied && layout.free_threaded;
        let bytecode = if copied {
            let array = self.word(code + layout.get("code_object.co_tlbc"));
            self.word(array + 24)
        } else {
            inline
        };
        self.put(at + layout.get("interpreter_frame.previous"), previous);
        // A free-threaded build marks references that it does not count.
        let tag = u64::from(layout.free_threaded);
        self.put(at + layout.get("interpreter_frame.executable"), code | tag);
        // The second unit of the line.
        let instruction = bytecode + line * 4 + 2;
        self.put(at + layout.get("interpreter_frame.instr_ptr"), instruction);
        if layout.free_threaded {
            let index = at + layout.get("interpreter_frame.tlbc_index");
            self.put_u32(index, if copied { 2 } else { 0 });
        }
        let stack = at + layout.get("interpreter_frame.localsplus");
        self.put(at + layout.get("interpreter_frame.stackpointer"), stack);
    }

    pub(crate) fn frame(&mut self, previous: u64, code: u64, line: u64, copied: bool) -> u64 {
        let at = self.allocate(self.layout.get("interpreter_frame.size") + 64);
        self.fill_frame(at, previous, code, line, copied);
        at
    }

    /// The frame of a call from C into Python.
    pub(crate) fn entry_frame(&mut self, previous: u64) -> u64 {
        let at = self.allocate(self.layout.get("interpreter_frame.size"));
        self.put(at + self.layout.get("interpreter_frame.previous"), previous);
        let none = self.types.meta | 1;
        self.put(at + self.layout.get("interpreter_frame.executable"), none);
        self.put_bytes(at + self.layout.get("interpreter_frame.owner"), &[3]);
        at
    }

    /// A thread whose stack begins with the frame `base`; the first is the main one.
    pub(crate) fn thread(&mut self, tid: u64, ident: u64, base: u64, frame: u64) -> u64 {
        let layout = self.layout;
        let at = self.allocate(layout.asyncio()[9]);
        if layout.minor > 14 {
            self.put(at + layout.get("thread_state.base_frame"), base);
        }
        for (member, value) in [
            ("thread_state.next", self.threads),
            ("thread_state.interp", self.interpreter),
            ("thread_state.current_frame", frame),
            ("thread_state.thread_id", ident),
            ("thread_state.native_thread_id", tid),
        ] {
            self.put(at + layout.get(member), value);
        }
        // Initialised, bound.
        self.put_u32(at + layout.get("thread_state.status"), 0b11);
        self.empty_list(at + layout.asyncio()[12]);
        if self.threads == 0 {
            let main = self.interpreter + layout.get("interpreter_state.threads_main");
            self.put(main, at);
        } else {
            self.put(self.threads + layout.get("thread_state.prev"), at);
        }
        self.threads = at;
        self.put(
            self.interpreter + layout.get("interpreter_state.threads_head"),
            at,
        );
        self.os_threads.push(OsThread {
            tid: tid + 1000,
            ns_tid: tid,
            name: format!("kernel-{tid}"),
            ..OsThread::default()
        });
        at
    }

    // asyncio.

    /// A coroutine that awaits an object, or nothing.
    pub(crate) fn coroutine(&mut self, code: u64, line: u64, state: Generator, awaits: u64) -> u64 {
        let layout = self.layout;
        let size = layout.get("gen_object.size") + layout.get("interpreter_frame.size") + 64;
        let at = self.object(self.types.coroutine, size);
        let frame = at + layout.get("gen_object.gi_iframe");
        self.fill_frame(frame, 0, code, line, false);
        self.put_bytes(frame + layout.get("interpreter_frame.owner"), &[1]);
        let state = layout.generator(state);
        self.put_bytes(at + layout.get("gen_object.gi_frame_state"), &[state]);
        let stack = frame + layout.get("interpreter_frame.localsplus") + 32;
        self.put(frame + layout.get("interpreter_frame.stackpointer"), stack);
        self.put(stack - layout.awaited_below(), awaits);
        at
    }

    /// The frame inside a coroutine.
    pub(crate) fn frame_of(&self, coroutine: u64) -> u64 {
        coroutine + self.layout.get("gen_object.gi_iframe")
    }

    /// Says which frame called this one.
    pub(crate) fn link(&mut self, frame: u64, previous: u64) {
        let at = frame + self.layout.get("interpreter_frame.previous");
        self.put(at, previous);
    }

    /// A future nobody has set.
    pub(crate) fn future(&mut self) -> u64 {
        self.object(self.types.future, self.layout.asyncio()[0])
    }

    /// What awaiting a future leaves on the stack.
    pub(crate) fn future_iter(&mut self, future: u64) -> u64 {
        let at = self.object(self.types.future_iter, 64);
        self.put(at + self.layout.get("pyobject.size"), future);
        at
    }

    /// A task in the list of a thread.
    pub(crate) fn task(&mut self, thread: u64, name: u64, coroutine: u64, waits_for: u64) -> u64 {
        let offsets = self.layout.asyncio();
        let at = self.object(self.types.task, offsets[0]);
        let event_loop = self.types.module;
        self.put(at + self.layout.get("pyobject.size"), event_loop);
        self.put(at + offsets[1], name);
        self.put(at + offsets[5], coroutine);
        self.put(at + offsets[5] - 8, waits_for);
        self.put_bytes(at + offsets[3], &[1]);
        // Behind the newest, before the list's head.
        let (next, prev) = (
            self.layout.get("llist_node.next"),
            self.layout.get("llist_node.prev"),
        );
        let (head, node) = (thread + offsets[12], at + offsets[6]);
        let last = self.word(head + prev);
        self.put(last + next, node);
        self.put(node + prev, last);
        self.put(node + next, head);
        self.put(head + prev, node);
        at
    }

    /// Says who waits for a task: one directly, several in a set.
    pub(crate) fn awaited_by(&mut self, task: u64, waiters: &[u64]) {
        let offsets = self.layout.asyncio();
        let (value, is_set) = match waiters {
            [one] => (*one, 0),
            several => (self.set(several), 1),
        };
        self.put(task + offsets[2], value);
        self.put_bytes(task + offsets[4], &[is_set]);
    }

    /// Has a thread run a task.
    pub(crate) fn runs(&mut self, thread: u64, task: u64) {
        let offsets = self.layout.asyncio();
        self.put(thread + offsets[10], self.types.module);
        self.put(thread + offsets[11], task);
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(Addr(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }
}
