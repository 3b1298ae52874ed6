//! Times as text: RFC 3339 in UTC, in one spelling. Nothing here reads a clock.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

use super::error::WordError;
use super::text::as_text;

as_text!(Timestamp, TimestampMillis);

const SECONDS: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const COMPACT: StaticFormatDescription = format_description!("[year][month][day]T[hour][minute][second]Z");
/// RFC 9110 §5.6.7, the form that senders have to use.
const HTTP: StaticFormatDescription =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
const MILLIS: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The last second that has four digits for its year.
const LAST: u64 = 253_402_300_799;

/// Seconds since the Unix epoch of a clock's time; 0 for a clock before it.
pub fn unix_seconds(clock: SystemTime) -> u64 {
    clock.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time with whole seconds, `2026-01-02T03:04:05Z`, from 1970 to 9999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The beginning of 1970.
    pub const EPOCH: Self = Self(0);

    /// The time at `seconds` since the Unix epoch; `None` beyond the year 9999.
    pub const fn from_unix(seconds: u64) -> Option<Self> {
        if seconds <= LAST { Some(Self(seconds)) } else { None }
    }

    /// Reads the header `Date` of an HTTP answer, in the form that senders have to use.
    pub fn from_http_date(text: &str) -> Option<Self> {
        Self::read(text, HTTP).filter(|time| time.format(HTTP) == text)
    }

    /// What a clock says, in whole seconds; `None` beyond the year 9999.
    pub fn from_clock(clock: SystemTime) -> Option<Self> {
        Self::from_unix(unix_seconds(clock))
    }

    /// The time at `seconds` since the Unix epoch in a message for people, whatever it is.
    pub fn shown(seconds: u64) -> String {
        Self::from_unix(seconds).map_or_else(|| "beyond the year 9999".to_owned(), |time| time.to_string())
    }

    /// Seconds since the Unix epoch.
    pub const fn unix(self) -> u64 {
        self.0
    }

    /// `yyyymmddThhmmssZ`, as in a release's tag.
    pub fn compact(self) -> String {
        self.format(COMPACT)
    }

    /// Reads [`Timestamp::compact`] and nothing else.
    pub fn from_compact(text: &str) -> Option<Self> {
        Self::read(text, COMPACT).filter(|time| time.compact() == text)
    }

    fn read(text: &str, format: StaticFormatDescription) -> Option<Self> {
        let time = time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc();
        Self::from_unix(u64::try_from(time.unix_timestamp()).ok()?)
    }

    fn format(self, format: StaticFormatDescription) -> String {
        // Neither fails for a time up to LAST; were it to, no parser takes an empty text for a time.
        i64::try_from(self.0)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|time| time.format(format).ok())
            .unwrap_or_default()
    }
}

impl FromStr for Timestamp {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        Self::read(text, SECONDS).filter(|time| time.to_string() == text).ok_or_else(|| {
            WordError::new("not a time in UTC with whole seconds").hint("for example 2026-01-02T03:04:05Z")
        })
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.format(SECONDS))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A time with milliseconds, `2026-01-02T03:04:05.678Z`: for log lines and statuses, which people read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimestampMillis(u64);

impl TimestampMillis {
    /// What a clock says; the bounds of [`Timestamp`] for a clock outside them.
    pub fn from_clock(clock: SystemTime) -> Self {
        let millis = clock.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Self(u64::try_from(millis).unwrap_or(u64::MAX).min(LAST * 1000 + 999))
    }
}

impl FromStr for TimestampMillis {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let read = || {
            let time = time::PrimitiveDateTime::parse(text, MILLIS).ok()?.assume_utc();
            let millis = u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()?;
            Some(Self(millis)).filter(|time| time.to_string() == text)
        };
        read().ok_or_else(|| {
            WordError::new("not a time in UTC with milliseconds").hint("for example 2026-01-02T03:04:05.678Z")
        })
    }
}

impl fmt::Display for TimestampMillis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000);
        out.write_str(&time.ok().and_then(|time| time.format(MILLIS).ok()).unwrap_or_default())
    }
}

impl fmt::Debug for TimestampMillis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_date_of_an_http_answer_is_read() {
        let time = Timestamp::from_http_date("Fri, 02 Jan 2026 03:04:05 GMT").unwrap();
        assert_eq!(time.to_string(), "2026-01-02T03:04:05Z");
        for wrong in [
            "",
            "Thu, 02 Jan 2026 03:04:05 GMT",
            "Fri, 2 Jan 2026 03:04:05 GMT",
            "Fri, 02 Jan 2026 03:04:05 UTC",
            "Friday, 02-Jan-26 03:04:05 GMT",
            "Fri Jan  2 03:04:05 2026",
            "Fri, 32 Jan 2026 03:04:05 GMT",
            "Fri, 02 Jan 2026 03:04:05 GMT ",
        ] {
            assert_eq!(Timestamp::from_http_date(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_time_has_one_spelling() {
        let time: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!((time.unix(), time.compact().as_str()), (1_767_323_045, "20260102T030405Z"));
        assert_eq!(Timestamp::from_compact("20260102T030405Z"), Some(time));
        for wrong in [
            "",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05z",
            "2026-01-02t03:04:05Z",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05.0Z",
            "2026-01-02T03:04:05+00:00",
            "2026-01-02T03:04:60Z",
            "2026-02-30T03:04:05Z",
            "2026-1-2T03:04:05Z",
            "1969-12-31T23:59:59Z",
            "+2026-01-02T03:04:05Z",
            "10000-01-01T00:00:00Z",
        ] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
        assert_eq!(Timestamp::from_compact("2026-01-02T03:04:05Z"), None);
    }

    #[test]
    fn clocks_outside_the_bounds_have_no_time_or_the_nearest() {
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(Timestamp::from_clock(before), Some(Timestamp::EPOCH));
        assert_eq!(Timestamp::from_unix(LAST).unwrap().to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Timestamp::from_unix(LAST + 1), None);
        let after = UNIX_EPOCH + Duration::from_secs(LAST + 5);
        assert_eq!(TimestampMillis::from_clock(after).to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(TimestampMillis::from_clock(before).to_string(), "1970-01-01T00:00:00.000Z");
    }

    proptest! {
        #[test]
        fn times_survive_being_written_and_read(seconds in 0..=LAST, millis in 0..1000_u64) {
            let time = Timestamp::from_unix(seconds).unwrap();
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
            prop_assert_eq!(Timestamp::from_compact(&time.compact()), Some(time));
            let clock = UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis);
            let precise = TimestampMillis::from_clock(clock);
            prop_assert_eq!(precise.to_string().parse::<TimestampMillis>().unwrap(), precise);
            prop_assert_eq!(Timestamp::from_clock(clock), Some(time));
        }

        #[test]
        fn what_is_read_is_what_is_written(text in "[0-9TZ:.+-]{0,26}") {
            if let Ok(time) = text.parse::<Timestamp>() {
                prop_assert_eq!(time.to_string(), text);
            }
        }
    }
}
