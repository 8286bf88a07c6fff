//! Tables that read well both on a terminal and as Markdown; pure.

use std::fmt::Write;

/// A table with a title. The first column is left-aligned, the others are figures.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// What it is about.
    pub(crate) title: String,
    /// The columns' names.
    pub(crate) head: Vec<String>,
    /// Its lines.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds it to a text.
    pub(crate) fn write(&self, text: &mut String) {
        let head = &self.head;
        let width = |column: usize| {
            let cells = self.rows.iter().chain([head]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let rule = |(column, width): (usize, &usize)| match column {
            0 => "-".repeat(*width),
            _ => format!("{}:", "-".repeat(width - 1)),
        };
        let rules: Vec<String> = widths.iter().enumerate().map(rule).collect();
        push(text, format_args!("\n**{}**\n\n", self.title));
        for row in [head, &rules].into_iter().chain(&self.rows) {
            write_row(text, row, &widths);
        }
    }
}

fn write_row(text: &mut String, row: &[String], widths: &[usize]) {
    for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
        let fill = " ".repeat(width - cell.chars().count());
        match column {
            0 => push(text, format_args!("| {cell}{fill} ")),
            _ => push(text, format_args!("| {fill}{cell} ")),
        }
    }
    text.push_str("|\n");
}

fn push(text: &mut String, piece: std::fmt::Arguments<'_>) {
    text.write_fmt(piece).expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_a_table_is_as_long_as_the_others() {
        let text = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table = Table {
            title: "T".to_owned(),
            head: text(["", "figure"]),
            rows: vec![text(["a − b", "1"]), text(["c", "1000000"])],
        };
        let mut written = String::new();
        table.write(&mut written);
        assert_eq!(
            written,
            "\n**T**\n\n|       |  figure |\n| ----- | ------: |\n| a − b |       1 |\n| c     | 1000000 |\n"
        );
    }
}
