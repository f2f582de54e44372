//! What was tried, and what came of it.

use std::{
    any::Any,
    fmt,
    time::{Duration, Instant},
};

use tokio::task::{LocalSet, spawn_local};

/// See the module.
#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

struct Row {
    area: &'static str,
    case: String,
    took: Duration,
    /// What was measured, or why it failed.
    outcome: Result<String, String>,
}

impl Report {
    /// Runs one trial. `None`: it has failed.
    pub(crate) async fn run<T: 'static>(
        &mut self,
        area: &'static str,
        case: String,
        trial: impl Future<Output = (T, String)> + 'static,
    ) -> Option<T> {
        let since = Instant::now();
        // A task, whose panic is its own.
        let own = LocalSet::new();
        let trial = own.run_until(async { spawn_local(trial).await });
        let (value, outcome) = match trial.await {
            Ok((value, measured)) => (Some(value), Ok(measured)),
            Err(e) => (None, Err(words(&*e.into_panic()))),
        };
        let row = Row {
            area,
            case,
            took: since.elapsed(),
            outcome,
        };
        println!("{row}");
        self.0.push(row);
        value
    }

    /// Whether nothing has failed.
    pub(crate) fn is_good(&self) -> bool {
        self.0.iter().all(|row| row.outcome.is_ok())
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked".to_owned())
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verdict, text) = match &self.outcome {
            Ok(measured) => ("ok", measured.as_str()),
            Err(why) => ("FAILED", why.as_str()),
        };
        let Self {
            area, case, took, ..
        } = self;
        let seconds = took.as_secs_f64();
        write!(
            f,
            "{area:<10} {case:<28} {verdict:<7} {seconds:>6.1} s  {text}"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.0.iter().filter(|row| row.outcome.is_err()).count();
        for row in &self.0 {
            writeln!(f, "{row}")?;
        }
        write!(f, "{} trials, {failed} failed", self.0.len())
    }
}
