//! Records what the decoder's tests decode: `sidecar/decode/tests/images/VERSION/PROGRAM.img`, what a decode touches of
//! a process that runs the program, and `PROGRAM.target.json`, what the program said of itself.
//!
//! ```text
//! cargo run --package sidewinder-e2e --features live --example record_images [PROGRAM…]
//! UPDATE=1 cargo test --package sidewinder-decode --test images
//! ```
//! The second command writes `PROGRAM.json`, what comes out of the images: read the difference before committing it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "whoever records reads the panic"
)]

#[path = "../tests/live/mod.rs"]
mod live;

use std::time::Duration;

use live::Target;
use serde_json::Value;
use sidewinder_decode::memory::{Image, Recorder};
use sidewinder_decode::{Limits, Runtime, remote_exec, stacks, tasks};
use sidewinder_linux::stop::stop_all;
use sidewinder_model::{Locals, ThreadState};

/// The programs whose images are small: whether they say what they know of themselves, and what of their local variables
/// is recorded. Hostile memory is made of images with values.
const PROGRAMS: &[(&str, bool, Locals)] = &[
    ("awaits", true, Locals::Types),
    ("contended", false, Locals::Values),
    ("eager", true, Locals::Types),
    ("ended", true, Locals::Values),
    ("libraries", true, Locals::Types),
    ("loops", true, Locals::Types),
    ("subinterpreters", false, Locals::Values),
    ("tasks", true, Locals::Values),
    ("threads", true, Locals::Values),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for version in ["3.14", "3.15"] {
        let folder = sidewinder_e2e::checkout()
            .join("sidecar/decode/tests/images")
            .join(version);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, says, locals) in PROGRAMS {
            if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
                continue;
            }
            let target = Target::of_program(name, version);
            if *says {
                let said: Value = serde_json::from_str(&target.line()).unwrap();
                std::fs::write(
                    folder.join(format!("{name}.target.json")),
                    format!("{said}\n"),
                )
                .unwrap();
            }
            let image = record(&target, *locals).to_bytes();
            eprintln!("{} {name}: {} bytes", version, image.len());
            std::fs::write(folder.join(format!("{name}.img")), image).unwrap();
        }
    }
}

/// Everything that any test asks of an image.
fn record(target: &Target, locals: Locals) -> Image {
    let process = target.process();
    let runtime = Runtime::locate(&process, &process.mappings().unwrap(), &process).unwrap();
    loop {
        // What the kernel says of its threads must be from before the stop, and still be true.
        let before = runtime.gil(&process).unwrap();
        let threads = process.threads().unwrap();
        // A thread that waits for the GIL wakes up every few milliseconds.
        let running = threads
            .iter()
            .filter(|thread| thread.state == ThreadState::Running);
        if running.count() > 1 {
            continue;
        }
        let guard = stop_all(&process, Duration::from_secs(20)).unwrap();
        if runtime.gil(&process).unwrap() != before {
            continue;
        }
        let mappings = process.mappings().unwrap();
        let limits = Limits::default();
        let recorder = Recorder::new(&process, usize::MAX);
        let runtime = Runtime::locate(&recorder, &mappings, &process).unwrap();
        let _ = stacks(&recorder, &runtime, &threads, locals, &limits);
        let _ = tasks(&recorder, &runtime, &threads, &limits);
        let _ = runtime.gil(&recorder);
        let _ = remote_exec::support(&recorder, &runtime, &threads);
        assert!(guard.holds());
        return Image::new(mappings, threads, &process, recorder.into_touched());
    }
}
