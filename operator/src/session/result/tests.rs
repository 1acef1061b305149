//! What stands in a status, what is kept from it, and that it always fits.

use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sidewinder_crds::AttachedAs;
use sidewinder_model::{
    CurrentException, Data, ExecOutcome, Frame, Interpreter, Local, Outcome, ProcessList,
    ScriptException as Exception, Stacks, Tasks, Thread,
};

use super::*;
use crate::session::result::spill::{DOCUMENT_BYTES, PART_BYTES, Written, hex, json_bytes};
use crate::testing::session;

fn at() -> Timestamp {
    "2026-01-01T00:00:10.5Z".parse().unwrap()
}

fn known() -> TargetStatus {
    TargetStatus {
        pod_name: "web-0".into(),
        pod_uid: Some("pod-uid-1".into()),
        container: Some("app".into()),
        sidecar: Some("sidewinder-app-1".into()),
        agent: Some("instance-1".into()),
        phase: Some(Phase::Running),
        ..TargetStatus::default()
    }
}

fn target(reason: Reason) -> TargetOutcome {
    TargetOutcome {
        pid: Some(7),
        summary: format!("it ended: {reason}"),
        ..TargetOutcome::failed(reason, "")
    }
}

/// A session's end, and the whole outcomes that are to be stored, by the place of their entry.
struct Seen {
    status: DebugSessionStatus,
    documents: Vec<usize>,
    reason: Reason,
    complete: bool,
}

/// The end of a session whose only pod came to `end`, as it would be written.
fn seen(
    session: &DebugSession,
    end: End,
    known: &TargetStatus,
    sensitive: Sensitive,
    elapsed: Duration,
) -> Seen {
    let mut pods = [PodEnd::new(session, end, known, String::new(), sensitive)];
    let finished = finish(session, &pods, elapsed, at());
    let mut entries: Vec<_> = pods.iter_mut().flat_map(|pod| &mut pod.entries).collect();
    fit(&finished.status, &mut entries);
    let mut documents = Vec::new();
    for (place, entry) in entries.iter_mut().enumerate() {
        if entry.to_store {
            documents.push(place);
            let (_, part) = spill::part(session, 0, vec![0]);
            let written = Written {
                size: 1 << 24,
                sha256: "0".repeat(64),
                truncated: false,
            };
            entry.status.result = Some(spill::reference(written, vec![part]));
        }
    }
    let (reason, complete) = (finished.reason, finished.complete);
    Seen {
        status: seal(finished.status, &pods, session.metadata.generation, at()),
        documents,
        reason,
        complete,
    }
}

fn ended(spec: Value, targets: Vec<TargetOutcome>, sensitive: Sensitive) -> Seen {
    let end = End {
        reason: Reason::InternalError,
        message: String::new(),
        outcome: Some(
            Outcome {
                id: "5e55-1".into(),
                instance: "instance-1".into(),
                targets,
            }
            .into(),
        ),
        maybe_armed: false,
    };
    seen(
        &session(spec),
        end,
        &known(),
        sensitive,
        Duration::from_millis(42),
    )
}

fn stacks() -> Value {
    json!({"stacks": {}})
}

fn exec() -> Value {
    json!({"remoteExec": {"script": "print(1)"}})
}

fn ran(stdout: &str) -> TargetOutcome {
    TargetOutcome {
        text: stdout.into(),
        disarmed: Some(true),
        data: Some(Data::Exec(Box::new(ExecOutcome {
            stdout: stdout.into(),
            value: Some("'secret value'".into()),
            value_json: Some("\"secret value\"".into()),
            duration_milliseconds: 12,
            disarmed: true,
            ..ExecOutcome::default()
        }))),
        ..target(Reason::Succeeded)
    }
}

/// What is stored of an outcome: its parts, and their JSON.
fn stored(outcome: &TargetOutcome, limit: usize) -> (Written, Vec<Vec<u8>>, Vec<u8>) {
    let mut parts = Vec::new();
    let written = spill::write(outcome, limit, |part| {
        parts.push(part);
        Ok(())
    })
    .unwrap();
    let json = zstd::stream::decode_all(parts.concat().as_slice()).unwrap();
    assert_eq!(written.sha256, hex(&Sha256::digest(&json)));
    assert_eq!(written.size, json.len() as u64);
    assert!(parts.iter().all(|part| part.len() <= PART_BYTES));
    (written, parts, json)
}

fn condition<'a>(finished: &'a Seen, name: &str) -> (&'a str, &'a str) {
    let found = conditions::find(&finished.status.conditions, name)
        .unwrap_or_else(|| panic!("no condition {name}"));
    (found.status.as_str(), found.reason.as_str())
}

#[test]
fn a_read_only_answer_stands_in_the_status() {
    let mut answer = target(Reason::Succeeded);
    answer.text = "Thread 7".into();
    answer.data = Some(Data::Processes(ProcessList::default()));
    answer.paused_microseconds = 800;
    let finished = ended(stacks(), vec![answer], Sensitive::Secret);
    let status = &finished.status;
    assert!(finished.documents.is_empty());
    assert_eq!(condition(&finished, "Accepted"), ("True", "Accepted"));
    assert_eq!(condition(&finished, "Attached"), ("True", "Attached"));
    assert_eq!(condition(&finished, "ResultStored"), ("True", "Inline"));
    assert_eq!(condition(&finished, "Complete"), ("True", "Succeeded"));
    assert_eq!(condition(&finished, "Failed"), ("False", "Succeeded"));
    assert!(conditions::find(&status.conditions, "Disarmed").is_none());
    assert_eq!(status.phase, Some(Phase::Succeeded));
    assert_eq!(status.pods.as_deref(), Some("1/1"));
    assert_eq!(status.duration.as_deref(), Some("42ms"));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.summary.as_deref(), Some("it ended: Succeeded"));
    let [target] = status.targets.as_slice() else {
        panic!("{:?}", status.targets)
    };
    assert_eq!(target.text.as_deref(), Some("Thread 7"));
    assert_eq!(target.data, Some(json!({"processes": [], "problems": []})));
    assert_eq!(target.paused_microseconds, Some(800));
    assert_eq!(target.sidecar.as_deref(), Some("sidewinder-app-1"));
    assert_eq!(target.disarmed, None);
}

