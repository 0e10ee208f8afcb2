//! The page and the plot that come of it.

use std::{fmt::Write as _, time::Duration};

/// What came of one policy.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Latency under skew: median, p99, p99.9.
    pub(crate) skew: [Duration; 3],
    /// Requests a second of the small busy fleet.
    pub(crate) throughput: f64,
    /// Percentage that a gray endpoint gets, without and with outlier detection.
    pub(crate) grays: [(f64, f64); 3],
    /// Percentage of failures and p99 in a rolling restart.
    pub(crate) restarts: (f64, Duration),
}

const HEAD: &str = "# Balancing

What the load balancing policies do to latency and to sick endpoints. Written by the test `simulation`
of mesh-core, which runs the real pickers, outlier detection and statistics against simulated servers in
virtual time; run it with `MESH_UPDATE_DOCS=1` after a change. Network and balancer cost nothing there:
what a pick costs is in [benchmarks.md](benchmarks.md).

![p99 under skew](balancing.svg)

";

const CHOICE: &str = "
## Which one

* **least request** is the default of our control plane: it needs nothing from servers. An endpoint that
  fails more than a fifth of its requests counts as busy, and is tried again after three seconds.
* **peak EWMA** also avoids endpoints that are slow or fail, after one slow or failed answer. Take it for
  services whose endpoints differ, or where nothing ejects.
* **Prequal** takes the fastest of those that are not busy. It is for servers that differ, and needs
  their reports where many clients share them: what a client sees by itself is a part of the load.
* **round robin**, **random**, **client-side WRR** do not look at requests in flight. The last one
  follows reported utilisation within seconds, not within a request.
* **ring hash** and **maglev** are for caches: the same key goes to the same endpoint.
";

const MODELS: &str = "
## What they are held to

Each over generated clusters, against a slow model that does what the specification says and no more
(`mesh-core/src/balance/tests/properties`, `mesh-core/src/health/outlier/properties.rs`).
`MESH_PROPERTY_CASES=2000 cargo test -p mesh-core --lib properties` runs more of them.

| what | model | bound |
|---|---|---|
| round robin | the next ready endpoint after the last one | exact, while endpoints come and go |
| least request, random | the chances that counting gives, for 1 to 10 choices | 5 standard deviations |
| peak EWMA | who wins how many of all pairs | 5 standard deviations; the worst one gets none |
| endpoint weights; slow start; weights from reports | the weight by the letter of the specification | 5 standard deviations; 1 %; 1 % |
| locality weights | Envoy's weight by health, with an overprovisioning factor | 5 standard deviations |
| ring hash | the ring of Envoy and gRPC as an ordered map | exact; nothing moves but what new entries take |
| Maglev | the table from written-out permutations | exact; at most 8 % move beside the part of the one that leaves |
| bounded loads | requests in flight, counted | never exceeded |
| zone-aware routing | Envoy's, step by step, with a ticket for each ten thousandth | 5 standard deviations |
| priorities by health, panic, degraded endpoints | Envoy's formula, by handing out 100 tickets | exact |
| failover between priorities | gRFC A56 over the whole history | exact |
| outlier detection | a look at every request there ever was | who is ejected, when and for how long: exact; never above the limit |
| endpoints of a process (gRFC A68) | sorted by score | exact; one change moves one at most |
| endpoints of a process by its place | a count of each endpoint's clients | as many as any other, or one more; one change moves two at most |
| subsets by metadata | a look at each endpoint | exact |
";

/// The page.
pub(crate) fn page(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    text.push_str(
        "## Skew\n\n16 servers, two of them 16 times slower, 8 clients, half of what the fast servers can do; \
         requests end after 2 s.\n\n| policy | p50 | p99 | p99.9 | p99 against round robin |\n|---|---|---|---|---|\n",
    );
    let base = rows[0].skew[1].as_secs_f64();
    for row in rows {
        let [p50, p99, p999] = row.skew.map(millis);
        let ratio = base / row.skew[1].as_secs_f64();
        _ = writeln!(
            text,
            "| {} | {p50} | {p99} | {p999} | {ratio:.1} times better |",
            row.name
        );
    }
    text.push_str(
        "\n## A small busy fleet\n\n4 servers of one worker, always busy: requests a second.\n\n\
         | policy | throughput | against the best |\n|---|---|---|\n",
    );
    let best = rows.iter().map(|row| row.throughput).fold(0.0, f64::max);
    for row in rows {
        let share = row.throughput / best * 100.0;
        _ = writeln!(
            text,
            "| {} | {:.0} | {share:.1} % |",
            row.name, row.throughput
        );
    }
    text.push_str(
        "\n## One gray endpoint in ten\n\nIts share of the requests from two seconds after it began, by the policy \
         alone and with outlier detection by its defaults. A fair share is 10 %.\n\n\
         | policy | 100 times slower | fails 30 % | never answers |\n|---|---|---|---|\n",
    );
    for row in rows {
        _ = write!(text, "| {} |", row.name);
        for (alone, watched) in row.grays {
            _ = write!(text, " {alone:.2} %, {watched:.2} % |");
        }
        text.push('\n');
    }
    text.push_str(
        "\n## A rolling restart\n\nEach of 10 servers is gone for half a second. Requests in flight at that \
         moment finish; nothing is retried.\n\n| policy | failed | p99 |\n|---|---|---|\n",
    );
    for row in rows {
        let (failed, p99) = row.restarts;
        _ = writeln!(text, "| {} | {failed:.3} % | {} |", row.name, millis(p99));
    }
    text.push_str(CHOICE);
    text.push_str(MODELS);
    text
}

fn millis(latency: Duration) -> String {
    format!("{:.1} ms", latency.as_secs_f64() * 1000.0)
}

/// Bars of the p99 under skew, on a logarithmic scale.
pub(crate) fn plot(rows: &[Row]) -> String {
    const LEFT: f64 = 170.0;
    const WIDTH: f64 = 460.0;
    const LINE: f64 = 28.0;
    // From 10 ms to 10 s.
    let place = |millis: f64| LEFT + WIDTH * (millis / 10.0).log10().clamp(0.0, 3.0) / 3.0;
    let height = LINE * rows.len() as f64 + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n<text x=\"10\" y=\"20\">p99 under skew, ms</text>\n"
    );
    for tick in [10.0, 100.0, 1_000.0, 10_000.0] {
        let x = place(tick);
        _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"30\" y2=\"{}\" stroke=\"#ddd\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            height - 25.0,
            height - 8.0
        );
    }
    for (index, row) in rows.iter().enumerate() {
        let y = 34.0 + LINE * index as f64;
        let millis = row.skew[1].as_secs_f64() * 1000.0;
        let end = place(millis);
        _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{}</text><rect x=\"{LEFT}\" y=\"{y}\" width=\"{}\" \
             height=\"18\" fill=\"#4a7ab5\"/><text x=\"{}\" y=\"{}\">{millis:.0}</text>",
            y + 14.0,
            row.name,
            end - LEFT,
            end + 5.0,
            y + 14.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}
