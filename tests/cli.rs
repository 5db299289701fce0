//! The commands as a user meets them, where no driver is needed: what they make, and what they say when they cannot.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MIB: u64 = 1 << 20;

/// A scratch directory with its own run files. On the build directory's file system, since /tmp may not do O_DIRECT.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_salvol"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("SALVOL_RUN_DIR", self.path("run")).env_remove("SALVOL_LOG");
        command
    }

    fn salvol(&self, arguments: &[&str]) -> Ran {
        Ran::new(arguments, &self.command(arguments).output().expect("salvol runs"))
    }

    /// A volume on `file`, 32 MiB.
    fn create(&self, file: &str) -> Ran {
        self.salvol(&["create", file, "--size", "32M", "--backing", "none"]).ok()
    }

    /// A file of zeros.
    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).expect("made").set_len(bytes).expect("sized");
        path
    }
}

struct Ran {
    command: String,
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn new(arguments: &[&str], output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            command: arguments.join(" "),
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}: {}{}", self.command, self.stdout, self.stderr);
        self
    }

    /// It failed with this code, and the first line on standard error says all of this.
    #[track_caller]
    fn fails(self, code: i32, says: &[&str]) -> Self {
        let Self { command, stderr, .. } = &self;
        assert_eq!(self.code, code, "{command}: {}{stderr}", self.stdout);
        let first = stderr.lines().next().unwrap_or_default();
        let starts = if code == 2 {
            first.starts_with("error:") || first.starts_with("salvol: ")
        } else {
            first.starts_with("salvol: ")
        };
        assert!(starts, "{command}: {stderr}");
        for words in says {
            let text = if code == 2 { stderr.as_str() } else { first };
            assert!(text.contains(words), "{command}: `{words}` is not in: {stderr}");
        }
        self
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{}: {error}: {}", self.command, self.stdout))
    }
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).expect("opened").write_all_at(bytes, offset).expect("written");
}

#[test]
fn create_makes_what_status_shows() {
    let scratch = Scratch::new();
    let made = scratch.salvol(&["create", "db.img", "--size", "64M", "--backing", "dir:store", "--json"]).ok().json();
    assert_eq!((made["name"].as_str(), made["size_bytes"].as_u64()), (Some("db.img"), Some(64 * MIB)));
    assert_eq!(made["backing"], format!("dir:{}/store", scratch.0.path().canonicalize().expect("there").display()));
    let status = scratch.salvol(&["status", "./db.img", "--json"]).ok().json();
    assert_eq!((status["state"].as_str(), status["uuid"].as_str()), (Some("detached"), made["uuid"].as_str()));
    assert_eq!(status["working_set_segments"], made["working_set_segments"]);
    let shown = scratch.salvol(&["status", "./db.img"]).ok();
    assert!(shown.stdout.contains("detached") && shown.stdout.contains("64M"), "{}", shown.stdout);
}

#[test]
fn a_dry_run_makes_nothing() {
    let scratch = Scratch::new();
    let shown = scratch.salvol(&["create", "x", "--size", "64M", "--backing", "none", "--dry-run"]).ok();
    assert!(shown.stdout.contains("dry run") && shown.stdout.contains("no history is kept"), "{}", shown.stdout);
    assert!(!scratch.path("x").exists());
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let scratch = Scratch::new();
    let create = |more: &[&str]| scratch.salvol(&[&["create", "x", "--backing", "none"], more].concat());
    create(&["--size", "12Q"]).fails(2, &["`12Q` is not a size", "like 512M or 10G"]);
    create(&["--size", "5000"]).fails(1, &["multiple of 4096"]);
    create(&["--size", "64M", "--utilisation", "1.5"]).fails(2, &["from 0.05 to 0.95"]);
    create(&["--size", "64M", "--segment-size", "5000"]).fails(1, &["from 256K to 256M"]);
    create(&["--size", "64M", "--working-set", "3"]).fails(1, &["at least 8 segments, not 3"]);
    create(&["--size", "64M", "--working-set", "8", "--segment-size", "1M"])
        .fails(1, &["of its working set", "larger"]);
    create(&["--size", "64M", "--utilisation", "0.5", "--working-set", "50"]).fails(2, &["cannot be used with"]);
    create(&["--size", "64M", "--name", "a/b"]).fails(2, &["cannot be a volume's name"]);
    create(&[]).fails(1, &["--size"]);
    assert!(!scratch.path("x").exists());
    scratch.file("y", 64 * MIB);
    let too_large = ["create", "y", "--backing", "none", "--size", "1G"];
    scratch.salvol(&too_large).fails(1, &["a volume of 1G needs a primary of", "at most --size", "fits here"]);
    scratch.file("z", MIB);
    scratch.salvol(&["create", "z", "--backing", "none"]).fails(1, &["too small", "use a larger one"]);
}

