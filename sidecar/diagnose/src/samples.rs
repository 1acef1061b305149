//! Snapshots for this crate's tests.

use sidewinder_model::{
    Frame, Id, Interpreter, Local, Loop, Stacks, Syscall, Task, TaskState, Tasks, Thread,
    ThreadState, WaitingFor, WaitingGroup,
};

pub(crate) fn frame(function: &str, file: &str, line: i64) -> Frame {
    Frame {
        function: function.into(),
        file: file.into(),
        line: Some(line),
        locals: None,
    }
}

pub(crate) fn stacks() -> Stacks {
    let main = Thread {
        tid: 7,
        ident: "0x1".into(),
        name: "MainThread".into(),
        main: true,
        holds_gil: Some(false),
        state: ThreadState::Blocked,
        syscall: Some(Syscall {
            name: "futex".into(),
            detail: None,
        }),
        frames: vec![
            frame("consume", "/app/app.py", 12),
            frame("Condition.wait", "/usr/lib/python3.14/threading.py", 373),
        ],
        ..Thread::default()
    };
    let mut spin = frame("spin", "/app/app.py", 20);
    spin.locals = Some(vec![Local {
        name: "n".into(),
        type_name: "int".into(),
        value: Some("3".into()),
    }]);
    let worker = Thread {
        tid: 9,
        ident: "0x2".into(),
        name: "worker\u{1b}".into(),
        holds_gil: Some(true),
        state: ThreadState::Running,
        frames: vec![spin],
        ..Thread::default()
    };
    Stacks {
        python: "3.14.8".into(),
        interpreters: vec![Interpreter {
            id: 0,
            threads: vec![main, worker],
            ..Interpreter::default()
        }],
        paused_microseconds: 80,
        ..Stacks::default()
    }
}

pub(crate) fn tasks() -> Tasks {
    let future = WaitingFor {
        kind: "Future".into(),
        id: Id(0x99),
        detail: Some("2 waiters".into()),
        ..WaitingFor::default()
    };
    let task = |id: u64, name: &str| Task {
        id: Id(id),
        name: name.into(),
        loop_id: Some(Id(0x10)),
        tid: Some(7),
        ..Task::default()
    };
    let worker = || [frame("worker", "/app/app.py", 5)].into();
    Tasks {
        loops: vec![Loop {
            id: Id(0x10),
            tid: Some(7),
            interpreter: 0,
            running: true,
        }],
        tasks: vec![
            Task {
                state: TaskState::Running,
                coroutine: [frame("boss", "/app/app.py", 30)].into(),
                ..task(1, "boss")
            },
            Task {
                coroutine: worker(),
                awaited_by: vec![Id(1), Id(4)],
                waiting_for: Some(future.clone()),
                ..task(2, "shared")
            },
            Task {
                coroutine: worker(),
                awaited_by: vec![Id(1)],
                waiting_for: Some(future),
                ..task(3, "lone")
            },
            Task {
                waiting_for: Some(WaitingFor {
                    kind: "Task".into(),
                    id: Id(2),
                    detail: Some("shared".into()),
                    ..WaitingFor::default()
                }),
                ..task(4, "other")
            },
        ],
        groups: vec![WaitingGroup {
            kind: "Future".into(),
            id: Id(0x99),
            detail: Some("2 waiters".into()),
            tasks: vec![Id(2), Id(3)],
        }],
        ..Tasks::default()
    }
}
