use super::damaged;
use crate::Result;

/// The text that says what a disk consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub create_type: String,
    pub content_id: Option<u32>,
    pub parent_content_id: Option<u32>,
    pub parent_file_name_hint: Option<String>,
    pub extents: Vec<Extent>,
}

/// A line such as `RW 4192256 SPARSE "disk-s001.vmdk"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub access: Access,
    pub sectors: u64,
    pub kind: ExtentKind,
    pub file: String,
    /// In sectors, of flat extents.
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentKind {
    Flat,
    Zero,
    /// Sparse of one of the kinds that the file itself tells.
    Sparse,
}

impl Descriptor {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let text = decode(&bytes[..end]);
        let mut descriptor = Self::default();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(extent) = Extent::parse(line)? {
                descriptor.extents.push(extent);
            } else if let Some((key, value)) = line.split_once('=') {
                descriptor.set(key.trim(), value.trim().trim_matches('"'));
            }
        }
        Ok(descriptor)
    }

    fn set(&mut self, key: &str, value: &str) {
        let number = || u32::from_str_radix(value, 16).ok();
        match key.to_ascii_lowercase().as_str() {
            "createtype" => self.create_type = value.to_owned(),
            "cid" => self.content_id = number(),
            "parentcid" => self.parent_content_id = number(),
            "parentfilenamehint" => self.parent_file_name_hint = Some(value.to_owned()),
            _ => {}
        }
    }
}

impl Extent {
    /// `None` if the line is not about an extent.
    fn parse(line: &str) -> Result<Option<Self>> {
        let mut words = line.splitn(4, char::is_whitespace);
        let access = match words.next() {
            Some("RW") => Access::ReadWrite,
            Some("RDONLY") => Access::ReadOnly,
            Some("NOACCESS") => Access::None,
            _ => return Ok(None),
        };
        let wrong = || damaged(format!("its descriptor has the line {line:?}"));
        let sectors = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
        let kind = match words.next() {
            Some("FLAT" | "VMFS") => ExtentKind::Flat,
            Some("ZERO") => ExtentKind::Zero,
            Some("SPARSE" | "VMFSSPARSE" | "SESPARSE") => ExtentKind::Sparse,
            _ => return Err(wrong()),
        };
        let rest = words.next().unwrap_or_default().trim();
        let (file, offset) = match rest.strip_prefix('"').and_then(|rest| rest.rsplit_once('"')) {
            Some((file, "")) => (file, 0),
            Some((file, after)) => {
                // A fourth word, such as a device's identifier, may follow the offset.
                let offset = after.split_whitespace().next().and_then(|word| word.parse().ok());
                (file, offset.ok_or_else(wrong)?)
            }
            None if kind == ExtentKind::Zero => ("", 0),
            None => return Err(wrong()),
        };
        Ok(Some(Self { access, sectors, kind, file: file.to_owned(), offset }))
    }
}

/// Text in UTF-8, or else in the code page of Western Windows, which is nearly Latin-1.
fn decode(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}
