//! Model-specific registers (AMD APM volume 2, appendix A).

use crate::cpu::{CR0_PG, Cpu, EFER_LMA, EFER_LME, FS, GS};

/// EFER bits that may be set: SCE, LME, LMA, NXE.
const EFER_ALLOWED: u64 = 0xd01;

impl Cpu {
    /// A model-specific register, if there is one.
    pub fn read_msr(&mut self, index: u32) -> Option<u64> {
        Some(match index {
            0x10 => self.tsc(),
            0x1b => self.shared.lock().base(),
            0x174..=0x176 => self.msrs.sysenter[index as usize - 0x174],
            0x277 => self.msrs.pat,
            0x2ff => self.msrs.mtrr_def_type,
            0x1a0 => self.msrs.misc_enable,
            0x6e0 => self.shared.lock().deadline(),
            0x800..=0x83f => {
                let apic = self.shared.lock();
                if !apic.x2apic() {
                    return None;
                }
                apic.read_msr(index, self.vm.now())?
            }
            0xc000_0080 => self.efer,
            0xc000_0081 => self.msrs.star,
            0xc000_0082 => self.msrs.lstar,
            0xc000_0083 => self.msrs.cstar,
            0xc000_0084 => self.msrs.fmask,
            0xc000_0100 => self.segments[FS].base,
            0xc000_0101 => self.segments[GS].base,
            0xc000_0102 => self.msrs.kernel_gs_base,
            0xc000_0103 => self.msrs.tsc_aux,
            crate::clock::WALL_CLOCK => self.msrs.wall_clock,
            crate::clock::SYSTEM_TIME => self.msrs.system_time,
            // Nothing to tell: platform ID, microcode, machine checks, MTRR capabilities, AMD's
            // hardware configuration, system configuration, interrupt pending, topology.
            0x8b | 0x17 | 0x179 | 0x17a | 0xfe | 0x1d9 | 0xc001_0010 | 0xc001_0015
            | 0xc001_001f | 0xc001_0055 | 0xc001_0140 | 0xc001_0141 | 0xc001_1029 => 0,
            _ => return None,
        })
    }

    /// Sets a model-specific register; `false` where there is none or the value cannot be.
    pub fn write_msr(&mut self, index: u32, value: u64) -> bool {
        let canonical = ((value << 16) as i64 >> 16) as u64 == value;
        match index {
            0x10 => self.tsc_offset = value.wrapping_sub(crate::host::host_tsc()),
            0x1b => {
                if !self.shared.lock().set_base(value) {
                    return false;
                }
                self.vm.base_changed(&self.shared);
                self.flush_tlb();
            }
            0x174..=0x176 => self.msrs.sysenter[index as usize - 0x174] = value,
            0x277 => self.msrs.pat = value,
            0x2ff => self.msrs.mtrr_def_type = value,
            0x1a0 => self.msrs.misc_enable = value,
            0x6e0 => self.set_deadline(value),
            0x800..=0x83f => return self.write_x2apic(index, value),
            0xc000_0080 => return self.write_efer(value),
            0xc000_0081 => self.msrs.star = value,
            0xc000_0082 if canonical => self.msrs.lstar = value,
            0xc000_0083 if canonical => self.msrs.cstar = value,
            0xc000_0084 => self.msrs.fmask = value & 0xffff_ffff,
            0xc000_0100 if canonical => {
                self.segments[FS].base = value;
                self.base[FS] = value;
            }
            0xc000_0101 if canonical => {
                self.segments[GS].base = value;
                self.base[GS] = value;
            }
            0xc000_0102 if canonical => self.msrs.kernel_gs_base = value,
            0xc000_0103 => self.msrs.tsc_aux = value,
            crate::clock::WALL_CLOCK => {
                self.msrs.wall_clock = value;
                crate::clock::write_wall_clock(self, value);
            }
            crate::clock::SYSTEM_TIME => {
                self.msrs.system_time = value;
                crate::clock::write_system_time(self);
            }
            0x8b | 0x79 | 0x17 | 0x17a | 0xfe | 0x1d9 | 0xc001_0010 | 0xc001_0015 | 0xc001_001f
            | 0xc001_0055 | 0xc001_1029 => {}
            _ => return false,
        }
        true
    }

    fn write_efer(&mut self, value: u64) -> bool {
        let paging = self.cr0 & CR0_PG != 0;
        if value & !EFER_ALLOWED != 0 || paging && (value ^ self.efer) & EFER_LME != 0 {
            return false;
        }
        self.efer = value & !EFER_LMA | self.efer & EFER_LMA;
        self.flush_tlb();
        true
    }
}
