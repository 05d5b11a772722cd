//! The images that a VM knows, by their UUIDs.

use std::cell::Cell;
use std::collections::HashMap;

use super::super::description::{FileRef, FileState};
use super::super::folder::Folder;
use super::super::xml::Element;
use super::plain;

/// More are not known to one VM.
const MOST_IMAGES: usize = 4096;
/// So many parents are named, all drives together: more than 250 of each of 64.
const MOST_PARENTS: usize = 16_384;

/// Images by UUID.
pub(crate) struct Media {
    images: HashMap<String, Known>,
    snapshots: String,
    /// How many parents can still be named.
    parents: Cell<usize>,
}

/// An image of the registry, and the UUID of its parent.
struct Known {
    image: Image,
    parent: Option<String>,
}

/// What is known of an image.
#[derive(Clone)]
pub(crate) struct Image {
    pub file: FileRef,
    pub format: Option<String>,
    /// `Normal`, `Immutable`, `Writethrough`, `Shareable`, `Readonly` or `MultiAttach`; a child has its root's.
    pub kind: Option<String>,
    pub encrypted: bool,
    /// Nearest first.
    pub parents: Vec<FileRef>,
}

impl Media {
    /// The images of a registry; those that are not in it are looked for in the folder of snapshots.
    pub fn new(registry: Option<&Element>, folder: &Folder, snapshots: &str) -> Self {
        let mut media = Self { snapshots: snapshots.into(), ..Self::none() };
        let lists = registry.into_iter().flat_map(Element::all);
        for image in lists.flat_map(Element::all) {
            media.add(image, folder, None);
        }
        media
    }

    /// No images.
    pub fn none() -> Self {
        Self { images: HashMap::new(), snapshots: String::new(), parents: Cell::new(MOST_PARENTS) }
    }

    /// The image with this UUID.
    pub fn get(&self, uuid: &str, folder: &Folder) -> Image {
        let uuid = plain(uuid);
        if let Some(known) = self.images.get(&uuid) {
            let mut image = known.image.clone();
            let mut above = known.parent.as_ref();
            while let Some(parent) = above.and_then(|uuid| self.images.get(uuid)) {
                let Some(left) = self.parents.get().checked_sub(1) else { break };
                self.parents.set(left);
                image.parents.push(parent.image.file.clone());
                above = parent.parent.as_ref();
            }
            return image;
        }
        // Linked clones are in the registry of the VM that they were made from.
        let found = ["vdi", "vmdk", "vhd"].into_iter().find_map(|format| {
            let file = folder.locate(&format!("{}/{{{uuid}}}.{format}", self.snapshots), &[]);
            file.is_usable().then_some((file, format))
        });
        let (file, format) = match found {
            Some((file, format)) => (file, Some(format.to_owned())),
            None => (FileRef::new(&format!("{{{uuid}}}"), None, FileState::Missing), None),
        };
        Image { file, format, kind: None, encrypted: false, parents: Vec::new() }
    }

    fn add(&mut self, element: &Element, folder: &Folder, parent: Option<(&str, &Image)>) {
        let Some(uuid) = element.attribute("uuid").map(plain) else { return };
        if self.images.len() >= MOST_IMAGES {
            return;
        }
        let location =
            element.attribute("location").or(element.attribute("src")).unwrap_or_default();
        let properties: Vec<_> =
            element.children("Property").filter_map(|one| one.attribute("name")).collect();
        let image = Image {
            file: folder.locate(location, &[&self.snapshots]),
            format: element.attribute("format").map(str::to_ascii_lowercase),
            kind: element
                .string("type")
                .or_else(|| parent.and_then(|(_, parent)| parent.kind.clone())),
            encrypted: properties.iter().any(|name| name.starts_with("CRYPT/"))
                || parent.is_some_and(|(_, parent)| parent.encrypted),
            parents: Vec::new(),
        };
        for child in element.children("HardDisk") {
            self.add(child, folder, Some((&uuid, &image)));
        }
        element.skip();
        let parent = parent.map(|(uuid, _)| uuid.to_owned());
        self.images.insert(uuid, Known { image, parent });
    }
}
