//! Forms in which descriptions write things.

use crate::MacAddress;

/// A hardware address with or without separators.
pub(crate) fn mac(text: &str) -> Option<MacAddress> {
    let digits: String =
        text.trim().chars().filter(|letter| !matches!(letter, ':' | '-' | '.')).collect();
    if digits.len() != 12 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let value = u64::from_str_radix(&digits, 16).ok()?;
    let [_, _, bytes @ ..] = value.to_be_bytes();
    Some(MacAddress(bytes))
}

/// Seconds since 1970 in the form of ISO 8601.
pub fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years from the first of March of year 0, in eras of 400 years of 146,097 days each.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, after) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + after;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_everybody_writes_them() {
        for (seconds, written) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), written);
        }
    }

    #[test]
    fn hardware_addresses_need_no_separators() {
        assert_eq!(mac("08002766C296").unwrap().to_string(), "08:00:27:66:c2:96");
        assert_eq!(mac("00-50-56-9a-9c-7a").unwrap().to_string(), "00:50:56:9a:9c:7a");
        assert_eq!(mac("0050569a9c7"), None);
        assert_eq!(mac("+050569a9c7a"), None);
    }
}
