//! The program without a guest: what it prints about itself, and what it says where no guest can run.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn omnivisor(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnivisor")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_schema_describes_what_a_file_may_say() {
    let output = omnivisor(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["boot", "cpus", "disks", "image", "memory", "name", "nics", "shares", "vsock"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn what_nobody_reads_any_more_is_no_failure() {
    let disk = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let disk = disk.to_str().unwrap();
    for (arguments, code) in [
        (&["schema"][..], 0),
        (&["import", disk, "/nowhere", "--dry-run"], 0),
        (&["run", "nothing.vmx"], 127),
        (&["run", "--config", "nothing.toml", "--dry-run"], 127),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_omnivisor"));
        command.args(arguments).stdout(writer.try_clone().unwrap()).stderr(writer);
        assert_eq!(command.status().unwrap().code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn completions_know_the_verbs_and_options() {
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let output = omnivisor(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = stdout(&output);
        for word in ["probe", "schema", "disk-size", "no-reboot"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = omnivisor(&["completions", "bash"]).stdout;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    std::fs::write(&file, script).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&file).status().unwrap().success());
}

#[test]
fn each_verb_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let output = omnivisor(&["man", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for page in ["omnivisor.1", "omnivisor-run.1", "omnivisor-probe.1", "omnivisor-schema.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    let run = std::fs::read_to_string(folder.path().join("omnivisor-run.1")).unwrap();
    assert!(run.contains("\\-\\-memory"));
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    for wrong in [
        &["run", "--memory", "lots", "debian"][..],
        &["run", "--cpus", "none", "debian"],
        &["run", "--disk", "disk.img,bogus", "debian"],
        &["run", "--net", "bridge", "debian"],
        &["run", "--disk", "disk.img", "--", "true"],
        &["run", "--initrd", "initrd"],
        &["jump"],
        &["run"],
    ] {
        let output = omnivisor(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{wrong:?}");
    }
}

#[test]
fn an_unknown_key_in_a_file_comes_with_the_known_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    std::fs::write(&file, "image = \"debian\"\nmemroy = \"1G\"\n").unwrap();
    let output = omnivisor(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("memroy") && text.contains("memory"), "{text}");
}

#[test]
fn what_is_not_there_ends_with_127() {
    for wrong in
        [&["run", "debain"][..], &["run", "--config", "/no/file"], &["run", "--kernel", "/no/file"]]
    {
        let output = omnivisor(wrong);
        assert_eq!(output.status.code(), Some(127), "{wrong:?}: {}", stderr(&output));
    }
}

#[test]
fn the_probe_and_run_agree_on_the_engine() {
    let probe = omnivisor(&["probe", "--format", "json"]);
    assert_eq!(probe.status.code(), Some(0), "{}", stderr(&probe));
    let report: Value = serde_json::from_slice(&probe.stdout).unwrap();
    let soft = report["choice"]["engine"] == "soft";
    // The program itself is an ELF file, but no kernel: that is found after the engine is chosen.
    let kernel = env!("CARGO_BIN_EXE_omnivisor");
    let run = omnivisor(&["run", "--net", "none", "--kernel", kernel]);
    assert_eq!(run.status.code(), Some(126), "{}", stderr(&run));
    assert_eq!(stderr(&run).contains("The software processor runs this guest"), soft);
}

#[test]
fn a_kvm_that_emulates_is_named_with_its_speed() {
    if !Path::new("/sys/module/kvm_pvm").exists() || !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: this host's KVM is not kvm_pvm's");
        return;
    }
    let output = omnivisor(&["probe"]);
    let text = stdout(&output);
    assert!(text.contains("kvm_pvm") && text.contains("emulate"), "{text}");
    assert!(text.contains("instructions"), "{text}");

    let kernel = env!("CARGO_BIN_EXE_omnivisor");
    let output = omnivisor(&["run", "--engine", "kvm", "--net", "none", "--kernel", kernel]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(126), "{text}");
    assert!(text.contains("emulates"), "{text}");
}
