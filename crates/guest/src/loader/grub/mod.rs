//! GRUB 2: its configuration is a script, which is executed as far as it makes menu entries and boots them.

mod command;
mod entries;
mod script;

use std::collections::HashMap;
use std::rc::Rc;

use self::entries::Item;
use self::script::{Block, Piece, Statement, Word};
use super::{Device, FileRef, Menu};

/// Largest script.
const MAX_SCRIPT: u64 = 4 << 20;
/// Most statements that are executed, all entries together.
const MAX_STEPS: u32 = 500_000;
/// So much of a file is read and parsed in the time of a statement.
const BYTES_A_STEP: usize = 16;
/// Deepest nesting of functions and files.
const MAX_DEPTH: u32 = 32;
/// Longest value of a variable.
const MAX_VALUE: usize = 64 << 10;
/// Most bytes of all variables, names and values.
const MAX_HELD: usize = 1 << 20;
/// Most sentences about what is not understood.
const MAX_NOTES: usize = 100;
/// Deepest nesting of menus.
const MAX_MENUS: usize = 8;
/// Most entries of all menus.
const MAX_ENTRIES: usize = 1000;

/// Where the configuration lies in the file systems of different distributions.
const CONFIGURATIONS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// The subvolumes of btrfs that distributions put their root into; GRUB sees them as folders.
const SUBVOLUMES: [&str; 4] = ["", "/@", "/@rootfs", "/root"];

/// openSUSE's GRUB takes paths from the default subvolume on where this variable is set, since snapshots of the
/// root have kernels and configuration in them.
const RELATIVE: &str = "btrfs_relative_path";

/// The menu of the GRUB on these devices; `None` if there is none.
pub fn menu(devices: &[Device], is_efi: bool) -> Option<Menu> {
    let (device, path, is_relative) = configuration(devices)?;
    Some(run(devices, device, &path, is_efi, is_relative))
}

/// What a configuration that is on a device makes.
fn run(devices: &[Device], device: usize, path: &str, is_efi: bool, is_relative: bool) -> Menu {
    let mut machine = Machine::new(devices, device, path, is_efi);
    if is_relative {
        machine.set(RELATIVE, "y".into());
    }
    let file = FileRef::new(device, machine.place(device, path));
    machine.source(&file);
    let mut menu = Menu { loader: "GRUB 2", configuration: Some(file), ..Menu::default() };
    let items = std::mem::take(&mut machine.items);
    let default = machine.variables.get("default").cloned().unwrap_or_default();
    let mut chosen = None;
    machine.list(&items, &[], Some(&default), &mut menu, &mut chosen);
    menu.default = chosen;
    menu.notes.append(&mut machine.notes);
    menu
}

/// A configuration in a default subvolume that takes paths from there on.
fn relative(device: &Device) -> Option<&'static str> {
    let folder = device.tree.default_folder();
    if folder == "/" {
        return None;
    }
    let is_it = |path: &&str| {
        let text = device.tree.read_text(&format!("{folder}{path}"), MAX_SCRIPT);
        text.is_ok_and(|text| text.contains(RELATIVE))
    };
    CONFIGURATIONS.into_iter().find(is_it)
}

/// On the disk that is started from first; an EFI system partition's own file only leads to the real one.
/// The last value says whether its paths begin at the default subvolume.
fn configuration(devices: &[Device]) -> Option<(usize, String, bool)> {
    for (index, device) in devices.iter().enumerate() {
        if let Some(path) = relative(device) {
            return Some((index, path.to_owned(), true));
        }
        for subvolume in SUBVOLUMES {
            let paths = CONFIGURATIONS.iter().map(|path| format!("{subvolume}{path}"));
            if let Some(path) = paths.into_iter().find(|path| device.tree.is_file(path)) {
                return Some((index, path, false));
            }
        }
    }
    for (index, device) in devices.iter().enumerate().filter(|(_, device)| device.is_esp) {
        for vendor in device.tree.names("/EFI") {
            let path = format!("/EFI/{vendor}/grub.cfg");
            if device.tree.is_file(&path) {
                return Some((index, path, false));
            }
        }
    }
    None
}

