//! One line about many: what most pods say, and which say something else.

use sidewinder_crds::TargetStatus;
use sidewinder_model::MAX_SUMMARY_CHARS;

use super::PodEnd;
use super::clip::one_line;

/// How much of the line what most pods say may take, so that those that differ are named as well.
const COMMON_CHARS: usize = 104;
/// How many of those that differ are named.
const NAMED: usize = 2;

/// The answers of all pods in one line of at most [`MAX_SUMMARY_CHARS`]; `message` where they say nothing.
pub(super) fn summary(pods: &[PodEnd], message: &str) -> String {
    let text = match pods {
        [] => message.to_owned(),
        [one] => of_pod(one),
        many => of_many(many, message),
    };
    let text = if text.trim().is_empty() {
        message
    } else {
        &text
    };
    one_line(text, MAX_SUMMARY_CHARS)
}

fn of_pod(pod: &PodEnd) -> String {
    let own = |target: &TargetStatus| target.summary.clone().unwrap_or_default();
    match pod.entries.as_slice() {
        [] => pod.message.clone(),
        [one] => own(&one.status),
        many => many
            .iter()
            .map(|entry| {
                let pid = entry
                    .status
                    .pid
                    .map_or_else(|| "?".to_owned(), |pid| pid.to_string());
                format!("{pid}: {}", own(&entry.status))
            })
            .collect::<Vec<_>>()
            .join("; "),
    }
}

fn of_many(pods: &[PodEnd], message: &str) -> String {
    let mut groups: Vec<(String, Vec<(&PodEnd, String)>)> = Vec::new();
    for pod in pods {
        let text = of_pod(pod);
        let kind = without_numbers(&text);
        match groups.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, members)) => members.push((pod, text)),
            None => groups.push((kind, vec![(pod, text)])),
        }
    }
    // The first of the largest: `max_by_key` takes the last.
    let most = groups.iter().rev().max_by_key(|(_, members)| members.len());
    let Some((kind, common)) = most else {
        return String::new();
    };
    let said = common
        .first()
        .map(|(_, text)| text.as_str())
        .filter(|text| !text.is_empty())
        .unwrap_or(message);
    if common.len() == pods.len() {
        return format!("all {} pods: {said}", pods.len());
    }
    let others: Vec<_> = groups
        .iter()
        .filter(|(other, _)| other != kind)
        .flat_map(|(_, members)| members)
        .collect();
    if common.len() == 1 {
        let each: Vec<_> = pods
            .iter()
            .map(|pod| format!("{}: {}", pod.pod(), of_pod(pod)))
            .collect();
        return format!(
            "{} pods, each another answer: {}",
            pods.len(),
            each.join("; ")
        );
    }
    let differ = match others.as_slice() {
        [(pod, text)] => format!("{} differs: {text}", pod.pod()),
        many => {
            let named: Vec<_> = many.iter().take(NAMED).map(|(pod, _)| pod.pod()).collect();
            match many.len().saturating_sub(NAMED) {
                0 => format!("{} differ", named.join(" and ")),
                more => format!("{} and {more} more differ", named.join(", ")),
            }
        }
    };
    format!(
        "{} of {} pods: {}; {differ}",
        common.len(),
        pods.len(),
        one_line(said, COMMON_CHARS)
    )
}

/// Two answers are the same when they differ in numbers only: thread ids, counts, milliseconds.
fn without_numbers(text: &str) -> String {
    let mut kind = String::with_capacity(text.len());
    let mut number = false;
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            if !number {
                kind.push('#');
            }
            number = true;
        } else {
            number = false;
            kind.push(letter);
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use sidewinder_model::Reason;

    use super::*;
    use crate::session::result::{Entry, Reached};

    fn said(pod: &str, summary: &str) -> PodEnd {
        PodEnd {
            entries: vec![Entry::written(TargetStatus {
                pod_name: pod.into(),
                summary: Some(summary.into()),
                ..TargetStatus::default()
            })],
            reason: Reason::Succeeded,
            message: String::new(),
            complete: true,
            reached: Reached::Answer,
            notes: String::new(),
        }
    }

    fn of(answers: &[(&str, &str)]) -> String {
        let pods: Vec<_> = answers.iter().map(|(pod, text)| said(pod, text)).collect();
        summary(&pods, "nothing")
    }

    #[test]
    fn what_most_say_comes_first_and_who_differs_is_named() {
        let waits = "main waits in pool.acquire; 12 threads";
        assert_eq!(of(&[("web-0", waits)]), waits);
        assert_eq!(
            of(&[
                ("web-0", waits),
                ("web-1", "main waits in pool.acquire; 9 threads")
            ]),
            "all 2 pods: main waits in pool.acquire; 12 threads"
        );
        assert_eq!(
            of(&[("web-0", "idle"), ("web-1", waits), ("web-2", waits)]),
            "2 of 3 pods: main waits in pool.acquire; 12 threads; web-0 differs: idle"
        );
        assert_eq!(
            of(&[
                ("a", "1 x"),
                ("b", "2 x"),
                ("c", "y"),
                ("d", "z"),
                ("e", "w"),
                ("f", "v")
            ]),
            "2 of 6 pods: 1 x; c, d and 2 more differ"
        );
        assert_eq!(
            of(&[("a", "x"), ("b", "y")]),
            "2 pods, each another answer: a: x; b: y"
        );
    }

    #[test]
    fn a_long_answer_leaves_room_for_who_differs() {
        let long = "x".repeat(160);
        let text = of(&[("a", &long), ("b", &long), ("web-7", "other")]);
        assert!(text.chars().count() <= MAX_SUMMARY_CHARS);
        assert!(text.contains("web-7 differs"), "{text}");
    }
}
