//! A host of Hyper-V: the WinRM service of `tests/labs/hyperv-lab`, and VMs that are described here.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use platform::{Connection, Options, Secret, Uri, connect};
use serde_json::{Value, json};

pub const WEB: &str = "11111111-2222-3333-4444-555555555555";
pub const OLD: &str = "aaaaaaaa-2222-3333-4444-555555555555";
/// A name that PowerShell, a shell and XML would each read as something else.
pub const ODD: &str = "w[e]b* 'ä' \"$(id)\" `n; <&>";

pub struct Host {
    process: Child,
    pub folder: tempfile::TempDir,
    pub thumbprint: String,
    pub http: u16,
    pub https: u16,
}

pub fn lab() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/labs/hyperv-lab")
}

impl Host {
    pub fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.json"), model().to_string()).unwrap();
        let mut process = Command::new(lab())
            .arg("serve")
            .arg(folder.path())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests/labs/hyperv-lab starts");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = |begin: &str| {
            let line = lines.next().expect("the lab says where it is").unwrap();
            line.strip_prefix(begin).unwrap_or_else(|| panic!("{line}")).to_owned()
        };
        let thumbprint = line("thumbprint ");
        let ports = line("ready ");
        let port = |at: usize| -> u16 {
            let address = ports.split(' ').nth(at).unwrap();
            address.rsplit(':').next().unwrap().parse().unwrap()
        };
        Self { process, folder, thumbprint, http: port(0), https: port(1) }
    }

    pub fn uri(&self) -> Uri {
        Uri::parse(&format!("hyperv://Administrator@127.0.0.1:{}", self.http)).unwrap()
    }

    pub fn https_uri(&self) -> Uri {
        Uri::parse(&format!("hyperv+https://Administrator@127.0.0.1:{}", self.https)).unwrap()
    }

    pub fn connect(&self) -> Connection {
        connect(&self.uri(), &asked("secret")).unwrap()
    }

    /// Lets the next `count` messages of this kind go wrong.
    pub fn fault(&self, kind: &str, action: &str, count: u32) {
        let text = format!("{kind} {action} {count}");
        std::fs::write(self.folder.path().join("fault"), text).unwrap();
    }

    /// What happened at the service so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn model(&self) -> Value {
        let text = std::fs::read_to_string(self.folder.path().join("model.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut model = self.model();
        change(&mut model);
        std::fs::write(self.folder.path().join("model.json"), model.to_string()).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Options of a user who answers so when asked for the password.
pub fn asked(password: &'static str) -> Options {
    Options {
        ask_password: Some(Arc::new(move |_| Some(Secret::new(password)))),
        ..Options::default()
    }
}

/// A generation 2 VM that runs, with an image based on another one, an old VM with IDE, and one with an odd name.
pub fn model() -> Value {
    let memory = json!({"size": 2_147_483_648_u64, "dynamic": true, "minimum": 536_870_912, "maximum": 8_589_934_592_u64});
    let disk = |bus: &str, unit: u32, path: &str| json!({"kind": "disk", "bus": bus, "controller": 0, "unit": unit, "path": path, "disk": null, "size": 67_108_864});
    let web = json!({
        "name": "web", "id": WEB, "state": "Running", "status": "Operating normally", "generation": 2, "version": "9.0",
        "notes": "Größe & more", "cpus": 4, "threads": 1, "nested": true, "memory": memory,
        "firmware": {"secureBoot": "On", "template": "272e7447-90a4-4563-a4b9-8e4ab00526ce", "order": ["Drive", "Network"]},
        "security": {"tpm": true, "shielded": false}, "scsi": [0],
        "drives": [disk("SCSI", 0, "C:\\VMs\\web\\web.avhdx"),
            {"kind": "dvd", "bus": "SCSI", "controller": 0, "unit": 1, "path": null}],
        "nics": [{"name": "Network Adapter", "legacy": false, "mac": "00155D012A03", "switch": "LAN", "connected": true}],
        "ports": [{"number": 1, "path": "\\\\.\\pipe\\web"}, {"number": 2, "path": ""}],
        "addresses": ["192.0.2.7", "fe80::215:5dff:fe01:2a03"], "snapshots": [], "parent": null,
    });
    let old = json!({
        "name": "old", "id": OLD, "state": "Off", "generation": 1, "version": "5.0", "notes": "", "cpus": 1, "threads": 0,
        "nested": false, "memory": {"size": 536_870_912, "dynamic": false, "minimum": 536_870_912, "maximum": 1_099_511_627_776_u64},
        "firmware": {"order": ["CD", "IDE", "LegacyNetworkAdapter", "Floppy"]}, "security": null, "scsi": [],
        "drives": [disk("IDE", 0, "C:\\VMs\\old\\old.vhdx"), {"kind": "floppy", "path": null}],
        "nics": [{"name": "Legacy", "legacy": true, "mac": "000000000000", "switch": null, "connected": false}],
        "ports": [{"number": 1, "path": ""}, {"number": 2, "path": ""}], "snapshots": [], "parent": null,
    });
    let mut odd = old.clone();
    (odd["name"], odd["id"]) = (json!(ODD), json!("bbbbbbbb-2222-3333-4444-555555555555"));
    odd["drives"] = json!([]);
    json!({"vms": [web, old, odd], "disks": {
        "C:\\VMs\\web\\web.avhdx": {"file": "web.avhdx", "parent": "C:\\VMs\\base.vhdx"},
        "C:\\VMs\\base.vhdx": {"file": "base.vhdx"},
        "C:\\VMs\\old\\old.vhdx": {"file": "old.vhdx"},
    }})
}
