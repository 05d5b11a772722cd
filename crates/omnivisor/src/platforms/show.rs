//! `omnivisor show`: all that a platform knows of one VM, in the words of `inspect`.

use std::process::ExitCode;

use clap::Args;
use platform::VmName;
use serde_json::json;

use super::{ReachArgs, failed, list, plain, split};
use crate::description;
use crate::disk::{OutputFormat, print, print_json};
use crate::failure::Failure;

/// Options of `omnivisor show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The VM: its platform, and its name or what identifies it there
    #[arg(value_name = "[URI/]NAME")]
    vm: VmName,

    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,

    #[command(flatten)]
    reach: ReachArgs,
}

/// Prints what is known.
pub fn run(args: &ShowArgs) -> Result<ExitCode, Failure> {
    let (uri, name) = split(&args.vm);
    let found = args.reach.connect(&uri)?.show(name).map_err(failed)?;
    let vm = description::Vm::unopened(found.description);
    match args.format {
        OutputFormat::Json => {
            let mut value = description::json(std::slice::from_ref(&vm))["vms"][0].take();
            value["summary"] = list::with_uri(&uri, &found.summary);
            value["spec"] = json!(vm.description.to_spec().ok());
            print_json(&value)?;
        }
        OutputFormat::Table => {
            let summary = &found.summary;
            let mut text = format!("state     {}\n", summary.state);
            if !summary.addresses.is_empty() {
                text.push_str(&format!("address   {}\n", plain(&summary.addresses.join(", "))));
            }
            text.push_str(&description::page(&vm));
            print(&text)?;
        }
    }
    super::DONE
}
