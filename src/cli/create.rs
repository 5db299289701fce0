//! `salvol create`: makes a volume on a device or in a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use salvol::archive::{self, Provision, Spec};
use salvol::format::{ArchiveAt, BLOCK_BYTES, Compression, Key, Position, Superblock, Uuid};
use salvol::io::{Bench, Platform, Primary};
use salvol::log::scan::write_superblock;
use serde_json::json;

use super::file::{has_holes, in_new_file, refuse_device_name, sync_directory, warn_of_file_system, write_through};
use super::geometry::{Plan, Wish, solve};
use super::holding::{refuse_what_it_holds, refuse_what_the_store_holds};
use super::parse::{self, Size};
use super::primary::canonical;
use super::status::archive_at;
use super::{Failure, Manner, Outcome, table};

/// What makes a primary smaller.
const ROOM: &str = ": use a smaller --size or a higher --utilisation";

/// Make a volume on PRIMARY, a block device or a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A block device, or a file on a file system that does O_DIRECT; one that does not exist is made
    primary: PathBuf,
    /// Where the archive is kept: dir:PATH (a directory), file:PATH (a ring in one file), dev:PATH (a ring on a raw block
    /// device), or none for a volume without history. A ring expires its oldest segments when it is full
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    backing: String,
    /// Size of the file of --backing file:PATH, when it does not exist yet
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    backing_size: Option<Size>,
    /// Size of the volume [default: what fits]
    #[arg(long, value_parser = parse::size)]
    size: Option<Size>,
    /// [default: the file name of PRIMARY]
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
    /// [default: 16M, or smaller, so that the working set has 128 segments]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    segment_size: Option<Size>,
    /// Share of the working set that the volume fills: more costs more copying, less costs more space [default: 0.67]
    #[arg(long, value_name = "SHARE", value_parser = parse::utilisation, conflicts_with = "working_set")]
    utilisation: Option<f64>,
    /// Segments of the working set
    #[arg(long, value_name = "SEGMENTS")]
    working_set: Option<u32>,
    /// Segments that may wait for the archiver [default: a twentieth]
    #[arg(long, value_name = "SEGMENTS")]
    spare: Option<u32>,
    /// When a segment is archived: as soon as it is full, or when it leaves the working set
    #[arg(long, value_enum, default_value = "seal")]
    archive_at: When,
    /// auto follows the archiver's queue
    #[arg(long, default_value = "auto", value_parser = parse::compression, value_name = "auto|none|zstd[:LEVEL]")]
    compression: Compression,
    /// Overwrite what PRIMARY holds, and what a file or device holds that --backing names, but for another volume's store
    #[arg(long)]
    force: bool,
    /// Only show what would be made
    #[arg(long)]
    dry_run: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum When {
    Seal,
    Inactive,
}

pub(crate) fn run(arguments: Arguments, manner: Manner) -> Outcome {
    let path = canonical(&arguments.primary);
    refuse_device_name(&path)?;
    let name = name(&arguments, &path)?;
    let spec = Spec::parse(&arguments.backing)?;
    if arguments.backing_size.is_some() && !matches!(spec, Spec::File(_)) {
        return Err(Failure::usage("--backing-size is for --backing file:PATH"));
    }
    let primary = if path.exists() { Some(Primary::own(&path, Duration::ZERO)?) } else { None };
    let wish = Wish {
        primary_blocks: primary.as_ref().map(|primary| primary.bytes() / BLOCK_BYTES as u64),
        volume_bytes: arguments.size.map(|size| size.0),
        segment_bytes: arguments.segment_size.map(|size| size.0),
        utilisation: arguments.utilisation,
        working_set: arguments.working_set,
        spare: arguments.spare,
        archived: arguments.backing != "none",
    };
    let plan = solve(&wish).map_err(|error| Failure::from(error).of(path.display()))?;
    let bench = primary.map(Bench::new).transpose()?;
    if let Some(bench) = &bench
        && !arguments.force
    {
        refuse_what_it_holds(&path, bench)?;
    }
    if !arguments.force {
        refuse_what_the_store_holds(&spec)?;
    }
    Creation { arguments, path, name, spec, plan, manner }.make(bench)
}

fn name(arguments: &Arguments, path: &Path) -> Result<String, Failure> {
    match &arguments.name {
        Some(name) => Ok(name.clone()),
        None => parse::name(path.file_name().unwrap_or_default().to_str().unwrap_or_default()).map_err(Failure::usage),
    }
}

/// A volume that is being made.
struct Creation {
    arguments: Arguments,
    path: PathBuf,
    name: String,
    spec: Spec,
    plan: Plan,
    manner: Manner,
}

