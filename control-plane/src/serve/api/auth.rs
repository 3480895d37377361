//! Who may use the API. A token file holds one token a line, `name:token` or only the token; the name goes
//! into the audit log. Only digests are kept in memory, and those are compared: how long that takes says
//! nothing about a token.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};

use super::problem::Problem;

/// The token file in the data folder, made on the first start where no other is named.
pub const DEFAULT_FILE: &str = "api-token";
/// The header in which a client names the person behind it.
pub const ACTOR_HEADER: &str = "x-pontoon-actor";
/// The name of a token that has none.
const NAMELESS: &str = "token";
/// Shorter tokens can be guessed.
const SHORTEST: usize = 16;
/// Characters of an actor that are kept.
const LONGEST_ACTOR: usize = 128;
/// 256 bits.
const GENERATED_BYTES: usize = 32;

/// The tokens that are let in.
#[derive(Clone)]
pub struct Tokens {
    known: Vec<(String, [u8; 32])>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.known.iter().map(|(name, _)| name)).finish()
    }
}

/// What is wrong with a token file.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read or made.
    #[error("the token file {file}: {source}")]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing in it.
    #[error("the token file {0} holds no token: write one a line, as name:token or the token alone")]
    Empty(PathBuf),
    /// A token that can be guessed.
    #[error("the token file {file}, line {line}: a token has at least {SHORTEST} characters and no spaces")]
    Weak {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// No randomness to be had.
    #[error("the system gives no random bytes for a token: {0}")]
    Random(getrandom::Error),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// As they name themselves, else the token's name.
    pub actor: String,
    /// The name of the token they showed.
    pub token: String,
}

impl Tokens {
    /// Reads `file`.
    pub fn read(file: &Path) -> Result<Tokens, TokenError> {
        let pairs = parse(file)?;
        Ok(Tokens { known: pairs.into_iter().map(|(name, token)| (name, digest(&token))).collect() })
    }

    /// Reads `file`, or makes it with one random token, readable by its owner only.
    pub fn read_or_create(file: &Path) -> Result<Tokens, TokenError> {
        let io = |source| TokenError::Io { file: file.to_owned(), source };
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
            Ok(mut created) => {
                let mut bytes = [0; GENERATED_BYTES];
                getrandom::fill(&mut bytes).map_err(TokenError::Random)?;
                let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                created.write_all(format!("admin:{token}\n").as_bytes()).map_err(io)?;
                created.sync_all().map_err(io)?;
                tracing::info!(file = %file.display(), "a token for the API was made");
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mode = std::fs::metadata(file).map_err(io)?.mode();
                if mode & 0o077 != 0 {
                    tracing::warn!(file = %file.display(), "others than its owner may read the API's token file; chmod 600 it");
                }
            }
            Err(error) => return Err(io(error)),
        }
        Tokens::read(file)
    }

    /// Lets a request in, or says why not.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let denied = |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
        let shown = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| digest(token.trim()));
        let Some(shown) = shown else {
            return Err(denied(
                "this needs `Authorization: Bearer TOKEN`, with a token of the server's token file",
            ));
        };
        let Some((name, _)) = self.known.iter().find(|(_, digest)| *digest == shown) else {
            return Err(denied(
                "this token is none of the server's token file; is it that of another server?",
            ));
        };
        let claimed = headers.get(ACTOR_HEADER).and_then(|value| value.to_str().ok()).map(str::trim);
        let actor = match claimed {
            Some(claimed) if !claimed.is_empty() => claimed.chars().take(LONGEST_ACTOR).collect(),
            _ => name.clone(),
        };
        Ok(Caller { actor, token: name.clone() })
    }
}

/// The first token of a file: what the command line shows.
pub fn first_token(file: &Path) -> Result<String, TokenError> {
    parse(file)?.into_iter().next().map(|(_, token)| token).ok_or(TokenError::Empty(file.to_owned()))
}

fn parse(file: &Path) -> Result<Vec<(String, String)>, TokenError> {
    let text =
        std::fs::read_to_string(file).map_err(|source| TokenError::Io { file: file.to_owned(), source })?;
    let mut pairs = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, token) = line.split_once(':').unwrap_or((NAMELESS, line));
        let (name, token) = (name.trim(), token.trim());
        if token.len() < SHORTEST || token.contains(char::is_whitespace) {
            return Err(TokenError::Weak { file: file.to_owned(), line: index + 1 });
        }
        pairs.push((name.to_owned(), token.to_owned()));
    }
    if pairs.is_empty() { Err(TokenError::Empty(file.to_owned())) } else { Ok(pairs) }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_made_token_is_private_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        let tokens = Tokens::read_or_create(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let token = first_token(&file).unwrap();
        assert_eq!(token.len(), 64);
        Tokens::read_or_create(&file).unwrap();
        assert_eq!(first_token(&file).unwrap(), token);
        let caller = tokens.caller(&headers(&[("authorization", format!("Bearer {token}"))])).unwrap();
        assert_eq!((caller.actor.as_str(), caller.token.as_str()), ("admin", "admin"));
    }

    #[test]
    fn several_tokens_have_names_and_a_caller_may_say_who_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, "# ours\n\nci: 0123456789abcdef\n  fedcba9876543210\n").unwrap();
        let tokens = Tokens::read(&file).unwrap();
        let ci = tokens.caller(&headers(&[("authorization", "bearer 0123456789abcdef".into())])).unwrap();
        assert_eq!(ci.actor, "ci");
        let named = [("authorization", "Bearer fedcba9876543210".into()), (ACTOR_HEADER, "jo".into())];
        let named = tokens.caller(&headers(&named)).unwrap();
        assert_eq!((named.actor.as_str(), named.token.as_str()), ("jo", NAMELESS));
    }

    #[test]
    fn who_shows_no_or_another_token_stays_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        let tokens = Tokens::read_or_create(&file).unwrap();
        for shown in ["", "Basic x", "Bearer", "Bearer ", "Bearer 0123456789abcdef"] {
            let problem = tokens.caller(&headers(&[("authorization", shown.into())])).unwrap_err();
            assert_eq!(problem.status, 401, "{shown}");
        }
        assert_eq!(tokens.caller(&HeaderMap::new()).unwrap_err().status, 401);
    }

    #[test]
    fn a_weak_or_empty_file_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, "ok:0123456789abcdef\nci:short\n").unwrap();
        assert!(Tokens::read(&file).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(Tokens::read(&file), Err(TokenError::Empty(_))));
    }
}
