//! What is a secret: names that say so, and texts that look like one.
//!
//! Names are judged word by word: `dbPassword`, `DB_PASSWORD` and `db-password` are the words `db` and `password`.
//! In doubt a name is a secret, since a value that is hidden can be asked for in another way and one that was shown
//! cannot be taken back: a lexer's `token` and a loop's `key` are masked. What follows is the whole list.

/// Words that make a name a secret's, wherever they stand in it.
const SECRET_WORDS: &[&str] = &[
    "authorisation",
    "authorization",
    "bearer",
    "contraseña",
    "cookie",
    "cookies",
    "cred",
    "credential",
    "credentials",
    "creds",
    "csrf",
    "cvc",
    "cvv",
    "dsn",
    "jwt",
    "kennwort",
    "otp",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "passwords",
    "passwort",
    "pin",
    "pw",
    "pwd",
    "secret",
    "secrets",
    "senha",
    "ssn",
    "token",
    "tokens",
    "totp",
    "xsrf",
];

/// Words that make a name a secret's where they are its last: `basic_auth`, not `auth_backend`.
const SECRET_LAST_WORDS: &[&str] = &["auth", "key", "keys", "pass"];

/// Words that make a name a secret's where they follow each other.
const SECRET_PAIRS: &[(&str, &str)] = &[
    ("access", "key"),
    ("api", "key"),
    ("auth", "header"),
    ("auth", "headers"),
    ("card", "number"),
    ("conn", "str"),
    ("conn", "string"),
    ("connect", "sid"),
    ("connection", "string"),
    ("credit", "card"),
    ("key", "bytes"),
    ("key", "data"),
    ("key", "material"),
    ("key", "pem"),
    ("private", "key"),
    ("session", "id"),
    ("session", "ids"),
];

/// Texts that make a word a secret's wherever they stand in it: `pgpassword`, `awssecretaccesskey`.
const SECRET_PARTS: &[&str] = &[
    "accesskey",
    "apikey",
    "connectionstring",
    "credential",
    "encryptionkey",
    "masterkey",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "privkey",
    "secret",
    "sessid",
    "sessionid",
    "sessionkey",
    "signingkey",
];

/// Ends that make a word a secret's: `authtoken`, not `tokenizer`.
const SECRET_ENDS: &[&str] = &["cookie", "cookies", "pwd", "token", "tokens"];

/// Words that contain one of the above and are no secret.
const HARMLESS_WORDS: &[&str] = &["passwordless", "secretariat", "secretaries", "secretary"];

/// Last words of names that tell something about a secret instead of holding it: `token_count`, `password_policy`.
const ABOUT: &[&str] = &[
    "age",
    "at",
    "bucket",
    "class",
    "cls",
    "count",
    "counts",
    "enabled",
    "error",
    "errors",
    "expired",
    "expires",
    "expiry",
    "field",
    "fields",
    "file",
    "filename",
    "hasher",
    "index",
    "kind",
    "len",
    "length",
    "limit",
    "limits",
    "name",
    "names",
    "path",
    "paths",
    "pattern",
    "policy",
    "regex",
    "required",
    "size",
    "sizes",
    "timeout",
    "ttl",
    "type",
    "types",
    "uri",
    "url",
    "usage",
    "valid",
    "validator",
    "validators",
];

/// First words of names that ask whether there is a secret, or how many: `has_password`, `max_tokens`.
const ASKS: &[&str] = &[
    "count", "has", "is", "max", "min", "n", "needs", "num", "require", "requires", "should",
    "total", "use", "uses",
];

/// What stands before `tokens` where these are counted: the usage that language models report.
const COUNTED: &[&str] = &[
    "cached",
    "completion",
    "context",
    "input",
    "output",
    "prompt",
    "reasoning",
    "remaining",
    "used",
];

/// What stands before `key` where that is not one for a lock.
const HARMLESS_KEYS: &[&str] = &[
    "cache",
    "child",
    "column",
    "composite",
    "dict",
    "entity",
    "extra",
    "field",
    "foreign",
    "group",
    "header",
    "index",
    "json",
    "lookup",
    "map",
    "message",
    "missing",
    "natural",
    "object",
    "parent",
    "partition",
    "primary",
    "public",
    "routing",
    "row",
    "shard",
    "sort",
    "surrogate",
    "table",
    "topic",
    "unique",
];

/// Words that name a secret and stand before a colon or an equals sign in much harmless text too.
const WEAK_IN_TEXT: &[&str] = &["auth", "key", "keys", "pass", "pin"];

