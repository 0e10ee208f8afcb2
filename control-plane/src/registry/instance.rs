//! What a service says of itself when it registers, and what is known of it since.
//!
//! Plain data, as the store keeps it; what happens to it in time is the table's.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// An instance of a service, as it registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Namespace; `default` unless it says another.
    pub namespace: String,
    /// Name of the service.
    pub service: String,
    /// Its own name, one in the whole registry.
    pub id: String,
    /// Where it is.
    pub address: IpAddr,
    /// Ports by name; the one without a name is [`UNNAMED`].
    pub ports: BTreeMap<String, u16>,
    /// Words of its own.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Labels.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// Shares of requests.
    #[serde(default)]
    pub weights: Weights,
    /// Where it runs.
    #[serde(default)]
    pub locality: Place,
    /// Whether others may change its tags. Told back only: there is nobody else to change them.
    #[serde(default)]
    pub enable_tag_override: bool,
    /// What says whether it is healthy; none is healthy.
    #[serde(default)]
    pub checks: Vec<CheckSpec>,
    /// It is gone unless it says otherwise this often.
    #[serde(default)]
    pub lease: Option<Duration>,
    /// Who speaks for it.
    pub source: Source,
}

/// Name of the port without a name.
pub const UNNAMED: &str = "";

/// Who speaks for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Consul's HTTP API.
    Http,
    /// A lease over gRPC.
    Lease,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Lease => "lease",
        })
    }
}

/// Shares of requests by health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// When all checks pass. Default 1.
    pub passing: u32,
    /// When one of them warns. Default 1.
    pub warning: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

/// A place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Region.
    #[serde(default)]
    pub region: String,
    /// Zone.
    #[serde(default)]
    pub zone: String,
    /// Sub-zone.
    #[serde(default)]
    pub sub_zone: String,
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// Its own name, one in the whole registry.
    pub id: String,
    /// For people.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub notes: String,
    /// What is done.
    pub kind: CheckKind,
    /// Its status until the first result. Default critical.
    #[serde(default)]
    pub initial: CheckStatus,
    /// Good results in a row that it takes to pass; 0 is 1. Default 0.
    #[serde(default)]
    pub success_before_passing: u32,
    /// Bad results in a row that it takes to warn. Default as many as to be critical.
    #[serde(default)]
    pub failures_before_warning: Option<u32>,
    /// Bad results in a row that it takes to be critical; 0 is 1. Default 0.
    #[serde(default)]
    pub failures_before_critical: u32,
    /// The instance is removed after being critical for so long. Default never.
    #[serde(default)]
    pub deregister_after: Option<Duration>,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckKind {
    /// Waits to be told; critical when it was not for so long.
    Ttl(Duration),
    /// Asks for a URL: 2xx passes, 429 warns, all else fails.
    Http {
        /// `http://…`, or `https://…` where there is a `tls`.
        url: String,
        /// Method. Default GET.
        method: String,
        /// Headers.
        headers: BTreeMap<String, Vec<String>>,
        /// Body.
        body: String,
        /// How TLS is spoken, if it is.
        #[serde(default)]
        tls: Option<CheckTls>,
        /// How often.
        schedule: Schedule,
    },
    /// Connects.
    Tcp {
        /// `HOST:PORT`.
        address: String,
        /// How TLS is spoken, if it is.
        #[serde(default)]
        tls: Option<CheckTls>,
        /// How often.
        schedule: Schedule,
    },
    /// Calls `grpc.health.v1.Health/Check`.
    Grpc {
        /// `HOST:PORT`.
        address: String,
        /// Which service; empty is the server.
        service: String,
        /// How TLS is spoken, if it is.
        #[serde(default)]
        tls: Option<CheckTls>,
        /// How often.
        schedule: Schedule,
    },
}

impl CheckKind {
    /// For people and for Consul's `Type`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ttl(_) => "ttl",
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
        }
    }

    /// How it speaks TLS, if it does.
    pub fn tls(&self) -> Option<&CheckTls> {
        match self {
            Self::Ttl(_) => None,
            Self::Http { tls, .. } | Self::Tcp { tls, .. } | Self::Grpc { tls, .. } => tls.as_ref(),
        }
    }

    /// How often the control plane does it; `None` when it waits to be told.
    pub fn schedule(&self) -> Option<Schedule> {
        match self {
            Self::Ttl(_) => None,
            Self::Http { schedule, .. }
            | Self::Tcp { schedule, .. }
            | Self::Grpc { schedule, .. } => Some(*schedule),
        }
    }
}

