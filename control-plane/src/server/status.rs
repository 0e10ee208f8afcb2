//! What operators are told of clients, as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

/// One connected client.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClientStatus {
    /// Node id as the client says it.
    pub node: String,
    /// Its class, for example `grpc-go`.
    pub class: String,
    /// Version of the last configuration that the client has answered in full.
    pub settled: Option<String>,
    /// By `cds`, `eds`, `lds`, `rds`, `sds`.
    pub types: BTreeMap<&'static str, TypeStatus>,
}

/// What a client was sent of one type.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TypeStatus {
    /// Version of the last response.
    pub sent: Option<String>,
    /// Version of the last response that the client accepted.
    pub acked: Option<String>,
    /// Why the client refused the last response; `null` if it did not.
    pub nack: Option<String>,
    /// How many resources it has.
    pub resources: usize,
    /// How many of them it did not answer yet.
    pub pending: usize,
    /// How many of them it refuses.
    pub refused: usize,
    /// Why it is not sent the newest; `null` if it is.
    pub withheld: Option<String>,
}

/// One resource, over all clients that have it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ResourceStatus {
    /// `cds`, `eds`, `lds`, `rds` or `sds`.
    pub r#type: &'static str,
    /// Its name.
    pub name: String,
    /// The objects that it is made of, for example `VirtualService default/greeter`.
    pub objects: Vec<String>,
    /// How many clients have which version; classes have versions of their own content.
    pub versions: BTreeMap<String, usize>,
    /// How many clients accepted what they have.
    pub acked: usize,
    /// How many refused it.
    pub nacked: usize,
    /// How many did not answer yet.
    pub pending: usize,
    /// Some of those that refused it, and why.
    pub refusals: Vec<Unfinished>,
    /// Some of those that did not answer yet.
    pub waiting: Vec<Unfinished>,
}

/// A client that did not accept something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unfinished {
    /// Its node id.
    pub node: String,
    /// Its class.
    pub class: &'static str,
    /// Type and name of the resource; empty when it is about no single one.
    pub resource: String,
    /// Why it refused; empty when it did not answer.
    pub text: String,
}

/// How far a version has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// Every client has answered, and accepted.
    Done,
    /// Every client has answered, and some refused a part.
    Refused,
    /// Some clients did not answer in time.
    Waiting,
    /// There was no such version in time.
    Unknown,
}

/// The answer to waiting.
#[derive(Clone, Debug, Serialize)]
pub struct Waited {
    /// How far it came.
    pub progress: Progress,
    /// The version that was waited for, or the newest.
    pub version: String,
    /// How many clients are connected.
    pub clients: usize,
    /// How many of them have it.
    pub settled: usize,
    /// Some of those that did not answer.
    pub waiting: Vec<Unfinished>,
    /// Some refusals.
    pub refusals: Vec<Unfinished>,
}
