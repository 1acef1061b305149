//! The requester's own rights, asked for once more right before anything runs: between admission and now they may have
//! been taken away.

use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus,
};
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, ResourceExt};
use sidewinder_crds::{DebugSession, RemoteExec, Requester};
use sidewinder_model::Reason;

use super::words::escaped;
use crate::error::{Error, patiently};
use crate::inject::Refusal;

/// Asks the API server what somebody may do.
#[derive(Clone)]
pub struct Reviewer {
    client: Client,
    /// Whether the operator's rights exist in one namespace alone, where it may ask of that namespace alone.
    local: bool,
}

/// A code-running session of nobody.
pub fn unknown_requester() -> Refusal {
    Refusal::new(
        Reason::RequesterUnknown,
        "the session does not say who asks, and this operator runs code for nobody (fences.requireRequester): create it again \
         with spec.requestedBy {username, groups} as `kubectl auth whoami` shows them, or have the cluster stamp it (the \
         MutatingAdmissionPolicy sidewinder-requester of the chart, Kubernetes 1.36 and newer)",
    )
}

/// What the requester of a code-running session must be allowed to do: to exec into the pod that it names, into any pod
/// where it names none, and to read the ConfigMap that its script is in.
pub fn needed(session: &DebugSession) -> Vec<ResourceAttributes> {
    let namespace = session.namespace();
    let mut needed = vec![ResourceAttributes {
        namespace: namespace.clone(),
        verb: Some("create".to_owned()),
        resource: Some("pods".to_owned()),
        subresource: Some("exec".to_owned()),
        name: session.spec.target.pod_name.clone(),
        ..ResourceAttributes::default()
    }];
    if let Some(RemoteExec {
        script_from: Some(source),
        ..
    }) = &session.spec.remote_exec
    {
        needed.push(ResourceAttributes {
            namespace,
            verb: Some("get".to_owned()),
            resource: Some("configmaps".to_owned()),
            name: Some(source.config_map_key_ref.name.clone()),
            ..ResourceAttributes::default()
        });
    }
    needed
}

impl Reviewer {
    /// `local`: with rights in one namespace alone.
    pub fn new(client: Client, local: bool) -> Self {
        Self { client, local }
    }

    /// Whether `requester` may do by hand what `session` does for it.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn review(
        &self,
        session: &DebugSession,
        requester: &Requester,
    ) -> Result<Result<(), Refusal>, Error> {
        for attributes in needed(session) {
            let answer = self.ask(requester, &attributes).await;
            let status = match answer {
                Ok(status) => status.unwrap_or_default(),
                Err(error) if error.code() == Some(403) => {
                    return Ok(Err(Refusal::new(
                        Reason::PolicyDenied,
                        format!(
                            "the operator may not ask for the requester's rights, and runs no code without: it needs create on {} ({})",
                            if self.local {
                                "localsubjectaccessreviews"
                            } else {
                                "subjectaccessreviews"
                            },
                            error.api().map_or("", |status| status.message.as_str()),
                        ),
                    )));
                }
                Err(error) => return Err(error),
            };
            if !status.allowed || status.denied == Some(true) {
                return Ok(Err(refused(requester, &attributes, &status)));
            }
        }
        Ok(Ok(()))
    }

    async fn ask(
        &self,
        requester: &Requester,
        attributes: &ResourceAttributes,
    ) -> Result<Option<SubjectAccessReviewStatus>, Error> {
        let spec = SubjectAccessReviewSpec {
            user: Some(requester.username.clone()),
            groups: Some(requester.groups.iter().cloned().collect()),
            resource_attributes: Some(attributes.clone()),
            ..SubjectAccessReviewSpec::default()
        };
        let params = PostParams::default();
        let what = || "ask for the requester's rights".to_owned();
        if self.local {
            let namespace = attributes.namespace.clone().unwrap_or_default();
            let api: Api<LocalSubjectAccessReview> =
                Api::namespaced(self.client.clone(), &namespace);
            let review = LocalSubjectAccessReview {
                metadata: ObjectMeta {
                    namespace: Some(namespace),
                    ..ObjectMeta::default()
                },
                spec,
                status: None,
            };
            Ok(patiently(what, || api.create(&params, &review))
                .await?
                .status)
        } else {
            let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
            let review = SubjectAccessReview {
                spec,
                ..SubjectAccessReview::default()
            };
            Ok(patiently(what, || api.create(&params, &review))
                .await?
                .status)
        }
    }
}

fn refused(
    requester: &Requester,
    attributes: &ResourceAttributes,
    status: &SubjectAccessReviewStatus,
) -> Refusal {
    let resource = attributes.resource.as_deref().unwrap_or_default();
    let what = match (&attributes.subresource, &attributes.name) {
        (Some(subresource), Some(name)) => format!("{resource}/{subresource} on pod {name}"),
        (Some(subresource), None) => {
            format!("{resource}/{subresource} on every pod, which a selector needs,")
        }
        (None, Some(name)) => format!("ConfigMap {name}"),
        (None, None) => resource.to_owned(),
    };
    let words: Vec<_> = [&status.reason, &status.evaluation_error]
        .into_iter()
        .flatten()
        .filter(|words| !words.is_empty())
        .map(|words| escaped(words))
        .collect();
    let words = if words.is_empty() {
        String::new()
    } else {
        format!(" ({})", words.join("; "))
    };
    Refusal::new(
        Reason::PolicyDenied,
        format!(
            "user {}, who asked for this session with {} groups, may not {} {what} in namespace {} now{words}",
            escaped(&requester.username),
            requester.groups.len(),
            attributes.verb.as_deref().unwrap_or_default(),
            attributes.namespace.as_deref().unwrap_or_default(),
        ),
    )
}

#[cfg(test)]
mod tests;
