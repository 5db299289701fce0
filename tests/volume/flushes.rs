//! How many flushes the device gets for those that users ask for.

use futures_util::future::{join, join_all};
use salvol::format::Block;
use salvol::io::Buffer;
use salvol::io::simulated::{Event, SimulatedDisk, SimulatedPlatform};
use salvol::volume::{Operation, Request};

use crate::common::{SHAPE, Shape, SimVolume, open, put};

async fn flush(volume: &SimVolume) {
    let buffer = Buffer::new(0).unwrap();
    volume.serve(&Request { operation: Operation::Flush, block: Block(0), blocks: 0, buffer }).await.unwrap();
}

/// Flushes that the device was given since the last call.
fn flushes(disk: &SimulatedDisk) -> usize {
    let count = disk.take_events().iter().filter(|(event, _)| matches!(event, Event::Flush(_))).count();
    disk.record(|| 0);
    count
}

#[test]
fn one_flush_serves_all_whose_writes_had_been_acknowledged() {
    for seed in 1..20 {
        let disk = Shape { backing: false, slots: 12, ..SHAPE }.disk();
        let platform = SimulatedPlatform::new(seed, disk.clone());
        let volume = open(&platform, &None).unwrap().unwrap();
        let user = volume.clone();
        let counting = disk.clone();
        disk.record(|| 0);
        platform
            .block_on(async move {
                let disk = counting;
                for writers in [1, 2, 32] {
                    join_all((0..writers).map(|block| put(&user, block..block + 1, writers))).await;
                    flushes(&disk);
                    join_all((0..writers).map(|_| flush(&user))).await;
                    assert_eq!(flushes(&disk), 1, "{writers} writers, seed {seed}");
                    flush(&user).await;
                    assert_eq!(flushes(&disk), 0, "nothing is left to flush, seed {seed}");
                }
                // What is acknowledged while a flush is under way is not in it.
                put(&user, 0..1, 100).await;
                flushes(&disk);
                let later = async {
                    put(&user, 1..2, 100).await;
                    let ended_before = user.log().positions();
                    flush(&user).await;
                    ended_before
                };
                let (_, (completed, _)) = join(flush(&user), later).await;
                assert!(user.log().positions().1 >= completed, "seed {seed}");
                assert_eq!(flushes(&disk), 2, "seed {seed}");
            })
            .unwrap();
        drop(volume);
        platform.halt();
    }
}
