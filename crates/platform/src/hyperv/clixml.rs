//! What PowerShell writes to a standard error that is no terminal: `#< CLIXML` and objects (MS-PSRP, 2.2.5).

use crate::xml::{Element, parse, shortened};

/// Begins it.
const MARK: &[u8] = b"#< CLIXML";
/// More than anybody reads.
const LONGEST: usize = 600;

/// What is complained of, in one sentence; nothing if nothing is.
pub(super) fn sentence(stderr: &[u8]) -> Option<String> {
    let mark = stderr.windows(MARK.len()).position(|window| window == MARK);
    let (before, objects) = match mark {
        Some(at) => (&stderr[..at], &stderr[at + MARK.len()..]),
        None => (stderr, &[][..]),
    };
    let mut text = String::from_utf8_lossy(before).into_owned();
    if mark.is_some() {
        match parse(objects.trim_ascii()) {
            Ok(objects) => errors(&objects, &mut text),
            // It is cut off, or something else followed.
            Err(_) => text.push_str(&without_tags(&String::from_utf8_lossy(objects))),
        }
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    // Where in a script it was, which nobody here wrote.
    let lines = lines.take_while(|line| !line.starts_with("At line:") && !line.starts_with("+ "));
    let text = lines.collect::<Vec<_>>().join(" ");
    let text: String = shortened(&text).chars().take(LONGEST).collect();
    let text = text.trim().trim_end_matches('.').trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Errors among the objects; warnings and progress are none.
fn errors(objects: &Element, text: &mut String) {
    for one in &objects.children {
        if one.attribute("S").is_some_and(|stream| stream.eq_ignore_ascii_case("error"))
            && one.name == "S"
        {
            text.push_str(&unescaped(&one.text));
        }
    }
}

/// `_x000D_` stands for a letter of that number, MS-PSRP, 2.2.5.3.2.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("_x") {
        out.push_str(&rest[..at]);
        let escape = rest.get(at + 2..at + 7).filter(|escape| escape.ends_with('_'));
        let letter = escape.and_then(|escape| u32::from_str_radix(&escape[..4], 16).ok());
        match letter {
            Some(letter) => {
                out.push(char::from_u32(letter).unwrap_or(char::REPLACEMENT_CHARACTER));
                rest = &rest[at + 7..];
            }
            None => {
                out.push_str("_x");
                rest = &rest[at + 2..];
            }
        }
    }
    out + rest
}

fn without_tags(text: &str) -> String {
    let mut inside = false;
    let kept = text.chars().filter(|letter| {
        let was = inside;
        inside = match letter {
            '<' => true,
            '>' => false,
            _ => inside,
        };
        !was && *letter != '<'
    });
    unescaped(&kept.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_sentence() {
        let text = "#< CLIXML\r\n<Objs Version=\"1.1.0.1\" xmlns=\"http://schemas.microsoft.com/powershell/2004/04\">\
            <Obj S=\"progress\" RefId=\"0\"><MS><I64 N=\"SourceId\">1</I64></MS></Obj>\
            <S S=\"warning\">mind_x000D__x000A_</S><S S=\"Error\">Get-VM : You do not have the required_x000D__x000A_</S>\
            <S S=\"Error\">permission._x000D__x000A_</S><S S=\"Error\">At line:1 char:1_x000D__x000A_</S>\
            <S S=\"Error\">+ Get-VM_x000D__x000A_</S></Objs>";
        let expected = "Get-VM : You do not have the required permission";
        assert_eq!(sentence(text.as_bytes()).as_deref(), Some(expected));
        // Cut off.
        let cut = &text[..text.len() - 50];
        assert!(sentence(cut.as_bytes()).unwrap().contains("required"));
    }

    #[test]
    fn plain_text_and_nothing_are_taken_as_they_are() {
        assert_eq!(sentence(b"").as_deref(), None);
        assert_eq!(sentence(b" No luck.\r\n").as_deref(), Some("No luck"));
        assert_eq!(sentence(b"#< CLIXML\r\n<Objs></Objs>").as_deref(), None);
        assert_eq!(unescaped("_x00E4_ _x _xZZZZ_ _x004"), "\u{e4} _x _xZZZZ_ _x004");
    }
}
