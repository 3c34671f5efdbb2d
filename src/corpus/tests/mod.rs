//! Tests of the parts together, over a tokenizer made here: one token per byte, and four special ones.

mod chat;
mod faults;
mod loading;
mod packed;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::*;

const CHATML: &str = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A model folder with a byte-level tokenizer whose EOS is `</s>`, and `template` if there is one.
fn model_dir(template: Option<&str>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let special = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"];
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort();
    let tokens = special.iter().map(|s| s.to_string()).chain(alphabet.iter().map(char::to_string));
    let vocab: serde_json::Map<String, serde_json::Value> = tokens.zip(0..).map(|(t, id)| (t, json!(id))).collect();
    let added: Vec<_> = (0..4)
        .map(|id| {
            json!({"id": id, "content": special[id], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        // Stored by careless trainers; both must be switched off.
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 3,
                    "pad_type_id": 0, "pad_token": "</s>"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

struct Setup {
    template: Option<&'static str>,
    choice: TemplateChoice,
    max_length: usize,
    loss_on: LossOn,
}

impl Default for Setup {
    fn default() -> Self {
        Self { template: Some(CHATML), choice: TemplateChoice::Auto, max_length: 1000, loss_on: LossOn::Completion }
    }
}

impl Setup {
    fn with(template: &'static str) -> Self {
        Self { template: Some(template), ..Self::default() }
    }

    fn off() -> Self {
        Self { choice: TemplateChoice::Off, ..Self::default() }
    }

    fn encoder(&self) -> Encoder {
        let dir = model_dir(self.template);
        let tokenizer = Arc::new(TextTokenizer::from_dir(dir.path()).unwrap());
        Encoder::new(tokenizer, &self.choice, self.max_length, self.loss_on).unwrap()
    }

    fn encode(&self, line: &str) -> Result<Encoded, EncodeError> {
        let place = Place { file: Arc::new("x.jsonl".into()), line: 1 };
        self.encoder().encode(&Record::parse(line.as_bytes()).unwrap(), &place)
    }

    /// The rows of one line, each with its targets in ⟦ ⟧.
    fn shown(&self, line: &str) -> Vec<String> {
        let tokenizer = self.encoder();
        let tokenizer = tokenizer.tokenizer();
        let rows = self.encode(line).unwrap().rows;
        rows.iter().map(|r| r.row.as_ref().map_or("dropped".into(), |row| show(tokenizer, row))).collect()
    }

    fn reason(&self, line: &str) -> String {
        match self.encode(line) {
            Err(EncodeError::Record(reason)) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn show(tokenizer: &TextTokenizer, row: &Row) -> String {
    let (mut shown, mut start) = (String::new(), 0);
    for end in 1..=row.tokens.len() {
        if end == row.tokens.len() || row.targets[end] != row.targets[start] {
            let text = tokenizer.decode(&row.tokens[start..end], false).unwrap();
            shown += &if row.targets[start] { format!("⟦{text}⟧") } else { text };
            start = end;
        }
    }
    shown
}

fn file(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().write_all(content.as_ref()).unwrap();
    path
}
