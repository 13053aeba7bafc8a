//! A unified diff of two versions of a file, small: one hunk from the first line that differs to the last.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::host::write::Image;

/// Lines shown around what differs.
const CONTEXT: usize = 2;

/// The diff; empty when both are the same. What would move the cursor is shown as U+FFFD.
pub fn diff(path: &str, before: Option<&[u8]>, after: Option<&[u8]>) -> String {
    if before == after {
        return String::new();
    }
    let (old, new) = (lines(before), lines(after));
    let same = |(a, b): &(&&[u8], &&[u8])| a == b;
    let head = old.iter().zip(&new).take_while(same).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(same).count();
    let from = head.saturating_sub(CONTEXT);
    let old_end = (old.len() - tail + CONTEXT).min(old.len());
    let new_end = (new.len() - tail + CONTEXT).min(new.len());
    let name = |version: Option<&[u8]>| if version.is_some() { path } else { "/dev/null" };
    let mut text = format!("--- {}\n+++ {}\n", name(before), name(after));
    let range = |end: usize| match end - from {
        0 => format!("{from},0"),
        count => format!("{},{count}", from + 1),
    };
    // Writing to a string does not fail.
    let _ = writeln!(text, "@@ -{} +{} @@", range(old_end), range(new_end));
    let mut put = |sign: char, line: &[u8]| {
        let whole = line.ends_with(b"\n");
        let shown = printable(&String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)));
        let _ = writeln!(text, "{sign}{shown}");
        if !whole {
            text.push_str("\\ No newline at end of file\n");
        }
    };
    old[from..head].iter().for_each(|line| put(' ', line));
    old[head..old.len() - tail].iter().for_each(|line| put('-', line));
    new[head..new.len() - tail].iter().for_each(|line| put('+', line));
    old[old.len() - tail..old_end].iter().for_each(|line| put(' ', line));
    text
}

/// The diff of what stood and stands at a path: its content, and what else a file has.
pub fn versions(path: &str, before: Option<&Image>, after: Option<&Image>) -> String {
    let [old, new] = [before, after].map(|image| image.map(content));
    let mut text = diff(path, old.as_deref(), new.as_deref());
    let (Some(old), Some(new)) = (before.and_then(kept), after.and_then(kept)) else { return text };
    for (sign, these, others) in [('-', &old, &new), ('+', &new, &old)] {
        for (name, value) in these.iter().filter(|(name, value)| others.get(*name) != Some(value)) {
            let _ = match value {
                Value::Shown(value) => writeln!(text, "{sign}{name} {value}"),
                Value::Bytes(_) => writeln!(text, "{sign}attribute {}", printable(name)),
            };
        }
    }
    text
}

fn content(image: &Image) -> Vec<u8> {
    match image {
        Image::File { bytes, .. } => bytes.clone(),
        Image::Link { target } => format!("link to {target}\n").into_bytes(),
    }
}

#[derive(PartialEq)]
enum Value<'a> {
    Shown(String),
    Bytes(&'a [u8]),
}

/// What a file has besides its content, by name; labels of the security module are nobody's edit.
fn kept(image: &Image) -> Option<BTreeMap<&str, Value<'_>>> {
    let Image::File { meta: Some(meta), .. } = image else { return None };
    let attributes = meta.attributes.iter().filter(|(name, _)| !name.starts_with("security."));
    let attributes = attributes.map(|(name, value)| (name.as_str(), Value::Bytes(value)));
    let shown = [
        ("mode", Value::Shown(format!("{:o}", meta.mode))),
        ("owner", Value::Shown(format!("{}:{}", meta.uid, meta.gid))),
    ];
    Some(shown.into_iter().chain(attributes).collect())
}

fn lines(version: Option<&[u8]>) -> Vec<&[u8]> {
    version.unwrap_or_default().split_inclusive(|byte| *byte == b'\n').collect()
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::write::Meta;

    #[test]
    fn what_a_file_has_besides_its_content_is_shown_where_it_differs() {
        let file = |mode, uid, attributes: &[(&str, &str)]| {
            let attributes =
                attributes.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
            let meta = Meta { mode, uid, gid: 8, attributes: attributes.collect() };
            Image::File { bytes: b"a\n".into(), meta: Some(meta) }
        };
        let old = file(0o644, 7, &[("user.a", "1"), ("user.b", "1"), ("security.x", "1")]);
        let new = file(0o600, 0, &[("user.a", "1"), ("user.b", "2"), ("user.c", "")]);
        assert_eq!(
            versions("/x", Some(&old), Some(&new)),
            "-mode 644\n-owner 7:8\n-attribute user.b\n+mode 600\n+owner 0:8\n+attribute user.b\n+attribute user.c\n"
        );
        assert_eq!(versions("/x", Some(&old), Some(&old)), "");
        let link = Image::Link { target: "/y".into() };
        assert!(versions("/x", Some(&old), Some(&link)).ends_with("-a\n+link to /y\n"));
    }

    #[test]
    fn only_what_differs_and_what_stands_around_it_is_shown() {
        let shown = diff("/x", Some(b"1\n2\n3\n4\n5\n6\n7\n8\n"), Some(b"1\n2\n3\n4\nfive\n6\n7\n8\n"));
        assert_eq!(shown, "--- /x\n+++ /x\n@@ -3,5 +3,5 @@\n 3\n 4\n-5\n+five\n 6\n 7\n");
        assert_eq!(diff("/x", Some(b"a"), Some(b"a")), "");
    }

    #[test]
    fn a_file_that_is_made_or_removed_has_no_other_side() {
        assert_eq!(diff("/x", None, Some(b"a\n")), "--- /dev/null\n+++ /x\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(diff("/x", Some(b"a\n"), None), "--- /x\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
    }

    #[test]
    fn ends_of_lines_and_control_characters_are_visible() {
        let shown = diff("/x", Some(b"a\r\n"), Some(b"a\x1b[2Jb"));
        assert_eq!(
            shown,
            "--- /x\n+++ /x\n@@ -1,1 +1,1 @@\n-a\u{fffd}\n+a\u{fffd}[2Jb\n\\ No newline at end of file\n"
        );
    }
}
