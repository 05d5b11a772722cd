//! Kernel modules: which ones another needs, and in what order they are loaded.
//!
//! A kernel package has no modules.dep: that is made when it is installed. The modules say themselves what they need,
//! in the `.modinfo` section of their ELF file.

use crate::error::{About, Error};
use crate::kernel::Kernel;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest module, unpacked; the largest that Debian has are graphics drivers of 15 MiB.
const MAX_MODULE: u64 = 64 << 20;
/// Deepest folder below the modules' own.
const MAX_DEPTH: u32 = 16;
/// Deepest chain of dependencies.
const MAX_CHAIN: u32 = 64;

/// The modules of one kernel.
pub struct Modules<'a> {
    kernel: &'a Kernel,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    /// Without the list of what is built in, nothing can be missed.
    complete: bool,
}

/// A module to load.
pub struct Module {
    /// Its path below the kernel's folder of modules, ending in `.ko`.
    pub path: String,
    /// The ELF file, uncompressed.
    pub data: Vec<u8>,
}

impl<'a> Modules<'a> {
    /// Looks what the kernel has.
    pub fn of(kernel: &'a Kernel) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        if kernel.modules.is_dir() {
            scan(&kernel.modules, MAX_DEPTH, &mut files)?;
        }
        let list = fs::read_to_string(kernel.modules.join("modules.builtin"));
        let complete = list.is_ok();
        let built_in =
            list.unwrap_or_default().lines().filter_map(|line| name_of(Path::new(line))).collect();
        Ok(Self { kernel, files, built_in, complete })
    }

    /// The wanted modules after all that they need, without what is built into the kernel. A name that ends in `?`
    /// may be missing.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        let mut found = Closure { modules: self, done: BTreeSet::new(), order: Vec::new() };
        for name in wanted {
            let (name, required) = match name.strip_suffix('?') {
                Some(name) => (name, false),
                None => (*name, true),
            };
            found.add(name, required, MAX_CHAIN)?;
        }
        Ok(found.order)
    }
}

struct Closure<'a> {
    modules: &'a Modules<'a>,
    done: BTreeSet<String>,
    order: Vec<Module>,
}

impl Closure<'_> {
    fn add(&mut self, name: &str, required: bool, depth: u32) -> Result<(), Error> {
        let name = name.replace('-', "_");
        let modules = self.modules;
        if modules.built_in.contains(&name) || !self.done.insert(name.clone()) {
            return Ok(());
        }
        let Some(file) = modules.files.get(&name) else {
            return if required && modules.complete {
                Err(Error::NoModule { kernel: modules.kernel.release.clone(), module: name })
            } else {
                Ok(())
            };
        };
        let bad = || Error::BadModule(file.clone());
        let data = read(file)?;
        let needs = dependencies(&data).ok_or_else(bad)?;
        if depth == 0 {
            return Err(bad());
        }
        for (need, required) in needs {
            self.add(&need, required, depth - 1)?;
        }
        let data = if modules.kernel.enforces_signatures { data } else { without_signature(data) };
        let path = file
            .strip_prefix(&modules.kernel.modules)
            .ok()
            .and_then(Path::to_str)
            .ok_or_else(bad)?;
        let end = path.find(".ko").ok_or_else(bad)? + ".ko".len();
        self.order.push(Module { path: path[..end].to_owned(), data });
        Ok(())
    }
}

fn scan(folder: &Path, depth: u32, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).about("read", folder)? {
        let entry = entry.about("read", folder)?;
        let path = entry.path();
        // Not through links: `build` and `source` lead out of the folder.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => scan(&path, depth - 1, files)?,
            Ok(kind) if kind.is_file() => {
                if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The module's name by that of its file: `virtio-rng.ko.xz` is `virtio_rng`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    Some(name.replace('-', "_"))
}

/// Reads a module, unpacking it when it is packed: the kernel itself unpacks only what it was built to, and slowly.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let packed = fs::read(path).about("read", path)?;
    let unpacked = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => all(liblzma::read::XzDecoder::new_multi_decoder(packed.as_slice())),
        Some("gz") => all(flate2::read::MultiGzDecoder::new(packed.as_slice())),
        Some("zst") => zstd::stream::read::Decoder::new(packed.as_slice()).and_then(all),
        _ => Ok(packed),
    };
    unpacked.map_err(|_| Error::BadModule(path.into()))
}