/// How secrets of services begin, and at least how many characters follow.
const PREFIXES: &[(&str, usize)] = &[
    // AWS access key ids, https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    ("AKIA", 12),
    ("ASIA", 12),
    // Google API keys and OAuth tokens.
    ("AIza", 30),
    ("ya29.", 16),
    // GitHub, https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/
    ("ghp_", 16),
    ("gho_", 16),
    ("ghu_", 16),
    ("ghs_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 16),
    ("npm_", 30),
    ("pypi-", 30),
    ("sk_live_", 10),
    ("sk_test_", 10),
    ("rk_live_", 10),
    ("sk-", 20),
    ("xoxa-", 8),
    ("xoxb-", 8),
    ("xoxp-", 8),
    ("xoxr-", 8),
    ("xoxs-", 8),
];

/// Whether a variable's, a key's or an attribute's name says that its value is a secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let words = words(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((last, before)) = words.split_last() else {
        return false;
    };
    if words
        .iter()
        .zip(words.iter().skip(1))
        .any(|pair| SECRET_PAIRS.contains(&(*pair.0, *pair.1)))
    {
        return !ABOUT.contains(last);
    }
    if !before.is_empty()
        && (ABOUT.contains(last) || words.first().is_some_and(|first| ASKS.contains(first)))
    {
        return false;
    }
    let counted = *last == "tokens" && before.last().is_some_and(|word| COUNTED.contains(word));
    let harmless_key = last.starts_with("key")
        && before
            .last()
            .is_some_and(|word| HARMLESS_KEYS.contains(word));
    words.iter().any(|word| is_secret_word(word)) && !counted
        || SECRET_LAST_WORDS.contains(last) && !harmless_key
}

fn is_secret_word(word: &str) -> bool {
    !HARMLESS_WORDS.contains(&word)
        && (SECRET_WORDS.contains(&word)
            || SECRET_PARTS.iter().any(|part| word.contains(part))
            || SECRET_ENDS.iter().any(|end| word.ends_with(end)))
}

/// The words of a name in lower case: separated by anything but letters and digits, or by a capital letter. Digits at a
/// word's end are left out.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in name.split(|c: char| !c.is_alphanumeric()) {
        let mut word = String::new();
        let mut characters = part.chars().peekable();
        let mut previous = None::<char>;
        while let Some(c) = characters.next() {
            let begins = c.is_uppercase()
                && previous.is_some_and(|p| {
                    !p.is_uppercase() || characters.peek().is_some_and(|n| n.is_lowercase())
                });
            if begins {
                words.push(std::mem::take(&mut word));
            }
            word.extend(c.to_lowercase());
            previous = Some(c);
        }
        words.push(word);
    }
    for word in &mut words {
        let end = word.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        if end > 0 {
            word.truncate(end);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether a text looks like a secret, whatever its name. `cut` says that it goes on beyond what was read, where the
/// rest of a secret may stand.
pub(crate) fn is_secret_text(text: &str, cut: bool) -> bool {
    has_private_key(text)
        || has_user_info(text, cut)
        || has_authorization(text, cut)
        || has_web_token(text, cut)
        || has_prefix(text, cut)
        || has_assignment(text)
        || has_option(text)
}

/// `-----BEGIN RSA PRIVATE KEY-----`, RFC 7468.
fn has_private_key(text: &str) -> bool {
    text.split("-----BEGIN ").skip(1).any(|after| {
        after
            .chars()
            .take(40)
            .collect::<String>()
            .contains("PRIVATE KEY")
    })
}

/// `scheme://user:password@host`, and a user alone, which with many services is the token.
fn has_user_info(text: &str, cut: bool) -> bool {
    text.split("://").skip(1).any(|after| {
        let end = after.find(|c: char| c.is_whitespace() || "/?#'\"<>".contains(c));
        let authority = end.and_then(|end| after.get(..end)).unwrap_or(after);
        match authority.rsplit_once('@') {
            Some((user, _)) => {
                user.split_once(':')
                    .is_some_and(|(_, password)| !password.is_empty())
                    || user.len() >= 20
            }
            // A password may hold a slash that should have been quoted.
            None => {
                cut && end.is_none()
                    || authority.split_once(':').is_some_and(|(_, port)| {
                        !port
                            .chars()
                            .all(|c| c.is_ascii_digit() || c == ']' || c == ':')
                            && !authority.starts_with('[')
                            && after
                                .split(char::is_whitespace)
                                .next()
                                .is_some_and(|word| word.contains('@'))
                    })
            }
        }
    })
}

/// `Bearer …` and `Basic …`, the values of an `Authorization` header.
fn has_authorization(text: &str, cut: bool) -> bool {
    let lower = text.to_ascii_lowercase();
    let follows = |scheme: &str, at_start: bool| {
        lower.match_indices(scheme).any(|(at, _)| {
            let Some(after) = lower.get(at.saturating_add(scheme.len())..) else {
                return false;
            };
            let whole = lower
                .get(..at)
                .is_some_and(|before| !before.ends_with(char::is_alphanumeric));
            let run = after
                .trim_start_matches(' ')
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "-._~+/=".contains(*c));
            let run = run.count();
            let ends = after.trim_start_matches(' ').chars().nth(run).is_none();
            whole && (run >= 8 || cut && ends) && (!at_start || at == 0 && ends)
        })
    };
    follows("bearer ", false) || follows("basic ", true)
}

/// A JSON web token: base64 of `{"` begins with `eyJ`, RFC 7519.
fn has_web_token(text: &str, cut: bool) -> bool {
    text.split("eyJ").skip(1).any(|after| {
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        match end {
            Some(end) => end >= 8 && after.get(end..).is_some_and(|rest| rest.starts_with('.')),
            None => cut,
        }
    })
}

fn has_prefix(text: &str, cut: bool) -> bool {
    PREFIXES.iter().any(|(prefix, length)| {
        text.match_indices(prefix).any(|(at, _)| {
            let after = text
                .get(at.saturating_add(prefix.len())..)
                .unwrap_or_default();
            let run = after
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '-')
                .count();
            let whole = text
                .get(..at)
                .is_some_and(|before| !before.ends_with(char::is_alphanumeric));
            whole && (run >= *length || cut && run == after.len())
        })
    })
}

