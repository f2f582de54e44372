//! What the proxy failed that a plain server passes, and whether that is accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{accepted::Accepted, suite::Outcome};

/// Of one unit.
pub(crate) struct Verdict {
    unit: String,
    /// How many tests the plain server passed, and the proxy of these.
    plain: usize,
    proxy: usize,
    /// How many of the proxy's failures are accepted.
    accepted: usize,
    /// What must not be, a line each.
    faults: Vec<String>,
}

/// Of all units.
#[derive(Default)]
pub(crate) struct Totals {
    verdicts: Vec<Verdict>,
}

impl Verdict {
    /// What the plain server did not pass says nothing about the proxy. What did not run at the proxy,
    /// because something before it ended the unit, has failed.
    pub(crate) fn of(unit: &str, plain: &Outcome, proxy: &Outcome, accepted: &Accepted) -> Self {
        let mut faults = Vec::new();
        for (name, why) in &plain.failed {
            faults.push(format!("fails at the plain server: {name}: {why}"));
        }
        for why in &plain.deaths {
            faults.push(format!("dies at the plain server: {why}"));
        }
        for why in &proxy.deaths {
            faults.push(format!("dies: {why}"));
        }
        let expected = counts(&plain.passed);
        let passed = counts(&proxy.passed);
        let listed = accepted.of(unit);
        let mut seen = BTreeSet::new();
        let mut not_run = Vec::new();
        let mut failures = 0;
        let mut forgiven = 0;
        for name in plain.passed.iter().map(String::as_str) {
            if !seen.insert(name) {
                continue;
            }
            let times = expected[name];
            let failed = times - times.min(passed.get(name).copied().unwrap_or(0));
            failures += failed;
            match (failed > 0, listed.contains(&name)) {
                (true, true) => forgiven += failed,
                (true, false) => match proxy.failed.iter().find(|(failed, _)| failed == name) {
                    Some((_, why)) => faults.push(format!("fails: {name}: {why}")),
                    None => not_run.push(name),
                },
                (false, true) => faults.push(format!("passes, and is listed: {name}")),
                (false, false) => {}
            }
        }
        if !not_run.is_empty() {
            let (count, names) = (not_run.len(), not_run.join("; "));
            faults.push(format!("{count} did not run: {names}"));
        }
        for name in listed.iter().filter(|&name| !expected.contains_key(name)) {
            faults.push(format!("is listed, and does not exist: {name}"));
        }
        Self {
            unit: unit.to_owned(),
            plain: plain.passed.len(),
            proxy: plain.passed.len() - failures,
            accepted: forgiven,
            faults,
        }
    }

    /// Whether nothing of it applies to a server that was started elsewhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.plain == 0 && self.faults.is_empty()
    }
}

fn counts(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            unit,
            plain,
            proxy,
            accepted,
            faults,
        } = self;
        write!(
            f,
            "{unit:<24} {plain:>6} {proxy:>6} {accepted:>9} {:>7}",
            faults.len()
        )
    }
}

impl Totals {
    pub(crate) fn heading() -> String {
        format!(
            "{:<24} {:>6} {:>6} {:>9} {:>7}",
            "unit", "plain", "proxy", "accepted", "faults"
        )
    }

    pub(crate) fn add(&mut self, verdict: Verdict) {
        self.verdicts.push(verdict);
    }

    /// Whether all is as it should be.
    pub(crate) fn good(&self) -> bool {
        self.verdicts
            .iter()
            .all(|verdict| verdict.faults.is_empty())
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut plain = 0;
        let mut proxy = 0;
        let mut accepted = 0;
        for verdict in &self.verdicts {
            plain += verdict.plain;
            proxy += verdict.proxy;
            accepted += verdict.accepted;
        }
        writeln!(f, "{:<24} {plain:>6} {proxy:>6} {accepted:>9}", "all")?;
        for verdict in &self.verdicts {
            for fault in &verdict.faults {
                writeln!(f, "{}: {fault}", verdict.unit)?;
            }
        }
        Ok(())
    }
}
