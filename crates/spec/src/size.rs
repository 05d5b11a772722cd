//! Amounts of bytes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// An amount of bytes, written with a binary unit: `512M`, `2G`, `4096`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A text that is no amount of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("`{0}` is not a size such as 512M or 2G")]
    NotASize(String),
    /// More than 64 bits hold.
    #[error("`{0}` is larger than any memory or disk")]
    TooLarge(String),
}

impl Size {
    /// `count` mebibytes.
    pub const fn mebibytes(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let not_a_size = || SizeError::NotASize(text.chars().take(LONGEST).collect());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(not_a_size());
        }
        let unit = unit.trim_start().to_ascii_uppercase();
        let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
        let shift = if unit.is_empty() {
            0
        } else {
            UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(not_a_size)?.1
        };
        let number: u64 = number
            .parse()
            .map_err(|_| SizeError::TooLarge(text.chars().take(LONGEST).collect()))?;
        let bytes = number.checked_mul(1 << shift);
        bytes.map(Self).ok_or_else(|| SizeError::TooLarge(text.chars().take(LONGEST).collect()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().rev().find(|(_, shift)| fits(*shift)) {
            Some((name, shift)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An amount of bytes: a number, or a text with a binary unit such as 512M or 2G.",
            "anyOf": [
                { "type": "string", "pattern": "^[0-9]+ *([KMGTPkmgtp]?[iI]?[bB])?$|^[0-9]+ *[KMGTPkmgtp]$" },
                { "type": "integer", "minimum": 0 }
            ]
        })
    }
}

/// Units by their powers of two.
const UNITS: [(&str, u32); 5] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];
/// How much of a wrong text an error repeats.
const LONGEST: usize = 40;

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"512M\" or \"2G\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
        Ok(Size(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
        u64::try_from(bytes).map(Size).map_err(|_| E::custom("A size is not negative"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_binary_and_their_case_does_not_matter() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("512 mb", 512 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
            ("3P", 3 << 50),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "1X", "1.5G", "-1", "+1", "1 2", "1MM", "1iBB", "0x10", "١"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::NotASize(text.into())), "{text}");
        }
        for text in ["18446744073709551616", "16384P", "99999999999999999999999G"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::TooLarge(text.into())), "{text}");
        }
    }

    #[test]
    fn the_largest_unit_that_fits_is_shown() {
        let shown = [0, 1, 1023, 1024, 1536, 1 << 20, (1 << 30) + (1 << 20), 5 << 40]
            .map(|bytes| Size(bytes).to_string());
        assert_eq!(shown, ["0", "1", "1023", "1K", "1536", "1M", "1025M", "5T"]);
    }

    proptest! {
        #[test]
        fn every_size_reads_as_it_is_shown(bytes: u64, shift in 0..60u32) {
            let size = Size(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn any_text_is_survived(text: String) {
            let _ = text.parse::<Size>();
        }
    }
}
