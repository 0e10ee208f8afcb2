//! The budgets beside what was measured.

use std::fmt::Write as _;

use crate::harness::Row;

struct Measured<'r>(&'r [&'r Row]);

impl Measured<'_> {
    fn figure(&self, table: &str, case: &str, contender: &str, figure: &str) -> Option<f64> {
        let row = self.0.iter().find(|row| {
            row.table == table && row.case.trim() == case && row.contender == contender
        })?;
        Some(row.spread(figure)?.median)
    }
}

struct Line {
    what: String,
    limit: f64,
    is_floor: bool,
    unit: &'static str,
    measured: Option<f64>,
}

/// The table, of medians.
pub(super) fn table(rows: &[&Row]) -> Result<String, std::fmt::Error> {
    let measured = Measured(rows);
    let mut lines = library(&measured);
    lines.extend(wire(&measured));
    lines.extend(big(&measured));
    let mut text = String::from("| | budget | measured | |\n|---|---:|---:|---|\n");
    for line in lines {
        let Line {
            what,
            limit,
            is_floor,
            unit,
            measured,
        } = line;
        let Some(measured) = measured else { continue };
        let sign = if is_floor { "≥" } else { "≤" };
        let is_met = if is_floor {
            measured >= limit
        } else {
            measured <= limit
        };
        let verdict = if is_met { "met" } else { "**missed**" };
        let number = super::number(measured);
        writeln!(
            text,
            "| {what} | {sign} {limit}{unit} | {number}{unit} | {verdict} |"
        )?;
    }
    Ok(text)
}

fn at_most(what: &str, limit: f64, unit: &'static str, measured: Option<f64>) -> Line {
    Line {
        what: what.to_owned(),
        limit,
        is_floor: false,
        unit,
        measured,
    }
}

fn library(measured: &Measured<'_>) -> Vec<Line> {
    const OURS: &str = "ours, tonic Channel";
    let cpu = |table, case, name| measured.figure(table, case, name, "CPU ns/call");
    let count = |name| measured.figure("Library, hot, counts", "counts", name, "instructions/call");
    let above = |ours: Option<f64>, stub: Option<f64>| Some(ours? - stub?);
    let hot = |case, name| cpu("Library, hot", case, name);
    let cold = |name| cpu("Library, cold", "1 tasks", name);
    vec![
        at_most(
            "CPU of a call above the stub, hot",
            250.0,
            " ns",
            above(hot("1 tasks", OURS), hot("1 tasks", "stub alone")),
        ),
        at_most(
            "the same, cold, 10k names",
            600.0,
            " ns",
            above(cold("ours, 10k names"), cold("stub alone, cold")),
        ),
        at_most(
            "the same, cold, 10k routes of one name",
            600.0,
            " ns",
            above(
                cold("ours, 10k routes of one name"),
                cold("stub alone, cold"),
            ),
        ),
        at_most(
            "instructions of a call above the stub",
            2000.0,
            "",
            above(count(OURS), count("stub alone")),
        ),
        at_most(
            "CPU of a call on two threads over that on one",
            1.2,
            "×",
            hot("2 tasks", OURS)
                .zip(hot("1 tasks", OURS))
                .map(|(two, one)| two / one),
        ),
    ]
}

fn wire(measured: &Measured<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    let unary = "gRPC unary 64 B, closed loop";
    let client = "CPU µs/call, client";
    for case in ["1 callers", "16 callers", "64 callers"] {
        let of = |name, figure| measured.figure(unary, case, name, figure);
        let ratio = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
        lines.push(at_most(
            &format!("client CPU of a call over that of a bare tonic Channel, {case}"),
            1.0,
            "×",
            ratio(
                of("ours, 10 endpoints", client),
                of("tonic Channel", client),
            ),
        ));
        if case != "1 callers" {
            lines.push(Line {
                what: format!("calls/s over those of balance_list(10), {case}"),
                limit: 1.1,
                is_floor: true,
                unit: "×",
                measured: ratio(
                    of("ours, 10 endpoints", "calls/s"),
                    of("tonic balance_list(10)", "calls/s"),
                ),
            });
        }
        let difference = |a, b| Some(of(a, client)? - of(b, client)?);
        let ours = difference("ours, 10 endpoints, mTLS", "ours, 10 endpoints");
        let bare = difference("tonic Channel over rustls", "tonic Channel");
        lines.push(at_most(
            &format!("client CPU that mTLS adds, less what bare rustls adds, {case}"),
            0.0,
            " µs",
            ours.zip(bare).map(|(ours, bare)| ours - bare),
        ));
        let bare = difference(
            "tonic Channels over rustls, ten in turn",
            "tonic Channels, ten in turn",
        );
        lines.push(at_most(
            &format!("the same, less what bare rustls adds on ten connections, {case}"),
            0.0,
            " µs",
            ours.zip(bare).map(|(ours, bare)| ours - bare),
        ));
        for version in ["HTTP/1.1", "HTTP/2"] {
            let table = format!("{version} 64 B, closed loop");
            let of = |name| measured.figure(&table, case, name, client);
            let above = of("ours, 10 endpoints").zip(of("hyper-util client"));
            lines.push(at_most(
                &format!("{version}: client CPU above hyper-util's client, {case}"),
                1.0,
                " µs",
                above.map(|(ours, hyper)| ours - hyper),
            ));
        }
    }
    lines
}

fn big(measured: &Measured<'_>) -> Vec<Line> {
    let case = "10k clusters, 100k endpoints, 10k routes";
    let of = |figure| measured.figure("Big configuration", case, "ours, delta", figure);
    let p99 = of("p99 µs changing").zip(of("p99 µs still"));
    vec![
        at_most("big configuration: ready", 1.0, " s", of("ready s")),
        at_most("big configuration: memory", 100.0, " MB", of("memory MB")),
        at_most(
            "big configuration: 1,000 changes/s",
            5.0,
            " % of a core",
            of("1,000 changes/s, % of a core"),
        ),
        at_most(
            "big configuration: request p99 while changes arrive, over that while none do",
            1.1,
            "×",
            p99.map(|(changing, still)| changing / still),
        ),
    ]
}
