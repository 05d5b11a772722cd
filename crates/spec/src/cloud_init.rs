//! The first words to a guest with cloud-init: a seed of its NoCloud data source.
//!
//! A read-only disk labelled `cidata` with the files `meta-data`, `user-data` and, if there is one, `network-config`: see
//! cloud-init's documentation, "NoCloud". It is an ISO 9660 image with Rock Ridge names, which every Linux reads.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::iso9660;

/// What a guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// A cloud-config, a script, or anything else that cloud-init takes.
    pub user_data: Option<String>,
    /// Public keys that may log in as the image's own user.
    pub ssh_keys: Vec<String>,
    /// The guest's name.
    pub hostname: Option<String>,
    /// Network configuration; cloud-init asks for addresses by DHCP without one.
    pub network_config: Option<String>,
}

/// What cannot be told to a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// cloud-init would ignore it.
    #[error(
        "The user data begin with `{0}`, which cloud-init does not know: it takes #cloud-config, a script and others"
    )]
    UserData(String),
    /// Too much for one file.
    #[error("The {0} are larger than 1 MiB")]
    TooLarge(&'static str),
    /// No public key.
    #[error("`{0}` is not a public SSH key such as ssh-ed25519 AAAA...")]
    Key(String),
    /// A private key was given instead of the public one.
    #[error("This is a private SSH key; give the public one, whose file ends in .pub")]
    PrivateKey,
    /// No name of a host.
    #[error(
        "`{0}` is not a host's name: letters, digits and hyphens, up to 63 of them between dots"
    )]
    Hostname(String),
}

/// The label by which cloud-init finds the disk.
pub const LABEL: &str = "cidata";
const LARGEST: usize = 1 << 20;
/// What user data may begin with: cloud-init's documentation, "User-data formats".
const BEGINNINGS: [&str; 9] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#upstart-job",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
];

impl Seed {
    /// By which cloud-init tells whether it has configured the guest already: the same for the same seed.
    pub fn instance_id(&self) -> String {
        let mut digest = Sha256::new();
        let hostname = self.hostname.as_deref().unwrap_or_default();
        let network = self.network_config.as_deref().unwrap_or_default();
        for part in [self.user_data(), &self.keys().join("\n"), hostname, network] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let digest: String =
            digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("omnivisor-{digest}")
    }

    /// The disk's bytes. The same seed gives the same bytes; another one makes cloud-init configure the guest again.
    ///
    /// # Errors
    /// Something that cloud-init would not understand.
    pub fn image(&self) -> Result<Vec<u8>, SeedError> {
        self.check()?;
        // JSON is YAML, and quotes what needs quotes.
        let mut meta_data = json!({ "instance-id": self.instance_id() });
        if let Some(hostname) = &self.hostname {
            meta_data["local-hostname"] = json!(hostname);
        }
        if !self.ssh_keys.is_empty() {
            meta_data["public-keys"] = json!(self.keys());
        }
        let meta_data = format!("{meta_data}\n");
        let mut files =
            vec![("meta-data", meta_data.as_bytes()), ("user-data", self.user_data().as_bytes())];
        if let Some(network) = &self.network_config {
            files.push(("network-config", network.as_bytes()));
        }
        Ok(iso9660::image(LABEL, &files))
    }

    /// What it says, or what says nothing: cloud-init wants the file.
    fn user_data(&self) -> &str {
        self.user_data.as_deref().unwrap_or("#cloud-config\n{}\n")
    }

    fn keys(&self) -> Vec<&str> {
        self.ssh_keys.iter().map(|key| key.trim()).collect()
    }

