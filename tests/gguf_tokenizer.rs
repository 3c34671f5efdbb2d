//! A GGUF file's own tokenizer, held to what transformers makes of the same tokens: see tests/goldens/make_gguf.py.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use distill::corpus::{Batch, ChatTemplate, Message, Row, RowRef, TextTokenizer};
use distill::kernels::Precision;
use distill::model::Gguf;
use distill::model::gguf::Value;

const SPLITS: [&str; 4] = ["gpt-2", "smollm", "qwen2", "llama-bpe"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gguf").join(name)
}

fn open(name: &str) -> Gguf {
    Gguf::open(&golden(&format!("{name}.gguf"))).unwrap()
}

fn cases() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(golden("cases.json")).unwrap()).unwrap()
}

fn ids(json: &serde_json::Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn every_split_gives_the_ids_of_its_original() {
    for split in SPLITS {
        let tokenizer = open(split).tokenizer(None).unwrap();
        let cases = &cases()[split];
        assert!(cases.as_array().unwrap().len() >= 50);
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found, ids(&case["ids"]), "{split}: {text:?}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["special"]), "{split}: {text:?}");
            assert_eq!(
                tokenizer.decode(&found, false).unwrap(),
                case["decoded"].as_str().unwrap(),
                "{split}: {text:?}"
            );
        }
    }
}

#[test]
fn special_tokens_stops_and_the_template_come_from_the_metadata() {
    for (split, bos, stops) in [
        ("gpt-2", 561, vec![563]),
        ("smollm", 562, vec![563]),
        ("qwen2", 561, vec![563]),
        // With an end-of-turn token besides.
        ("llama-bpe", 562, vec![563, 561]),
    ] {
        let tokenizer = open(split).tokenizer(None).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(bos), Some(563)), "{split}");
        assert_eq!(tokenizer.eos_ids(), stops, "{split}");
        assert_eq!(tokenizer.special().pad.as_deref(), Some("<|endoftext|>"));
        // Unused rows of the embedding are no tokens.
        assert_eq!((tokenizer.vocab_size(), tokenizer.max_token_id()), (566, 565), "{split}");
        // Control tokens are no text, user-defined ones are.
        assert_eq!(tokenizer.decode(&[562, 564, 563], true).unwrap(), "<tool_call>");
        let template = ChatTemplate::of(tokenizer.files(), tokenizer.special().clone()).unwrap().unwrap();
        let turn = Message { role: "user".into(), content: "a".into() };
        let want = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(template.render(&[turn], true).unwrap(), want);
    }
}

#[test]
fn the_files_it_is_written_as_are_the_same_tokenizer() {
    for split in SPLITS {
        let made = open(split).tokenizer(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in made.files().own() {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let read = TextTokenizer::from_dir(folder.path()).unwrap();
        assert_eq!(read.eos_ids(), made.eos_ids());
        for case in cases()[split].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(read.encode(text, true).unwrap(), made.encode(text, true).unwrap(), "{split}: {text:?}");
        }
    }
}

#[test]
fn files_of_llama_cpps_own_writer_give_the_logits_of_transformers() {
    let expected = candle_core::safetensors::load(golden("expected.safetensors"), &Device::Cpu).unwrap();
    for split in SPLITS {
        let file = open(split);
        let text = "The ferry leaves at 12345. It's late!";
        let tokens = file.tokenizer(None).unwrap().encode(text, false).unwrap();
        let want: Vec<i64> = expected[&format!("{split}.ids")].to_vec1().unwrap();
        assert_eq!(tokens.iter().map(|&id| id as i64).collect::<Vec<_>>(), want);
        // The last row of a batch predicts from its last token but one.
        let tokens = [tokens, vec![0]].concat();
        let targets = (0..tokens.len()).map(|t| t + 1 == tokens.len()).collect();
        let source = RowRef { digest: [0; 32], file: Arc::new("x".into()), line: 1 };
        let model = file.decoder(Precision::F32).unwrap();
        let hidden = model.hidden(&Batch::new(&[Row { tokens, targets, source }])).unwrap();
        let got: Vec<f32> = model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let want: Vec<f32> = expected[&format!("{split}.logits")].to_vec1().unwrap();
        let largest = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == want.len() && largest < 1e-4 && !got.iter().any(|x| x.is_nan()), "{split}: {largest}");
    }
}

/// What the file says when its metadata are changed; `None` removes a key.
fn refusal(changes: &[(&str, Option<Value>)]) -> String {
    let mut file = open("smollm");
    for (key, value) in changes {
        match value {
            Some(value) => file.header.metadata.insert((*key).into(), value.clone()),
            None => file.header.metadata.remove(*key),
        };
    }
    file.tokenizer(None).expect_err("it was taken").to_string()
}

