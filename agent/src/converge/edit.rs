//! What a change makes of the bytes of a file. Pure; every byte that is not meant stays as it was.

use crate::change::Change;
use crate::facts::cmdline::{of_kernel, words};

/// The kernel's limit for all its arguments on arm64 and x86 (COMMAND_LINE_SIZE), with the end of the string.
const LONGEST_LINE: usize = 2048;

/// The one line that the firmware reads, with changes to its arguments. `running` is the length in bytes of all that
/// the running kernel got: what is longer than the line is of the firmware's own, and stands before it.
///
/// The result is exactly one line with the end (CRLF, LF or none) of the first; blank lines go. `Err` says why
/// a person must look at the file first.
pub(super) fn boot_line(bytes: &[u8], changes: &[Change], running: usize) -> Result<Vec<u8>, String> {
    if bytes.contains(&0) {
        return Err("it holds a NUL byte, where the firmware stops reading".into());
    }
    let lines: Vec<&[u8]> =
        bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
    let Some(first) = lines.first() else { return Err("it is empty".into()) };
    let end: &[u8] = match first {
        line if line.ends_with(b"\r\n") => b"\r\n",
        line if line.ends_with(b"\n") => b"\n",
        _ => b"",
    };
    let lines: Vec<&[u8]> = lines.into_iter().map(<[u8]>::trim_ascii).collect();
    if lines.len() > 1 && !changes.iter().any(|change| matches!(change, Change::JoinLines { .. })) {
        return Err(format!("it has {} lines, and the firmware reads the first alone", lines.len()));
    }
    if let Some(at) = lines.iter().position(|line| line.starts_with(b"#")) {
        return Err(format!("line {} begins with #, and the file has no comments", at + 1));
    }
    let firmware = running.saturating_sub(lines[0].len());
    let mut line = lines.join(&b' ');
    closed(&line)?;
    for change in changes {
        match change {
            Change::AppendToken { token, .. } if !has(&line, token) => append(&mut line, token),
            Change::RemoveToken { token, .. } => line = without(&line, token),
            _ => {}
        }
    }
    let length = line.len();
    if firmware + length >= LONGEST_LINE {
        return Err(format!(
            "its line would have {length} bytes beside {firmware} of the firmware's own, and the kernel keeps \
             {LONGEST_LINE} of both at most"
        ));
    }
    line.extend(end);
    Ok(line)
}

fn has(line: &[u8], token: &str) -> bool {
    words(&line[..of_kernel(line)]).any(|word| line[word] == *token.as_bytes())
}

/// What is added behind an open quote would be part of what it quotes.
fn closed(line: &[u8]) -> Result<(), String> {
    match line.iter().filter(|byte| **byte == b'"').count() % 2 {
        0 => Ok(()),
        _ => Err("a quote in it is not closed".into()),
    }
}

/// Puts a token behind the others of the kernel.
fn append(line: &mut Vec<u8>, token: &str) {
    let at = of_kernel(line);
    let added = match (at, at == line.len()) {
        (0, true) => token.to_owned(),
        (_, true) => format!(" {token}"),
        (_, false) => format!("{token} "),
    };
    line.splice(at..at, added.into_bytes());
}

/// Takes a token out of those of the kernel, and the blanks before it; blanks elsewhere stay as they are.
fn without(line: &[u8], token: &str) -> Vec<u8> {
    let of_kernel = of_kernel(line);
    let (mut kept, mut end) = (Vec::new(), 0);
    for word in words(line) {
        let blanks = &line[end..word.start];
        end = word.end;
        if word.start < of_kernel && line[word.clone()] == *token.as_bytes() {
            continue;
        }
        if !kept.is_empty() {
            kept.extend(blanks);
        }
        kept.extend(&line[word]);
    }
    kept
}

