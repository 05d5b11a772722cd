//! What an import found and will do.

use std::path::Path;

use super::{ImportArgs, Preflight, registry};
use crate::disk::human;

impl Preflight {
    /// What was found and what is to be done, on one page.
    pub fn page(&self, args: &ImportArgs) -> String {
        let mut lines = Vec::new();
        let name = self.spec.name.as_deref().unwrap_or("(without a name)");
        let memory = human(self.spec.memory.size().0);
        let count = self.spec.cpus.count();
        let plural = if count == 1 { "" } else { "s" };
        let system = self.report.os.as_ref().and_then(|os| os.name.clone());
        lines.push(("VM", format!("{name}, {count} processor{plural}, {memory} of memory")));
        lines.push(("guest", system.unwrap_or_else(|| "nothing known".into())));
        for original in &self.originals {
            let Some(top) = original.chain.first() else { continue };
            let images = if original.chain.len() > 1 {
                format!(", {} images", original.chain.len())
            } else {
                String::new()
            };
            let what = if args.link { "an overlay over" } else { "made of" };
            lines.push((
                "disk",
                format!(
                    "{}: {what} {} ({}{images}, {}, {} of data)",
                    original.name,
                    top.path.display(),
                    top.format,
                    human(top.length),
                    human(original.data)
                ),
            ));
        }
        lines.extend(self.room(args).map(|text| ("room", text)));
        lines.extend(self.changes.sentences.iter().map(|text| ("change", text.clone())));
        lines.extend(registry::sentences(&self.registry).into_iter().map(|text| ("change", text)));
        if self.changes.is_empty() && self.boot.is_ok() {
            lines.push(("change", "nothing in the guest".into()));
        }
        lines.extend(self.notes.iter().map(|text| ("differs", text.clone())));
        lines.push(match &self.boot {
            Ok(()) if args.no_verify => ("then", "it is not started".into()),
            Ok(()) => ("then", "it is started, until it asks for a login".into()),
            Err(why) => ("then", format!("it is not started: {why}")),
        });
        let mut last = "";
        let mut page = String::new();
        for (about, text) in lines {
            let shown = if about == last { "" } else { about };
            last = about;
            page.push_str(&format!("{shown:<9} {}\n", text.replace(char::is_control, " ")));
        }
        page
    }

    /// How much room the new disks may take, if there is less: stored zeroes take none in them.
    fn room(&self, args: &ImportArgs) -> Option<String> {
        let folder = args.target.ancestors().find(|folder| folder.is_dir());
        let folder = folder.unwrap_or(Path::new("."));
        let stat = rustix::fs::statvfs(folder).ok()?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let data: u64 = self.originals.iter().map(|original| original.data).sum();
        (!args.link && data > free).then(|| {
            format!(
                "up to {} are needed, {} are free in {}",
                human(data),
                human(free),
                folder.display()
            )
        })
    }
}
