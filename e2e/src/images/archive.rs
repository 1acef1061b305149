//! Container images as tar files: an OCI image layout (`index.json`) that is a `docker save` archive (`manifest.json`) as well, so that
//! containerd, Docker, Podman, kind and registries' own tools all take it. The same content gives the same bytes.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::cache::hex;

/// What an image says about starting it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// `uid:gid`; empty is root.
    pub user: String,
}

/// An uncompressed layer, with the digest that is both its own and its content's.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
    content: Vec<u8>,
    digest: String,
}

/// Folders of a root whose content is of the moment.
const TEMPORARY: [&str; 4] = ["dev/shm", "proc", "tmp", "var/tmp"];

impl Layer {
    /// An empty layer.
    #[expect(
        clippy::new_without_default,
        reason = "an empty layer is a beginning, not a value one would want by default"
    )]
    pub fn new() -> Self {
        Self {
            tar: tar::Builder::new(Vec::new()),
            content: Vec::new(),
            digest: String::new(),
        }
    }

    /// Adds a file of root's.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.tar
            .append_data(&mut header, path, content)
            .with_context(|| format!("cannot add {path} to a layer"))
    }

    /// Adds a folder of root's.
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let path = format!("{path}/");
        let mut header = header(EntryType::Directory, mode);
        self.tar
            .append_data(&mut header, &path, std::io::empty())
            .with_context(|| format!("cannot add {path} to a layer"))
    }

    /// Adds everything below `root` with its owners and modes. Devices and sockets are left out, and so is what lies in
    /// [`TEMPORARY`] folders: a root folder in which programs were run has their files there.
    pub fn tree(&mut self, root: &Path) -> Result<()> {
        self.below(root, root)
    }

    fn below(&mut self, root: &Path, folder: &Path) -> Result<()> {
        let mut entries: Vec<_> = std::fs::read_dir(folder)
            .with_context(|| format!("cannot list {}", folder.display()))?
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("cannot list {}", folder.display()))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = path.strip_prefix(root)?.to_path_buf();
            let metadata = path
                .symlink_metadata()
                .with_context(|| format!("cannot read {}", path.display()))?;
            let kind = metadata.file_type();
            let mut header = header(EntryType::Regular, metadata.permissions().mode() & 0o7777);
            header.set_uid(metadata.uid().into());
            header.set_gid(metadata.gid().into());
            let added = if kind.is_symlink() {
                header.set_entry_type(EntryType::Symlink);
                self.tar
                    .append_link(&mut header, &name, std::fs::read_link(&path)?)
            } else if kind.is_dir() {
                header.set_entry_type(EntryType::Directory);
                self.tar
                    .append_data(&mut header, name.join(""), std::io::empty())
            } else if kind.is_file() {
                header.set_size(metadata.len());
                self.tar
                    .append_data(&mut header, &name, std::fs::File::open(&path)?)
            } else {
                continue;
            };
            added.with_context(|| format!("cannot add {} to a layer", path.display()))?;
            if kind.is_dir() && !TEMPORARY.iter().any(|folder| name == Path::new(folder)) {
                self.below(root, &path)?;
            }
        }
        Ok(())
    }

    /// Ends the layer.
    pub fn finish(self) -> Result<Self> {
        let content = self.tar.into_inner().context("cannot end a layer")?;
        let digest = sha256(&content);
        Ok(Self {
            tar: tar::Builder::new(Vec::new()),
            content,
            digest,
        })
    }

    /// Writes a finished layer as a tar file.
    pub fn save(&self, file: &Path) -> Result<()> {
        std::fs::write(file, &self.content)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Reads what [`save`](Self::save) wrote.
    pub fn load(file: &Path) -> Result<Self> {
        let content =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let digest = sha256(&content);
        Ok(Self {
            tar: tar::Builder::new(Vec::new()),
            content,
            digest,
        })
    }
}