/// `password=…`, `"token": "…"`, `?api_key=…`, `<secret>…`: names with their values inside a text.
fn has_assignment(text: &str) -> bool {
    text.match_indices([':', '=', '>']).any(|(at, separator)| {
        let (before, after) = text.split_at_checked(at).unwrap_or_default();
        let value = after
            .trim_start_matches([':', '=', '>'])
            .trim_start_matches([' ', '\t', '\'', '"', '\\']);
        if !value.starts_with(|c: char| c.is_alphanumeric() || "$/+-_.{!#%&*~^([@".contains(c)) {
            return false;
        }
        let name = before.trim_end_matches(['\'', '"', '\\', ' ']);
        let start = name
            .rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
            .map_or(0, |at| name.ceil_char_boundary(at.saturating_add(1)));
        let (before, name) = name.split_at_checked(start).unwrap_or_default();
        (separator != ">" || before.ends_with('<')) && is_strong(name)
    })
}

/// `--password …` and `PASSWORD '…'`: a name and a value that nothing but a blank separates.
fn has_option(text: &str) -> bool {
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let Some(next) = words.peek() else {
            return false;
        };
        let named = if word.starts_with("--") {
            !next.starts_with('-')
        } else {
            next.starts_with(['\'', '"']) && word.chars().all(|c| c.is_alphanumeric() || c == '_')
        };
        if named && is_strong(word) {
            return true;
        }
    }
    false
}

