//! `omnivisor export`: a VM's description in another form.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use spec::foreign::Form;

use crate::description;
use crate::disk::print;
use crate::failure::{FAILED, Failure};
use crate::package::PackageArgs;

/// Options of `omnivisor export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A VM's description of any platform, its folder, or a package
    #[arg(value_name = "VM")]
    pub path: PathBuf,

    /// The form: libvirt, ovf, xl, vmx or toml
    #[arg(long, value_name = "FORM")]
    pub to: Form,

    #[command(flatten)]
    pub package: PackageArgs,
}

/// Prints the description; what is lost is told on stderr.
pub fn run(args: &ExportArgs) -> Result<ExitCode, Failure> {
    let vms = description::read(&args.path, &args.package.read_options())?;
    let vms = vms.into_iter().map(|vm| vm.description).collect();
    let vm = description::choose(vms, args.package.vm.as_deref())?;
    let export =
        spec::foreign::export(&vm, args.to).map_err(|error| Failure::from_error(FAILED, error))?;
    for sentence in &export.lost {
        tell!("{sentence}");
    }
    print(&export.text)?;
    Ok(ExitCode::SUCCESS)
}
