//! What the operator asked of the API server, counted in the API server's audit log: nothing else tells users apart.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::super::figures::table;

/// The log is read again until nothing was added for so long: Events are published after a session's end.
const QUIET: Duration = Duration::from_secs(2);
/// It never becomes quiet while the lease is renewed; so often it is looked at, at most.
const LOOKS: usize = 10;

/// The audit log of a cluster, and whose requests in it count.
#[derive(Clone, Debug)]
pub(super) struct Audit {
    /// The folder with `audit.log`, and with `audit-….log` once it became too large.
    pub(super) folder: PathBuf,
    /// The user.
    pub(super) user: String,
}

/// A place in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    inode: u64,
    offset: u64,
}

/// One request, as the log has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "auditID")]
    id: String,
    verb: String,
    user: User,
    #[serde(rename = "requestURI", default)]
    uri: String,
    #[serde(default)]
    object_ref: Option<Object>,
    #[serde(default)]
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// Requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    verb: String,
    resource: String,
    dry_run: bool,
}

/// How many there were, and how many of them were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    all: usize,
    refused: usize,
}

/// Requests by kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(BTreeMap<Kind, Count>);

impl Audit {
    /// The end of the log.
    ///
    /// # Errors
    /// When there is no log.
    pub(super) fn mark(&self) -> Result<Mark> {
        let file = self.folder.join("audit.log");
        let found = std::fs::metadata(&file)
            .with_context(|| format!("the API server writes no audit log to {}", file.display()))?;
        Ok(Mark {
            inode: found.ino(),
            offset: found.len(),
        })
    }

    /// What was asked since `mark`, once no more comes.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) async fn since(&self, mark: Mark) -> Result<Requests> {
        let mut requests = self.read(mark)?;
        for _ in 0..LOOKS {
            tokio::time::sleep(QUIET).await;
            let again = self.read(mark)?;
            let quiet = again.writes() == requests.writes();
            requests = again;
            if quiet {
                break;
            }
        }
        Ok(requests)
    }

    fn read(&self, mark: Mark) -> Result<Requests> {
        let mut requests = Requests::default();
        let mut streams = HashSet::new();
        for (index, path) in self.files(mark)?.iter().enumerate() {
            let mut file =
                File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            if index == 0 {
                file.seek(SeekFrom::Start(mark.offset))?;
            }
            for line in BufReader::new(file).split(b'\n') {
                let line = line.with_context(|| format!("cannot read {}", path.display()))?;
                requests.add(&line, &self.user, &mut streams);
            }
        }
        Ok(requests)
    }

    /// The files from the one with `mark` on, in the order of their writing.
    fn files(&self, mark: Mark) -> Result<Vec<PathBuf>> {
        let mut rotated: Vec<PathBuf> = std::fs::read_dir(&self.folder)
            .with_context(|| format!("cannot list {}", self.folder.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with("audit-"))
            })
            .collect();
        // Their names carry the time.
        rotated.sort();
        rotated.push(self.folder.join("audit.log"));
        let inode = |path: &Path| std::fs::metadata(path).map(|found| found.ino()).ok();
        Ok(rotated
            .into_iter()
            .skip_while(|path| inode(path) != Some(mark.inode))
            .collect())
    }
}

impl Requests {
    fn add(&mut self, line: &[u8], user: &str, streams: &mut HashSet<String>) {
        // A line that is being written has no end yet, and is read the next time.
        let Ok(entry) = serde_json::from_slice::<Entry>(line) else {
            return;
        };
        if entry.user.username != user {
            return;
        }
        let object = entry.object_ref.as_ref();
        let mut resource = object.map_or_else(
            || entry.uri.split('?').next().unwrap_or_default().to_owned(),
            |object| object.resource.clone(),
        );
        if let Some(object) = object.filter(|object| !object.subresource.is_empty()) {
            resource = format!("{resource}/{}", object.subresource);
        }
        // What lasts is in the log twice: when its answer begins, and when it ends.
        if (entry.verb == "watch" || resource == "pods/exec") && !streams.insert(entry.id) {
            return;
        }
        let kind = Kind {
            verb: entry.verb,
            resource,
            dry_run: entry.uri.contains("dryRun=All"),
        };
        let count = self.0.entry(kind).or_default();
        count.all += 1;
        let refused = entry
            .response_status
            .is_some_and(|status| status.code >= 400);
        count.refused += usize::from(refused);
    }