/// Whether a name inside a text is a secret's.
fn is_strong(name: &str) -> bool {
    name.len() > 1 && !WEAK_IN_TEXT.contains(&name.to_lowercase().as_str()) && is_secret_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets() {
        for name in [
            "password",
            "Password",
            "password1",
            "_password",
            "__password",
            "db_password",
            "dbPassword",
            "DB_PASSWORD",
            "PGPASSWORD",
            "passwords",
            "password_hash",
            "passwd",
            "mysql_pwd",
            "db_pass",
            "pass",
            "passphrase",
            "secret",
            "client_secret",
            "clientSecret",
            "SECRET_KEY",
            "secret_id",
            "SecretString",
            "token",
            "tokens",
            "access_token",
            "accessToken",
            "refresh_token",
            "authtoken",
            "csrfmiddlewaretoken",
            "X-Auth-Token",
            "API_KEY",
            "api-key",
            "apiKey",
            "apikey",
            "APIKey",
            "x-api-key",
            "stripe_api_key_live",
            "access_key",
            "aws_access_key_id",
            "AWS_SECRET_ACCESS_KEY",
            "private_key",
            "privateKey",
            "private_key_pem",
            "encryption_key",
            "signing_keys",
            "key",
            "Authorization",
            "authorization",
            "Proxy-Authorization",
            "auth",
            "basic_auth",
            "auth_header",
            "credential",
            "credentials",
            "aws_credentials",
            "creds",
            "cookie",
            "cookies",
            "Set-Cookie",
            "session_cookie",
            "session_id",
            "sessionId",
            "sessionid",
            "PHPSESSID",
            "session_key",
            "dsn",
            "SENTRY_DSN",
            "connection_string",
            "ConnectionString",
            "conn_str",
            "jwt",
            "id_token",
            "bearer",
            "otp",
            "pin",
            "cvv",
            "credit_card",
            "ssn",
            "contraseña",
            "Passwort",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn names_of_what_is_no_secret() {
        for name in [
            "",
            "_",
            "author",
            "authority",
            "authenticated",
            "auth_backend",
            "monkey",
            "keyboard",
            "keyword",
            "keyed",
            "primary_key",
            "sort_key",
            "cacheKey",
            "public_key",
            "foreign_keys",
            "key_count",
            "passenger",
            "passed",
            "compass",
            "bypass",
            "pass_count",
            "pinned",
            "spin",
            "tokenizer",
            "tokenize",
            "tokenized",
            "token_count",
            "tokenCount",
            "token_type",
            "token_url",
            "max_tokens",
            "prompt_tokens",
            "num_tokens",
            "password_policy",
            "password_length",
            "has_password",
            "is_secret",
            "secretary",
            "secret_name",
            "passwordless",
            "session",
            "session_count",
            "sessions",
            "result",
            "user",
            "username",
            "email",
            "id",
            "connection",
            "card",
            "cookie_name",
            "credentials_path",
            "api_url",
            "access",
            "private",
            "hotpot",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn texts_that_are_secrets() {
        for text in [
            "postgres://app:hunter2@db:5432/app",
            "redis://:hunter2@cache/0",
            "amqp://guest:p%40ss@mq//",
            "https://ghp0123456789abcdef0123@github.com/a/b",
            "connecting to mysql+pymysql://root:toor@127.0.0.1/x now",
            "postgres://app:hun/ter2@db/app",
            "Bearer abcdefgh12345678",
            "Authorization: bearer abc.def-ghi_jkl",
            "Basic dXNlcjpodW50ZXIy",
            "-----BEGIN PRIVATE KEY-----\nMIIEv",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "x\n-----BEGIN ENCRYPTED PRIVATE KEY-----",
            "AKIAIOSFODNN7EXAMPLE",
            "key id ASIAIOSFODNN7EXAMPLE!",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
            "ghp_0123456789abcdefABCDEF0123456789abcd",
            "xoxb-123456789012-abc",
            "host=db user=app password=hunter2",
            "{\"user\": \"a\", \"password\": \"hunter2\"}",
            "https://api/x?api_key=abc&y=1",
            "Cookie: a=b",
            "<user>a</user><password>hunter2</password>",
            "mysql --user app --password hunter2 db",
            "ALTER USER app PASSWORD 'hunter2'",
            "AccountName=a;AccountKey=x;SharedAccessToken=y",
        ] {
            assert!(is_secret_text(text, false), "{text}");
        }
    }

    #[test]
    fn texts_that_are_none() {
        for text in [
            "",
            "plain",
            "https://example.com/a@b",
            "http://localhost:8080/path",
            "http://[::1]:8080/",
            "git@github.com:a/b.git",
            "user@example.com",
            "ssh://git@github.com/a/b",
            "the bearer of news",
            "Basic instructions for users",
            "-----BEGIN CERTIFICATE-----\nMIIC",
            "-----BEGIN PUBLIC KEY-----",
            "Enter your password: ",
            "token_count=5",
            "<password></password>",
            "tool --password --verbose",
            "a password is needed",
            "key: value",
            "AKIA",
            "eyJ",
            "task-1",
            "12:30:01",
            "mask-abcdefghijklmnopqrstuvwxyz",
        ] {
            assert!(!is_secret_text(text, false), "{text}");
        }
    }

    #[test]
    fn the_rest_of_a_secret_may_be_cut_off() {
        for text in [
            "postgres://app:hunt",
            "Bearer abc",
            "eyJhbGciOi",
            "see AKIAIOS",
            "ghp_0123",
        ] {
            assert!(is_secret_text(text, true), "{text}");
            assert!(!is_secret_text(text, false), "{text}");
        }
        assert!(!is_secret_text("https://example.com/a long story", true));
    }
}
