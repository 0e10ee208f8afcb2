//! Route configurations and requests, made up from a seed.
//!
//! Everything that the engine decides, out of small pools, so that most requests come near to some
//! route. What is decided by a draw is left out, or decided by a header that every request has.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use mesh_core::{
    config::{self, *},
    rng::{Rng as _, SplitMix64},
};

pub(super) const CLUSTERS: [&str; 3] = ["c0", "c1", "c2"];
/// Headers that requests have and routes look at; the only ones that are compared.
pub(super) const NAMES: [&str; 5] = ["x-a", "x-b", "x-c", "x-d", "x-forwarded-host"];
/// Every request has it: what is decided by a number is decided by this one.
const NUMBER: &str = "x-number";
/// The header that tells the route.
pub(super) const ROUTE: &str = "x-route";

const HOSTS: usize = 24;
const ROUTES: u64 = 14;
const SEGMENTS: [&str; 6] = ["a", "b", "A", "ab", "api", "v1"];
const VALUES: [&str; 8] = ["", "1", "2", "a", "A", "ab", "true", "-5"];

pub(super) struct Generator(pub(super) SplitMix64);

impl Generator {
    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.0.below(one_in) == 0
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn path(&mut self, most: u64) -> String {
        let count = 1 + self.0.below(most);
        (0..count)
            .map(|_| format!("/{}", self.one(&SEGMENTS)))
            .collect()
    }

    fn string(&mut self) -> StringMatcher {
        let text = self.one(&["a", "A", "1", "ab", "true"]).to_owned();
        let pattern = match self.below(6) {
            0 => StringPattern::Prefix(text),
            1 => StringPattern::Suffix(text),
            2 => StringPattern::Contains(text),
            3 => StringPattern::Regex(
                Regex::new(self.one(&["[ab]+", "a|b", "[0-9]", ".*", "a?"])).unwrap(),
            ),
            _ => StringPattern::Exact(text),
        };
        // Envoy refuses to compare regexes without case.
        let ignore_case = !matches!(pattern, StringPattern::Regex(_)) && self.chance(3);
        StringMatcher::new(pattern)
            .unwrap()
            .ignore_case(ignore_case)
    }

    fn header(&mut self) -> HeaderMatcher {
        let name = match self.below(8) {
            0 => ":method",
            1 => ":path",
            2 => ":authority",
            3 => ":scheme",
            // Several values are joined here (gRFC A28), and looked at one by one in Envoy.
            _ => self.one(&NAMES[..3]),
        };
        let predicate = match self.below(5) {
            0 => HeaderPredicate::Present(self.chance(2)),
            1 => HeaderPredicate::Range { start: -5, end: 2 },
            _ if name == ":method" => HeaderPredicate::String(StringMatcher::exact("POST")),
            _ => HeaderPredicate::String(self.string()),
        };
        HeaderMatcher {
            invert: self.chance(4),
            treat_missing_as_empty: self.chance(4),
            ..HeaderMatcher::new(name, predicate)
        }
    }

    fn query(&mut self) -> QueryMatcher {
        let name = self.one(&["q", "p"]);
        match self.below(3) {
            0 => QueryMatcher {
                present: self.chance(2),
                ..QueryMatcher::present(name)
            },
            _ => QueryMatcher::value(name, self.string()),
        }
    }

