//! Arguments as people write them: sizes, names, specs, and what kind of thing an argument is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use salvol::format::{BLOCK_BYTES, Compression, NAME_BYTES_MAX, SPEC_BYTES_MAX, is_name};

/// Schemes that a SPEC may have.
const SCHEMES: [&str; 4] = ["dir", "file", "dev", "s3"];

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// Of more blocks than there can be the largest size there is.
    pub(crate) fn of_blocks(blocks: u64) -> Self {
        Self(blocks.saturating_mul(BLOCK_BYTES as u64))
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
        for (unit, shift) in units {
            let whole = self.0 >> shift;
            if whole > 0 {
                return match self.0 & ((1 << shift) - 1) {
                    0 => write!(f, "{whole}{unit}"),
                    _ => write!(f, "{:.1}{unit}", self.0 as f64 / (1u64 << shift) as f64),
                };
            }
        }
        write!(f, "{}", self.0)
    }
}

/// `512M`, `10G`, `4096`, `1.5T`; powers of 1024.
pub(crate) fn size(text: &str) -> Result<Size, String> {
    let error = || format!("`{text}` is not a size: write a number with K, M, G or T, like 512M or 10G");
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match trimmed[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(error()),
    };
    let bytes = match digits.parse::<u64>() {
        Ok(number) => number.checked_mul(1 << shift).ok_or_else(error)?,
        Err(_) => {
            let number: f64 = digits.parse().map_err(|_| error())?;
            let bytes = number * (1u64 << shift) as f64;
            if shift == 0 || !bytes.is_finite() || !(0.0..9e18).contains(&bytes) {
                return Err(error());
            }
            bytes as u64
        }
    };
    if bytes == 0 {
        return Err(format!("`{text}`: a size of nothing makes no sense"));
    }
    Ok(Size(bytes))
}

/// A duration: `30s`, `500ms`, `1h30m`, or 0.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| duration.try_into().ok());
    duration.ok_or_else(|| format!("{text:?} is not a duration: use 30s, 5m or 7d"))
}

/// How long ago: `7d`, `2w`, `36h`. A day has 24 hours.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::Span>().ok();
    let age = span.and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok());
    match age.and_then(|age| Duration::try_from(age).ok()) {
        Some(Duration::ZERO) => Err(format!("{text:?}: no time at all keeps nothing; use 36h, 7d or 2w")),
        Some(age) => Ok(age),
        None => Err(format!("{text:?} is not a duration: use 36h, 7d or 2w")),
    }
}

const LIMIT_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A duration that is not nothing.
pub(crate) fn limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        limit if limit < Duration::from_millis(1) => Err(format!("{text:?}: no time at all is not enough")),
        limit if limit > LIMIT_MAX => Err(format!("{text:?}: is more than a year")),
        limit => Ok(limit),
    }
}

/// A share of the working set between 0.05 and 0.95.
pub(crate) fn utilisation(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.05..=0.95).contains(&share) => Ok(share),
        _ => Err(format!("`{text}`: the utilisation of the working set is a number from 0.05 to 0.95, like 0.67")),
    }
}

/// A volume's name: it names files and a device link.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if !is_name(text) {
        return Err(format!(
            "`{text}` cannot be a volume's name: at most {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores, \
             and no dot or dash first; give one with --name"
        ));
    }
    Ok(text.to_owned())
}

/// `auto`, `none`, `zstd`, `zstd:LEVEL`.
pub(crate) fn compression(text: &str) -> Result<Compression, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("auto", "") => Ok(Compression::Auto),
        ("none", "") => Ok(Compression::None),
        ("zstd", "") => Ok(Compression::Zstd(3)),
        ("zstd", level) => match level.parse::<i8>() {
            Ok(level @ 1..=19) => Ok(Compression::Zstd(level)),
            _ => Err(format!("`{level}` is not a level of zstd: 1 to 19")),
        },
        _ => Err(format!("`{text}`: compression is auto, none, zstd or zstd:LEVEL")),
    }
}

