//! What the tool says and how it looks. Nothing else writes to stdout or stderr.
//!
//! stdout carries data and nothing else: tables for people, the proto's JSON for programs. What was
//! done, warnings and hints go to stderr ([`note`], [`complain`]), so that a pipe never sees them.
//! Colours only on a terminal, and not where NO_COLOR is set (<https://no-color.org>).

use std::{
    env,
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use comfy_table::{ContentArrangement, presets};
use pbjson_types::Timestamp;
use serde::Serialize;

use crate::error::Error;

const DEFAULT_WIDTH: u16 = 80;

/// Who reads the output.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs: the canonical JSON of the API's messages
    Json,
}

/// Where the answer of a command goes.
pub(crate) struct Output {
    format: Format,
    colours: bool,
    /// Columns of the terminal. `None`: not a terminal, lines may be of any length.
    width: Option<u16>,
}

impl Output {
    /// To stdout.
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            colours: wants_colours(&io::stdout()),
            width: comfy_table::Table::new().width().map(|width| match width {
                0 => DEFAULT_WIDTH, // a terminal that does not know, as under `script`
                width => width,
            }),
        }
    }

    /// Shows an answer: as tables, or itself as JSON.
    pub(crate) fn show(
        &self,
        answer: &impl Serialize,
        tables: impl Into<Tables>,
    ) -> Result<(), Error> {
        self.show_text(answer, || tables.into().render(self.width))
    }

    /// Shows an answer: as text, or itself as JSON.
    pub(crate) fn show_text(
        &self,
        answer: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        match self.format {
            Format::Table => self.text(&text()),
            Format::Json => self.text(&serde_json::to_string_pretty(answer).context("write JSON")?),
        }
    }

    /// Shows one of a stream of answers: as a line of text, or as JSON on a line of its own.
    pub(crate) fn stream(
        &self,
        answer: &impl Serialize,
        line: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        match self.format {
            Format::Table => self.text(&line()),
            Format::Json => self.text(&serde_json::to_string(answer).context("write JSON")?),
        }
    }

    /// Shows one of a stream of answers to programs; to people nothing.
    pub(crate) fn stream_json(&self, answer: &impl Serialize) -> Result<(), Error> {
        match self.format {
            Format::Table => Ok(()),
            Format::Json => self.text(&serde_json::to_string(answer).context("write JSON")?),
        }
    }

    /// Shows a table to people; to programs nothing.
    pub(crate) fn show_table(&self, table: Table) -> Result<(), Error> {
        match self.format {
            Format::Table => self.text(&table.render(self.width)),
            Format::Json => Ok(()),
        }
    }

    /// Says for people that a list is empty, and what would fill it.
    pub(crate) fn note_if_empty<T>(&self, list: &[T], text: &str) {
        if list.is_empty() && self.format == Format::Table {
            note(text);
        }
    }

    /// Writes text and a line break.
    pub(crate) fn text(&self, text: &str) -> Result<(), Error> {
        self.raw(format!("{}\n", text.trim_end_matches('\n')).as_bytes())
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Error::PipeClosed),
            Err(error) => Err(anyhow::Error::new(error).context("write to stdout").into()),
        }
    }

    /// Columns of the terminal. `None`: stdout is none.
    pub(crate) fn width(&self) -> Option<u16> {
        self.width
    }

    /// The text in a colour, where colours are wanted.
    pub(crate) fn paint(&self, colour: Colour, text: &str) -> String {
        paint(self.colours, colour, text)
    }
}

/// Says on stderr what was done, or what to know.
pub(crate) fn note(text: &str) {
    say(text);
}

/// A line on stderr that is written anew as things change. Where stderr is no terminal, lines below each
/// other, and only what matters.
pub(crate) struct StatusLine {
    is_terminal: bool,
    open: bool,
}

impl StatusLine {
    /// Shows nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            open: false,
        }
    }

    /// Shows this in place of what was shown before.
    pub(crate) fn show(&mut self, text: &str, matters: bool) {
        if self.is_terminal {
            // If stderr is closed, nobody is left to be told so.
            drop(write!(io::stderr(), "\r\x1b[2K{text}").and_then(|()| io::stderr().flush()));
            self.open = true;
        } else if matters {
            say(text);
        }
    }

    /// What is said next stands below it.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            say("");
        }
    }
}

/// Says on stderr that a step of several is done.
pub(crate) fn note_step(text: &str) {
    let colours = wants_colours(&io::stderr());
    say(&format!("  {} {text}", paint(colours, Colour::Green, "√")));
}

/// Asks on stderr; the answer is typed behind it.
pub(crate) fn ask(text: &str) {
    let mut stderr = io::stderr();
    // If stderr is closed, nobody is left to answer.
    drop(
        stderr
            .write_all(text.as_bytes())
            .and_then(|()| stderr.flush()),
    );
}

/// Says on stderr what failed and what to do about it.
pub(crate) fn complain(message: &str, hints: &[String]) {
    let colours = wants_colours(&io::stderr());
    say(&format!(
        "{} {message}",
        paint(colours, Colour::Red, "Error:")
    ));
    for hint in hints {
        say(&format!(
            "{} {hint}",
            paint(colours, Colour::Yellow, "Hint:")
        ));
    }
}

fn say(text: &str) {
    // If stderr is closed, nobody is left to be told so.
    drop(writeln!(io::stderr(), "{text}"));
}

/// What colours are used for: good, worth a look, bad.
#[derive(Clone, Copy)]
pub(crate) enum Colour {
    /// Good.
    Green,
    /// Worth a look.
    Yellow,
    /// Bad.
    Red,
}

