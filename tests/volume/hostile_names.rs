//! A file that a stranger leaves in a store's directory is one object more that cannot be read, whatever its name says.

use std::fs::File;
use std::time::Duration;

use super::rig::Rig;
use salvol::format::{ArchiveAt, BLOCK_BYTES, Uuid};
use salvol::history::{Progress, RebuildOptions, RebuildPlan, Source};
use salvol::io::{Bench, Primary};

/// A rebuild takes up the epochs after the largest in the store. With one that no superblock may have, neither the record of the
/// fork nor the new primary could be read again: the archive would be nobody's.
#[test]
fn a_rebuild_counts_on_from_no_epoch_that_a_name_made_up() {
    for epoch in [u64::MAX, 1 << 62] {
        let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 71) else { return };
        rig.steps(60);
        rig.synch("kept");
        rig.close();
        let stray = format!("{:016}.e{epoch}.p0.zst", 1);
        std::fs::write(rig.path("archive").join(rig.volume.history.to_string()).join(stray), "x").unwrap();

        let path = rig.primary();
        std::fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(rig.volume.geometry.primary_blocks * BLOCK_BYTES as u64).unwrap();
        let bench = Bench::new(Primary::own(&path, Duration::from_secs(2)).unwrap()).unwrap();
        let options = RebuildOptions {
            history: Uuid([9; 16]),
            time_ns: 1,
            name: None,
            backing: rig.spec.to_string(),
            accept_loss: None,
        };
        let plan = RebuildPlan::new(Source::open_spec(&rig.spec).unwrap(), options).unwrap();
        rig.volume = plan.volume().clone();
        let device = bench.device.clone();
        let written = bench.wait(async move { plan.write(&device, &Progress::none()).await }).unwrap();
        assert!(written.is_ok(), "epoch {epoch}: {}", written.unwrap_err());
        drop(bench);
        for _ in 0..2 {
            rig.attach();
            assert_eq!(rig.wrong_blocks(), [0; 0], "epoch {epoch}");
            rig.close();
        }
    }
}
