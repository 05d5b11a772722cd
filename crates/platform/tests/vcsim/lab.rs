//! The simulator as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use platform::{Connection, Options, Secret, Uri, connect};

/// A running simulator; it ends with the value.
pub struct Simulator {
    process: Child,
    pub thumbprint: String,
    pub port: u16,
}

impl Simulator {
    /// Starts one with these options.
    pub fn start(options: &[&str]) -> Self {
        let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/labs/vcsim-lab");
        let mut process = Command::new(lab)
            .args(options)
            .args(["-l", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests/labs/vcsim-lab starts");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = |begin: &str| {
            let line = lines.next().expect("the simulator says where it is").unwrap();
            line.strip_prefix(begin).unwrap_or_else(|| panic!("{line}")).to_owned()
        };
        let thumbprint = line("thumbprint ");
        let address = line("ready https://127.0.0.1:");
        let port = address.trim_end_matches("/sdk").parse().unwrap();
        Self { process, thumbprint, port }
    }

    /// Logs in as a user who knows the password.
    pub fn connect(&self, scheme: &str, path: &str) -> Connection {
        connect(&self.uri(scheme, path), &self.options()).unwrap()
    }

    pub fn uri(&self, scheme: &str, path: &str) -> Uri {
        uri(scheme, self.port, path)
    }

    pub fn options(&self) -> Options {
        Options { tls_thumbprint: Some(self.thumbprint.clone()), ..asked("secret") }
    }

    /// Writes a file of the datastore.
    pub fn upload(&self, path: &str, content: &[u8]) {
        let folder = tempfile::tempdir().unwrap();
        let (jar, file) = (folder.path().join("jar"), folder.path().join("file"));
        std::fs::write(&file, content).unwrap();
        let login = "<Envelope xmlns=\"http://schemas.xmlsoap.org/soap/envelope/\"><Body><Login xmlns=\"urn:vim25\">\
            <_this type=\"SessionManager\">ha-sessionmgr</_this><userName>root</userName>\
            <password>secret</password></Login></Body></Envelope>";
        let base = format!("https://127.0.0.1:{}", self.port);
        let target = format!("{base}/folder/{path}?dcPath=ha-datacenter&dsName=LocalDS_0");
        let mut log_in = Command::new("curl");
        log_in.args(["-d", login, &format!("{base}/sdk")]);
        let mut send = Command::new("curl");
        send.arg("-T").arg(&file).arg(&target);
        for command in [&mut log_in, &mut send] {
            command
                .args(["-ksf", "-H", "Expect:", "-o", "/dev/null", "-b"])
                .arg(&jar)
                .arg("-c")
                .arg(&jar);
            assert!(command.status().unwrap().success(), "{path}");
        }
    }

    /// Stops its processes without a word.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        // It removes its datastores when it is asked to end.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        for _ in 0..100 {
            if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }
}

pub fn uri(scheme: &str, port: u16, path: &str) -> Uri {
    Uri::parse(&format!("{scheme}://root@127.0.0.1:{port}{path}")).unwrap()
}

/// Options of a user who answers so when asked for the password.
pub fn asked(password: &'static str) -> Options {
    Options {
        ask_password: Some(Arc::new(move |_| Some(Secret::new(password)))),
        ..Options::default()
    }
}
