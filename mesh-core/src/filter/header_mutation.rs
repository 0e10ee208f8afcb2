//! Changes of headers by a filter (Envoy `HeaderMutation`).
//!
//! The listener's changes are made first, then every level's: the most specific first, so that the
//! least specific wins, unless the listener says the contrary.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, Uri};

use super::FilterRequest;
use crate::{
    config::{HeaderChanges, HeaderMutation},
    route::{RequestView, apply_changes},
};

/// Changes in the order in which they are made.
#[derive(Clone, Debug)]
pub(crate) struct HeaderMutations(Arc<[Arc<HeaderMutation>]>);

/// A request as it was, for values of its response's headers.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    method: Method,
    uri: Uri,
    authority: String,
    headers: HeaderMap,
    route: String,
    cluster: String,
}

impl HeaderMutations {
    /// `levels` from the least specific, which is the listener's, to the most specific. `None` when
    /// nothing changes.
    pub(super) fn new(mut levels: Vec<Arc<HeaderMutation>>) -> Option<Self> {
        let most_specific_wins = levels.first().is_some_and(|base| base.most_specific_wins);
        if !most_specific_wins && let Some((_, routes)) = levels.split_first_mut() {
            routes.reverse();
        }
        levels.retain(|level| !level.request.is_empty() || !level.response.is_empty());
        (!levels.is_empty()).then(|| Self(levels.into()))
    }

    pub(super) fn changes_requests(&self) -> bool {
        self.0.iter().any(|level| !level.request.is_empty())
    }

    pub(super) fn changes_responses(&self) -> bool {
        self.0.iter().any(|level| !level.response.is_empty())
    }

    pub(super) fn change_request(&self, request: &FilterRequest<'_>, headers: &mut HeaderMap) {
        for changes in self.0.iter().flat_map(|level| &level.request) {
            change(changes, request, None, headers);
        }
    }

    pub(super) fn change_response(
        &self,
        asked: &Asked,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) {
        for changes in self.0.iter().flat_map(|level| &level.response) {
            asked.change(changes, status, headers);
        }
    }
}

impl Asked {
    pub(super) fn of(request: &FilterRequest<'_>) -> Self {
        let view = &request.view;
        Self {
            method: view.method.clone(),
            uri: view.uri.clone(),
            authority: view.authority.to_owned(),
            headers: view.headers.clone(),
            route: request.route.to_owned(),
            cluster: request.cluster.to_owned(),
        }
    }

    /// The request's headers are others in the end.
    pub(super) fn replace(&mut self, headers: HeaderMap) {
        self.headers = headers;
    }

    pub(super) fn change(
        &self,
        changes: &HeaderChanges,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) {
        let request = FilterRequest {
            view: RequestView::new(&self.method, &self.uri, &self.authority, &self.headers),
            route: &self.route,
            cluster: &self.cluster,
            remote: None,
            peer: None,
        };
        change(changes, &request, Some(status), headers);
    }
}

/// Makes `changes` to the headers of a request, or to those of its response with `status`.
pub(super) fn change(
    changes: &HeaderChanges,
    request: &FilterRequest<'_>,
    status: Option<StatusCode>,
    headers: &mut HeaderMap,
) {
    let (route, cluster) = (request.route, request.cluster);
    apply_changes(changes, &request.view, status, [route, cluster], headers);
}
