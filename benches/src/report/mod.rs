//! Writes what was measured: `docs/benchmarks.md` with every table, `docs/benchmarks.svg` with the
//! picture.
//!
//! Reads the kept results of all families, measured now or earlier; it measures nothing.

mod budgets;
pub mod machine;
mod plot;

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;

use crate::harness::{Results, Row, Spread, root};

/// In the order of the page.
pub const FAMILIES: [&str; 5] = ["library", "pick", "wire", "big", "security"];

/// What the figures do not say of themselves; written by hand.
const WHY: &str = include_str!("why.md");

/// Writes the page and the picture.
///
/// # Errors
/// When a result cannot be read or a file not be written.
pub fn write() -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for family in FAMILIES {
        kept.push((family, Results::kept(family)?));
    }
    let rows: Vec<_> = kept.iter().flat_map(|(_, results)| &results.rows).collect();
    let mut page = String::from(HEAD);
    for (family, results) in &kept {
        if results.rows.is_empty() {
            continue;
        }
        writeln!(page, "\n## {}\n", title(family))?;
        writeln!(page, "{}\n", remarks(family))?;
        for (what, value) in &results.machine {
            writeln!(page, "* {what}: {value}")?;
        }
        for note in &results.notes {
            writeln!(page, "* note: {note}")?;
        }
        let mut names: Vec<&str> = Vec::new();
        for row in &results.rows {
            if !names.contains(&row.table.as_str()) {
                names.push(&row.table);
            }
        }
        for name in names {
            let lines: Vec<_> = results
                .rows
                .iter()
                .filter(|row| row.table == name)
                .collect();
            table(&mut page, name, &lines)?;
        }
    }
    let budgets = budgets::table(&rows)? + WHY;
    let page = page.replace("@BUDGETS@", &budgets);
    let docs = root().join("docs");
    fs::write(docs.join("benchmarks.md"), page).context("docs/benchmarks.md")?;
    fs::write(docs.join("benchmarks.svg"), plot::draw(&rows)?).context("docs/benchmarks.svg")?;
    println!("wrote docs/benchmarks.md and docs/benchmarks.svg");
    Ok(())
}

fn title(family: &str) -> &'static str {
    match family {
        "library" => "Library: cost above an endpoint that answers at once",
        "pick" => "Pick: choosing an endpoint",
        "wire" => "Wire: end to end over loopback",
        "security" => "Security: certificates and rules",
        _ => "Big: ten thousand clusters",
    }
}

fn remarks(family: &str) -> &'static str {
    match family {
        "library" => {
            "Each call makes a request, passes the library, and reads the response to its end; \
             \"stub alone\" is the same without a library, to be subtracted. Tasks run on tokio's \
             workers, as many as cores. Hot: one cluster of ten endpoints. Cold: 10,000 clusters \
             of ten, each call to another one. `junction-core` only resolves, and sends nothing. \
             Counts are of a single-threaded runtime; instructions are callgrind's."
        }
        "pick" => {
            "A pick, the count of a request that begins and of one that ends, and for policies that learn \
             from them a clock and the latency. tower's balancers need `&mut self`: one thread, and with a \
             service that answers at once instead of the two counts. tonic-xds has no row: its pickers are \
             private types of its crate, and what its channel costs is in the family above."
        }
        "wire" => {
            "Client, server and proxies are separate processes on one machine; their processor \
             time is told apart. Every socket has `TCP_NODELAY`. Telemetry is off everywhere. \
             tonic's channel uses one connection, ours and balance_list one to each of ten \
             endpoints. Client CPU includes the callers. \
             Latency at a fixed rate is from when a call is issued, by a thread that waits for no \
             answer and whose own time counts as the client's. A \"call\" of a stream is a message there and back."
        }
        "security" => {
            "Issuance: a request of a P-256 key is read, its proof checked, the certificate signed and \
             written as PEM; or the key made here, too. RBAC: the whole engine's decision of one call, \
             beside a walk through the same rules; each rule allows one caller one method."
        }
        _ => {
            "An xDS server in a process of its own serves both variants of the protocol. Ready: from start \
             to the first answered call, which matches the last route: everything is received, \
             decoded and applied; with the processor time and the most memory until then. Moved: \
             a cluster's one endpoint goes to another server, from the control plane's word to \
             the first call there, with a call each two milliseconds. Changes: an endpoint of \
             another cluster moves, each change a resource; their cost is the processor time of \
             the client (or Envoy) while they arrive less that while none do, at the same request \
             rate."
        }
    }
}

fn table(page: &mut String, name: &str, rows: &[&Row]) -> std::fmt::Result {
    let mut columns: Vec<&str> = Vec::new();
    for (figure, _) in rows.iter().flat_map(|row| &row.figures) {
        if !columns.contains(&figure.as_str()) {
            columns.push(figure);
        }
    }
    writeln!(page, "\n### {name}\n\n| | | {} |", columns.join(" | "))?;
    writeln!(page, "|---|---|{}", "---:|".repeat(columns.len()))?;
    for row in rows {
        let cells = columns
            .iter()
            .map(|column| row.spread(column).map_or_else(String::new, cell));
        let cells = cells.collect::<Vec<_>>().join(" | ");
        writeln!(
            page,
            "| {} | {} | {cells} |",
            row.case.trim(),
            row.contender
        )?;
    }
    Ok(())
}

fn cell(spread: Spread) -> String {
    let Spread { median, min, max } = spread;
    if min == max {
        return number(median);
    }
    format!("{} ({}–{})", number(median), number(min), number(max))
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 100.0 => {
            let digits = format!("{value:.0}");
            let grouped: Vec<_> = digits.as_bytes().rchunks(3).rev().collect();
            let parts = grouped.iter().map(|part| String::from_utf8_lossy(part));
            parts.collect::<Vec<_>>().join(",").replace("-,", "-")
        }
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

const HEAD: &str = "# Benchmarks

Written by the suite in `benches`; do not edit. To repeat (Linux, valgrind, some twenty minutes):

```console
$ scripts/setup-peers.sh
$ cargo run --profile bench -p mesh-benches --features peers -- all
```

Without `--features peers`, tonic-xds and junction-core are left out; without Envoy, its rows.
`library`, `wire` or `big` instead of `all` runs one family, `--quick` runs fewer and shorter
rounds, `--filter TEXT` only the rows that contain the text.

Figures are medians of rounds with their range. In each round every contender has its turn, the
order rotates, and the first round does not count. Wall-clock figures of a small shared machine
are for comparison inside a table, and fail no build: that is for counts, by
`cargo run --profile bench -p mesh-benches --bin gate` against `benches/gate.toml`.

![Processor time of a call](benchmarks.svg)

## Budgets

@BUDGETS@";

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_three_digits_and_groups() {
        for (value, text) in [
            (0.0, "0"),
            (0.123, "0.12"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.5, "1,234"),
            (-123_456.0, "-123,456"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
