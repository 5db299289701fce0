//! The overlay of a view that is kept. Its header has a checksum, a byte of its map that was never written is an error; its map and
//! data have no checksums, and `docs/operating.md` says so: what is other data there is counted, apart from all else.

use std::path::Path;
use std::sync::Arc;

use salvol::archive::{DirectoryStore, Store};
use salvol::format::{BLOCK_BYTES, Block};
use salvol::history::{Past, Scene, Source, Writable};
use salvol::io::Buffer;
use salvol::io::simulated::{SimulatedDisk, SimulatedPlatform};
use salvol::volume::{Operation, Request, Serve};

use super::base::{Base, State};
use super::cases::{Case, Change, Target};
use super::common::bytes_of;
use super::judge::Verdict;
use super::run::scratch;
use super::table::Table;

/// The view of the newest point with the overlay at `path`, on a machine of its own.
fn view(
    base: &Base,
    store: &Arc<dyn Store>,
    path: &Path,
) -> (SimulatedPlatform, Result<Past<SimulatedPlatform>, String>) {
    let source = Source::open_store(base.volume.clone(), Some(Arc::clone(store))).unwrap();
    let moment = source.resolve(&format!("p{}", base.points.last().unwrap().0)).unwrap();
    let scene = Scene::new(&source, moment).unwrap();
    let platform = SimulatedPlatform::new(1, SimulatedDisk::new(8192));
    let past = Past::open(platform.clone(), scene, &Writable::Kept(path.to_owned()), String::new());
    (platform, past.map_err(|error| error.to_string()))
}

fn serve(
    platform: &SimulatedPlatform,
    past: &Past<SimulatedPlatform>,
    operation: Operation,
    block: u64,
    stamp: u64,
) -> Option<Vec<u8>> {
    let (past, buffer) = (past.clone(), Buffer::new(BLOCK_BYTES).unwrap());
    buffer.copy_from(0, &bytes_of(block, stamp));
    let served = platform.block_on(async move {
        let request = Request { operation, block: Block(block), blocks: 1, buffer };
        past.serve(&request).await.map(|()| request.buffer.bytes().to_vec())
    });
    served.expect("it ends").ok()
}

/// Every byte of the header and the map, every 61st of the rest.
pub fn table(base: &Base, every: usize) -> Table {
    let directory = scratch();
    let path = directory.path().join("overlay");
    // A view opens its archive by its name.
    let store = DirectoryStore::create(&directory.path().join("store"), &base.identity).unwrap();
    base.objects.iter().for_each(|(name, bytes)| store.put(name, bytes).unwrap());
    let store: Arc<dyn Store> = Arc::new(store);
    let mut state: State = base.points.last().unwrap().1.clone();
    let (platform, past) = view(base, &store, &path);
    let past = past.unwrap();
    for (block, stamp) in [(0, 777), (2, 778)] {
        serve(&platform, &past, Operation::Write { fua: false }, block, stamp).unwrap();
        state[block as usize] = stamp;
    }
    serve(&platform, &past, Operation::Discard, 3, 0).unwrap();
    state[3] = 0;
    serve(&platform, &past, Operation::Flush, 0, 0).unwrap();
    drop(past);
    platform.halt();
    let whole = std::fs::read(&path).unwrap();
    let mut table = Table::default();
    let (header, map) = (BLOCK_BYTES, BLOCK_BYTES + base.volume.geometry.volume_blocks as usize);
    let mut number = 0;
    let mut judge = |structure, damage, change: Change| {
        number += 1;
        // Of the map all: that is short, and has no checksum.
        if number % every != 0 && structure != "view overlay: map" {
            return;
        }
        let mut bytes = whole.clone();
        change.apply(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let mut verdict = Verdict::default();
        let (platform, past) = view(base, &store, &path);
        verdict.refused = Some(past.is_err());
        if let Ok(past) = past {
            for (block, stamp) in (0..).zip(&state) {
                match serve(&platform, &past, Operation::Read, block, 0) {
                    None => verdict.unreadable = Some(true),
                    Some(bytes) if bytes == bytes_of(block, *stamp) => {}
                    Some(_) => verdict.wrong = Some(format!("block {block} is other data")),
                }
            }
        }
        platform.halt();
        let case = Case { structure, damage, target: Target::Primary, change, covered: false, light: true, number: 0 };
        table.take("overlay", &case, &verdict);
    };
    for at in 0..whole.len() {
        let flip = |bit: usize| Change::Xor { at, mask: 1 << bit };
        match at {
            _ if at < 80 => (0..8).for_each(|bit| judge("view overlay: header", "bit flipped", flip(bit))),
            _ if at < header => judge("view overlay: header", "bit flipped", flip(at % 8)),
            _ if at < map => (0..8).for_each(|bit| judge("view overlay: map", "bit flipped", flip(bit))),
            _ if at < 2 * BLOCK_BYTES && at % 61 == 0 => {
                judge("view overlay: map, unused", "bit flipped", flip(at % 8))
            }
            _ if at % 61 == 0 => judge("view overlay: data", "bit flipped", flip(at % 8)),
            _ => {}
        }
    }
    for length in (1..whole.len()).step_by(511) {
        // A file that ends early reads as an error there, or not at all.
        judge("view overlay", "cut short", Change::Cut(length));
    }
    judge("view overlay: header", "zeroed", Change::Fill { range: 0..BLOCK_BYTES, value: 0 });
    table
}
