//! Many scenarios, a few at a time.

use futures_util::{StreamExt as _, stream};

use crate::{
    driver::{Driver, DriverError},
    scenario::Scenario,
    verdict::Verdict,
};

/// Scenarios without any call, from the first on, after which no call is expected in the others.
const SILENT: usize = 3;

/// Scenarios to run with one driver.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The scenarios.
    pub scenarios: Vec<Scenario>,
    /// Number of those that run at once, at least 1.
    pub jobs: usize,
}

impl Suite {
    /// Runs every scenario, and calls `done` with each verdict as it comes. Returns them in the order of the scenarios.
    ///
    /// # Errors
    /// The first failure to run the program, or a program that makes no call at all, ends the run.
    pub async fn run(
        &self,
        driver: &Driver,
        mut done: impl FnMut(&Verdict),
    ) -> Result<Vec<Verdict>, DriverError> {
        let runs = self
            .scenarios
            .iter()
            .enumerate()
            .map(|(number, scenario)| async move { (number, driver.run(scenario).await) });
        let mut runs = stream::iter(runs).buffer_unordered(self.jobs.max(1));
        let mut verdicts = Vec::with_capacity(self.scenarios.len());
        while let Some((number, verdict)) = runs.next().await {
            let verdict = verdict?;
            done(&verdict);
            verdicts.push((number, verdict));
            let is_silent = verdicts.iter().all(|(_, verdict)| verdict.calls == 0);
            if is_silent && verdicts.len() == SILENT && self.scenarios.len() > SILENT {
                return Err(DriverError::NoCall { scenarios: SILENT });
            }
        }
        verdicts.sort_by_key(|(number, _)| *number);
        Ok(verdicts.into_iter().map(|(_, verdict)| verdict).collect())
    }
}
