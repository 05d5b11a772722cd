//! The host's package manager: which version of a package there is, and its content.

use crate::cache::Cache;
use crate::error::{About, Error};
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

/// Where apt keeps what it knows.
const LISTS: &str = "/var/lib/apt/lists";
/// Meta packages that are followed before giving up.
const MAX_META: usize = 4;

/// A package at the version that apt would install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
}

impl Package {
    /// A name for cache entries made from it.
    pub fn key(&self) -> String {
        let text = format!("{}_{}", self.name, self.version);
        text.chars()
            .map(|c| if c.is_ascii_alphanumeric() || ".+~-".contains(c) { c } else { '_' })
            .collect()
    }
}

/// Whether the text can be a package's name (Debian Policy 5.6.1), which also keeps it from being an option.
pub fn is_package_name(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

/// The version that apt would install; for a meta package, of the package whose name starts with `prefix` that it
/// depends on. The answer is remembered until apt's lists change, because asking takes most of a second.
pub fn resolve(cache: &Cache, name: &str, prefix: Option<&str>) -> Result<Package, Error> {
    let note = format!("resolved-{name}");
    let noted = read_note(&cache.path(&note));
    if let Some((package, when)) = &noted
        && lists_changed().is_none_or(|changed| changed <= *when)
    {
        return Ok(package.clone());
    }
    match ask(name, prefix) {
        Ok(package) => {
            let text = format!("{} {}\n", package.name, package.version);
            cache.update(&note, |path| fs::write(path, text).about("written", path))?;
            Ok(package)
        }
        // Better what was there last time than nothing.
        Err(Error::NoApt | Error::NoLists) if noted.is_some() => {
            noted.map(|(package, _)| package).ok_or(Error::NoApt)
        }
        Err(error) => Err(error),
    }
}

/// Fetches the package and unpacks it into `folder`, which must not exist yet.
pub fn unpack(package: &Package, folder: &Path, progress: &dyn Fn(&str)) -> Result<(), Error> {
    fs::create_dir(folder).about("created", folder)?;
    progress(&format!("Fetching {} {}", package.name, package.version));
    if let Err(error) = download(package, folder) {
        // The lists may name a version that the archive has since replaced. Only root can renew them.
        if !is_root() {
            return Err(error);
        }
        progress("Updating apt's lists");
        update()?;
        download(package, folder)?;
    }
    let deb = fs::read_dir(folder)
        .about("read", folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(deb) = deb else {
        return Err(Error::Fetch {
            package: package.name.clone(),
            reason: "there is no file".into(),
        });
    };
    progress(&format!("Unpacking {}", package.name));
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(folder))?;
    fs::remove_file(&deb).about("removed", &deb)
}

/// Runs a program of the host, whose last lines become the error.
pub fn run(command: &mut Command) -> Result<Output, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => Err(Error::Program { program, reason: last_lines(&output, 3) }),
        Err(error) => Err(Error::Program { program, reason: error.to_string() }),
    }
}

fn ask(name: &str, prefix: Option<&str>) -> Result<Package, Error> {
    let mut name = name.to_owned();
    for _ in 0..MAX_META {
        let record = show(&name)?;
        let depends = field(&record, "Depends").unwrap_or_default();
        match prefix.and_then(|prefix| dependency(depends, prefix)) {
            Some(real) => name = real.to_owned(),
            None => {
                let version =
                    field(&record, "Version").ok_or(Error::UnknownPackage(name.clone()))?;
                return Ok(Package { version: version.to_owned(), name });
            }
        }
    }
    Err(Error::UnknownPackage(name))
}

fn show(name: &str) -> Result<String, Error> {
    if lists_are_empty() && is_root() {
        update()?;
    }
    let shown = apt("apt-cache").args(["show", "--no-all-versions", name]).output();
    match shown {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(_) if lists_are_empty() => Err(Error::NoLists),
        Ok(_) => Err(Error::UnknownPackage(name.into())),
        Err(_) => Err(Error::NoApt),
    }
}

fn download(package: &Package, folder: &Path) -> Result<(), Error> {
    let mut command = apt("apt-get");
    command.args(["--quiet", "-o", "Acquire::Retries=2"]);
    if is_root() {
        // Otherwise apt, as another user, cannot write here and says so.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    command.arg("download").arg(format!("{}={}", package.name, package.version));
    command.current_dir(folder);
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(Error::Fetch { package: package.name.clone(), reason: last_words(&output) })
        }
        Err(_) => Err(Error::NoApt),
    }
}