impl Creation {
    fn make(self, primary: Option<Bench>) -> Outcome {
        if self.arguments.dry_run {
            return self.report(None);
        }
        warn_of_file_system(&self.path, self.manner);
        let bytes = self.plan.geometry.primary_blocks * BLOCK_BYTES as u64;
        let uuid = match primary {
            Some(bench) => self.write(&bench)?,
            None => in_new_file(&self.path, bytes, ROOM, |bench| self.write(bench))?,
        };
        self.report(Some(uuid))
    }

    /// Writes a file through, makes the store, and last the superblocks: until then there is no volume. The store is claimed
    /// so late because whoever ends this before leaves nothing that a second try would trip over.
    fn write(&self, bench: &Bench) -> Result<Uuid, Failure> {
        let Self { arguments, path, plan, .. } = self;
        let [mut uuid, mut history] = [[0; 16]; 2];
        let mut key = [0; 32];
        bench.platform.random(&mut uuid);
        bench.platform.random(&mut history);
        bench.platform.random(&mut key);
        let superblock = Superblock {
            uuid: Uuid::from_random(uuid),
            history: Uuid::from_random(history),
            parent_history: Uuid::default(),
            fork_position: Position(0),
            key: Key(key),
            generation: 1,
            epoch: 0,
            created_ns: bench.platform.wall_ns(),
            geometry: plan.geometry,
            archive_at: match arguments.archive_at {
                When::Seal => ArchiveAt::Seal,
                When::Inactive => ArchiveAt::Inactive,
            },
            compression: arguments.compression,
            clean_close: None,
            accepted_loss: None,
            name: self.name.clone(),
            backing: arguments.backing.clone(),
        };
        let bytes = arguments.backing_size.map(|size| size.0);
        let force = arguments.force;
        archive::prepare_store(&self.spec, &Provision { geometry: &plan.geometry, primary: path, bytes, force })?;
        if has_holes(path)? {
            write_through(bench, self.manner)
                .map_err(|error| Failure::new(format_args!("{}: {error}", path.display())))?;
        }
        archive::create_store(&self.spec, &superblock)?;
        let device = bench.device.clone();
        let uuid = superblock.uuid;
        let written = bench.wait(async move { write_superblock(&device, &superblock).await })?;
        written.map_err(|error| Failure::new(format_args!("{}: the superblocks: {error}", path.display())))?;
        sync_directory(path);
        Ok(uuid)
    }

    fn report(&self, uuid: Option<Uuid>) -> Outcome {
        let Self { arguments, path, name, plan, .. } = self;
        let geometry = &plan.geometry;
        let volume = geometry.volume_blocks * BLOCK_BYTES as u64;
        let when = archive_at(match arguments.archive_at {
            When::Seal => ArchiveAt::Seal,
            When::Inactive => ArchiveAt::Inactive,
        });
        if arguments.json {
            return Ok(table::print_json(&json!({
                "name": name,
                "uuid": uuid.map(|uuid| uuid.to_string()),
                "primary": path,
                "backing": arguments.backing,
                "archive_at": when,
                "size_bytes": volume,
                "primary_bytes": geometry.primary_blocks * BLOCK_BYTES as u64,
                "segment_size": geometry.segment_bytes(),
                "slots": geometry.slots,
                "working_set_segments": geometry.working_set,
                "spare_segments": plan.spare,
                "unused_bytes": plan.unused_blocks * BLOCK_BYTES as u64,
                "utilisation": plan.utilisation,
                "expected_write_amplification": plan.write_amplification,
                "index_bytes": geometry.volume_blocks * 8,
                "dry_run": arguments.dry_run,
            }))?);
        }
        let segment = Size(geometry.segment_bytes() as u64);
        let made = if arguments.dry_run { " (dry run: nothing was made)" } else { "" };
        let backing = match arguments.backing.as_str() {
            "none" => "none: no history is kept, nothing can be restored".to_owned(),
            backing => format!("{backing}, archived at {when}"),
        };
        let unused = if plan.unused_blocks >= u64::from(geometry.segment_blocks) {
            Size::of_blocks(plan.unused_blocks).to_string()
        } else {
            String::new()
        };
        table::print(&[
            ("volume", format!("{name}{}{made}", uuid.map(|uuid| format!(" ({uuid})")).unwrap_or_default())),
            ("size", Size(volume).to_string()),
            ("primary", format!("{}, {}", path.display(), Size::of_blocks(geometry.primary_blocks))),
            ("backing", backing),
            (
                "segments",
                format!(
                    "{} of {segment}: {} in the working set, {} spare",
                    geometry.slots, geometry.working_set, plan.spare
                ),
            ),
            ("utilisation", format!("{:.2} of the working set", plan.utilisation)),
            ("amplification", format!("about {:.2} under random overwrites", plan.write_amplification)),
            ("memory", format!("{} for the index when the volume is full", Size(geometry.volume_blocks * 8))),
            ("unused", unused),
        ]);
        Ok(())
    }
}
