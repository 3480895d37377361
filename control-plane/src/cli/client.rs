//! The API's client. Its errors say where it looked and which flag would change that.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::ApiArgs;
use crate::objects::DEFAULT_NAMESPACE;
use crate::serve::api::LINES;
use crate::serve::api::auth::{ACTOR_HEADER, DEFAULT_FILE, TokenError, first_token};
use crate::serve::api::problem::Problem;
use crate::serve::api::types::{Changed, MigrationView, Progress, RollbackRequest, SetRequest};

/// For one answer; a server that waits on purpose (`wait_ms`) does so for at most a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(70);
/// One long-polling request; what is between may end longer ones.
const POLL: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Nobody there.
    #[error(
        "cannot reach the control plane at {url}: {cause}; does `pontoon serve` run there? Say where with --api or \
         PONTOON_API"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        cause: String,
    },
    /// No token to show.
    #[error(
        "no token for the API: {0}; name the control plane's with --token-file or PONTOON_TOKEN_FILE, or its data folder with --data"
    )]
    Token(TokenError),
    /// The server said no.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// What stands in the text; the change is made, but not in force.
    #[error("{0}")]
    NotInForce(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CliError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Unreachable { .. } => 3,
            CliError::NotInForce(_) => 4,
            CliError::Token(_) | CliError::Refused(_) | CliError::Other(_) => 1,
        }
    }
}

/// Asks a running control plane.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: HeaderValue,
    actor: Option<HeaderValue>,
}

impl Client {
    /// As the flags say. Reads the token; connects on the first request.
    pub fn from_args(args: &ApiArgs) -> Result<Client, CliError> {
        let file: PathBuf = args.token_file.clone().unwrap_or_else(|| args.data.join(DEFAULT_FILE));
        let token = first_token(&file).map_err(CliError::Token)?;
        let login = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
        Client::new(&args.api, &token, args.actor.clone().or_else(login).as_deref())
    }

    /// Asks the API at `base` (`http://host:port`), as `actor` in the audit log.
    pub fn new(base: &str, token: &str, actor: Option<&str>) -> Result<Client, CliError> {
        let url = Url::parse(base).ok().filter(|url| url.scheme() == "http" && url.has_host()).ok_or_else(
            || CliError::Other(format!("{base:?} is no URL of an API: --api http://HOST:8767")),
        )?;
        let mut token = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| CliError::Other("the API's token has odd characters".to_owned()))?;
        token.set_sensitive(true);
        let actor = actor.and_then(|name| HeaderValue::from_str(name).ok());
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| CliError::Other(error.to_string()))?;
        Ok(Client { http, base: url, token, actor })
    }

    /// All migrations, by name.
    pub async fn migrations(&self) -> Result<Vec<MigrationView>, CliError> {
        self.get(&["migrations"], &[]).await
    }

    /// One migration, named `NAME` or `NAMESPACE/NAME`.
    pub async fn migration(&self, name: &str) -> Result<MigrationView, CliError> {
        let (namespace, name) = split_name(name)?;
        self.get(&["migrations", namespace, name], &[]).await
    }

    /// Moves a migration; returns once the change is made, which is before it is in force.
    pub async fn set(&self, name: &str, body: &SetRequest) -> Result<Changed, CliError> {
        let (namespace, name) = split_name(name)?;
        self.send(Method::PUT, &["migrations", namespace, name, "stage"], body).await
    }

    /// Takes a migration back; returns once the change is made, which is before it is in force.
    pub async fn rollback(&self, name: &str, body: &RollbackRequest) -> Result<Changed, CliError> {
        let (namespace, name) = split_name(name)?;
        self.send(Method::POST, &["migrations", namespace, name, "rollback"], body).await
    }

    /// Waits until no connected proxy is left to acknowledge what `migration` says, until `timeout`, or until
    /// somebody else changes the migration: the answer tells which.
    pub async fn wait_in_force(
        &self,
        migration: MigrationView,
        timeout: Duration,
    ) -> Result<MigrationView, CliError> {
        let deadline = Instant::now() + timeout;
        let revision = migration.revision;
        let mut now = migration;
        while now.in_force.progress == Progress::Waiting && now.revision == revision {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let wait = left.min(POLL).as_millis().max(1).to_string();
            let (namespace, name) = split_name(&now.name)?;
            now = self.get(&["migrations", namespace, name], &[("wait_ms", wait)]).await?;
        }
        Ok(now)
    }

    /// GET, with query parameters.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, CliError> {
        self.call(Method::GET, path, query, None::<&()>).await
    }

    /// A request with a JSON body.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.call(method, path, &[], Some(body)).await
    }

    /// The audit log after `after`, as it is stored: one JSON object a line.
    pub async fn audit_lines(&self, after: u64) -> Result<String, CliError> {
        let query = [("after", after.to_string())];
        let body = self.ask(Method::GET, &["audit"], &query, None::<&()>, LINES).await?;
        String::from_utf8(body.into()).map_err(|error| CliError::Other(error.to_string()))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> Result<T, CliError> {
        let body = self.ask(method, path, query, body, "application/json").await?;
        serde_json::from_slice(&body).map_err(|error| {
            CliError::Other(format!("{} answers what this version does not understand: {error}", self.base))
        })
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
        accept: &'static str,
    ) -> Result<bytes::Bytes, CliError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).header(ACCEPT, accept);
        request = request.header(AUTHORIZATION, self.token.clone());
        if let Some(actor) = &self.actor {
            request = request.header(ACTOR_HEADER, actor.clone());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| CliError::Unreachable {
            url: self.base.to_string(),
            cause: root_cause(&error),
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/problem+json"));
        let body = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice(&body) {
            Ok(problem) if is_problem => Err(CliError::Refused(problem)),
            _ => Err(CliError::Other(format!("{} answers {status}; is it a Pontoon API?", self.base))),
        }
    }
}

/// `inventory` or `shop/inventory`, as namespace and name.
pub fn split_name(name: &str) -> Result<(&str, &str), CliError> {
    let (namespace, name_only) = name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, name));
    if namespace.is_empty() || name_only.is_empty() || name_only.contains('/') {
        return Err(CliError::Other(format!("{name:?} is no name: use NAME or NAMESPACE/NAME")));
    }
    Ok((namespace, name_only))
}

/// The last cause of an error: the one that says what happened on the wire.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
