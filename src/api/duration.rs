//! Durations as users write them: GEP-2257 strings such as `15s` or `1h30m`.

use std::{fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The pattern of GEP-2257: one to four parts of at most five digits with the
/// units `h`, `m`, `s`, `ms`. <https://gateway-api.sigs.k8s.io/geps/gep-2257/>
pub const GEP2257_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// The longest text that [`GEP2257_PATTERN`] accepts: four parts of seven bytes.
pub const GEP2257_LENGTH_MAX: u32 = 28;
/// GEP-2257 allows at most this many parts.
const PARTS_MAX: usize = 4;
/// GEP-2257 allows at most this many digits in one part.
const DIGITS_MAX: usize = 5;

/// A duration in the format of GEP-2257. Resolution: one millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gep2257Duration(Duration);

/// The text is not a duration of GEP-2257.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: write 1 to 4 parts such as 15s, 1h30m or 500ms (units h, m, s, ms)")]
pub struct ParseDurationError {
    text: String,
}

impl Gep2257Duration {
    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The value for arithmetic.
    pub const fn as_std(self) -> Duration {
        self.0
    }
}

impl From<Gep2257Duration> for Duration {
    fn from(value: Gep2257Duration) -> Self {
        value.0
    }
}

impl FromStr for Gep2257Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self).ok_or_else(|| ParseDurationError { text: text.chars().take(64).collect() })
    }
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        if number.is_empty() || number.len() > DIGITS_MAX {
            return None;
        }
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: u64 = number.parse().ok()?;
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        parts += 1;
        rest = tail;
    }
    (1..=PARTS_MAX).contains(&parts).then_some(total)
}

impl fmt::Display for Gep2257Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let parts = [
            (seconds / 3600, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(self.0.subsec_millis()), "ms"),
        ];
        for (number, unit) in parts.iter().filter(|(number, _)| *number > 0) {
            write!(f, "{number}{unit}")?;
        }
        if self.0.as_millis() == 0 { f.write_str("0s") } else { Ok(()) }
    }
}

impl Serialize for Gep2257Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Gep2257Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Gep2257Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Gep2257Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": GEP2257_LENGTH_MAX, "pattern": GEP2257_PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected_ms: Option<u128>) {
        let parsed = text.parse::<Gep2257Duration>().ok().map(|d| d.0.as_millis());
        assert_eq!(parsed, expected_ms, "{text:?}");
    }

    #[test]
    fn texts_of_the_gep_are_read_and_others_refused() {
        check("15s", Some(15_000));
        check("1h30m", Some(5_400_000));
        check("500ms", Some(500));
        check("0s", Some(0));
        check("1h1m1s1ms", Some(3_661_001));
        check("10s30m1h", Some(5_410_000));
        for wrong in ["", "1", "1.5h", "-1s", "1d", "100000s", "1h1h1h1h1h", "s", " 1s", "1s ", "1us", "١s"] {
            check(wrong, None);
        }
    }

    #[test]
    fn printing_and_reading_give_the_same_value() {
        for text in ["15s", "1h30m", "500ms", "72h", "1m", "0s", "99999h59m59s999ms"] {
            assert_eq!(text.parse::<Gep2257Duration>().unwrap().to_string(), text);
        }
    }
}
