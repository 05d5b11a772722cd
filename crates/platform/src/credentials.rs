//! Passwords: from the environment, from `~/.netrc`, from the desktop's keyring, or asked for. Never from the command
//! line.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Error, Options, Result, Runner, Secret, Uri};

/// The variable that holds a password. Programs that we start do not get it.
pub(crate) const VARIABLE: &str = "OMNIVISOR_PASSWORD";

/// Where a password may come from.
pub(crate) const ADVICE: &str = "put the right password into OMNIVISOR_PASSWORD, ~/.netrc or the keyring, or run it in a terminal to be asked";

/// Longest file of passwords.
const LONGEST: u64 = 1 << 20;

/// The password of the user at the host that `uri` names.
///
/// # Errors
/// Nobody has one.
pub(crate) fn password(uri: &Uri, options: &Options) -> Result<Secret> {
    if let Ok(password) = std::env::var(VARIABLE) {
        return Ok(Secret::new(password));
    }
    let host = uri.host.as_deref().unwrap_or_default();
    if let Some(password) = from_netrc(host, uri.user.as_deref())? {
        return Ok(password);
    }
    if let Some(password) = from_keyring(host, uri.user.as_deref()) {
        return Ok(password);
    }
    options.ask_password.as_ref().and_then(|ask| ask(uri)).ok_or_else(|| Error::Credentials {
        place: host.into(),
        message: "no password is known".into(),
        repair: Some(ADVICE.into()),
    })
}

/// What `$NETRC` or `~/.netrc` says.
fn from_netrc(host: &str, user: Option<&str>) -> Result<Option<Secret>> {
    let named = std::env::var_os("NETRC").map(PathBuf::from);
    let usual = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".netrc"));
    let Some(path) = named.or_else(usual) else { return Ok(None) };
    let file = |source| Error::File { path: path.clone(), source };
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file(error)),
        Ok(metadata) if metadata.len() > LONGEST => {
            return Err(file(std::io::Error::other("it is longer than any real one")));
        }
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(&path).map_err(file)?;
    Ok(find(&text, host, user))
}

/// The program that asks the desktop's secret service, of libsecret.
const KEYRING: &str = "secret-tool";
/// A keyring may ask its owner to open it.
const KEYRING_TIME: Duration = Duration::from_secs(60);

/// What the keyring has for the server and the user, by the attributes that desktops use for passwords of the network.
fn from_keyring(host: &str, user: Option<&str>) -> Option<Secret> {
    let runner = Runner::new(&Uri::default(), KEYRING_TIME).output_limit(4096);
    let mut args = vec!["lookup", "server", host];
    args.extend(user.into_iter().flat_map(|user| ["user", user]));
    // Most computers have none, or nobody who could open it.
    let output = runner.run(KEYRING, &args).ok().filter(|output| output.code == 0)?;
    let text = String::from_utf8(output.stdout).ok()?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    (!password.is_empty()).then(|| Secret::new(password))
}

/// Looks for a host in the form of netrc: words, macros up to an empty line, comments.
fn find(text: &str, host: &str, user: Option<&str>) -> Option<Secret> {
    let mut words = words(text).into_iter();
    let mut fits_host = false;
    let (mut login, mut password): (Option<String>, Option<String>) = (None, None);
    loop {
        let word = words.next();
        let is_end = matches!(word.as_deref(), None | Some("machine" | "default"));
        if is_end {
            let fits_user = match (user, &login) {
                (Some(user), Some(login)) => user == login,
                _ => true,
            };
            if fits_host
                && fits_user
                && let Some(password) = password.take()
            {
                return Some(Secret::new(password));
            }
            (login, password) = (None, None);
        }
        match word?.as_str() {
            "machine" => fits_host = words.next()?.eq_ignore_ascii_case(host),
            "default" => fits_host = true,
            "login" => login = words.next(),
            "password" => password = words.next(),
            "account" => drop(words.next()),
            _ => {}
        }
    }
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut is_macro = false;
    for line in text.lines() {
        if is_macro {
            is_macro = !line.trim().is_empty();
            continue;
        }
        let mut rest = line.trim_start();
        if rest.starts_with('#') {
            continue;
        }
        while !rest.is_empty() {
            let (word, after) = first_word(rest);
            if word == "macdef" {
                is_macro = true;
                break;
            }
            words.push(word);
            rest = after.trim_start();
        }
    }
    words
}

/// A word, in quotes or not.
fn first_word(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut word = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (word, &quoted[at + 1..]),
            '\\' => word.extend(letters.next().map(|(_, letter)| letter)),
            letter => word.push(letter),
        }
    }
    (word, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# passwords\nmachine esx1 login root password one\n\
        macdef init\nmachine esx2 login root password wrong\n\nmachine esx2\n  login admin\n  password \"t w\\\"o\"\n\
        machine esx2 login root password #three\ndefault login x password rest\n";

    fn found(host: &str, user: Option<&str>) -> Option<String> {
        find(FILE, host, user).map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn a_password_is_found_by_host_and_user() {
        assert_eq!(found("esx1", Some("root")).as_deref(), Some("one"));
        assert_eq!(found("ESX1", None).as_deref(), Some("one"));
        assert_eq!(found("esx2", Some("admin")).as_deref(), Some("t w\"o"));
        assert_eq!(found("esx1", Some("other")), None);
        assert_eq!(found("esx2", Some("root")).as_deref(), Some("#three"));
        assert_eq!(found("other", Some("x")).as_deref(), Some("rest"));
        assert_eq!(found("other", Some("y")), None);
    }

    #[test]
    fn a_broken_file_holds_nothing() {
        for text in ["", "machine", "machine a password", "password \"", "machine \\"] {
            assert!(find(text, "a", None).is_none(), "{text}");
        }
    }
}
