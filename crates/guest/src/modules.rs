//! The guest's own kernel modules, for an initial RAM disk that lacks them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use crate::initrd::module_name;
use crate::{Error, Result, Tree};

/// Largest list.
const MAX_LIST: u64 = 16 << 20;
/// Largest module, unpacked.
const MAX_MODULE: u64 = 64 << 20;

/// The modules of one kernel, as its `modules.dep` lists them.
pub struct Modules<'a> {
    tree: &'a Tree,
    folder: String,
    /// Path and dependencies by name.
    files: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl<'a> Modules<'a> {
    /// Those of `release`.
    pub fn of(tree: &'a Tree, release: &str) -> Result<Self> {
        if release.is_empty() || release.contains('/') || release.starts_with('.') {
            return Err(Error::NotFound(format!("modules of the kernel {release:?}")));
        }
        let folder = ["/usr/lib/modules", "/lib/modules"]
            .map(|above| format!("{above}/{release}"))
            .into_iter()
            .find(|folder| tree.is_file(&format!("{folder}/modules.dep")))
            .ok_or_else(|| Error::NotFound(format!("/lib/modules/{release}/modules.dep")))?;
        let list = tree.read_text(&format!("{folder}/modules.dep"), MAX_LIST)?;
        let mut files = BTreeMap::new();
        for line in list.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let Some(name) = module_name(path) else { continue };
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            files.insert(name, (path.to_owned(), needs));
        }
        let built_in = tree.read_text(&format!("{folder}/modules.builtin"), MAX_LIST);
        let built_in = built_in.unwrap_or_default().lines().filter_map(module_name).collect();
        Ok(Self { tree, folder, files, built_in })
    }

    /// The paths of a module and all that it needs, in the order in which they are loaded; none if it is built in.
    /// `None` if the kernel does not have it.
    pub fn closure(&self, name: &str) -> Option<Vec<String>> {
        if self.built_in.contains(name) {
            return Some(Vec::new());
        }
        let (path, needs) = self.files.get(name)?;
        // modules.dep lists all dependencies, the farthest ones last.
        Some(needs.iter().rev().chain([path]).cloned().collect())
    }

    /// A module's ELF file, unpacked.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let full =
            if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.folder) };
        let packed = self.tree.read(&full, MAX_MODULE)?;
        let unpacked = match path.rsplit('.').next() {
            Some("xz") => all(liblzma::read::XzDecoder::new_multi_decoder(packed.as_slice())),
            Some("gz") => all(flate2::read::MultiGzDecoder::new(packed.as_slice())),
            Some("zst") => zstd::stream::read::Decoder::new(packed.as_slice()).and_then(all),
            _ => Ok(packed),
        };
        unpacked.map_err(|error| Error::damaged("kernel module", format!("{path}: {error}")))
    }
}

fn all(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut data)?;
    if data.len() as u64 > MAX_MODULE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(data) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let tree = Files::tree(&[
            (
                "/lib/modules/6.1/modules.dep",
                "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
                 kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko\n",
            ),
            ("/lib/modules/6.1/modules.builtin", "kernel/fs/ext4/ext4.ko\n"),
            ("/lib/modules/6.1/kernel/drivers/virtio/virtio.ko", "elf"),
        ]);
        let modules = Modules::of(&tree, "6.1").unwrap();
        let paths = modules.closure("virtio_blk").unwrap();
        assert_eq!(paths[0], "kernel/drivers/virtio/virtio.ko");
        assert_eq!(paths.len(), 3);
        assert_eq!(modules.closure("ext4"), Some(Vec::new()));
        assert_eq!(modules.closure("none"), None);
        assert_eq!(modules.read(&paths[0]).unwrap(), b"elf");
        assert!(Modules::of(&tree, "../6.1").is_err());
    }
}