fn all(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut data)?;
    if data.len() as u64 > MAX_MODULE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(data) }
}

/// What a module needs, and whether it cannot do without; `None` when it is no ELF file with a `.modinfo`.
fn dependencies(elf: &[u8]) -> Option<Vec<(String, bool)>> {
    let mut needs = Vec::new();
    for entry in modinfo(elf)?.split(|&byte| byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else { continue };
        if let Some(list) = entry.strip_prefix("depends=") {
            needs.extend(
                list.split(',').filter(|name| !name.is_empty()).map(|name| (name.to_owned(), true)),
            );
        } else if let Some(soft) = entry.strip_prefix("softdep=") {
            // "pre: a b post: c"
            let before = soft.split("post:").next().unwrap_or_default();
            let names = before.split_whitespace().filter(|name| *name != "pre:");
            needs.extend(names.map(|name| (name.to_owned(), false)));
        }
    }
    Some(needs)
}

/// Takes off the signature, which is appended to the ELF file (include/linux/module_signature.h). Verifying one costs
/// the guest more than everything else about loading a module, about 15 million instructions of 17, and tells it
/// nothing: the package was verified on the host, and the host could change the guest's memory anyway. Such a kernel
/// calls itself tainted ("E").
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    // algo, hash, id_type, signer_len, key_id_len, padding, sig_len (big-endian)
    const TRAILER: usize = 12;
    let end = module.strip_suffix(MAGIC).and_then(|rest| {
        let (rest, trailer) = rest.split_at_checked(rest.len().checked_sub(TRAILER)?)?;
        let length = u32::from_be_bytes(*trailer.last_chunk()?) as usize;
        rest.len().checked_sub(length)
    });
    module.truncate(end.unwrap_or(module.len()));
    module
}

