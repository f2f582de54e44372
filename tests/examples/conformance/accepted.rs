//! The failures that are accepted, each with its reason.
//!
//! A reason is a line that begins at the margin; under it, indented, stand the tests it holds for, as
//! `unit: name`. `skip unit: name` is a test that is not run at all, as the rest of its unit would be
//! lost with it.

/// The list.
pub(crate) struct Accepted {
    tests: Vec<Test>,
}

struct Test {
    unit: String,
    name: String,
    skip: bool,
}

impl Accepted {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut tests = Vec::new();
        let mut has_reason = false;
        for (line, number) in text.lines().zip(1..) {
            let entry = line.trim();
            if entry.is_empty() {
                has_reason = false;
            } else if entry.starts_with('#') {
                // A comment.
            } else if !line.starts_with(' ') {
                has_reason = true;
            } else if !has_reason {
                return Err(format!("line {number}: {entry} has no reason"));
            } else {
                let (skip, entry) = match entry.strip_prefix("skip ") {
                    Some(entry) => (true, entry),
                    None => (false, entry),
                };
                let Some((unit, name)) = entry.split_once(": ") else {
                    return Err(format!("line {number}: {entry} is not `unit: name`"));
                };
                let (unit, name) = (unit.to_owned(), name.to_owned());
                tests.push(Test { unit, name, skip });
            }
        }
        Ok(Self { tests })
    }

    /// The tests of a unit that may fail.
    pub(crate) fn of(&self, unit: &str) -> Vec<&str> {
        let of_unit = self.tests.iter().filter(|test| test.unit == unit);
        of_unit.map(|test| test.name.as_str()).collect()
    }

    /// Those of them that are not run.
    pub(crate) fn skipped_in(&self, unit: &str) -> Vec<&str> {
        let skipped = self.tests.iter().filter(|test| test.skip);
        let of_unit = skipped.filter(|test| test.unit == unit);
        of_unit.map(|test| test.name.as_str()).collect()
    }
}