/// What an entry has said so far.
#[derive(Clone, Default)]
struct Collected {
    kernel: Option<FileRef>,
    initrds: Vec<FileRef>,
    cmdline: String,
    note: Option<String>,
}

/// GRUB while it executes.
#[derive(Clone)]
struct Machine<'a> {
    devices: &'a [Device],
    variables: HashMap<String, String>,
    /// Their bytes.
    held: usize,
    functions: HashMap<String, Block>,
    arguments: Vec<String>,
    items: Vec<Item>,
    collected: Collected,
    notes: Vec<String>,
    steps: u32,
    depth: u32,
    /// A `return`, `break` or the end of the steps is under way.
    leaving: Option<Leave>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    Break,
    Continue,
    Return,
    Stop,
}

impl<'a> Machine<'a> {
    fn new(devices: &'a [Device], device: usize, path: &str, is_efi: bool) -> Self {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let name = devices.get(device).map_or("", |device| device.name.as_str());
        let at = format!("({name}){folder}");
        let mut variables: HashMap<String, String> = [
            ("root", name),
            ("prefix", &at),
            ("config_directory", &at),
            ("config_file", &format!("({name}){path}")),
            ("grub_platform", if is_efi { "efi" } else { "pc" }),
            ("grub_cpu", if is_efi { "x86_64" } else { "i386" }),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        for feature in [
            "chainloader_bpb",
            "ntldr",
            "platform_search_hint",
            "default_font_path",
            "all_video_module",
            "menuentry_id",
            "menuentry_options",
            "nativedisk_cmd",
            "timeout_style",
            "200_final",
        ] {
            variables.insert(format!("feature_{feature}"), "y".into());
        }
        Self {
            devices,
            held: variables.iter().map(|(name, value)| name.len() + value.len()).sum(),
            variables,
            functions: HashMap::new(),
            arguments: Vec::new(),
            items: Vec::new(),
            collected: Collected::default(),
            notes: Vec::new(),
            steps: MAX_STEPS,
            depth: 0,
            leaving: None,
        }
    }

    /// Executes the script in a file; whether that exists.
    fn source(&mut self, file: &FileRef) -> bool {
        let Some(text) = self.read(file, MAX_SCRIPT) else { return false };
        let (block, failed) = script::parse(&text);
        if let Some(line) = failed {
            self.note(format!("{} cannot be understood from line {line} on", file.path));
        }
        self.nested(|machine| machine.execute(&block))
    }

    fn read(&mut self, file: &FileRef, limit: u64) -> Option<String> {
        let text = self.devices.get(file.device)?.tree.read_text(&file.path, limit).ok()?;
        self.charge(text.len() / BYTES_A_STEP);
        Some(text)
    }

    /// What takes longer than a statement counts as several.
    fn charge(&mut self, steps: usize) {
        self.steps = self.steps.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX));
    }

    /// One level deeper, where a `return` ends.
    fn nested(&mut self, action: impl FnOnce(&mut Self) -> bool) -> bool {
        if self.depth == MAX_DEPTH {
            return false;
        }
        self.depth += 1;
        let result = action(self);
        self.depth -= 1;
        if self.leaving == Some(Leave::Return) {
            self.leaving = None;
        }
        result
    }

    /// Executes statements; the last one's success.
    fn execute(&mut self, block: &[Statement]) -> bool {
        let mut result = true;
        for statement in block {
            if self.leaving.is_some() {
                break;
            }
            match self.steps.checked_sub(1) {
                Some(left) => self.steps = left,
                None => {
                    self.note("the boot loader's script does not end".into());
                    self.leaving = Some(Leave::Stop);
                    return false;
                }
            }
            result = self.statement(statement);
        }
        result
    }

    fn statement(&mut self, statement: &Statement) -> bool {
        match statement {
            Statement::Command { words, block } => self.command(words, block.as_ref()),
            Statement::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.execute(condition) {
                        return self.execute(body);
                    }
                }
                otherwise.as_ref().is_none_or(|body| self.execute(body))
            }
            Statement::While { condition, wanted, body } => {
                while self.leaving.is_none() && self.execute(condition) == *wanted {
                    self.execute(body);
                    // An empty loop executes nothing that would be counted.
                    self.steps = self.steps.saturating_sub(1);
                    if !self.goes_on() || self.steps == 0 {
                        break;
                    }
                }
                true
            }
            Statement::For { name, words, body } => {
                let words = self.expand(words);
                self.charge(words.iter().map(String::len).sum::<usize>() / BYTES_A_STEP);
                for value in words {
                    self.set(name, value);
                    self.execute(body);
                    if !self.goes_on() {
                        break;
                    }
                }
                true
            }
            Statement::Function { name, body } => {
                self.functions.insert(name.clone(), Rc::clone(body));
                true
            }
        }
    }

    /// A loop has another turn.
    fn goes_on(&mut self) -> bool {
        match self.leaving {
            Some(Leave::Continue) => self.leaving = None,
            Some(Leave::Break) => {
                self.leaving = None;
                return false;
            }
            Some(_) => return false,
            None => {}
        }
        true
    }

    fn set(&mut self, name: &str, mut value: String) {
        let before = self.variables.get(name).map_or(0, |value| name.len() + value.len());
        let others = self.held.saturating_sub(before);
        if value.len() > MAX_VALUE || others + name.len() + value.len() > MAX_HELD {
            value.clear();
        }
        if others + name.len() <= MAX_HELD {
            self.held = others + name.len() + value.len();
            self.variables.insert(name.to_owned(), value);
        }
    }

    fn unset(&mut self, name: &str) {
        if let Some(value) = self.variables.remove(name) {
            self.held = self.held.saturating_sub(name.len() + value.len());
        }
    }

    /// As it is now, for an entry that is executed for itself.
    fn copy(&mut self) -> Self {
        self.charge(self.held / BYTES_A_STEP);
        let mut copy = self.clone();
        copy.items.clear();
        copy.collected = Collected::default();
        copy
    }

    fn note(&mut self, text: String) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(text);
        }
    }

    fn value(&self, name: &str) -> String {
        match name {
            "#" => self.arguments.len().to_string(),
            "@" | "*" => self.arguments.join(" "),
            "?" => "0".into(),
            name => match name.parse::<usize>() {
                Ok(index) => self.arguments.get(index.wrapping_sub(1)).cloned(),
                Err(_) => self.variables.get(name).cloned(),
            }
            .unwrap_or_default(),
        }
    }

    /// Replaces variables and splits what was not quoted.
    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut done = Vec::new();
        let mut total = 0;
        for word in words {
            let mut current: Option<String> = None;
            for piece in word {
                let (value, quoted, is_variable) = match piece {
                    Piece::Text { text, quoted } => (text.clone(), *quoted, false),
                    Piece::Variable { name, quoted } => (self.value(name), *quoted, true),
                };
                total += value.len();
                if total > MAX_VALUE {
                    return done;
                }
                if quoted || !is_variable {
                    current.get_or_insert_default().push_str(&value);
                    continue;
                }
                // Each blank ends a word.
                let mut parts = value.split([' ', '\t', '\n']);
                if let Some(first) = parts.next().filter(|first| !first.is_empty()) {
                    current.get_or_insert_default().push_str(first);
                }
                for part in parts {
                    done.extend(current.take());
                    if !part.is_empty() {
                        current = Some(part.to_owned());
                    }
                }
            }
            done.extend(current);
        }
        done
    }
}

/// What a grubenv holds: lines of `name=value`, filled up with `#`.
fn environment(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='))
}

#[cfg(test)]
mod tests;
