//! The model-specific registers that say what firmware and processor allow.

use crate::cpuid::CpuidDump;

/// `IA32_FEATURE_CONTROL` (Intel SDM volume 4, table 2-2).
pub(crate) const FEATURE_CONTROL: u32 = 0x3a;
/// `IA32_VMX_PROCBASED_CTLS` and its second word (Intel SDM volume 3, appendix A.3).
pub(crate) const VMX_PROCBASED_CTLS: u32 = 0x482;
pub(crate) const VMX_PROCBASED_CTLS2: u32 = 0x48b;
/// `IA32_MKTME_KEYID_PARTITIONING`: keys in the upper half belong to TDX.
pub(crate) const MKTME_KEYID_PARTITIONING: u32 = 0x87;
/// `VM_CR` (AMD64 APM volume 2, 15.30.1).
pub(crate) const VM_CR: u32 = 0xc001_0114;

/// The registers worth reading on this processor; others would only fail.
pub(crate) fn wanted(cpuid: &CpuidDump) -> Vec<u32> {
    if cpuid.vmx() {
        vec![FEATURE_CONTROL, VMX_PROCBASED_CTLS, VMX_PROCBASED_CTLS2, MKTME_KEYID_PARTITIONING]
    } else if cpuid.svm() {
        vec![VM_CR]
    } else {
        Vec::new()
    }
}
