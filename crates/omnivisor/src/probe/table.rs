//! The report for people.

use comfy_table::{Cell, ContentArrangement, LineStyle, Table, TableStyle, presets};
use host::{
    Candidate, Confidence, Extension, FirmwareState, Layer, LoopResult, Presence, Repair, Report,
    Role, Usability,
};

/// The whole report as text with this many columns.
pub(super) fn render(report: &Report, width: u16, colour: bool) -> String {
    let mut text = String::new();
    for part in
        [facts(report, width), verdicts(report, width), repairs(report, width), choice(report)]
    {
        text.push_str(&part);
        text.push('\n');
    }
    if !report.root_would_add.is_empty() {
        text.push_str("As root it would also know\n");
        for hidden in &report.root_would_add {
            text.push_str(&format!("  {hidden}\n"));
        }
        text.push('\n');
    }
    let text = text.trim_end().lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n";
    if colour { paint(&text) } else { text }
}

/// Words that get a colour, after all widths are settled. Each is distinct enough not to occur in running text.
const COLOURS: [(&str, &str); 5] = [
    ("✔ usable", "32"),
    ("✘ not usable", "31"),
    ("- absent", "2"),
    ("To change it", "1"),
    ("`omnivisor run` would use", "1"),
];

fn paint(text: &str) -> String {
    COLOURS.iter().fold(text.to_owned(), |text, (word, code)| {
        text.replace(word, &format!("\x1b[{code}m{word}\x1b[0m"))
    })
}

fn table(width: u16, preset: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(preset).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table
}

/// What there is: processor, what is around us, KVM.
fn facts(report: &Report, width: u16) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let cpu = &report.cpu;
    rows.push(("Processor".into(), format!("{} ({})", cpu.model, cpu.vendor)));
    rows.push((String::new(), cpu.extensions.iter().map(extension).collect::<Vec<_>>().join(", ")));
    if let Some(firmware) = firmware(report) {
        rows.push(("Firmware".into(), firmware));
    }
    let mut title = "Inside of";
    for layer in &report.inside {
        rows.push((title.into(), self::layer(layer)));
        title = "";
    }
    if report.inside.is_empty() {
        rows.push((title.into(), "nothing: bare metal".into()));
    }
    rows.push(("KVM".into(), kvm(report)));
    let held: Vec<String> = report
        .holders
        .iter()
        .map(|holder| format!("{} ({})", holder.id, if holder.holds { "holds it" } else { "idle" }))
        .collect();
    if held.len() > 1 {
        rows.push(("Contenders".into(), held.join(", ")));
    }
    let mut table = table(width, presets::NOTHING);
    for (title, value) in rows {
        table.add_row([title, value]);
    }
    format!("{table}\n")
}

fn extension(extension: &Extension) -> String {
    let state = match extension.state {
        Presence::Present => "yes",
        Presence::Off => "off",
        Presence::Absent => "no",
        Presence::Unknown => "?",
    };
    format!("{}: {state}", extension.name)
}

fn firmware(report: &Report) -> Option<String> {
    let firmware = &report.cpu.firmware;
    let state = match firmware.state {
        FirmwareState::Enabled => "lets it be used",
        FirmwareState::LockedOff => "has locked it off",
        FirmwareState::Unknown => "unknown",
        FirmwareState::NotApplicable => return None,
    };
    let evidence = firmware.evidence.first();
    let because =
        evidence.map_or(String::new(), |said| format!(" ({}: {})", said.source, said.says));
    Some(format!("{state}{because}"))
}

fn layer(layer: &Layer) -> String {
    let monitor = layer.monitor.as_ref().map_or(String::new(), |monitor| format!(" by {monitor}"));
    let role = if layer.role == Role::BareMetal { ", bare metal" } else { "" };
    let confidence = match layer.confidence {
        Confidence::Certain => "certain",
        Confidence::Likely => "likely",
        Confidence::Possible => "possible",
    };
    let evidence: Vec<String> =
        layer.evidence.iter().map(|said| format!("{}: {}", said.source, said.says)).collect();
    let note = layer.note.as_ref().map_or(String::new(), |note| format!("\n  {note}"));
    format!("{}{monitor}{role}, {confidence} ({}){note}", layer.name, evidence.join("; "))
}

/// Parameters that decide what guests can do; JSON has all.
const TELLING: [&str; 8] = [
    ".nested",
    ".ept",
    ".unrestricted_guest",
    ".npt",
    ".avic",
    ".enable_apicv",
    ".enable_virt_at_load",
    ".pvm_native",
];

fn kvm(report: &Report) -> String {
    let kvm = &report.kvm;
    let mut parts = Vec::new();
    match &kvm.node {
        None => parts.push("no /dev/kvm".to_owned()),
        Some(node) => {
            parts.push(format!("/dev/kvm (group {}, mode {:04o})", node.group, node.mode))
        }
    }
    if let Some(module) = &kvm.module {
        let shown = |name: &&String| TELLING.iter().any(|telling| name.ends_with(telling));
        let parameters: Vec<String> = kvm
            .parameters
            .iter()
            .filter(|(name, _)| shown(name))
            .map(|(name, value)| format!("{}={value}", name.rsplit('.').next().unwrap_or(name)))
            .collect();
        parts.push(format!("{module} {}", parameters.join(" ")).trim_end().to_owned());
    }
    if let Some(proof) = &kvm.proof {
        if let Some(version) = proof.api_version {
            parts.push(format!("API {version}"));
        }
        parts.push(format!("ring 0 {}", loop_result(&proof.ring0)));
        parts.push(format!("ring 3 {}", loop_result(&proof.ring3)));
    }
    parts.join(", ")
}

