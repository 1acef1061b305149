//! Samples, their percentiles, and a table of them.

use std::time::Duration;

/// How long something took, again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    /// One more sample.
    pub(super) fn push(&mut self, took: Duration) {
        self.0.push(took);
        self.0.sort_unstable();
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A percentile as text; nothing without samples.
    pub(super) fn shown(&self, percent: usize, show: impl Fn(Duration) -> String) -> String {
        if self.is_empty() {
            String::new()
        } else {
            show(self.percentile(percent))
        }
    }

    /// The smallest sample that is not below `percent` of all (nearest rank); zero without samples.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let rank = self.0.len().saturating_mul(percent).div_ceil(100).max(1);
        self.0
            .get(rank.saturating_sub(1))
            .or(self.0.last())
            .copied()
            .unwrap_or_default()
    }
}

/// Whether a target is met.
pub(super) fn verdict(met: bool) -> String {
    (if met { "met" } else { "MISSED" }).to_owned()
}

/// Rows below headings, in columns as wide as they need; columns of figures are flush right.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let figures = |column: usize| {
        rows.iter()
            .skip(1)
            .filter_map(|row| row.get(column)?.chars().next())
            .all(|first| first.is_ascii_digit() || first == '-')
    };
    let layout: Vec<(usize, bool)> = (0..columns)
        .map(|column| (width(column), figures(column)))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&layout)
            .map(|(cell, &(width, figures))| {
                if figures {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_that_were_taken() {
        let mut samples = Samples::default();
        for milliseconds in (1..=20).rev() {
            samples.push(Duration::from_millis(milliseconds));
        }
        assert_eq!(samples.percentile(50), Duration::from_millis(10));
        assert_eq!(samples.percentile(95), Duration::from_millis(19));
        assert_eq!(samples.percentile(100), Duration::from_millis(20));
        assert_eq!(Samples::default().percentile(50), Duration::ZERO);
    }

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let rows = [["a", "bbb", "c"], ["ddd", "12", "e"], ["", "3", "ff"]]
            .map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "a    bbb  c\nddd   12  e\n       3  ff\n");
    }
}
