use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn device(bytes: u64) -> Wish {
    Wish { primary_blocks: Some(bytes / 4096), archived: true, ..Wish::default() }
}

/// What must hold of every plan.
fn sound(wish: &Wish) -> Plan {
    let plan = solve(wish).unwrap_or_else(|error| panic!("{wish:?}: {error}"));
    let geometry = &plan.geometry;
    geometry.check().expect("the format takes it");
    let least = if wish.archived { 2 } else { 1 };
    assert!(plan.spare >= least && geometry.slots == geometry.working_set + 2 + plan.spare, "{plan:?}");
    assert!(u64::from(geometry.working_set) >= WORKING_SET_MIN, "{plan:?}");
    assert!(plan.utilisation <= UTILISATION_MAX, "{plan:?}");
    let end = FIXED_BLOCKS + u64::from(geometry.slots) * u64::from(geometry.segment_blocks) + plan.unused_blocks;
    assert_eq!(end, geometry.primary_blocks, "{plan:?}");
    plan
}

#[test]
fn a_device_is_filled_at_the_default_utilisation() {
    for bytes in [16 * MIB, 64 * MIB, 256 * MIB, GIB, 10 * GIB, 1000 * GIB, 16_000 * GIB] {
        let plan = sound(&device(bytes));
        assert!((plan.utilisation - UTILISATION).abs() < 0.01, "{plan:?}");
        assert!(plan.unused_blocks < u64::from(plan.geometry.segment_blocks), "{plan:?}");
    }
    assert_eq!(sound(&device(10 * GIB)).geometry.segment_blocks, 4096);
    assert!(sound(&device(GIB)).geometry.working_set >= 128);
}

#[test]
fn a_file_is_made_as_large_as_it_must_be() {
    for size in [8 * MIB, 100 * MIB, GIB, 100 * GIB] {
        let wish = Wish { volume_bytes: Some(size), archived: true, ..Wish::default() };
        let plan = sound(&wish);
        assert_eq!(plan.geometry.volume_blocks * 4096, size);
        assert_eq!(plan.unused_blocks, 0);
        assert!(size < 20 * MIB || (plan.utilisation - UTILISATION).abs() < 0.02, "{plan:?}");
    }
}

#[test]
fn a_size_on_a_device_takes_all_of_it() {
    let plan = sound(&Wish { volume_bytes: Some(GIB), ..device(4 * GIB) });
    assert_eq!(plan.geometry.volume_blocks * 4096, GIB);
    assert!(plan.utilisation < 0.3 && plan.unused_blocks < u64::from(plan.geometry.segment_blocks), "{plan:?}");
}

#[test]
fn all_that_is_given_must_agree_and_what_stays_unused_is_known() {
    let wish = Wish { volume_bytes: Some(GIB), utilisation: Some(0.5), spare: Some(10), ..device(4 * GIB) };
    let plan = sound(&wish);
    assert_eq!(plan.spare, 10);
    assert!((plan.utilisation - 0.5).abs() < 0.01 && plan.unused_blocks * 4096 > GIB, "{plan:?}");
    let working_set = sound(&Wish { working_set: Some(50), segment_bytes: Some(16 * MIB), ..device(4 * GIB) });
    assert_eq!((working_set.geometry.working_set, working_set.geometry.segment_blocks), (50, 4096));
}

#[test]
fn without_an_archive_fewer_slots_are_kept() {
    let wish = Wish { archived: false, ..device(GIB) };
    assert_eq!(sound(&wish).spare, 2);
}

#[test]
fn what_does_not_fit_is_refused_with_numbers() {
    let told = |wish: Wish| solve(&wish).expect_err("refused").to_string();
    let too_large = told(Wish { volume_bytes: Some(8 * GIB), ..device(4 * GIB) });
    assert!(
        too_large.starts_with("a volume of 8G needs a primary of ") && too_large.contains("at most --size"),
        "{too_large}"
    );
    assert!(told(device(2 * MIB)).contains("too small"));
    assert!(told(Wish { archived: true, ..Wish::default() }).contains("--size"));
    assert!(told(Wish { volume_bytes: Some(5000), ..device(GIB) }).contains("multiple of 4096"));
    assert!(told(Wish { segment_bytes: Some(1000), ..device(GIB) }).contains("from 256K to 256M"));
    assert!(told(Wish { working_set: Some(4), ..device(GIB) }).contains("at least 8"));
    assert!(told(Wish { spare: Some(1), ..device(GIB) }).contains("2 are needed"));
    let segments = told(Wish { working_set: Some(500), segment_bytes: Some(16 * MIB), ..device(GIB) });
    assert!(segments.starts_with("a working set of 500 segments needs"), "{segments}");
    let full =
        told(Wish { volume_bytes: Some(GIB), working_set: Some(64), segment_bytes: Some(16 * MIB), ..device(4 * GIB) });
    assert!(full.contains("100 % of its working set") || full.contains("101 %"), "{full}");
    assert!(matches!(solve(&device(20_000 * GIB)), Err(GeometryError::Format(_))));
}

#[test]
fn what_is_said_to_fit_fits() {
    for have in [64 * MIB, GIB, 4 * GIB, 40 * GIB] {
        let Err(GeometryError::DoesNotFit { fits, .. }) =
            solve(&Wish { volume_bytes: Some(100 * GIB), ..device(have) })
        else {
            panic!("100 GiB on {have}");
        };
        sound(&Wish { volume_bytes: Some(fits.0 / 4096 * 4096), ..device(have) });
    }
}

#[test]
fn the_formula_agrees_with_the_design() {
    // As the model computes them: no headers, and batches of 32 with copies in batches of 128.
    for (u, plain, batches_of_32) in [(0.5, 1.255, 1.278), (0.7, 1.876, 1.954), (0.8, 2.693, 2.862)] {
        assert!((write_amplification(u, 0.0, 0.0) - plain).abs() < 0.001);
        assert!((write_amplification(u, 1.0 / 32.0, 1.0 / 128.0) - batches_of_32).abs() < 0.001, "{u}");
    }
}
