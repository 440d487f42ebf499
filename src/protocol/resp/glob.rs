//! The patterns of Redis: `*` any octets, `?` one octet, `[a-c]` and `[^a-c]` one of several, `\` the next
//! octet as it is. Pure; at worst the pattern's length times the text's.

/// Does the pattern mean the text?
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star stands, and where in the text what is behind it was tried last.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if at == pattern.len() && from == text.len() {
            return true;
        }
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, from));
            at += 1;
            continue;
        }
        if from < text.len()
            && let Some(next) = one(pattern, at, text[from])
        {
            (at, from) = (next, from + 1);
            continue;
        }
        match &mut star {
            Some((behind, tried)) if *tried < text.len() => {
                *tried += 1;
                (at, from) = (*behind + 1, *tried);
            }
            _ => return false,
        }
    }
}

/// Where the pattern goes on if what stands at `at` means that octet.
fn one(pattern: &[u8], at: usize, octet: u8) -> Option<usize> {
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'\\' => {
            let plain = pattern.get(at + 1).unwrap_or(&b'\\');
            (*plain == octet).then_some((at + 2).min(pattern.len()))
        }
        b'[' => {
            let mut next = at + 1;
            let is_not = pattern.get(next) == Some(&b'^');
            next += usize::from(is_not);
            let mut is_in = false;
            loop {
                let first = match *pattern.get(next)? {
                    b']' => break,
                    b'\\' => {
                        next += 1;
                        *pattern.get(next)?
                    }
                    first => first,
                };
                let last = match pattern.get(next + 1..next + 3) {
                    Some([b'-', last]) if *last != b']' => {
                        next += 2;
                        *last
                    }
                    _ => first,
                };
                is_in |= (first.min(last)..=first.max(last)).contains(&octet);
                next += 1;
            }
            (is_in != is_not).then_some(next + 1)
        }
        plain => (plain == octet).then_some(at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_do_in_redis() {
        let check = |pattern: &str, yes: &[&str], no: &[&str]| {
            for text in yes {
                assert!(
                    matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
            for text in no {
                assert!(
                    !matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
        };
        check("*", &["", "a", "a.b"], &[]);
        check(
            "news.*",
            &["news.", "news.eu", "news.eu.de"],
            &["news", "new.eu"],
        );
        check("h?llo", &["hello", "hxllo"], &["hllo", "heello"]);
        check("h[ae]llo", &["hello", "hallo"], &["hillo", "h[llo"]);
        check("h[^e]llo", &["hallo"], &["hello"]);
        check("h[a-c]llo*", &["hallo", "hbllo!"], &["hdllo"]);
        check("a\\*b", &["a*b"], &["axb"]);
        check("*a*b*c", &["abc", "xxaxxbxxc", "aabbcc"], &["acb", "ab"]);
        check("", &[""], &["a"]);
        check("[", &[], &["[", "a"]);
        check("\\", &["\\"], &["a"]);
        let slow = [b"*a".repeat(40), b"b".to_vec()].concat();
        assert!(!matches(&slow, &b"a".repeat(400)));
    }
}
