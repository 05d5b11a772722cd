//! Unpacking of compressed clusters and grains.

use std::cell::RefCell;
use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};

/// How a cluster is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// A deflate stream without a header.
    Deflate,
    /// A zlib stream.
    Zlib,
    /// A Zstandard frame.
    Zstd,
    /// A bzip2 stream.
    Bzip2,
    /// An xz stream.
    Xz,
    /// Apple's LZFSE.
    Lzfse,
    /// Apple Data Compression.
    Adc,
}

thread_local! {
    static FAST: RefCell<libdeflater::Decompressor> = RefCell::new(libdeflater::Decompressor::new());
    static DEFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static ZLIB: RefCell<Decompress> = RefCell::new(Decompress::new(true));
    static LZFSE: RefCell<lzfse_rust::LzfseRingDecoder> = RefCell::default();
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Unpacks `packed`, which may be followed by bytes that do not belong to it, and returns how many bytes
/// of `output` it filled; `None` if it is damaged.
pub(crate) fn unpack(codec: Codec, packed: &[u8], output: &mut [u8]) -> Option<usize> {
    match codec {
        Codec::Deflate => FAST
            .with_borrow_mut(|state| state.deflate_decompress(packed, output).ok())
            .or_else(|| DEFLATE.with_borrow_mut(|state| inflate(state, false, packed, output))),
        Codec::Zlib => FAST
            .with_borrow_mut(|state| state.zlib_decompress(packed, output).ok())
            .or_else(|| ZLIB.with_borrow_mut(|state| inflate(state, true, packed, output))),
        Codec::Bzip2 => fill(bzip2::read::BzDecoder::new(packed), output),
        Codec::Xz => fill(liblzma::read::XzDecoder::new(packed), output),
        Codec::Lzfse => LZFSE.with_borrow_mut(|state| fill(state.reader_bytes(packed), output)),
        Codec::Adc => expand_adc(packed, output),
        Codec::Zstd => {
            let length = zstd::zstd_safe::find_frame_compressed_size(packed).ok()?;
            let frame = packed.get(..length)?;
            ZSTD.with_borrow_mut(|state| {
                if state.is_none() {
                    *state = zstd::bulk::Decompressor::new().ok();
                }
                state.as_mut()?.decompress_to_buffer(frame, output).ok()
            })
        }
    }
}

fn fill(mut reader: impl Read, output: &mut [u8]) -> Option<usize> {
    let mut filled = 0;
    while filled < output.len() {
        match reader.read(&mut output[filled..]).ok()? {
            0 => break,
            count => filled += count,
        }
    }
    Some(filled)
}

/// Apple describes nothing of ADC; after QEMU's and libdmg-hfsplus's comments. A first byte tells a run of bytes that follow it, or
/// the length of a copy of earlier ones and, in one or two more bytes, how far back they lie.
fn expand_adc(packed: &[u8], output: &mut [u8]) -> Option<usize> {
    let (mut at, mut filled) = (0, 0);
    while filled < output.len() {
        let Some(&first) = packed.get(at) else { break };
        let room = output.len() - filled;
        if first & 0x80 != 0 {
            let length = usize::from(first & 0x7f) + 1;
            let bytes = packed.get(at + 1..at + 1 + length)?;
            let length = length.min(room);
            output[filled..filled + length].copy_from_slice(&bytes[..length]);
            at += 1 + bytes.len();
            filled += length;
            continue;
        }
        let second = usize::from(*packed.get(at + 1)?);
        let (length, back) = if first & 0x40 != 0 {
            let third = usize::from(*packed.get(at + 2)?);
            at += 3;
            (usize::from(first & 0x3f) + 4, second << 8 | third)
        } else {
            at += 2;
            (usize::from(first >> 2) + 3, usize::from(first & 3) << 8 | second)
        };
        let from = filled.checked_sub(back + 1)?;
        // One by one: a copy may reach into what it makes.
        for index in 0..length.min(room) {
            output[filled + index] = output[from + index];
        }
        filled += length.min(room);
    }
    Some(filled)
}

/// What the faster library does not take: streams that are longer than what they are to fill, or cut off
/// behind it.
fn inflate(
    state: &mut Decompress,
    header: bool,
    packed: &[u8],
    output: &mut [u8],
) -> Option<usize> {
    state.reset(header);
    match state.decompress(packed, output, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) => usize::try_from(state.total_out()).ok(),
        // QEMU stops at a full cluster and does not ask for the end of the stream either.
        Ok(_) if state.total_out() == output.len() as u64 => Some(output.len()),
        _ => None,
    }
}
