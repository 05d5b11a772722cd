//! What is in an initial RAM disk: cpio archives one after another, each packed or not
//! (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};

use crate::{Error, Result, lzo};

/// Most bytes of all archives together, unpacked.
const MAX_UNPACKED: u64 = 4 << 30;
/// Longest name of a file in an archive.
const MAX_NAME: usize = 4096;
/// Most files.
const MAX_FILES: usize = 1 << 20;

/// What matters of an initial RAM disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The kernel modules in it, by name, with `_` for `-`.
    pub modules: BTreeSet<String>,
    /// The kernel starts it: it has an `/init`.
    pub has_init: bool,
    /// How many files it has.
    pub files: usize,
    /// The compressions that were found.
    pub packed: Vec<&'static str>,
}

impl Contents {
    /// Reads an initial RAM disk.
    pub fn of(initrd: &[u8]) -> Result<Self> {
        let mut contents = Self::default();
        let mut left = MAX_UNPACKED;
        contents
            .read(initrd, &mut left)
            .map_err(|error| Error::damaged("initial RAM disk", crate::fs::error_text(&error)))?;
        Ok(contents)
    }

    fn read(&mut self, mut rest: &[u8], left: &mut u64) -> io::Result<()> {
        loop {
            let padding = rest.iter().position(|&byte| byte != 0).unwrap_or(rest.len());
            rest = &rest[padding..];
            if rest.is_empty() {
                return Ok(());
            }
            if rest.starts_with(b"0707") {
                self.archive(&mut Limited { inner: &mut rest, left })?;
                continue;
            }
            let Some(kind) = compression(rest) else {
                // The kernel stops here as well and says "junk within compressed archive".
                return Ok(());
            };
            self.packed.push(kind);
            match kind {
                "gzip" => self.archives(flate2::bufread::GzDecoder::new(&mut rest), left)?,
                "xz" | "lzma" => {
                    let stream = match kind {
                        "xz" => liblzma::stream::Stream::new_stream_decoder(1 << 30, 0),
                        _ => liblzma::stream::Stream::new_lzma_decoder(1 << 30),
                    };
                    let stream = stream.map_err(io::Error::other)?;
                    let reader = liblzma::bufread::XzDecoder::new_stream(&mut rest, stream);
                    self.archives(reader, left)?;
                }
                "zstd" => {
                    let mut reader = zstd::stream::read::Decoder::with_buffer(&mut rest)?;
                    // That of `zstd -19 --long=27` and of the kernel.
                    reader.window_log_max(27)?;
                    self.archives(reader.single_frame(), left)?;
                }
                "lz4" => {
                    let (blocks, after) = lz4_blocks(rest);
                    rest = after;
                    self.archives(Lz4 { blocks, block: Vec::new(), place: 0 }, left)?;
                }
                "lzo" => {
                    let limit = (*left).min(1 << 30) as usize;
                    let damaged = || io::Error::other("an lzop file in it is damaged");
                    let (unpacked, length) = lzo::unpack_file(rest, limit).ok_or_else(damaged)?;
                    rest = &rest[length..];
                    self.archives(unpacked.as_slice(), left)?;
                }
                _ => return Err(io::Error::other(format!("{kind} is not unpacked here"))),
            }
        }
    }

    /// Archives one after another, with zeroes between them.
    fn archives(&mut self, reader: impl Read, left: &mut u64) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(1 << 16, reader);
        let mut reader = Limited { inner: &mut reader, left };
        loop {
            let buffer = reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let padding = buffer.iter().position(|&byte| byte != 0).unwrap_or(buffer.len());
            reader.consume(padding);
            if !reader.fill_buf()?.is_empty() && reader.fill_buf()?[0] != 0 {
                self.archive(&mut reader)?;
            }
        }
    }

    /// One archive, up to its trailer or the end of the input.
    fn archive(&mut self, reader: &mut impl BufRead) -> io::Result<()> {
        loop {
            let mut header = [0; 110];
            if reader.fill_buf()?.is_empty() {
                return Ok(());
            }
            reader.read_exact(&mut header)?;
            if !matches!(&header[..6], b"070701" | b"070702") {
                return Err(io::Error::other("an archive in it has a bad header"));
            }
            let field = |index: usize| {
                let digits = std::str::from_utf8(&header[6 + index * 8..][..8]).ok();
                let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                number.ok_or_else(|| io::Error::other("an archive in it has a bad header"))
            };
            let (mode, length, name_length) = (field(1)?, field(6)?, field(11)? as usize);
            if name_length == 0 || name_length > MAX_NAME || self.files == MAX_FILES {
                return Err(io::Error::other("an archive in it has a bad name"));
            }
            let mut name = vec![0; name_length];
            reader.read_exact(&mut name)?;
            skip(reader, padding(110 + name_length as u64))?;
            name.pop();
            if name == b"TRAILER!!!" {
                return Ok(());
            }
            skip(reader, u64::from(length))?;
            skip(reader, padding(length.into()))?;
            self.file(&String::from_utf8_lossy(&name), mode);
        }
    }

    fn file(&mut self, name: &str, mode: u32) {
        const FOLDER: u32 = 0o040_000;
        self.files += 1;
        let name = name.trim_start_matches("./").trim_start_matches('/');
        self.has_init |= name == "init";
        if mode & 0o170_000 != FOLDER
            && let Some(module) = module_name(name)
        {
            self.modules.insert(module);
        }
    }
}

