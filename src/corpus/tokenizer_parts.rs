//! What the tokenizer library takes on trust in a tokenizer.json and panics over, checked before it sees the file.

use std::collections::HashSet;

use serde_json::Value;

/// The parts that it takes for whole JSON once it has begun to read them.
#[derive(serde::Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

/// Refuses a file that breaks off or is no JSON, words of no characters, a damaged table of SentencePiece's normaliser, and a
/// template of what is not there. The error is a reason for a message.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let Parts { normalizer, pre_tokenizer, post_processor, decoder } =
        serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if templates(&post_processor) > 1 {
        return Err("more than one TemplateProcessing".into());
    }
    [normalizer, pre_tokenizer, post_processor, decoder].iter().try_for_each(check_part)
}

/// One takes the pieces of another for texts.
fn templates(part: &Value) -> usize {
    match part {
        Value::Array(parts) => parts.iter().map(templates).sum(),
        Value::Object(fields) if fields.contains_key("special_tokens") => 1,
        Value::Object(fields) => fields.values().map(templates).sum(),
        _ => 0,
    }
}

fn check_part(part: &Value) -> Result<(), String> {
    match part {
        Value::Array(parts) => parts.iter().try_for_each(check_part),
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|kind| kind == "FixedLength") && fields.get("length") == Some(&0.into()) {
                return Err("FixedLength has the length 0".into());
            }
            // A part without its type may be recognised by this field.
            if fields.get("type").is_some_and(|kind| kind == "Precompiled")
                || fields.contains_key("precompiled_charsmap")
            {
                let charsmap = fields.get("precompiled_charsmap").and_then(Value::as_str).and_then(from_base64);
                if !charsmap.is_some_and(|bytes| is_charsmap(&bytes)) {
                    return Err("precompiled_charsmap is damaged".into());
                }
            }
            // Also one without its type.
            if let (Some(single), Some(special)) = (fields.get("single"), fields.get("special_tokens")) {
                check_template(single, fields.get("pair"), special)?;
            }
            fields.values().try_for_each(check_part)
        }
        _ => Ok(()),
    }
}

/// What stands around a text: only tokens that are listed, and no second text around a single one.
fn check_template(single: &Value, pair: Option<&Value>, special: &Value) -> Result<(), String> {
    let pieces = |of: &Value| of.as_array().cloned().unwrap_or_default();
    if pieces(single).iter().any(|piece| piece["Sequence"]["id"] == "B") {
        return Err("TemplateProcessing puts a second text around a single one".into());
    }
    for piece in pieces(single).iter().chain(&pair.map(pieces).unwrap_or_default()) {
        if let Some(id) = piece["SpecialToken"]["id"].as_str().filter(|id| special.get(id).is_none()) {
            return Err(format!("TemplateProcessing names the token {id:?}, which its special_tokens lack"));
        }
    }
    Ok(())
}

/// Standard alphabet, padded.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (body, padding) = match text.as_bytes() {
        [body @ .., b'=', b'='] => (body, 2),
        [body @ .., b'='] => (body, 1),
        body => (body, 0),
    };
    if (body.len() + padding) % 4 != 0 {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut out, mut bits, mut held) = (Vec::with_capacity(body.len() / 4 * 3 + 2), 0u32, 0);
    for byte in body {
        (bits, held) = (bits << 6 | u32::from(digit(*byte)?), held + 6);
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    // What is left over of the last digit is 0, or the library refuses it.
    (bits & ((1 << held) - 1) == 0).then_some(out)
}

