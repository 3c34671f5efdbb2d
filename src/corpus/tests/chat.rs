//! Which tokens count, to the token.

use super::*;

const PAIR: &str = r#"{"prompt": "hi", "response": "hello"}"#;

fn chat(turns: &[(&str, &str)]) -> String {
    let messages: Vec<_> = turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    json!({ "messages": messages }).to_string()
}

#[test]
fn a_chat_row_predicts_every_answer_with_its_end_of_turn_token() {
    let setup = Setup::default();
    let one = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦hello<|im_end|>⟧";
    assert_eq!(setup.shown(PAIR), [one]);
    let two =
        chat(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]);
    assert_eq!(
        setup.shown(&two),
        [
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n<|im_start|>user\n\
          c<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧"
        ]
    );
}

#[test]
fn a_special_token_in_the_content_does_not_end_the_turn() {
    let row = chat(&[("user", "a"), ("assistant", "x<|im_end|>y"), ("user", "b"), ("assistant", "<|im_end|>")]);
    assert_eq!(
        Setup::default().shown(&row),
        [
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦x<|im_end|>y<|im_end|>⟧\n<|im_start|>user\nb<|im_end|>\n\
          <|im_start|>assistant\n⟦<|im_end|><|im_end|>⟧"
        ]
    );
}

#[test]
fn without_a_special_token_after_the_content_eos_ends_the_turn() {
    let plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}\
                 {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let row = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(Setup::with(plain).shown(&row), ["user: a\nassistant: ⟦b</s>⟧\nuser: c\nassistant: ⟦d</s>⟧"]);
    let silent = "{% for m in messages %}{{ m.role }}\n{% endfor %}";
    let refused = "messages[1]: the chat template renders neither the content nor a special token after it";
    assert_eq!(Setup::with(silent).reason(&row), refused);
}

#[test]
fn a_template_that_marks_only_the_next_turn_lends_its_marker() {
    // In the manner of GLM 4, which stops at the next role's token.
    let marked = "{% for m in messages %}{{ ('<|im_start|>' if m.role == 'user' else '<s>') + m.content }}{% endfor %}\
                  {% if add_generation_prompt %}<s>{% endif %}";
    let row = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(Setup::with(marked).shown(&row), ["<|im_start|>a<s>⟦b<|im_start|>⟧c<s>⟦d</s>⟧"]);
}

#[test]
fn trimmed_content_counts_as_it_is_rendered() {
    let trimming = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let row = chat(&[("user", " a "), ("assistant", " yes "), ("user", "say yes now"), ("assistant", "  ")]);
    assert_eq!(
        Setup::with(trimming).shown(&row),
        ["<|im_start|>user\na<|im_end|><|im_start|>assistant\n⟦yes<|im_end|>⟧<|im_start|>user\nsay yes now<|im_end|>\
          <|im_start|>assistant\n⟦<|im_end|>⟧"]
    );
}

#[test]
fn a_template_that_strips_earlier_thinking_makes_one_row_per_answer() {
    let stripping = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
                     {% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}\
                     {% elif m.role == 'assistant' %}{{ '<think>' + m.content.split('<think>')[-1] }}\
                     {% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}";
    let row =
        chat(&[("user", "a"), ("assistant", "<think>t</think>b"), ("user", "c"), ("assistant", "<think>u</think>d")]);
    let setup = Setup::with(stripping);
    let first = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>⟦t</think>b<|im_end|>⟧";
    let second = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n\
                  <|im_start|>assistant\n<think>⟦u</think>d<|im_end|>⟧";
    assert_eq!(setup.shown(&row), [first, second]);
    assert!(setup.encode(&row).unwrap().split);
    assert!(!setup.encode(PAIR).unwrap().split);
}

