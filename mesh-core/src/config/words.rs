//! How configuration reads: for explanations, which people and scripts see.

use std::fmt::{Display, Formatter, Result};

use super::{
    HashPolicy, HashSource, HeaderMatcher, HeaderPredicate, HealthStatus, HedgeDelay, HostRewrite,
    LbPolicy, MirrorTarget, OutlierDetection, PathMatcher, PathPattern, PathRewrite, QueryMatcher,
    RedirectPath, RegexRewrite, StringMatcher, StringPattern, TrustSource,
};

fn case(f: &mut Formatter<'_>, is_sensitive: bool) -> Result {
    f.write_str(if is_sensitive { "" } else { " in any case" })
}

impl Display for PathMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.pattern {
            PathPattern::Prefix(prefix) if prefix.is_empty() => return f.write_str("any path"),
            PathPattern::Prefix(prefix) => write!(f, "prefix {prefix}")?,
            PathPattern::SeparatedPrefix(prefix) => write!(f, "prefix {prefix} of whole segments")?,
            PathPattern::Exact(path) => write!(f, "exact {path}")?,
            // Case means nothing to these.
            PathPattern::Regex(regex) => return write!(f, "regex {}", regex.as_str()),
            PathPattern::Template(template) => return write!(f, "template {}", template.as_str()),
        }
        case(f, self.case_sensitive)
    }
}

impl Display for StringMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.pattern {
            StringPattern::Exact(text) => write!(f, "exact {text:?}")?,
            StringPattern::Prefix(text) => write!(f, "prefix {text:?}")?,
            StringPattern::Suffix(text) => write!(f, "suffix {text:?}")?,
            StringPattern::Contains(text) => write!(f, "containing {text:?}")?,
            StringPattern::Regex(regex) => return write!(f, "regex {}", regex.as_str()),
        }
        case(f, !self.ignore_case)
    }
}

impl Display for HeaderPredicate {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::String(matcher) => matcher.fmt(f),
            Self::Range { start, end } => write!(f, "a number from {start} to below {end}"),
            Self::Present(true) => f.write_str("present"),
            Self::Present(false) => f.write_str("absent"),
        }
    }
}

/// What is wanted of the value, without the header's name.
impl Display for HeaderMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if self.invert {
            f.write_str("not ")?;
        }
        self.predicate.fmt(f)?;
        match self.treat_missing_as_empty {
            true => f.write_str(", where none is an empty one"),
            false => Ok(()),
        }
    }
}

/// What is wanted of the value, without the parameter's name.
impl Display for QueryMatcher {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match (&self.value, self.present) {
            (Some(value), _) => value.fmt(f),
            (None, true) => f.write_str("present"),
            (None, false) => f.write_str("absent"),
        }
    }
}

/// Whole millions in the binary sense are shortened, as in `8M`.
struct Size(u64);

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        const MILLION: u64 = 1024 * 1024;
        match self.0 {
            size if size > 0 && size.is_multiple_of(MILLION) => write!(f, "{}M", size / MILLION),
            size => size.fmt(f),
        }
    }
}

impl Display for LbPolicy {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::RoundRobin => f.write_str("round robin"),
            Self::LeastRequest(config) => {
                write!(f, "least request of {} choices", config.choice_count)?;
                match config.active_request_bias {
                    1.0 => Ok(()),
                    bias => write!(f, ", bias {bias}"),
                }
            }
            Self::Random => f.write_str("random"),
            Self::ClientSideWeightedRoundRobin(config) => {
                f.write_str("round robin weighted by reported load")?;
                match config.oob_reporting_period {
                    Some(period) => write!(f, ", asked for every {period:?}"),
                    None => Ok(()),
                }
            }
            Self::RingHash(config) => write!(
                f,
                "ring hash {}..{}",
                Size(config.minimum_ring_size),
                Size(config.maximum_ring_size)
            ),
            Self::Maglev { table_size } => write!(f, "Maglev, table of {table_size}"),
            Self::PickFirst {
                shuffle_address_list: false,
            } => f.write_str("pick first"),
            Self::PickFirst { .. } => f.write_str("pick first, shuffled"),
            Self::PeakEwma(config) => write!(f, "peak EWMA, decay {:?}", config.decay),
            Self::Prequal(config) => write!(
                f,
                "Prequal of {} choices, hot above {} % of requests in flight",
                config.choice_count,
                100.0 * config.rif_quantile
            ),
            Self::Custom { name, .. } => write!(f, "{name}, the application's own"),
        }
    }
}

