//! Sizes and durations as people write them.
use super::OpenError;
use std::time::Duration;

/// `1G`, `512M`, `4096`, `1.5T`, `64KiB`: bytes, powers of 1024, exact.
pub fn parse_size(text: &str) -> Result<u64, OpenError> {
    let bad = |why: &str| {
        OpenError(format!(
            "\"{text}\" is not a size: {why}; write for example 4096, 512M, 1.5T"
        ))
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_suffix("iB").unwrap_or(unit);
    let shift = match unit {
        "" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(bad("unknown unit")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| match part {
        "" => Some(0),
        // 20 digits hold every u64, and keep the products below within u128.
        _ if part.len() <= 20 => part.parse::<u128>().ok(),
        _ => None,
    };
    let (Some(whole_value), Some(fraction_value)) = (digits(whole), digits(fraction)) else {
        return Err(bad("too long or not a number"));
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(bad("there is no number"));
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let bytes = whole_value
        .checked_shl(shift)
        .filter(|v| v >> shift == whole_value)
        .and_then(|v| Some((v, (fraction_value.checked_mul(1 << shift))?)))
        .ok_or_else(|| bad("too large"))?;
    if bytes.1 % scale != 0 {
        return Err(bad("not a whole number of bytes"));
    }
    u64::try_from(bytes.0 + bytes.1 / scale).map_err(|_| bad("too large"))
}

/// `500us`, `20ms`, `1.5s`.
pub fn parse_duration(text: &str) -> Result<Duration, OpenError> {
    let bad = || {
        OpenError(format!(
            "\"{text}\" is not a duration; write for example 500us, 20ms, 1.5s"
        ))
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let seconds_per_unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(bad()),
    };
    let number: f64 = number.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|_| bad())
}

/// `MIN-MAX`, or one duration for both.
pub(super) fn parse_duration_range(text: &str) -> Result<(Duration, Duration), OpenError> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    let (min, max) = (parse_duration(min)?, parse_duration(max)?);
    if min > max {
        return Err(OpenError(format!(
            "in \"{text}\" the shortest delay is longer than the longest"
        )));
    }
    if max > Duration::from_secs(3600) {
        return Err(OpenError(format!(
            "in \"{text}\" the longest delay is more than an hour"
        )));
    }
    Ok((min, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_exact() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("1k", 1024),
            ("64KiB", 65536),
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("1.5T", 3 << 39),
            ("0.5k", 512),
            (".5k", 512),
            ("2E", 2 << 60),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in [
            "",
            "G",
            ".",
            "1.2.3",
            "-1",
            "1X",
            "1 G",
            "0x10",
            "16E",
            "18446744073709551616",
            "0.1k",
            "1e3",
            "99999999999999999999999",
            "1.00000000000000000000001G",
        ] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.contains("1.5T"), "{text}: {error}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500us").unwrap(), Duration::from_micros(500));
        assert_eq!(parse_duration("20ms").unwrap(), Duration::from_millis(20));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        for text in [
            "",
            "5",
            "ms",
            "5m",
            "-5ms",
            "1.2.3s",
            "1e5s",
            "99999999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_runs_upwards_and_ends_within_an_hour() {
        let ms = Duration::from_millis;
        assert_eq!(parse_duration_range("1ms-20ms").unwrap(), (ms(1), ms(20)));
        assert_eq!(parse_duration_range("5ms").unwrap(), (ms(5), ms(5)));
        assert!(parse_duration_range("20ms-1ms").is_err());
        assert!(parse_duration_range("1s-3601s").is_err());
        assert!(parse_duration_range("1ms-").is_err());
    }
}