#[test]
fn pairs_and_texts_without_a_template() {
    assert_eq!(Setup::off().shown(PAIR), ["<s>hi⟦hello</s>⟧"]);
    assert_eq!(Setup::off().shown(r#"{"prompt": "", "response": "b"}"#), ["<s>⟦b</s>⟧"]);
    assert_eq!(Setup::off().shown(r#"{"text": "abc"}"#), ["<s>⟦abc</s>⟧"]);
    assert_eq!(Setup::default().shown(r#"{"text": "abc"}"#), ["<s>⟦abc</s>⟧"]);
    let refused = r#""messages" need a chat template, and chat_template is "none""#;
    assert_eq!(Setup::off().reason(&chat(&[("assistant", "b")])), refused);
}

#[test]
fn an_unfinished_answer_has_no_end_to_learn() {
    let shown = |setup: Setup, line: &str| setup.shown(line).remove(0);
    let unfinished = |line: &str| line.replacen('{', r#"{"unfinished": true, "#, 1);
    assert_eq!(shown(Setup::off(), &unfinished(PAIR)), "<s>hi⟦hello⟧");
    assert_eq!(shown(Setup::off(), &PAIR.replacen('{', r#"{"unfinished": false, "#, 1)), "<s>hi⟦hello</s>⟧");
    assert!(shown(Setup::default(), &unfinished(PAIR)).ends_with("assistant\n⟦hello⟧"));
    let two = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let all = Setup { loss_on: LossOn::All, ..Setup::default() };
    assert!(all.shown(&unfinished(&two)).remove(0).ends_with("assistant\nd⟧"));
    let shown = shown(Setup::default(), &unfinished(&two));
    assert!(shown.contains("⟦b<|im_end|>⟧") && shown.ends_with("⟦d⟧"), "{shown}");
}

#[test]
fn a_prompt_alone_is_a_row_only_for_an_encoder_that_wants_something_to_answer() {
    let prompt = r#"{"prompt": "hi"}"#;
    let asked = chat(&[("system", "be kind"), ("user", "hi")]);
    for line in [prompt, asked.as_str()] {
        let reason = Setup::default().reason(line);
        assert!(reason.contains("a prompt without a response has no target"), "{reason}");
    }
    let place = Place { file: Arc::new("test.jsonl".into()), line: 3 };
    let rows = |setup: Setup, line: &str| -> Vec<EncodedRow> {
        let encoder = setup.encoder().with_prompts();
        encoder.encode(&Record::parse(line.as_bytes()).unwrap(), &place).unwrap().rows
    };
    let wanted = |setup: &Setup, text: &str| setup.encoder().tokenizer().encode(text, false).unwrap();
    for (setup, line, text) in [
        (Setup::off(), prompt, "<s>hi"),
        (Setup::default(), prompt, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (
            Setup::default(),
            &asked,
            "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ),
    ] {
        let ids = wanted(&setup, text);
        let row = rows(setup, line).remove(0).row.unwrap();
        assert_eq!((row.target_count(), row.source.line, row.tokens), (0, 3, ids));
    }
    // Nothing fits behind a prompt that fills the row.
    assert_eq!(rows(Setup { max_length: 3, ..Setup::off() }, prompt)[0].row, None);
    assert!(rows(Setup { max_length: 4, ..Setup::off() }, prompt)[0].row.is_some());
}

#[test]
fn auto_without_a_template_names_none_unless_all_rows_are_text() {
    let setup = Setup { template: None, ..Setup::default() };
    assert_eq!(setup.shown(r#"{"text": "abc"}"#), ["<s>⟦abc</s>⟧"]);
    let Err(EncodeError::Setup(error)) = setup.encode(PAIR) else { panic!("not refused") };
    assert_eq!(error.class(), crate::error::Class::Input);
    assert!(error.to_string().contains("chat_template = \"none\""), "{error}");
}

#[test]
fn loss_on_all_predicts_every_token_but_the_first() {
    let all = |setup| Setup { loss_on: LossOn::All, ..setup };
    assert_eq!(all(Setup::off()).shown(PAIR), ["<s>⟦hihello</s>⟧"]);
    let shown = all(Setup::default()).shown(PAIR);
    assert_eq!(shown, ["<|im_start|>⟦user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>⟧"]);
    let shown = all(Setup::default()).shown(&chat(&[("assistant", "b"), ("user", "c")]));
    assert_eq!(shown, ["<|im_start|>⟦assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n⟧"]);
}

#[test]
fn a_long_row_is_cut_and_a_row_without_a_target_is_dropped() {
    let cut = |max_length| Setup { max_length, ..Setup::off() };
    assert_eq!(cut(8).shown(PAIR), ["<s>hi⟦hello⟧"]);
    assert_eq!(cut(4).shown(PAIR), ["<s>hi⟦h⟧"]);
    assert_eq!(cut(3).shown(PAIR), ["dropped"]);
    assert!(!cut(9).encode(PAIR).unwrap().rows[0].truncated);
    assert!(cut(8).encode(PAIR).unwrap().rows[0].truncated);
    assert!(cut(3).encode(PAIR).unwrap().rows[0].truncated);
}

#[test]
fn the_digest_tells_tokens_and_targets_apart() {
    let digest = |setup: &Setup, line: &str| setup.encode(line).unwrap().rows[0].row.clone().unwrap().source.digest;
    let all = Setup { loss_on: LossOn::All, ..Setup::off() };
    let one = digest(&Setup::off(), PAIR);
    assert_eq!(one, digest(&Setup::off(), r#"{"id": 1, "prompt": "hi", "response": "hello"}"#));
    assert_ne!(one, digest(&all, PAIR));
    assert_ne!(one, digest(&Setup::off(), r#"{"prompt": "hi", "response": "hellp"}"#));
}

#[test]
fn what_a_template_raises_is_the_reason() {
    let strict = "{% if messages[0].role != 'user' %}{{ raise_exception('start with the \u{1b}user') }}{% endif %}";
    let reason = Setup::with(strict).reason(&chat(&[("assistant", "b")]));
    assert_eq!(
        reason,
        "the chat template refuses the conversation: start with the \\u{1b}user (line 1 of the template)"
    );
    let broken = model_dir(Some("{% for m in messages %}"));
    let files = TokenizerFiles::read(broken.path()).unwrap();
    let error = ChatTemplate::of(&files, SpecialTokens::default()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: the chat template does not compile: "), "{error}");
}

#[test]
fn templates_have_what_transformers_gives_them() {
    let render = |source: &str| {
        let special = SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), ..Default::default() };
        ChatTemplate::new(source, special).unwrap().render(&[Message::new("user", "a<'é'>")], false).unwrap()
    };
    assert_eq!(render("{{ messages | tojson }}"), r#"[{"role": "user", "content": "a<'é'>"}]"#);
    let indented = "[\n  {\n    \"role\": \"user\",\n    \"content\": \"a<'é'>\"\n  }\n]";
    assert_eq!(render("{{ messages | tojson(indent=2) }}"), indented);
    assert_eq!(
        render("{{ [] | tojson(indent=2) }}{{ {} | tojson }}{{ [[], 1.5, true, none] | tojson }}"),
        "[]{}[[], 1.5, true, null]"
    );
    assert_eq!(render("{{ bos_token ~ eos_token }}{{ pad_token }}{{ tools is none }}"), "<s></s>True");
    assert_eq!(render("{{ strftime_now('%Y') | length }}"), "4");
    assert_eq!(
        render("{% for n in range(10, 0, -3) %}{% if n == 4 %}{% continue %}{% endif %}{{ n }}{% endfor %}"),
        "1071"
    );
    assert_eq!(render("{{ range(3) | length }}{{ range(5)[1] }}{{ ', '.join(['a', 'b']) }}"), "31a, b");
    assert_eq!(render("  {% if true %}\n  {%- generation -%}  x {%- endgeneration %}\ny{% endif %}\n"), "xy");
    assert_eq!(render("{{ messages[0]['content'].split('<')[-1].rstrip('>').upper() }}"), "'É'");
}

#[test]
fn the_tokenizer_knows_its_tokens() {
    let dir = model_dir(Some(CHATML));
    file(dir.path(), "generation_config.json", r#"{"eos_token_id": [1, 3]}"#);
    let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.eos_ids()), (Some(2), Some(3), &[3, 1][..]));
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_token_id()), (260, 259));
    let ids = tokenizer.encode("longer than the stored truncation", true).unwrap();
    assert_eq!(ids.len(), 34);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "longer than the stored truncation");
    assert_eq!(tokenizer.token(tokenizer.encode("\n", false).unwrap()[0]), "\\n");
    assert_eq!(tokenizer.token(9999), "#9999");
    let names: Vec<_> = tokenizer.files().own().map(|(name, _)| name).collect();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]);

    // EOS by number where no name is given.
    file(dir.path(), "tokenizer_config.json", "{}");
    assert_eq!(TextTokenizer::from_dir(dir.path()).unwrap().eos_id(), Some(1));
    file(dir.path(), "tokenizer_config.json", r#"{"eos_token": "<nope>"}"#);
    let error = TextTokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("the special token \"<nope>\" is not in the vocabulary"), "{error}");
}

#[test]
fn another_vocabulary_of_the_same_size_is_told_apart() {
    let (one, other) = (model_dir(None), model_dir(None));
    let path = other.path().join("tokenizer.json");
    let swapped = std::fs::read_to_string(&path).unwrap().replace("\"a\":", "\"b\u{1}\":").replace("\"b\":", "\"a\":");
    file(other.path(), "tokenizer.json", swapped.replace("\"b\u{1}\":", "\"b\":"));
    let (one, other) = (TextTokenizer::from_dir(one.path()).unwrap(), TextTokenizer::from_dir(other.path()).unwrap());
    assert_eq!(one.vocabulary_difference(&one), None);
    assert_eq!(one.vocab_size(), other.vocab_size());
    assert_eq!(
        one.vocabulary_difference(&other).unwrap(),
        "2 tokens differ: \"a\" is 68 and 69, \"b\" is 69 and 68; the highest ids are 259 and 259"
    );
}
