//! Forms of single values that both engines share: timestamps as Python's `isoformat` writes them, and the tag around what
//! JSON alone could not tell apart.

use memchr::memmem;

use super::json::{self, Malformed};

/// How a tagged value begins. What begins so by chance is tagged itself.
const OPENING: &[u8] = b"{\"$memoria\": ";
const NAME: &[u8] = b"$memoria";

/// Appends `{"$memoria": "<kind>", "value": "<text>"}`.
pub fn write_tagged(kind: &str, text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(OPENING);
    json::write_string(kind.as_bytes(), out);
    out.extend_from_slice(b", \"value\": ");
    json::write_string(text, out);
    out.push(b'}');
}

/// What a tag says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    pub kind: Vec<u8>,
    pub text: Vec<u8>,
}

/// Kind and text of a tagged value; `None` where it is no such.
pub fn read_tagged(raw: &[u8]) -> Result<Option<Tagged>, Malformed> {
    if !raw.starts_with(OPENING) {
        return Ok(None);
    }
    let mut members = Vec::new();
    json::members(raw, &mut members)?;
    let [kind, value] = members.as_slice() else { return Err(Malformed("a tag has other members than its own")) };
    let text = |range: &std::ops::Range<usize>| {
        let mut text = Vec::new();
        json::read_string(raw.get(range.clone()).unwrap_or_default(), &mut text).map(|()| text)
    };
    if text(&value.key)? != b"value" {
        return Err(Malformed("a tag has no value"));
    }
    Ok(Some(Tagged { kind: text(&kind.value)?, text: text(&value.value)? }))
}

/// Whether a JSON text can be nested as it stands: it is one line, begins and ends with itself, and is like no tag.
pub fn nests(text: &[u8]) -> bool {
    let space = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_whitespace);
    !space(text.first())
        && !space(text.last())
        && memchr::memchr2(b'\n', b'\r', text).is_none()
        && memmem::find(text, NAME).is_none()
}

/// Appends the text of a nested value: as it stands where it is one line, as Python would write it where it is several.
pub fn read_nested(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    if memchr::memchr2(b'\n', b'\r', raw).is_some() {
        return json::write_on_one_line(raw, out);
    }
    out.extend_from_slice(raw);
    Ok(())
}

/// The parts of `YYYY-MM-DD<between>HH:MM:SS[.fraction][zone]`, the fraction of one to six digits.
struct Moment<'a> {
    date: &'a [u8],
    time: &'a [u8],
    fraction: &'a [u8],
    zone: &'a [u8],
}

fn moment(text: &[u8], between: u8) -> Option<Moment<'_>> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.strip_prefix(&[between])?.split_at_checked(8)?;
    let shaped = |part: &[u8], shape: &[u8]| {
        part.iter()
            .zip(shape)
            .all(|(byte, wanted)| if *wanted == b'0' { byte.is_ascii_digit() } else { byte == wanted })
    };
    if !shaped(date, b"0000-00-00") || !shaped(time, b"00:00:00") {
        return None;
    }
    let (fraction, zone) = match rest.strip_prefix(b".") {
        Some(rest) => rest.split_at(rest.iter().take_while(|byte| byte.is_ascii_digit()).count()),
        None => (&[][..], rest),
    };
    let fits = fraction.len() <= 6 && (rest.first() != Some(&b'.') || !fraction.is_empty());
    fits.then_some(Moment { date, time, fraction, zone })
}

/// Appends PostgreSQL's text of a timestamp in ISO 8601, fractions with six digits; false where it is no ordinary one.
pub fn write_iso(text: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(Moment { date, time, fraction, zone }) = moment(text, b' ') else { return false };
    let zone: &[u8] = match zone {
        b"" => b"",
        b"+00" => b"+00:00",
        _ => return false,
    };
    for part in [date, b"T", time] {
        out.extend_from_slice(part);
    }
    if !fraction.is_empty() {
        out.push(b'.');
        out.extend_from_slice(fraction);
        out.extend(std::iter::repeat_n(b'0', 6 - fraction.len()));
    }
    out.extend_from_slice(zone);
    true
}

/// Appends an ISO 8601 text as PostgreSQL writes that timestamp; one of another shape as it is.
pub fn read_iso(text: &[u8], out: &mut Vec<u8>) {
    let found = moment(text, b'T').and_then(|moment| {
        let zone: &[u8] = match moment.zone {
            b"" => b"",
            b"+00:00" => b"+00",
            _ => return None,
        };
        Some(Moment { zone, ..moment })
    });
    let Some(Moment { date, time, fraction, zone }) = found else {
        out.extend_from_slice(text);
        return;
    };
    for part in [date, b" ", time] {
        out.extend_from_slice(part);
    }
    let kept = fraction.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    if kept > 0 {
        out.push(b'.');
        out.extend_from_slice(fraction.get(..kept).unwrap_or_default());
    }
    out.extend_from_slice(zone);
}