impl Display for HashPolicy {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.source {
            HashSource::Header { name, rewrite } => {
                write!(f, "header {name}")?;
                if let Some(rewrite) = rewrite {
                    write!(f, " by {rewrite}")?;
                }
            }
            HashSource::Cookie { name, ttl, .. } => {
                write!(f, "cookie {name}")?;
                if let Some(ttl) = ttl {
                    write!(f, ", made where there is none, for {ttl:?}")?;
                }
            }
            HashSource::QueryParameter(name) => write!(f, "query parameter {name}")?,
            HashSource::SourceIp => f.write_str("the caller's address")?,
            HashSource::Channel => f.write_str("the channel")?,
            HashSource::Unknown => f.write_str("something that is not known here")?,
        }
        f.write_str(if self.terminal { " (terminal)" } else { "" })
    }
}

impl Display for RegexRewrite {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "s/{}/{}/", self.pattern(), self.substitution())
    }
}

/// What the path becomes.
impl Display for PathRewrite {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Prefix(prefix) => write!(f, "what matched becomes {prefix}"),
            Self::Regex(rewrite) => rewrite.fmt(f),
            Self::Template(template) => write!(f, "template {}", template.as_str()),
        }
    }
}

/// What the path of a redirect is.
impl Display for RedirectPath {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Full(path) => write!(f, "path {path}"),
            Self::Prefix(prefix) => write!(f, "{prefix} for what matched of the path"),
            Self::Regex(rewrite) => write!(f, "path by {rewrite}"),
        }
    }
}

/// What the authority becomes.
impl Display for HostRewrite {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Literal(host) => f.write_str(host),
            Self::Header(name) => write!(f, "the value of header {name}"),
            Self::PathRegex(rewrite) => write!(f, "the path by {rewrite}"),
            Self::Endpoint => f.write_str("the endpoint's hostname"),
        }
    }
}

impl Display for MirrorTarget {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Cluster(name) => write!(f, "cluster {name}"),
            Self::Header(name) => write!(f, "the cluster that header {name} names"),
        }
    }
}

impl Display for HedgeDelay {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Fixed(delay) => write!(f, "{delay:?}"),
            Self::Percentile { percentile, min } => write!(
                f,
                "as long as {} % of attempts take, at least {min:?}",
                percentile.percent()
            ),
        }
    }
}

/// Whose certificates are believed.
impl Display for TrustSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Provider { instance } => write!(f, "roots of provider {instance}"),
            Self::Sds(name) => write!(f, "roots of secret {name}"),
            Self::System => f.write_str("the system's roots"),
            Self::Inline(_) => f.write_str("roots of its own"),
            Self::File(path) => write!(f, "roots of {}", path.display()),
        }
    }
}

/// What ejects, and for how long. Percentages that are never enforced are left out.
impl Display for OutlierDetection {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let consecutive = [
            (self.consecutive_5xx, "failures"),
            (self.consecutive_gateway_failure, "gateway failures"),
            (self.consecutive_local_origin_failure, "failures to answer"),
        ];
        let told_apart = if self.split_external_local_origin_errors {
            3
        } else {
            2
        };
        for (limit, what) in &consecutive[..told_apart] {
            if limit.enforcing > 0 {
                write!(f, "{} {what} in a row, ", limit.threshold)?;
            }
        }
        if self.success_rate.enforcing > 0 {
            let deviations = f64::from(self.success_rate.stdev_factor) / 1000.0;
            write!(f, "a success rate {deviations} standard deviations low, ")?;
        }
        if self.failure_percentage.enforcing > 0 {
            write!(f, "{} % failures, ", self.failure_percentage.threshold)?;
        }
        write!(
            f,
            "ejected for {:?} to {:?}, at most {} % at a time",
            self.base_ejection_time, self.max_ejection_time, self.max_ejection_percent
        )
    }
}