fn paint(wanted: bool, colour: Colour, text: &str) -> String {
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    if wanted {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn wants_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A table without lines, as kubectl's.
pub(crate) struct Table {
    /// Empty: no header.
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a header in capitals.
    pub(crate) fn new<const N: usize>(
        header: [&'static str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Self {
        Self {
            header: header.into(),
            rows: rows.into_iter().map(Vec::from).collect(),
        }
    }

    /// A table without a header.
    pub(crate) fn rows<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> Self {
        Self {
            header: Vec::new(),
            ..Self::new([""; N], rows)
        }
    }

    /// The fields of one thing, below each other.
    pub(crate) fn fields<const N: usize>(fields: [(&'static str, String); N]) -> Self {
        Self::rows(fields.map(|(name, value)| [format!("{name}:"), value]))
    }

    /// The text. Cells are wrapped where a line would be longer than `width`.
    pub(crate) fn render(&self, width: Option<u16>) -> String {
        let mut table = comfy_table::Table::new();
        table
            .force_no_tty()
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        if let Some(width) = width {
            table.set_width(width);
        }
        if !self.header.is_empty() {
            table.set_header(&self.header);
        }
        table.add_rows(&self.rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        table.trim_fmt()
    }
}

/// Tables below each other.
pub(crate) struct Tables(Vec<Table>);

impl Tables {
    /// With an empty line between any two.
    pub(crate) fn render(&self, width: Option<u16>) -> String {
        let tables: Vec<String> = self.0.iter().map(|table| table.render(width)).collect();
        tables.join("\n\n")
    }
}

impl From<Table> for Tables {
    fn from(table: Table) -> Self {
        Self(vec![table])
    }
}

impl<const N: usize> From<[Table; N]> for Tables {
    fn from(tables: [Table; N]) -> Self {
        Self(tables.into())
    }
}

/// The value, or `-` where there is none.
pub(crate) fn or_dash(value: impl Display) -> String {
    match value.to_string() {
        text if text.is_empty() => "-".to_owned(),
        text => text,
    }
}

/// `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 server`, `2 servers`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// `512 B`, `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match unit {
        "B" => format!("{count} B"),
        unit => format!("{value:.1} {unit}"),
    }
}

/// `45s`, `12m`, `3h`, `9d`.
pub(crate) fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// How long ago, `-` if never.
pub(crate) fn age(time: Option<&Timestamp>, now: SystemTime) -> String {
    time.and_then(|time| since(time, now))
        .map_or("-".to_owned(), duration)
}

/// The time from `time` to `now`; zero if the clocks disagree. `None`: no such time exists.
pub(crate) fn since(time: &Timestamp, now: SystemTime) -> Option<Duration> {
    Some(now.duration_since(instant(time)?).unwrap_or_default())
}

/// `2026-03-01T12:00:00.000Z`.
pub(crate) fn rfc3339(time: Option<&Timestamp>) -> String {
    time.and_then(instant).map_or("-".to_owned(), |time| {
        humantime::format_rfc3339_millis(time).to_string()
    })
}

fn instant(time: &Timestamp) -> Option<SystemTime> {
    // Beyond the year 9999 it is nonsense, and could not be formatted.
    let seconds = u64::try_from(time.seconds)
        .ok()
        .filter(|&s| s < 253_402_300_800)?;
    let nanos = u32::try_from(time.nanos)
        .ok()
        .filter(|&n| n < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let table = Table::new(
            ["ID", "SLOTS"],
            [["g1", "512"], ["group-2", "-"]].map(|row| row.map(str::to_owned)),
        );
        assert_eq!(
            table.render(None),
            "ID        SLOTS\ng1        512\ngroup-2   -"
        );
        let fields = Table::fields([("Name", "demo".to_owned()), ("Revision", "7".to_owned())]);
        let page = Tables::from([fields, table]).render(None);
        assert_eq!(
            page,
            "Name:       demo\nRevision:   7\n\nID        SLOTS\ng1        512\ngroup-2   -"
        );
    }

    #[test]
    fn a_narrow_terminal_wraps_cells() {
        let text = "a long description of many words";
        let table = Table::new(["ID", "DESCRIPTION"], [["g1".to_owned(), text.to_owned()]]);
        let narrow = table.render(Some(24));
        assert!(narrow.lines().all(|line| line.len() <= 24), "{narrow}");
        assert!(narrow.lines().count() > 2, "{narrow}");
    }

    #[test]
    fn numbers() {
        fn check(got: String, expected: &str) {
            assert_eq!(got, expected);
        }
        check(thousands(0), "0");
        check(thousands(999), "999");
        check(thousands(1_234_567), "1,234,567");
        check(plural(1, "server"), "1 server");
        check(plural(0, "server"), "0 servers");
        check(bytes(0), "0 B");
        check(bytes(1023), "1023 B");
        check(bytes(1536), "1.5 KiB");
        check(bytes(u64::MAX), "16384.0 PiB");
        check(duration(Duration::from_secs(119)), "119s");
        check(duration(Duration::from_secs(120)), "2m");
        check(duration(Duration::from_secs(200_000)), "2d");
        check(or_dash(""), "-");
    }

    #[test]
    fn times_that_cannot_be_are_dashes() {
        fn check(seconds: i64, nanos: i32, expected: &str) {
            assert_eq!(rfc3339(Some(&Timestamp { seconds, nanos })), expected);
        }
        check(1_772_366_400, 5_000_000, "2026-03-01T12:00:00.005Z");
        check(-1, 0, "-");
        check(0, -1, "-");
        check(i64::MAX, 0, "-");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let ahead = Timestamp {
            seconds: 200,
            nanos: 0,
        };
        assert_eq!(age(Some(&ahead), now), "0s");
        assert_eq!(age(None, now), "-");
    }
}