#[test]
fn a_ring_in_a_file_is_made_and_belongs_to_one_volume() {
    let scratch = Scratch::new();
    let create = |name: &str, backing: &str, more: &[&str]| {
        scratch.salvol(&[&["create", name, "--size", "32M", "--backing", backing], more].concat())
    };
    create("db", "dir:store", &["--backing-size", "1G"]).fails(2, &["--backing-size is for --backing file:PATH"]);
    create("db", "file:ring", &[]).fails(1, &["does not exist", "--backing-size SIZE"]);
    create("db", "file:ring", &["--backing-size", "1M"]).fails(1, &["too small", "two segments more"]);
    assert!(!scratch.path("ring").exists() && !scratch.path("db").exists());
    create("db", "file:ring", &["--backing-size", "128M"]).ok();
    assert_eq!(fs::metadata(scratch.path("ring")).expect("made").len(), 128 * MIB);
    create("other", "file:ring", &[]).fails(1, &["the store belongs to volume", "(db)"]);
    create("other", "file:ring", &["--force"]).fails(1, &["the store belongs to volume", "(db)"]);
    create("ring", "none", &[]).fails(1, &["holds the archive of volume db", "--force"]);
    create("db2", "file:db", &[]).fails(1, &["holds a salvol volume", "--force"]);
    create("db2", "dev:ring", &[]).fails(1, &["is not a block device"]);
    assert!(!scratch.path("db2").exists() && !scratch.path("other").exists());
    scratch.salvol(&["points", "file:ring"]).ok();
}

#[test]
fn an_archive_is_not_overwritten_by_what_is_read_from_it() {
    let scratch = Scratch::new();
    scratch.salvol(&["create", "db", "--size", "32M", "--backing", "file:ring", "--backing-size", "128M"]).ok();
    scratch.salvol(&["create", "other", "--size", "32M", "--backing", "dir:store"]).ok();
    for (primary, spec) in [("ring", "file:ring"), ("store/salvol-store", "dir:store")] {
        let before = fs::read(scratch.path(primary)).expect("read");
        let rebuild = ["rebuild", primary, "--from", spec, "--force"];
        scratch.salvol(&rebuild).fails(1, &[primary, "is the archive itself, or in it", "another file or device"]);
        assert!(fs::read(scratch.path(primary)).expect("read") == before, "{primary} is as it was");
    }
}

#[test]
fn names_and_specs_are_checked() {
    let scratch = Scratch::new();
    scratch.salvol(&["create", "my disk", "--size", "32M", "--backing", "none"]).fails(2, &["give one with --name"]);
    scratch
        .salvol(&["create", "x", "--size", "32M", "--backing", "what"])
        .fails(2, &["dir:PATH, file:PATH, dev:PATH, or none"]);
    scratch.salvol(&["create", "x", "--size", "32M", "--backing", "s3://b"]).fails(2, &["no store of the kind s3"]);
}

#[test]
fn a_primary_that_is_not_there_or_no_volume() {
    let scratch = Scratch::new();
    scratch.salvol(&["attach", "./gone"]).fails(1, &["gone: there is no such file or device", "salvol create"]);
    scratch.salvol(&["status", "./gone"]).fails(1, &["there is no such file or device"]);
    scratch.salvol(&["status", "gone"]).fails(1, &["no such volume is attached", "salvol list"]);
    scratch.file("zeros", 16 * MIB);
    scratch.salvol(&["status", "./zeros"]).fails(1, &["zeros: ", "not a salvol volume", "salvol create"]);
    scratch.salvol(&["attach", "./zeros"]).fails(1, &["not a salvol volume"]);
    scratch.salvol(&["destroy", "./zeros"]).fails(1, &["not a salvol volume"]);
    scratch.salvol(&["attach", "."]).fails(1, &["neither a block device nor a regular file"]);
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("SKIP: no /dev/shm") };
    let path = directory.path().join("x");
    File::create(&path).expect("made").set_len(32 * MIB).expect("sized");
    let direct = nix::fcntl::OFlag::O_DIRECT | nix::fcntl::OFlag::O_RDWR;
    if nix::fcntl::open(&path, direct, nix::sys::stat::Mode::empty()).is_ok() {
        return eprintln!("SKIP: this kernel's tmpfs does O_DIRECT");
    }
    let path = path.to_str().expect("UTF-8");
    let scratch = Scratch::new();
    scratch.salvol(&["create", path, "--backing", "none"]).fails(1, &["does not do O_DIRECT", "ext4 or XFS"]);
}

