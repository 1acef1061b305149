//! The certificates of one cluster: an authority of its own, made anew at every start.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::cluster::network;

/// Who a client certificate stands for.
pub(crate) struct Client {
    /// The name of the certificate's files.
    pub(crate) file: &'static str,
    user: &'static str,
    group: Option<&'static str>,
}

/// The clients of the API server that get a kubeconfig.
pub(crate) const CLIENTS: [Client; 4] = [
    Client {
        file: "admin",
        user: "admin",
        group: Some("system:masters"),
    },
    Client {
        file: "controller-manager",
        user: "system:kube-controller-manager",
        group: None,
    },
    Client {
        file: "scheduler",
        user: "system:kube-scheduler",
        group: None,
    },
    Client {
        file: "kubelet",
        user: "system:node:node1",
        group: Some("system:nodes"),
    },
];
const KUBELET_CLIENT: Client = Client {
    file: "kubelet-client",
    user: "kube-apiserver-kubelet-client",
    group: Some("system:masters"),
};

/// Writes everything the cluster's processes need to know each other into `folder`; `host_side` is the address at which the machine reaches the
/// API server.
pub(crate) fn write(folder: &Path, host_side: Ipv4Addr) -> Result<()> {
    let save = |name: &str, content: &str| {
        let file = folder.join(name);
        std::fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    };
    let key = KeyPair::generate()?;
    let mut params = named("sidewinder-e2e", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    let authority = params.self_signed(&key)?;
    save("ca.crt", &authority.pem())?;
    let issuer = Issuer::new(params, key);

    let pair = |name: &str, (certificate, key): (Certificate, KeyPair)| -> Result<()> {
        save(&format!("{name}.crt"), &certificate.pem())?;
        save(&format!("{name}.key"), &key.serialize_pem())
    };
    pair("apiserver", server(&issuer, host_side)?)?;
    for client in CLIENTS.iter().chain([&KUBELET_CLIENT]) {
        let mut params = named(client.user, client.group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        pair(client.file, (params.signed_by(&key, &issuer)?, key))?;
    }
    let accounts = KeyPair::generate()?;
    save("service-accounts.key", &accounts.serialize_pem())?;
    // The API server refuses a private PKCS#8 key where it wants the public one.
    save("service-accounts.pub", &accounts.public_key_pem())
}

fn server(issuer: &Issuer<'_, KeyPair>, host_side: Ipv4Addr) -> Result<(Certificate, KeyPair)> {
    let mut params = named("kube-apiserver", None);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
    ] {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.try_into()?));
    }
    for address in [
        Ipv4Addr::LOCALHOST,
        network::BRIDGE,
        network::SERVICE,
        host_side,
    ] {
        params
            .subject_alt_names
            .push(SanType::IpAddress(address.into()));
    }
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?, key))
}

fn named(user: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    params
}
