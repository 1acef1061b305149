//! What a script sees of the program, and what is seen of the script.

use serde_json::json;

use super::{BUSY, VERSIONS, answer, assert_same, inventory, program, value};

#[test]
fn names_of_a_script_do_not_hold_the_program() {
    for python in VERSIONS {
        // A function that stays in the program keeps the names of its script, but not the frames of the program.
        let target = program(
            python,
            "import weakref\nclass Big: pass\ndef work():\n    big = Big()\n    seen.append(weakref.ref(big))\n    while not done: pass\nseen, done, kept = [], [], []\nprint('ready', flush=True)\nwork()\nprint(seen[0]() is None, flush=True)\nwhile True: pass",
        );
        value(
            &target,
            "here = frame\nwhile frame.f_code.co_name != 'work': frame = frame.f_back\ng = frame.f_globals\ndef stays(): return sorted(k for k in globals() if not k.startswith('__'))\ng['kept'].append(stays)\ndel here\n0",
        );
        assert_eq!(
            value(
                &target,
                "frame.f_globals['done'].append(1)\nframe.f_globals['kept'][0]()"
            ),
            "['g', 'stays']"
        );
        assert_eq!(target.line(), "True");
    }
}

#[test]
fn a_traceback_has_the_lines_of_the_script() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        for (script, ending) in [
            (
                "class C:\n    def method(self):\n        return (lambda: [x for x in self.each()])()\n    def each(self):\n        yield 1\n        raise KeyError('é')\nC().method()",
                "  File \"<sidewinder>\", line 7, in <module>\n    C().method()\n  File \"<sidewinder>\", line 3, in C.method\n    return (lambda: [x for x in self.each()])()\n  \
                 File \"<sidewinder>\", line 3, in C.method.<locals>.<lambda>\n    return (lambda: [x for x in self.each()])()\n  File \"<sidewinder>\", line 6, in C.each\n    raise KeyError('é')\nKeyError: 'é'\n",
            ),
            (
                "code = 'def f():\\n    1 / 0\\nf()'\nexec(code)",
                "  File \"<sidewinder>\", line 2, in <module>\n    exec(code)\n  File \"<string>\", line 3, in <module>\n  File \"<string>\", line 2, in f\nZeroDivisionError: division by zero\n",
            ),
            (
                "class C:\n    x = undefined",
                "line 1, in <module>\n    class C:\n  File \"<sidewinder>\", line 2, in C\n    x = undefined\nNameError: name 'undefined' is not defined\n",
            ),
            (
                "import json\njson.loads('{')",
                "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)\n",
            ),
            (
                "def f(n): f(n)\nf(1)",
                "RecursionError: maximum recursion depth exceeded\n",
            ),
            ("x = [0] * 10**15", "    x = [0] * 10**15\nMemoryError\n"),
            (
                "e = ValueError('a')\ne.add_note('b')\nraise e",
                "ValueError: a\nb\n",
            ),
            (
                "raise ExceptionGroup('g', [ValueError(1), KeyError(2)])",
                "  | KeyError: 2\n",
            ),
            (
                "class E(Exception):\n    def __str__(self): 1 / 0\nraise E",
                "__main__.E: <str() raised ZeroDivisionError>\n",
            ),
            (
                "class E(Exception):\n    __notes__ = property(lambda self: 1 / 0)\nraise E(1)",
                "[its traceback could not be made: ZeroDivisionError]\n",
            ),
            (
                "if True:\n    x = 1\n  y = 2",
                "IndentationError: unindent does not match any outer indentation level\n",
            ),
            (
                "def f():\n    await x",
                "    await x\n    ^^^^^^^\nSyntaxError: 'await' outside async function\n",
            ),
            ("return 1", "SyntaxError: 'return' outside function\n"),
        ] {
            let (code, answer) = target.exec(script, &[]);
            let shown = answer["exception"]["traceback"]
                .as_str()
                .unwrap_or_else(|| panic!("{script}: {answer:#}"));
            assert_eq!(code, 1);
            assert!(shown.ends_with(ending), "{script}: {shown}");
            assert!(!shown.contains("wrapper>"), "{shown}");
            assert!(shown.matches("File ").count() <= 200, "{shown}");
        }
        // The application's functions have theirs, from its files.
        let shown = target.exec("import json\njson.loads('{')", &[]).1["exception"]["traceback"]
            .to_string();
        assert!(
            shown.contains("in JSONDecoder.raw_decode\\n    obj, end = self.scan_once(s, idx)"),
            "{shown}"
        );
        assert_eq!(
            value(
                &target,
                "import inspect, json\ninspect.getsource(json.loads).splitlines()[0][:9], inspect.getfile(lambda: 0)"
            ),
            "('def loads', '<sidewinder>')",
        );
    }
}

