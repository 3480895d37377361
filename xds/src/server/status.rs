//! What a server knows of its clients, as plain data.

use std::sync::Arc;
use std::time::SystemTime;

use crate::resource::ResourceType;

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    /// The view it belongs to.
    pub view: String,
    /// `Node.id`.
    pub node: String,
}

/// One connected client.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStatus {
    /// `Node.id`.
    pub id: String,
    /// `Node.cluster`.
    pub cluster: String,
    /// `Node.user_agent_name` and its version.
    pub user_agent: String,
    /// The view it belongs to.
    pub view: String,
    /// Whether it speaks delta (else: state of the world).
    pub delta: bool,
    /// When the stream was opened.
    pub connected_at: SystemTime,
    /// Per type that it has asked for.
    pub types: Vec<TypeStatus>,
}

/// What a client has of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct TypeStatus {
    /// The type.
    pub ty: ResourceType,
    /// Whether it subscribes to all.
    pub wildcard: bool,
    /// The names that it subscribes to one by one.
    pub names: Vec<Arc<str>>,
    /// Version of all that was acknowledged.
    pub acknowledged_version: String,
    /// Version of all that was sent.
    pub sent_version: String,
    /// Whether everything of the published snapshot that it subscribes to is acknowledged.
    pub in_sync: bool,
    /// Name and version of each resource that was acknowledged.
    pub acknowledged: Vec<(Arc<str>, Arc<str>)>,
    /// The last refusal, if one came since the type's last full agreement.
    pub nack: Option<Nack>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct Nack {
    /// When it came.
    pub at: SystemTime,
    /// The client's words.
    pub message: String,
    /// Name and version of each resource of the refused response.
    pub resources: Vec<(Arc<str>, Arc<str>)>,
}

/// A client's last word against resources of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// Who.
    pub client: Client,
    /// Of which type.
    pub ty: ResourceType,
    /// What, and why.
    pub nack: Nack,
}

/// Who has acknowledged one version of one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Ids of the nodes that have.
    pub yes: Vec<String>,
    /// Ids of the nodes that subscribe to it and have not.
    pub no: Vec<String>,
    /// Ids of the nodes that followed it, whose stream broke off, and that are expected back.
    pub away: Vec<String>,
}

/// How far one version of one resource has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No client follows the resource.
    Nobody,
    /// A client that follows it has not acknowledged this version, or is away.
    Waiting,
    /// All that follow it have acknowledged it.
    Everybody,
}