#[test]
fn what_a_script_said_is_nowhere_but_in_the_secret() {
    let finished = ended(exec(), vec![ran("secret line\n")], Sensitive::Secret);
    let text = serde_json::to_string(&finished.status).unwrap();
    assert!(
        !text.contains("secret line") && !text.contains("secret value"),
        "{text}"
    );
    let target = &finished.status.targets[0];
    assert_eq!(target.clipped["exec.stdout"], 12);
    assert_eq!(target.clipped["exec.value"], 14);
    assert_eq!(condition(&finished, "ResultStored"), ("True", "Stored"));
    assert_eq!(condition(&finished, "Disarmed"), ("True", "Disarmed"));
    assert_eq!(finished.documents, [0]);
    let (_, _, json) = stored(&ran("secret line\n"), DOCUMENT_BYTES);
    let whole: TargetOutcome = serde_json::from_slice(&json).unwrap();
    assert_eq!(whole, ran("secret line\n"));
    assert!(!finished.status.summary.unwrap().is_empty());
}

#[test]
fn where_a_blocked_target_stands_is_no_secret_since_no_script_spoke() {
    let mut answer = target(Reason::TargetBlocked);
    answer.text = "Thread 7 is blocked".into();
    answer.disarmed = Some(true);
    answer.data = Some(Data::Exec(Box::new(ExecOutcome {
        disarmed: true,
        ..ExecOutcome::default()
    })));
    let finished = ended(exec(), vec![answer], Sensitive::Secret);
    let target = &finished.status.targets[0];
    assert_eq!(target.text.as_deref(), Some("Thread 7 is blocked"));
    assert_eq!(condition(&finished, "Disarmed"), ("True", "Disarmed"));
}

#[test]
fn an_expression_that_is_none_is_no_value_to_look_for() {
    let mut answer = ran("x\n");
    if let Some(Data::Exec(exec)) = &mut answer.data {
        exec.value = Some("None".into());
    }
    let finished = ended(exec(), vec![answer], Sensitive::Secret);
    assert_eq!(
        finished.status.summary.as_deref(),
        Some("the script ended after 12ms; 2 bytes of output are in the result's Secret")
    );
}

#[test]
fn an_exceptions_words_are_kept_back_and_its_type_is_not() {
    let mut raised = ran("");
    raised.reason = Reason::ScriptError;
    raised.message = "ValueError: secret line".into();
    if let Some(Data::Exec(exec)) = &mut raised.data {
        exec.exception = Some(Exception {
            type_name: "ValueError".into(),
            message: "secret line".into(),
            traceback: "… secret line".into(),
        });
    }
    let finished = ended(exec(), vec![raised], Sensitive::Secret);
    let text = serde_json::to_string(&finished.status).unwrap();
    assert!(!text.contains("secret line"), "{text}");
    assert!(finished.status.summary.unwrap().contains("ValueError"));
    assert!(finished.complete);
}

#[test]
fn with_the_setting_output_stands_in_the_status() {
    let finished = ended(exec(), vec![ran("a line\n")], Sensitive::Status);
    let target = &finished.status.targets[0];
    let exec = target.exec.as_ref().unwrap();
    assert_eq!(exec.stdout.as_deref(), Some("a line\n"));
    assert_eq!(exec.value.as_deref(), Some("'secret value'"));
    assert!(finished.documents.is_empty());
    assert!(target.clipped.is_empty());
}

#[test]
fn values_of_locals_are_left_out_and_their_names_are_not() {
    let mut answer = target(Reason::Succeeded);
    answer.text = "x = 'secret line'".into();
    answer.data = Some(Data::Stacks(Stacks {
        interpreters: vec![Interpreter {
            threads: vec![Thread {
                frames: vec![Frame {
                    locals: Some(vec![Local {
                        name: "password".into(),
                        type_name: "str".into(),
                        value: Some("secret line".into()),
                    }]),
                    ..Frame::default()
                }],
                ..Thread::default()
            }],
            ..Interpreter::default()
        }],
        ..Stacks::default()
    }));
    let spec = json!({"stacks": {"locals": "Values"}});
    let finished = ended(spec.clone(), vec![answer.clone()], Sensitive::Secret);
    let text = serde_json::to_string(&finished.status).unwrap();
    assert!(
        text.contains("password") && !text.contains("secret line"),
        "{text}"
    );
    assert_eq!(finished.documents.len(), 1);
    assert_eq!(condition(&finished, "Disarmed"), ("True", "NotArmed"));
    let finished = ended(spec, vec![answer], Sensitive::Status);
    assert!(
        serde_json::to_string(&finished.status)
            .unwrap()
            .contains("secret line")
    );
    assert!(finished.documents.is_empty());
}

