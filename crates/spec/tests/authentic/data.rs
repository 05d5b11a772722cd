//! Files that others wrote and that we may not give away: fetched by the clients of their registries, kept in the
//! folder for the tests' temporary files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// One download at a time, so that tests that want the same find it.
static DOWNLOAD: Mutex<()> = Mutex::new(());

/// A folder of the unpacked source package of Debian's `name`, or `None` with a message if it cannot be fetched.
pub fn debian_source(name: &str, folder: &str) -> Option<PathBuf> {
    fetch(name, folder, |into| {
        let apt = into.join("apt");
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(name)).ok()?;
        }
        let sources = apt.join("sources.list");
        fs::write(&sources, source_lines()?).ok()?;
        let apt = apt.display();
        let configuration = format!(
            "Dir::Etc::sourcelist \"{apt}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State::lists \"{apt}/lists\";\nDir::Cache \"{apt}/cache\";\nAPT::Sandbox::User \"root\";\n"
        );
        let file = into.join("apt.conf");
        fs::write(&file, configuration).ok()?;
        let get = |arguments: &[&str]| {
            run(Command::new("apt-get").args(arguments).env("APT_CONFIG", &file).current_dir(into))
        };
        get(&["-q", "update"])?;
        get(&["-q", "source", "--download-only", name])?;
        unpack(into, ".orig.tar", folder)
    })
}

/// A folder of the unpacked source archive of Python's `name`, or `None` with a message if it cannot be fetched.
pub fn python_source(name: &str, version: &str, folder: &str) -> Option<PathBuf> {
    fetch(name, folder, |into| {
        let wanted = format!("{name}=={version}");
        let arguments = ["download", "-q", "--no-deps", "--no-binary", ":all:", &wanted];
        // Whatever pip says: what counts is whether the archive is there.
        let _ = run(Command::new("pip").args(arguments).current_dir(into));
        unpack(into, ".tar.gz", folder)
    })
}

/// All files below `folder` whose names end so.
pub fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn fetch(name: &str, folder: &str, get: impl FnOnce(&Path) -> Option<()>) -> Option<PathBuf> {
    let _one = DOWNLOAD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let into = Path::new(env!("CARGO_TARGET_TMPDIR")).join("authentic").join(name);
    let complete = into.join("complete");
    if !complete.exists() {
        fs::create_dir_all(&into).unwrap();
        if get(&into).is_none() {
            eprintln!("skipped: the source of {name} cannot be fetched here");
            return None;
        }
        fs::write(&complete, "").unwrap();
    }
    let unpacked = fs::read_dir(into.join("unpacked")).unwrap().flatten().next().unwrap().path();
    Some(unpacked.join(folder))
}

/// Where this host's packages come from, as places of sources.
fn source_lines() -> Option<String> {
    let format = "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Created-By: Packages", "Origin: Debian"])
        .output()
        .ok()?;
    let lines = String::from_utf8(output.stdout).ok()?;
    (!lines.is_empty()).then_some(lines)
}

fn unpack(into: &Path, part: &str, folder: &str) -> Option<()> {
    let archive = fs::read_dir(into).ok()?.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.to_string_lossy();
        name.contains(part) && !name.ends_with(".asc")
    })?;
    let unpacked = into.join("unpacked");
    fs::create_dir_all(&unpacked).ok()?;
    let wanted = format!("*/{folder}");
    run(Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&unpacked)
        .args(["--wildcards", &wanted]))
}

fn run(command: &mut Command) -> Option<()> {
    let output = command.output().ok()?;
    if !output.status.success() {
        eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success().then_some(())
}
