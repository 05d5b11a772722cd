//! `omnivisor list`: the VMs of several platforms at once.

use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Table, presets};
use platform::{Error, Uri, VmSummary};
use serde_json::{Value, json};

use super::{ReachArgs, failed, password, plain};
use crate::disk::{OutputFormat, human, print, print_json};
use crate::failure::{FAILED, Failure};

/// Options of `omnivisor list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Platforms, such as vbox:/// or qemu:///system or xen+ssh://root@host [default: our own VMs]
    #[arg(value_name = "URI")]
    uris: Vec<Uri>,

    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,

    #[command(flatten)]
    reach: ReachArgs,
}

/// One that has answered in time, or has not.
type Answer = Result<Vec<VmSummary>, Error>;

/// Lists them; what fails hides nothing of the others.
pub fn run(args: &ListArgs) -> Result<ExitCode, Failure> {
    let uris = match &args.uris[..] {
        [] => vec![platform::own::uri()],
        uris => uris.to_vec(),
    };
    let answers = ask_all(&uris, &args.reach);
    match args.format {
        OutputFormat::Json => print_json(&json(&uris, &answers))?,
        OutputFormat::Table if answers.iter().flatten().all(Vec::is_empty) => {
            if answers.iter().any(Result::is_ok) {
                tell!("There are no VMs.");
            }
        }
        OutputFormat::Table => print(&table(&uris, &answers))?,
    }
    let mut code = ExitCode::SUCCESS;
    for (uri, answer) in uris.iter().zip(answers) {
        if let Err(error) = answer {
            tell!("{uri}:");
            failed(error).report();
            code = ExitCode::from(FAILED);
        }
    }
    Ok(code)
}

/// Asks all at the same time; each has the same time.
fn ask_all(uris: &[Uri], reach: &ReachArgs) -> Vec<Answer> {
    let limit = Duration::from_secs(reach.timeout);
    let (sender, receiver) = channel();
    for (place, uri) in uris.iter().cloned().enumerate() {
        let (sender, options) = (sender.clone(), reach.options());
        thread::spawn(move || {
            let answer = platform::connect(&uri, &options).and_then(|platform| platform.list());
            // Nobody listens any more if it took too long.
            let _ = sender.send((place, answer));
        });
    }
    drop(sender);
    let late = |uri: &Uri| Err(Error::TimedOut { what: uri.to_string(), limit });
    let mut answers: Vec<Answer> = uris.iter().map(late).collect();
    // What breaks a limit itself has the better words for it.
    let limit = limit + Duration::from_millis(500);
    let (mut deadline, mut asked) = (Instant::now() + limit, 0);
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((place, answer)) => answers[place] = answer,
            // A platform has its time from when the last password was typed.
            Err(RecvTimeoutError::Timeout) if password::asked() > asked => {
                (deadline, asked) = (Instant::now() + limit, password::asked());
            }
            Err(_) => return answers,
        }
    }
}

fn json(uris: &[Uri], answers: &[Answer]) -> Value {
    let (mut vms, mut failures) = (Vec::new(), Vec::new());
    for (uri, answer) in uris.iter().zip(answers) {
        match answer {
            Ok(found) => vms.extend(found.iter().map(|vm| with_uri(uri, vm))),
            Err(error) => failures.push(json!({
                "uri": uri.to_string(),
                "error": machine::chain(error),
                "repair": error.repair(),
            })),
        }
    }
    json!({ "vms": vms, "failures": failures })
}

/// A VM with its platform.
pub(super) fn with_uri(uri: &Uri, vm: &VmSummary) -> Value {
    let mut value = json!(vm);
    value["uri"] = json!(uri.to_string());
    value
}

fn table(uris: &[Uri], answers: &[Answer]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADER);
    for (uri, answer) in uris.iter().zip(answers) {
        for vm in answer.iter().flatten() {
            table.add_row(row(uri, vm));
        }
    }
    lines(&table)
}

/// Titles of [`row`].
pub(super) const HEADER: [&str; 7] = ["NAME", "STATE", "CPUS", "MEMORY", "GUEST", "PLATFORM", "ID"];

/// One VM in a line.
pub(super) fn row(uri: &Uri, vm: &VmSummary) -> [String; 7] {
    let guest = match &vm.note {
        Some(note) => format!("({})", plain(note).chars().take(60).collect::<String>()),
        None if vm.addresses.is_empty() => vm.guest_os.clone().unwrap_or_default(),
        None => {
            format!("{} {}", vm.guest_os.as_deref().unwrap_or_default(), vm.addresses.join(" "))
        }
    };
    [
        plain(&vm.name),
        vm.state.to_string(),
        vm.cpus.map(|cpus| cpus.to_string()).unwrap_or_default(),
        vm.memory.map(human).unwrap_or_default(),
        plain(guest.trim()),
        uri.to_string(),
        plain(vm.id.as_deref().unwrap_or_default()),
    ]
}

/// A table without blanks around it.
pub(super) fn lines(table: &Table) -> String {
    let text = table.to_string();
    let line = |line: &str| format!("{}\n", line.strip_prefix(' ').unwrap_or(line).trim_end());
    text.lines().map(line).collect()
}