/// The name of the module in a file: `kernel/drivers/virtio/virtio-rng.ko.xz` is `virtio_rng`.
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem =
        [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| file.strip_suffix(end))?;
    Some(stem.replace('-', "_"))
}

/// What to fill up with after `length` bytes.
fn padding(length: u64) -> u64 {
    length.next_multiple_of(4) - length
}

fn skip(reader: &mut impl BufRead, mut count: u64) -> io::Result<()> {
    while count > 0 {
        let there = reader.fill_buf()?.len();
        if there == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let step = count.min(there as u64);
        reader.consume(step as usize);
        count -= step;
    }
    Ok(())
}

fn compression(bytes: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 8] = [
        (&[0x1f, 0x8b], "gzip"),
        (&[0x1f, 0x9e], "gzip"),
        (b"BZh", "bzip2"),
        (&[0x5d, 0, 0], "lzma"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
        (&[0x89, b'L', b'Z', b'O'], "lzo"),
        (&LZ4_LEGACY.to_le_bytes(), "lz4"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    ];
    kinds.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

const LZ4_LEGACY: u32 = 0x184c_2102;
/// Size of a block of LZ4's legacy frame, unpacked.
const LZ4_BLOCK: usize = 8 << 20;

/// Splits off an LZ4 legacy frame, whose blocks end where no further one can begin.
fn lz4_blocks(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut blocks = Vec::new();
    let mut rest = bytes;
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size);
        if size == LZ4_LEGACY {
            rest = after;
            continue;
        }
        let is_block = size > 0 && size as usize <= LZ4_BLOCK + LZ4_BLOCK / 255 + 16;
        let Some((block, after)) = after.split_at_checked(size as usize).filter(|_| is_block)
        else {
            break;
        };
        blocks.push(block);
        rest = after;
    }
    blocks.reverse();
    (blocks, rest)
}

/// Unpacks the blocks, the last one first in the list.
struct Lz4<'a> {
    blocks: Vec<&'a [u8]>,
    block: Vec<u8>,
    place: usize,
}

impl Read for Lz4<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.place == self.block.len() {
            let Some(packed) = self.blocks.pop() else { return Ok(0) };
            self.block.resize(LZ4_BLOCK, 0);
            let length = lz4_flex::block::decompress_into(packed, &mut self.block);
            self.block.truncate(length.map_err(io::Error::other)?);
            self.place = 0;
        }
        let count = buffer.len().min(self.block.len() - self.place);
        buffer[..count].copy_from_slice(&self.block[self.place..][..count]);
        self.place += count;
        Ok(count)
    }
}

/// Counts down what may still be read.
struct Limited<'a, R> {
    inner: &'a mut R,
    left: &'a mut u64,
}

impl<R: BufRead> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Limited<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if *self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        *self.left = self.left.saturating_sub(count as u64);
        self.inner.consume(count);
    }
}

/// Reads any bytes as an initial RAM disk; must return.
pub fn fuzz_initrd(bytes: &[u8]) {
    let mut left = 64 << 20;
    let _ = Contents::default().read(bytes, &mut left);
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Archive;
    use std::io::Write;

    fn archive(files: &[&str]) -> Vec<u8> {
        let mut archive = Archive::default();
        for file in files {
            archive.file(file, 0o644, vec![b'x'; 5000]).unwrap();
        }
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).unwrap();
        bytes
    }

    fn pack(program: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
        let mut child = std::process::Command::new(program[0])
            .args(&program[1..])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        Some(child.wait_with_output().unwrap().stdout)
    }

    #[test]
    fn archives_of_every_compression_follow_each_other() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&archive(&["lib/modules/6.1/kernel/b-c.ko.xz"])).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&archive(&["d.ko.zst"])).unwrap();
        let lz4 = lz4_flex::block::compress(&archive(&["e.ko"]));
        let lz4 = [&LZ4_LEGACY.to_le_bytes()[..], &(lz4.len() as u32).to_le_bytes(), &lz4].concat();
        let two = [archive(&["f.ko"]), vec![0; 700], archive(&["init", "g.ko.gz"])].concat();
        let mut initrd = [
            archive(&["kernel/x86/microcode/AuthenticAMD.bin"]),
            vec![0; 512],
            gz.finish().unwrap(),
            xz.finish().unwrap(),
            vec![0; 4],
            zstd::encode_all(two.as_slice(), 1).unwrap(),
            lz4,
        ]
        .concat();
        let mut expected = vec!["b_c", "d", "e", "f", "g"];
        for (program, name) in [(&["lzop", "-c"][..], "h"), (&["xz", "--format=lzma", "-c"], "i")] {
            if let Some(packed) = pack(program, &archive(&[&format!("{name}.ko")])) {
                initrd.extend([0; 8]);
                initrd.extend(packed);
                expected.push(name);
            }
        }
        let contents = Contents::of(&initrd).unwrap();
        assert_eq!(contents.modules.iter().collect::<Vec<_>>(), expected);
        assert!(contents.has_init);
        assert_eq!(contents.packed[..4], ["gzip", "xz", "zstd", "lz4"]);
    }

    #[test]
    fn a_truncated_one_is_an_error() {
        let packed = zstd::encode_all(archive(&["init"]).as_slice(), 1).unwrap();
        assert!(Contents::of(&packed[..packed.len() / 2]).is_err());
        assert!(Contents::of(&archive(&["init"])[..2000]).is_err());
    }
}