/// The `.modinfo` section of a 64-bit little-endian ELF file (ELF-64 Object File Format, sections 2 and 3).
fn modinfo(elf: &[u8]) -> Option<&[u8]> {
    const SECTION_HEADER: usize = 64;
    if elf.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let table = usize::try_from(u64_at(elf, 0x28)?).ok()?;
    let count = usize::from(u16_at(elf, 0x3c)?);
    let names_index = usize::from(u16_at(elf, 0x3e)?);
    let header =
        |index: usize| elf.get(table.checked_add(index * SECTION_HEADER)?..)?.get(..SECTION_HEADER);
    let content = |header: &[u8]| {
        let start = usize::try_from(u64_at(header, 0x18)?).ok()?;
        let length = usize::try_from(u64_at(header, 0x20)?).ok()?;
        elf.get(start..start.checked_add(length)?)
    };
    let names = content(header(names_index)?)?;
    for index in 0..count {
        let header = header(index)?;
        let name = names.get(u32_at(header, 0)? as usize..)?;
        if name.starts_with(b".modinfo\0") {
            return content(header);
        }
    }
    None
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// An ELF file with a `.modinfo` and nothing else of use.
    fn module(info: &str) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        let info_at = elf.len();
        elf.extend_from_slice(info.as_bytes());
        let names_at = elf.len();
        elf.extend_from_slice(NAMES);
        let table = elf.len() as u64;
        for (name, offset, length) in
            [(0u32, 0, 0), (1, info_at, info.len()), (10, names_at, NAMES.len())]
        {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&2u16.to_le_bytes());
        elf
    }

    fn kernel(folder: &Path) -> Kernel {
        Kernel {
            release: "6.1-test".into(),
            image: folder.join("vmlinuz"),
            modules: folder.to_owned(),
            enforces_signatures: false,
            key: "test".into(),
        }
    }

    fn paths(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.path.as_str()).collect()
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        let plain = module("license=GPL\0depends=ring,core,built-in\0");
        fs::write(drivers.join("disk-driver.ko"), plain).unwrap();
        let mut packed = xz(&module("depends=core\0softdep=pre: helper nothing post: late\0"));
        fs::write(drivers.join("ring.ko.xz"), &packed).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&module("depends=\0")).unwrap();
        fs::write(drivers.join("core.ko.gz"), gz.finish().unwrap()).unwrap();
        fs::write(drivers.join("helper.ko"), module("")).unwrap();
        fs::write(drivers.join("late.ko"), module("")).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/lib/built-in.ko\n").unwrap();
        let kernel = kernel(folder.path());
        let modules = Modules::of(&kernel).unwrap();
        let closure = modules.closure(&["disk_driver", "core", "absent?"]).unwrap();
        let expected = ["core", "helper", "ring", "disk-driver"]
            .map(|name| format!("kernel/drivers/{name}.ko"));
        assert_eq!(paths(&closure), expected);
        assert!(closure.iter().all(|module| module.data.starts_with(b"\x7fELF")));
        assert!(
            matches!(modules.closure(&["absent"]), Err(Error::NoModule { module, .. }) if module == "absent")
        );
        packed.truncate(packed.len() / 2);
        fs::write(drivers.join("ring.ko.xz"), &packed).unwrap();
        assert!(matches!(modules.closure(&["ring"]), Err(Error::BadModule(_))));
    }

    /// Packs with the `xz` program, as the kernel's build does.
    fn xz(data: &[u8]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), data).unwrap();
        let output = std::process::Command::new("xz")
            .args(["--check=crc32", "-c"])
            .arg(file.path())
            .output();
        output.expect("xz is part of every Debian").stdout
    }

    #[test]
    fn signatures_are_taken_off_where_the_kernel_does_not_insist() {
        let folder = tempfile::tempdir().unwrap();
        let plain = module("depends=\0");
        let mut signed = plain.clone();
        signed.extend_from_slice(&[9; 300]);
        signed.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 44]);
        signed.extend_from_slice(b"~Module signature appended~\n");
        fs::write(folder.path().join("a.ko"), &signed).unwrap();
        let mut kernel = kernel(folder.path());
        assert_eq!(Modules::of(&kernel).unwrap().closure(&["a"]).unwrap()[0].data, plain);
        kernel.enforces_signatures = true;
        assert_eq!(Modules::of(&kernel).unwrap().closure(&["a"]).unwrap()[0].data, signed);
        // One that claims to be longer than the module is left alone.
        let odd =
            [b"\0\0\0\0\0\0\0\0\xff\xff\xff\xff".as_slice(), b"~Module signature appended~\n"]
                .concat();
        assert_eq!(without_signature(odd.clone()), odd);
        assert_eq!(without_signature(b"~Module signature appended~\n".to_vec()).len(), 28);
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.ko"), module("depends=b\0")).unwrap();
        fs::write(folder.path().join("b.ko"), module("depends=a\0")).unwrap();
        let kernel = kernel(folder.path());
        assert_eq!(
            paths(&Modules::of(&kernel).unwrap().closure(&["a"]).unwrap()),
            ["b.ko", "a.ko"]
        );
    }

    #[test]
    fn a_kernel_without_modules_is_taken_to_have_all_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = kernel(&folder.path().join("none"));
        assert!(Modules::of(&kernel).unwrap().closure(&["virtio_blk"]).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            place in any::<prop::sample::Index>(),
        ) {
            let mut elf = module("depends=a,b\0");
            let start = place.index(elf.len());
            for (old, new) in elf[start..].iter_mut().zip(&bytes) {
                *old = *new;
            }
            let _ = dependencies(&elf);
            let _ = dependencies(&bytes);
        }
    }
}
