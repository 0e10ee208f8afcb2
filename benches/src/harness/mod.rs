//! What every family shares: how rounds are run, what is recorded of them, where it is kept.
//!
//! Knows no contender.

pub mod child;
pub mod cpu;
pub mod load;
#[path = "../../../examples/src/ports.rs"]
pub mod ports;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// How much to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often each contender has its turn.
    pub rounds: usize,
    /// Share of the full length of a round.
    pub length: f64,
    /// Only contenders and cases whose `table / case / contender` contains this.
    pub filter: Option<String>,
}

impl Plan {
    /// What `--quick` and `--filter` ask for.
    pub fn new(is_quick: bool, filter: Option<String>) -> Self {
        Self {
            rounds: if is_quick { 3 } else { 5 },
            length: if is_quick { 0.25 } else { 1.0 },
            filter,
        }
    }

    /// Whether this cell of the matrix is wanted.
    pub fn wants(&self, table: &str, case: &str, contender: &str) -> bool {
        let cell = format!("{table} / {case} / {contender}");
        self.filter
            .as_deref()
            .is_none_or(|wanted| cell.contains(wanted))
    }

    /// `full` shortened as asked.
    pub fn scaled(&self, full: usize) -> usize {
        ((full as f64 * self.length) as usize).max(1)
    }
}

/// What one turn measured, by name.
pub type Turn = Vec<(&'static str, f64)>;

/// One who takes turns.
pub struct Contender<'a> {
    /// As it appears in the table.
    pub name: String,
    /// Takes a turn.
    pub turn: Box<dyn FnMut() -> BoxFuture<'a, anyhow::Result<Turn>> + Send + 'a>,
}

impl std::fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contender")
            .field("name", &self.name)
            .finish()
    }
}

/// One line of a table: a contender in a case, with the samples of every figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Title of the table.
    pub table: String,
    /// For example the number of callers.
    pub case: String,
    /// Who.
    pub contender: String,
    /// Name and unit, and a sample a round, in the order of columns.
    pub figures: Vec<(String, Vec<f64>)>,
}

/// Median and range of samples.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Half of the samples are not above.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: *sorted.get(sorted.len() / 2)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

impl Row {
    /// Median and range of a figure.
    pub fn spread(&self, figure: &str) -> Option<Spread> {
        let (_, samples) = self.figures.iter().find(|(name, _)| name == figure)?;
        Spread::of(samples)
    }
}

/// Lets `contenders` take turns and adds a row for each to `results`. The first turn warms up and
/// does not count. One that fails is left out of the rest, with a note.
pub async fn take_turns(
    plan: &Plan,
    results: &mut Results,
    (table, case): (&str, &str),
    mut contenders: Vec<Contender<'_>>,
) {
    contenders.retain(|contender| plan.wants(table, case, &contender.name));
    let mut samples: Vec<BTreeMap<&str, Vec<f64>>> = vec![BTreeMap::new(); contenders.len()];
    let mut columns: Vec<Vec<&str>> = vec![Vec::new(); contenders.len()];
    let mut failed = vec![false; contenders.len()];
    for round in 0..=plan.rounds {
        for step in 0..contenders.len() {
            // Nobody always follows the same neighbour.
            let at = (step + round) % contenders.len();
            if failed[at] {
                continue;
            }
            match (contenders[at].turn)().await {
                Ok(_) if round == 0 => {}
                Ok(turn) => {
                    columns[at] = turn.iter().map(|(name, _)| *name).collect();
                    for (name, value) in turn {
                        samples[at].entry(name).or_default().push(value);
                    }
                }
                Err(error) => {
                    let name = &contenders[at].name;
                    results.note(format!("{table}, {case}: {name} left out: {error:#}"));
                    failed[at] = true;
                }
            }
        }
    }
    for (at, contender) in contenders.iter().enumerate() {
        let figures: Vec<_> = columns[at]
            .iter()
            .map(|name| ((*name).to_owned(), samples[at][name].clone()))
            .collect();
        if figures.is_empty() {
            continue;
        }
        results.add(Row {
            table: table.to_owned(),
            case: case.to_owned(),
            contender: contender.name.clone(),
            figures,
        });
    }
}

/// What a family measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Lines of its tables.
    pub rows: Vec<Row>,
    /// What a reader should know about this run.
    pub notes: Vec<String>,
    /// What ran it; see [`report::machine`](crate::report::machine).
    pub machine: BTreeMap<String, String>,
}

impl Results {
    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        let figures = row.figures.iter().filter_map(|(name, samples)| {
            let spread = Spread::of(samples)?;
            Some(format!(
                "{name} {:.2} ({:.2}..{:.2})",
                spread.median, spread.min, spread.max
            ))
        });
        let figures = figures.collect::<Vec<_>>().join(", ");
        println!(
            "{} / {} / {}: {figures}",
            row.table, row.case, row.contender
        );
        self.rows.push(row);
    }

    /// Adds a remark and prints it.
    pub fn note(&mut self, note: String) {
        println!("note: {note}");
        self.notes.push(note);
    }

    /// Keeps the results of `family` until the report is written. Rows that were not measured
    /// again stay.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(mut self, family: &str) -> anyhow::Result<()> {
        self.machine = crate::report::machine::describe();
        let before = Self::kept(family)?;
        let is_new = |row: &Row| {
            let same = |new: &Row| {
                (&new.table, &new.case, &new.contender) == (&row.table, &row.case, &row.contender)
            };
            !self.rows.iter().any(same)
        };
        let stale: Vec<_> = before.rows.into_iter().filter(is_new).collect();
        self.rows.extend(stale);
        let path = kept_at(family);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, serde_json::to_vec_pretty(&self)?)
            .with_context(|| path.display().to_string())
    }

    /// What [`keep`](Self::keep) kept; nothing when there is nothing.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub fn kept(family: &str) -> anyhow::Result<Self> {
        match fs::read(kept_at(family)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The workspace.
pub fn root() -> &'static Path {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    benches.parent().unwrap_or(benches)
}

fn kept_at(family: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("benches").join(format!("{family}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_and_range() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).expect("samples");
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert!(Spread::of(&[]).is_none());
    }

    #[tokio::test]
    async fn turns_are_recorded_but_the_first_and_who_fails_is_left_out() {
        let plan = Plan {
            rounds: 2,
            length: 1.0,
            filter: None,
        };
        let mut turn = 0.0;
        let contenders = vec![
            Contender {
                name: "works".to_owned(),
                turn: Box::new(move || {
                    turn += 1.0;
                    Box::pin(async move { Ok(vec![("turn", turn)]) })
                }),
            },
            Contender {
                name: "fails".to_owned(),
                turn: Box::new(|| Box::pin(async { anyhow::bail!("always") })),
            },
        ];
        let mut results = Results::default();
        take_turns(&plan, &mut results, ("table", "case"), contenders).await;
        let [row] = &results.rows[..] else {
            panic!("{results:?}")
        };
        assert_eq!(row.figures, [("turn".to_owned(), vec![2.0, 3.0])]);
        assert_eq!(results.notes, ["table, case: fails left out: always"]);
    }

    #[test]
    fn a_filter_finds_table_case_and_contender() {
        let wanted = |filter: &str| {
            Plan::new(true, Some(filter.to_owned())).wants("gRPC", "16 callers", "ours")
        };
        assert!(wanted("gRPC / 16") && wanted("ours") && !wanted("Envoy"));
    }
}
