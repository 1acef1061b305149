//! Bytes that claim to be a recorded target.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use sidewinder_decode::Image;
use sidewinder_decode_fuzz::bounds::{decode_all, small};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(image) = Image::from_bytes(bytes) else {
        // Kept all the same: damage is told in many ways.
        return Corpus::Keep;
    };
    assert_eq!(Image::from_bytes(&image.to_bytes()).as_ref(), Ok(&image));
    decode_all(&image, &image, None, &small());
    Corpus::Keep
});
