//! Kubernetes quantities, as far as sizes of volumes need to be read.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Digits that are read at most, so that the arithmetic cannot overflow.
const DIGITS_MAX: usize = 15;
/// Fractions are read to a thousandth, as the API server does for `m`.
const SCALE: u128 = 1_000;

/// The quantity in thousandths of its unit; none if the text is not a quantity
/// of the usual kinds (exponents such as `1e3` are not read).
pub fn thousandths(text: &str) -> Option<u128> {
    let suffix_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(suffix_at);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() > DIGITS_MAX || fraction.len() > 3 || fraction.contains('.') {
        return None;
    }
    let fraction: u128 = format!("{fraction:0<3}").parse().ok()?;
    let value = whole.parse::<u128>().ok()? * SCALE + fraction;
    match suffix {
        "m" => Some(value / SCALE),
        suffix => Some(value * unit(suffix)?),
    }
}

/// The quantity in whole bytes, rounded up; none if it is not one, or too large.
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    u64::try_from(thousandths(&quantity.0)?.div_ceil(SCALE)).ok()
}

fn unit(suffix: &str) -> Option<u128> {
    let powers = |base: u128, names: [&str; 6]| {
        let power = names.iter().position(|name| *name == suffix)?;
        Some(base.pow(u32::try_from(power).ok()? + 1))
    };
    match suffix {
        "" => Some(1),
        _ => powers(1_024, ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
            .or_else(|| powers(1_000, ["k", "M", "G", "T", "P", "E"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_to_a_thousandth() {
        let check = |text: &str, expected: Option<u128>| assert_eq!(thousandths(text), expected, "{text:?}");
        check("1", Some(1_000));
        check("1500m", Some(1_500));
        check("1.5", Some(1_500));
        check("1Ki", Some(1_024_000));
        check("10Gi", Some(10 * 1_024 * 1_024 * 1_024 * 1_000));
        check("1.5k", Some(1_500_000));
        check("999999999999999Ei", Some(999_999_999_999_999 * 1_024_u128.pow(6) * 1_000));
        for wrong in ["", "Gi", "1e3", "-1", "1..2", "1.2345", "1 Gi", "1GB", "1234567890123456", ".5"] {
            check(wrong, None);
        }
    }

    #[test]
    fn bytes_are_whole_and_never_too_few() {
        let check = |text: &str, expected| assert_eq!(bytes(&Quantity(text.into())), expected, "{text:?}");
        check("10Gi", Some(10 << 30));
        check("1500m", Some(2));
        check("9999999Ei", None);
        check("ten", None);
    }

    #[test]
    fn the_same_size_in_two_spellings_is_equal() {
        assert_eq!(thousandths("1Gi"), thousandths("1024Mi"));
        assert!(thousandths("1Gi") > thousandths("1G"));
    }
}