#[test]
fn what_cannot_be_built_is_refused_by_name_with_the_way_out() {
    let text = |s: &str| Some(Value::Text(s.into()));
    let texts = |list: &[&str]| Some(Value::Texts(list.iter().map(|s| s.to_string()).collect()));
    for (key, value, part) in [
        (
            "tokenizer.ggml.pre",
            text("tekken"),
            "tokenizer.ggml.pre is \"tekken\"; supported: gpt-2, smollm, qwen2, llama-bpe",
        ),
        ("tokenizer.ggml.pre", None, "tokenizer.ggml.pre is missing"),
        ("tokenizer.ggml.model", text("llama"), "tokenizer.ggml.model is \"llama\"; supported: gpt2"),
        ("tokenizer.ggml.model", Some(Value::Bool(true)), "tokenizer.ggml.model is not a text"),
        ("tokenizer.ggml.tokens", None, "has no vocabulary"),
        ("tokenizer.ggml.tokens", texts(&["a", "b"]), "token_type has 568 entries for 2 tokens"),
        ("tokenizer.ggml.token_type", None, "token_type has 0 entries for 568 tokens"),
        ("tokenizer.ggml.merges", None, "tokenizer.ggml.merges is missing"),
        ("tokenizer.ggml.merges", texts(&["ab"]), "merge 0 is \"ab\", not two tokens"),
        ("tokenizer.ggml.merges", texts(&["Ġ Ġ", "zz qq"]), "merge 1 is \"zz qq\", but one of the two"),
        ("tokenizer.ggml.merges", texts(&["Ġ Ġ", "Ġ Ġ"]), "merge 1 is \"Ġ Ġ\", for the second time"),
        ("tokenizer.ggml.bos_token_id", Some(Value::Unsigned(568)), "bos_token is 568; the ids are 0 to 567"),
        ("tokenizer.ggml.eos_token_id", Some(Value::Unsigned(567)), "\"[PAD567]\" is not in the vocabulary"),
        ("tokenizer.ggml.eos_token_id", text("x"), "eos_token_id is no token's id"),
        ("tokenizer.ggml.add_bos_token", text("x"), "add_bos_token is not a boolean"),
        ("tokenizer.chat_template", Some(Value::Bool(true)), "tokenizer.chat_template is not a text"),
    ] {
        let said = refusal(&[(key, value)]);
        let complete = ["smollm.gguf", "put its tokenizer.json beside the file"].iter().all(|p| said.contains(p));
        assert!(said.contains(part) && complete, "{part:?} is not in: {said}");
    }
    let said =
        refusal(&[("tokenizer.ggml.add_bos_token", Some(Value::Bool(true))), ("tokenizer.ggml.bos_token_id", None)]);
    assert!(said.contains("the BOS id is missing"), "{said}");
    let mut twice = open("smollm").tokens().unwrap().to_vec();
    twice[300] = twice[299].clone();
    let said = refusal(&[("tokenizer.ggml.tokens", Some(Value::Texts(twice)))]);
    assert!(said.contains("the tokens 299 and 300 are both"), "{said}");
}

#[test]
fn an_id_of_a_plain_token_makes_no_word_special_and_none_is_none() {
    let mut file = open("smollm");
    for (key, value) in [("unknown", 0u64), ("padding", 5), ("bos", u32::MAX.into())] {
        file.header.metadata.insert(format!("tokenizer.ggml.{key}_token_id"), Value::Unsigned(value));
    }
    let tokenizer = file.tokenizer(None).unwrap();
    let special = tokenizer.special();
    assert_eq!((&special.unk, &special.pad, &special.bos), (&None, &None, &None));
}

#[test]
fn a_given_tokenizer_needs_no_merges_of_the_file_and_takes_its_special_tokens() {
    let mut file = open("smollm");
    let made = file.tokenizer(None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (name, content) = made.files().own().next().unwrap();
    assert_eq!(name, "tokenizer.json");
    std::fs::write(folder.path().join(name), content).unwrap();
    for key in ["merges", "pre", "token_type"] {
        file.header.metadata.remove(&format!("tokenizer.ggml.{key}"));
    }
    file.header.metadata.insert("tokenizer.ggml.model".into(), Value::Text("llama".into()));
    let given = file.tokenizer(Some(folder.path())).unwrap();
    assert_eq!((given.bos_id(), given.eos_ids()), (made.bos_id(), made.eos_ids()));
    // What the folder says counts.
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
    let given = file.tokenizer(Some(folder.path())).unwrap();
    assert_eq!((given.bos_id(), given.eos_id()), (made.bos_id(), Some(561)));
}

#[test]
fn damaged_tokenizers_are_errors_and_never_a_panic() {
    let keys: Vec<String> =
        open("llama-bpe").header.metadata.keys().filter(|key| key.starts_with("tokenizer.")).cloned().collect();
    let odd = [
        Value::Unsigned(u64::MAX),
        Value::Signed(-7),
        Value::Float(f64::NAN),
        Value::Bool(true),
        Value::Text("\u{1b}{%".into()),
        Value::Texts(vec![String::new(), " ".into()]),
        Value::Numbers(vec![f64::NAN; 568]),
    ];
    for key in &keys {
        for value in &odd {
            let mut file = open("llama-bpe");
            file.header.metadata.insert(key.clone(), value.clone());
            drop(file.tokenizer(None));
        }
    }
}
