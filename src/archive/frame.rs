//! One zstd frame: a piece of the image that is decoded alone.
//!
//! What does not compress is stored in a frame of raw blocks, built by hand: still zstd to every decoder, but free of
//! the compressor's work and of the decoder's. zstd's own checksum is left out: the frame table has a CRC32C of each.

use std::io;

/// Image bytes in a frame, at most; the last of the data may have fewer. The summary's frame may have more.
pub const FRAME_BYTES: usize = 128 * 1024;

/// The largest raw block that zstd allows, for any frame.
const RAW_BLOCK_BYTES: usize = 128 * 1024;
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Frame header descriptor: single segment, content size in four bytes, no checksum, no dictionary.
const DESCRIPTOR: u8 = 0b1010_0000;
const HEAD_BYTES: usize = 9;
const BLOCK_HEAD_BYTES: usize = 3;
/// A frame that saves less than this part of its bytes is stored raw: it is not worth the decoder's time.
const SAVES_AT_LEAST: usize = 32;

/// How the frames of an object are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Stored, every one.
    Raw,
    /// Compressed at this level, where it helps.
    Zstd(i32),
}

/// Bytes of a frame that stores `raw` bytes: no frame of so many bytes is larger.
pub(super) fn stored_bytes(raw: usize) -> usize {
    HEAD_BYTES + raw.div_ceil(RAW_BLOCK_BYTES) * BLOCK_HEAD_BYTES + raw
}

/// Makes frames, one after the other, with one compressor.
pub(super) struct Packer {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl Packer {
    pub(super) fn new(packing: Packing) -> io::Result<Self> {
        let compressor = match packing {
            Packing::Raw => None,
            Packing::Zstd(level) => {
                let mut compressor = zstd::bulk::Compressor::new(level)?;
                compressor.include_checksum(false)?;
                compressor.include_contentsize(true)?;
                Some(compressor)
            }
        };
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// Appends the frame of `raw`, which is not empty, to `out`.
    pub(super) fn pack(&mut self, raw: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        if let Some(compressor) = &mut self.compressor {
            self.scratch.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
            let bytes = compressor.compress_to_buffer(raw, &mut self.scratch[..])?;
            if bytes + raw.len() / SAVES_AT_LEAST <= raw.len() {
                out.extend_from_slice(&self.scratch[..bytes]);
                return Ok(());
            }
        }
        store(raw, out);
        Ok(())
    }
}

/// Appends a frame of raw blocks.
fn store(raw: &[u8], out: &mut Vec<u8>) {
    let size = u32::try_from(raw.len()).expect("a segment has at most 256 MiB");
    out.extend_from_slice(&MAGIC);
    out.push(DESCRIPTOR);
    out.extend_from_slice(&size.to_le_bytes());
    let blocks = raw.chunks(RAW_BLOCK_BYTES);
    let last = blocks.len() - 1;
    for (rank, block) in blocks.enumerate() {
        // Block header: bit 0 says last, bits 1 and 2 the type (raw is 0), the rest the size.
        let size = u32::try_from(block.len()).expect("a block has at most 128 KiB");
        let head = u32::from(rank == last) | size << 3;
        out.extend_from_slice(&head.to_le_bytes()[..BLOCK_HEAD_BYTES]);
        out.extend_from_slice(block);
    }
}

/// Decodes frames, one after the other.
pub(super) struct Unpacker(zstd::bulk::Decompressor<'static>);

impl Unpacker {
    pub(super) fn new() -> io::Result<Self> {
        zstd::bulk::Decompressor::new().map(Self)
    }

    /// Decodes `frame` into `raw` and says how many bytes that were. One that has more is an error: the stream never
    /// decides how much memory it gets.
    pub(super) fn unpack(&mut self, frame: &[u8], raw: &mut [u8]) -> io::Result<usize> {
        self.0.decompress_to_buffer(frame, raw)
    }
}
