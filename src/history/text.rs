//! Times as people write and read them.

/// RFC 3339, UTC, with as many digits as it takes.
pub fn rfc3339(time_ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(time_ns)).map_or_else(|_| time_ns.to_string(), |time| time.to_string())
}

/// The time that `text` spells, with its offset from UTC; nanoseconds since 1970, as far as they go.
pub fn parse_time(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.trim().parse().ok()?;
    i64::try_from(time.as_nanosecond().clamp(i64::MIN.into(), i64::MAX.into())).ok()
}

/// Whether `text` would be a time if it said its offset.
pub(super) fn lacks_offset(text: &str) -> bool {
    parse_time(text).is_none() && text.trim().parse::<jiff::civil::DateTime>().is_ok()
}
