//! The document of a comparison: tables, and a plot for each workload.

use std::{fmt::Write as _, fs, path::Path};

use tidegate_bench::{Environment, Error, digits};

use crate::{
    amount::Amount,
    peer::Peer,
    plot::{self, Panel},
    results::Results,
    workload::{Metric, Workload},
};

/// The document of a comparison.
pub(crate) struct Document {
    pub(crate) environment: Environment,
    pub(crate) versions: Vec<(Peer, String)>,
    pub(crate) amount: Amount,
    pub(crate) rounds: u32,
    pub(crate) command_line: String,
    pub(crate) sections: Vec<Section>,
}

/// The results of one workload.
pub(crate) struct Section {
    pub(crate) workload: Workload,
    pub(crate) rounds: u32,
    pub(crate) results: Vec<Results>,
}

/// The text below the figures.
const MORE: &str = include_str!("more.md");

// ===== impl Document =====

impl Document {
    /// Writes the document to `path`, and its plots into a folder of the same name beside it.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |path: &Path| Error::system(format!("cannot write {}", path.display()));
        let plots = path.with_extension("");
        fs::create_dir_all(&plots).map_err(failed(&plots))?;
        for Section {
            workload, results, ..
        } in &self.sections
        {
            let file = plots.join(workload.file());
            let svg = plot::svg(workload.title(), &panels(*workload, results));
            fs::write(&file, svg).map_err(failed(&file))?;
        }
        let folder = plots.file_name().unwrap_or_default().to_string_lossy();
        fs::write(path, self.text(&folder)).map_err(failed(path))
    }

    fn text(&self, plots: &str) -> String {
        let mut text = self.head();
        for section in &self.sections {
            let Section {
                workload, results, ..
            } = section;
            // Writing to a string does not fail, here and below.
            let _ = writeln!(text, "\n## {}\n", workload.title());
            let _ = write!(text, "{}", workload.description(&self.amount));
            if section.rounds != self.rounds {
                let _ = write!(text, " The medians are of {} rounds.", section.rounds);
            }
            text.push_str("\n\n");
            text.push_str(&table(workload.metrics(), results));
            let _ = writeln!(
                text,
                "\n![{}]({plots}/{})",
                workload.title(),
                workload.file()
            );
            text.push_str(&failures(results));
        }
        text.push('\n');
        text.push_str(MORE);
        text
    }

    fn head(&self) -> String {
        let mut text = format!(
            "# Benchmarks\n\n\
             Written by `{command}`, which starts one server after another, puts the same load on each from the same \
             lean clients, and reads processor time and memory of the server's process from the kernel. Every number \
             is the median of {rounds} rounds, with its ratio to tidegate's; some have the lowest and the highest \
             round in brackets. Less is better, except for deliveries. Every stream's accounts were verified: a round \
             in which an event was neither delivered nor counted as missing has no numbers.\n\n",
            command = self.command_line,
            rounds = self.rounds,
        );
        text.push_str(&head(&self.environment));
        for (peer, version) in &self.versions {
            let _ = writeln!(text, "| {} | {version} |", peer.name());
        }
        text
    }
}

/// Returns a table of the conditions.
pub(crate) fn head(environment: &Environment) -> String {
    let machine = &environment.machine;
    let date = jiff::Timestamp::from_second(i64::try_from(environment.unix_time).unwrap_or(0));
    let date = date.map(|date| date.strftime("%Y-%m-%d %H:%M UTC").to_string());
    format!(
        "| | |\n|---|---|\n\
         | date | {date} |\n\
         | processor | {cpu}, {cores} cores |\n\
         | kernel | {kernel} |\n\
         | load average before | {load} |\n\
         | server held to cores | {server_cores} |\n\
         | load comes from cores | {client_cores} |\n",
        date = date.unwrap_or_else(|_| "unknown".into()),
        cpu = machine.cpu,
        cores = machine.core_count(),
        kernel = machine.kernel,
        load = machine.load_average,
        server_cores = environment
            .server_cores
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        client_cores = environment.client_cores,
    )
}

fn table(metrics: &[Metric], results: &[Results]) -> String {
    let mut text = String::from("| |");
    for metric in metrics {
        let _ = write!(text, " {}, {} |", metric.name, metric.unit);
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(metrics.len()));
    text.push('\n');
    let own = results
        .iter()
        .find(|results| results.peer == Peer::Tidegate);
    for result in results {
        let _ = write!(text, "| {} |", result.peer.name());
        for (place, metric) in metrics.iter().enumerate() {
            let cell = cell(place, *metric, result, own);
            let _ = write!(text, " {} |", cell.unwrap_or_else(|| "-".into()));
        }
        text.push('\n');
    }
    text
}

fn cell(place: usize, metric: Metric, result: &Results, own: Option<&Results>) -> Option<String> {
    let values = result.sorted(place);
    let median = median(&values)?;
    let mut cell = digits(median);
    if metric.ranged
        && let (Some(lowest), Some(highest)) = (values.first(), values.last())
    {
        let _ = write!(cell, " ({}-{})", digits(*lowest), digits(*highest));
    }
    let own = own.and_then(|own| self::median(&own.sorted(place)));
    if let (true, Some(own)) = (metric.compared, own) {
        let _ = write!(cell, ", {:.2} x", median / own);
    }
    Some(cell)
}

fn failures(results: &[Results]) -> String {
    let mut text = String::new();
    for result in results {
        if let Some(failure) = result.failures.last() {
            let (name, times) = (result.peer.name(), result.failures.len());
            let _ = writeln!(
                text,
                "\n{name} failed in {times} rounds; the last time: {failure}."
            );
        }
    }
    text
}

fn panels(workload: Workload, results: &[Results]) -> Vec<Panel> {
    let compared = workload
        .metrics()
        .iter()
        .enumerate()
        .filter(|(_, metric)| metric.compared);
    let panel = |(place, metric): (usize, &Metric)| Panel {
        title: format!("{}, {}", metric.name, metric.unit),
        bars: results
            .iter()
            .filter_map(|result| {
                let value = median(&result.sorted(place))?;
                Some((result.peer.name().to_owned(), value, digits(value)))
            })
            .collect(),
    };
    compared.map(panel).collect()
}

/// Returns the median of sorted values.
fn median(values: &[f64]) -> Option<f64> {
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }

    #[test]
    fn document_ends_with_the_text_below_the_figures() {
        let document = include_str!("../../../docs/benchmarks.md");
        assert!(
            document.ends_with(MORE),
            "copy benches/peers/src/more.md to its end"
        );
    }

    #[test]
    fn table_has_medians_ratios_and_marks_missing_values() {
        let results = |peer, samples: &[&[f64]]| Results {
            peer,
            samples: samples.iter().map(|sample| sample.to_vec()).collect(),
            failures: Vec::new(),
        };
        let metrics = [
            Metric {
                name: "cost",
                unit: "us",
                compared: true,
                ranged: true,
            },
            Metric {
                name: "rate",
                unit: "/s",
                compared: false,
                ranged: false,
            },
        ];
        let all = [
            results(Peer::Tidegate, &[&[2.0, 10.0], &[1.0, 30.0], &[4.0, 20.0]]),
            results(Peer::Redis, &[&[3.0, 100.0]]),
            results(Peer::Raw, &[]),
        ];
        assert_eq!(
            table(&metrics, &all),
            "| | cost, us | rate, /s |\n|---|---|---|\n\
             | tidegate | 2.00 (1.00-4.00), 1.00 x | 20.0 |\n\
             | Redis | 3.00 (3.00-3.00), 1.50 x | 100 |\n\
             | raw TCP | - | - |\n"
        );
    }
}