#[test]
fn several_processes_share_one_verdict() {
    use Reason::{
        NoPythonProcess, PartiallyFailed, ScriptError, Succeeded, TargetBlocked, TargetExited,
    };
    for (reasons, reason, complete) in [
        (vec![Succeeded, Succeeded], Succeeded, true),
        (vec![Succeeded, ScriptError], ScriptError, true),
        (vec![Succeeded, TargetExited], PartiallyFailed, true),
        (vec![TargetBlocked, TargetBlocked], TargetBlocked, false),
        (vec![TargetBlocked, TargetExited], PartiallyFailed, false),
        (vec![NoPythonProcess], NoPythonProcess, false),
    ] {
        let targets = reasons.iter().map(|reason| target(*reason)).collect();
        let finished = ended(stacks(), targets, Sensitive::Secret);
        assert_eq!(
            (finished.reason, finished.complete),
            (reason, complete),
            "{reasons:?}"
        );
        let (yes, no) = if complete {
            ("Complete", "Failed")
        } else {
            ("Failed", "Complete")
        };
        assert_eq!(condition(&finished, yes), ("True", reason.as_str()));
        assert_eq!(condition(&finished, no), ("False", reason.as_str()));
        let phase = if complete {
            Phase::Succeeded
        } else {
            Phase::Failed
        };
        assert_eq!(finished.status.phase, Some(phase));
    }
}

#[test]
fn a_script_that_went_with_its_target_is_not_said_never_to_have_been_armed() {
    let given = TargetStatus {
        container: Some("app".into()),
        container_id: Some("containerd://c1".into()),
        sidecar: Some("sidewinder-app-1".into()),
        attach: Some(AttachedAs::Ptrace),
        agent: Some("i1".into()),
        phase: Some(Phase::Running),
        ..known()
    };
    let not_given = TargetStatus {
        agent: None,
        ..given.clone()
    };
    for (known, reason, maybe_armed, claim) in [
        (&given, Reason::TargetRestarted, false, "Disarmed"),
        (&given, Reason::TargetExited, false, "Disarmed"),
        (&given, Reason::TargetExited, true, "StillArmed"),
        (&given, Reason::QueueFull, false, "NotArmed"),
        (&not_given, Reason::Cancelled, false, "NotArmed"),
    ] {
        let end = End {
            reason,
            message: "gone".into(),
            outcome: None,
            maybe_armed,
        };
        let finished = seen(
            &session(exec()),
            end,
            known,
            Sensitive::Secret,
            Duration::from_secs(1),
        );
        assert_eq!(condition(&finished, "Disarmed").1, claim, "{reason}");
    }
}

#[test]
fn a_session_that_never_got_in_says_why() {
    for (reason, accepted, phase) in [
        (Reason::PodNotFound, "False", Phase::Failed),
        (Reason::ImagePullFailed, "True", Phase::Failed),
        (Reason::Cancelled, "True", Phase::Cancelled),
    ] {
        let end = End {
            reason,
            message: "a sentence\nwith a line".into(),
            outcome: None,
            maybe_armed: false,
        };
        let finished = seen(
            &session(exec()),
            end,
            &TargetStatus::default(),
            Sensitive::Secret,
            Duration::from_secs(75),
        );
        assert_eq!(condition(&finished, "Accepted").0, accepted);
        assert_eq!(condition(&finished, "Attached"), ("False", reason.as_str()));
        assert_eq!(condition(&finished, "Failed"), ("True", reason.as_str()));
        assert_eq!(condition(&finished, "Disarmed"), ("True", "NotArmed"));
        assert!(conditions::find(&finished.status.conditions, "ResultStored").is_none());
        assert_eq!(finished.status.phase, Some(phase));
        assert_eq!(
            finished.status.summary.as_deref(),
            Some("a sentence with a line")
        );
        assert_eq!(finished.status.duration.as_deref(), Some("1m15s"));
        assert_eq!(finished.status.pods.as_deref(), Some("0/0"));
    }
}

#[test]
fn nobody_claims_that_nothing_is_armed_when_nobody_knows() {
    let end = End {
        reason: Reason::SidecarLost,
        message: "gone".into(),
        outcome: None,
        maybe_armed: true,
    };
    let finished = seen(
        &session(exec()),
        end,
        &known(),
        Sensitive::Secret,
        Duration::ZERO,
    );
    assert_eq!(condition(&finished, "Disarmed"), ("False", "StillArmed"));
    assert_eq!(
        finished.status.targets[0].disarmed,
        Some(DisarmState::StillArmed)
    );
}

#[test]
fn an_outcome_that_the_agent_dropped_says_nothing_about_what_is_armed() {
    for (reason, said, state) in [
        (Reason::SidecarLost, None, "StillArmed"),
        (Reason::SidecarLost, Some(true), "Disarmed"),
        (Reason::QueueFull, None, "NotArmed"),
    ] {
        let one = TargetOutcome {
            disarmed: said,
            data: None,
            ..target(reason)
        };
        let seen = ended(exec(), vec![one], Sensitive::Secret);
        let (_, found) = condition(&seen, "Disarmed");
        assert_eq!(found, state, "{reason}");
        let condition = conditions::find(&seen.status.conditions, "Disarmed").unwrap();
        let unknown = condition.message.contains("could not be confirmed");
        assert_eq!(unknown, state == "StillArmed");
    }
}

#[test]
fn long_fields_are_cut_and_large_data_is_left_out() {
    let mut answer = target(Reason::Succeeded);
    answer.text = "€".repeat(20_000);
    answer.data = Some(Data::Processes(ProcessList {
        problems: vec!["p".repeat(20_000)],
        ..ProcessList::default()
    }));
    let finished = ended(stacks(), vec![answer], Sensitive::Secret);
    let target = &finished.status.targets[0];
    assert!(target.text.as_ref().unwrap().len() <= FIELD_BYTES);
    assert_eq!(target.clipped["text"], 60_000);
    assert_eq!(target.data, None);
    assert!(target.clipped["data"] > 20_000);
    assert_eq!(finished.documents.len(), 1);
}

