//! Everything that is said to a running volume, and what is known of it from outside.
//!
//! Threads of this module only pass messages: a connection of the socket puts a [`Message`] into the owner's [`Mailbox`]
//! or an [`Order`] into the main thread's channel, and waits for the answer.

mod agents;
mod client;
mod mailbox;
mod process;
mod protocol;
mod retention;
mod run_files;
mod socket;
mod superblocks;
mod usage;

pub use client::{Client, ClientError};
pub use mailbox::{Mailbox, Message, attend};
pub use process::is_running;
pub use protocol::{AgentName, LINE_BYTES_MAX, Reply, Request, Wait};
pub use retention::ServedArchive;
pub use run_files::{RunDir, RunFile, view_uuid};
pub use socket::{LOOKING, Order, Socket};
pub use superblocks::{SuperblockError, read_superblock, wipe_superblocks};
pub use usage::{User, is_mounted_from, users};