fn loop_result(result: &LoopResult) -> String {
    let speed = |mips: f64| if mips < 100.0 { format!("{mips:.1}") } else { format!("{mips:.0}") };
    match result {
        LoopResult::Native { mips } => format!("native ({} M instructions/s)", speed(*mips)),
        LoopResult::Emulated { mips } => format!("emulated ({} M instructions/s)", speed(*mips)),
        LoopResult::Fails { reason, .. } => format!("fails ({reason})"),
    }
}

/// Usable or not, and why.
fn verdicts(report: &Report, width: u16) -> String {
    let line = LineStyle::none().fill('─').junction('─');
    let mut table = table(width, presets::NOTHING.header_separator(line));
    table.set_header(["Engine or platform", "Verdict", "Because"]);
    for list in [&report.engines, &report.platforms] {
        for candidate in list {
            let verdict = match candidate.state {
                Usability::Usable => "✔ usable",
                Usability::Unusable => "✘ not usable",
                Usability::Absent => "- absent",
            };
            table.add_row([
                Cell::new(&candidate.id),
                Cell::new(verdict),
                Cell::new(&candidate.reason),
            ]);
        }
    }
    format!("{table}\n")
}

/// The commands stand outside of the table, so that they can be copied whole.
fn repairs(report: &Report, width: u16) -> String {
    let broken: Vec<&Candidate> = report
        .engines
        .iter()
        .chain(&report.platforms)
        .filter(|candidate| candidate.state != Usability::Usable && !candidate.repair.is_empty())
        .collect();
    if broken.is_empty() {
        return String::new();
    }
    let mut text = "To change it\n".to_owned();
    for candidate in broken {
        for (index, repair) in candidate.repair.iter().enumerate() {
            let id = if index == 0 { candidate.id.as_str() } else { "" };
            text.push_str(&format!("  {id:<11} {}\n", self::repair(repair, width)));
        }
    }
    text
}

/// A command that would be broken by the edge of the terminal gets a line of its own.
fn repair(repair: &Repair, width: u16) -> String {
    let Some(command) = &repair.command else { return repair.explain.clone() };
    let length = 16 + repair.explain.chars().count() + command.chars().count();
    if !command.contains('\n') && length <= usize::from(width) {
        return format!("{}: {command}", repair.explain);
    }
    let command: Vec<String> = command.lines().map(|line| format!("\n{:18}{line}", "")).collect();
    format!("{}:{}", repair.explain, command.concat())
}

fn choice(report: &Report) -> String {
    match &report.choice.engine {
        Some(engine) => format!("`omnivisor run` would use {engine}: {}\n", report.choice.reason),
        None => format!("`omnivisor run` would use nothing: {}\n", report.choice.reason),
    }
}

#[cfg(test)]
mod tests {
    use host::{Caller, Facts, Measurement, Module, Node, ProofResult};

    use super::*;

    /// A computer whose user may not open `/dev/kvm`.
    fn refused() -> Report {
        let mut facts =
            Facts { caller: Caller { euid: 1000, ..Caller::default() }, ..Facts::default() };
        let node = Node { mode: 0o600, owner: 0, group: "root".into(), errno: Some(13) };
        facts.nodes.insert("/dev/kvm".into(), node);
        facts.modules.insert("kvm_intel".into(), Module::default());
        host::report(&facts, None)
    }

    fn usable() -> Report {
        let mut facts = Facts::default();
        facts.nodes.insert("/dev/kvm".into(), Node { mode: 0o666, ..Node::default() });
        let ring = || Ok(Measurement { instructions: 7_000_000, nanoseconds: 1_000_000 });
        host::report(&facts, Some(&ProofResult::judge(Some(12), ring(), ring())))
    }

    #[test]
    fn commands_are_never_broken_by_the_edge_of_the_terminal() {
        let report = refused();
        for width in [20, 40, 80, 200] {
            let text = render(&report, width, false);
            for repair in report.engines.iter().flat_map(|engine| &engine.repair) {
                for line in repair.command.iter().flat_map(|command| command.lines()) {
                    assert!(text.lines().any(|printed| printed.ends_with(line)), "{text}");
                }
            }
        }
    }

    #[test]
    fn colour_is_only_for_terminals() {
        assert!(!render(&refused(), 80, false).contains('\x1b'));
        let coloured = render(&refused(), 80, true);
        assert!(coloured.contains("\x1b[31m✘ not usable\x1b[0m"), "{coloured}");
    }

    #[test]
    fn the_verdict_the_proof_and_the_choice_are_on_the_page() {
        let text = render(&usable(), 100, false);
        for words in [
            "✔ usable",
            "API 12, ring 0 native (7000 M instructions/s)",
            "`omnivisor run` would use kvm",
            "nothing: bare metal",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        let text = render(&refused(), 100, false);
        assert!(text.contains("`omnivisor run` would use soft"), "{text}");
        assert!(text.contains("As root it would also know"), "{text}");
    }
}
