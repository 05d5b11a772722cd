//! "Did you mean": worded errors for names that do not exist.

/// What kind of name is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A key of a file.
    Key,
    /// An option of the command line.
    Option,
    /// One of several words.
    Value,
}

/// A sentence that says that there is no `word`, and which of `names` was meant or which there are.
pub(crate) fn unknown<S: AsRef<str>>(kind: Kind, word: &str, names: &[S]) -> String {
    let shown = shorten(word);
    let beginning = match kind {
        Kind::Key => format!("There is no key `{shown}`"),
        Kind::Option => format!("There is no option `{shown}`"),
        Kind::Value => format!("There is no `{shown}` to choose"),
    };
    match closest(word, names) {
        Some(name) => format!("{beginning}; did you mean `{name}`?"),
        None if names.is_empty() => beginning,
        None => {
            let names: Vec<_> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
            format!("{beginning}; there is {}", names.join(", "))
        }
    }
}

/// Words serde's message about an unknown field or variant, `None` if it is about something else. The TOML
/// reader hands out nothing but the text.
pub(crate) fn reword(message: &str) -> Option<String> {
    let (kind, rest) = if let Some(rest) = message.strip_prefix("unknown field `") {
        (Kind::Key, rest)
    } else {
        (Kind::Value, message.strip_prefix("unknown variant `")?)
    };
    let (word, expected) = rest.rsplit_once("`, ")?;
    // The last separator may be one between two expected names.
    let (word, expected) = rest
        .find("`, expected ")
        .map_or((word, expected), |at| (&rest[..at], &rest[at + "`, expected ".len()..]));
    let names: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    Some(unknown(kind, word, &names))
}

/// Longer words are no slip of the finger, and comparing them takes time.
const LONGEST: usize = 64;

fn closest<'a, S: AsRef<str>>(word: &str, names: &'a [S]) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let begins =
        |name: &str| word.len() >= 3 && (name.starts_with(&word) || word.starts_with(name));
    names
        .iter()
        .map(AsRef::as_ref)
        .map(|name| (if begins(name) { 1 } else { distance(&word, name) }, name))
        .filter(|(distance, name)| {
            *distance < word.len() && *distance <= (word.len().max(name.len()) / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many insertions, deletions, replacements and swaps of neighbours lead from `a` to `b` (optimal
/// string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn shorten(word: &str) -> String {
    if word.chars().count() <= LONGEST {
        return word.to_owned();
    }
    let beginning: String = word.chars().take(LONGEST).collect();
    format!("{beginning}...")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_recognised() {
        let names = ["name", "cpus", "memory", "readonly", "bytes_per_second"];
        for (word, meant) in [
            ("memroy", Some("memory")),
            ("Memory", Some("memory")),
            ("mem", Some("memory")),
            ("cpu", Some("cpus")),
            ("readnly", Some("readonly")),
            ("read-only", Some("readonly")),
            ("bytes-per-second", Some("bytes_per_second")),
            ("firmware", None),
            ("", None),
        ] {
            assert_eq!(closest(word, &names), meant, "{word}");
        }
    }

    #[test]
    fn a_distance_counts_swaps_as_one() {
        assert_eq!(distance("abcd", "abcd"), 0);
        assert_eq!(distance("abcd", "acbd"), 1);
        assert_eq!(distance("abcd", "bcd"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn messages_of_serde_are_reworded() {
        let reworded = [
            (
                "unknown field `memroy`, expected one of `cpus`, `memory`",
                "There is no key `memroy`; did you mean `memory`?",
            ),
            (
                "unknown field `x`, expected `path` or `cid`",
                "There is no key `x`; there is `path`, `cid`",
            ),
            ("unknown field `x`, there are no fields", "There is no key `x`"),
            (
                "unknown variant `tab`, expected `user` or `tap`",
                "There is no `tab` to choose; did you mean `tap`?",
            ),
            (
                "unknown field `a`, expected `b`, expected `path`",
                "There is no key `a`; there is `b`, `path`",
            ),
        ];
        for (message, expected) in reworded {
            assert_eq!(reword(message).as_deref(), Some(expected));
        }
        assert_eq!(reword("invalid type: integer"), None);
        assert_eq!(reword("unknown field `"), None);
    }
}
