//! Chat templates and target masks against what transformers made of the same conversations (tests/goldens/chat).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use distill::corpus::{
    ChatTemplate, EncodeError, Encoder, LossOn, Message, Place, Record, Row, TemplateChoice, TextTokenizer,
};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/chat").join(name)
}

fn read(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn ids(json: &Value) -> Vec<u32> {
    serde_json::from_value(json.clone()).unwrap()
}

struct Case {
    name: String,
    json: Value,
    messages: Vec<Message>,
    template: String,
}

fn cases() -> Vec<Case> {
    let message = |m: &Value| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap());
    let case = |json: Value| Case {
        name: json["name"].as_str().unwrap().into(),
        messages: json["messages"].as_array().unwrap().iter().map(message).collect(),
        template: json["template"].as_str().unwrap().into(),
        json,
    };
    read("cases.json").into_iter().map(case).collect()
}

impl Case {
    fn prefixes(&self) -> &[Value] {
        self.json["prefixes"].as_array().unwrap()
    }

    /// The rows, or the reason why there are none.
    fn encode(&self) -> Result<Vec<Row>, String> {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("template.jinja");
        std::fs::write(&template, &self.template).unwrap();
        let tokenizer = Arc::new(TextTokenizer::from_dir(&golden("")).unwrap());
        let encoder = Encoder::new(tokenizer, &TemplateChoice::File(template), 1 << 20, LossOn::Completion).unwrap();
        let place = Place { file: Arc::new("cases.json".into()), line: 1 };
        match encoder.encode(&Record::Chat(self.messages.clone()), &place) {
            Ok(encoded) => Ok(encoded.rows.into_iter().map(|r| r.row.expect("it has a target")).collect()),
            Err(EncodeError::Record(reason)) => Err(reason),
            Err(EncodeError::Setup(error)) => panic!("{error}"),
        }
    }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let tokenizer = TextTokenizer::from_dir(&golden("")).unwrap();
    let cases = cases();
    assert!(cases.len() >= 50);
    for case in cases {
        let template = ChatTemplate::new(&case.template, tokenizer.special().clone()).unwrap();
        let whole = template.render(&case.messages, false);
        match case.json["rendered"].as_str() {
            Some(rendered) => assert_eq!(whole.unwrap(), rendered, "{}", case.name),
            None => {
                let (error, expected) = (whole.unwrap_err().to_string(), case.json["error"].as_str().unwrap());
                assert!(error.contains(expected), "{}: {error}", case.name);
            }
        }
        for prefix in case.prefixes() {
            let i = prefix["message"].as_u64().unwrap() as usize;
            assert_eq!(template.render(&case.messages[..i], true).unwrap(), prefix["text"], "{}[{i}]", case.name);
            assert_eq!(template.render(&case.messages[..=i], false).unwrap(), prefix["through"], "{}[{i}]", case.name);
        }
    }
}

#[test]
fn token_ids_and_texts_agree_with_transformers() {
    let tokenizer = TextTokenizer::from_dir(&golden("")).unwrap();
    for case in read("encodings.json") {
        let text = case["text"].as_str().unwrap();
        let plain = tokenizer.encode(text, false).unwrap();
        assert_eq!(plain, ids(&case["ids"]), "{text}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids_with_special_tokens"]), "{text}");
        assert_eq!(tokenizer.decode(&plain, false).unwrap(), case["decoded"], "{text}");
        assert_eq!(tokenizer.decode(&plain, true).unwrap(), case["decoded_without_special_tokens"], "{text}");
    }
    for case in cases().iter().filter(|c| c.json["rendered"].is_string()) {
        let rendered = tokenizer.encode(case.json["rendered"].as_str().unwrap(), false).unwrap();
        assert_eq!(rendered, ids(&case.json["ids"]), "{}", case.name);
    }
}

/// The answers, each with its end-of-turn token, by the definition: what `messages[..=i]` adds to `messages[..i]` with the
/// generation prompt, without the white space after the end of the turn; None where an earlier turn is rendered otherwise.
fn answers(case: &Case) -> Vec<Option<String>> {
    let answer = |p: &Value| {
        let (text, through) = (p["text"].as_str().unwrap(), p["through"].as_str().unwrap());
        Some(through.strip_prefix(text)?.trim_end_matches('\n').to_string())
    };
    case.prefixes().iter().map(answer).collect()
}

#[test]
fn targets_are_the_answers_and_their_end_of_turn_tokens() {
    let tokenizer = TextTokenizer::from_dir(&golden("")).unwrap();
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    let targets = |row: &Row| -> Vec<u32> {
        row.tokens.iter().zip(&row.targets).filter(|(_, target)| **target).map(|(id, _)| *id).collect()
    };
    for case in cases() {
        let Some(rendered) = case.json["rendered"].as_str() else {
            let reason = case.encode().unwrap_err();
            assert!(reason.contains(case.json["error"].as_str().unwrap()), "{}: {reason}", case.name);
            continue;
        };
        let rows = case.encode().unwrap();
        let together = case.prefixes().iter().all(|p| p["is_prefix_of_rendered"] == true);
        assert_eq!(rows.len(), if together { 1 } else { case.prefixes().len() }, "{}", case.name);
        for (row, prefix) in rows.iter().zip(case.prefixes()) {
            let context = ids(&prefix["ids"]);
            assert_eq!(row.tokens[..context.len()], context, "{}", case.name);
            assert!(!row.targets[..context.len()].contains(&true), "{}", case.name);
            assert!(row.targets.last().unwrap(), "{}: it ends with the last answer", case.name);
        }
        if together {
            let text = decode(&rows[0].tokens);
            assert!(rendered.starts_with(&text), "{}", case.name);
            // Where the turn is rendered the same when it is the last, the answer is known to the byte.
            let expected: Vec<Option<String>> = answers(&case);
            let mut left = decode(&targets(&rows[0]));
            for (answer, prefix) in expected.iter().zip(case.prefixes()) {
                let known = answer
                    .clone()
                    .filter(|a| rendered.starts_with(&format!("{}{a}", prefix["text"].as_str().unwrap())));
                let answer = known.unwrap_or_else(|| {
                    let rest = &rendered[prefix["text"].as_str().unwrap().len()..];
                    rest[..rest.find("<|im_end|>").unwrap() + "<|im_end|>".len()].into()
                });
                left = left.strip_prefix(answer.as_str()).unwrap_or_else(|| panic!("{}: {left}", case.name)).into();
            }
            assert_eq!(left, "", "{}", case.name);
        } else {
            for (row, (answer, message)) in
                rows.iter().zip(answers(&case).iter().zip(case.prefixes().iter().map(|p| p["message"].as_u64())))
            {
                let content = &case.messages[message.unwrap() as usize].content;
                let content = content.split("</think>").last().unwrap().trim();
                let expected = answer.clone().unwrap_or_else(|| format!("{content}<|im_end|>"));
                assert_eq!(decode(&targets(row)), expected, "{}", case.name);
            }
        }
    }
}
