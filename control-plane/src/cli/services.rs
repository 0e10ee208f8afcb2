//! `control-plane services`: every instance of every service, its health and why.

use std::{
    env,
    io::{IsTerminal as _, stdout},
    path::PathBuf,
};

use http::{Method, Uri};
use serde_json::Value;

use super::{
    Output,
    admin::{self, Admin},
    colours,
};
use crate::registry::InstanceReport;

/// Longest output of a check in a line.
const OUTPUT_MAX: usize = 60;
const HEAD: [&str; 7] = [
    "SERVICE", "ID", "ADDRESS", "SOURCE", "HEALTH", "LEASE", "WHY",
];

#[derive(Debug, clap::Args)]
pub(super) struct Services {
    /// Only those of this service: NAME or NAMESPACE/NAME.
    service: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// The control plane's admin endpoint: HOST:PORT, or `https://HOST:PORT` where it speaks TLS.
    #[arg(long, default_value = "http://127.0.0.1:18001", value_parser = admin::address)]
    http: Uri,
    /// PEM roots that vouch for it over TLS. Default: those in the data directory, else the system's.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// The control plane's data directory, with the key of its admin endpoint, where that needs one.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

impl Services {
    pub(super) async fn run(self) -> anyhow::Result<u8> {
        let admin = Admin {
            server: &self.http,
            ca: self.ca.as_deref(),
            data_dir: self.data_dir.as_deref(),
        };
        let body: Value = admin.ask(Method::GET, "/v1/services").await?;
        let mut found: Vec<InstanceReport> = serde_json::from_value(body["services"].clone())?;
        if let Some(wanted) = &self.service {
            let is_wanted = |instance: &InstanceReport| {
                let name = instance.service.split_once('/').map(|(_, name)| name);
                instance.service == *wanted || name == Some(wanted)
            };
            found.retain(is_wanted);
        }
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
            Output::Text => {
                let is_coloured = colours(stdout().is_terminal(), env::var_os("NO_COLOR"));
                print!("{}", table(&found, is_coloured));
            }
        }
        Ok(0)
    }
}

/// All instances in aligned columns, each check that does not pass on a line of its own.
fn table(found: &[InstanceReport], is_coloured: bool) -> String {
    let rows: Vec<_> = found.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEAD[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    let line = |cells: &[String], colour: Option<&str>| {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let padded = match column + 1 == cells.len() {
                true => cell.clone(),
                false => format!("{cell:width$}  ", width = widths[column]),
            };
            match colour.filter(|_| is_coloured && HEAD[column] == "HEALTH") {
                Some(colour) => text += &format!("\x1b[{colour}m{padded}\x1b[0m"),
                None => text += &padded,
            }
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&HEAD.map(str::to_owned), None);
    for (instance, row) in found.iter().zip(&rows) {
        text += &line(row, Some(colour(instance)));
        for check in instance
            .checks
            .iter()
            .filter(|check| check.status != "passing")
        {
            let output = check.output.lines().next().unwrap_or_default();
            let output: String = output.chars().take(OUTPUT_MAX).collect();
            text += &format!("  {} {} {}: {output}\n", check.kind, check.id, check.status);
        }
    }
    text
}

fn row(instance: &InstanceReport) -> [String; 7] {
    let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    let lease = instance.lease_left.map(|left| format!("{left:.0}s"));
    let failed = instance
        .checks
        .iter()
        .find(|check| check.status == "critical");
    let why = match failed {
        Some(check) if instance.reason.is_empty() => format!("check {}", check.id),
        _ => instance.reason.clone(),
    };
    [
        instance.service.clone(),
        or_dash(&instance.id),
        instance.address.clone(),
        instance.source.clone(),
        instance.health.clone(),
        or_dash(&lease.unwrap_or_default()),
        why,
    ]
}

fn colour(instance: &InstanceReport) -> &'static str {
    match instance.health.as_str() {
        "healthy" if instance.reason.is_empty() => "32",
        "unhealthy" => "31",
        _ => "33",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::CheckReport;

    fn instance(id: &str, health: &str) -> InstanceReport {
        InstanceReport {
            service: "default/billing".into(),
            id: id.into(),
            address: "127.0.0.1:80".into(),
            source: "http".into(),
            health: health.into(),
            reason: String::new(),
            weight: 1,
            checks: vec![CheckReport {
                id: format!("service:{id}"),
                kind: "ttl".into(),
                status: if health == "healthy" {
                    "passing"
                } else {
                    "critical"
                }
                .into(),
                output: "TTL expired".into(),
            }],
            lease_left: (id == "a").then_some(7.2),
        }
    }

    #[test]
    fn columns_are_aligned_and_checks_that_fail_say_why() {
        let found = [instance("a", "healthy"), instance("longer", "unhealthy")];
        let expected = "\
SERVICE          ID      ADDRESS       SOURCE  HEALTH     LEASE  WHY
default/billing  a       127.0.0.1:80  http    healthy    7s
default/billing  longer  127.0.0.1:80  http    unhealthy  -      check service:longer
  ttl service:longer critical: TTL expired
";
        assert_eq!(table(&found, false), expected);
        let coloured = table(&found, true);
        assert!(coloured.contains("\x1b[31munhealthy"), "{coloured}");
    }
}