#[test]
fn what_a_primary_holds_is_not_overwritten() {
    let scratch = Scratch::new();
    scratch.create("a");
    scratch.salvol(&["create", "a", "--backing", "none"]).fails(1, &["holds the salvol volume a (", "--force"]);
    scratch.salvol(&["create", "a", "--backing", "none", "--force"]).ok();
    let path = scratch.file("e", 32 * MIB);
    match Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").status()
    {
        Ok(status) if status.success() => {
            scratch.salvol(&["create", "e", "--backing", "none"]).fails(1, &["holds ext4 (says blkid)", "--force"]);
            scratch.salvol(&["create", "e", "--backing", "none", "--force"]).ok();
        }
        _ => eprintln!("SKIP: no mkfs.ext4"),
    }
}

#[test]
fn a_primary_that_somebody_holds_is_busy() {
    let scratch = Scratch::new();
    scratch.create("a");
    let file = OpenOptions::new().read(true).write(true).open(scratch.path("a")).expect("opened");
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).expect("locked");
    let says = ["a: in use", "held by another salvol"];
    scratch.salvol(&["create", "a", "--backing", "none", "--force"]).fails(1, &says);
    scratch.salvol(&["destroy", "a", "--force"]).fails(1, &says);
    drop(lock);
    scratch.salvol(&["destroy", "a"]).fails(2, &["--force"]);
    scratch.salvol(&["destroy", "a", "--force"]).ok();
    scratch.salvol(&["status", "./a"]).fails(1, &["not a salvol volume"]);
}

#[test]
fn destroying_wipes_superblocks_and_nothing_else() {
    let scratch = Scratch::new();
    scratch.create("./v.img");
    let path = scratch.path("v.img");
    // As after an image was restored over the volume: the copy at the end is left of it.
    overwrite(&path, 0, &[0xab; 4096]);
    scratch.salvol(&["destroy", "./v.img", "--force"]).ok();
    assert!(fs::read(&path).expect("read")[..4096] == [0xab; 4096], "the image has lost its first block");
    scratch.salvol(&["status", "./v.img"]).fails(1, &["not a salvol volume"]);
}

#[test]
fn what_could_not_be_made_is_not_removed() {
    let scratch = Scratch::new();
    let link = scratch.path("link.img");
    std::os::unix::fs::symlink("/not/mounted/vol.img", &link).expect("made");
    scratch.salvol(&["create", "./link.img", "--size", "32M", "--backing", "none"]).fails(1, &["File exists"]);
    assert!(link.is_symlink());
}

#[test]
fn a_device_that_is_not_there_does_not_become_a_file() {
    let scratch = Scratch::new();
    let device = "/dev/salvol-no-such-device";
    scratch.salvol(&["create", device, "--size", "32M", "--backing", "none"]).fails(1, &["no such device"]);
    scratch.create("./v.img");
    scratch.salvol(&["restore", "./v.img", "--at", "1", "--to", device]).fails(1, &["no such device"]);
    scratch.salvol(&["rebuild", device, "--from", "dir:nowhere"]).fails(1, &["no such device"]);
    assert!(!Path::new(device).exists());
}

