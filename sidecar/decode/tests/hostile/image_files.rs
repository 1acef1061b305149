//! Image files: what people attach to bug reports, and open.

use proptest::prelude::*;
use sidewinder_decode::{Image, ImageError};

use crate::bounds::{decode_all, small};
use crate::{IMAGES, cases, path};

fn header() -> Vec<u8> {
    [&b"SWIMAGE\n"[..], &1_u32.to_le_bytes()].concat()
}

#[test]
fn pages_that_are_nearly_nothing_in_the_file_do_not_fill_the_memory() {
    // No mappings, threads, files; then pages of zeros, twelve bytes each: a few megabytes for many gigabytes.
    let mut bytes = header();
    let pages: u32 = 4 << 20;
    for count in [0, 0, 0, pages] {
        bytes.extend(count.to_le_bytes());
    }
    for page in 0..u64::from(pages) / 8 {
        bytes.extend((page * 4096).to_le_bytes());
        bytes.extend([0, 0x10, 0, 0]);
    }
    let error = Image::from_bytes(&bytes).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::TooMany {
                most: Image::MAX_PAGES,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_of_a_million_segments_is_refused() {
    let mut bytes = header();
    for count in [0, 0, 1_u32] {
        bytes.extend(count.to_le_bytes());
    }
    // Device, inode and path, then segments.
    bytes.extend([0; 4 + 8 + 4]);
    bytes.extend(1_000_000_u32.to_le_bytes());
    bytes.resize(bytes.len() + 24_000_000, 1);
    assert!(matches!(
        Image::from_bytes(&bytes),
        Err(ImageError::TooMany { most: 64, .. })
    ));
}

#[test]
fn counts_that_promise_more_than_there_is_are_refused() {
    for name in IMAGES {
        let bytes = std::fs::read(path(name)).unwrap();
        // Every aligned and unaligned place near the beginning, where the counts and lengths are.
        for at in (12..600).step_by(3) {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let _ = Image::from_bytes(&bytes);
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn damaged_ones(
        which in 0..IMAGES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..16),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = std::fs::read(path(IMAGES[which])).unwrap();
        for (at, byte, flip) in changes {
            let at = at.index(bytes.len());
            bytes[at] = if flip { bytes[at] ^ (1 << (byte % 8)) } else { byte };
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(image) = Image::from_bytes(&bytes) {
            let again = Image::from_bytes(&image.to_bytes());
            prop_assert_eq!(again.as_ref(), Ok(&image));
            decode_all(&image, &image, None, &small());
        }
    }

    #[test]
    fn anything_else(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Image::from_bytes(&[header(), bytes].concat());
    }
}
