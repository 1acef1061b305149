//! Users with few rights: what RBAC gives them, and a client in their name.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, PostParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
/// How long a change of roles may take until the API server acts on it.
const IN_FORCE: Duration = Duration::from_secs(30);
/// The API server says nowhere since when it acts on a role, so that it is asked again after so long.
const ASKED_AGAIN: Duration = Duration::from_millis(50);

/// A client for the cluster of a kubeconfig file, whose user may impersonate, in the name of `user`.
///
/// # Errors
/// When the file cannot be read or used.
pub async fn client_as(kubeconfig: &Path, user: &str) -> Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.auth_info.impersonate = Some(user.to_owned());
    Client::try_from(config).context("cannot make a client")
}

/// A client for the cluster of a kubeconfig file with a service account's token in place of its user's certificate.
///
/// # Errors
/// When the file cannot be read or used.
pub async fn client_with(kubeconfig: &Path, token: &str) -> Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.auth_info = AuthInfo {
        token: Some(token.to_owned().into()),
        ..AuthInfo::default()
    };
    Client::try_from(config).context("cannot make a client")
}

async fn config(kubeconfig: &Path) -> Result<Config> {
    let read = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("cannot use the kubeconfig {}", kubeconfig.display()))
}

/// A rule of a Role.
pub fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
}

/// Gives `user` these rules in a namespace, by a Role and a `RoleBinding` called `name`, and waits until they hold.
///
/// # Errors
/// When the API server refuses, or the last rule does not hold within 30 s.
pub async fn grant(
    admin: &Client,
    namespace: &str,
    name: &str,
    user: &str,
    rules: &[Value],
) -> Result<()> {
    let role: Role = serde_json::from_value(json!({"metadata": {"name": name}, "rules": rules}))?;
    Api::<Role>::namespaced(admin.clone(), namespace)
        .create(&PostParams::default(), &role)
        .await
        .with_context(|| format!("cannot create the Role {name}"))?;
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
    }))?;
    Api::<RoleBinding>::namespaced(admin.clone(), namespace)
        .create(&PostParams::default(), &binding)
        .await
        .with_context(|| format!("cannot create the RoleBinding {name}"))?;
    until(admin, namespace, user, &attributes(namespace, rules)?, true).await
}

/// Takes what [`grant`] gave under `name`, and waits until that holds.
///
/// # Errors
/// When the API server refuses, or the last rule still holds after 30 s.
pub async fn revoke(admin: &Client, namespace: &str, name: &str, user: &str) -> Result<()> {
    let role = Api::<Role>::namespaced(admin.clone(), namespace)
        .get(name)
        .await
        .with_context(|| format!("there is no Role {name}"))?;
    Api::<RoleBinding>::namespaced(admin.clone(), namespace)
        .delete(name, &DeleteParams::default())
        .await
        .with_context(|| format!("cannot delete the RoleBinding {name}"))?;
    let rules: Vec<Value> = serde_json::from_value(serde_json::to_value(role.rules)?)?;
    until(
        admin,
        namespace,
        user,
        &attributes(namespace, &rules)?,
        false,
    )
    .await
}

/// What the last of these rules gives.
fn attributes(namespace: &str, rules: &[Value]) -> Result<ResourceAttributes> {
    let last = rules.last().context("a role without rules")?;
    let word = |key: &str| -> Option<String> {
        let first = last.get(key)?.as_array()?.first()?;
        first.as_str().map(str::to_owned)
    };
    let whole = word("resources").context("a rule without resources")?;
    let (resource, subresource) = whole.split_once('/').unwrap_or((&whole, ""));
    Ok(ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        group: word("apiGroups"),
        resource: Some(resource.to_owned()),
        subresource: Some(subresource.to_owned()),
        name: word("resourceNames"),
        verb: word("verbs"),
        ..ResourceAttributes::default()
    })
}

/// Whether `user` may do this, as the API server sees it.
///
/// # Errors
/// When it does not answer.
pub async fn may(admin: &Client, user: &str, attributes: &ResourceAttributes) -> Result<bool> {
    let review: SubjectAccessReview =
        serde_json::from_value(json!({"spec": {"user": user, "resourceAttributes": attributes}}))?;
    let answer = Api::<SubjectAccessReview>::all(admin.clone())
        .create(&PostParams::default(), &review)
        .await
        .context("cannot ask for a user's rights")?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn until(
    admin: &Client,
    namespace: &str,
    user: &str,
    attributes: &ResourceAttributes,
    allowed: bool,
) -> Result<()> {
    let asked = async {
        while may(admin, user, attributes).await? != allowed {
            tokio::time::sleep(ASKED_AGAIN).await;
        }
        Ok(())
    };
    match tokio::time::timeout(IN_FORCE, asked).await {
        Ok(asked) => asked,
        Err(_) => bail!(
            "waited {} s until {user} in {namespace} {} {attributes:?}",
            IN_FORCE.as_secs(),
            if allowed { "may" } else { "may no longer" }
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_is_what_is_asked_for() {
        let rules = [
            rule("sidewinder.dev", "debugsessions", &["create"]),
            rule("", "pods/exec", &["create", "get"]),
        ];
        let asked = attributes("shop", &rules).unwrap();
        assert_eq!(asked.resource.as_deref(), Some("pods"));
        assert_eq!(asked.subresource.as_deref(), Some("exec"));
        assert_eq!(asked.verb.as_deref(), Some("create"));
        assert_eq!(asked.namespace.as_deref(), Some("shop"));
        assert!(attributes("shop", &[]).is_err());
    }
}
