//! The results of a server.

use crate::{
    peer::Peer,
    workload::{Sample, Workload},
};

/// The results of a server with a workload, round by round.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) peer: Peer,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: Vec<String>,
}

impl Results {
    pub(crate) const fn new(peer: Peer) -> Self {
        Self {
            peer,
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// The values of one metric, in ascending order.
    pub(crate) fn sorted(&self, place: usize) -> Vec<f64> {
        let mut values: Vec<f64> = self.samples.iter().map(|sample| sample[place]).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// Prints the result of the last round.
    pub(crate) fn print_last(&self, workload: Workload, round: u32, rounds: u32) {
        let result = match (self.samples.last(), self.failures.last()) {
            (Some(sample), _) if self.samples.len() + self.failures.len() == round as usize => {
                let values = workload.metrics().iter().zip(sample);
                let cells = values
                    .map(|(metric, value)| format!("{} {value:.3} {}", metric.name, metric.unit));
                cells.collect::<Vec<_>>().join(", ")
            }
            (_, Some(failure)) => format!("failed: {failure}"),
            _ => "not applicable".into(),
        };
        println!(
            "{} {round}/{rounds}  {:<18} {result}",
            workload.title(),
            self.peer.name()
        );
    }
}
