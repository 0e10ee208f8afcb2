//! A route table as text.

use std::fmt::{Display, Formatter, Result};

use super::{CompiledAction, ForwardAction, RouteTable};
use crate::config::RouteMatch;

impl Display for RouteTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "virtual host {}", self.virtual_host())?;
        for route in self.routes() {
            let RouteMatch {
                path,
                headers,
                query_parameters,
                fraction,
            } = &route.matcher;
            write!(f, "  {}: {path}", route.name)?;
            for header in headers {
                write!(f, "; header {}: {header}", header.name)?;
            }
            for parameter in query_parameters {
                write!(f, "; query parameter {}: {parameter}", parameter.name)?;
            }
            if let Some(fraction) = fraction {
                let percent = f64::from(fraction.per_million()) / 10_000.0;
                write!(f, "; {percent} % of them")?;
            }
            writeln!(f, " -> {}", route.action)?;
        }
        Ok(())
    }
}

impl Display for CompiledAction {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Forward(forward) => forward.fmt(f),
            Self::Redirect(redirect) => write!(f, "redirect {}", redirect.status),
            Self::DirectResponse(direct) => write!(f, "answer {}", direct.status),
            Self::NonForwarding => f.write_str("served here"),
            Self::Unsupported(reason) => write!(f, "fails: {reason}"),
        }
    }
}

/// Clusters by their index in the snapshot, with their weights where there are several.
impl Display for ForwardAction {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &*self.clusters {
            [] => f.write_str("the cluster that a header names"),
            [(_, index)] => write!(f, "cluster #{index}"),
            clusters => {
                let mut before = 0;
                for (number, (sum, index)) in clusters.iter().enumerate() {
                    let comma = if number == 0 { "" } else { ", " };
                    write!(f, "{comma}cluster #{index} with weight {}", sum - before)?;
                    before = *sum;
                }
                Ok(())
            }
        }
    }
}
