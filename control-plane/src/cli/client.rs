//! The API's client. Its errors say where it looked and which flag would change that.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ApiArgs;
use crate::serve::api::auth::{ACTOR_HEADER, DEFAULT_FILE, TokenError, first_token};
use crate::serve::api::problem::Problem;

/// For one answer; a server that waits on purpose (`wait_ms`) does so for at most a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(70);
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
    /// Reads the token; connects on the first request.
    pub fn new(args: &ApiArgs) -> Result<Client, CliError> {
        let base =
            Url::parse(&args.api).ok().filter(|url| url.scheme() == "http" && url.has_host()).ok_or_else(
                || CliError::Other(format!("{:?} is no URL of an API: --api http://HOST:8767", args.api)),
            )?;
        let file: PathBuf = args.token_file.clone().unwrap_or_else(|| args.data.join(DEFAULT_FILE));
        let token = first_token(&file).map_err(CliError::Token)?;
        let mut token = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| CliError::Other(format!("the token in {} has odd characters", file.display())))?;
        token.set_sensitive(true);
        let login = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
        let actor = args.actor.clone().or_else(login).and_then(|name| HeaderValue::from_str(&name).ok());
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| CliError::Other(error.to_string()))?;
        Ok(Client { http, base, token, actor })
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

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> Result<T, CliError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).header(AUTHORIZATION, self.token.clone());
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
            return serde_json::from_slice(&body).map_err(|error| {
                CliError::Other(format!(
                    "{} answers what this version does not understand: {error}",
                    self.base
                ))
            });
        }
        match serde_json::from_slice(&body) {
            Ok(problem) if is_problem => Err(CliError::Refused(problem)),
            _ => Err(CliError::Other(format!("{} answers {status}; is it a Pontoon API?", self.base))),
        }
    }
}

/// The last cause of an error: the one that says what happened on the wire.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
