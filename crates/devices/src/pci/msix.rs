//! MSI-X: a function's interrupt table and pending bits (PCI 3.0 section 6.8.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::MsiMessage;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::{Error, MsiController, MsiVector, Result};

/// Bytes of one table entry.
const ENTRY_SIZE: u64 = 16;
/// Message control: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: this vector is masked.
const ENTRY_MASKED: u32 = 1;

/// The MSI-X table of one function.
pub struct Msix {
    vectors: Vec<Arc<dyn MsiVector>>,
    state: Mutex<SavedMsix>,
}

/// The registers of an MSI-X table, as a snapshot keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedMsix {
    /// Message control of the capability; enable and function mask only.
    control: u16,
    /// Address low and high, data, vector control.
    entries: Vec<[u32; 4]>,
    pending: Vec<bool>,
}

impl Msix {
    /// A table of `count` vectors (at most 2048), all masked.
    pub fn new(controller: &dyn MsiController, count: u16) -> Result<Self> {
        let vectors = (0..count).map(|_| controller.vector()).collect::<Result<Vec<_>>>()?;
        Ok(Self { vectors, state: Mutex::new(SavedMsix::reset(count)) })
    }

    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        self.vectors.len() as u64 * ENTRY_SIZE
    }

    /// Body of the capability (what follows ID and next pointer), with table and pending bits at these
    /// offsets in BAR `bar`.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        body
    }

    /// The message control register was written.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.control = control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        for vector in 0..self.vectors.len() {
            self.apply(&mut state, vector);
        }
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let state = self.lock();
        let Some((entry, within)) = self.locate(offset, data.len()) else { return };
        let bytes: Vec<u8> =
            state.entries[entry].iter().flat_map(|word| word.to_le_bytes()).collect();
        data.copy_from_slice(&bytes[within..within + data.len()]);
    }

    /// Writes the table; only whole doublewords and quadwords count (section 6.8.2).
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let Some((entry, within)) = self.locate(offset, data.len()) else { return };
        if data.len() < 4 {
            return;
        }
        for (position, word) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let field = within / 4 + position;
            state.entries[entry][field] = if field == 3 { value & ENTRY_MASKED } else { value };
        }
        self.apply(&mut state, entry);
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (position, byte) in data.iter_mut().enumerate() {
            let first = offset.saturating_add(position as u64).saturating_mul(8);
            *byte = (0..8).fold(0, |bits, bit| {
                let index = usize::try_from(first.saturating_add(bit)).unwrap_or(usize::MAX);
                bits | u8::from(state.pending.get(index).copied().unwrap_or(false)) << bit
            });
        }
    }

    /// Raises `vector`, or remembers it while it is masked. Vectors that do not exist are ignored.
    pub fn signal(&self, vector: u16) {
        let index = usize::from(vector);
        let Some(target) = self.vectors.get(index) else { return };
        let mut state = self.lock();
        if state.control & CONTROL_ENABLE == 0 {
            return;
        }
        if state.masked(index) {
            state.pending[index] = true;
        } else {
            // Under the lock: a guest that masks the vector just now would otherwise lose the interrupt.
            target.signal();
        }
    }

    /// The eventfd of `vector`, for kernel devices.
    pub fn event(&self, vector: u16) -> Option<EventFd> {
        self.vectors.get(usize::from(vector))?.event()
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        let mut state = self.lock();
        *state = SavedMsix::reset(self.vectors.len() as u16);
        for vector in &self.vectors {
            vector.configure(None);
        }
    }

    /// The registers.
    pub fn save(&self) -> SavedMsix {
        self.lock().clone()
    }

    /// Takes saved registers over.
    pub fn restore(&self, saved: &SavedMsix) -> Result<()> {
        let count = self.vectors.len();
        if saved.entries.len() != count || saved.pending.len() != count {
            return Err(Error::InvalidState("the MSI-X table has another size"));
        }
        let mut state = self.lock();
        *state = saved.clone();
        state.control &= CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
        for vector in 0..count {
            self.apply(&mut state, vector);
        }
        Ok(())
    }

    /// Tells the vector what the registers now say, and delivers what waited for the unmasking.
    fn apply(&self, state: &mut SavedMsix, index: usize) {
        let open = state.control & CONTROL_ENABLE != 0 && !state.masked(index);
        let [low, high, data, _] = state.entries[index];
        let message = MsiMessage { address: u64::from(high) << 32 | u64::from(low), data };
        self.vectors[index].configure(open.then_some(message));
        if open && std::mem::take(&mut state.pending[index]) {
            self.vectors[index].signal();
        }
    }

    /// Entry number and offset in it, of an access that lies within one entry and is aligned.
    fn locate(&self, offset: u64, length: usize) -> Option<(usize, usize)> {
        let entry = usize::try_from(offset / ENTRY_SIZE).ok()?;
        let within = (offset % ENTRY_SIZE) as usize;
        let fits =
            within + length <= ENTRY_SIZE as usize && (length < 4 || within.is_multiple_of(4));
        (entry < self.vectors.len() && fits).then_some((entry, within))
    }

    fn lock(&self) -> MutexGuard<'_, SavedMsix> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SavedMsix {
    fn reset(count: u16) -> Self {
        let count = usize::from(count);
        Self {
            control: 0,
            entries: vec![[0, 0, 0, ENTRY_MASKED]; count],
            pending: vec![false; count],
        }
    }

    fn masked(&self, index: usize) -> bool {
        self.control & CONTROL_FUNCTION_MASK != 0 || self.entries[index][3] & ENTRY_MASKED != 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::pci::test_support::{Recorder, Recorders};

    fn table() -> (Msix, Arc<Recorder>) {
        let recorders = Recorders::default();
        let msix = Msix::new(&recorders, 2).unwrap();
        let second = Arc::clone(&recorders.0.lock().unwrap()[1]);
        (msix, second)
    }

    fn program(msix: &Msix) {
        msix.write_table(16, &0xfee0_1000_u64.to_le_bytes());
        msix.write_table(24, &0x41_u32.to_le_bytes());
        msix.set_control(CONTROL_ENABLE);
    }

    #[test]
    fn an_interrupt_on_a_masked_vector_comes_when_it_is_unmasked() {
        let (msix, vector) = table();
        program(&msix);
        msix.signal(1);
        assert_eq!(vector.signals.load(Ordering::SeqCst), 0);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 0b10);
        msix.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(vector.signals.load(Ordering::SeqCst), 1);
        assert_eq!(
            *vector.message.lock().unwrap(),
            Some(MsiMessage { address: 0xfee0_1000, data: 0x41 })
        );
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 0);
    }

    #[test]
    fn the_function_mask_holds_all_vectors_back() {
        let (msix, vector) = table();
        program(&msix);
        msix.write_table(28, &0_u32.to_le_bytes());
        msix.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        assert_eq!(*vector.message.lock().unwrap(), None);
        msix.signal(1);
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(vector.signals.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn registers_survive_a_round_trip() {
        let (msix, _) = table();
        program(&msix);
        msix.signal(1);
        let (other, vector) = table();
        other.restore(&msix.save()).unwrap();
        assert_eq!(other.save(), msix.save());
        other.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(vector.signals.load(Ordering::SeqCst), 1);
        assert!(other.restore(&SavedMsix::reset(3)).is_err());
    }

    #[test]
    fn accesses_outside_of_the_table_do_nothing() {
        let (msix, _) = table();
        for offset in [12, 30, 32, 33, u64::MAX - 3] {
            msix.write_table(offset, &[0xff; 8]);
            let mut data = [0xaa; 8];
            msix.read_table(offset, &mut data);
            msix.read_pending(offset, &mut data);
        }
        msix.signal(2);
        assert_eq!(msix.save(), SavedMsix::reset(2));
    }
}