#[test]
fn a_full_status_loses_the_data_of_later_targets_first_and_then_their_text() {
    let answers: Vec<_> = (0..40)
        .map(|pid| TargetOutcome {
            pid: Some(pid),
            text: "t".repeat(9000),
            data: Some(Data::Processes(ProcessList {
                problems: vec!["p".repeat(9000)],
                ..ProcessList::default()
            })),
            ..target(Reason::Succeeded)
        })
        .collect();
    let finished = ended(stacks(), answers, Sensitive::Secret);
    assert!(json_bytes(&finished.status) <= STATUS_BYTES);
    let targets = &finished.status.targets;
    assert_eq!(targets.len(), 40);
    assert!(targets[0].text.is_some());
    assert!(targets[39].data.is_none() && targets[39].text.is_none());
    assert!(
        targets
            .iter()
            .all(|target| target.reason.is_some() && target.summary.is_some())
    );
    let first_without_text = targets
        .iter()
        .position(|target| target.text.is_none())
        .unwrap();
    assert!(
        targets[first_without_text..]
            .iter()
            .all(|target| target.text.is_none())
    );
    assert_eq!(condition(&finished, "ResultStored"), ("True", "Stored"));
    for (place, target) in targets.iter().enumerate() {
        let stored = finished.documents.contains(&place);
        assert_eq!(stored, !target.clipped.is_empty(), "target {place}");
    }
}

#[test]
fn a_document_comes_back_whole_from_its_secrets() {
    let mut state = 1_u64;
    // Text that hardly compresses, so that there are several parts.
    let noise: String = (0..2_000_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(b' ' + u8::try_from(state >> 58).unwrap())
        })
        .collect();
    let outcome = ran(&noise);
    let (written, parts, json) = stored(&outcome, DOCUMENT_BYTES);
    assert!(parts.len() > 1);
    assert!(!written.truncated);
    assert_eq!(json, serde_json::to_vec(&outcome).unwrap());
    let session = session(exec());
    let mut names = std::collections::BTreeSet::new();
    for (number, part) in parts.iter().enumerate() {
        let (secret, reference) = spill::part(&session, number, part.clone());
        let name = secret.metadata.name.clone().unwrap();
        assert_eq!(name, reference.secret_name);
        let digest = hex(&Sha256::digest(part));
        assert_eq!(name, format!("why-5e551-{}-{number}", &digest[..16]));
        assert_eq!(secret.type_.as_deref(), Some("sidewinder.dev/result"));
        assert_eq!(secret.immutable, Some(true));
        let owner = &secret.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(owner.uid, "5e55-1");
        assert_eq!(owner.block_owner_deletion, None);
        assert_eq!(&secret.data.as_ref().unwrap()[&reference.key].0, part);
        names.insert(name);
    }
    assert_eq!(names.len(), parts.len());
    // Stored twice is stored once.
    assert_eq!(stored(&outcome, DOCUMENT_BYTES).1, parts);
}

#[test]
fn a_secret_has_a_short_name_however_long_the_sessions_is() {
    let mut session = session(exec());
    session.metadata.name = Some(format!("{}.{}", "a".repeat(62), "b".repeat(180)));
    session.metadata.uid = Some("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0".into());
    let (secret, _) = spill::part(&session, 21, vec![1]);
    let name = secret.metadata.name.unwrap();
    assert!(
        name.starts_with(&format!("{}-0f1e2d3c-", "a".repeat(62))),
        "{name}"
    );
    assert!(name.len() < 100, "{name}");
}

#[test]
fn what_is_cut_is_written_in_the_shape_of_the_whole() {
    let mut answer = ran("line\n");
    if let Some(Data::Exec(exec)) = &mut answer.data {
        exec.watched = true;
        exec.thread = Some(7);
        exec.reason = Some(Reason::ScriptTimeout);
        exec.stacks = Some(Stacks::default());
        exec.imported = vec!["json".into()];
        exec.signals = vec!["SIGUSR1".into()];
        exec.started_after_milliseconds = Some(3);
        exec.clipped.insert("stdout".into(), 9);
        exec.exception = Some(Exception {
            type_name: "ValueError".into(),
            message: "no".into(),
            traceback: "Traceback".into(),
        });
    }
    let keys = |json: &[u8]| -> Value {
        fn shape(value: Value) -> Value {
            match value {
                Value::String(_) => json!("text"),
                Value::Object(map) => map
                    .into_iter()
                    .map(|(key, value)| (key, shape(value)))
                    .collect(),
                other => other,
            }
        }
        shape(serde_json::from_slice(json).unwrap())
    };
    let whole = stored(&answer, DOCUMENT_BYTES).2;
    let longer = |text: &mut String| *text = "z".repeat(200_000);
    longer(&mut answer.text);
    if let Some(Data::Exec(exec)) = &mut answer.data {
        longer(&mut exec.stderr);
    }
    let (written, _, cut) = stored(&answer, 128 * 1024);
    assert!(written.truncated);
    assert_eq!(keys(&cut), keys(&whole));
    let mut other = target(Reason::Succeeded);
    other.text = "z".repeat(200_000);
    other.data = Some(Data::Tasks(Tasks::default()));
    let (_, _, cut) = stored(&other, 128 * 1024);
    let read: TargetOutcome = serde_json::from_slice(&cut).unwrap();
    assert_eq!(read.data, other.data);
}

#[test]
fn output_that_fits_is_whole_although_the_text_repeats_it() {
    let output = "x".repeat(10 * 1024 * 1024);
    let (written, _, json) = stored(&ran(&output), DOCUMENT_BYTES);
    assert!(!written.truncated);
    let kept: TargetOutcome = serde_json::from_slice(&json).unwrap();
    let Some(Data::Exec(exec)) = kept.data else {
        panic!("the data is gone");
    };
    assert_eq!(exec.stdout, output);
}

