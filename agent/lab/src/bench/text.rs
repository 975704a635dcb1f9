//! Numbers with units, and aligned tables.

/// A time in the unit that fits it, with three digits: `2.13 µs`, `14.0 ms`.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 999.5 => (ns, "ns"),
        ns if ns < 999.5e3 => (ns / 1e3, "µs"),
        ns if ns < 999.5e6 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A number of things per second, whole from 100 on and with thousands set apart: `12,345 samples/s`.
pub fn rate(per_second: f64, things: &str) -> String {
    let number = match per_second < 99.95 {
        true => three_digits(per_second),
        false => thousands(per_second.round() as u64),
    };
    format!("{number} {things}/s")
}

/// A whole number with its thousands set apart.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn three_digits(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// A table of which the first line holds the titles. Columns whose title ends in a space stand to the left, the others
/// to the right.
pub fn table(lines: &[Vec<String>]) -> String {
    let Some(titles) = lines.first() else { return String::new() };
    let width = |column: usize| lines.iter().map(|line| line[column].trim_end().chars().count()).max().unwrap_or(0);
    let columns: Vec<(usize, bool)> =
        titles.iter().enumerate().map(|(column, title)| (width(column), title.ends_with(' '))).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&columns).map(|(cell, &(width, left))| match left {
            true => format!("{:<width$}", cell.trim_end()),
            false => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_have_three_digits_and_a_unit() {
        let times = [950.0, 2_134.0, 13_960.0, 999_499.0, 999_600.0, 20e6, 1.5e9];
        assert_eq!(times.map(time), ["950 ns", "2.13 µs", "14.0 µs", "999 µs", "1.00 ms", "20.0 ms", "1.50 s"]);
        assert_eq!(
            [3.25, 45.67, 99.97, 1234.5, 1_234_567.0].map(|number| rate(number, "x")),
            ["3.25 x/s", "45.7 x/s", "100 x/s", "1,235 x/s", "1,234,567 x/s"]
        );
    }

    #[test]
    fn columns_are_aligned() {
        let lines = [["name ", "n"], ["a", "1"], ["longer", "100"]].map(|line| line.map(str::to_owned).to_vec());
        assert_eq!(table(&lines), "name      n\na         1\nlonger  100\n");
    }
}