/// The digest of the image's manifest (hexadecimal) and the tar of the whole image of finished `layers`; `name` says what it is called, given that digest.
pub fn image(
    layers: &[Layer],
    config: &Config,
    name: impl FnOnce(&str) -> String,
) -> Result<(String, Vec<u8>)> {
    let digests: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", layer.digest))
        .collect();
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(std::env::consts::ARCH),
        "os": "linux",
        "config": {"Entrypoint": config.entrypoint, "Env": config.environment, "User": config.user},
        "rootfs": {"type": "layers", "diff_ids": digests},
    }))?;
    let config_digest = sha256(&config);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config.len()),
        "layers": layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", &layer.digest, layer.content.len())).collect::<Vec<_>>(),
    }))?;
    let digest = sha256(&manifest);
    let name = name(&digest);
    let mut entry = descriptor(
        "application/vnd.oci.image.manifest.v1+json",
        &digest,
        manifest.len(),
    );
    if let Some(entry) = entry.as_object_mut() {
        let tag = name.rsplit_once(':').map_or("", |(_, tag)| tag);
        entry.insert(
            "annotations".to_owned(),
            json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}),
        );
    }
    let index = serde_json::to_vec(
        &json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}),
    )?;
    let docker = serde_json::to_vec(&json!([{
        "Config": blob(&config_digest), "RepoTags": [name], "Layers": layers.iter().map(|layer| blob(&layer.digest)).collect::<Vec<_>>(),
    }]))?;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = header(EntryType::Regular, 0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)
            .with_context(|| format!("cannot add {path} to an image"))
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &index)?;
    add("manifest.json", &docker)?;
    add(&blob(&digest), &manifest)?;
    add(&blob(&config_digest), &config)?;
    let mut seen = std::collections::BTreeSet::new();
    for layer in layers.iter().filter(|layer| seen.insert(&layer.digest)) {
        add(&blob(&layer.digest), &layer.content)?;
    }
    let mut bytes = tar.into_inner().context("cannot end an image")?;
    bytes.flush()?;
    Ok((digest, bytes))
}

