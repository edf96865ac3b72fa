//! Text for terminals: tables, durations, near names, and nothing that a
//! terminal would obey.

use std::io::Write;

use k8s_openapi::jiff::Timestamp;

/// Space between two columns.
const GAP: &str = "   ";

/// Prints data to stdout. Whoever reads it may be gone (`| head`), which is no
/// error of ours.
pub(super) fn print(text: &str) {
    std::io::stdout().lock().write_all(text.as_bytes()).ok();
}

/// Prints a line of talk to stderr.
pub(super) fn talk(line: &str) {
    writeln!(std::io::stderr().lock(), "{line}").ok();
}

/// The text without characters that a terminal obeys or that turn the order of
/// letters around; they become U+FFFD.
pub(super) fn clean(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if obeyed(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Rows in columns, the first row being the header.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

/// How long it is until then: `45s`, `4m51s`, `23h12m`, `6d4h`; `now` if it is past.
pub(super) fn until(now: Timestamp, then: Timestamp) -> String {
    let seconds = then.as_second().saturating_sub(now.as_second());
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..=0 => "now".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds / 60 % 60, "m"),
        _ => two(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// The candidate that is most like the name, if one is so much like it that it
/// may have been meant.
pub(super) fn near<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let far = name.chars().count() / 3 + 1;
    let best = candidates.map(|c| (distance(&name, &c.to_lowercase()), c)).min_by_key(|(distance, _)| *distance);
    best.filter(|(distance, _)| *distance <= far).map(|(_, candidate)| candidate)
}

/// Letters to insert, remove or change to come from `a` to `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let changed = corner + usize::from(letter != *other);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_with_two_units() {
        let check = |seconds: i64, expected: &str| {
            let at = |s| Timestamp::from_second(s).unwrap();
            assert_eq!(until(at(1000), at(1000 + seconds)), expected);
        };
        check(-5, "now");
        check(0, "now");
        check(59, "59s");
        check(60, "1m");
        check(291, "4m51s");
        check(3600, "1h");
        check(83_540, "23h12m");
        check(86_400, "1d");
        check(6 * 86_400 + 4 * 3600 + 59, "6d4h");
    }

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["billing", "orders", "crm"];
        assert_eq!(near("biling", names.into_iter()), Some("billing"));
        assert_eq!(near("BILLING", names.into_iter()), Some("billing"));
        assert_eq!(near("oder", names.into_iter()), Some("orders"));
        assert_eq!(near("warehouse", names.into_iter()), None);
        assert_eq!(near("x", std::iter::empty()), None);
    }

    #[test]
    fn a_terminal_is_told_nothing_by_hostile_text() {
        assert_eq!(clean("a\u{1b}[31mb\u{202e}c\r\nd"), "a\u{fffd}[31mb\u{fffd}c\u{fffd}\u{fffd}d");
        assert_eq!(clean("gewöhnlicher Text · 😀"), "gewöhnlicher Text · 😀");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_clean() {
        let rows = [["A", "B"], ["längst", "x"], ["", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A        B\nlängst   x\n\n");
    }
}
