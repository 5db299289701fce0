//! salvol: a self-archiving log-structured volume for Linux.
//!
//! # The story of one write
//!
//! ```
//! use std::sync::Arc;
//! use salvol::archive::MemoryStore;
//! use salvol::format::{BLOCK_BYTES, Block};
//! use salvol::io::simulated::{SimulatedDisk, SimulatedPlatform};
//! use salvol::io::Buffer;
//! use salvol::volume::{OpenOptions, Operation, Request, Volume};
//! # let superblock = salvol::format::Superblock::example();
//! # let disk = SimulatedDisk::new(superblock.geometry.primary_blocks * BLOCK_BYTES as u64);
//! # disk.poke(0, &superblock.encode());
//! let machine = SimulatedPlatform::new(1, disk); // or io_uring: the engine does not know
//! let (platform, device) = (machine.clone(), machine.device());
//! machine.block_on(async move {
//!     // Opening replays the log and begins a new epoch in it.
//!     let volume = Volume::open(platform, device, Some(Arc::new(MemoryStore::new())), OpenOptions::default()).await?;
//!
//!     // A write waits for room, gets a place in the open batch at the head of the log, is copied there, and moves its
//!     // block in the index. It ends when its batch, and every batch before, has been written.
//!     let data = Buffer::new(BLOCK_BYTES)?;
//!     data.write(|bytes| bytes.fill(7));
//!     let write = Request { operation: Operation::Write { fua: false }, block: Block(3), blocks: 1, buffer: data };
//!     volume.serve(&write).await?;
//!
//!     // A synch point is a mark in the log, durable when it returns. The volume can be rebuilt at it for as long as the
//!     // segments of the working set at that time exist, on the primary or in the archive.
//!     let point = volume.synch("before the upgrade".to_owned(), String::new()).await?;
//!     assert!(point.position.0 > 0);
//!     volume.close().await?;
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! }).expect("the machine lives").expect("nothing fails");
//! ```
//!
//! # The map
//!
//! A module uses only what stands below it. Data goes down as calls, and up as return values and messages.
//!
//! | module | |
//! |---|---|
//! | [`ublk`] | the only place that knows libublk: a kernel command becomes a request, an outcome an errno |
//! | [`agent`] | gets an application ready for the moment of a mark, and lets go of it on every way out |
//! | [`control`] | the socket, and the files that say what runs here |
//! | [`history`] | synch points, the index at a point, restore, rebuild, check, dump |
//! | [`volume`] | open, read, write, flush, discard, synch: what a block device is asked for |
//! | [`log`] | append, seal, clean, archive, recycle, replay: the life of a segment |
//! | [`index`] | block → place |
//! | [`archive`] | objects, compression, stores |
//! | [`io`] | the platform: aligned memory, io_uring, the simulated disk and clock |
//! | [`format`] | superblock, segment, batch, summary: bytes only |

pub mod agent;
pub mod archive;
pub mod control;
pub mod format;
pub mod history;
pub mod index;
pub mod io;
pub mod log;
pub mod ublk;
pub mod volume;
