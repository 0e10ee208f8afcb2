//! What a family ran on.

use std::{collections::BTreeMap, fs, process::Command};

use crate::harness::{child, root};

/// Crates whose versions matter to a reader.
const CRATES: [&str; 10] = [
    "h2",
    "hyper",
    "hyper-util",
    "junction-core",
    "rustls",
    "tokio",
    "tonic",
    "tonic-xds",
    "tower",
    "arc-swap",
];

/// Machine, versions and date.
pub fn describe() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = cpus
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let models: Vec<_> = models
        .map(|model| model.trim_start_matches([':', '\t', ' ']))
        .collect();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kb| kb.parse::<u64>().ok());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let machine = format!(
        "{} × {}, {} GiB, load average {load} at the end",
        models.len(),
        models.first().copied().unwrap_or("unknown"),
        kilobytes.unwrap_or(0) >> 20,
    );
    found.insert("machine".to_owned(), machine);
    found.insert("kernel".to_owned(), said("uname", &["-sr"]));
    found.insert("rustc".to_owned(), said("rustc", &["--version"]));
    found.insert("date".to_owned(), said("date", &["-u", "+%F %H:%M UTC"]));
    let commit = said("git", &["rev-parse", "--short", "HEAD"]);
    found.insert("commit".to_owned(), commit);
    let mut versions = crates();
    if let Ok(envoy) = child::peer("bin/envoy") {
        let text = said(&envoy.to_string_lossy(), &["--version"]);
        // "…/envoy  version: COMMIT/1.40.0/…"
        let build = text.rsplit_once("version:").map_or("", |(_, build)| build);
        if let Some(version) = build.split('/').nth(1) {
            versions.push(format!("Envoy {version}"));
        }
    }
    versions.push(said("valgrind", &["--version"]));
    found.insert("versions".to_owned(), versions.join(", "));
    found
}

/// Names with versions, by the lock file.
fn crates() -> Vec<String> {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap_or_default();
    let lines: Vec<_> = lock.lines().collect();
    let quoted = |line: &str, key: &str| {
        let value = line
            .strip_prefix(key)?
            .strip_prefix(" = \"")?
            .strip_suffix('"')?;
        Some(value.to_owned())
    };
    let pairs = lines.windows(2).filter_map(|pair| {
        let (name, version) = (quoted(pair[0], "name")?, quoted(pair[1], "version")?);
        CRATES
            .contains(&name.as_str())
            .then(|| format!("{name} {version}"))
    });
    pairs.collect()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| format!("no {program}"))
}
