//! GRUB's commands, as far as they matter for what is booted.

use std::rc::Rc;

use super::entries::{Action, Item};
use super::script::{Block, Word};
use super::{BYTES_A_STEP, Leave, MAX_ENTRIES, Machine, RELATIVE, environment};
use crate::fs::Kind;
use crate::loader::{Device, FileRef, bls};

/// Largest environment block.
const MAX_ENVIRONMENT: u64 = 64 << 10;

impl Machine<'_> {
    /// Executes one command; its success.
    pub(super) fn command(&mut self, words: &[Word], block: Option<&Block>) -> bool {
        let words = self.expand(words);
        self.charge(words.iter().map(String::len).sum::<usize>() / BYTES_A_STEP);
        let Some((name, arguments)) = words.split_first() else {
            return block.is_none_or(|block| self.execute(block));
        };
        if name == "!" {
            return !self.named(arguments, block);
        }
        self.named(&words, block)
    }

    fn named(&mut self, words: &[String], block: Option<&Block>) -> bool {
        let Some((name, arguments)) = words.split_first() else { return true };
        if let Some(function) = self.functions.get(name).cloned() {
            let before = std::mem::replace(&mut self.arguments, arguments.to_vec());
            let result = self.nested(|machine| machine.execute(&function));
            self.arguments = before;
            return result;
        }
        if let Some((name, value)) = name.split_once('=')
            && arguments.is_empty()
        {
            self.set(name, value.to_owned());
            return true;
        }
        match name.as_str() {
            "set" => {
                for (name, value) in arguments.iter().filter_map(|word| word.split_once('=')) {
                    self.set(name, value.to_owned());
                }
            }
            "unset" => arguments.iter().for_each(|name| self.unset(name)),
            "false" | "loadfont" | "keystatus" | "regexp" | "background_image" | "sleep" => {
                return name == "sleep";
            }
            "test" => return self.test(arguments),
            "[" => {
                let end = arguments.len().saturating_sub(1);
                return self.test(&arguments[..end]);
            }
            "menuentry" | "submenu" => self.menu_entry(name == "submenu", arguments, block),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return self.search(name, arguments);
            }
            "load_env" => self.load_env(arguments),
            "source" | "." | "configfile" | "normal" => {
                let Some(path) = arguments.first() else { return true };
                let Some(file) = self.file(path) else { return false };
                if matches!(name.as_str(), "configfile" | "normal") {
                    // The new configuration's menu stands instead of this one.
                    self.items.clear();
                    let found = self.source(&file);
                    self.leaving = Some(Leave::Stop);
                    return found;
                }
                return self.source(&file);
            }
            "blscfg" => self.boot_loader_specification(),
            "linux" | "linux16" | "linuxefi" | "kernel" => {
                let Some((path, words)) = arguments.split_first() else { return false };
                self.collected.kernel = self.file(path);
                self.collected.cmdline = words.join(" ");
                return self.collected.kernel.is_some();
            }
            "initrd" | "initrd16" | "initrdefi" => {
                let paths = arguments.iter().filter(|word| !word.starts_with("--"));
                let files: Vec<FileRef> = paths.filter_map(|path| self.file(path)).collect();
                self.collected.initrds = files;
            }
            "chainloader" | "multiboot" | "multiboot2" | "xen_hypervisor" | "ntldr" | "fwsetup"
            | "halt" | "reboot" | "exit" => {
                let note = format!("it is started by {}", words.join(" "));
                self.collected.note.get_or_insert(note);
            }
            "break" => self.leaving = Some(Leave::Break),
            "continue" => self.leaving = Some(Leave::Continue),
            "return" => {
                self.leaving = Some(Leave::Return);
                return arguments.first().is_none_or(|code| code == "0");
            }
            "shift" if !self.arguments.is_empty() => drop(self.arguments.remove(0)),
            "probe" => return self.probe(arguments),
            // insmod, export, terminal_output, echo, save_env, and whatever else changes nothing here.
            _ => {}
        }
        true
    }

    fn menu_entry(&mut self, is_submenu: bool, arguments: &[String], block: Option<&Block>) {
        let mut words = arguments.iter();
        let (mut title, mut id, mut others) = (None, None, Vec::new());
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                "--unrestricted" => {}
                word => match word.strip_prefix("--id=") {
                    Some(value) => id = Some(value.to_owned()),
                    None if word.starts_with("--") => {}
                    None if title.is_none() => title = Some(word.to_owned()),
                    None => others.push(word.to_owned()),
                },
            }
        }
        let Some(block) = block.filter(|_| self.items.len() < MAX_ENTRIES) else { return };
        let block = Rc::clone(block);
        let action = if is_submenu { Action::Submenu(block) } else { Action::Entry(block) };
        self.items.push(Item { title: title.unwrap_or_default(), id, arguments: others, action });
    }

    fn search(&mut self, name: &str, arguments: &[String]) -> bool {
        let mut by = name.strip_prefix("search.").unwrap_or("file");
        let mut variable = None;
        let mut wanted = None;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fs-uuid" | "-u" => by = "fs_uuid",
                "--label" | "--fs-label" | "-l" => by = "fs_label",
                "--file" | "-f" => by = "file",
                "--set" => variable = Some("root".to_owned()),
                "-s" => variable = words.next().cloned(),
                "--hint" | "-h" => drop(words.next()),
                word => match word.strip_prefix("--set=") {
                    Some(name) => variable = Some(name.to_owned()),
                    None if word.starts_with('-') => {}
                    None if wanted.is_none() => wanted = Some(word.to_owned()),
                    // The older commands name the variable at the end.
                    None => variable = Some(word.to_owned()),
                },
            }
        }
        let Some(wanted) = wanted else { return false };
        self.charge(self.devices.len());
        let is_it = |(index, device): &(usize, &Device)| match by {
            "fs_uuid" => {
                device.uuid.as_deref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(&wanted))
            }
            "fs_label" => device.label.as_deref() == Some(&wanted),
            _ => device.tree.is_file(&self.place(*index, &wanted)),
        };
        let Some((_, device)) = self.devices.iter().enumerate().find(is_it) else { return false };
        let name = device.name.clone();
        self.set(&variable.unwrap_or_else(|| "root".into()), name);
        true
    }

    fn load_env(&mut self, arguments: &[String]) {
        let mut path = format!("{}/grubenv", self.value("prefix"));
        let mut names: Vec<&String> = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => path = words.next().cloned().unwrap_or_default(),
                "-s" | "--skip-sig" => {}
                word if word.starts_with("--file=") => path = word["--file=".len()..].to_owned(),
                _ => names.push(word),
            }
        }
        let text = self.file(&path).and_then(|file| self.read(&file, MAX_ENVIRONMENT));
        for (name, value) in environment(&text.unwrap_or_default()) {
            if names.is_empty() || names.iter().any(|wanted| *wanted == name) {
                self.set(name, value.to_owned());
            }
        }
    }

    /// `probe --set=NAME --fs-uuid DEVICE` and its like.
    fn probe(&mut self, arguments: &[String]) -> bool {
        let has =
            |long: &str, short: &str| arguments.iter().any(|word| word == long || word == short);
        let name = arguments.iter().enumerate().find_map(|(index, word)| match word.as_str() {
            "--set" | "-s" => arguments.get(index + 1).cloned(),
            word => word.strip_prefix("--set=").map(str::to_owned),
        });
        let device = arguments.last().and_then(|word| self.device(word.trim_matches(['(', ')'])));
        let (Some(name), Some(device)) = (name, device.and_then(|index| self.devices.get(index)))
        else {
            return false;
        };
        let value = if has("--fs-uuid", "-u") {
            device.uuid.clone()
        } else if has("--label", "-l") {
            device.label.clone()
        } else if has("--part-uuid", "--part-uuid") {
            device.part_uuid.clone()
        } else {
            None
        };
        let Some(value) = value else { return false };
        self.set(&name, value);
        true
    }

    fn boot_loader_specification(&mut self) {
        let folder = self.variables.get("blsdir").cloned();
        let Some(root) = self.device(&self.value("root")) else { return };
        let folders = folder.map_or_else(
            || vec!["/boot/loader/entries".into(), "/loader/entries".into()],
            |folder| vec![folder],
        );
        // A separate file system for /boot is what `boot` names where a configuration on the ESP has set it.
        let boot = self.device(&self.value("boot")).filter(|_| self.variables.contains_key("boot"));
        for device in boot.into_iter().chain([root]) {
            let Some(found) = self.devices.get(device) else { continue };
            for folder in &folders {
                let variable = |name: &str| self.value(name);
                let entries = bls::entries(device, &found.tree, folder, &variable);
                if entries.is_empty() {
                    continue;
                }
                for entry in entries.into_iter().take(MAX_ENTRIES) {
                    self.items.push(Item {
                        title: entry.title.clone(),
                        id: entry.id.clone(),
                        arguments: Vec::new(),
                        action: Action::Ready(Box::new(entry)),
                    });
                }
                return;
            }
        }
    }

    /// The file that a path names: `(hd0,gpt1)/boot/vmlinuz`, or on the device of `root`.
    pub(super) fn file(&self, path: &str) -> Option<FileRef> {
        let root = self.value("root");
        let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some(("", path)) => (root, path.to_owned()),
            Some((device, path)) => (device.to_owned(), path.to_owned()),
            None if path.starts_with('/') => (root, path.to_owned()),
            None => (root, format!("/{path}")),
        };
        let device = self.device(&device)?;
        Some(FileRef::new(device, self.place(device, &path)))
    }

    /// Where on a device a path leads.
    pub(super) fn place(&self, device: usize, path: &str) -> String {
        let folder = self
            .devices
            .get(device)
            .filter(|_| !self.value(RELATIVE).is_empty())
            .map_or_else(String::new, |device| device.tree.default_folder());
        format!("{}{path}", folder.trim_end_matches('/'))
    }

    fn device(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.is_named(name))
    }

    fn kind_of(&self, path: &str) -> Option<(Kind, u64)> {
        let file = self.file(path)?;
        let metadata = self.devices.get(file.device)?.tree.metadata(&file.path).ok()?;
        Some((metadata.kind, metadata.length))
    }

    fn test(&self, words: &[String]) -> bool {
        let mut rest = words;
        self.either(&mut rest, 16)
    }

    fn either(&self, words: &mut &[String], depth: u32) -> bool {
        let mut result = self.both(words, depth);
        while let Some(rest) = skip(words, "-o") {
            *words = rest;
            result |= self.both(words, depth);
        }
        result
    }

    fn both(&self, words: &mut &[String], depth: u32) -> bool {
        let mut result = self.single(words, depth);
        while let Some(rest) = skip(words, "-a") {
            *words = rest;
            result &= self.single(words, depth);
        }
        result
    }

    fn single(&self, words: &mut &[String], depth: u32) -> bool {
        let all = *words;
        let Some(deeper) = depth.checked_sub(1) else { return false };
        // A comparison first: its left side may look like an operator.
        if let [left, operator, right, rest @ ..] = all
            && let Some(result) = compare(left, operator, right)
        {
            *words = rest;
            return result;
        }
        match all {
            [not, rest @ ..] if not == "!" => {
                *words = rest;
                !self.single(words, deeper)
            }
            [open, rest @ ..] if open == "(" => {
                *words = rest;
                let result = self.either(words, deeper);
                *words = skip(words, ")").unwrap_or(words);
                result
            }
            [operator, operand, rest @ ..]
                if matches!(operator.as_str(), "-n" | "-z" | "-d" | "-e" | "-f" | "-s") =>
            {
                *words = rest;
                match operator.as_str() {
                    "-n" => !operand.is_empty(),
                    "-z" => operand.is_empty(),
                    "-d" => matches!(self.kind_of(operand), Some((Kind::Folder, _))),
                    "-e" => self.kind_of(operand).is_some(),
                    "-f" => matches!(self.kind_of(operand), Some((Kind::File, _))),
                    _ => self.kind_of(operand).is_some_and(|(_, length)| length > 0),
                }
            }
            [text, rest @ ..] => {
                *words = rest;
                !text.is_empty()
            }
            [] => false,
        }
    }
}

fn skip<'a>(words: &&'a [String], wanted: &str) -> Option<&'a [String]> {
    let (first, rest) = words.split_first()?;
    (first == wanted).then_some(rest)
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = || Some((left.parse::<i64>().ok()?, right.parse::<i64>().ok()?));
    let number =
        |compare: fn(i64, i64) -> bool| numbers().is_some_and(|(left, right)| compare(left, right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => number(|left, right| left == right),
        "-ne" => number(|left, right| left != right),
        "-lt" => number(|left, right| left < right),
        "-le" => number(|left, right| left <= right),
        "-gt" => number(|left, right| left > right),
        "-ge" => number(|left, right| left >= right),
        _ => return None,
    })
}