/// A setting of config.txt for all boards: the last one counts, so it goes to the end, below `[all]`.
pub(super) fn firmware_setting(bytes: &[u8], key: &str, value: &str) -> Vec<u8> {
    let (mut everywhere, mut stands) = (true, false);
    for line in bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        if line.starts_with(b"[") {
            everywhere = line == b"[all]";
        } else if let Some(at) = line.iter().position(|byte| *byte == b'=')
            && line[..at] == *key.as_bytes()
        {
            // One for some boards only, after ours, may overrule it.
            stands = everywhere && line[at + 1..] == *value.as_bytes();
        }
    }
    if stands {
        return bytes.to_vec();
    }
    let end = end_of_lines(bytes);
    let mut edited = whole_lines(bytes, end);
    if !everywhere {
        edited.extend([b"[all]", end].concat());
    }
    edited.extend([key.as_bytes(), b"=", value.as_bytes(), end].concat());
    edited
}

/// Kernel settings in the format of sysctl.d(5): a key that stands there gets its value, others are added.
pub(super) fn settings<'a>(
    bytes: Option<&[u8]>,
    settings: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<u8> {
    let mut lines = own_lines(bytes, "# Written by bramble: kernel settings that K3s and Cilium need.");
    for (key, value) in settings {
        let line = format!("{key} = {value}").into_bytes();
        let of_key = |line: &Vec<u8>| {
            let name = line.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            name.strip_prefix(b"-").unwrap_or(name) == key.as_bytes()
        };
        match lines.iter_mut().find(|line| of_key(line)) {
            Some(found) => *found = line,
            None => lines.push(line),
        }
    }
    joined(lines)
}

/// Names of modules in the format of modules-load.d(5).
pub(super) fn modules<'a>(bytes: Option<&[u8]>, names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut lines = own_lines(bytes, "# Written by bramble: modules that containers use and cannot load.");
    for name in names {
        if !lines.iter().any(|line| line.trim_ascii() == name.as_bytes()) {
            lines.push(name.into());
        }
    }
    joined(lines)
}

/// A line at the top of somebody else's file.
pub(super) fn line_at_top(bytes: &[u8], line: &str) -> Vec<u8> {
    if bytes.split(|byte| *byte == b'\n').any(|other| other.trim_ascii() == line.as_bytes()) {
        return bytes.to_vec();
    }
    [line.as_bytes(), end_of_lines(bytes), bytes].concat()
}

/// An argument in the list from which Debian's raspi-firmware writes cmdline.txt anew, lines and all.
///
/// `Err` says why a person must look at the file first.
pub(super) fn extra_arguments(bytes: &[u8], changes: &[Change]) -> Result<Vec<u8>, String> {
    let mut line = bytes.trim_ascii_end().to_vec();
    if line.contains(&b'\n') {
        let lines = line.split(|byte| *byte == b'\n').count();
        return Err(format!("it has {lines} lines, and the firmware reads the first alone"));
    }
    if line.trim_ascii_start().starts_with(b"#") {
        return Err("it begins with #, and the file has no comments".into());
    }
    closed(&line)?;
    for change in changes {
        match change {
            Change::AppendToken { token, .. } if !has(&line, token) => append(&mut line, token),
            Change::RemoveToken { token, .. } if has(&line, token) => line = without(&line, token),
            _ => {}
        }
    }
    if line == bytes.trim_ascii_end() {
        return Ok(bytes.to_vec());
    }
    line.push(b'\n');
    Ok(line)
}

fn own_lines(bytes: Option<&[u8]>, heading: &str) -> Vec<Vec<u8>> {
    match bytes {
        None | Some(b"") => vec![heading.into()],
        Some(bytes) => {
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
        }
    }
}

fn joined(lines: Vec<Vec<u8>>) -> Vec<u8> {
    lines.into_iter().flat_map(|line| line.into_iter().chain([b'\n'])).collect()
}

fn end_of_lines(bytes: &[u8]) -> &'static [u8] {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) if at > 0 && bytes[at - 1] == b'\r' => b"\r\n",
        _ => b"\n",
    }
}

