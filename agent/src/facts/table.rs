//! Tables of the project's own data (`agent/data`): lines of comma-separated fields below one heading.
//!
//! A field with a comma stands in double quotes; a line that begins with `#` is a remark.

/// The rows of a table whose heading is `columns`.
///
/// # Panics
/// When the table is not of that form, which the tests of its reader show.
pub fn rows<const N: usize>(
    table: &'static str,
    columns: [&str; N],
) -> impl Iterator<Item = [&'static str; N]> {
    let mut lines = table.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(lines.next().map(fields), Some(columns), "the heading");
    lines.map(fields)
}

fn fields<const N: usize>(line: &'static str) -> [&'static str; N] {
    let mut rest = Some(line);
    let fields = [(); N].map(|()| {
        let text = rest.unwrap_or_else(|| panic!("fewer than {N} fields: {line}"));
        let (field, after) = match text.strip_prefix('"') {
            Some(quoted) => {
                let (field, after) =
                    quoted.split_once('"').unwrap_or_else(|| panic!("an open quote: {line}"));
                (field, after.strip_prefix(','))
            }
            None => text.split_once(',').map_or((text, None), |(field, after)| (field, Some(after))),
        };
        rest = after;
        field
    });
    assert_eq!(rest, None, "more than {N} fields: {line}");
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_with_a_comma_stands_in_quotes() {
        let table = "# a remark\na,b,c\n1,\"2, 3\",\n,,x\n";
        let read: Vec<_> = rows(table, ["a", "b", "c"]).collect();
        assert_eq!(read, [["1", "2, 3", ""], ["", "", "x"]]);
    }

    #[test]
    #[should_panic(expected = "more than 2 fields")]
    fn a_row_of_another_width_is_refused() {
        rows("a,b\n1,2,3\n", ["a", "b"]).for_each(drop);
    }
}