/// How a check speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckTls {
    /// Name that is asked for, and that a certificate from outside of the mesh must have. Default the
    /// host that is dialled.
    #[serde(default)]
    pub server_name: String,
    /// Any certificate will do. Default false.
    #[serde(default)]
    pub skip_verify: bool,
}

/// When a check is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Time between two.
    pub interval: Duration,
    /// Limit of one. Default 10 s (Consul).
    pub timeout: Duration,
}

/// What a check found.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Well.
    Passing,
    /// Well enough.
    Warning,
    /// Not well.
    #[default]
    Critical,
}

impl CheckStatus {
    /// Consul's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// From Consul's word.
    pub fn from_word(text: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A check and what it found last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckState {
    /// What it is.
    pub spec: CheckSpec,
    /// What it found.
    pub status: CheckStatus,
    /// What it said, at most [`OUTPUT_MAX`] bytes.
    pub output: String,
    /// Results in a row.
    #[serde(skip)]
    streak: Streak,
}

/// Longest output that is kept (Consul: 4 KiB).
pub const OUTPUT_MAX: usize = 4 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Streak {
    successes: u32,
    failures: u32,
}

impl CheckState {
    pub(super) fn new(spec: CheckSpec) -> Self {
        Self {
            status: spec.initial,
            spec,
            output: String::new(),
            streak: Streak::default(),
        }
    }

    /// Takes in a result, by the thresholds (Consul's `StatusHandler`); whether anything changed.
    pub(super) fn observe(&mut self, found: CheckStatus, output: &str) -> bool {
        let streak = &mut self.streak;
        let spec = &self.spec;
        let status = if found == CheckStatus::Critical {
            streak.successes = 0;
            streak.failures = streak.failures.saturating_add(1);
            let to_warn = spec
                .failures_before_warning
                .unwrap_or(spec.failures_before_critical);
            if streak.failures >= spec.failures_before_critical {
                CheckStatus::Critical
            } else if streak.failures >= to_warn {
                CheckStatus::Warning
            } else {
                self.status
            }
        } else {
            streak.failures = 0;
            streak.successes = streak.successes.saturating_add(1);
            match streak.successes >= spec.success_before_passing {
                true => found,
                false => self.status,
            }
        };
        self.set(status, output)
    }

    /// Sets what is known, without thresholds; whether anything changed.
    pub(super) fn set(&mut self, status: CheckStatus, output: &str) -> bool {
        let output = cut(output, OUTPUT_MAX);
        let is_new = self.status != status || self.output != output;
        self.status = status;
        if is_new {
            output.clone_into(&mut self.output);
        }
        is_new
    }
}

/// As much of the text as fits.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// An instance as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// What it said.
    pub registration: Registration,
    /// What its checks found.
    pub checks: Vec<CheckState>,
    /// Why it gets no new requests, if it does not.
    #[serde(default)]
    pub maintenance: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(success: u32, warning: Option<u32>, critical: u32) -> CheckState {
        CheckState::new(CheckSpec {
            id: "a".into(),
            name: String::new(),
            notes: String::new(),
            kind: CheckKind::Ttl(Duration::from_secs(1)),
            initial: CheckStatus::Critical,
            success_before_passing: success,
            failures_before_warning: warning,
            failures_before_critical: critical,
            deregister_after: None,
        })
    }

    /// The statuses after each result: `+` is good, `-` is bad.
    fn run(mut state: CheckState, results: &str) -> String {
        let letter = |result| {
            let found = match result {
                '+' => CheckStatus::Passing,
                _ => CheckStatus::Critical,
            };
            state.observe(found, "");
            &state.status.as_str()[..1]
        };
        results.chars().map(letter).collect()
    }

    #[test]
    fn thresholds_count_results_in_a_row_as_consul_does() {
        assert_eq!(run(check(0, None, 0), "+-+"), "pcp");
        assert_eq!(run(check(3, None, 0), "++-+++"), "cccccp");
        assert_eq!(run(check(0, None, 3), "+--+---"), "ppppppc");
        assert_eq!(run(check(0, Some(1), 3), "+---+"), "pwwcp");
    }

    #[test]
    fn an_output_is_cut_between_characters() {
        let mut state = check(0, None, 0);
        state.observe(CheckStatus::Passing, &"ä".repeat(OUTPUT_MAX));
        assert_eq!(state.output, "ä".repeat(OUTPUT_MAX / 2));
        let odd = format!("a{}", "ä".repeat(OUTPUT_MAX));
        state.observe(CheckStatus::Passing, &odd);
        assert_eq!(state.output.len(), OUTPUT_MAX - 1);
    }
}
