//! Signals that come while a script runs: what their handlers raise is the script's, and the application has them again.

use serde_json::json;

use super::{VERSIONS, program};

#[test]
fn what_a_handler_raises_in_a_script_is_given_back() {
    let handlers = "
class Handlers:
    def method(self, number, frame): self.raise_it(number)
    def raise_it(self, number): raise SystemExit(number)
    def __call__(self, *args): raise TimeoutError(args[0])
    @staticmethod
    def static(number, frame): raise RuntimeError(number)
import functools
def named(prefix, number, frame): raise KeyError(prefix, number)
handlers = Handlers()
signal.signal(signal.SIGTERM, handlers.method)
signal.signal(signal.SIGHUP, handlers.method)
signal.signal(signal.SIGALRM, handlers)
signal.signal(signal.SIGUSR2, Handlers.static)
signal.signal(signal.SIGRTMIN + 3, functools.partial(named, 'of the application'))
def quiet(number, frame): print('seen', number, flush=True)
signal.signal(signal.SIGCONT, quiet)
print('ready', flush=True)
while True:
    try:
        while True: pass
    except BaseException as error: print(type(error).__name__, error.args, flush=True)
";
    for python in VERSIONS {
        let target = program(python, handlers);
        for (name, number, kind, line) in [
            ("SIGTERM", "15", "SystemExit", "SystemExit (15,)"),
            ("SIGHUP", "1", "SystemExit", "SystemExit (1,)"),
            ("SIGALRM", "14", "TimeoutError", "TimeoutError (14,)"),
            ("SIGUSR2", "12", "RuntimeError", "RuntimeError (12,)"),
            (
                "SIGRTMIN+3",
                "37",
                "KeyError",
                "KeyError ('of the application', 37)",
            ),
            ("SIGINT", "2", "KeyboardInterrupt", "KeyboardInterrupt ()"),
        ] {
            for script in [
                "import os, time\nos.kill(os.getpid(), N)\ntime.sleep(10)",
                "import os, time\nos.kill(os.getpid(), N)\nwhile True: pass",
                // It does not stop at the first exception.
                "import os\ndef f():\n    try:\n        os.kill(os.getpid(), N)\n        while True: pass\n    finally: g()\ndef g(): pass\nf()",
            ] {
                let (code, answer) = target.exec(&script.replace('N', number), &[]);
                assert_eq!(
                    (code, &answer["reason"]),
                    (1, &json!("ScriptError")),
                    "{script}: {answer:#}"
                );
                assert_eq!(answer["signals"], json!([name]), "{script}: {answer:#}");
                assert_eq!(answer["exception"]["type"], kind, "{answer:#}");
                assert_eq!(answer["stderr"], "");
                assert_eq!(target.line(), line);
            }
            // An exception of the script's own for it: the signal is consumed all the same.
            let script = format!(
                "import os\ntry:\n    os.kill(os.getpid(), {number})\n    while True: pass\nexcept BaseException as error:\n    raise ValueError from error"
            );
            let (_, answer) = target.exec(&script, &[]);
            assert_eq!(
                (&answer["signals"], &answer["exception"]["type"]),
                (&json!([name]), &json!("ValueError")),
                "{answer:#}"
            );
            assert_eq!(target.line(), line);
        }
        for (script, stdout) in [
            // A handler that does not raise has done its work.
            (
                "import os, time\nos.kill(os.getpid(), 18)\ntime.sleep(0.01)\nraise ValueError",
                "seen 18\n",
            ),
            // Raised by the script itself, by calling a handler or otherwise.
            ("import signal\nsignal.getsignal(15)(15, None)", ""),
            ("raise KeyboardInterrupt", ""),
            (
                "def f():\n    raise KeyboardInterrupt('x')\ntry: f()\nfinally: pass",
                "",
            ),
            (
                "def g():\n    yield\ng = g()\nnext(g)\ng.throw(KeyboardInterrupt)",
                "",
            ),
        ] {
            let (code, answer) = target.exec(script, &[]);
            assert_eq!(
                (code, &answer["signals"]),
                (1, &json!([])),
                "{script}: {answer:#}"
            );
            // A handler that runs in the script's place prints into its output.
            assert_eq!(answer["stdout"], stdout, "{answer:#}");
        }
    }
}

#[test]
fn a_signal_whose_handler_the_script_took_away_is_said_and_kills_nobody() {
    for python in VERSIONS {
        let target = program(
            python,
            "def raising(*_): raise SystemExit(7)\nsignal.signal(signal.SIGTERM, raising)\nprint('ready', flush=True)\nwhile True:\n    if signal.getsignal(signal.SIGTERM) is not raising: break\nprint('goes on', flush=True)\nwhile True: pass",
        );
        let (_, answer) = target.exec(
            "import os, signal, sys\nclass Late:\n    def __del__(self): signal.signal(15, signal.SIG_DFL)\nclass Failing(BaseException):\n    late = Late()\ntry:\n    os.kill(os.getpid(), 15)\n    while True: pass\nexcept SystemExit as error:\n    kept = error\n    signal.signal(15, signal.SIG_DFL)\nraise kept",
            &[],
        );
        // The handler is not the registered one any more, so it is nobody's signal.
        assert_eq!(answer["signals"], json!([]), "{answer:#}");
        assert_eq!(target.line(), "goes on");
    }
}

#[test]
fn a_signal_in_the_step_of_a_task() {
    for python in VERSIONS {
        let target = program(
            python,
            "import asyncio\nseen = []\ndef raising(number, frame):\n    print('signal', number, flush=True)\n    seen.append(number)\n    if len(seen) == 1: raise TimeoutError(number)\nsignal.signal(signal.SIGALRM, raising)\nasync def main():\n    print('ready', flush=True)\n    while True: await asyncio.sleep(0.001)\nasyncio.run(main())",
        );
        let (_, answer) = target.exec(
            "import asyncio, os\nawait asyncio.sleep(0)\nos.kill(os.getpid(), 14)\nwhile True: pass",
            &[],
        );
        assert_eq!(
            (&answer["exception"]["type"], &answer["signals"]),
            (&json!("TimeoutError"), &json!(["SIGALRM"])),
            "{answer:#}"
        );
        assert_eq!(
            (&answer["stdout"], target.line().as_str()),
            (&json!("signal 14\n"), "signal 14")
        );
    }
}
