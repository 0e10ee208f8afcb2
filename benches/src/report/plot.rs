//! Bars of the processor time of a call: by process over the wire, above the stub for libraries.

use std::fmt::Write as _;

use crate::harness::{Row, Spread};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const BAR: f64 = 18.0;
const STEP: f64 = 26.0;

/// A part of a bar: figure, colour, legend.
type Part = (&'static str, &'static str, &'static str);

const BY_PROCESS: [Part; 3] = [
    ("CPU µs/call, client", "#3b6ea5", "client"),
    ("server", "#8fb3d9", "server"),
    ("proxies", "#c8553d", "proxies"),
];
const LIBRARY: [Part; 1] = [("CPU ns/call", "#3b6ea5", "library and stub")];

/// The picture.
pub(super) fn draw(rows: &[&Row]) -> Result<String, std::fmt::Error> {
    let mut body = String::new();
    let mut y = 10.0;
    for (title, table, case, parts, whole) in [
        (
            "gRPC unary 64 B, 16 callers: CPU µs a call",
            "gRPC unary 64 B, closed loop",
            "16 callers",
            &BY_PROCESS[..],
            "all",
        ),
        (
            "Library over an instant stub, 2 tasks: CPU ns a call",
            "Library, hot",
            "2 tasks",
            &LIBRARY[..],
            "CPU ns/call",
        ),
    ] {
        let lines: Vec<_> = rows
            .iter()
            .filter(|row| row.table == table && row.case.trim() == case)
            .copied()
            .collect();
        y = panel(&mut body, y, title, &lines, parts, whole)?;
    }
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{y}\" fill=\"white\"/>\n{body}</svg>\n"
    ))
}

fn panel(
    body: &mut String,
    top: f64,
    title: &str,
    rows: &[&Row],
    parts: &[Part],
    whole: &str,
) -> Result<f64, std::fmt::Error> {
    let spreads = rows.iter().filter_map(|row| row.spread(whole));
    let longest = spreads.map(|spread| spread.max).fold(0.0, f64::max);
    if longest == 0.0 {
        return Ok(top);
    }
    let scale = (WIDTH - LEFT - 120.0) / longest;
    let mut y = top + 20.0;
    writeln!(
        body,
        "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{title}</text>"
    )?;
    let mut x = LEFT + 250.0;
    for (_, colour, legend) in parts {
        writeln!(
            body,
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{y}\">{legend}</text>",
            y - 11.0,
            x + 16.0
        )?;
        x += 90.0;
    }
    y += 12.0;
    for row in rows {
        let mut x = LEFT;
        let middle = y + BAR / 2.0;
        writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            middle + 4.0,
            row.contender
        )?;
        for (figure, colour, _) in parts {
            let width = row.spread(figure).map_or(0.0, |spread| spread.median) * scale;
            writeln!(
                body,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" \
                 fill=\"{colour}\"/>"
            )?;
            x += width;
        }
        if let Some(Spread { median, min, max }) = row.spread(whole) {
            let (low, high) = (LEFT + min * scale, LEFT + max * scale);
            writeln!(
                body,
                "<line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle}\" y2=\"{middle}\" \
                 stroke=\"black\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
                high.max(x) + 6.0,
                middle + 4.0,
                super::number(median)
            )?;
        }
        y += STEP;
    }
    Ok(y + 14.0)
}
