//! The way through the members of a gzip file (RFC 1952), and through the blocks of their deflate streams (RFC 1951).

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress_with_limit};

use super::{CHUNK, damaged};
use crate::Result;
use crate::source::Source;

/// Bytes of the file that are read at once.
const INPUT: u64 = 64 << 10;
/// How far back deflate refers.
pub(super) const WINDOW: usize = 32 << 10;
/// Longest header of a member: its name and comment are of no use to us.
const MAX_HEADER: u64 = 64 << 10;

/// A decoder on its way.
#[derive(Clone)]
pub(super) struct Decoder {
    /// Where the packed bytes go on.
    pub input: u64,
    /// Which unpacked byte comes next.
    pub output: u64,
    pub is_within: bool,
    inflate: Box<DecompressorOxide>,
    /// What was unpacked last of the member, before `end`.
    history: Vec<u8>,
    end: usize,
    /// Packed bytes from the one at `start` on.
    buffer: Vec<u8>,
    start: u64,
}

impl Decoder {
    /// At the start of a file.
    pub fn new() -> Self {
        Self {
            input: 0,
            output: 0,
            is_within: false,
            inflate: Box::default(),
            history: vec![0; WINDOW + CHUNK as usize],
            end: 0,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Where a block begins within a member: at this bit of the file, which counts from the lowest one of the first byte, and
    /// with these bytes before what it unpacks to, no more than a window.
    pub fn at(packed: &dyn Source, bit: u64, output: u64, window: &[u8]) -> Result<Self> {
        let mut decoder = Self { output, is_within: true, ..Self::new() };
        decoder.history[..window.len()].copy_from_slice(window);
        decoder.end = window.len();
        decoder.input = bit / 8;
        let used = (bit % 8) as u8;
        let mut state = BlockBoundaryState::default();
        if used != 0 {
            state.num_bits = 8 - used;
            state.bit_buf = decoder.byte(packed)? >> used;
        }
        *decoder.inflate = DecompressorOxide::from_block_boundary_state(&state);
        Ok(decoder)
    }

    /// The bit of the file where a block begins, if one begins here.
    pub fn boundary(&self) -> Option<u64> {
        let state = self.inflate.block_boundary_state()?;
        Some(self.input * 8 - u64::from(state.num_bits))
    }

    /// What may be referred to.
    pub fn window(&self) -> &[u8] {
        &self.history[self.end.saturating_sub(WINDOW)..self.end]
    }

    /// The packed bytes that come next; none at the end.
    fn packed(&mut self, packed: &dyn Source) -> Result<&[u8]> {
        let end = self.start + self.buffer.len() as u64;
        if !(self.start..end).contains(&self.input) {
            let there = packed.len().saturating_sub(self.input).min(INPUT);
            self.buffer.resize(there as usize, 0);
            packed.read_at(&mut self.buffer, self.input)?;
            self.start = self.input;
        }
        Ok(&self.buffer[(self.input - self.start) as usize..])
    }

    fn byte(&mut self, packed: &dyn Source) -> Result<u8> {
        let byte = self.packed(packed)?.first().copied();
        self.input += 1;
        byte.ok_or_else(|| damaged("it ends too early"))
    }

    /// Reads the header of the next member; `false` if there is none.
    pub fn begin(&mut self, packed: &dyn Source) -> Result<bool> {
        let start = self.input;
        match self.packed(packed)? {
            [] if start != 0 => return Ok(false),
            // Tapes and tar fill up with zeroes; what else follows is left alone, as gzip does.
            [first, ..] if start != 0 && *first != 0x1f => return Ok(false),
            _ => {}
        }
        let mut header = [0; 10];
        for byte in &mut header {
            *byte = self.byte(packed)?;
        }
        let [0x1f, 0x8b, 8, flags, ..] = header else {
            return if start == 0 {
                Err(damaged("it does not begin as it should"))
            } else {
                Ok(false)
            };
        };
        let limit = start + MAX_HEADER;
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([self.byte(packed)?, self.byte(packed)?]);
            self.input += u64::from(length);
        }
        for text in [8, 16] {
            while flags & text != 0 && self.byte(packed)? != 0 {
                if self.input > limit {
                    return Err(damaged("its name is too long"));
                }
            }
        }
        if flags & 2 != 0 {
            self.input += 2;
        }
        *self.inflate =
            DecompressorOxide::from_block_boundary_state(&BlockBoundaryState::default());
        self.end = 0;
        self.is_within = true;
        Ok(true)
    }

    /// CRC-32 and length of a member, which follow it.
    pub fn trailer(&mut self, packed: &dyn Source) -> Result<(u32, u32)> {
        let mut words = [0; 2];
        for word in &mut words {
            let mut bytes = [0; 4];
            for byte in &mut bytes {
                *byte = self.byte(packed)?;
            }
            *word = u32::from_le_bytes(bytes);
        }
        Ok((words[0], words[1]))
    }

    /// Unpacks some bytes of the member, at most `most` and a chunk, and notes if that was its end. May be told to
    /// stop where a block begins.
    pub fn step(&mut self, packed: &dyn Source, most: usize, stop: bool) -> Result<&[u8]> {
        let most = most.min(CHUNK as usize);
        if self.history.len() - self.end < most {
            let window = self.end - self.end.min(WINDOW)..self.end;
            self.end = window.len();
            self.history.copy_within(window, 0);
        }
        self.packed(packed)?;
        let input = &self.buffer[(self.input - self.start) as usize..];
        let mut flags = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        if stop {
            flags |= TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        }
        let inflate = &mut self.inflate;
        let (status, consumed, written) =
            decompress_with_limit(inflate, input, &mut self.history, self.end, most, flags);
        match status {
            TINFLStatus::Done => self.is_within = false,
            _ if consumed != 0 || written != 0 => {}
            TINFLStatus::NeedsMoreInput => return Err(damaged("it ends too early")),
            _ => return Err(damaged("it cannot be unpacked")),
        }
        self.input += consumed as u64;
        self.output += written as u64;
        let start = self.end;
        self.end += written;
        Ok(&self.history[start..self.end])
    }

    /// Unpacks as many bytes as the buffer takes, over the ends of members.
    pub fn fill(&mut self, packed: &dyn Source, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            if !self.is_within && !self.begin(packed)? {
                return Err(damaged("it was changed while it was read"));
            }
            let bytes = self.step(packed, buffer.len(), false)?;
            let (target, rest) = buffer.split_at_mut(bytes.len());
            target.copy_from_slice(bytes);
            buffer = rest;
            if !self.is_within {
                self.trailer(packed)?;
            }
        }
        Ok(())
    }
}