#[test]
fn imports_stay_and_are_listed() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        let before = inventory(&target);
        let answer = answer(
            &target,
            "import colorsys, html.entities\ncolorsys.__name__",
            &[],
        );
        assert_eq!(
            answer["imported"],
            json!(["colorsys", "html", "html.entities"]),
            "{answer:#}"
        );
        assert_eq!(
            value(&target, "import sys\n'colorsys' in sys.modules"),
            "True"
        );
        assert_same(&target, &before, &["modules", "importers"], "");
        // A module that could not be imported, and one that is taken out again.
        let (_, answer) = target.exec(
            "import cmd, sys\ndel sys.modules['cmd']\nimport no_such_module",
            &[],
        );
        assert_eq!(
            (&answer["imported"], &answer["exception"]["type"]),
            (&json!([]), &json!("ModuleNotFoundError")),
            "{answer:#}"
        );
    }
}

#[test]
fn what_is_captured_and_what_is_not() {
    for python in VERSIONS {
        let target = program(
            python,
            "import logging\nlogging.basicConfig(stream=sys.stdout, format='log %(message)s', level=0)\nprint('ready', flush=True)\nwhile True: pass",
        );
        let before = inventory(&target);
        let answer = answer(
            &target,
            "import logging, os, sys, threading, traceback, warnings\n\
             print('printed', end='')\nsys.stdout.write(' written\\n')\nsys.stdout.buffer.write(b'bytes \\xff\\n')\nprint('ué', '\\ud800')\n\
             print('error', file=sys.stderr)\nwarnings.warn('careful')\n\
             try: 1 / 0\nexcept Exception: traceback.print_exc()\n\
             isinstance(sys.stdout, __import__('io').TextIOBase), sys.stdout.encoding, sys.stdout.isatty()",
            &[],
        );
        assert_eq!(
            answer["stdout"], "printed written\nbytes \u{fffd}\nué \\ud800\n",
            "{answer:#}"
        );
        let stderr = answer["stderr"].as_str().unwrap();
        assert!(
            stderr.starts_with("error\n<sidewinder>:7: UserWarning: careful\n"),
            "{stderr}"
        );
        assert!(
            stderr.ends_with("ZeroDivisionError: division by zero\n"),
            "{stderr}"
        );
        assert_eq!(answer["value"], "(True, 'utf-8', False)");
        // What goes past sys.stdout is the application's, and so is what comes later.
        let answer = super::answer(
            &target,
            "import logging, os, sys, threading\n\
             logging.warning('logged')\nos.write(1, b'descriptor\\n')\nsys.__stdout__.write('original\\n')\nsys.__stdout__.flush()\n\
             t = threading.Thread(target=print, args=('thread',), kwargs={'flush': True})\nt.start()\nt.join()\n\
             import builtins\nbuiltins.kept = sys.stdout, sys.stdout.buffer\nprint('mine')",
            &[],
        );
        assert_eq!(answer["stdout"], "mine\n", "{answer:#}");
        for line in ["log logged", "descriptor", "original", "thread"] {
            assert_eq!(target.line(), line);
        }
        // A stream that somebody kept passes everything through when its script has ended.
        let answer = super::answer(
            &target,
            "import builtins\nbuiltins.kept[0].write('kept\\n')\nbuiltins.kept[0].flush()\nbuiltins.kept[1].write(b'kept bytes\\n')\nbuiltins.kept[1].original.flush()\ndel builtins.kept\n0",
            &[],
        );
        assert_eq!(answer["stdout"], "", "{answer:#}");
        assert_eq!(
            (target.line(), target.line()),
            ("kept".to_owned(), "kept bytes".to_owned())
        );
        assert_same(&target, &before, &["modules", "importers"], "");
    }
}

