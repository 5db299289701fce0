.DEFAULT_GOAL := help
PREFIX ?= /usr/local
HOURS ?= 1
OBJECTS ?= 10000

.PHONY: help demo test check bench moments points listing damage levels replay fsx kills races faults campaign canaries coverage mutants fuzz shell build install clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## see it work: a database, a killed daemon, a dropped table, a lost disk, and every byte back (5 minutes)
	@scripts/demo

test: ## all tests, the real block device included (20 minutes; ALL=1 adds XFS and what takes longer)
	@scripts/test $(if $(ALL),--all)

check: ## format, lints and cargo's own tests, no kernel needed
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test

bench: ## speed beside fio and beside what people would use instead: docs/benchmarks.md (two hours; ROUNDS=1: 40 minutes; QUICK=1: 5 minutes, target/bench)
	@REPORT=$(CURDIR)/$(if $(QUICK),target/bench,docs) scripts/bench

moments: POINTS ?= 1000
moments: ## POINTS=1000 synch points, and as many other moments, each restored and viewed (15 minutes of processor time)
	SALVOL_POINTS=$(POINTS) cargo test --test volume moments:: -- --nocapture

listing: ## how long an archive of OBJECTS=10000 takes to be listed (1 minute)
	SALVOL_OBJECTS=$(OBJECTS) cargo test --release --test listing -- --nocapture

damage: ## every byte of a small volume and its store damaged, and what comes of it: docs/testing-damage.md (15 minutes of 2 cores)
	SALVOL_DAMAGE=all SALVOL_DAMAGE_TABLE=$(CURDIR)/docs/testing-damage.md cargo test --test damage every_damage -- --nocapture

points: POINTS ?= 20
points: ## POINTS=20 points of PostgreSQL, SQLite and ext4 under load, each judged on the real block device (20 minutes)
	@POINTS=$(POINTS) scripts/test postgres-points sqlite-points files-points

replay: POINTS ?= 5000
replay: ## POINTS=5000 flushes of each of four loads replayed from a record, and as many power cuts between them, each judged (2 hours)
	@REPLAY_POINTS=$(POINTS) scripts/test replay

fsx: THOUSANDS ?= 5000
fsx: ## THOUSANDS=5000 thousand operations of fsx on each of two volumes (1 hour)
	@FSX_THOUSANDS=$(THOUSANDS) BYTES_MAX=16384 scripts/test fsx

kills: KILLS ?= 2000
kills: ## KILLS=2000 kills of the daemon under load for each kind of archive, and as many in the middle of putting an object (3 hours)
	@KILLS=$(KILLS) scripts/test daemon-crash archiver-crash

races: RACES ?= 20
races: ## RACES=20 kills, attaches under openers and rounds of contention in a guest with two processors (30 minutes)
	@KERNEL=qemu RACES=$(RACES) scripts/test races

faults: ## a primary, and a store, that fail, lie, rot and have bad sectors (15 minutes)
	@scripts/test bad-disk bad-store

levels: ## what each level of compression costs, and what it gives (1 minute)
	cargo test --release --lib what_levels_cost -- --ignored --nocapture

canaries: ## known bugs, one at a time in a copy, which the simulator must find (20 minutes)
	@scripts/canaries

coverage: ## lines and branches of format, log, archive and history that cargo's tests never run, by file (15 minutes)
	@scripts/coverage

mutants: SHARD ?= 0/100
mutants: ## SHARD=0/100, a hundredth of all small changes to format, log, archive and history, of which each should fail a test (1 hour)
	@SHARD=$(SHARD) scripts/mutants

campaign: ## HOURS=1 of known bugs, crash states, histories with new seeds, failures and fuzzing, with a report
	@HOURS=$(HOURS) scripts/campaign

fuzz: EXECS ?= 20000000
fuzz: ## EXECS=20000000 inputs to every parser of hostile bytes, with cargo-fuzz on a nightly toolchain; MINUTES=5 each at most (days without)
	@scripts/fuzz $(EXECS)

shell: ## a prompt with /dev/ublkb0 attached
	@scripts/shell

build: ## target/release/salvol
	cargo build --release

install: build ## the program to PREFIX=/usr/local
	install -D -m 755 target/release/salvol $(DESTDIR)$(PREFIX)/bin/salvol

clean: ## what was built here; the cached kernel stays in ~/.cache/salvol
	cargo clean
