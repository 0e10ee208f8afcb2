//! The explanation as text.

use std::fmt;

use super::{
    CallExplanation, ExplainedAction, ExplainedCluster, ExplainedForward, ExplainedHost,
    ExplainedRoute,
};

impl fmt::Display for CallExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.request)?;
        writeln!(
            f,
            "listener {} (configuration {})",
            self.listener, self.generation
        )?;
        for host in &self.virtual_hosts {
            writeln!(f, "{host}")?;
        }
        for route in &self.routes {
            writeln!(f, "  {route}")?;
        }
        match &self.action {
            Some(action) => write!(f, "{action}"),
            None => writeln!(f, "no route matches: the call fails"),
        }
    }
}

impl fmt::Display for ExplainedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_taken { '>' } else { '-' };
        match &self.domain {
            Some(domain) => write!(f, "{sign} virtual host {}: domain {domain}", self.name),
            None => write!(f, "{sign} virtual host {}: no domain matches", self.name),
        }
    }
}

impl fmt::Display for ExplainedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_taken { '>' } else { '-' };
        write!(f, "{sign} route {}: ", self.name)?;
        match &self.mismatch {
            Some(mismatch) => write!(f, "{mismatch}")?,
            None => f.write_str("matches")?,
        }
        match self.share_per_million {
            Some(share) => write!(
                f,
                ", for {} % of such requests",
                f64::from(share) / 10_000.0
            ),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ExplainedAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(forward) => forward.fmt(f),
            Self::Redirect { status, location } => {
                writeln!(f, "answered here: {status}, location {location}")
            }
            Self::DirectResponse { status, bytes } => {
                writeln!(f, "answered here: {status}, {bytes} bytes")
            }
            Self::Fail { reason } => writeln!(f, "the call fails: {reason}"),
        }
    }
}

impl fmt::Display for ExplainedForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            ("timeout", self.timeout),
            ("stream limit", self.stream_limit),
            ("idle timeout", self.idle_timeout),
        ];
        for (name, limit) in limits {
            if let Some(limit) = limit {
                writeln!(f, "{name} {limit:?}")?;
            }
        }
        if let Some(retry) = &self.retry {
            write!(
                f,
                "retried {} times on {}",
                retry.num_retries, retry.retry_on
            )?;
            match retry.per_try_timeout {
                Some(limit) => writeln!(f, ", each within {limit:?}")?,
                None => writeln!(f)?,
            }
        }
        if let Some(hash) = &self.hash {
            write!(f, "hash of {}", hash.policies.join(", "))?;
            match (hash.sets_cookie, hash.value) {
                (true, _) => writeln!(f, ": the response sets a cookie")?,
                (false, Some(value)) => writeln!(f, ": {value:016x}")?,
                (false, None) => writeln!(f, ": none of it is there, any endpoint will do")?,
            }
        }
        for (what, text) in [("path", &self.path), ("authority", &self.authority)] {
            if let Some(text) = text {
                writeln!(f, "{what} becomes {text}")?;
            }
        }
        for (name, value) in &self.headers_set {
            writeln!(f, "header {name}: {value}")?;
        }
        for name in &self.headers_removed {
            writeln!(f, "header {name} is removed")?;
        }
        for (name, what) in &self.filters {
            writeln!(f, "filter {name}: {what}")?;
        }
        if let Some(hedge) = &self.hedge {
            writeln!(f, "another attempt {hedge}")?;
        }
        for mirror in &self.mirrors {
            writeln!(f, "copied to {mirror}")?;
        }
        let total: u32 = self.clusters.iter().map(|cluster| cluster.weight).sum();
        for cluster in self.clusters.iter().filter(|cluster| cluster.weight > 0) {
            cluster.write(f, total)?;
        }
        Ok(())
    }
}

impl ExplainedCluster {
    fn write(&self, f: &mut fmt::Formatter<'_>, total: u32) -> fmt::Result {
        let share = 100.0 * f64::from(self.weight) / f64::from(total);
        write!(f, "to cluster {} ({share:.1} %)", self.name)?;
        match &self.error {
            Some(error) => writeln!(f, ": {error}")?,
            None => writeln!(f, ", {}", self.lb_policy)?,
        }
        for endpoint in &self.endpoints {
            let state = match (endpoint.is_usable, endpoint.is_ejected) {
                (true, _) => "usable",
                (false, true) => "ejected",
                (false, false) => "not usable",
            };
            write!(
                f,
                "  {} {state} ({}, {}), weight {}, {} in flight",
                endpoint.address,
                endpoint.health,
                endpoint.connectivity,
                endpoint.weight,
                endpoint.in_flight,
            )?;
            match endpoint.locality.is_empty() {
                true => writeln!(f)?,
                false => writeln!(f, ", in {}", endpoint.locality)?,
            }
        }
        Ok(())
    }
}