    fn check(&self) -> Result<(), SeedError> {
        for (what, text) in
            [("user data", &self.user_data), ("network settings", &self.network_config)]
        {
            if text.as_ref().is_some_and(|text| text.len() > LARGEST) {
                return Err(SeedError::TooLarge(what));
            }
        }
        if let Some(text) = &self.user_data
            && !BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
        {
            let line = text.lines().next().unwrap_or_default();
            return Err(SeedError::UserData(line.chars().take(40).collect()));
        }
        for key in &self.ssh_keys {
            let key = key.trim();
            if key.contains("PRIVATE KEY") {
                return Err(SeedError::PrivateKey);
            }
            let kinds = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
            let mut words = key.split_whitespace();
            let is_key =
                words.next().is_some_and(|kind| kinds.iter().any(|one| kind.starts_with(one)))
                    && words.next().is_some_and(|blob| blob.starts_with("AAAA"));
            if !is_key || key.contains(char::is_control) || key.len() > 16 << 10 {
                return Err(SeedError::Key(
                    key.chars().take(40).filter(|letter| !letter.is_control()).collect(),
                ));
            }
        }
        if let Some(name) = &self.hostname {
            let is_label = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            if name.len() > 253 || !name.split('.').all(is_label) {
                return Err(SeedError::Hostname(name.chars().take(80).collect()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA me@here";

    fn seed() -> Seed {
        Seed {
            user_data: Some("#cloud-config\npackages: [vim]\n".into()),
            ssh_keys: vec![format!("{KEY}\n")],
            hostname: Some("web.example".into()),
            network_config: Some("version: 2\n".into()),
        }
    }

    #[test]
    fn another_program_reads_the_image_as_cloud_init_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("seed.iso"), folder.path().join("out"));
        std::fs::write(&file, seed().image().unwrap()).unwrap();
        let mut xorriso = Command::new("xorriso");
        xorriso.args(["-osirrox", "on", "-indev"]).arg(&file).args(["-extract", "/"]).arg(&out);
        let Ok(output) = xorriso.output() else {
            eprintln!("skipped: there is no xorriso");
            return;
        };
        assert!(output.status.success(), "{output:?}");
        let mut names: Vec<_> = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["meta-data", "network-config", "user-data"]);
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(
            (read("user-data").as_str(), read("network-config").as_str()),
            ("#cloud-config\npackages: [vim]\n", "version: 2\n")
        );
        let meta_data: serde_json::Value = serde_json::from_str(&read("meta-data")).unwrap();
        assert_eq!(meta_data["local-hostname"], "web.example");
        assert_eq!(meta_data["public-keys"][0], KEY);
        // The folder is read-only, as on the disk.
        #[allow(clippy::permissions_set_readonly_false)]
        for path in [&out, &folder.path().to_owned()] {
            let mut permissions = std::fs::metadata(path).unwrap().permissions();
            permissions.set_readonly(false);
            std::fs::set_permissions(path, permissions).unwrap();
        }
    }

    #[test]
    fn blkid_finds_the_label() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seed.iso");
        std::fs::write(&file, seed().image().unwrap()).unwrap();
        let Ok(output) = Command::new("blkid").args(["-p", "-o", "export"]).arg(&file).output()
        else {
            eprintln!("skipped: there is no blkid");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("LABEL=cidata\n") && text.contains("TYPE=iso9660\n"), "{text}");
    }

    #[test]
    fn the_same_seed_gives_the_same_image() {
        assert_eq!(seed().image(), seed().image());
        let other = Seed { hostname: Some("db".into()), ..seed() };
        assert_ne!(other.image(), seed().image());
        assert_eq!(Seed::default().image().unwrap().len() % 2048, 0);
    }

    #[test]
    fn what_cloud_init_would_not_understand_is_refused() {
        let wrong = |seed: Seed| seed.image().unwrap_err().to_string();
        let data = |text: &str| Seed { user_data: Some(text.into()), ..Seed::default() };
        assert!(wrong(data("packages: []")).starts_with("The user data begin with `packages: []`"));
        assert_eq!(
            wrong(data(&format!("#!{}", "x".repeat(LARGEST)))),
            "The user data are larger than 1 MiB"
        );
        let key = |text: &str| Seed { ssh_keys: vec![text.into()], ..Seed::default() };
        assert!(
            wrong(key("-----BEGIN OPENSSH PRIVATE KEY-----"))
                .starts_with("This is a private SSH key")
        );
        for text in ["", "ssh-rsa", "hello AAAA", "ssh-rsa AAAA\nssh-rsa AAAA"] {
            assert!(wrong(key(text)).contains("is not a public SSH key"), "{text}");
        }
        for name in ["", "a..b", "-a", "a_b", "ä", &"x".repeat(64)] {
            let seed = Seed { hostname: Some((*name).to_owned()), ..Seed::default() };
            assert!(wrong(seed).contains("is not a host's name"), "{name}");
        }
    }
}
