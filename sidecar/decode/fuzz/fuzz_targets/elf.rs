//! Bytes that claim to be an ELF file: a target chooses what it maps.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use sidewinder_decode_fuzz::elf_file;

fuzz_target!(|bytes: &[u8]| drop(elf_file::read(bytes)));

// What is shorter than a header is made a sound file: nothing else would ever be one.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if size >= 64 {
        return fuzzer_mutate(data, size, max_size);
    }
    let files = elf_file::sound();
    let (_, file) = &files[seed as usize % files.len()];
    let len = file.len().min(max_size);
    data[..len].copy_from_slice(&file[..len]);
    len
});