#[test]
fn what_a_script_leaves_to_nobody_goes_with_it() {
    for python in VERSIONS {
        let target = program(
            python,
            "gc.disable()\nprint('ready', flush=True)\nwhile True: pass",
        );
        // Its output is the script's, also where functions and their names are a circle.
        let answer = answer(
            &target,
            "class Left:\n    def __del__(self, print=print): print('gone')\ndef f(): return g()\ndef g(): return 1\n\
             import builtins\nbuiltins.kind = Left\ndel Left\nleft = builtins.kind()\nf()",
            &[],
        );
        assert_eq!(
            answer["stdout"], "",
            "a class of the script knows its names: {answer:#}"
        );
        let answer = super::answer(
            &target,
            "import builtins\nkind = builtins.kind\ndel builtins.kind\ndef f(): return g()\ndef g(): return 1\nleft = kind()\ndel kind\nf()",
            &[],
        );
        assert_eq!(answer["stdout"], "gone\n", "{answer:#}");
        // A function that somebody keeps has all of its names.
        value(
            &target,
            "import builtins\ndef f(): return g()\ndef g(): return 7\nbuiltins.kept = f\n0",
        );
        assert_eq!(
            value(
                &target,
                "import builtins\nkept = builtins.kept\ndel builtins.kept\nkept()"
            ),
            "7"
        );
        value(
            &target,
            "import builtins\nx = 8\ndef f():\n    yield\n    yield x\nbuiltins.kept = f()\nnext(builtins.kept)\n0",
        );
        assert_eq!(
            value(
                &target,
                "import builtins\nkept = builtins.kept\ndel builtins.kept\nnext(kept)"
            ),
            "8"
        );
    }
}

#[test]
fn values_as_text_and_as_json() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        for (script, text, json) in [
            ("None", "None", Some("null")),
            ("x = 1", "", None),
            ("[]", "[]", Some("[]")),
            ("{}", "{}", Some("{}")),
            (
                "({'a': [1, 2.5, None, True, 'é\"\\n\\x00']},)",
                "({'a': [1, 2.5, None, True, 'é\"\\n\\x00']},)",
                Some("[{\"a\": [1, 2.5, null, true, \"é\\\"\\n\\u0000\"]}]"),
            ),
            ("{1: 2}", "{1: 2}", None),
            ("float('nan')", "nan", None),
            (
                "10**30",
                "1000000000000000000000000000000",
                Some("1000000000000000000000000000000"),
            ),
            ("'\\ud800'", "'\\ud800'", Some("\"\\ud800\"")),
            ("{1}", "{1}", None),
            ("a = []\na.append(a)\na", "[[...]]", None),
            (
                "class C:\n    def __repr__(self): 1 / 0\nC()",
                "<__main__.C object whose repr() raised ZeroDivisionError>",
                None,
            ),
            ("class L(list): pass\nL()", "[]", None),
            ("x = 5\nx if x else 0;", "5", Some("5")),
        ] {
            let answer = answer(&target, script, &[]);
            assert_eq!(
                answer["value"].as_str().unwrap_or_default(),
                text,
                "{script}"
            );
            assert_eq!(answer["valueJSON"].as_str(), json, "{script}");
            if let Some(json) = json.filter(|json| !json.contains("ud800")) {
                serde_json::from_str::<serde_json::Value>(json).unwrap();
            }
        }
    }
}