/// Whether no text leads a search out of the table: the bytes of a double-array trie (Darts-clone's units, their length in bytes
/// first), then texts that end with a zero byte, into which the trie's values point.
fn is_charsmap(bytes: &[u8]) -> bool {
    let Some((size, rest)) = bytes.split_first_chunk() else { return false };
    let Some((trie, texts)) = rest.split_at_checked(u32::from_le_bytes(*size) as usize / 4 * 4) else { return false };
    let units: Vec<usize> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let Ok(texts) = std::str::from_utf8(texts) else { return false };
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let Some(root) = units.first() else { return false };
    let (mut seen, mut open) = (HashSet::new(), vec![offset(*root)]);
    while let Some(node) = open.pop() {
        if !seen.insert(node) {
            continue;
        }
        for byte in 1..=255 {
            let Some(unit) = units.get(node ^ byte) else { return false };
            if unit & (1 << 31 | 0xff) != byte {
                continue;
            }
            let next = node ^ byte ^ offset(*unit);
            if unit >> 8 & 1 == 1 {
                let start = units.get(next).map(|leaf| leaf & ((1 << 31) - 1));
                if !start.is_some_and(|start| texts.is_char_boundary(start)) {
                    return false;
                }
            }
            open.push(next);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::Tokenizer;

    /// A table that makes "a" to "ä", with a unit changed.
    fn charsmap(at: usize, unit: u32) -> String {
        let mut units = [0u32; 256];
        units[0x61] = 0x61 | 1 << 8 | 0x80 << 10;
        units[at] = if unit == 0 { units[at] } else { unit };
        let bytes = [&1024u32.to_le_bytes()[..], units.map(u32::to_le_bytes).as_flattened(), "ä\0".as_bytes()].concat();
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            let digit = |i: usize| DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char;
            text.extend((0..4).map(|i| if i <= chunk.len() { digit(i) } else { '=' }));
        }
        let model = r#"{"type": "WordLevel", "unk_token": "ä", "vocab": {"ä": 7, "b": 1}}"#;
        format!(r#"{{"model": {model}, "normalizer": {{"type": "Precompiled", "precompiled_charsmap": "{text}"}}}}"#)
    }

    #[test]
    fn a_table_that_no_search_leaves_is_taken_and_used() {
        let json = charsmap(0, 0);
        assert_eq!(check(json.as_bytes()), Ok(()));
        let tokenizer = Tokenizer::from_bytes(json).unwrap();
        assert_eq!(tokenizer.encode_fast("a", false).unwrap().get_ids(), [7]);
    }

    #[test]
    fn what_the_library_would_panic_over_is_refused() {
        let refused = |json: &str| check(json.as_bytes()).unwrap_err();
        // The root and a child that lead beyond the end, and a value within a character.
        for (at, unit) in [(0, 1 << 20), (0x62, 0x62 | 1 << 20), (0xe1, 1), (0xe1, 9)] {
            assert_eq!(refused(&charsmap(at, unit)), "precompiled_charsmap is damaged");
        }
        assert!(refused(r#"{"decoder": {"type": "Fuse""#).starts_with("EOF"));
        assert!(refused(r#"{"pre_tokenizer": {"type": "FixedLength", "length": 0}}"#).contains("length 0"));
        let template = |single: &str| {
            format!(
                r#"{{"type": "TemplateProcessing", "single": [{single}], "pair": [], "special_tokens": {{"a": {{}}}}}}"#
            )
        };
        let around = |parts: &[String]| {
            check(
                format!(r#"{{"post_processor": {{"type": "Sequence", "processors": [{}]}}}}"#, parts.join(", "))
                    .as_bytes(),
            )
        };
        let a = template(r#"{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}"#);
        assert_eq!(around(std::slice::from_ref(&a)), Ok(()));
        assert!(around(&[a.clone(), a]).unwrap_err().contains("more than one"));
        assert!(around(&[template(r#"{"SpecialToken": {"id": "b"}}"#)]).unwrap_err().contains("\"b\""));
        assert!(around(&[template(r#"{"Sequence": {"id": "B"}}"#)]).unwrap_err().contains("second text"));
        for charsmap in ["null", "\"\"", "\"A\"", "\"AA=A\"", "\"AAAA\""] {
            let json = format!(r#"{{"normalizer": [{{"type": "Precompiled", "precompiled_charsmap": {charsmap}}}]}}"#);
            assert!(check(json.as_bytes()).is_err(), "{charsmap}");
        }
    }
}
