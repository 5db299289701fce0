//! Volumes, from the engine on a simulated disk to restores of real files. One program: the engine is compiled into each anew.
#![allow(clippy::unwrap_used, reason = "a panic is the failure")]

mod archive_story;
mod common;
mod faults;
mod flushes;
mod history;
mod hostile_names;
mod model;
mod moments;
mod parts;
mod prune;
mod rebuild;
mod restore;
mod rig;
mod rollback;
mod store_trouble;
mod verify;
mod views;