#[test]
fn a_document_over_the_limit_is_cut_and_says_so() {
    let (written, _, json) = stored(&ran(&"\u{1}".repeat(20 * 1024 * 1024)), DOCUMENT_BYTES);
    assert!(written.truncated);
    assert!(json.len() <= DOCUMENT_BYTES);
    let kept: TargetOutcome = serde_json::from_slice(&json).unwrap();
    assert!(kept.text.contains("bytes left out"));
}

#[test]
fn a_document_over_the_limit_keeps_what_the_limit_holds() {
    const LIMIT: usize = 256 * 1024;
    for words in ["x", "\n", "\u{1}"] {
        let (written, _, json) = stored(&ran(&words.repeat(LIMIT + LIMIT / 4)), LIMIT);
        assert!(written.truncated);
        assert!(
            (LIMIT / 2..=LIMIT).contains(&json.len()),
            "{words:?}: {} bytes",
            json.len()
        );
    }
}

#[test]
fn a_document_that_is_no_text_leaves_the_text_when_it_is_too_large() {
    let mut answer = target(Reason::Succeeded);
    answer.text = "t".repeat(1000);
    answer.data = Some(Data::Processes(ProcessList {
        problems: vec!["p".repeat(100); 2000],
        ..ProcessList::default()
    }));
    let (written, _, json) = stored(&answer, spill::MIN_DOCUMENT_BYTES);
    assert!(written.truncated);
    let kept: TargetOutcome = serde_json::from_slice(&json).unwrap();
    assert_eq!((kept.data, kept.text), (None, answer.text));
}

#[test]
fn the_full_size_counts_what_the_agent_had_cut() {
    let mut answer = ran("what it kept");
    if let Some(Data::Exec(exec)) = &mut answer.data {
        exec.clipped.insert("stdout".into(), 20_000_001);
    }
    for sensitive in [Sensitive::Secret, Sensitive::Status] {
        let finished = ended(exec(), vec![answer.clone()], sensitive);
        let target = &finished.status.targets[0];
        assert_eq!(target.clipped["exec.stdout"], 20_000_001, "{sensitive:?}");
        assert_eq!(finished.documents.len(), 1);
    }
    let secret = ended(exec(), vec![answer], Sensitive::Secret);
    let summary = secret.status.summary.unwrap();
    assert!(summary.contains("20000001 bytes of output"), "{summary}");
}

#[test]
fn the_words_of_a_script_are_not_in_the_stacks_of_its_timeout() {
    let mut answer = ran("");
    answer.reason = Reason::ScriptTimeout;
    let Some(Data::Exec(exec_outcome)) = &mut answer.data else {
        panic!("no script")
    };
    exec_outcome.value = None;
    exec_outcome.value_json = None;
    exec_outcome.stacks = Some(Stacks {
        interpreters: vec![Interpreter {
            threads: vec![Thread {
                name: "MainThread".into(),
                exception: Some(CurrentException {
                    type_name: "ValueError".into(),
                    message: Some("secret line".into()),
                }),
                ..Thread::default()
            }],
            ..Interpreter::default()
        }],
        ..Stacks::default()
    });
    let finished = ended(exec(), vec![answer.clone()], Sensitive::Secret);
    let text = serde_json::to_string(&finished.status).unwrap();
    assert!(!text.contains("secret line"), "{text}");
    assert!(
        text.contains("MainThread") && text.contains("ValueError"),
        "{text}"
    );
    assert!(
        finished.status.targets[0]
            .clipped
            .contains_key("exec.stacks")
    );
    assert_eq!(finished.documents, [0]);
    let open = ended(exec(), vec![answer], Sensitive::Status);
    assert!(
        serde_json::to_string(&open.status)
            .unwrap()
            .contains("secret line")
    );
}

#[test]
fn no_field_of_a_script_tells_its_words() {
    const MARK: &str = "s3cr3t-w0rds";
    for reason in Reason::ALL
        .iter()
        .filter(|reason| **reason != Reason::TargetBlocked)
    {
        let mark = || MARK.to_owned();
        let complete = reason.is_complete();
        let mut answer = target(*reason);
        answer.text = mark();
        if complete {
            answer.summary = mark();
        }
        // The message of a success is the sidecar's; of a script that raised, and only of it, the exception's.
        if *reason == Reason::ScriptError {
            answer.message = mark();
        }
        answer.data = Some(Data::Exec(Box::new(ExecOutcome {
            stdout: mark(),
            stderr: mark(),
            value: Some(mark()),
            value_json: Some(mark()),
            exception: Some(Exception {
                type_name: "ValueError".into(),
                message: mark(),
                traceback: mark(),
            }),
            ..ExecOutcome::default()
        })));
        let hidden = ended(
            exec(),
            vec![answer.clone(), answer.clone()],
            Sensitive::Secret,
        );
        let text = serde_json::to_string(&hidden.status).unwrap();
        assert!(!text.contains(MARK), "{reason}: {text}");
        assert_eq!(hidden.documents, [0, 1]);
        assert!(
            stored(&answer, DOCUMENT_BYTES)
                .2
                .windows(MARK.len())
                .any(|window| window == MARK.as_bytes())
        );
        let open = ended(exec(), vec![answer], Sensitive::Status);
        let text = serde_json::to_string(&open.status).unwrap();
        assert!(text.contains(MARK), "{reason}: {text}");
    }
}