    fn matcher(&mut self) -> RouteMatch {
        let pattern = match self.below(8) {
            0 => PathPattern::Exact(self.path(2)),
            1 => PathPattern::Prefix("/".into()),
            2 => PathPattern::Prefix(format!("{}/", self.path(1))),
            3 | 4 => PathPattern::Prefix(self.path(2)),
            5 => PathPattern::SeparatedPrefix(self.path(2)),
            6 => {
                let text = self.one(&["/a.*", "/[ab]+/?", "/(api|v1)/.*", "/a|/b", ".*b"]);
                PathPattern::Regex(Regex::new(text).unwrap())
            }
            _ => {
                let text = self.one(&["/*", "/{x}/{y=**}", "/api/{x}", "/{y=*}/a", "/**"]);
                PathPattern::Template(PathTemplate::new(text).unwrap())
            }
        };
        let mut path = PathMatcher::new(pattern);
        // Envoy refuses to compare regexes and templates without case.
        if !matches!(
            path.pattern,
            PathPattern::Regex(_) | PathPattern::Template(_)
        ) {
            path.case_sensitive = !self.chance(4);
        }
        let mut matcher = RouteMatch::path(path);
        for _ in 0..[0, 0, 1, 2][self.below(4)] {
            matcher.headers.push(self.header());
        }
        if self.chance(5) {
            matcher.query_parameters.push(self.query());
        }
        if self.chance(12) {
            matcher.fraction = Fraction::new(self.below(2) as u32, 1);
        }
        matcher
    }

    fn value(&mut self, is_response: bool) -> config::HeaderValue {
        let source = match self.below(if is_response { 10 } else { 7 }) {
            0 => "%REQ(x-a)%",
            1 => "a-%REQ(x-b?x-c)%-%%",
            // Envoy rewrites the path of a request that it redirects; we leave it.
            2 if is_response => "%REQ(x-d):1%",
            2 => "%REQ(:PATH):6%",
            3 => "%REQ(:AUTHORITY)% %REQ(:METHOD)%",
            4 => "%ROUTE_NAME%",
            5 => "",
            6 => "plain",
            7 => "%RESP(x-c):4%",
            8 => "%RESP(x-d)%",
            _ => "%RESP(:STATUS)%",
        };
        config::HeaderValue {
            name: HeaderName::from_static(self.one(&NAMES[..4])),
            value: ValueTemplate::new(source, is_response).unwrap(),
            action: self.one(&[
                AppendAction::Append,
                AppendAction::AddIfAbsent,
                AppendAction::Overwrite,
                AppendAction::OverwriteIfExists,
            ]),
            keep_empty: self.chance(3),
        }
    }

    fn mutations(&mut self, one_in: u64) -> Option<Box<HeaderMutations>> {
        if !self.chance(one_in) {
            return None;
        }
        let mut changes = |is_response| HeaderChanges {
            remove: match self.chance(3) {
                true => vec![HeaderName::from_static(self.one(&NAMES[..4]))],
                false => vec![],
            },
            add: (0..self.below(3))
                .map(|_| self.value(is_response))
                .collect(),
        };
        let (request, response) = (changes(false), changes(true));
        let mutations = HeaderMutations { request, response };
        (!mutations.is_empty()).then(|| Box::new(mutations))
    }

    fn regex_rewrite(&mut self) -> RegexRewrite {
        let (pattern, substitution) = self.one(&[
            ("/a", "/rewritten"),
            ("^/([^/]+)", r"/new/\1"),
            ("[0-9]", ""),
            ("(a)(b)?", r"\2\1\0"),
            ("b", r"\0\0"),
        ]);
        RegexRewrite::new(pattern, substitution).unwrap()
    }

    fn redirect(&mut self, matcher: &RouteMatch) -> Redirect {
        let is_template = matches!(matcher.path.pattern, PathPattern::Template(_));
        let path = match self.below(5) {
            0 => Some(RedirectPath::Full("/moved".into())),
            1 => Some(RedirectPath::Full("/moved?x=y".into())),
            // Envoy refuses these with a template.
            2 | 3 if is_template => None,
            2 => Some(RedirectPath::Prefix("/prefix".into())),
            3 => Some(RedirectPath::Regex(
                RegexRewrite::new("^/([^/]+)", r"/new/\1").unwrap(),
            )),
            _ => None,
        };
        Redirect {
            scheme: self
                .chance(3)
                .then(|| self.one(&["https", "http"]).to_owned()),
            host: self.chance(3).then(|| "elsewhere.example".to_owned()),
            port: self.chance(3).then_some(8443),
            path,
            status: self.one(&[301, 302, 303, 307, 308]),
            strip_query: self.chance(3),
        }
    }

