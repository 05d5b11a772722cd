//! Boots a kernel on KVM with a serial console on stdout: `boot KERNEL [INITRD [CMDLINE]]`.

use machine::boot::BootPlan;
use machine::memory::MemoryConfig;
use machine::{Config, Machine};
use spec::{Smbios, Topology};

fn main() {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().expect("a kernel").into();
    let initrd = args.next().map(Into::into);
    let cmdline = args.next().unwrap_or_else(|| "console=ttyS0".into());
    let engine = engine_kvm::KvmEngine::new().expect("KVM");
    let config = Config {
        cpus: Topology::cores(std::env::var("CPUS").ok().and_then(|v| v.parse().ok()).unwrap_or(1)),
        memory: MemoryConfig { size: 128 << 20, hugepages: false, prealloc: false, shared: false },
        smbios: Smbios::default(),
        boot: BootPlan { kernel, kernel_is_immutable: false, initrd, cmdline },
        offered: None,
    };
    let machine = Machine::new(&engine, &config, |board| {
        board.plug_serial(Box::new(std::io::stdout()));
        Ok(())
    })
    .expect("a machine");
    eprintln!("{:?}", machine.run().expect("a run"));
}
