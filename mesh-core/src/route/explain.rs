//! Why a request goes where it goes.
//!
//! Reads the declared configuration, not the tables: every virtual host and every route is looked
//! at, up to the one that is taken.

use std::fmt;

use super::{RequestView, domain};
use crate::config::{Fraction, RouteConfig, RouteMatch};

/// What was tried for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Every virtual host.
    pub hosts: Vec<HostTried>,
    /// Index of the virtual host that is taken.
    pub host: Option<usize>,
    /// Its routes up to the one that is taken, or all.
    pub routes: Vec<RouteTried>,
    /// Index of the route that is taken.
    pub route: Option<usize>,
}

/// A virtual host, and which of its domains fits best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTried {
    /// Its name.
    pub name: String,
    /// The domain that matches.
    pub domain: Option<String>,
}

/// A route, and why it is not the one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTried {
    /// Its name.
    pub name: String,
    /// `None`: it matches.
    pub mismatch: Option<Mismatch>,
    /// The share of requests that it takes, when it is not all that match.
    pub share: Option<Fraction>,
}

/// The first condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The path, with what was asked for.
    Path(String),
    /// A header, with what was asked for and its value.
    Header(String, String, Option<String>),
    /// A query parameter, with what was asked for.
    QueryParameter(String, String),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(pattern) => write!(f, "the path does not match: {pattern}"),
            Self::Header(name, wanted, Some(value)) => {
                write!(f, "header {name} is {value:?}, wanted is {wanted}")
            }
            Self::Header(name, wanted, None) => {
                write!(f, "header {name} is missing, wanted is {wanted}")
            }
            Self::QueryParameter(name, wanted) => {
                write!(
                    f,
                    "query parameter {name} does not match, wanted is {wanted}"
                )
            }
        }
    }
}

/// Says what is tried for `request`, whose virtual host is chosen by `authority`. A route that
/// takes a share of the requests is taken if that share is not zero.
pub fn explain(config: &RouteConfig, authority: &str, request: &RequestView<'_>) -> Explanation {
    let hosts = config.virtual_hosts.iter().map(|host| HostTried {
        name: host.name.clone(),
        domain: domain::best_domain(config, host, authority).map(str::to_owned),
    });
    let mut explanation = Explanation {
        hosts: hosts.collect(),
        host: None,
        routes: Vec::new(),
        route: None,
    };
    let Some(host) = domain::virtual_host(config, authority) else {
        return explanation;
    };
    let mut all = config.virtual_hosts.iter();
    explanation.host = all.position(|other| std::ptr::eq(other, host));
    for (index, route) in host.routes.iter().enumerate() {
        let mismatch = mismatch(&route.matcher, request);
        let share = route.matcher.fraction;
        let is_taken = mismatch.is_none() && share.is_none_or(|share| share.per_million() > 0);
        explanation.routes.push(RouteTried {
            name: route.name.clone(),
            mismatch,
            share,
        });
        if is_taken {
            explanation.route = Some(index);
            break;
        }
    }
    explanation
}

fn mismatch(matcher: &RouteMatch, request: &RequestView<'_>) -> Option<Mismatch> {
    if !matcher.path.is_match(request.path) {
        return Some(Mismatch::Path(matcher.path.to_string()));
    }
    for header in &matcher.headers {
        let value = request.header(&header.name);
        if !header.is_match(value.as_deref()) {
            let value = value.map(Into::into);
            let wanted = header.to_string();
            return Some(Mismatch::Header(header.name.clone(), wanted, value));
        }
    }
    let mut parameters = matcher.query_parameters.iter();
    let parameter = parameters.find(|parameter| !parameter.is_match(request.query()))?;
    let (name, wanted) = (parameter.name.clone(), parameter.to_string());
    Some(Mismatch::QueryParameter(name, wanted))
}
