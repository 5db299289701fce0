//! `salvol features`: what the kernel's driver can do.

use salvol::ublk;
use serde_json::json;

use super::{Outcome, table};

/// Show what this kernel's ublk driver can do, and what salvol uses of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let (bits, features) = ublk::features()?;
    if arguments.json {
        return Ok(table::print_json(&json!({ "bits": format!("{bits:#x}"), "features": features }))?);
    }
    table::say!("driver features {bits:#x}");
    table::say!("{:22} {:7} {:9} USED FOR", "FEATURE", "SINCE", "HERE");
    for feature in features {
        let here = if feature.available { "yes" } else { "no" };
        let line = format!("{:22} {:7} {here:9} {}", feature.name, feature.since, feature.used_for.unwrap_or_default());
        table::say!("{}", line.trim_end());
    }
    Ok(())
}
