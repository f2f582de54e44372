//! A table that reads well in a terminal and is Markdown too.

use std::fmt;

/// Rows of cells; the first row is the heading.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// How many columns hold text; the others hold numbers, and are aligned to the right.
    text_columns: usize,
}

impl Table {
    /// Of numbers, but for the first column.
    pub(crate) fn of_numbers<'a>(heading: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            rows: vec![heading.into_iter().map(str::to_owned).collect()],
            text_columns: 1,
        }
    }

    pub(crate) fn of_text<'a>(heading: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            text_columns: usize::MAX,
            ..Self::of_numbers(heading)
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            write!(f, "|")?;
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if column < self.text_columns {
                    write!(f, " {cell:<width$} |")?;
                } else {
                    write!(f, " {cell:>width$} |")?;
                }
            }
            writeln!(f)?;
            if index == 0 {
                write!(f, "|")?;
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    let end = if column < self.text_columns { "-" } else { ":" };
                    write!(f, "{dashes}{end}|")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// A number as a cell; a dash where there is none.
pub(crate) fn number(value: f64, digits: usize) -> String {
    if value.is_nan() {
        "–".to_owned()
    } else {
        format!("{value:.digits$}")
    }
}

/// Whether a goal is met, as a cell.
pub(crate) fn met(yes: bool) -> String {
    if yes { "met" } else { "**not met**" }.to_owned()
}
