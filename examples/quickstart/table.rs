//! What the quickstart shows while it runs.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{children::Children, traffic::Seen};

/// Times a second that the table is drawn on a terminal; elsewhere one line each second.
const FRAMES: u32 = 4;

pub(crate) struct Table {
    is_terminal: bool,
    drawn: usize,
    last: Instant,
    calls: u64,
    failed: u64,
}

impl Table {
    pub(crate) fn new(is_terminal: bool) -> Self {
        Self {
            is_terminal,
            drawn: 0,
            last: Instant::now(),
            calls: 0,
            failed: 0,
        }
    }

    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(1) / if self.is_terminal { FRAMES } else { 1 }
    }

    pub(crate) fn draw(&mut self, folder: &Path, children: &Children, seen: &Seen) {
        let seconds = self.last.elapsed().as_secs_f64().max(1e-3);
        self.last = Instant::now();
        self.calls += seen.requests();
        self.failed += seen.failed;
        let rate = seen.requests() as f64 / seconds;
        if !self.is_terminal {
            println!("{rate:>6.0} requests/s  {}", seen.summary());
            return;
        }
        let lines = self.lines(folder, children, seen, rate);
        if self.drawn > 0 {
            // Back to the first line of the last frame.
            print!("\x1b[{}A", self.drawn);
        }
        for line in &lines {
            println!("\x1b[2K{line}");
        }
        self.drawn = lines.len();
    }

    fn lines(&self, folder: &Path, children: &Children, seen: &Seen, rate: f64) -> Vec<String> {
        let bar = |share: f64| "█".repeat((share * 40.0).round() as usize);
        let colour = if self.failed == 0 { "32" } else { "31" };
        let success = 100.0 * (1.0 - self.failed as f64 / self.calls.max(1) as f64);
        let http = fs::read_to_string(folder.join("http.port")).unwrap_or_default();
        let mut lines = vec![
            String::new(),
            format!(
                "  \x1b[1mgreeter v1\x1b[0m  {:>5.1} %  \x1b[34m{}\x1b[0m",
                seen.share("v1") * 100.0,
                bar(seen.share("v1"))
            ),
            format!(
                "  \x1b[1mgreeter v2\x1b[0m  {:>5.1} %  \x1b[35m{}\x1b[0m",
                seen.share("v2") * 100.0,
                bar(seen.share("v2"))
            ),
            String::new(),
            format!(
                "  requests    {rate:>8.0} /s   success \x1b[{colour}m{success:>7.3} %\x1b[0m   failed {:>6}   retries {:>6}",
                self.failed, seen.retries
            ),
            format!(
                "  latency     p50 {:>6.2} ms   p99 {:>6.2} ms   (visitor → front end → greeter, mTLS)",
                seen.percentile(0.5),
                seen.percentile(0.99)
            ),
            format!("  the greeter sees  {}", seen.peer),
            String::new(),
        ];
        for service in children.services() {
            let state = match service.id() {
                Some(id) => format!("\x1b[32mrunning\x1b[0m  kill {id}"),
                None => "\x1b[31mdead\x1b[0m, restarted in a moment".to_owned(),
            };
            lines.push(format!("  {:<16}{state}", service.name));
        }
        lines.extend([
            String::new(),
            "  \x1b[1mTry\x1b[0m".to_owned(),
            format!("  change the weights   {}", folder.join("config/routes.yaml").display()),
            "  kill a backend       one of the commands above: no request fails".to_owned(),
            format!("  look inside          curl http://127.0.0.1:{http}/v1/clients   …/metrics   …/v1/diagnostics"),
            "  traces               start again with OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317".to_owned(),
            "  stop                 Ctrl-C".to_owned(),
        ]);
        lines
    }
}