impl Display for HealthStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Timeout => "timeout",
            Self::Degraded => "degraded",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{
        ClientSideWrr, LeastRequest, PathTemplate, PeakEwma, Percentile, Prequal, Regex, RingHash,
    };
    use super::*;

    /// Each value, and how it reads.
    fn reads<T: Display>(cases: impl IntoIterator<Item = (T, &'static str)>) {
        for (value, text) in cases {
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn policies_of_load_balancing_read_as_operators_name_them() {
        let second = Duration::from_secs(1);
        reads([
            (LbPolicy::RoundRobin, "round robin"),
            (LbPolicy::Random, "random"),
            (LbPolicy::least_request(2), "least request of 2 choices"),
            (
                LbPolicy::LeastRequest(LeastRequest {
                    choice_count: 3,
                    active_request_bias: 0.5,
                }),
                "least request of 3 choices, bias 0.5",
            ),
            (
                LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr::default()),
                "round robin weighted by reported load",
            ),
            (
                LbPolicy::ClientSideWeightedRoundRobin(ClientSideWrr {
                    oob_reporting_period: Some(second),
                    ..ClientSideWrr::default()
                }),
                "round robin weighted by reported load, asked for every 1s",
            ),
            (
                LbPolicy::RingHash(RingHash::default()),
                "ring hash 1024..8M",
            ),
            (
                LbPolicy::Maglev { table_size: 65_537 },
                "Maglev, table of 65537",
            ),
            (
                LbPolicy::PickFirst {
                    shuffle_address_list: false,
                },
                "pick first",
            ),
            (
                LbPolicy::PickFirst {
                    shuffle_address_list: true,
                },
                "pick first, shuffled",
            ),
            (
                LbPolicy::PeakEwma(PeakEwma::default()),
                "peak EWMA, decay 10s",
            ),
            (
                LbPolicy::Prequal(Prequal::default()),
                "Prequal of 5 choices, hot above 84 % of requests in flight",
            ),
            (
                LbPolicy::Custom {
                    name: "mine".into(),
                    config: "{}".into(),
                },
                "mine, the application's own",
            ),
        ]);
    }

    #[test]
    fn paths_read_as_what_they_are_compared_with() {
        let exact = |case_sensitive| PathMatcher {
            pattern: PathPattern::Exact("/x".into()),
            case_sensitive,
        };
        let path = PathMatcher::new;
        reads([
            (PathMatcher::any(), "any path"),
            (path(PathPattern::Prefix("/x".into())), "prefix /x"),
            (
                path(PathPattern::SeparatedPrefix("/x".into())),
                "prefix /x of whole segments",
            ),
            (exact(true), "exact /x"),
            (exact(false), "exact /x in any case"),
            (
                path(PathPattern::Regex(Regex::new("/x.*").unwrap())),
                "regex /x.*",
            ),
            (
                path(PathPattern::Template(PathTemplate::new("/x/{a}").unwrap())),
                "template /x/{a}",
            ),
        ]);
    }

    #[test]
    fn headers_and_parameters_read_as_what_is_wanted_of_them() {
        let text = |pattern, ignore_case| StringMatcher {
            pattern,
            ignore_case,
        };
        let header = |predicate| HeaderMatcher::new("h", predicate);
        reads([
            (header(HeaderPredicate::Present(true)), "present"),
            (header(HeaderPredicate::Present(false)), "absent"),
            (
                header(HeaderPredicate::Range { start: 1, end: 9 }),
                "a number from 1 to below 9",
            ),
            (
                header(HeaderPredicate::String(text(
                    StringPattern::Suffix("a b".into()),
                    true,
                ))),
                "suffix \"a b\" in any case",
            ),
            (
                HeaderMatcher {
                    invert: true,
                    treat_missing_as_empty: true,
                    ..header(HeaderPredicate::String(StringMatcher::exact("a")))
                },
                "not exact \"a\", where none is an empty one",
            ),
        ]);
        let regex = StringPattern::Regex(Regex::new("a|b").unwrap());
        reads([
            (QueryMatcher::present("q"), "present"),
            (
                QueryMatcher {
                    present: false,
                    ..QueryMatcher::present("q")
                },
                "absent",
            ),
            (QueryMatcher::value("q", text(regex, false)), "regex a|b"),
        ]);
    }

    #[test]
    fn what_routes_do_besides_reads_in_words() {
        let rewrite = || RegexRewrite::new("a", "b").unwrap();
        let hash = |source, terminal| HashPolicy { source, terminal };
        reads([
            (
                hash(
                    HashSource::Header {
                        name: "h".into(),
                        rewrite: Some(rewrite()),
                    },
                    true,
                ),
                "header h by s/a/b/ (terminal)",
            ),
            (
                hash(
                    HashSource::Cookie {
                        name: "c".into(),
                        ttl: Some(Duration::from_secs(2)),
                        path: String::new(),
                        attributes: Vec::new(),
                    },
                    false,
                ),
                "cookie c, made where there is none, for 2s",
            ),
            (hash(HashSource::SourceIp, false), "the caller's address"),
        ]);
        reads([
            (MirrorTarget::Cluster("c".into()), "cluster c"),
            (
                MirrorTarget::Header("h".parse().unwrap()),
                "the cluster that header h names",
            ),
        ]);
        reads([
            (HedgeDelay::Fixed(Duration::from_millis(20)), "20ms"),
            (
                HedgeDelay::Percentile {
                    percentile: Percentile::new(99.5).unwrap(),
                    min: Duration::from_millis(1),
                },
                "as long as 99.5 % of attempts take, at least 1ms",
            ),
        ]);
        reads([(
            OutlierDetection::default(),
            "5 failures in a row, a success rate 1.9 standard deviations low, \
             ejected for 30s to 300s, at most 10 % at a time",
        )]);
    }
}
