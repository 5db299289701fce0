//! Opening a volume whose primary holds what anybody may have signed. Input: a section with flags and epoch, then the sections of
//! one segment after the other, as in `walk.rs`, which lie in the slots from the first on.

use salvol::format::*;
use salvol::io::Buffer;
use salvol::io::simulated::{SimulatedDisk, SimulatedPlatform};
use salvol::volume::{OpenError, OpenOptions, Operation, Request, Volume};

use super::Target;
use super::seal::Sections;
use super::walk::{Built, Start, batches, build, sections, small};

pub const TARGET: Target = Target { name: "log", run, seeds, bytes_max: 2048, mutations: 40 };

const CLEAN: u8 = 1;

fn run(data: &[u8]) -> bool {
    let mut rest = Sections(data);
    let flags = rest.next();
    let (control, epoch) = (flags.first().copied().unwrap_or(0), flags.get(1).copied().unwrap_or(4));
    let mut volume = Superblock { epoch: u64::from(epoch), ..small() };
    let disk = SimulatedDisk::new(volume.geometry.primary_blocks * BLOCK_BYTES as u64);
    let mut start = Start::FIRST;
    while !rest.is_empty() && start.slot.0 < volume.geometry.slots {
        let at = volume.geometry.slot_place(start.slot).bytes();
        let Built { image, walk, next, .. } = build(start, &mut rest);
        disk.poke(at, &image);
        if control & CLEAN != 0 {
            let (segment, position, checksum) = (start.segment, walk.next_position().previous(), walk.chain());
            volume.clean_close = Some(CleanClose { segment, position, checksum });
        }
        start = next;
    }
    disk.poke(0, &volume.encode());
    disk.poke(volume.geometry.copy_at(), &volume.encode());
    match open(&disk, None) {
        Ok(()) => {
            open(&disk, None).expect("what was opened and closed opens again");
            return true;
        }
        Err(OpenError::Replay(error)) => {
            if let Some(last) = error.last_readable() {
                let _ = open(&disk, Some(last));
            }
        }
        Err(_) => {}
    }
    false
}

/// Opens the volume, reads all of it, writes to it, and closes it.
fn open(disk: &SimulatedDisk, accept_loss: Option<Position>) -> Result<(), OpenError> {
    let machine = SimulatedPlatform::new(1, disk.clone());
    let (platform, device) = (machine.clone(), machine.device());
    let outcome = machine.block_on(async move {
        let options = OpenOptions { accept_loss, ..OpenOptions::default() };
        let volume = Volume::open(platform, device, None, options).await?;
        let buffer = Buffer::new(BLOCK_BYTES)?;
        for block in 0..volume.geometry().volume_blocks.min(64) {
            let request =
                Request { operation: Operation::Read, block: Block(block), blocks: 1, buffer: buffer.clone() };
            let _ = volume.serve(&request).await;
        }
        let request = Request { operation: Operation::Write { fua: true }, block: Block(1), blocks: 1, buffer };
        let _ = volume.serve(&request).await;
        let _ = volume.close().await;
        Ok(())
    });
    machine.halt();
    outcome.expect("it opens or is refused, and does not hang")
}

fn seeds() -> Vec<Vec<u8>> {
    let whole = |control: u8, segments: &[Vec<Vec<u8>>]| {
        let flags = vec![vec![control, 4]];
        let all: Vec<Vec<u8>> = flags.into_iter().chain(segments.iter().flatten().cloned()).collect();
        Sections::join(&all.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let (sealed, open) = (sections(true, &batches()), sections(false, &batches()[..2]));
    vec![
        whole(0, std::slice::from_ref(&open)),
        whole(CLEAN, &[sealed.clone(), open.clone()]),
        whole(0, &[sealed.clone(), sealed, open]),
    ]
}
