//! How answers are printed: aligned tables for people, JSON and YAML for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::CliError;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Prints `value` as a document, or as `table` says.
pub(super) fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => {
            serde_json::to_string_pretty(value).map_err(|error| CliError::Other(error.to_string()))?
        }
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| CliError::Other(error.to_string()))?,
    };
    line(text.trim_end())
}

/// Prints one text. A reader that has gone (`| head`) is no error.
pub(super) fn line(text: &str) -> Result<(), CliError> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::Other(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| width(cell))
                .fold(width(title), usize::max)
        })
        .collect();
    let mut text = String::new();
    let titles: Vec<String> = head.iter().map(|title| title.to_uppercase()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A text of the value, `-` for none.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["default/inventory".into(), "split 5%".into()], vec!["a".into(), "ü".into()]];
        assert_eq!(
            table(&["name", "stage"], &rows),
            "NAME               STAGE\ndefault/inventory  split 5%\na                  ü\n"
        );
    }
}
