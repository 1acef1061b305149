//! A target made up word by word, for what no recorded one holds: circles, impossible sizes, structures that overlap.

use std::collections::HashMap;

use sidewinder_decode::offsets::Field as F;
use sidewinder_decode::{Addr, Files as _, Image, Memory, ReadError, Runtime};

const PAGE: u64 = 4096;
/// Where the made-up part begins.
const BEGIN: u64 = 0x1000_0000;

// Bits of `tp_flags`, Include/object.h.
const INT: u64 = 1 << 24;
const LIST: u64 = 1 << 25;
const TUPLE: u64 = 1 << 26;
const BYTES: u64 = 1 << 27;
const STR: u64 = 1 << 28;
const DICT: u64 = 1 << 29;
const TYPE: u64 = 1 << 31;

/// A state of a coroutine, `gi_frame_state` in 3.14.
pub const AWAITING: i8 = -1;

/// asyncio's table of 3.14 and 3.15.
#[derive(Clone, Copy)]
pub struct Asyncio {
    pub name: u64,
    pub awaited_by: u64,
    pub awaited_by_is_set: u64,
    pub coroutine: u64,
    pub node: u64,
    pub interpreter_head: u64,
    pub thread_head: u64,
}

/// Where a recorded target has that table.
pub fn asyncio_table(image: &Image) -> u64 {
    let mut tables = image.mappings.iter().filter(|m| m.offset == 0).map(|m| {
        let facts = image.elf(m)?;
        let bias = m.start.wrapping_sub(facts.segments.first()?.address);
        Some(facts.asyncio?.wrapping_add(bias))
    });
    tables.find_map(|table| table).unwrap()
}

/// The memory; only its [`Runtime`] is a recorded target's.
pub struct Made {
    pages: HashMap<u64, Box<[u8]>>,
    next: u64,
    kinds: HashMap<String, u64>,
    pub runtime: Runtime,
    pub asyncio: Asyncio,
    pub image: Image,
}

impl Memory for Made {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let fault = ReadError::Fault { at, len: buf.len() };
        let mut rest = buf;
        let mut at = at.0;
        while !rest.is_empty() {
            let page = self.pages.get(&(at / PAGE)).ok_or(fault.clone())?;
            let bytes = &page[usize::try_from(at % PAGE).unwrap()..];
            let (now, after) = rest.split_at_mut(bytes.len().min(rest.len()));
            now.copy_from_slice(&bytes[..now.len()]);
            at = at.wrapping_add(now.len() as u64);
            rest = after;
        }
        Ok(())
    }
}

impl Made {
    /// With one interpreter that has no threads.
    pub fn new() -> Self {
        let mut image = crate::image("3.14/tasks");
        let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
        let asyncio = asyncio_table(&image);
        let mut words = [0; 13 * 8];
        image.read(Addr(asyncio), &mut words).unwrap();
        let word = |n: usize| u64::from_le_bytes(words[8 * n..8 * n + 8].try_into().unwrap());
        image.threads.clear();
        let mut made = Self {
            pages: HashMap::new(),
            next: BEGIN,
            kinds: HashMap::new(),
            runtime,
            asyncio: Asyncio {
                name: word(1),
                awaited_by: word(2),
                awaited_by_is_set: word(4),
                coroutine: word(5),
                node: word(6),
                interpreter_head: word(8),
                thread_head: word(12),
            },
            image,
        };
        let interpreter = made.interpreter();
        made.interpreters(&[interpreter]);
        made
    }

    pub fn offset(&self, field: F) -> u64 {
        self.runtime.offsets().get(field)
    }

    /// So many bytes of zeros.
    pub fn room(&mut self, bytes: u64) -> u64 {
        let at = self.next;
        self.next = (at + bytes).next_multiple_of(16);
        for page in at / PAGE..=self.next / PAGE {
            self.map(page * PAGE);
        }
        at
    }