    /// All but those for the lease, which come with time and not with sessions.
    pub(super) fn all(&self) -> usize {
        self.sum(|kind| kind.resource != "leases")
    }

    /// Those of [`Self::all`] that store something.
    pub(super) fn writes(&self) -> usize {
        self.sum(|kind| kind.writes() && kind.resource != "leases")
    }

    fn sum(&self, which: impl Fn(&Kind) -> bool) -> usize {
        self.0
            .iter()
            .filter(|(kind, _)| which(kind))
            .map(|(_, count)| count.all)
            .sum()
    }

    /// Each kind, and how many there were for each of `sessions`.
    pub(super) fn shown(&self, sessions: usize) -> String {
        let mut rows = vec![
            ["verb", "resource", "requests", "per session", "refused"]
                .map(str::to_owned)
                .to_vec(),
        ];
        let mut kinds: Vec<(&Kind, &Count)> = self.0.iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(count.all));
        for (kind, count) in kinds {
            let dry = if kind.dry_run { " (dry run)" } else { "" };
            rows.push(vec![
                kind.verb.clone(),
                format!("{}{dry}", kind.resource),
                count.all.to_string(),
                format!("{:.2}", per(count.all, sessions)),
                count.refused.to_string(),
            ]);
        }
        table(&rows)
    }
}

impl Kind {
    fn writes(&self) -> bool {
        let verb = matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        );
        // A review is a question, and an exec a stream.
        let stores = !self.resource.ends_with("reviews") && self.resource != "pods/exec";
        verb && stores && !self.dry_run
    }
}

/// So many for each.
pub(super) fn per(count: usize, sessions: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    number(count) / number(sessions.max(1))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn line(id: &str, user: &str, verb: &str, resource: &str, uri: &str, code: u16) -> String {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        serde_json::json!({
            "kind": "Event", "level": "Metadata", "auditID": id, "stage": "ResponseComplete", "verb": verb,
            "requestURI": uri, "user": {"username": user, "groups": []},
            "objectRef": {"resource": resource, "subresource": subresource},
            "responseStatus": {"metadata": {}, "code": code},
        })
        .to_string()
            + "\n"
    }

    #[test]
    fn only_the_users_own_requests_count_and_streams_count_once() {
        let mut requests = Requests::default();
        let mut streams = HashSet::new();
        for line in [
            line("1", "op", "patch", "debugsessions/status", "/a", 200),
            line("2", "op", "patch", "debugsessions/status", "/a", 409),
            line(
                "3",
                "op",
                "patch",
                "pods/ephemeralcontainers",
                "/a?dryRun=All&x",
                200,
            ),
            line("4", "op", "watch", "pods", "/a", 200),
            line("4", "op", "watch", "pods", "/a", 200),
            line("5", "op", "get", "pods/exec", "/a", 101),
            line("5", "op", "get", "pods/exec", "/a", 101),
            line("6", "op", "update", "leases", "/a", 200),
            line("7", "op", "create", "subjectaccessreviews", "/a", 201),
            line("8", "op", "create", "events", "/a", 201),
            line("9", "other", "create", "events", "/a", 201),
            "{\"half\": ".to_owned(),
        ] {
            requests.add(line.as_bytes(), "op", &mut streams);
        }
        assert_eq!(requests.writes(), 3, "{requests:?}");
        assert_eq!(requests.all(), 7, "{requests:?}");
        assert_eq!(requests.sum(|kind| kind.resource == "pods/exec"), 1);
        let shown = requests.shown(2);
        assert!(shown.contains("debugsessions/status"), "{shown}");
        assert!(shown.contains("1.00"), "{shown}");
        assert!(shown.contains("(dry run)"), "{shown}");
    }

    #[test]
    fn the_log_is_read_from_the_mark_on_through_its_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit {
            folder: folder.path().to_owned(),
            user: "op".to_owned(),
        };
        assert!(audit.mark().is_err());
        let log = folder.path().join("audit.log");
        let event = |id: &str| line(id, "op", "create", "events", "/a", 201);
        std::fs::write(folder.path().join("audit-2020.log"), event("0")).unwrap();
        std::fs::write(&log, event("1")).unwrap();
        let mark = audit.mark().unwrap();
        let mut file = File::options().append(true).open(&log).unwrap();
        file.write_all(event("2").as_bytes()).unwrap();
        std::fs::rename(&log, folder.path().join("audit-2021.log")).unwrap();
        std::fs::write(&log, event("3")).unwrap();
        assert_eq!(audit.read(mark).unwrap().writes(), 2);
    }
}
