//! What a client was sent of one type, and what it said of it, resource by resource.
//!
//! Both variants keep this; it is all that is remembered of a client, and it is bounded by what the
//! client subscribes to.

use std::{collections::BTreeMap, sync::Arc};

use super::wire::Response;
use crate::cache::{Resource, Version};

/// Longest text of a refusal that is kept, in bytes.
const TEXT_MAX: usize = 2048;

/// What a client says of a response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It uses it.
    Ack,
    /// It refuses it, with this text.
    Nack(Arc<str>),
}

/// What a client said of a resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum State {
    /// Nothing yet.
    #[default]
    Pending,
    /// It uses it.
    Acked,
    /// It refuses it; the first text since the content changed.
    Nacked(Arc<str>),
}

/// One resource that a client has.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) version: Version,
    pub(crate) state: State,
    /// The version that it last accepted.
    pub(crate) acked: Option<Version>,
    /// What was sent; absent when the client has it from an earlier stream.
    resource: Option<Arc<Resource>>,
    /// The response that held it.
    nonce: u64,
}

impl Held {
    pub(super) fn resource(&self) -> Option<&Arc<Resource>> {
        self.resource.as_ref()
    }
}

/// Everything of one type.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    entries: BTreeMap<String, Held>,
    /// The last response, and the last that was answered.
    nonce: u64,
    answered: u64,
    /// Version of the last response.
    version: Option<Version>,
    /// Version of the last response that was accepted.
    acked: Option<Version>,
    /// Why the last response was refused.
    refusal: Option<Arc<str>>,
}

impl Sent {
    /// What a reconnecting client says it has.
    pub(super) fn with_versions(versions: impl Iterator<Item = (String, String)>) -> Self {
        let held = |(name, text): (String, String)| {
            let version = Version::of_client(&text);
            let held = Held {
                version,
                state: State::Acked,
                acked: Some(version),
                resource: None,
                nonce: 0,
            };
            (name, held)
        };
        Self {
            entries: versions.map(held).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn entries(&self) -> &BTreeMap<String, Held> {
        &self.entries
    }

    pub(super) fn get(&self, name: &str) -> Option<&Held> {
        self.entries.get(name)
    }

    /// Whether the client has this very content.
    pub(super) fn has(&self, resource: &Resource) -> bool {
        let held = self.entries.get(&resource.name);
        held.is_some_and(|held| held.version == resource.version)
    }

    pub(super) fn nonce(&self) -> u64 {
        self.nonce
    }

    pub(super) fn version(&self) -> Option<Version> {
        self.version
    }

    pub(super) fn acked(&self) -> Option<Version> {
        self.acked
    }

    pub(super) fn refusal(&self) -> Option<&Arc<str>> {
        self.refusal.as_ref()
    }

    /// Whether a response waits for its answer.
    pub(super) fn is_outstanding(&self) -> bool {
        self.answered < self.nonce
    }

    /// Notes a response.
    pub(super) fn note(&mut self, response: &Response) {
        self.nonce = response.nonce;
        self.version = Some(response.version);
        for resource in &response.resources {
            let before = self.entries.get(&resource.name);
            let is_same = before.is_some_and(|before| before.version == resource.version);
            let held = Held {
                version: resource.version,
                // A verdict on a content stays until the content changes.
                state: before
                    .filter(|_| is_same)
                    .map_or(State::Pending, |before| before.state.clone()),
                acked: before.and_then(|before| before.acked),
                resource: Some(Arc::clone(resource)),
                nonce: response.nonce,
            };
            self.entries.insert(resource.name.clone(), held);
        }
    }

    /// Notes what the client says of the response `nonce`; whether there was such a response.
    ///
    /// A refusal names the resources that are bad (gRFC A46), and the others are used. One that
    /// names none of them is taken to be about all.
    pub(super) fn judge(&mut self, nonce: u64, verdict: &Verdict) -> bool {
        if nonce <= self.answered || nonce > self.nonce {
            return false;
        }
        self.answered = nonce;
        let is_last = nonce == self.nonce;
        let mut of_response: Vec<_> = self
            .entries
            .iter_mut()
            .filter(|(_, held)| held.nonce == nonce)
            .collect();
        let accept = |held: &mut Held| {
            held.state = State::Acked;
            held.acked = Some(held.version);
        };
        match verdict {
            Verdict::Ack => {
                of_response.iter_mut().for_each(|(_, held)| accept(held));
                if is_last {
                    (self.acked, self.refusal) = (self.version, None);
                }
            }
            Verdict::Nack(text) => {
                let is_named = of_response.iter().any(|(name, _)| text.contains(&***name));
                for (name, held) in of_response {
                    if is_named && !text.contains(&**name) {
                        accept(held);
                    } else if !matches!(held.state, State::Nacked(_)) {
                        held.state = State::Nacked(Arc::clone(text));
                    }
                }
                self.refusal = Some(Arc::clone(text));
            }
        }
        true
    }

    /// Drops what the client no longer wants.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(&str) -> bool) {
        self.entries.retain(|name, _| wanted(name));
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }
}

/// The text of a refusal, of bounded length.
pub(super) fn refusal(text: &str) -> Verdict {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Verdict::Nack(text[..end].into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::wire::Gone, *};
    use crate::cache::ResourceType;

    fn response(nonce: u64, contents: &[(&str, &str)]) -> Response {
        let resource = |(name, version): &(&str, &str)| {
            Arc::new(Resource {
                name: (*name).to_owned(),
                version: Version::of_client(&format!("{version:0>16}")),
                any: Bytes::new(),
            })
        };
        Response {
            kind: ResourceType::Cluster,
            version: Version::default(),
            nonce,
            resources: contents.iter().map(resource).collect(),
            gone: Gone::Removed(Vec::new()),
        }
    }

    fn states(sent: &Sent) -> Vec<&State> {
        sent.entries().values().map(|held| &held.state).collect()
    }

    #[test]
    fn a_refusal_is_about_what_it_names_and_stays_until_the_content_changes() {
        let mut sent = Sent::default();
        sent.note(&response(1, &[("aa", "1"), ("bb", "1")]));
        assert_eq!(states(&sent), [&State::Pending, &State::Pending]);
        assert!(sent.is_outstanding());
        assert!(sent.judge(1, &refusal("aa: weight is 0")));
        assert!(!sent.judge(1, &Verdict::Ack), "answered already");
        assert!(!sent.is_outstanding());
        let refused = State::Nacked("aa: weight is 0".into());
        assert_eq!(states(&sent), [&refused, &State::Acked]);
        // State of the world sends the others' content again.
        sent.note(&response(2, &[("aa", "1"), ("bb", "2")]));
        assert_eq!(states(&sent), [&refused, &State::Pending]);
        assert!(sent.judge(2, &refusal("aa: still 0")));
        assert_eq!(
            states(&sent),
            [&refused, &State::Acked],
            "the first text stays"
        );
        sent.note(&response(3, &[("aa", "2")]));
        assert_eq!(states(&sent)[0], &State::Pending);
        assert!(!sent.judge(4, &Verdict::Ack), "never sent");
        assert!(sent.judge(3, &refusal("no reason")));
        assert_eq!(
            states(&sent)[0],
            &State::Nacked("no reason".into()),
            "names nobody: all"
        );
    }

    #[test]
    fn a_refusal_of_any_length_is_kept_in_bounds() {
        for length in [TEXT_MAX, TEXT_MAX + 1, 10 * TEXT_MAX] {
            let Verdict::Nack(text) = refusal(&"é".repeat(length)) else {
                panic!()
            };
            assert!(text.len() <= TEXT_MAX);
        }
    }
}
