//! The compressions of kernel payloads (`CONFIG_KERNEL_*`).
//!
//! Unpacking on the host saves the guest up to a third of the instructions of its boot.

use std::fmt;
use std::io::{self, Read};

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// `CONFIG_KERNEL_XZ`.
    Xz,
    /// `CONFIG_KERNEL_LZ4`, the legacy frame format.
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
}

impl Compression {
    /// Recognises the compression by its first bytes; LZO, the one other, is not unpacked here.
    pub fn of(packed: &[u8]) -> Option<Self> {
        match packed {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            [0x5d, 0, 0, ..] => Some(Self::Lzma),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Memory that an xz or lzma decoder may take for its dictionary.
const XZ_MEMORY: u64 = 256 << 20;

/// Unpacks `packed` into at most `size` bytes.
pub(super) fn unpack(compression: Compression, packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let mut read = |reader: &mut dyn Read| reader.take(size as u64).read_to_end(&mut unpacked);
    match compression {
        Compression::Gzip => read(&mut flate2::read::GzDecoder::new(packed))?,
        Compression::Bzip2 => read(&mut bzip2::read::BzDecoder::new(packed))?,
        Compression::Lzma => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(XZ_MEMORY)?;
            read(&mut liblzma::read::XzDecoder::new_stream(packed, stream))?
        }
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)?;
            read(&mut liblzma::read::XzDecoder::new_stream(packed, stream))?
        }
        Compression::Lz4 => read(&mut lz4_flex::frame::FrameDecoder::new(packed))?,
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
            // The kernel is packed with `zstd -22 --ultra`: a window of 128 MiB.
            decoder.window_log_max(27)?;
            read(&mut decoder.single_frame())?
        }
    };
    if unpacked.len() == size {
        Ok(unpacked)
    } else {
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it should be"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text() -> Vec<u8> {
        (0..200_000_u32).flat_map(|number| (number % 977).to_le_bytes()).collect()
    }

    fn packed(compression: Compression) -> Vec<u8> {
        let text = text();
        match compression {
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Bzip2 => {
                let mut encoder =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Lzma => {
                let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
                let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
                let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Lz4 => {
                // The legacy frame: a magic number, then blocks of at most 8 MiB with their packed size.
                let block = lz4_flex::block::compress(&text);
                [&[2, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat()
            }
            Compression::Zstd => zstd::encode_all(&text[..], 1).unwrap(),
        }
    }

    const ALL: [Compression; 6] = [
        Compression::Gzip,
        Compression::Bzip2,
        Compression::Lzma,
        Compression::Xz,
        Compression::Lz4,
        Compression::Zstd,
    ];

    #[test]
    fn every_compression_is_recognised_and_unpacked() {
        for compression in ALL {
            let packed = packed(compression);
            assert_eq!(Compression::of(&packed), Some(compression));
            assert_eq!(
                unpack(compression, &packed, text().len()).unwrap(),
                text(),
                "{compression}"
            );
        }
    }

    #[test]
    fn a_truncated_payload_is_an_error() {
        for compression in ALL {
            let packed = packed(compression);
            assert!(
                unpack(compression, &packed[..packed.len() / 2], text().len()).is_err(),
                "{compression}"
            );
        }
    }

    #[test]
    fn a_payload_unpacks_to_no_more_than_it_says() {
        for compression in ALL {
            assert_eq!(
                unpack(compression, &packed(compression), 1000).unwrap(),
                text()[..1000],
                "{compression}"
            );
        }
    }
}
