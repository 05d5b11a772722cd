//! What is in a VM's disks, for `inspect`.

use guest::{DiskReport, Report, VolumeReport};

use crate::disk::human;

/// Lines of a page: what each is about, and its text.
pub fn lines(report: &Report) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for disk in &report.disks {
        let notes = disk.notes.iter().map(|note| ("note", note.clone()));
        lines.extend(notes);
    }
    lines.extend(report.volumes.iter().map(|volume| ("volume", volume_line(volume, report))));
    if let Some(os) = &report.os {
        let build = os.build.as_ref().map(|build| format!("build {build}"));
        let words =
            [os.name.clone(), build, os.architecture.map(str::to_owned), os.hostname.clone()];
        lines.push(("system", words.into_iter().flatten().collect::<Vec<_>>().join(", ")));
        let more = [("kernels", os.kernels.join(", ")), ("tools", os.tools.join(", "))];
        lines.extend(more.into_iter().filter(|(_, text)| !text.is_empty()));
        if !os.interfaces.is_empty() {
            let names: Vec<_> = os.interfaces.iter().cloned().collect();
            lines.push(("cards", names.join(", ")));
        }
    }
    if let Some(menu) = &report.boot {
        lines.push(("loader", menu.loader.to_owned()));
        for (entry, index) in menu.entries.iter().zip(0..) {
            let mark = if menu.default == Some(index) { " (default)" } else { "" };
            lines.push(("entry", format!("{}{mark}", entry.title)));
        }
        lines.extend(menu.notes.iter().map(|note| ("note", note.clone())));
    }
    lines
}

fn volume_line(volume: &VolumeReport, report: &Report) -> String {
    let is_root = report.root.as_deref() == Some(&volume.name);
    let words = [
        Some(human(volume.length)),
        volume.content.clone(),
        volume.label.clone().or_else(|| volume.part_label.clone()),
        is_root.then(|| "the root".to_owned()),
    ];
    let words = words.into_iter().flatten().chain(volume.notes.iter().cloned());
    format!("{}: {}", volume.name, words.collect::<Vec<_>>().join(", "))
}

/// There is something to tell.
pub fn is_worth_telling(report: &Report) -> bool {
    let has_table = |disk: &DiskReport| disk.table.is_some();
    report.disks.iter().any(has_table)
        || report.volumes.iter().any(|volume| volume.content.is_some())
}
