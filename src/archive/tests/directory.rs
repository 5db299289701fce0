//! What a directory store does about everything that can happen to a directory.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use super::volume;
use crate::archive::{
    DirectoryStore, ObjectName, Spec, SpecError, Store, StoreError, create_store, open_store, store_identity,
};
use crate::format::{Key, SegmentNumber, Superblock, Uuid};

fn name(segment: u64) -> ObjectName {
    ObjectName { history: Uuid([0x22; 16]), segment: SegmentNumber(segment), epoch: 1, part: 0 }
}

fn text<T>(result: Result<T, StoreError>) -> String {
    result.err().expect("is refused").to_string()
}

fn history(path: &Path) -> std::path::PathBuf {
    path.join(Uuid([0x22; 16]).to_string())
}

#[test]
fn files_are_named_and_kept_private() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("store");
    let store = DirectoryStore::create(&path, &volume(32)).unwrap();
    store.put(&name(17), b"object").unwrap();
    let file = history(&path).join("0000000000000017.e00000001.p0.zst");
    assert_eq!(fs::read(&file).unwrap(), b"object");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&history(&path))), (0o700, 0o700));
    assert_eq!((mode(&file), mode(&path.join("salvol-store"))), (0o600, 0o600));
    assert_eq!(store.spec(), format!("dir:{}", path.display()));
    assert_eq!(fs::read_dir(history(&path)).unwrap().count(), 1);
}

#[test]
fn a_store_belongs_to_one_volume() {
    let scratch = tempfile::tempdir().unwrap();
    let mine = volume(32);
    let other = Superblock { uuid: Uuid([0x99; 16]), ..mine.clone() };
    let rekeyed = Superblock { key: Key([1; 32]), ..mine.clone() };
    let forked = Superblock { history: Uuid([5; 16]), generation: 70, ..mine.clone() };
    DirectoryStore::create(scratch.path(), &mine).unwrap();
    for refused in [DirectoryStore::create(scratch.path(), &other), DirectoryStore::open(scratch.path(), Some(&other))]
    {
        let text = text(refused);
        assert!(text.contains(&mine.uuid.to_string()) && text.contains(&other.uuid.to_string()), "{text}");
    }
    assert!(text(DirectoryStore::open(scratch.path(), Some(&rekeyed))).contains("another key"));
    DirectoryStore::create(scratch.path(), &forked).unwrap();
    let opened = DirectoryStore::open(scratch.path(), None).unwrap();
    assert_eq!((opened.identity().uuid, opened.identity().generation), (mine.uuid, 0));
    assert_eq!(opened.identity().geometry, mine.geometry);
}

#[test]
fn an_unmounted_directory_is_not_a_store() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("mnt");
    let store = DirectoryStore::create(&path, &volume(32)).unwrap();
    store.put(&name(1), b"one").unwrap();
    fs::rename(&path, scratch.path().join("away")).unwrap();
    assert!(text(store.put(&name(2), b"two")).contains("cannot open the directory"));
    fs::create_dir(&path).unwrap();
    for refused in [store.put(&name(2), b"two"), store.get(&name(1), 0..1).map(drop), store.list().map(drop)] {
        assert!(text(refused).contains("not mounted"));
    }
    assert!(text(DirectoryStore::open(&path, None)).contains("not mounted"));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    fs::remove_dir(&path).unwrap();
    fs::rename(scratch.path().join("away"), &path).unwrap();
    store.put(&name(2), b"two").unwrap();
    // Another volume's store mounted in its place.
    fs::rename(&path, scratch.path().join("away")).unwrap();
    DirectoryStore::create(&path, &Superblock { uuid: Uuid([0x99; 16]), ..volume(32) }).unwrap();
    assert!(text(store.put(&name(3), b"three")).contains("belongs to volume"));
}

/// What is listed is in the directory that was checked. (A file system that was unmounted in between once listed as an empty
/// store, which agrees with every primary.)
#[test]
fn a_directory_that_is_exchanged_under_a_list_is_never_an_empty_store() {
    let scratch = tempfile::tempdir().unwrap();
    let (path, aside) = (scratch.path().join("mnt"), scratch.path().join("aside"));
    let store = DirectoryStore::create(&path, &volume(32)).unwrap();
    store.put(&name(1), b"one").unwrap();
    fs::create_dir(&aside).unwrap();
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = Arc::clone(&over);
    let exchanging = std::thread::spawn(move || {
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &path, nix::fcntl::AT_FDCWD, &aside, flags).unwrap();
        }
    });
    for _ in 0..5000 {
        match store.list() {
            Ok(listed) => assert_eq!(listed, vec![(name(1), 3)]),
            Err(error) => assert!(error.to_string().contains("not mounted"), "{error}"),
        }
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    exchanging.join().unwrap();
}