    fn action(&mut self, matcher: &RouteMatch) -> RouteAction {
        match self.below(10) {
            0 | 1 => RouteAction::Redirect(Box::new(self.redirect(matcher))),
            2 => RouteAction::DirectResponse(Box::new(DirectResponse {
                status: self.one(&[200, 404, 503]),
                body: self.one(&["", "body"]).into(),
            })),
            _ => RouteAction::Forward(self.forward(matcher)),
        }
    }

    fn forward(&mut self, matcher: &RouteMatch) -> Forward {
        let mut extras = ForwardExtras::default();
        let clusters = match self.below(5) {
            0 => {
                extras.cluster_header = Some(HeaderName::from_static("x-cluster"));
                vec![]
            }
            1 | 2 => {
                if self.chance(2) {
                    extras.weigh_by = WeighBy::Header(HeaderName::from_static(NUMBER));
                } else {
                    extras.weigh_by = WeighBy::Hash;
                    extras.hash_policy = self.hash_policies();
                }
                let cluster = |name: &&str| {
                    let mut cluster = WeightedCluster::new(*name, 1 + self.below(5) as u32);
                    let own = ClusterExtras {
                        headers: self.mutations(3).map(|own| *own).unwrap_or_default(),
                        host_rewrite: self.chance(5).then(|| "of-cluster".to_owned()),
                        ..ClusterExtras::default()
                    };
                    cluster.extras = (own != ClusterExtras::default()).then(|| Box::new(own));
                    cluster
                };
                CLUSTERS.iter().map(cluster).collect()
            }
            _ => vec![WeightedCluster::new(self.one(&CLUSTERS), 1)],
        };
        extras.path_rewrite = match (self.below(5), &matcher.path.pattern) {
            (0, PathPattern::Template(template)) => {
                let name = ["x", "y"]
                    .into_iter()
                    .find(|name| TemplateRewrite::new(template, &format!("/t/{{{name}}}")).is_ok());
                name.map(|name| {
                    let text = format!("/t/{{{name}}}/end");
                    PathRewrite::Template(TemplateRewrite::new(template, &text).unwrap())
                })
            }
            // Envoy refuses these with a template.
            (_, PathPattern::Template(_)) => None,
            (1, _) => Some(PathRewrite::Prefix(
                self.one(&["/", "/new", "/new/"]).into(),
            )),
            (2, _) => Some(PathRewrite::Regex(self.regex_rewrite())),
            _ => None,
        };
        extras.host_rewrite = match self.below(8) {
            0 => Some(HostRewrite::Literal("rewritten.example".into())),
            1 => Some(HostRewrite::Header("x-host".into())),
            2 => Some(HostRewrite::PathRegex(
                RegexRewrite::new("^/([^/]*).*$", r"\1.example").unwrap(),
            )),
            _ => None,
        };
        extras.append_x_forwarded_host = self.chance(5);
        Forward {
            clusters,
            extras: (extras != ForwardExtras::default()).then(|| Box::new(extras)),
            ..Forward::default()
        }
    }

    fn hash_policies(&mut self) -> Vec<HashPolicy> {
        let header = |name: &str, rewrite| HashSource::Header {
            name: name.into(),
            rewrite,
        };
        let mut policies = Vec::new();
        for _ in 0..self.below(3) {
            let source = match self.below(4) {
                0 => header("x-single", None),
                1 => header("x-single", Some(self.regex_rewrite())),
                2 => HashSource::QueryParameter("q".into()),
                _ => HashSource::Cookie {
                    name: "session".into(),
                    ttl: None,
                    path: String::new(),
                    attributes: vec![],
                },
            };
            let terminal = self.chance(3);
            policies.push(HashPolicy { source, terminal });
        }
        policies.push(HashPolicy {
            source: header(NUMBER, None),
            terminal: false,
        });
        policies
    }