fn update() -> Result<(), Error> {
    match apt("apt-get").args(["--quiet", "update"]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(Error::Fetch { package: "its lists".into(), reason: last_words(&output) })
        }
        Err(_) => Err(Error::NoApt),
    }
}

fn apt(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The last line, of the errors if there are any.
fn last_words(output: &Output) -> String {
    last_lines(output, 1)
}

/// The last few lines, because some programs end with a line that says nothing.
fn last_lines(output: &Output, count: usize) -> String {
    for bytes in [&output.stderr, &output.stdout] {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.trim().trim_start_matches("E: "))
            .filter(|line| !line.is_empty())
            .collect();
        if !lines.is_empty() {
            return lines[lines.len().saturating_sub(count)..].join("; ");
        }
    }
    output.status.to_string()
}

/// The value of a field in the first paragraph.
fn field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    let paragraph = record.lines().take_while(|line| !line.is_empty());
    paragraph
        .filter_map(|line| line.split_once(": "))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value.trim())
}

/// The first dependency whose name starts with `prefix`.
fn dependency<'a>(depends: &'a str, prefix: &str) -> Option<&'a str> {
    depends
        .split([',', '|'])
        .filter_map(|item| item.split_whitespace().next())
        .find(|name| name.starts_with(prefix) && is_package_name(name))
}

fn read_note(path: &Path) -> Option<(Package, SystemTime)> {
    let text = fs::read_to_string(path).ok()?;
    let (name, version) = text.trim_end().split_once(' ')?;
    let package = Package { name: name.into(), version: version.into() };
    let when = fs::metadata(path).and_then(|data| data.modified()).ok()?;
    is_package_name(name).then_some((package, when))
}

fn lists_changed() -> Option<SystemTime> {
    fs::metadata(LISTS).and_then(|data| data.modified()).ok()
}

fn lists_are_empty() -> bool {
    let is_list = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    };
    !fs::read_dir(LISTS).is_ok_and(|mut entries| entries.any(is_list))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1.192+2)\n\
        Version: 6.1.192-2\nDepends: foo | bar, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\
        Description-en: Linux: for the cloud\n more: text\n\nPackage: other\nInstalled: 1\n";

    #[test]
    fn records_are_read() {
        assert_eq!(field(META, "Version"), Some("6.1.192-2"));
        assert_eq!(field(META, "Installed"), None);
        let depends = field(META, "Depends").unwrap();
        assert_eq!(dependency(depends, "linux-image-"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("kmod, linux-base (>= 4.3~)", "linux-image-"), None);
        assert_eq!(dependency("", "linux-image-"), None);
    }

    #[test]
    fn names_that_could_do_harm_are_no_package_names() {
        for name in ["linux-image-6.12.113+deb12-cloud-amd64", "g++", "0ad"] {
            assert!(is_package_name(name), "{name}");
        }
        for name in ["", "a", "-o", "../x", "a b", "a=1", "A", "a/b", "-oAPT::x"] {
            assert!(!is_package_name(name), "{name}");
        }
        let package = Package { name: "busybox-static".into(), version: "1:1.35.0-4/../x".into() };
        assert_eq!(package.key(), "busybox-static_1_1.35.0-4_.._x");
    }

    #[test]
    fn an_answer_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let package = Package { name: "omnivisor-no-such-package".into(), version: "1.0".into() };
        let note = "omnivisor-no-such-package 1.0\n";
        fs::write(cache.path("resolved-omnivisor-no-such-meta"), note).unwrap();
        assert_eq!(resolve(&cache, "omnivisor-no-such-meta", None).unwrap(), package);
    }

    #[test]
    fn the_last_line_is_the_reason() {
        let output = Command::new("sh")
            .args(["-c", "echo a; echo W: b >&2; echo 'E: c' >&2; echo >&2; exit 1"])
            .output();
        assert_eq!(last_words(&output.unwrap()), "c");
        let quiet = run(&mut Command::new("false"));
        assert!(matches!(quiet, Err(Error::Program { reason, .. }) if reason.contains('1')));
    }
}