#[test]
fn an_identity_is_never_made_for_archives_that_lost_theirs() {
    let scratch = tempfile::tempdir().unwrap();
    DirectoryStore::create(scratch.path(), &volume(32)).unwrap().put(&name(1), b"one").unwrap();
    let identity = scratch.path().join("salvol-store");
    let bytes = fs::read(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    assert!(text(DirectoryStore::create(scratch.path(), &volume(32))).contains("has archives"));
    for damaged in [&bytes[..100], &bytes[..0], b"something else", &[&bytes[..], b"x"].concat()] {
        fs::write(&identity, damaged).unwrap();
        assert!(text(DirectoryStore::create(scratch.path(), &volume(32))).contains("damaged"));
        assert!(text(DirectoryStore::open(scratch.path(), None)).contains("damaged"));
    }
    fs::remove_file(&identity).unwrap();
    symlink("/dev/zero", &identity).unwrap();
    assert!(DirectoryStore::open(scratch.path(), None).is_err());
}

#[test]
fn leftovers_go_but_not_what_is_being_written() {
    let scratch = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(scratch.path(), &volume(32)).unwrap();
    store.put(&name(1), b"one").unwrap();
    let at = |name: &str| history(scratch.path()).join(name);
    let (dead, alive) =
        (at(".0000000000000002.e00000001.p0.zst.7-0.tmp"), at(".0000000000000003.e00000001.p0.zst.8-0.tmp"));
    fs::write(&dead, b"tw").unwrap();
    fs::write(scratch.path().join(".salvol-store.7-1.tmp"), b"sal").unwrap();
    let writer = File::create(&alive).unwrap();
    writer.lock().unwrap();
    let again = DirectoryStore::open(scratch.path(), Some(&volume(32))).unwrap();
    assert_eq!(again.list().unwrap(), vec![(name(1), 3)]);
    assert!(dead.exists(), "who only reads removes nothing");
    again.put(&name(2), b"two").unwrap();
    assert!(!dead.exists() && alive.exists() && !scratch.path().join(".salvol-store.7-1.tmp").exists());
}

#[test]
fn foreign_names_are_ignored() {
    let scratch = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(scratch.path(), &volume(32)).unwrap();
    store.put(&name(1), b"one").unwrap();
    let names = [
        "1.e00000001.p0.zst",
        "0000000000000002.e1.p0.zst",
        "0000000000000002.e00000001.p00.zst",
        "0000000000000002.e00000001.p0",
        "+000000000000002.e00000001.p0.zst",
        "00000000000000002.e00000001.p0.zst",
        "notes.txt",
    ];
    for name in names {
        fs::write(history(scratch.path()).join(name), b"x").unwrap();
    }
    fs::create_dir(history(scratch.path()).join("0000000000000004.e00000001.p0.zst")).unwrap();
    symlink("/etc/passwd", history(scratch.path()).join("0000000000000005.e00000001.p0.zst")).unwrap();
    fs::create_dir(scratch.path().join("lost+found")).unwrap();
    fs::create_dir(scratch.path().join(Uuid([0xAB; 16]).to_string().to_uppercase())).unwrap();
    assert_eq!(store.list().unwrap(), vec![(name(1), 3)]);
    // A link is not followed, neither to read nor to write.
    assert!(store.get(&name(5), 0..1).is_err() && store.put(&name(5), b"five").is_err());
}

#[test]
fn a_directory_on_the_own_device_is_refused_at_each_put() {
    let scratch = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(scratch.path(), &volume(32)).unwrap();
    store.forbid_device(fs::metadata(scratch.path()).unwrap().dev());
    assert!(text(store.put(&name(1), b"one")).contains("own device"));
    assert!(store.list().unwrap().is_empty());
    store.forbid_device(1);
    store.put(&name(1), b"one").unwrap();
}

#[test]
fn writers_of_one_name_agree() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Arc::new(DirectoryStore::create(scratch.path(), &volume(32)).unwrap());
    let put = |content: u8| {
        let store = Arc::clone(&store);
        std::thread::spawn(move || store.put(&name(1), &[content % 2; 70_000]).is_ok())
    };
    let threads: Vec<_> = (0..8).map(put).collect();
    let placed = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count();
    assert_eq!(placed, 4);
    assert_eq!(fs::read_dir(history(scratch.path())).unwrap().count(), 1);
}

#[test]
fn specs() {
    assert_eq!(Spec::parse("none"), Ok(Spec::None));
    assert_eq!(Spec::parse("dir:/a:b"), Ok(Spec::Directory("/a:b".into())));
    assert_eq!(Spec::parse("dir:/a:b").unwrap().to_string(), "dir:/a:b");
    assert!(matches!(Spec::parse("dir:"), Err(SpecError::NoPath(_))));
    assert_eq!(Spec::parse("file:/x:y"), Ok(Spec::File("/x:y".into())));
    assert_eq!(Spec::parse("dev:/dev/sdb"), Ok(Spec::Device("/dev/sdb".into())));
    for spec in ["file:/x:y", "dev:/dev/sdb"] {
        assert_eq!(Spec::parse(spec).unwrap().to_string(), spec);
    }
    assert!(matches!(Spec::parse("file:"), Err(SpecError::NoPath(_))));
    assert!(matches!(Spec::parse("dev:"), Err(SpecError::NoPath(_))));
    assert!(Spec::parse("s3://bucket/prefix").unwrap_err().to_string().contains("not in this version"));
    for unknown in ["", "/backup", "none:", "nfs:/x"] {
        assert!(Spec::parse(unknown).unwrap_err().to_string().contains("dir:PATH"));
    }
    let scratch = tempfile::tempdir().unwrap();
    let spec = Spec::Directory(scratch.path().join("store"));
    assert!(open_store(&spec, None).is_err() && store_identity(&spec).is_err() && store_identity(&Spec::None).is_err());
    assert!(create_store(&spec, &volume(32)).unwrap().is_some());
    assert!(open_store(&spec, Some(&volume(32))).unwrap().is_some());
    assert_eq!(store_identity(&spec).unwrap().uuid, volume(32).uuid);
    assert!(
        create_store(&Spec::None, &volume(32)).unwrap().is_none() && open_store(&Spec::None, None).unwrap().is_none()
    );
    assert!(create_store(&Spec::Directory(scratch.path().join("no/where")), &volume(32)).is_err());
}
