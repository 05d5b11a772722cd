//! `omnivisor export`: a VM's description in another form.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use spec::foreign::Form;

use crate::description;
use crate::disk::print;
use crate::failure::{FAILED, Failure};

/// Options of `omnivisor export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A VM's description of any platform, its folder, or a package
    #[arg(value_name = "VM")]
    pub path: PathBuf,

    /// The form: libvirt, ovf, xl, vmx or toml
    #[arg(long, value_name = "FORM")]
    pub to: Form,

    /// Which VM, where there are several
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,

    /// The deployment option of a package
    #[arg(long, value_name = "ID")]
    pub option: Option<String>,

    /// Take files that lie outside of the VM's folder
    #[arg(long)]
    pub allow_outside: bool,
}

/// Prints the description; what is lost is told on stderr.
pub fn run(args: &ExportArgs) -> Result<ExitCode, Failure> {
    let options = description::options(args.allow_outside, args.option.as_ref());
    let vms = description::read(&args.path, &options)?;
    let vms = vms.into_iter().map(|vm| vm.description).collect();
    let vm = description::choose(vms, args.vm.as_deref())?;
    let export =
        spec::foreign::export(&vm, args.to).map_err(|error| Failure::from_error(FAILED, error))?;
    for sentence in &export.lost {
        tell!("{sentence}");
    }
    print(&export.text)?;
    Ok(ExitCode::SUCCESS)
}