#[test]
fn a_primary_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    scratch.create("./v.img");
    let mode = fs::metadata(scratch.path("v.img")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_found_is_the_exit_code_whoever_reads_the_output() {
    let scratch = Scratch::new();
    scratch.salvol(&["create", "./v.img", "--size", "32M", "--backing", "dir:store"]).ok();
    overwrite(&scratch.path("v.img"), 0, &[0; 4096]);
    let closed = |arguments: &[&str]| {
        let mut command = scratch.command(arguments);
        // Nobody holds the other ends.
        let pipe = || std::io::pipe().expect("a pipe").1;
        command.stdout(pipe()).stderr(pipe());
        command.status().expect("runs").code()
    };
    let open = scratch.salvol(&["verify", "./v.img"]);
    assert_eq!((open.code, closed(&["verify", "./v.img"])), (3, Some(3)), "{}{}", open.stdout, open.stderr);
    assert_eq!(closed(&["status", "./nothing.img"]), Some(1));
}

#[test]
fn what_is_no_volume_is_not_destroyed() {
    let scratch = Scratch::new();
    let path = scratch.path("precious");
    fs::write(&path, vec![7; 16 << 20]).expect("written");
    scratch.salvol(&["destroy", "./precious", "--force"]).fails(1, &["precious: not a salvol volume"]);
    assert!(fs::read(&path).expect("read").iter().all(|byte| *byte == 7));
    scratch.file("empty", 0);
    scratch.salvol(&["destroy", "./empty", "--force"]).fails(1, &["not a salvol volume"]);
}

#[test]
fn damaged_superblocks() {
    let scratch = Scratch::new();
    scratch.create("a");
    let path = scratch.path("a");
    let last = fs::metadata(&path).expect("there").len() - 4096;
    overwrite(&path, 500, b"damage");
    scratch.salvol(&["status", "./a"]).ok();
    overwrite(&path, last + 500, b"damage");
    scratch.salvol(&["status", "./a"]).fails(3, &["a: both superblocks are damaged", "checksum", "rebuild"]);
    scratch.salvol(&["attach", "./a"]).fails(3, &["both superblocks are damaged"]);
    scratch.salvol(&["create", "./a", "--backing", "none"]).fails(1, &["holds a salvol volume", "--force"]);
    scratch.salvol(&["destroy", "./a"]).fails(3, &["both superblocks are damaged"]);
    scratch.salvol(&["destroy", "./a", "--force"]).ok();
    scratch.salvol(&["status", "./a"]).fails(1, &["not a salvol volume"]);
}

#[test]
fn a_volume_of_another_version_is_left_alone() {
    let scratch = Scratch::new();
    scratch.create("a");
    let path = scratch.path("a");
    let bytes = fs::read(&path).expect("read");
    let mut block = bytes[..4096].to_vec();
    block[8..12].copy_from_slice(&99u32.to_le_bytes());
    let sum = salvol::format::Checksum::plain(&block[..4080]);
    block[4080..].copy_from_slice(&sum.0);
    for offset in [0, bytes.len() as u64 - 4096] {
        overwrite(&path, offset, &block);
    }
    scratch.salvol(&["status", "./a"]).fails(1, &["format version 99 is not the version"]);
    scratch.salvol(&["create", "./a", "--backing", "none"]).fails(1, &["holds a salvol volume", "version 99"]);
}

#[test]
fn a_primary_that_was_cut_short() {
    let scratch = Scratch::new();
    scratch.create("a");
    let file = OpenOptions::new().write(true).open(scratch.path("a")).expect("opened");
    file.set_len(16 * MIB).expect("cut");
    scratch.salvol(&["status", "./a"]).fails(3, &["the volume was made for", "it was cut short"]);
}

#[test]
fn backing_stores_that_cannot_be() {
    let scratch = Scratch::new();
    fs::write(scratch.path("file"), "").expect("written");
    scratch.salvol(&["create", "x", "--size", "32M", "--backing", "dir:file/store"]).fails(1, &["file/store"]);
    assert!(!scratch.path("x").exists(), "half a volume stays behind");
    scratch.salvol(&["create", "a", "--size", "32M", "--backing", "dir:store"]).ok();
    scratch
        .salvol(&["create", "b", "--size", "32M", "--backing", "dir:store"])
        .fails(1, &["the store belongs to volume"]);
    assert!(!scratch.path("b").exists());
}

#[test]
fn a_create_that_was_interrupted_claims_no_store() {
    let scratch = Scratch::new();
    // Large enough to be written through for a while.
    let mut slow = scratch.command(&["create", "slow", "--size", "2G", "--backing", "dir:store"]);
    let mut child = slow.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawned");
    while fs::metadata(scratch.path("slow")).map_or(0, |file| file.len()) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("waited for");
    assert!(
        !scratch.path("store/salvol-store").exists(),
        "it had ended before it was killed, or claims the store early"
    );
    scratch.salvol(&["create", "a", "--size", "32M", "--backing", "dir:store"]).ok();
}

#[test]
fn what_cannot_be_looked_at_is_not_overwritten() {
    let scratch = Scratch::new();
    scratch.file("e", 32 * MIB);
    let blkid = scratch.path("blkid");
    fs::write(&blkid, "#!/bin/sh\nexit 77\n").expect("written");
    fs::set_permissions(&blkid, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("made to run");
    let create = |more: &[&str]| {
        let arguments = [&["create", "e", "--backing", "none"], more].concat();
        let output = scratch.command(&arguments).env("PATH", scratch.0.path()).output().expect("salvol runs");
        Ran::new(&arguments, &output)
    };
    create(&[]).fails(1, &["e: holds who knows what", "--force"]);
    create(&["--force"]).ok();
}

#[test]
fn rebuild_refuses_what_it_cannot_use() {
    let scratch = Scratch::new();
    scratch.salvol(&["rebuild", "new"]).fails(2, &["--from <SPEC>"]);
    scratch.salvol(&["rebuild", "new", "--from", "none"]).fails(2, &["without an archive cannot be rebuilt"]);
    scratch.salvol(&["rebuild", "new", "--from", "somewhere"]).fails(2, &["a SPEC is dir:PATH"]);
    scratch.salvol(&["rebuild", "new", "--from", "dir:store"]).fails(1, &["store: cannot open the directory"]);
    let made = scratch.salvol(&["create", "a", "--size", "32M", "--backing", "dir:store", "--json"]).ok().json();
    let rebuild = |primary: &str| scratch.salvol(&["rebuild", primary, "--from", "dir:store"]);
    scratch.file("small", MIB);
    let need = made["primary_bytes"].as_u64().expect("a number");
    rebuild("small").fails(1, &["small: the volume needs a primary of at least", &need.to_string(), "has 1048576"]);
    rebuild("a").fails(1, &["a: holds the salvol volume a", "--force"]);
    // Nothing has been archived yet.
    rebuild("new").fails(4, &["nothing to go on from"]);
    assert!(!scratch.path("new").exists());
    scratch.salvol(&["rebuild", "a", "--from", "dir:store", "--force"]).fails(4, &["nothing to go on from"]);
    scratch.salvol(&["status", "./a"]).ok();
}

#[test]
fn attach_without_a_driver_says_how_to_get_one() {
    if Path::new("/dev/ublk-control").exists() {
        return eprintln!("SKIP: this machine has a driver");
    }
    let scratch = Scratch::new();
    scratch.create("a");
    scratch.salvol(&["attach", "a"]).fails(1, &["no ublk driver", "modprobe ublk_drv", "linux-modules-extra"]);
    scratch.salvol(&["features"]).fails(1, &["no ublk driver", "CONFIG_BLK_DEV_UBLK"]);
}

#[test]
fn nothing_is_attached_here() {
    let scratch = Scratch::new();
    assert_eq!(scratch.salvol(&["list", "--json"]).ok().json(), serde_json::json!({ "volumes": [] }));
    for verb in ["detach", "synch"] {
        scratch.salvol(&[verb, "db"]).fails(1, &["db: no such volume is attached"]);
    }
    scratch.salvol(&["detach"]).fails(2, &["required"]);
    scratch.salvol(&["detach", "--all"]).ok();
}

#[test]
fn a_label_that_is_an_id_is_refused() {
    let scratch = Scratch::new();
    for (label, means) in [("p7", "a point's id"), ("42", "a log position"), ("latest", "the newest point")] {
        scratch.salvol(&["synch", "db", "--label", label, "--before", "touch ran"]).fails(2, &[label, means]);
    }
    assert!(!scratch.path("ran").exists());
}

#[test]
fn verify_says_what_it_found() {
    let scratch = Scratch::new();
    scratch.salvol(&["create", "a", "--size", "32M", "--backing", "dir:store"]).ok();
    for source in ["./a", "dir:store"] {
        let report = scratch.salvol(&["verify", source, "--json"]).ok().json();
        assert_eq!((report["ok"].as_bool(), report["points"].as_u64()), (Some(true), Some(0)), "{report}");
        for field in ["segments", "objects", "bytes", "blocks", "points_affected", "findings"] {
            assert!(!report[field].is_null(), "{field}: {report}");
        }
        scratch.salvol(&["verify", source, "--at", "p9"]).fails(4, &["p9: "]);
    }
    let shown = scratch.salvol(&["verify", "./a", "--all"]).ok();
    assert!(shown.stdout.contains("clean") && shown.stderr.is_empty(), "{}{}", shown.stdout, shown.stderr);
    scratch.salvol(&["verify", "./a", "--all", "--at", "p9"]).fails(2, &["cannot be used with"]);
    scratch.salvol(&["verify", "./gone"]).fails(1, &["there is no such file"]);
    overwrite(&scratch.path("a"), 500, b"damage");
    scratch.salvol(&["-q", "verify", "./a"]).fails(3, &["1 findings, 1 of them covered", "0 synch points affected"]);
    let report: serde_json::Value = scratch.salvol(&["-q", "verify", "./a", "--json"]).json();
    let found = &report["findings"][0];
    assert_eq!(
        (found["where"].as_str(), found["covered"].as_bool()),
        (Some("superblock at 0x0"), Some(true)),
        "{found}"
    );
    for field in ["segment", "frame", "offset", "block", "position", "points"] {
        assert!(found.as_object().is_some_and(|found| found.contains_key(field)), "{field}: {found}");
    }
    fs::rename(scratch.path("store"), scratch.path("aside")).expect("moved");
    scratch.salvol(&["-q", "verify", "./a"]).fails(1, &["store"]);
}

#[test]
fn wrong_usage_and_help() {
    let scratch = Scratch::new();
    scratch.salvol(&["frobnicate"]).fails(2, &["unrecognized subcommand"]);
    let help = scratch.salvol(&["--help"]).ok();
    for verb in ["create", "attach", "recover", "rebuild", "restore"] {
        assert!(help.stdout.contains(verb), "{}", help.stdout);
    }
    assert!(scratch.salvol(&["completions", "bash"]).ok().stdout.contains("salvol"));
    scratch.salvol(&["man", "pages"]).ok();
    assert!(scratch.path("pages/salvol-create.1").exists());
}

#[test]
fn pruning_needs_one_rule_and_an_archive() {
    let scratch = Scratch::new();
    scratch.salvol(&["create", "db", "--size", "32M", "--backing", "dir:store"]).ok();
    scratch.create("plain");
    scratch.salvol(&["prune", "./db"]).fails(2, &["--keep-for", "--keep-points"]);
    let both = ["prune", "./db", "--keep-for", "7d", "--keep-points", "3"];
    scratch.salvol(&both).fails(2, &["cannot be used with"]);
    scratch.salvol(&["prune", "./db", "--keep-for", "7"]).fails(2, &["not a duration", "7d"]);
    scratch.salvol(&["prune", "./db", "--keep-for", "0s"]).fails(2, &["no time at all"]);
    scratch.salvol(&["prune", "./db", "--keep-points", "0"]).fails(2, &["--keep-points"]);
    scratch.salvol(&["prune", "./plain", "--keep-points", "3"]).fails(1, &["plain", "--backing none"]);
    scratch.salvol(&["pin", "./plain", "latest"]).fails(4, &["latest"]);
    scratch.salvol(&["unpin", "./plain", "latest"]).fails(1, &["--backing none"]);
    for source in ["./db", "dir:store"] {
        let report = scratch.salvol(&["prune", source, "--keep-for", "7d", "--json"]).ok().json();
        assert_eq!(report["objects"].as_u64(), Some(0), "{report}");
        assert_eq!((&report["dry_run"], &report["oldest_restorable"]), (&false.into(), &serde_json::Value::Null));
        let shown = scratch.salvol(&["prune", source, "--keep-points", "1", "--dry-run"]).ok();
        assert_eq!(shown.stdout, "everything in the archive is kept\n");
        scratch.salvol(&["pin", source, "p42"]).fails(4, &["p42"]);
        scratch.salvol(&["unpin", source, "p42"]).fails(4, &["p42"]);
    }
    scratch.salvol(&["prune", "db", "--keep-points", "3"]).fails(1, &["no such volume is attached"]);
    fs::remove_dir_all(scratch.path("store")).expect("removed");
    scratch.salvol(&["-q", "prune", "./db", "--keep-points", "3"]).fails(1, &["store", "cannot open the directory"]);
    scratch.salvol(&["prune", "dir:store", "--keep-points", "3"]).fails(1, &["store"]);
}
