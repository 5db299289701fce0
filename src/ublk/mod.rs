//! The kernel's block driver: the only module that knows libublk.
//!
//! A command of the kernel becomes a [`Request`](crate::volume::Request), an outcome becomes an errno.
//!
//! ```text
//!            main thread                       owner's thread
//!            -----------                       --------------
//!            Server::open  ───────────────►    ring, platform, Volume::open
//!                          ◄── opened ─────
//!            add the device, announce it, UblkDev
//!            Server::go_live ── device ───►    queue; fetches every tag
//!                          ◄── fetching ───
//!            START_DEV: live                   serves until the queue is down
//!            Live::stop: STOP_DEV              volume.close()
//!                          ◄── ended ──────
//!            delete the device
//! ```
//!
//! Nothing that can fail for a reason of the volume comes after a device exists: the kernel reads the partition table
//! while it starts one, and START_DEV waits for ever when a tag is not fetched.

mod driver;
mod owner;
mod ring;
mod server;
mod tags;

pub use driver::{
    DeviceInfo, DeviceState, DriverError, Feature, delete, device, devices, dump, features, node, require,
};
pub use ring::UblkRing;
pub use server::{Live, Options, PastSource, Server, ServerError, Shown, What, be_io_flusher, lock_memory};