/// Where the archive is kept, its path made absolute: that is how the superblock remembers it.
pub(crate) fn spec(text: &str) -> Result<String, String> {
    let known = "a SPEC is dir:PATH, file:PATH, dev:PATH, or none";
    if text == "none" {
        return Ok(text.to_owned());
    }
    let absolute = match text.split_once(':') {
        Some((scheme @ ("dir" | "file" | "dev"), path)) if !path.is_empty() => {
            let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
            let path = path.to_str().ok_or_else(|| format!("`{text}`: the path is not UTF-8"))?;
            format!("{scheme}:{path}")
        }
        Some((scheme @ "s3", _)) => {
            return Err(format!("`{text}`: this version has no store of the kind {scheme}: {known}"));
        }
        _ => return Err(format!("`{text}`: {known}")),
    };
    if absolute.len() > SPEC_BYTES_MAX {
        return Err(format!("`{text}`: a SPEC has at most {SPEC_BYTES_MAX} bytes"));
    }
    Ok(absolute)
}

/// What an argument is. The kinds never clash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Path(PathBuf),
    Spec(String),
    Name(String),
}

impl Source {
    /// With a known `scheme:` a SPEC, with a `/` a path, otherwise a name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((scheme, _)) if SCHEMES.contains(&scheme) => Ok(Self::Spec(text.to_owned())),
            _ if text.contains('/') => Ok(Self::Path(PathBuf::from(text))),
            _ if Path::new(text).is_file() && name(text.split_once('@').map_or(text, |(name, _)| name)).is_err() => {
                Ok(Self::Path(PathBuf::from(text)))
            }
            // A view of the past is NAME@POINT.
            _ => match name(text.split_once('@').map_or(text, |(name, _)| name)) {
                Ok(_) => Ok(Self::Name(text.to_owned())),
                Err(_) => Err(format!("`{text}` is no volume's name; a path has a `/` in it, like ./{text}")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("512M"), Ok(Size(512 << 20)));
        assert_eq!(size("10g"), Ok(Size(10 << 30)));
        assert_eq!(size("1.5K"), Ok(Size(1536)));
        assert_eq!(size("4096"), Ok(Size(4096)));
        for bad in ["", "M", "-1G", "10X", "1e400G", "99999999999T", "1.5", "0", "nanG", "infG"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(Size(512 << 20).to_string(), "512M");
        assert_eq!(Size((3 << 30) + (1 << 29)).to_string(), "3.5G");
    }

    #[test]
    fn durations() {
        let parsed = ["10s", "0", "500ms", "1h30m", "1m 5s"].map(|text| duration(text).unwrap().as_millis());
        assert_eq!(parsed, [10_000, 0, 500, 5_400_000, 65_000]);
        assert!(["", "10", "-3s", "soon"].iter().all(|text| duration(text).is_err()));
    }

    #[test]
    fn ages_have_days() {
        let hours = ["7d", "36h", "2w", "1d 12h"].map(|text| age(text).unwrap().as_secs() / 3600);
        assert_eq!(hours, [168, 36, 336, 36]);
        assert!(["", "7", "-7d", "0s", "1 month", "1y", "soon"].iter().all(|text| age(text).is_err()));
    }

    #[test]
    fn names_name_files() {
        assert!(name("db-1.img_x").is_ok());
        for bad in ["", "a/b", "..", ".hidden", "a b", "ü", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_argument_is_a_path_a_spec_or_a_name() {
        assert_eq!(Source::parse("dir:/x/y"), Ok(Source::Spec("dir:/x/y".into())));
        assert_eq!(Source::parse("./x"), Ok(Source::Path("./x".into())));
        assert_eq!(Source::parse("/dev/sdb"), Ok(Source::Path("/dev/sdb".into())));
        assert_eq!(Source::parse("db"), Ok(Source::Name("db".into())));
        assert!(Source::parse("what is this").is_err());
    }

    #[test]
    fn a_spec_is_made_absolute() {
        let here = std::env::current_dir().expect("a directory");
        assert_eq!(spec("dir:x"), Ok(format!("dir:{}/x", here.display())));
        assert_eq!(spec("file:x"), Ok(format!("file:{}/x", here.display())));
        assert_eq!(spec("dev:/dev/sdb"), Ok("dev:/dev/sdb".into()));
        assert_eq!(spec("none"), Ok("none".into()));
        for bad in ["dir:", "file:", "dev:", "x", "s3://b/p", "dir"] {
            assert!(spec(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn compressions() {
        assert_eq!(compression("zstd:7"), Ok(Compression::Zstd(7)));
        assert!(compression("zstd:99").is_err() && compression("lz4").is_err());
    }
}