/// The names of the images in an uncompressed tar, as its own lists give them; none in anything else.
pub fn names(archive: impl std::io::Read) -> Vec<String> {
    /// No list of names is longer.
    const LIST: u64 = 1 << 20;
    let mut found = std::collections::BTreeSet::new();
    let mut archive = tar::Archive::new(archive);
    for mut entry in archive
        .entries()
        .into_iter()
        .flatten()
        .map_while(std::io::Result::ok)
    {
        let pattern = match entry.path().ok().as_deref().and_then(Path::to_str) {
            Some("manifest.json") => ["", "RepoTags"],
            Some("index.json") => ["manifests", "io.containerd.image.name"],
            _ => continue,
        };
        let list: Value =
            serde_json::from_reader(std::io::Read::take(&mut entry, LIST)).unwrap_or_default();
        let images = list
            .get(pattern[0])
            .unwrap_or(&list)
            .as_array()
            .into_iter()
            .flatten();
        for image in images {
            let place = image.get("annotations").unwrap_or(image).get(pattern[1]);
            let tags = place.into_iter().flat_map(|place| {
                place
                    .as_array()
                    .map_or(std::slice::from_ref(place), Vec::as_slice)
            });
            found.extend(tags.filter_map(Value::as_str).map(str::to_owned));
        }
    }
    found.into_iter().collect()
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(0);
    header
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn descriptor(kind: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size})
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Go's name of an architecture, which images use.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    fn entries(tar: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (
                    entry.path().unwrap().display().to_string(),
                    (entry.header().mode().unwrap(), content),
                )
            })
            .collect()
    }

    fn sample() -> (String, Vec<u8>) {
        let mut layer = Layer::new();
        layer.file("program", 0o755, b"binary").unwrap();
        layer.folder("run/sidewinder", 0o1777).unwrap();
        let config = Config {
            entrypoint: vec!["/program".to_owned()],
            ..Config::default()
        };
        image(&[layer.finish().unwrap()], &config, |digest| {
            format!("localhost/x:{}", digest.get(..12).unwrap())
        })
        .unwrap()
    }

    #[test]
    fn every_reference_leads_to_a_blob_with_that_digest_and_size() {
        let (digest, tar) = sample();
        let files = entries(&tar);
        let json =
            |name: &str| serde_json::from_slice::<Value>(&files.get(name).unwrap().1).unwrap();
        let follow = |descriptor: &Value| {
            let digest = descriptor
                .get("digest")
                .unwrap()
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap()
                .to_owned();
            let content = &files.get(&blob(&digest)).unwrap().1;
            assert_eq!(sha256(content), digest);
            assert_eq!(
                descriptor.get("size").unwrap().as_u64().unwrap(),
                content.len() as u64
            );
            content.clone()
        };
        let index = json("index.json");
        let entry = index.pointer("/manifests/0").unwrap();
        assert_eq!(
            entry.get("digest").unwrap(),
            &json!(format!("sha256:{digest}"))
        );
        let name = format!("localhost/x:{}", digest.get(..12).unwrap());
        assert_eq!(
            entry
                .pointer("/annotations/io.containerd.image.name")
                .unwrap(),
            &json!(name)
        );
        let manifest: Value = serde_json::from_slice(&follow(entry)).unwrap();
        let config: Value =
            serde_json::from_slice(&follow(manifest.get("config").unwrap())).unwrap();
        let layer = follow(manifest.pointer("/layers/0").unwrap());
        assert_eq!(
            config.pointer("/rootfs/diff_ids/0").unwrap(),
            &json!(format!("sha256:{}", sha256(&layer)))
        );
        let docker = json("manifest.json");
        assert_eq!(docker.pointer("/0/RepoTags/0").unwrap(), &json!(name));
        assert!(files.contains_key(docker.pointer("/0/Layers/0").unwrap().as_str().unwrap()));
        let inside = entries(&layer);
        assert_eq!(inside.get("program").unwrap(), &(0o755, b"binary".to_vec()));
        assert_eq!(inside.get("run/sidewinder/").unwrap().0, 0o1777);
        assert_eq!(inside.len(), 2);
    }

    #[test]
    fn an_image_is_found_by_its_name_and_text_has_none() {
        let (digest, tar) = sample();
        assert_eq!(
            names(tar.as_slice()),
            [format!("localhost/x:{}", &digest[..12])]
        );
        assert_eq!(names(b"text".as_slice()), Vec::<String>::new());
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn a_tree_keeps_links_modes_and_long_names_and_leaves_out_sockets_and_what_is_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let long = "n".repeat(150);
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        std::fs::write(folder.path().join("bin").join(&long), "x").unwrap();
        std::os::unix::fs::symlink(&long, folder.path().join("bin/link")).unwrap();
        std::fs::set_permissions(
            folder.path().join("bin").join(&long),
            std::fs::Permissions::from_mode(0o4755),
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        std::fs::create_dir_all(folder.path().join("var/tmp/left")).unwrap();
        std::fs::write(folder.path().join("var/tmp/left/behind"), "x").unwrap();
        let mut layer = Layer::new();
        layer.tree(folder.path()).unwrap();
        let content = layer.finish().unwrap().content;
        let mut archive = tar::Archive::new(content.as_slice());
        let found: Vec<(String, Option<String>, u32)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let link = entry
                    .link_name()
                    .unwrap()
                    .map(|link| link.display().to_string());
                (
                    entry.path().unwrap().display().to_string(),
                    link,
                    entry.header().mode().unwrap(),
                )
            })
            .collect();
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "bin/",
                "bin/link",
                &format!("bin/{long}"),
                "var/",
                "var/tmp/"
            ]
        );
        assert_eq!(found[1].1.as_deref(), Some(long.as_str()));
        assert_eq!(found[2].2, 0o4755);
    }
}
