//! A constructor that runs: `tests/programs/constructors.py`, recorded while its main thread waits in one.
#![expect(
    clippy::unwrap_used,
    reason = "a test states what must hold; a panic is its report"
)]

use sidewinder_decode::{Image, Limits, Runtime, stacks};
use sidewinder_model::Locals;

/// The interpreter puts a frame of its own between a class's caller and `__init__` once it has specialized the call.
/// `sys._current_frames()` leaves it out.
fn shows_the_frames_of_the_program_alone(image: &[u8]) {
    let image = Image::from_bytes(image).unwrap();
    let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
    let limits = Limits::default();
    let stacks = stacks(&image, &runtime, &image.threads, Locals::None, &limits);
    let frames = &stacks.interpreters[0].threads[0].frames;
    let shown: Vec<(&str, Option<i64>)> = frames
        .iter()
        .map(|frame| (&*frame.function, frame.line))
        .collect();
    let expected = [("<module>", 21), ("build", 14), ("Parked.__init__", 10)];
    assert_eq!(
        shown,
        expected.map(|(function, line)| (function, Some(line)))
    );
}

#[test]
fn a_specialized_constructor_of_3_14() {
    shows_the_frames_of_the_program_alone(include_bytes!("images/3.14/constructors.img"));
}

#[test]
fn a_specialized_constructor_of_3_15() {
    shows_the_frames_of_the_program_alone(include_bytes!("images/3.15/constructors.img"));
}