/// What SQLAlchemy keeps of a timestamp in SQLite, `YYYY-MM-DD HH:MM:SS.ffffff`, in ISO 8601; `None` of any other text.
pub fn stored_to_iso(text: &[u8]) -> Option<Vec<u8>> {
    let Moment { date, time, fraction, zone } = moment(text, b' ')?;
    if fraction.len() != 6 || !zone.is_empty() {
        return None;
    }
    let fraction: &[&[u8]] = if fraction == b"000000" { &[] } else { &[b".", fraction] };
    Some([&[date, b"T", time], fraction].concat().concat())
}

/// The opposite of [`stored_to_iso`]; `None` of a text that it never gives.
pub fn iso_to_stored(text: &[u8]) -> Option<Vec<u8>> {
    let Moment { date, time, fraction, zone } = moment(text, b'T')?;
    let fraction: &[u8] = match fraction.len() {
        0 => b"000000",
        6 => fraction,
        _ => return None,
    };
    zone.is_empty().then(|| [date, b" ", time, b".", fraction].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tag_comes_back_and_nothing_else_is_one() {
        let mut out = Vec::new();
        write_tagged("json", b"{\n\"a\": 1}", &mut out);
        assert_eq!(out, br#"{"$memoria": "json", "value": "{\n\"a\": 1}"}"#);
        assert_eq!(
            read_tagged(&out).unwrap().unwrap(),
            Tagged { kind: b"json".to_vec(), text: b"{\n\"a\": 1}".to_vec() }
        );
        assert_eq!(read_tagged(br#"{"a": "$memoria"}"#).unwrap(), None);
        assert!(read_tagged(br#"{"$memoria": "json"}"#).is_err());
        assert!(!nests(br#"{"$memoria": "json"}"#) && !nests(b" {}") && !nests(b"[1,\n2]") && nests(b"{}"));
    }

    #[test]
    fn timestamps_are_isoformat_s_and_come_back() {
        for (text, iso) in [
            ("2025-01-01 12:34:56", "2025-01-01T12:34:56"),
            ("2025-01-01 12:34:56.5", "2025-01-01T12:34:56.500000"),
            ("2025-01-01 12:34:56.000001+00", "2025-01-01T12:34:56.000001+00:00"),
        ] {
            let (mut out, mut back) = (Vec::new(), Vec::new());
            assert!(write_iso(text.as_bytes(), &mut out));
            read_iso(&out, &mut back);
            assert_eq!((out.as_slice(), back.as_slice()), (iso.as_bytes(), text.as_bytes()));
        }
        for odd in ["infinity", "0044-03-15 00:00:00 BC", "12025-01-01 00:00:00", "2025-01-01 12:34:56.", "2025-01-01"]
        {
            let mut back = Vec::new();
            assert!(!write_iso(odd.as_bytes(), &mut Vec::new()), "{odd}");
            read_iso(odd.as_bytes(), &mut back);
            assert_eq!(back, odd.as_bytes());
        }
        assert_eq!(stored_to_iso(b"2025-01-01 12:34:56.000000").unwrap(), b"2025-01-01T12:34:56");
        assert_eq!(stored_to_iso(b"2025-01-01 12:34:56"), None);
        assert_eq!(iso_to_stored(b"2025-01-01T12:34:56").unwrap(), b"2025-01-01 12:34:56.000000");
    }

    proptest! {
        #[test]
        fn no_text_is_changed_by_going_there_and_back(
            text in "[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,7})?(\\+00|\\+00:00|Z)?|.{0,30}"
        ) {
            if let Some(iso) = stored_to_iso(text.as_bytes()) {
                let stored = iso_to_stored(&iso);
                prop_assert_eq!(stored.as_deref(), Some(text.as_bytes()));
            }
            let (mut iso, mut back) = (Vec::new(), Vec::new());
            // What the server writes has no zeros at its fraction's end.
            if write_iso(text.as_bytes(), &mut iso) && !text.trim_end_matches("+00").ends_with('0') {
                read_iso(&iso, &mut back);
                prop_assert_eq!(back, text.as_bytes());
            }
        }
    }
}