    /// Makes the page at this address readable.
    pub fn map(&mut self, at: u64) {
        let page = || vec![0; usize::try_from(PAGE).unwrap()].into_boxed_slice();
        self.pages.entry(at / PAGE).or_insert_with(page);
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.map(at);
            let page = self.pages.get_mut(&(at / PAGE)).unwrap();
            page[usize::try_from(at % PAGE).unwrap()] = *byte;
        }
    }

    pub fn word(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn set(&mut self, object: u64, field: F, value: u64) {
        self.word(object + self.offset(field), value);
    }

    /// A type.
    pub fn kind(&mut self, name: &str, flags: u64) -> u64 {
        if let Some(&known) = self.kinds.get(name) {
            return known;
        }
        let kind = self.room(1024);
        let text = self.room(name.len() as u64 + 1);
        self.put(text, name.as_bytes());
        self.set(kind, F::type_object_tp_name, text);
        self.set(kind, F::type_object_tp_flags, flags);
        let meta = if name == "type" {
            kind
        } else {
            self.kind("type", TYPE)
        };
        self.set(kind, F::pyobject_ob_type, meta);
        self.kinds.insert(name.to_owned(), kind);
        kind
    }

    /// An object of a type with so many bytes.
    pub fn object(&mut self, kind: &str, flags: u64, bytes: u64) -> u64 {
        let kind = self.kind(kind, flags);
        let object = self.room(bytes);
        self.set(object, F::pyobject_ob_type, kind);
        object
    }

    pub fn text(&mut self, text: &str) -> u64 {
        let object = self.object("str", STR, 64 + text.len() as u64);
        self.set(object, F::unicode_object_length, text.len() as u64);
        // One byte per character, compact, ASCII.
        let state = object + self.offset(F::unicode_object_state);
        self.put(state, &((1 << 2 | 1 << 5 | 1 << 6) as u32).to_le_bytes());
        let data = object + self.offset(F::unicode_object_asciiobject_size);
        self.put(data, text.as_bytes());
        object
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let object = self.object("bytes", BYTES, 64 + bytes.len() as u64);
        self.set(object, F::bytes_object_ob_size, bytes.len() as u64);
        self.put(object + self.offset(F::bytes_object_ob_sval), bytes);
        object
    }

    pub fn tuple(&mut self, items: &[u64]) -> u64 {
        let object = self.object("tuple", TUPLE, 64 + 8 * items.len() as u64);
        self.set(object, F::tuple_object_ob_size, items.len() as u64);
        let at = object + self.offset(F::tuple_object_ob_item);
        for (at, item) in (at..).step_by(8).zip(items) {
            self.word(at, *item);
        }
        object
    }

    /// A list, an int or a dict of no entries.
    pub fn list(&mut self) -> u64 {
        self.object("list", LIST, 64)
    }
    pub fn int(&mut self) -> u64 {
        self.object("int", INT, 64)
    }
    pub fn dict(&mut self) -> u64 {
        let keys = self.room(64);
        let dict = self.object("dict", DICT, 64);
        self.set(dict, F::dict_object_ma_keys, keys);
        dict
    }

    /// A set with room for `table` entries, which must be a power of two.
    pub fn set_of(&mut self, items: &[u64], table: u64) -> u64 {
        let at = self.room(16 * table);
        for (entry, item) in (at..).step_by(16).zip(items) {
            self.word(entry, *item);
            self.word(entry + 8, 1);
        }
        let set = self.object("set", 0, 256);
        self.set(set, F::set_object_used, items.len() as u64);
        self.set(set, F::set_object_mask, table - 1);
        self.set(set, F::set_object_table, at);
        set
    }

    /// A function's code with these variables.
    pub fn code(&mut self, name: &str, variables: &[u64], lines: u64) -> u64 {
        let name = self.text(name);
        let names = self.tuple(variables);
        let kinds = self.bytes(&vec![0x20; variables.len()]);
        let code = self.object("code", 0, 512);
        for (field, value) in [
            (F::code_object_qualname, name),
            (F::code_object_filename, name),
            (F::code_object_linetable, lines),
            (F::code_object_localsplusnames, names),
            (F::code_object_localspluskinds, kinds),
        ] {
            self.set(code, field, value);
        }
        code
    }

    /// The frame of a function, with words for its variables.
    pub fn frame(&mut self, previous: u64, code: u64, variables: &[u64]) -> u64 {
        let locals = self.offset(F::interpreter_frame_localsplus);
        let frame = self.room(locals + 8 * variables.len() as u64);
        self.set(frame, F::interpreter_frame_previous, previous);
        self.set(frame, F::interpreter_frame_executable, code);
        let begin = code + self.offset(F::code_object_co_code_adaptive);
        self.set(frame, F::interpreter_frame_instr_ptr, begin);
        for (at, variable) in (frame + locals..).step_by(8).zip(variables) {
            self.word(at, *variable);
        }
        frame
    }

    pub fn thread(&mut self, ident: u64, frame: u64) -> u64 {
        let thread = self.room(self.offset(F::thread_state_size) + 1024);
        self.set(thread, F::thread_state_thread_id, ident);
        self.set(thread, F::thread_state_native_thread_id, ident);
        self.set(thread, F::thread_state_current_frame, frame);
        let head = thread + self.asyncio.thread_head;
        self.word(head + self.offset(F::llist_node_next), head);
        thread
    }

    pub fn interpreter(&mut self) -> u64 {
        let interpreter = self.room(self.offset(F::interpreter_state_size));
        let head = interpreter + self.asyncio.interpreter_head;
        self.word(head + self.offset(F::llist_node_next), head);
        interpreter
    }

    /// What the process consists of.
    pub fn interpreters(&mut self, interpreters: &[u64]) {
        let head = self.offset(F::runtime_state_interpreters_head);
        let head = self.runtime.address().0 + head;
        self.word(head, interpreters[0]);
        for pair in interpreters.windows(2) {
            self.set(pair[0], F::interpreter_state_next, pair[1]);
        }
    }

    pub fn main_interpreter(&self) -> u64 {
        let head = self.offset(F::runtime_state_interpreters_head);
        let mut word = [0; 8];
        let at = Addr(self.runtime.address().0 + head);
        self.read(at, &mut word).unwrap();
        u64::from_le_bytes(word)
    }

    /// Gives an interpreter its threads.
    pub fn threads(&mut self, interpreter: u64, threads: &[u64]) {
        self.set(interpreter, F::interpreter_state_threads_head, threads[0]);
        for pair in threads.windows(2) {
            self.set(pair[0], F::thread_state_next, pair[1]);
        }
    }

    /// A coroutine that awaits something, 0 for nothing known.
    pub fn coroutine(&mut self, code: u64, awaits: u64) -> u64 {
        let coroutine = self.object("coroutine", 0, 512);
        let state = coroutine + self.offset(F::gen_object_gi_frame_state);
        self.put(state, &AWAITING.to_le_bytes());
        let frame = coroutine + self.offset(F::gen_object_gi_iframe);
        self.set(frame, F::interpreter_frame_executable, code);
        self.set(frame, F::interpreter_frame_stackpointer, coroutine + 512);
        self.awaits(coroutine, awaits);
        coroutine
    }

    pub fn awaits(&mut self, coroutine: u64, awaited: u64) {
        self.word(coroutine + 512 - 8, awaited);
    }

    pub fn task(&mut self, name: u64, coroutine: u64) -> u64 {
        let task = self.object("_asyncio.Task", 0, 512);
        self.word(task + self.asyncio.name, name);
        self.word(task + self.asyncio.coroutine, coroutine);
        task
    }

    pub fn awaited_by(&mut self, task: u64, set: u64) {
        self.word(task + self.asyncio.awaited_by, set);
        self.put(task + self.asyncio.awaited_by_is_set, &[1]);
    }

    /// Gives a thread its tasks.
    pub fn tasks(&mut self, thread: u64, tasks: &[u64]) {
        let head = thread + self.asyncio.thread_head;
        let next = self.offset(F::llist_node_next);
        let mut from = head;
        for task in tasks {
            let node = task + self.asyncio.node;
            self.word(from + next, node);
            from = node;
        }
        self.word(from + next, head);
    }
}
