//! Which VM of a file is meant, and as what a package of OVF is deployed.

use std::path::Path;

use clap::Args;
use spec::foreign::{Description, ReadOptions};
use spec::{Disk, VmSpec};

use crate::description;
use crate::failure::{Failure, USAGE};
use crate::run::seed;

/// Which VM, and what of it.
#[derive(Args, Clone, Debug, Default)]
pub struct PackageArgs {
    /// Which VM of a package with several
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,

    /// The deployment option of an OVF package
    #[arg(long, value_name = "ID")]
    pub option: Option<String>,

    /// Take files of a VM that lie outside of its folder
    #[arg(long)]
    pub allow_outside: bool,
}

impl PackageArgs {
    /// How a description is read.
    pub fn read_options(&self) -> ReadOptions {
        description::options(self.allow_outside, self.option.as_ref())
    }
}

/// As what a package is deployed.
#[derive(Args, Clone, Debug, Default)]
pub struct DeployArgs {
    #[command(flatten)]
    pub package: PackageArgs,

    /// A value for a property of an OVF package, as `inspect` lists them; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = property)]
    property: Vec<(String, String)>,
}

impl DeployArgs {
    /// Reads the one VM that is meant: as its platform has it, and as it is run here.
    pub fn read(&self, path: &Path) -> Result<(Description, VmSpec), Failure> {
        let vms = spec::foreign::read(path, &self.package.read_options())?;
        let vm = description::choose(vms, self.package.vm.as_deref())?;
        let mut spec = description::to_spec(&vm)?;
        spec.disks.extend(self.environment(&vm)?);
        Ok((vm, spec))
    }

    /// Refuses what only a description can have, where there is none.
    pub fn refuse_without_description(&self) -> Result<(), Failure> {
        let PackageArgs { vm, option, allow_outside: _ } = &self.package;
        let given = [
            ("--vm", vm.is_some()),
            ("--option", option.is_some()),
            ("--property", !self.property.is_empty()),
        ];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => Err(Failure::new(
                USAGE,
                format!("{name} is for a VM's description or package, and there is none here"),
            )),
            None => Ok(()),
        }
    }

    /// The disk that tells the guest the package's properties, if it looks for one or is to be told some. Properties that
    /// somebody should have given a value are told on standard error.
    fn environment(&self, vm: &Description) -> Result<Option<Disk>, Failure> {
        let values = &self.property;
        if !vm.wants_environment() && values.is_empty() {
            return Ok(None);
        }
        let image = vm.environment(values)?;
        let is_given = |key: &str| values.iter().any(|(given, _)| given == key);
        for one in vm.properties.iter().filter(|one| one.user_configurable && !is_given(&one.key)) {
            if one.value.as_deref().unwrap_or_default().is_empty() {
                let label =
                    one.label.as_ref().map(|label| format!(" ({label})")).unwrap_or_default();
                tell!(
                    "The property {}{label} has no value; --property {}=TEXT gives it one.",
                    one.key,
                    one.key
                );
            }
        }
        seed::keep("ovf-env", &image).map(Some)
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
