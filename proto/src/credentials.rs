//! What Sluice presents to the servers: a user and password per group.
//!
//! They come from a file or from the environment, never from arguments; they are never printed.
//! The file is TOML:
//!
//! ```toml
//! password = "for every group that is not named below"
//! username = "sluice"          # optional; without it the server's default user
//!
//! [group.g1]
//! password = "for g1 only"
//! ```
//!
//! In the environment: `SLUICE_SERVER_PASSWORD`, `SLUICE_SERVER_USERNAME`, and per group the same
//! with the group's id behind it, in capitals and with `_` for `-`: `SLUICE_SERVER_PASSWORD_G1`.
//! What the file says goes before what the environment says.

use std::{collections::BTreeMap, env, fmt, fs, io, path::Path};

use serde::Deserialize;

use crate::id::GroupId;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, to be presented to whoever asks for it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Reads a file that holds one secret; a line break at its end is not part of it.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = read(path)?;
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        if secret.is_empty() {
            return Err(LoadError::Empty {
                path: path.display().to_string(),
            });
        }
        Ok(Self(secret.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Who to be at a server.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// `None`: the server's default user.
    pub username: Option<String>,
    /// The password.
    pub password: Secret,
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is no such TOML. Says where, and shows nothing of the content.
    #[error("{path}: not a credentials file: {message}")]
    Parse {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The file holds nothing.
    #[error("{path}: is empty: expected a password")]
    Empty {
        /// The file.
        path: String,
    },
}

/// The login of every group.
#[derive(Clone, Default, Debug)]
pub struct Credentials {
    default: Option<Login>,
    groups: BTreeMap<GroupId, Login>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    username: Option<String>,
    password: Option<Secret>,
    #[serde(default)]
    group: BTreeMap<GroupId, Login>,
}

impl Credentials {
    /// Reads the file, if there is one; the environment is asked where the file is silent.
    pub fn load(file: Option<&Path>) -> Result<Self, LoadError> {
        let Some(path) = file else {
            return Ok(Self::default());
        };
        let text = read(path)?;
        let parse_error = |message: &str| LoadError::Parse {
            path: path.display().to_string(),
            message: message.to_owned(),
        };
        // `message()` leaves out the line it complains of, which may be the password's.
        let file: File = toml::from_str(&text).map_err(|e| parse_error(e.message()))?;
        if file.password.is_none() && file.username.is_some() {
            return Err(parse_error("a username without a password"));
        }
        Ok(Self {
            default: file.password.map(|password| Login {
                username: file.username,
                password,
            }),
            groups: file.group,
        })
    }

    /// Who to be at the servers of a group. `None`: no login is needed.
    pub fn login(&self, group: &GroupId) -> Option<Login> {
        let suffix = group.as_str().to_ascii_uppercase().replace('-', "_");
        self.groups
            .get(group)
            .cloned()
            .or_else(|| from_env(&format!("_{suffix}")))
            .or_else(|| self.default.clone())
            .or_else(|| from_env(""))
    }
}

fn from_env(suffix: &str) -> Option<Login> {
    let password = env::var(format!("SLUICE_SERVER_PASSWORD{suffix}")).ok()?;
    let username = env::var(format!("SLUICE_SERVER_USERNAME{suffix}")).ok();
    Some(Login {
        username,
        password: Secret(password),
    })
}

fn read(path: &Path) -> Result<String, LoadError> {
    fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Credentials, LoadError> {
        let path = env::temp_dir().join(format!("sluice-credentials-{:p}", text.as_ptr()));
        fs::write(&path, text).unwrap();
        let result = Credentials::load(Some(&path));
        fs::remove_file(&path).unwrap();
        result
    }

    #[test]
    fn a_group_has_its_own_login_or_the_default() {
        let c = load("password = \"p\"\n[group.g1]\nusername = \"u\"\npassword = \"q\"\n").unwrap();
        let g1 = c.login(&GroupId::new("g1").unwrap()).unwrap();
        assert_eq!(
            (g1.username.as_deref(), g1.password.expose()),
            (Some("u"), "q")
        );
        let g2 = c.login(&GroupId::new("g2").unwrap()).unwrap();
        assert_eq!((g2.username, g2.password.expose()), (None, "p"));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let c = load("password = \"hunter2\"\n").unwrap();
        assert!(!format!("{c:?}").contains("hunter2"));
        let e = load("password = \"hunter2\"\npasswrod = \"hunter3\"\n").unwrap_err();
        assert!(!format!("{e} {e:?}").contains("hunter"), "{e}");
        let e = load("password = hunter2\n").unwrap_err();
        assert!(!format!("{e} {e:?}").contains("hunter"), "{e}");
    }
}