#[test]
fn a_large_answer_is_left_out_without_being_copied_and_its_size_is_that_of_all_of_it() {
    let mut answer = target(Reason::Succeeded);
    answer.data = Some(Data::Stacks(Stacks {
        interpreters: vec![Interpreter {
            threads: vec![Thread {
                frames: vec![Frame {
                    locals: Some(vec![Local {
                        name: "x".into(),
                        type_name: "str".into(),
                        value: Some("v".repeat(300_000)),
                    }]),
                    ..Frame::default()
                }],
                ..Thread::default()
            }],
            ..Interpreter::default()
        }],
        ..Stacks::default()
    }));
    let finished = ended(
        json!({"stacks": {"locals": "Values"}}),
        vec![answer],
        Sensitive::Secret,
    );
    let target = &finished.status.targets[0];
    assert_eq!(target.data, None);
    assert!(target.clipped["data"] > 300_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_an_agent_answers_the_status_fits_and_has_a_summary(
        targets in proptest::collection::vec(answer(), 1..12),
        copies in prop_oneof![Just(1_usize), Just(24)],
        code in any::<bool>(),
        sensitive in prop_oneof![Just(Sensitive::Secret), Just(Sensitive::Status)],
    ) {
        let answers: Vec<_> = targets
            .iter()
            .cycle()
            .take((targets.len() * copies).min(MAX_TARGETS))
            .cloned()
            .collect();
        let spec = if code { exec() } else { stacks() };
        let finished = ended(spec, answers.clone(), sensitive);
        let status = &finished.status;
        prop_assert!(json_bytes(status) <= STATUS_BYTES, "{}", json_bytes(status));
        prop_assert_eq!(status.targets.len(), answers.len());
        let line = |line: &Option<String>| {
            let line = line.as_deref().unwrap_or_default();
            !line.is_empty() && line.chars().count() <= MAX_SUMMARY_CHARS && !line.contains(char::is_control)
        };
        prop_assert!(line(&status.summary), "{:?}", status.summary);
        for (place, (target, answer)) in status.targets.iter().zip(&answers).enumerate() {
            prop_assert_eq!(target.reason.as_deref(), Some(answer.reason.as_str()));
            prop_assert!(target.summary.is_some());
            let exec = target.exec.as_ref();
            let whole = match &answer.data {
                Some(Data::Exec(exec)) => Some(exec),
                _ => None,
            };
            for (path, shown, said) in [
                ("text", &target.text, Some(answer.text.as_str())),
                ("exec.stdout", exec.map_or(&None, |exec| &exec.stdout), whole.map(|exec| exec.stdout.as_str())),
                ("exec.value", exec.map_or(&None, |exec| &exec.value), whole.and_then(|exec| exec.value.as_deref())),
            ] {
                let said = said.filter(|said| !said.is_empty());
                prop_assert!(shown.as_ref().is_none_or(|shown| shown.len() <= FIELD_BYTES));
                let cut = shown.as_deref() != said;
                prop_assert_eq!(cut, target.clipped.contains_key(path), "{} of {}", path, place);
                if cut {
                    prop_assert_eq!(target.clipped[path], i64::try_from(said.unwrap().len()).unwrap());
                }
            }
            prop_assert!(target.data.as_ref().is_none_or(|data| json_bytes(data) <= FIELD_BYTES));
            if let Some(exec) = exec {
                let names = whole.unwrap().imported.clone();
                prop_assert_eq!(exec.imported != names, target.clipped.contains_key("exec.imported"));
            }
            // Whatever is cut is in the whole, and what is whole needs none.
            prop_assert_eq!(target.clipped.is_empty(), target.result.is_none(), "{}", place);
        }
        // Of what an entry has lost for want of room every later one has lost it, too.
        if sensitive == Sensitive::Status {
            let lost = status.targets.iter().zip(&answers).map(|(target, answer)| {
                target.text.is_none() && !answer.text.is_empty()
            });
            let kept_after_lost = lost.zip(&answers).fold((false, false), |(lost_one, bad), (lost, answer)| {
                (lost_one || lost, bad || (lost_one && !lost && !answer.text.is_empty()))
            });
            prop_assert!(!kept_after_lost.1);
        }
    }

    #[test]
    fn what_is_stored_is_the_outcome(answer in answer(), limit in prop_oneof![Just(DOCUMENT_BYTES), Just(spill::MIN_DOCUMENT_BYTES)]) {
        let (written, _, json) = stored(&answer, limit);
        prop_assert!(json.len() <= limit);
        let read: TargetOutcome = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(read.reason, answer.reason);
        if json_bytes(&answer) <= limit {
            prop_assert_eq!(&read, &answer);
            prop_assert!(!written.truncated);
        }
    }
}

/// Any answer: long and short texts of any characters, long lists, data of its own size.
fn answer() -> impl Strategy<Value = TargetOutcome> {
    let text = || {
        (
            "[a€🐍\"\u{0}\u{1b}\n]{0,6}",
            prop_oneof![Just(0_usize), 0_usize..40, 0_usize..4000],
        )
            .prop_map(|(words, times)| words.repeat(times))
    };
    let words =
        || ("[a€\u{1b}\n]{0,6}", 0_usize..600).prop_map(|(words, times)| words.repeat(times));
    let list = || proptest::collection::vec("[a-z]{0,5}", 0..200);
    (
        (text(), words(), words(), words()),
        (text(), text(), proptest::option::of(text()), text()),
        (list(), list()),
        0..Reason::ALL.len(),
        proptest::option::of(any::<bool>()),
        0..3_u8,
    )
        .prop_map(
            |(
                (text, message, command, summary),
                (stdout, stderr, value, raised),
                (imported, signals),
                reason,
                disarmed,
                kind,
            )| {
                TargetOutcome {
                    text,
                    message,
                    command,
                    summary,
                    disarmed,
                    data: match kind {
                        0 => None,
                        1 => Some(Data::Processes(ProcessList {
                            problems: vec![stdout],
                            ..ProcessList::default()
                        })),
                        _ => Some(Data::Exec(Box::new(ExecOutcome {
                            stdout,
                            stderr,
                            value,
                            exception: Some(Exception {
                                type_name: "ValueError".into(),
                                message: raised.clone(),
                                traceback: raised,
                            }),
                            imported,
                            signals,
                            ..ExecOutcome::default()
                        }))),
                    },
                    ..target(Reason::ALL[reason])
                }
            },
        )
}

/// What `name` came to: one process that ended for `reason` and said `summary`.
fn one_of(name: &str, reason: Reason, summary: &str) -> PodEnd {
    let known = TargetStatus {
        pod_name: name.into(),
        pod_uid: Some(format!("uid-{name}")),
        ..known()
    };
    let outcome = TargetOutcome {
        summary: summary.into(),
        ..target(reason)
    };
    let end = End {
        reason: Reason::InternalError,
        message: String::new(),
        outcome: Some(
            Outcome {
                targets: vec![outcome],
                ..Outcome::default()
            }
            .into(),
        ),
        maybe_armed: false,
    };
    let session = session(stacks());
    PodEnd::new(&session, end, &known, String::new(), Sensitive::Secret)
}

#[test]
fn several_pods_share_one_verdict() {
    use Reason::{PartiallyFailed, Succeeded, TargetBlocked, TargetExited};
    for (reasons, reason, complete, words) in [
        (vec![Succeeded, Succeeded], Succeeded, true, "all 2 pods"),
        (
            vec![Succeeded, Reason::ScriptError],
            Reason::ScriptError,
            true,
            "",
        ),
        (
            vec![Succeeded, TargetBlocked, Succeeded],
            PartiallyFailed,
            true,
            "2 of 3 pods answered; web-1: TargetBlocked",
        ),
        (
            vec![TargetBlocked, TargetBlocked],
            TargetBlocked,
            false,
            "all 2 pods",
        ),
        (
            vec![TargetBlocked, TargetExited],
            PartiallyFailed,
            false,
            "0 of 2 pods answered",
        ),
    ] {
        let pods: Vec<_> = reasons
            .iter()
            .enumerate()
            .map(|(number, reason)| one_of(&format!("web-{number}"), *reason, "idle"))
            .collect();
        let finished = finish(&session(stacks()), &pods, Duration::ZERO, at());
        assert_eq!((finished.reason, finished.complete), (reason, complete));
        let pods_done = format!("{}/{}", pods.len(), pods.len());
        assert_eq!(finished.status.pods, Some(pods_done));
        let said = conditions::find(&finished.status.conditions, "Complete").unwrap();
        assert!(said.message.contains(words), "{}", said.message);
    }
}

#[test]
fn a_pods_end_is_read_back_from_the_status_it_stands_in() {
    for reason in [
        Reason::Succeeded,
        Reason::TargetBlocked,
        Reason::ScriptError,
    ] {
        let end = one_of("web-1", reason, "idle");
        let written: Vec<_> = end
            .entries
            .iter()
            .map(|entry| entry.status.clone())
            .collect();
        let read = PodEnd::read(&written).unwrap();
        assert_eq!((read.reason, read.complete), (end.reason, end.complete));
        assert_eq!(read.reached, Reached::Answer);
        assert_eq!(read.message, end.message);
    }
    // Another version's reason is no reason to begin anew.
    let newer = TargetStatus {
        phase: Some(Phase::Failed),
        reason: Some("SomethingNewer".into()),
        ..known()
    };
    let read = PodEnd::read(&[newer]).unwrap();
    assert_eq!((read.reason, read.complete), (Reason::InternalError, false));
    let going = TargetStatus {
        phase: Some(Phase::Running),
        ..known()
    };
    let ended = one_of("web-1", Reason::Succeeded, "idle");
    assert_eq!(
        PodEnd::read(&[ended.entries[0].status.clone(), going]),
        None
    );
    assert_eq!(PodEnd::read(&[]), None);
}

#[test]
fn a_session_that_is_given_up_keeps_what_stands_in_its_status() {
    let mut session = session(exec());
    let given = TargetStatus {
        container_id: Some("containerd://c1".into()),
        attach: Some(sidewinder_crds::AttachedAs::Ptrace),
        ..known()
    };
    let done = one_of("web-1", Reason::Succeeded, "idle").entries[0]
        .status
        .clone();
    session.status = Some(DebugSessionStatus {
        targets: vec![given, done],
        ..DebugSessionStatus::default()
    });
    let unknown = |_: &TargetStatus| Some(("nobody knows".to_owned(), None));
    let pods = PodEnd::give_up(&session, "a bug", unknown, Sensitive::Secret);
    assert_eq!(pods[0].message, "a bug; nobody knows");
    let status = finish(&session, &pods, Duration::ZERO, at());
    assert_eq!(
        (status.reason, status.complete),
        (Reason::PartiallyFailed, true)
    );
    // What the first pod was given may still be armed.
    let armed = conditions::find(&status.status.conditions, "Disarmed").unwrap();
    assert_eq!(armed.reason, "StillArmed");
}

#[test]
fn what_the_operator_stopped_was_not_cancelled_and_what_had_ended_keeps_its_reason() {
    for (answered, cancel, reason) in [
        (Reason::Cancelled, false, Reason::InternalError),
        (Reason::Cancelled, true, Reason::Cancelled),
        (Reason::Succeeded, false, Reason::Succeeded),
    ] {
        let mut session = session(exec());
        session.spec.cancel = cancel;
        let outcome = Outcome {
            targets: vec![target(answered)],
            ..Outcome::default()
        };
        let withdrawn = Some(("it was told to stop".to_owned(), Some(outcome.into())));
        let why = Refusal::new(Reason::InternalError, "a bug");
        let end = PodEnd::gave_up(&session, &known(), why, withdrawn, Sensitive::Secret);
        assert_eq!(end.reason, reason);
        assert!(end.message.contains("a bug"), "{}", end.message);
        let entry = &end.entries[0].status;
        assert_eq!(entry.reason, Some(reason.to_string()));
        assert_eq!(entry.phase, Some(phase(reason, reason.is_complete())));
    }
}

/// What stands in a status of the entries of these pods.
fn chosen(pods: impl Iterator<Item = Vec<TargetStatus>>) -> Vec<TargetStatus> {
    let mut pods: Vec<Vec<Entry>> = pods
        .map(|pod| pod.into_iter().map(Entry::written).collect())
        .collect();
    let mut all: Vec<_> = pods.iter_mut().map(Vec::as_mut_slice).collect();
    choose(&mut all);
    // Whoever looks again sees the same.
    choose(&mut all);
    pods.iter().flatten().filter_map(Entry::shown).collect()
}

#[test]
fn every_pod_keeps_an_entry_however_many_processes_the_others_have() {
    let named = |pod: usize, count: usize| -> Vec<TargetStatus> {
        let one = TargetStatus {
            pod_name: format!("web-{pod:03}"),
            ..known()
        };
        vec![one; count]
    };
    let full = chosen((0..128).map(|pod| named(pod, 2)));
    assert_eq!(full.len(), MAX_TARGETS);
    assert!(full.iter().all(|target| target.message.is_none()));
    let cut = chosen((0..200).map(|pod| named(pod, 3)));
    assert_eq!(cut.len(), MAX_TARGETS);
    let pods: std::collections::BTreeSet<_> = cut.iter().map(|target| &target.pod_name).collect();
    assert_eq!(pods.len(), 200, "a pod without an entry loses its intent");
    let last = cut.last().unwrap();
    assert_eq!(last.pod_name, "web-199");
    let words = last.message.as_deref().unwrap();
    assert!(words.contains("2 more processes"), "{words}");
}

#[test]
fn of_too_many_entries_those_that_answered_are_left_out_first_and_counted() {
    let one = |pod: usize, pid: i32, reason: Reason| TargetStatus {
        pod_name: format!("web-{pod}"),
        pid: Some(pid),
        reason: Some(reason.to_string()),
        ..known()
    };
    // Of the last pod the first and the last process failed, of the others none.
    let pods = (0..2).map(|pod| -> Vec<_> {
        (0..150)
            .map(|pid| {
                let failed = pod == 1 && (pid == 0 || pid > 140);
                let reason = if failed {
                    Reason::TargetBlocked
                } else {
                    Reason::Succeeded
                };
                one(pod, pid, reason)
            })
            .collect()
    });
    let cut = chosen(pods);
    assert_eq!(cut.len(), MAX_TARGETS);
    let blocked = |target: &&TargetStatus| target.reason.as_deref() == Some("TargetBlocked");
    assert_eq!(cut.iter().filter(blocked).count(), 10);
    let last = cut
        .iter()
        .find(|target| target.pod_name == "web-1")
        .unwrap();
    let words = last.message.as_deref().unwrap();
    assert!(
        words.contains("44 more processes of this pod are left out (44 Succeeded)"),
        "{words}"
    );
    // Where there are more failures than room, they are counted, too.
    let pods = (0..1).map(|pod| {
        (0..300)
            .map(|pid| one(pod, pid, Reason::TargetBlocked))
            .chain([one(0, 300, Reason::Succeeded)])
            .collect()
    });
    let cut = chosen(pods);
    let words = cut[0].message.as_deref().unwrap();
    assert!(
        words
            .contains("45 more processes of this pod are left out (1 Succeeded, 44 TargetBlocked)"),
        "{words}"
    );
}

#[test]
fn what_is_left_out_takes_no_room_from_what_stays_and_is_not_stored() {
    let session = session(exec());
    // Half of them fit, and all of them do not; in secret, each is to be stored.
    for (sensitive, secret) in [(Sensitive::Status, false), (Sensitive::Secret, true)] {
        let pod = || {
            let outcome = Outcome {
                targets: vec![ran(&"x".repeat(60)); 250],
                ..Outcome::default()
            };
            let end = End {
                reason: Reason::InternalError,
                message: String::new(),
                outcome: Some(outcome.into()),
                maybe_armed: false,
            };
            PodEnd::new(&session, end, &known(), String::new(), sensitive)
        };
        let mut pods = [pod(), pod()];
        let entries = |pods: &[PodEnd]| -> Vec<Entry> {
            let all = pods.iter().flat_map(|pod| &pod.entries);
            all.cloned().collect()
        };
        let all: usize = entries(&pods)
            .iter()
            .map(|entry| json_bytes(&entry.status))
            .sum();
        assert!(secret || all > STATUS_BYTES, "{all}");
        let finished = finish(&session, &pods, Duration::ZERO, at());
        let mut shown: Vec<_> = pods
            .iter_mut()
            .map(|pod| pod.entries.as_mut_slice())
            .collect();
        choose(&mut shown);
        let all = shown.into_iter().flatten();
        let mut kept: Vec<_> = all.filter(|entry| !entry.left_out).collect();
        fit(&finished.status, &mut kept);
        assert_eq!(kept.len(), MAX_TARGETS);
        let stored = kept.iter().filter(|entry| entry.to_store).count();
        assert_eq!(stored, if secret { MAX_TARGETS } else { 0 });
        for entry in entries(&pods).iter().filter(|entry| entry.left_out) {
            assert!(!entry.to_store && entry.outcome.is_none());
        }
        let status = seal(finished.status, &pods, None, at());
        assert!(json_bytes(&status) <= STATUS_BYTES);
        assert_eq!(status.targets.len(), MAX_TARGETS);
        let whole = |target: &TargetStatus| secret || target.text.is_some();
        assert!(status.targets.iter().all(whole));
    }
}
