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

/// Rows below headings, in columns as wide as they need; the first is flush left, the others right.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
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
        let rows = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "a    bb\nccc   d\n");
    }
}