fn whole_lines(bytes: &[u8], end: &[u8]) -> Vec<u8> {
    match bytes {
        b"" => Vec::new(),
        bytes if bytes.ends_with(b"\n") => bytes.to_vec(),
        bytes => [bytes, end].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(token: &'static str) -> Change {
        Change::AppendToken { path: "cmdline.txt".into(), token: token.into() }
    }

    fn join() -> Change {
        Change::JoinLines { path: "cmdline.txt".into() }
    }

    fn remove(token: &'static str) -> Change {
        Change::RemoveToken { path: "cmdline.txt".into(), token: token.into() }
    }

    #[test]
    fn the_boot_file_stays_one_line_with_all_foreign_arguments_in_order() {
        let memory = || append("cgroup_enable=memory");
        let cases: [(&[u8], &[Change], &[u8]); 19] = [
            (b"root=x rootwait\n", &[memory()], b"root=x rootwait cgroup_enable=memory\n"),
            (b"root=x rootwait", &[memory()], b"root=x rootwait cgroup_enable=memory"),
            (b"root=x\r\n", &[memory()], b"root=x cgroup_enable=memory\r\n"),
            (b"\n\nroot=x \t \n\n", &[memory()], b"root=x cgroup_enable=memory\n"),
            (b"a  b\t\"c d\" \xff\xfe=1\n", &[append("psi=1")], b"a  b\t\"c d\" \xff\xfe=1 psi=1\n"),
            (b"a psi=1 b\n", &[append("psi=1")], b"a psi=1 b\n"),
            (b"a psi=10\n", &[append("psi=1")], b"a psi=10 psi=1\n"),
            (b"a\nb psi=1\n", &[join(), append("psi=1")], b"a b psi=1\n"),
            (b"a\r\nb\r\n", &[join(), memory()], b"a b cgroup_enable=memory\r\n"),
            (b"a  x  b\n", &[remove("x")], b"a  b\n"),
            (b"x a x\n", &[remove("x")], b"a\n"),
            (b"ax b\n", &[remove("x")], b"ax b\n"),
            (b"a  -- b\n", &[append("psi=1"), append("x")], b"a  psi=1 x -- b\n"),
            (b"-- psi=1", &[append("psi=1")], b"psi=1 -- psi=1"),
            (b"a --b\n", &[append("psi=1")], b"a --b psi=1\n"),
            (b"a=\"+p -- y\" b\n", &[append("psi=1")], b"a=\"+p -- y\" b psi=1\n"),
            (b"a=\"x psi=1  y\"\n", &[append("psi=1")], b"a=\"x psi=1  y\" psi=1\n"),
            (b"a=\"x y  z\" x\n", &[remove("x")], b"a=\"x y  z\"\n"),
            (b"x a -- x\n", &[remove("x")], b"a -- x\n"),
        ];
        for (before, changes, after) in cases {
            let edited = boot_line(before, changes, 0).unwrap();
            assert_eq!(edited, after, "{:?} of {:?}", String::from_utf8_lossy(&edited), changes);
        }
    }

    #[test]
    fn a_boot_file_that_would_not_be_read_as_meant_is_left_to_a_person() {
        let long = [b"a=".as_slice(), &[b'x'; 4096]].concat();
        let cases: [(&[u8], &[Change], &str); 6] = [
            (b"a\0b\n", &[append("x")], "NUL"),
            (b" \n\r\n", &[append("x")], "empty"),
            (b"a\nb\n", &[append("x")], "2 lines"),
            (b"a\n#b root=old\n", &[join()], "line 2 begins with #"),
            (&long, &[append("x")], "4100 bytes"),
            (b"a b=\"c d\n", &[append("x")], "not closed"),
        ];
        for (before, changes, says) in cases {
            let refused = boot_line(before, changes, 0).unwrap_err();
            assert!(refused.contains(says), "{says:?} is not in {refused:?}");
        }
    }

    #[test]
    fn what_the_firmware_adds_takes_room_from_the_line() {
        let line = [b'x'; 2000];
        assert!(boot_line(&line, &[append("psi=1")], 2042).is_err(), "2006 and 42 leave no byte for the end");
        assert_eq!(boot_line(&line, &[append("psi=1")], 2041).unwrap().len(), 2006);
        // Of a line that grew since the boot, what came with it is no longer known.
        assert!(boot_line(&line, &[append("psi=1")], 100).is_ok());
    }

    #[test]
    fn a_firmware_setting_counts_for_all_boards_whatever_section_stands_last() {
        let set = |text: &str| {
            String::from_utf8(firmware_setting(text.as_bytes(), "kernel", "kernel8.img")).unwrap()
        };
        assert_eq!(set(""), "kernel=kernel8.img\n");
        assert_eq!(set("arm_64bit=1"), "arm_64bit=1\nkernel=kernel8.img\n");
        assert_eq!(set("[all]\r\na=1\r\n"), "[all]\r\na=1\r\nkernel=kernel8.img\r\n");
        assert_eq!(set("[cm5]\ndtoverlay=x\n"), "[cm5]\ndtoverlay=x\n[all]\nkernel=kernel8.img\n");
        let comment = "#kernel=kernel8.img\n[pi4]\nkernel=kernel8.img\n";
        assert_eq!(set(comment), format!("{comment}[all]\nkernel=kernel8.img\n"));
        let overruled = "kernel=kernel8.img\n[pi5]\nkernel=kernel_2712.img\n";
        assert_eq!(set(overruled), format!("{overruled}[all]\nkernel=kernel8.img\n"));
        for stands in ["kernel=kernel8.img\n", "[pi5]\na=1\n[all]\nkernel=kernel8.img\n[cm5]\nb=2\n"] {
            assert_eq!(set(stands), stands);
        }
    }

    #[test]
    fn settings_of_ours_are_replaced_in_place_and_others_stay() {
        let made = settings(None, [("a.b", "1"), ("c.lxc*.d", "0")]);
        let text = String::from_utf8(made.clone()).unwrap();
        assert!(
            text.starts_with("# Written by bramble") && text.ends_with("\na.b = 1\nc.lxc*.d = 0\n"),
            "{text}"
        );
        assert_eq!(settings(Some(&made), [("a.b", "1")]), made);
        assert_eq!(settings(Some(b"x=1\n-a.b=0\n# a.b\n"), [("a.b", "2")]), b"x=1\na.b = 2\n# a.b\n");
        assert_eq!(settings(Some(b"x=1"), [("y", "2")]), b"x=1\ny = 2\n");
    }

    #[test]
    fn modules_are_named_once() {
        assert_eq!(
            modules(Some(b"# by hand\nip_set\n"), ["ip_set", "xt_mark"]),
            b"# by hand\nip_set\nxt_mark\n"
        );
    }

    #[test]
    fn a_line_at_the_top_moves_no_other() {
        assert_eq!(
            line_at_top(b"interface eth0\n  static x\n", "deny y"),
            b"deny y\ninterface eth0\n  static x\n"
        );
        assert_eq!(line_at_top(b"a\r\n", "b"), b"b\r\na\r\n");
        assert_eq!(line_at_top(b"a\n b \n", "b"), b"a\n b \n");
        assert_eq!(line_at_top(b"", "b"), b"b\n");
    }

    #[test]
    fn extra_arguments_of_debian_follow() {
        assert_eq!(extra_arguments(b"", &[append("psi=1")]).unwrap(), b"psi=1\n");
        assert_eq!(extra_arguments(b"a b\n", &[append("psi=1"), remove("a")]).unwrap(), b"b psi=1\n");
        assert_eq!(extra_arguments(b"a psi=1 ", &[append("psi=1"), remove("x")]).unwrap(), b"a psi=1 ");
        assert!(extra_arguments(b"\na\n", &[append("psi=1")]).unwrap_err().contains("2 lines"));
        assert!(extra_arguments(b"# a\n", &[append("psi=1")]).unwrap_err().contains("no comments"));
        assert!(extra_arguments(b"a=\"b\n", &[append("psi=1")]).unwrap_err().contains("not closed"));
    }
}
