//! Seconds since 1970 as the clock's registers show them, and back.

/// The bits of register B that say how the registers count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Format {
    /// Binary, else two decimal digits.
    pub(super) binary: bool,
    /// Hours 0 to 23, else 1 to 12 with [`AFTERNOON`].
    pub(super) whole_day: bool,
}

/// The registers of time and date, raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    pub(super) year: u8,
    pub(super) century: u8,
}

impl Registers {
    /// The registers at `seconds` since 1970-01-01 00:00:00 UTC; the years 0 to 9999 can be shown.
    pub(super) fn at(seconds: i128, format: Format) -> Self {
        // Clamped, so it fits.
        let seconds = seconds.clamp(FIRST_SECOND.into(), LAST_SECOND.into()) as i64;
        let (days, second_of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = date(days);
        let hour = second_of_day / 3600;
        let encode = |value: i64| encode(value, format.binary);
        let hour = match (format.whole_day, hour) {
            (true, hour) => encode(hour),
            (false, 0) => encode(12),
            (false, 12) => encode(12) | AFTERNOON,
            (false, hour) if hour > 12 => encode(hour - 12) | AFTERNOON,
            (false, hour) => encode(hour),
        };
        Self {
            second: encode(second_of_day % 60),
            minute: encode(second_of_day / 60 % 60),
            hour,
            // 1970-01-01 was a Thursday.
            weekday: encode((days + 4).rem_euclid(7) + 1),
            day: encode(day),
            month: encode(month),
            year: encode(year % 100),
            century: encode(year / 100),
        }
    }

    /// Seconds since 1970. The weekday is not looked at, and what is no time or date is carried into the
    /// next unit: a guest may write anything.
    pub(super) fn seconds(self, format: Format) -> i128 {
        let decode = |value| decode(value, format.binary);
        let hour = if format.whole_day {
            decode(self.hour)
        } else {
            let afternoon = if self.hour & AFTERNOON != 0 { 12 } else { 0 };
            decode(self.hour & !AFTERNOON) % 12 + afternoon
        };
        let year = decode(self.century) * 100 + decode(self.year);
        let days = days(year, decode(self.month).clamp(1, 12), decode(self.day));
        let seconds = days * DAY + hour * 3600 + decode(self.minute) * 60 + decode(self.second);
        seconds.into()
    }
}

/// In the hour register while hours are 1 to 12.
pub(super) const AFTERNOON: u8 = 1 << 7;

const DAY: i64 = 86_400;
/// 0000-01-01 00:00:00.
const FIRST_SECOND: i64 = -719_528 * DAY;
/// 9999-12-31 23:59:59.
const LAST_SECOND: i64 = 2_932_897 * DAY - 1;

/// A value of 0 to 99 as a register shows it.
fn encode(value: i64, binary: bool) -> u8 {
    let value = value as u8;
    if binary { value } else { ((value / 10) << 4) | (value % 10) }
}

fn decode(value: u8, binary: bool) -> i64 {
    if binary { value.into() } else { i64::from(value >> 4) * 10 + i64::from(value & 0x0f) }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar. Years are counted from March, so
/// that the leap day is the last of its year; 400 years are 146,097 days.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - DAYS_TO_1970
}

/// Year, month and day of a day since 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINUX: Format = Format { binary: false, whole_day: true };

    #[test]
    fn known_moments_have_their_registers() {
        // `date -u -d @951782399 '+%H:%M:%S %u %d %m %y %C'` and so on.
        let cases = [
            (0, [0x00, 0x00, 0x00, 5, 0x01, 0x01, 0x70, 0x19]),
            (951_782_399, [0x59, 0x59, 0x23, 2, 0x28, 0x02, 0x00, 0x20]),
            (951_782_400, [0x00, 0x00, 0x00, 3, 0x29, 0x02, 0x00, 0x20]),
            (1_700_000_000, [0x20, 0x13, 0x22, 3, 0x14, 0x11, 0x23, 0x20]),
            (4_107_542_400, [0x00, 0x00, 0x00, 2, 0x01, 0x03, 0x00, 0x21]),
            (LAST_SECOND.into(), [0x59, 0x59, 0x23, 6, 0x31, 0x12, 0x99, 0x99]),
            (FIRST_SECOND.into(), [0x00, 0x00, 0x00, 7, 0x01, 0x01, 0x00, 0x00]),
        ];
        for (seconds, [second, minute, hour, weekday, day, month, year, century]) in cases {
            let expected = Registers { second, minute, hour, weekday, day, month, year, century };
            assert_eq!(Registers::at(seconds, LINUX), expected, "{seconds}");
        }
    }

    #[test]
    fn the_hours_of_half_days() {
        let format = Format { binary: true, whole_day: false };
        let hours: Vec<u8> =
            [0, 1, 11, 12, 13, 23].map(|hour| Registers::at(hour * 3600, format).hour).to_vec();
        assert_eq!(hours, [12, 1, 11, 12 | AFTERNOON, 1 | AFTERNOON, 11 | AFTERNOON]);
    }

    proptest! {
        #[test]
        fn every_second_can_be_set_back(
            seconds in FIRST_SECOND..=LAST_SECOND, binary: bool, whole_day: bool,
        ) {
            let format = Format { binary, whole_day };
            prop_assert_eq!(Registers::at(seconds.into(), format).seconds(format), seconds.into());
        }

        #[test]
        fn any_registers_are_some_time(bytes: [u8; 8], binary: bool, whole_day: bool) {
            let [second, minute, hour, weekday, day, month, year, century] = bytes;
            let registers = Registers { second, minute, hour, weekday, day, month, year, century };
            let format = Format { binary, whole_day };
            Registers::at(registers.seconds(format), format);
        }
    }
}