    pub(super) fn config(&mut self) -> RouteConfig {
        let hosts = (0..HOSTS).map(|number| {
            let domains = match number {
                0 => vec!["*".to_owned()],
                1 => vec!["*.example".to_owned()],
                2 => vec!["*.deep.example".to_owned()],
                3 => vec!["prefix.*".to_owned()],
                4 => vec!["prefix.longer.*".to_owned()],
                5 => vec!["Mixed.Case".to_owned(), "mixed.case:80".to_owned()],
                _ => vec![format!("h{number}")],
            };
            let count = 2 + self.0.below(ROUTES);
            let routes = (0..count).map(|route| {
                let matcher = self.matcher();
                let action = self.action(&matcher);
                Route {
                    headers: self.mutations(4),
                    ..Route::new(format!("{number}.{route}"), matcher, action)
                }
            });
            let routes = routes.collect();
            VirtualHost {
                headers: self.mutations(4),
                ..VirtualHost::new(format!("host {number}"), domains, routes)
            }
        });
        let hosts = hosts.collect();
        let mut config = RouteConfig::new("generated", hosts);
        let mut own = self.mutations(1).unwrap_or_default();
        own.response.add.push(config::HeaderValue {
            name: HeaderName::from_static(ROUTE),
            value: ValueTemplate::new("%ROUTE_NAME%", true).unwrap(),
            action: AppendAction::Overwrite,
            keep_empty: false,
        });
        config.headers = Some(own);
        config.most_specific_mutations_win = self.chance(2);
        config.ignore_port = self.chance(2);
        config
    }

    fn authority(&mut self) -> String {
        let host = match self.below(12) {
            0 => "a.example".into(),
            1 => "x.DEEP.example".into(),
            2 => "prefix.org".into(),
            3 => "prefix.longer.org".into(),
            4 => "mixed.CASE".into(),
            5 => "unknown".into(),
            6 => ".example".into(),
            _ => format!("h{}", 6 + self.below(HOSTS - 6)),
        };
        match self.below(5) {
            0 => format!("{host}:80"),
            1 => format!("{host}:8080"),
            _ => host,
        }
    }

    pub(super) fn request(&mut self) -> Request<()> {
        let mut path = match self.below(12) {
            0 => "/".to_owned(),
            _ => self.path(4),
        };
        if self.chance(10) {
            path.push('/');
        }
        let query = self.one(&[
            "",
            "",
            "",
            "?",
            "?q",
            "?q=a&p=1",
            "?p=ab&q=1&q=a",
            "?q=A%20b",
            "?qq=a",
        ]);
        let mut headers = HeaderMap::new();
        for name in &NAMES[..4] {
            let most = if *name == "x-d" { 3 } else { 2 };
            for _ in 0..self.below(most) {
                headers.append(*name, HeaderValue::from_static(self.one(&VALUES)));
            }
        }
        let mut single = |name: &'static str, value: String| {
            headers.insert(name, value.parse().unwrap());
        };
        single(NUMBER, self.0.below(10_000).to_string());
        if self.chance(2) {
            single("x-single", self.path(2));
        }
        if self.chance(2) {
            single("x-host", "of-header:81".to_owned());
        }
        if self.chance(3) {
            single("cookie", format!("other=1; session={}", self.0.below(100)));
        }
        if !self.chance(10) {
            single("x-cluster", self.one(&["c0", "c1", "c2", "c9"]).to_owned());
        }
        let method = self.one(&[Method::GET, Method::POST, Method::PUT]);
        let uri = format!("http://{}{path}{query}", self.authority());
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri.parse().unwrap();
        *request.headers_mut() = headers;
        request
    }
}
