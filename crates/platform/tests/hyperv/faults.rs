//! What goes wrong, and what is said of it.

use std::time::Duration;

use platform::{Action, Error, Options, connect};

use super::lab::{Host, asked};

#[test]
fn who_has_the_wrong_password_is_told_so() {
    let host = Host::start(&[]);
    let error = connect(&host.uri(), &asked("guess")).unwrap().list().unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::Credentials { .. }) && !said.contains("guess"), "{said}");
    assert!(said.contains("password is wrong for user Administrator"), "{said}");
    assert!(error.repair().unwrap().contains("OMNIVISOR_PASSWORD"));
}

#[test]
fn a_service_that_fails_is_one_sentence() {
    let host = Host::start(&[]);
    for (kind, action, part) in [
        ("fault", "Create", "maximum number of concurrent shells"),
        ("garbage", "Command", "no SOAP envelope but <html>"),
        ("hang-up", "Receive", "Cannot talk to"),
        ("tamper", "Receive", "an encrypted answer was changed on its way"),
        ("unencrypted", "Send", "an answer is not encrypted"),
        ("endless", "Receive", ""),
    ] {
        host.fault(kind, action, 1);
        let error = host.connect().list().unwrap_err().to_string();
        assert!(error.contains(part) && error.lines().count() == 1, "{kind}: {error}");
    }
    // Nothing of it lasts.
    assert_eq!(host.connect().list().unwrap().len(), 3);
}

#[test]
fn a_service_that_says_nothing_is_not_waited_for_for_ever() {
    let host = Host::start(&[]);
    host.fault("silent", "Command", 1);
    let options = Options { time_limit: Duration::from_secs(2), ..asked("secret") };
    let error = connect(&host.uri(), &options).unwrap().list().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

#[test]
fn a_service_that_is_not_done_yet_or_forgets_a_login_is_asked_again() {
    let host = Host::start(&[]);
    host.fault("later", "Receive", 3);
    assert_eq!(host.connect().list().unwrap().len(), 3);
    // All three were said.
    assert!(!host.folder.path().join("fault").exists());
    for action in ["Create", "Command", "Receive"] {
        host.fault("forget", action, 1);
        assert_eq!(host.connect().list().unwrap().len(), 3, "{action}");
    }
    host.fault("forget", "Create", 9);
    let error = host.connect().list().unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error}");
}

#[test]
fn shells_are_closed_whatever_happens() {
    let host = Host::start(&[]);
    host.connect().list().unwrap();
    host.connect().show("nobody").unwrap_err();
    let log = host.log();
    assert_eq!(log.matches("Create").count(), 2, "{log}");
    assert_eq!(log.matches("Delete").count(), 2, "{log}");
}

#[test]
fn what_hyper_v_refuses_is_told_in_its_words() {
    let host = Host::start(&[]);
    let hyperv = host.connect();
    let error = hyperv.perform("web", &Action::Start).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("cannot be performed while the object is in its current state"),
        "{said}"
    );
    let error = hyperv.perform("old", &Action::Stop { force: false }).unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error}");
    host.change(|model| model["vms"][0]["deaf"] = true.into());
    let error = hyperv.perform("web", &Action::Stop { force: false }).unwrap_err();
    assert!(error.repair().unwrap().contains("--force"), "{error}");
    let error = hyperv.show("nobody").unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "VM", .. }), "{error}");
    host.change(|model| model["vms"][1]["name"] = "web".into());
    let error = hyperv.show("web").unwrap_err();
    let Error::Ambiguous { ids, .. } = &error else { panic!("{error}") };
    assert_eq!(ids.len(), 2);
}

#[test]
fn who_is_not_there_is_told_with_what_would_help() {
    let host = Host::start(&[]);
    let uri = host.uri();
    drop(host);
    let error = connect(&uri, &asked("secret")).unwrap().list().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(
        error.repair().as_deref(),
        Some("on the host, as an administrator: winrm quickconfig")
    );
}
