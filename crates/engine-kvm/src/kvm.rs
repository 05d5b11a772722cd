//! Opening KVM, and what it offers.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use engine::cpuid::CpuidTable;
use engine::{Capabilities, Engine, Error, Result, Vm, VmConfig};
use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vmm_sys_util::errno;

use crate::vm::KvmVm;
use crate::{convert, sys};

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no device node.
    #[error("There is no {}", path.display())]
    Missing {
        /// The node.
        path: PathBuf,
    },
    /// The node is there, but no driver behind it: the module is not loaded.
    #[error("Nothing answers behind {}: no KVM module is loaded", path.display())]
    NotLoaded {
        /// The node.
        path: PathBuf,
    },
    /// This user may not open the node.
    #[error("This user may not open {} for reading and writing", path.display())]
    Permission {
        /// The node.
        path: PathBuf,
    },
    /// The node cannot be opened for another reason.
    #[error("Cannot open {}", path.display())]
    Open {
        /// The node.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// What was opened is not the KVM that this program knows.
    #[error("{} speaks version {version} of the KVM interface, not {KVM_API_VERSION}", path.display())]
    ApiVersion {
        /// The node.
        path: PathBuf,
        /// What it answered; -1 if it is not KVM at all.
        version: i32,
    },
    /// The kernel is too old or was built without it.
    #[error("KVM on this computer lacks {name}")]
    Capability {
        /// The constant in the kernel's interface, as KVM_CAP_...
        name: &'static str,
    },
    /// KVM answers, but cannot make a virtual machine: the processor's virtualization is locked by
    /// firmware, or another hypervisor holds it (then with EBUSY).
    #[error("KVM cannot create a virtual machine")]
    CreateVm {
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// KVM does not answer what every KVM answers.
    #[error("KVM does not tell its {what}")]
    Query {
        /// The question.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// KVM of this computer.
pub struct KvmEngine {
    kvm: Kvm,
    capabilities: Capabilities,
    /// Made when KVM was opened, to see that it can be and to ask it the TSC's frequency; it becomes the
    /// first virtual machine, because making and destroying one takes milliseconds.
    spare: Mutex<Option<VmFd>>,
}

/// What the engine builds on. Everything here is older than Linux 5.10.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API"),
];

impl KvmEngine {
    /// Opens `/dev/kvm`.
    pub fn new() -> std::result::Result<Self, OpenError> {
        Self::open(Path::new("/dev/kvm"))
    }

    /// Opens the KVM behind the device node `path`.
    pub fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        let kvm = open_node(path)?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(OpenError::ApiVersion { path: path.into(), version });
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(*capability) {
                return Err(OpenError::Capability { name });
            }
        }
        let spare =
            create_vm(&kvm).map_err(|error| OpenError::CreateVm { source: error.into() })?;
        let capabilities = capabilities(&kvm, &spare)?;
        Ok(Self { kvm, capabilities, spare: Mutex::new(Some(spare)) })
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>> {
        if config.vcpus == 0 || config.vcpus > self.capabilities.max_vcpus {
            return Err(Error::Invalid(format!(
                "A virtual machine has 1 to {} processors here, not {}",
                self.capabilities.max_vcpus, config.vcpus
            )));
        }
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let fd = match spare {
            Some(fd) => fd,
            None => create_vm(&self.kvm).map_err(Error::backend("create a virtual machine"))?,
        };
        let vm = KvmVm::new(&self.kvm, fd, config.vcpus, self.capabilities.msrs.clone())?;
        Ok(Arc::new(vm))
    }
}

fn open_node(path: &Path) -> std::result::Result<Kvm, OpenError> {
    let path_buf = || path.to_path_buf();
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| OpenError::Open { path: path_buf(), source: error.into() })?;
    Kvm::new_with_path(c_path).map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENOTDIR => OpenError::Missing { path: path_buf() },
        libc::ENODEV | libc::ENXIO => OpenError::NotLoaded { path: path_buf() },
        libc::EACCES | libc::EPERM => OpenError::Permission { path: path_buf() },
        _ => OpenError::Open { path: path_buf(), source: error.into() },
    })
}

/// Creates a virtual machine. The kernel starts a worker thread for it, which a signal that happens to
/// arrive makes fail with EINTR.
fn create_vm(kvm: &Kvm) -> std::result::Result<VmFd, errno::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

fn capabilities(kvm: &Kvm, vm: &VmFd) -> std::result::Result<Capabilities, OpenError> {
    let query = |what| move |error: errno::Error| OpenError::Query { what, source: error.into() };
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(query("CPUID table"))?;
    let mut cpuid = convert::cpuid_from_kvm(cpuid.as_slice());
    offer_tsc_deadline(kvm, &mut cpuid);
    let listed = kvm.get_msr_index_list().map_err(query("list of model-specific registers"))?;
    let physical_address_bits = cpuid.get(0x8000_0008, 0).map_or(36, |leaf| leaf.eax as u8);
    Ok(Capabilities {
        msrs: convert::portable_msrs(listed.as_slice()),
        max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(1).max(1),
        physical_address_bits,
        tsc_khz: tsc_khz(kvm, vm),
        cpuid,
    })
}

/// KVM_GET_SUPPORTED_CPUID leaves this bit out, because it needs the in-kernel APIC (documented there).
fn offer_tsc_deadline(kvm: &Kvm, cpuid: &mut CpuidTable) {
    const TSC_DEADLINE: u32 = 1 << 24;
    if kvm.check_extension(Cap::TscDeadlineTimer)
        && let Some(leaf) = cpuid.get_mut(1, 0)
    {
        leaf.ecx |= TSC_DEADLINE;
    }
}

/// The frequency that virtual processors will have. Before Linux 5.16 only a processor could be asked. After that the
/// virtual machine answers even where KVM_CAP_VM_TSC_CONTROL is absent because the frequency cannot be changed; one made
/// to be asked would take tens of milliseconds to go away.
fn tsc_khz(kvm: &Kvm, vm: &VmFd) -> Option<u32> {
    let ask_processor = || create_vm(kvm)?.create_vcpu(0)?.get_tsc_khz();
    sys::vm_tsc_khz(vm).or_else(|_| ask_processor()).ok().filter(|&khz| khz != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_node_is_told_from_one_that_is_not_kvm() {
        let missing = KvmEngine::open(Path::new("/dev/no-such-node")).err().unwrap();
        assert!(matches!(missing, OpenError::Missing { .. }), "{missing:?}");
        let other = KvmEngine::open(Path::new("/dev/null")).err().unwrap();
        assert!(matches!(other, OpenError::ApiVersion { version: -1, .. }), "{other:?}");
    }

    #[test]
    fn a_path_with_a_zero_byte_is_refused() {
        let error = KvmEngine::open(Path::new("/dev/\0kvm")).err().unwrap();
        assert!(matches!(error, OpenError::Open { .. }), "{error:?}");
    }
}
