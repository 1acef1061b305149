//! Refusals in words: the server's own, and the way out. Pure.

use sidewinder_model::Reason;

/// The longest piece of somebody else's text inside a sentence of ours, in characters.
const QUOTED: usize = 2048;

/// Somebody else's text as it may stand in a line of ours: without control characters, and not endless.
pub fn escaped(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(QUOTED)
        .flat_map(|letter| {
            let plain = (!letter.is_control()).then_some(letter);
            let escape = letter.is_control().then(|| letter.escape_default());
            plain.into_iter().chain(escape.into_iter().flatten())
        })
        .collect();
    if text.chars().nth(QUOTED).is_some() {
        line.push('…');
    }
    line
}

/// What the server said when it did not let the sidecar in, with what can be done about it.
pub fn way_out(reason: Reason, server: &str) -> String {
    let server = escaped(server);
    let way = match reason {
        Reason::PodSecurityForbidden if server.contains("SYS_PTRACE") => {
            "attach: Auto or SameUser does without the capability (where the node's yama.ptrace_scope is 0); else an administrator exempts the operator's account from Pod Security (docs/security.md#pod-security), or labels the namespace pod-security.kubernetes.io/enforce=privileged"
        }
        Reason::PodSecurityForbidden
            if server.contains("runAsNonRoot") || server.contains("runAsUser") =>
        {
            "the target itself runs as root, which its namespace would not admit today: start the pod again as another user, or see docs/security.md#pod-security"
        }
        Reason::PodSecurityForbidden => {
            "Pod Security judges the whole pod again when a container is added: where the pod itself violates its namespace's level, nothing can be added until the pod or the namespace's label pod-security.kubernetes.io/enforce is changed"
        }
        Reason::AdmissionForbidden
            if server.contains("sidewinder.dev/deny")
                || server.contains("sidewinder.dev/allow") =>
        {
            "whoever owns the pod and its namespace decides with these labels"
        }
        Reason::AdmissionForbidden if server.contains("ValidatingAdmissionPolicy 'sidewinder-") => {
            "the operator's own policy did not expect this sidecar: the policy's version or image is not this operator's; upgrade chart and operator together"
        }
        Reason::AdmissionForbidden if server.contains("forbidden: User") => {
            "the operator's account lacks a right: install its chart again, with this namespace as watchNamespace or with none"
        }
        Reason::AdmissionForbidden => {
            "whoever runs that webhook or policy may except ephemeral containers named sidewinder-* that the operator's account adds"
        }
        _ => return server,
    };
    format!("{server} [{way}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_stay_and_the_way_out_follows() {
        let server = "pods \"web-0\" is forbidden: violates PodSecurity \"restricted:latest\": unrestricted capabilities (container \"sidewinder-app-1\" must not include \"SYS_PTRACE\" in securityContext.capabilities.add)";
        let words = way_out(Reason::PodSecurityForbidden, server);
        assert!(words.starts_with(server), "{words}");
        assert!(words.contains("SameUser"), "{words}");
        let root = way_out(
            Reason::PodSecurityForbidden,
            "violates PodSecurity \"restricted:latest\": runAsUser=0",
        );
        assert!(root.contains("as another user"), "{root}");
        let rights = way_out(
            Reason::AdmissionForbidden,
            "pods \"web-0\" is forbidden: User \"system:serviceaccount:a:b\" cannot patch resource",
        );
        assert!(rights.contains("watchNamespace"), "{rights}");
        let webhook = way_out(
            Reason::AdmissionForbidden,
            "admission webhook \"kyverno\" denied the request: no",
        );
        assert!(
            webhook.contains("webhook or policy may except"),
            "{webhook}"
        );
        assert_eq!(way_out(Reason::SidecarFailed, "no"), "no");
    }

    #[test]
    fn other_peoples_words_are_one_line_and_not_endless() {
        assert_eq!(escaped("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(escaped(&"é".repeat(5000)).chars().count(), QUOTED + 1);
    }
}
