//! `salvol create`: makes a volume on a device or in a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::statfs::{self, FsType};
use salvol::archive::{self, Spec};
use salvol::control::write_superblocks;
use salvol::format::{ArchiveAt, BLOCK_BYTES, Compression, Key, Position, Superblock, Uuid};
use salvol::io::{Bench, Buffer, Device, Platform, Primary};
use serde_json::json;

use super::geometry::{Plan, Wish, solve};
use super::holding::refuse_what_it_holds;
use super::parse::{self, Size};
use super::primary::canonical;
use super::status::archive_at;
use super::{Failure, Manner, Outcome, table};

/// Bytes of one write while a file is written through.
const FILL_BYTES: usize = 4 << 20;

/// Make a volume on PRIMARY, a block device or a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A block device, or a file on a file system that does O_DIRECT; one that does not exist is made
    primary: PathBuf,
    /// Where the archive is kept: dir:PATH, or none for a volume without history
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    backing: String,
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
    /// Overwrite what PRIMARY holds
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
    let name = name(&arguments, &path)?;
    let spec = Spec::parse(&arguments.backing)?;
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
        warn_of_copy_on_write(&self.path, self.manner);
        let uuid = match primary {
            Some(bench) => self.write(&bench)?,
            None => self.make_file().and_then(|bench| self.write(&bench)).inspect_err(|_| {
                // Half a file would be taken for a primary by the next try.
                let _ = std::fs::remove_file(&self.path);
            })?,
        };
        self.report(Some(uuid))
    }

    /// Allocates a file of the planned size, and opens it as a primary.
    fn make_file(&self) -> Result<Bench, Failure> {
        let Self { path, plan, .. } = self;
        let failed = |error: std::io::Error| Failure::new(format_args!("{}: {error}", path.display()));
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        let bytes = plan.geometry.primary_blocks * BLOCK_BYTES as u64;
        let length = i64::try_from(bytes).map_err(|_| failed(std::io::ErrorKind::FileTooLarge.into()))?;
        nix::fcntl::posix_fallocate(&file, 0, length).map_err(|error| match error {
            nix::errno::Errno::ENOSPC => Failure::new(format_args!(
                "{}: its file system has no room for a primary of {}: use a smaller --size or a higher --utilisation",
                path.display(),
                Size(bytes)
            )),
            error => failed(error.into()),
        })?;
        drop(file);
        Ok(Bench::new(Primary::own(path, Duration::ZERO)?)?)
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
        archive::prepare_store(&self.spec)?;
        if has_holes(path)? {
            fill(bench, self.manner).map_err(|error| Failure::new(format_args!("{}: {error}", path.display())))?;
        }
        archive::create_store(&self.spec, &superblock)?;
        let device = bench.device.clone();
        let uuid = superblock.uuid;
        let written = bench.wait(async move { write_superblocks(&device, &superblock).await })?;
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

/// Whether a file has holes or extents that were never written; both cost a quarter of the flush rate later. Extents
/// that are allocated and unwritten cannot be told from written ones here, so a file that was just made always counts.
fn has_holes(path: &Path) -> Result<bool, Failure> {
    let metadata = std::fs::metadata(path)?;
    let fresh =
        metadata.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|age| age < Duration::from_secs(600));
    Ok(metadata.is_file() && (fresh || metadata.blocks() * 512 < metadata.len()))
}

/// Overwrites the whole file with zeros.
fn fill(bench: &Bench, manner: Manner) -> std::io::Result<()> {
    let device = bench.device.clone();
    let bytes = device.bytes();
    let bar = if manner.draws() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("writing the file through {wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    let zeros = Buffer::new(FILL_BYTES)?;
    let shown = bar.clone();
    bench.wait(async move {
        let mut offset = 0;
        while offset < bytes {
            let length = FILL_BYTES.min((bytes - offset) as usize);
            device.write(offset, zeros.part(0, length)).await?;
            offset += length as u64;
            shown.set_position(offset);
        }
        device.flush().await
    })??;
    bar.finish_and_clear();
    Ok(())
}

fn sync_directory(path: &Path) {
    if let Some(directory) = path.parent().and_then(|parent| File::open(parent).ok()) {
        let _ = directory.sync_all();
    }
}

fn warn_of_copy_on_write(path: &Path, manner: Manner) {
    const COPY_ON_WRITE: [(i64, &str); 3] = [(0x9123_683e, "btrfs"), (0x2fc1_2fc1, "ZFS"), (0xca45_1a4e, "bcachefs")];
    let directory = if path.exists() { path } else { path.parent().unwrap_or(path) };
    let Ok(found) = statfs::statfs(directory) else { return };
    if path.exists() && !path.is_file() {
        return;
    }
    if let Some((_, name)) = COPY_ON_WRITE.iter().find(|(magic, _)| FsType(*magic) == found.filesystem_type()) {
        manner.note(format_args!(
            "{}: a file on {name}, which copies on write: a log on a log, slow and larger than it seems; better a raw \
             device, or a file on ext4 or XFS",
            path.display()
        ));
    }
}
