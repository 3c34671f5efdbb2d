//! What a model's folder says of the terms on which it may be used.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::checkpoint::provenance::License;
use crate::printable::excerpt;

/// The model card: Markdown behind a front matter in YAML.
const CARD: &str = "README.md";
const CONFIG: &str = "config.json";
/// Names that the text of a licence has.
pub const TEXTS: [&str; 6] = ["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "NOTICE"];
/// Read of a file at most: the front matter stands at its top.
const LONGEST: u64 = 1 << 20;

/// The licence of the model in `dir`, the first that says something winning: the model card, config.json. `told`: what the
/// model's file says itself, and where. None: nothing is said.
pub fn of(dir: &Path, told: Option<(String, &str)>) -> Option<License> {
    let card = || Some((front_matter(&read(dir, CARD)?)?, CARD));
    let config = || {
        let json: serde_json::Value = serde_json::from_str(&read(dir, CONFIG)?).ok()?;
        Some((json["license"].as_str()?.to_owned(), CONFIG))
    };
    let said = told.or_else(card).or_else(config);
    let text = TEXTS.into_iter().find(|name| dir.join(name).is_file());
    if said.is_none() && text.is_none() {
        return None;
    }
    let (id, said_in) = said.map(|(id, place)| (excerpt(&id), place.to_owned())).unzip();
    Some(License { id, said_in, text: text.map(str::to_owned) })
}

fn read(dir: &Path, name: &str) -> Option<String> {
    let mut bytes = vec![];
    File::open(dir.join(name)).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The value of `license:` between the first two lines of `---`: one id, or several as a list. "other" is told by its
/// `license_name:`.
fn front_matter(card: &str) -> Option<String> {
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let lines: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let plain = |value: &str| value.trim().trim_matches(['"', '\'']).to_owned();
    let value = |key: &str| -> Option<String> {
        let at = lines.iter().position(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))?;
        let inline = lines[at][key.len() + 1..].split(" #").next().unwrap_or_default().trim();
        let ids: Vec<String> = match inline.strip_prefix('[').map(|list| list.trim_end_matches(']')) {
            Some(list) => list.split(',').map(plain).collect(),
            None if inline.is_empty() => {
                let items = lines[at + 1..].iter().map_while(|line| line.trim_start().strip_prefix("- "));
                items.map(plain).collect()
            }
            None => vec![plain(inline)],
        };
        Some(ids.join(", ")).filter(|ids| !ids.is_empty())
    };
    let license = value("license")?;
    match license.as_str() {
        "other" => Some(value("license_name").unwrap_or(license)),
        _ => Some(license),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_matter_of_a_model_card_names_the_licence() {
        for (card, id) in [
            ("---\nlibrary_name: x\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Model\n", Some("apache-2.0")),
            ("\u{feff}---\r\nlicense: \"mit\"  # as ever\r\n---\r\n", Some("mit")),
            ("---\nlicense:\n- mit\n- apache-2.0\ntags: []\n---\n", Some("mit, apache-2.0")),
            ("---\nlicense: [mit, 'bsd-3-clause']\n---\n", Some("mit, bsd-3-clause")),
            ("---\nlicense: other\nlicense_name: tongyi-qianwen\n---\n", Some("tongyi-qianwen")),
            ("---\nlicense: other\n---\n", Some("other")),
            ("---\nlicense_link: LICENSE\n---\nlicense: mit\n", None),
            ("# Model\n---\nlicense: mit\n---\n", None),
            ("---\nlicense:\n---\n", None),
            ("", None),
        ] {
            assert_eq!(front_matter(card).as_deref(), id, "{card:?}");
        }
    }

    #[test]
    fn what_the_file_says_comes_before_the_card_and_that_before_the_config() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of(dir.path(), None), None);
        std::fs::write(dir.path().join(CONFIG), r#"{"license": "bsd"}"#).unwrap();
        std::fs::write(dir.path().join("LICENSE"), "as is").unwrap();
        let said = |told| {
            let License { id, said_in, text } = of(dir.path(), told).unwrap();
            assert_eq!(text.as_deref(), Some("LICENSE"));
            (id.unwrap(), said_in.unwrap())
        };
        assert_eq!(said(None), ("bsd".into(), CONFIG.into()));
        std::fs::write(dir.path().join(CARD), "---\nlicense: mit\u{1b}[2J\n---\n").unwrap();
        assert_eq!(said(None), ("mit\\u{1b}[2J".into(), CARD.into()));
        assert_eq!(said(Some(("gemma".into(), "x.gguf"))), ("gemma".into(), "x.gguf".into()));
    }
}
