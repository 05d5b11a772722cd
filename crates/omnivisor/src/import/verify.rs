//! Whether an imported guest is up: by what its console says.

/// What a console shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A login prompt.
    Login,
    /// systemd's last target.
    Target,
    /// The question for the passphrase of an encrypted disk: kernel and initial RAM disk have found it, and go no further.
    Passphrase,
    /// The guest gave up; these words say how.
    Failed(&'static str),
}

/// What only a guest says that has given up.
const FAILURES: [&str; 6] = [
    "Kernel panic - not syncing",
    "(initramfs) ",
    "You are in emergency mode",
    "Give root password for maintenance",
    "dracut:/#",
    "Entering emergency mode",
];
/// What cryptsetup's scripts and systemd ask.
const QUESTIONS: [&str; 3] =
    ["Please unlock disk ", "Please enter passphrase for disk ", "Enter passphrase for /dev/"];
const TARGETS: [&str; 4] =
    ["Multi-User System", "Graphical Interface", "multi-user.target", "graphical.target"];

/// What the end of a console's text says, if it says anything yet.
pub fn sign(console: &str) -> Option<Sign> {
    if let Some(words) = FAILURES.into_iter().find(|words| console.contains(words)) {
        return Some(Sign::Failed(words));
    }
    if QUESTIONS.into_iter().any(|question| console.contains(question)) {
        return Some(Sign::Passphrase);
    }
    let last = console.rsplit(['\n', '\r']).next().unwrap_or_default().trim_end_matches(' ');
    if last.ends_with("login:") {
        return Some(Sign::Login);
    }
    let reached = |line: &str| {
        line.contains("Reached target") && TARGETS.iter().any(|target| line.contains(target))
    };
    // Only lines that are whole.
    let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().any(reached).then_some(Sign::Target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_targets_and_failures_are_told_from_other_lines() {
        assert_eq!(sign("Debian GNU/Linux 12 web ttyS0\r\n\r\nweb login: "), Some(Sign::Login));
        assert_eq!(
            sign(
                "[\u{1b}[0;32m  OK  \u{1b}[0m] Reached target \u{1b}[0;1;39mmulti-user.target\u{1b}[0m - Multi-User System.\r\n"
            ),
            Some(Sign::Target)
        );
        assert_eq!(sign("Reached target getty.target - Login Prompts.\n"), None);
        assert_eq!(sign("Last login: yesterday\n"), None);
        assert_eq!(sign("Reached target mul"), None);
        let question =
            "\u{1f510} Please enter passphrase for disk root (luks-1): (press TAB for no echo) ";
        assert_eq!(sign(&format!("[ 2.0] sd 0:0:0:0\r\n{question}")), Some(Sign::Passphrase));
        assert_eq!(sign("\r\nPlease unlock disk vda3_crypt: "), Some(Sign::Passphrase));
        assert!(matches!(sign("\n[ 1.0] Kernel panic - not syncing: VFS"), Some(Sign::Failed(_))));
    }
}
