//! Order of versions (UAPI.10 "Version Format Specification").

use std::cmp::Ordering;

/// Which of two versions is newer.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = skip_separators(left);
        right = skip_separators(right);
        // What is before a release, and what is after it.
        for (sign, earlier) in [
            (b'~', Ordering::Less),
            (b'-', Ordering::Less),
            (b'^', Ordering::Less),
            (b'.', Ordering::Less),
        ] {
            let has = (left.first() == Some(&sign), right.first() == Some(&sign));
            let at_end = (left.is_empty(), right.is_empty());
            match (has, sign) {
                ((true, true), _) => {
                    left = &left[1..];
                    right = &right[1..];
                    break;
                }
                ((true, false), b'~') => return earlier,
                ((false, true), b'~') => return earlier.reverse(),
                // Of the others the one that ends is the earlier one, and otherwise the one that has the sign.
                ((true, false), _) => return if at_end.1 { Ordering::Greater } else { earlier },
                ((false, true), _) => return if at_end.0 { earlier } else { earlier.reverse() },
                _ => {}
            }
        }
        if left.is_empty() || right.is_empty() {
            return left.len().cmp(&right.len());
        }
        if matches!(left[0], b'~' | b'-' | b'^' | b'.') {
            continue;
        }
        let is_digits = left[0].is_ascii_digit() || right[0].is_ascii_digit();
        let order = if is_digits {
            let (a, b) =
                (take(&mut left, u8::is_ascii_digit), take(&mut right, u8::is_ascii_digit));
            let (a, b) = (trim_zeroes(a), trim_zeroes(b));
            a.len().cmp(&b.len()).then(a.cmp(b))
        } else {
            let a = take(&mut left, u8::is_ascii_alphabetic);
            a.cmp(take(&mut right, u8::is_ascii_alphabetic))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn skip_separators(text: &[u8]) -> &[u8] {
    let is_part = |c: &u8| c.is_ascii_alphanumeric() || b"~-^.".contains(c);
    let start = text.iter().position(is_part).unwrap_or(text.len());
    &text[start..]
}

fn take<'a>(text: &mut &'a [u8], wanted: fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|c| !wanted(c)).unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

fn trim_zeroes(digits: &[u8]) -> &[u8] {
    let start = digits.iter().position(|&digit| digit != b'0').unwrap_or(digits.len());
    &digits[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_order_of_the_specification() {
        // The examples of UAPI.10, and kernels.
        let ordered = [
            "~1",
            "",
            "ab",
            "abb",
            "abc",
            "0001",
            "002",
            "12",
            "122",
            "122.9",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-a1",
            "123-a1.1",
            "123-3",
            "123-3.1",
            "123^patch1",
            "123^1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124",
        ];
        for (index, left) in ordered.iter().enumerate() {
            for (other, right) in ordered.iter().enumerate() {
                assert_eq!(compare(left, right), index.cmp(&other), "{left} {right}");
            }
        }
        assert_eq!(compare("6.1.0-9-amd64", "6.1.0-13-amd64"), Ordering::Less);
        assert_eq!(compare("5.14.0-427.el9", "5.14.0-70.el9"), Ordering::Greater);
    }
}
