//! What the fuzzing of each reader starts from: small inputs that are right, made here or taken from the goldens.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use distill::cache::{BlockRow, Codec, Header, Stored, Writer, encode_batch};
use distill::checkpoint::provenance::{Corpus, Environment, FileAt, License, Order, Rows, Source, Training};
use distill::checkpoint::{Dtype, Entry, FileEntry, Manifest, Provenance, Values, write_safetensors};
use distill::corpus::{Batch, CorpusIndex, Encoder, LoadOrder, Loader, LossOn, OnBadRecord, Row, RowRef};
use distill::corpus::{TemplateChoice, TextTokenizer, row_digest};
use distill::model::ModelConfig;
use distill::signal::TeacherSignal;
use distill::train::TrainState;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::readers::{PROVENANCE_FOLDER, TINY_GPT2, TINY_LLAMA, cache_header};

/// The seeds of the reader called `name`.
pub fn of(name: &str) -> Vec<Vec<u8>> {
    match name {
        "row" => ROWS.iter().map(|row| row.as_bytes().to_vec()).collect(),
        "corpus" => corpora(),
        "config" => CONFIGS.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "template" => templates(),
        "tokenizer" => TOKENIZERS.iter().map(|json| tokenizer(json)).collect(),
        "model_config" => MODEL_CONFIGS.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "weights" => {
            [(TINY_LLAMA, Dtype::F32), (TINY_LLAMA, Dtype::Bf16), (TINY_GPT2, Dtype::F32)].map(weights).to_vec()
        }
        "weight_index" => vec![WEIGHT_INDEX.as_bytes().to_vec()],
        "gguf" => vec![gguf("llama", "llama-bpe"), gguf("qwen2", "qwen2")],
        "cache" => (0..4).map(cache).collect(),
        "record" => (0..16).map(record).collect(),
        "manifest" => vec![manifest()],
        "provenance" => vec![provenance(false), provenance(true)],
        "state" => vec![state(), weights((TINY_LLAMA, Dtype::F32)), SUMMARY.as_bytes().to_vec()],
        "metrics" => vec![METRICS.as_bytes().to_vec()],
        other => panic!("no reader is called {other}"),
    }
}

const ROWS: [&str; 9] = [
    r#"{"prompt": "red 1?", "response": "a green sky"}"#,
    r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4 \ud83d\ude00"}]}"#,
    r#"{"text": "The ferry leaves at 7:45.\nläuft", "id": 7, "meta": {"a": [1, 2.5e3, null, true]}}"#,
    r#"{"prompt": "p", "completion": "c", "response": null}"#,
    r#"{"prompt": "something to answer"}"#,
    r#"{"messages": [{"role": "tool", "content": "x", "tool_calls": []}, {"role": "developer", "content": ""}], "text": "t", "unfinished": true}"#,
    r#"{"messages": null, "text": "\u0000\u001b[2J"}"#,
    r#"{"text": "a", "text": "b"}"#,
    r#"[{"role": "user"}]"#,
];

/// Plain, with a byte order mark, and packed: whole, in two members or frames, and stored rather than squeezed, so that a change
/// inside reaches the rows.
fn corpora() -> Vec<Vec<u8>> {
    let rows = ROWS.join("\n") + "\r\n\r\n";
    let gzip = |text: &str, level: u32| {
        let mut gzip = GzEncoder::new(vec![], Compression::new(level));
        gzip.write_all(text.as_bytes()).and_then(|()| gzip.finish()).expect("memory")
    };
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 3).expect("memory");
    let (first, second) = rows.split_at(ROWS[0].len() + 1);
    vec![
        rows.clone().into_bytes(),
        format!("\u{feff}{}\n", ROWS[1]).into_bytes(),
        gzip(&rows, 6),
        gzip(&rows, 0),
        [gzip(first, 9), gzip(second, 1)].concat(),
        zstd(&rows),
        [zstd(first), zstd(second)].concat(),
    ]
}

const CONFIGS: [&str; 5] = [
    include_str!("../../configs/quickstart.toml"),
    include_str!("../../configs/quickstart-hard-labels.toml"),
    include_str!("../../configs/smoke.toml"),
    "seed = 7\n[teacher]\npath = \"t\"\nkind = \"gguf\"\n[student]\nkind = \"lora\"\nfrom = \"s\"\nrank = 4\nalpha = 8.0\n\
     targets = [\"q_proj\", \"v_proj\"]\n[data]\ntrain = [\"a.jsonl\", \"b.jsonl\"]\neval = \"c.jsonl\"\nmax_length = 64\n\
     [rollout]\nfraction = 0.5\nmax_new_tokens = 9\ntemperature = 1.0\ntop_p = 0.9\n[loss]\nhard_label_weight = { from = 1.0, \
     to = 0.1, schedule = \"linear\" }\n[[loss.mix]]\nkind = \"forward_kl\"\nweight = 0.5\n[[loss.mix]]\nkind = \"jsd\"\nweight = \
     0.5\nbeta = 0.3\n[loss.hidden]\nkind = \"cosine\"\nlayers = [[0, 1]]\nweight = 0.1\n[train]\nsteps = 9\nbatch_size \
     = 4\nlearning_rate = 1e-4\n[output]\ndir = \"out\"\n\0train.steps=3\0loss.temperature={from=2.0,to=1.0}",
    "[student]\nkind = 'local'\npath = 's'\n[data]\ntrain = 'a'\n[loss]\nkind = 'cross_entropy'\n[train]\nsteps = 0x10\n[output]\ndir = \"\"\"o\"\"\"\n\0data.train=[\"x\"]",
];

/// Distinct templates of real models, each with a conversation.
fn templates() -> Vec<Vec<u8>> {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../goldens/chat/cases.json")).expect("the goldens");
    let cases = cases.as_array().into_iter().flatten();
    let sources: std::collections::BTreeSet<&str> = cases.filter_map(|case| case["template"].as_str()).collect();
    let with_talk =
        |source: &str| format!("{source}\0Be brief.\0What is 2 + 2?\0<think>two</think>\n4\0thanks").into_bytes();
    sources.into_iter().chain(TEMPLATES).map(with_talk).collect()
}

const TEMPLATES: [&str; 4] = [
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'system' %}{% generation %}{{ m['content'].split('</think>')[-1].strip('\\n') }}\
     {% endgeneration %}{% set ns.n = ns.n + 1 %}{{ '<|im_end|>' if loop.last else ns.n }}{% endfor %}",
    "{% macro f(x, y='z') %}{{ x | tojson(indent=2) }}{{ y.replace('z', 'q').upper() }}{% endmacro %}{{ f(messages) }}\
     {{ '%s-%d' | format('a', 3) }}{{ '{:>3}'.format('x') }}{{ strftime_now('%Y %b') }}{{ range(1, 9, 2) | list | join(',') }}",
    "{%- if messages[0].role is defined and messages | length > 1 -%}{{ messages[1:] | map(attribute='content') | list }}\
     {{ raise_exception('no') }}{%- endif -%}",
];

fn tokenizer(json: &str) -> Vec<u8> {
    let config =
        r#"{"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": "{{ messages[0].content }}"}"#;
    format!("{json}\0<s> ab abc läuft\n\0{config}\0{{\"eos_token_id\": [1, 2]}}").into_bytes()
}

const TOKENIZERS: [&str; 5] = [
    r###"{"version":"1.0","added_tokens":[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},{"id":1,"content":"</s>","single_word":false,"lstrip":true,"rstrip":true,"normalized":true,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":true,"vocab":{"<s>":0,"</s>":1,"a":2,"b":3,"c":4,"ab":5,"abc":6,"Ġ":7},"merges":[["a","b"],["ab","c"]]}}"###,
    r###"{"added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"<s>":1,"</s>":2,"<0x0A>":3,"▁":4,"a":5,"▁a":6},"merges":["▁ a"]}}"###,
    r###"{"added_tokens":[{"id":3,"content":"</s>","single_word":true,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1,"##b":2,"</s>":3,"<s>":4}},"pre_tokenizer":{"type":"BertPreTokenizer"},"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"decoder":{"type":"WordPiece","prefix":"##","cleanup":true}}"###,
    r###"{"added_tokens":[],"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["<s>",0.0],["</s>",0.0],["▁",-2.0],["a",-3.5],["ab",-4.0]],"byte_fallback":false},"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}}"###,
    r###"{"truncation":{"direction":"Right","max_length":4,"strategy":"LongestFirst","stride":0},"padding":{"strategy":{"Fixed":9},"direction":"Left","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"<s>"},"added_tokens":[],"model":{"type":"WordLevel","unk_token":"<unk>","vocab":{"<unk>":0,"<s>":1,"</s>":2,"ab":3}},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}|\\s+(?!\\S)"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"Whitespace"}]}}"###,
];

const MODEL_CONFIGS: [&str; 12] = [
    TINY_LLAMA,
    TINY_GPT2,
    include_str!("../goldens/models/gemma2/config.json"),
    include_str!("../goldens/models/gemma3/config.json"),
    include_str!("../goldens/models/gemma3_v5/config.json"),
    include_str!("../goldens/models/gpt2/config.json"),
    include_str!("../goldens/models/llama3_rope/config.json"),
    include_str!("../goldens/models/llama_linear_rope/config.json"),
    include_str!("../goldens/models/mistral_window/config.json"),
    include_str!("../goldens/models/qwen2/config.json"),
    include_str!("../goldens/models/qwen3/config.json"),
    include_str!("../goldens/models/smollm3_window_v5/config.json"),
];

const WEIGHT_INDEX: &str = r#"{"metadata": {"total_size": 8}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}}"#;

fn weights((json, dtype): (&str, Dtype)) -> Vec<u8> {
    let config = ModelConfig::from_json(json).expect("a config");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stored = config.stored_tensors();
    let values: Vec<Vec<f32>> =
        stored.iter().map(|s| (0..s.shape.iter().product()).map(|i| i as f32 / 8.0).collect()).collect();
    let entry = |(stored, values): (&'_ distill::model::Stored, &'_ Vec<f32>)| {
        (stored.name.clone(), stored.shape.clone(), values.clone())
    };
    let owned: Vec<(String, Vec<usize>, Vec<f32>)> = stored.iter().zip(&values).map(entry).collect();
    let entries = owned.iter().map(|(name, shape, values)| Entry { name, shape, values: Values::F32(values) });
    let path = dir.path().join("model.safetensors");
    let written = write_safetensors(&path, entries, dtype, &BTreeMap::new()).expect("a file");
    written.sync().expect("a disk");
    std::fs::read(path).expect("the file")
}

/// A file of one block, 32 wide, its matrices in blocks of Q8_0, with a byte-level tokenizer of eleven tokens.
fn gguf(architecture: &str, split: &str) -> Vec<u8> {
    const TOKENS: [&str; 11] = ["a", "b", "ab", "Ġ", "Ċ", "<s>", "</s>", "c", "abc", "1", "<pad>"];
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let mut metadata: Vec<(String, u32, Vec<u8>)> = vec![];
    let mut put = |key: &str, kind: u32, value: Vec<u8>| metadata.push((key.into(), kind, value));
    let quoted = |value: &str| {
        let mut out = vec![];
        text(&mut out, value);
        out
    };
    let list = |kind: u32, n: usize, elements: Vec<u8>| {
        [&kind.to_le_bytes()[..], &(n as u64).to_le_bytes(), &elements].concat()
    };
    let texts = |all: &[&str]| list(8, all.len(), all.iter().flat_map(|t| quoted(t)).collect());
    put("general.architecture", 8, quoted(architecture));
    for (key, n) in [
        ("block_count", 1u32),
        ("context_length", 16),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        put(&format!("{architecture}.{key}"), 4, n.to_le_bytes().to_vec());
    }
    put(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 6, 1e-5f32.to_le_bytes().to_vec());
    put(&format!("{architecture}.rope.freq_base"), 6, 1e4f32.to_le_bytes().to_vec());
    put("tokenizer.ggml.model", 8, quoted("gpt2"));
    put("tokenizer.ggml.pre", 8, quoted(split));
    put("tokenizer.ggml.tokens", 9, texts(&TOKENS));
    let kinds = [1i32, 1, 1, 1, 1, 3, 3, 1, 1, 4, 5].iter().flat_map(|kind| kind.to_le_bytes()).collect();
    put("tokenizer.ggml.token_type", 9, list(5, TOKENS.len(), kinds));
    put("tokenizer.ggml.merges", 9, texts(&["a b", "ab c"]));
    put("tokenizer.ggml.bos_token_id", 4, 5u32.to_le_bytes().to_vec());
    put("tokenizer.ggml.eos_token_id", 4, 6u32.to_le_bytes().to_vec());
    put("tokenizer.ggml.add_bos_token", 7, vec![1]);
    put("tokenizer.chat_template", 8, quoted("{% for m in messages %}{{ m.content }}</s>{% endfor %}"));

    let qwen = architecture == "qwen2";
    let matrices =
        [("token_embd", 11u64, 32u64), ("blk.0.attn_q", 32, 32), ("blk.0.attn_k", 16, 32), ("blk.0.attn_v", 16, 32)];
    let more = [
        ("blk.0.attn_output", 32, 32),
        ("blk.0.ffn_gate", 32, 32),
        ("blk.0.ffn_up", 32, 32),
        ("blk.0.ffn_down", 32, 32),
    ];
    let mut tensors: Vec<(String, Vec<u64>)> = matrices
        .iter()
        .chain(&more)
        .map(|(name, outer, inner)| (format!("{name}.weight"), vec![*inner, *outer]))
        .collect();
    tensors
        .extend(["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"].map(|name| (format!("{name}.weight"), vec![32])));
    if qwen {
        tensors.extend([("q", 32), ("k", 16), ("v", 16)].map(|(part, n)| (format!("blk.0.attn_{part}.bias"), vec![n])));
    }
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, kind, value) in metadata {
        text(&mut out, &key);
        out.extend(kind.to_le_bytes());
        out.extend(value);
    }
    let mut data: Vec<u8> = vec![];
    for (name, shape) in tensors {
        text(&mut out, &name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|d| out.extend(d.to_le_bytes()));
        // Q8_0: a scale in f16 and 32 whole numbers; F32 of what is no matrix.
        let (kind, bytes) = match shape[..] {
            [inner, outer] => (8u32, [&[0, 0x2c][..], &[3; 32]].concat().repeat((inner * outer / 32) as usize)),
            _ => (0, 0.5f32.to_le_bytes().repeat(shape[0] as usize)),
        };
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn token_row(n: u32) -> Row {
    let tokens = vec![n % 7, 1, 2, (n + 3) % 7, 4];
    let targets = vec![false, true, false, true, true];
    let source = RowRef { digest: row_digest(&tokens, &targets), file: std::sync::Arc::new("row".into()), line: 1 };
    Row { tokens, targets, source }
}

/// Records of two rows, by what a teacher of seven tokens says.
fn records(header: &Header) -> Vec<distill::cache::EncodedRow> {
    let rows: Vec<Row> = (0..2).map(token_row).collect();
    let batch = Batch::new(&rows);
    let logits = (0..batch.valid_tokens() * header.vocab_size).map(|i| (i * 37 % 11) as f32 / 3.0).collect();
    let signal = TeacherSignal::Dense { logits, vocab_size: header.vocab_size };
    encode_batch(header, &signal, &batch).expect("records")
}

/// As the reader of caches takes it.
fn cache(kind: u8) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let part = distill::cache::Part { corpus: "22".into(), rows: 2, targets: 6, blocks: 1 };
    let mut header = cache_header(kind);
    header.parts = vec![part];
    let mut writer = Writer::create(dir.path(), header.clone()).expect("a writer");
    let rows =
        records(&header).into_iter().map(|row| BlockRow::new(row.digest, row.targets, &row.bytes).expect("a row"));
    writer.append(&rows.collect::<Vec<_>>()).expect("a block");
    writer.finish().expect("a cache");
    let file = |name| std::fs::read(dir.path().join(name)).expect("a file of the cache");
    let (json, index) = (file("header.json"), file("index.bin"));
    let entries = &index[52..index.len() - 32];
    let lengths = [json.len(), entries.len()].map(|n| (n as u16).to_le_bytes()).concat();
    [&[0][..], &lengths, &json, entries, &file("signal.bin")].concat()
}

/// As the reader of records takes it.
fn record(kind: u8) -> Vec<u8> {
    let header = cache_header(kind);
    let bytes = match header.codec {
        // A hundred thousand numbers make no seed.
        Codec::Dense if header.vocab_size > 7 => header.encode(&[1, 2], &[false, false], &[] as &[Stored]),
        _ => records(&header).remove(0).bytes,
    };
    [&[kind][..], &bytes].concat()
}

fn manifest() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("state.json"), "{}").expect("a file");
    let manifest = Manifest::of(dir.path(), 1, None).expect("a manifest");
    [&manifest.to_bytes()[..], b"\0step-00000001\n"].concat()
}

/// Of a model that learnt from three rows, or that lies as it was exported.
fn provenance(trained: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in PROVENANCE_FOLDER {
        std::fs::write(dir.path().join(name), content).expect("a file");
    }
    let file = |name: &str| FileEntry::of(&dir.path().join(name)).expect("a file that is there");
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|name| (name.to_owned(), file(name)));
    let mut source = Source { kind: "local".into(), path: dir.path().into(), files: files.into(), ..Source::default() };
    let environment = Environment {
        version: Some("0.1.0".into()),
        binary: Some("0".repeat(64)),
        hardware: Some("avx512".into()),
        threads: Some(2),
    };
    let mut provenance = Provenance::new(if trained { "train" } else { "export" }, vec![environment], source.clone());
    if trained {
        source.license =
            Some(License { id: Some("mit".into()), said_in: Some("README.md".into()), text: Some("LICENSE".into()) });
        (provenance.teacher, provenance.student) = (Some(source.clone()), Some(source));
        let data = dir.path().join("data.jsonl");
        let tokenizer = Arc::new(TextTokenizer::from_dir(dir.path()).expect("a tokenizer"));
        let encoder = Encoder::new(tokenizer, &TemplateChoice::Off, 64, LossOn::Completion).expect("an encoder");
        let index = CorpusIndex::open(std::slice::from_ref(&data), OnBadRecord::SKIP).expect("a corpus");
        let order = LoadOrder { seed: 7, shuffle: true, epochs: None };
        let mut loader = Loader::new(Arc::new(index), Arc::new(encoder), order);
        for _ in 0..3 {
            loader.next_step(2, false).expect("a step");
        }
        let state = loader.state();
        let rows = Rows {
            used: state.rows_used,
            dropped: state.rows_dropped,
            truncated: state.rows_truncated,
            rejected: state.records_rejected,
        };
        provenance.corpus = Some(Corpus {
            files: vec![FileAt::new(data, file("data.jsonl"))],
            rows: Some(rows),
            written_from: BTreeMap::new(),
            prompts: vec![],
        });
        let order = Order {
            digest: state.order.clone(),
            shuffle: true,
            packing: false,
            batch_size: 2,
            max_length: 64,
            loss_on: LossOn::Completion,
            chat_template: TemplateChoice::Off,
            prompts: false,
        };
        provenance.training = Some(Training { seed: 7, steps: 3, target_tokens: 9, order, rollouts: None });
    }
    provenance.write_over(dir.path()).expect("a provenance");
    let text = std::fs::read_to_string(dir.path().join("provenance.json")).expect("text");
    text.replace(dir.path().to_str().expect("a plain path"), "$DIR").into_bytes()
}

fn state() -> Vec<u8> {
    let mut state = TrainState::new([("corpus".to_owned(), "22".to_owned())].into(), "avx2".into());
    state.best = Some(distill::train::Best { step: 3, score: 0.5 });
    // One file stands in for times.json too, as it did when the times were in state.json.
    let mut text = serde_json::to_value(&state).expect("plain data");
    text["train_seconds"] = 1.5.into();
    text["elapsed_seconds"] = 2.5.into();
    serde_json::to_vec_pretty(&text).expect("plain data")
}

const SUMMARY: &str = r#"{"status": "complete", "steps": 3, "tokens": 9, "rows_used": 3, "rows_dropped": 0, "rows_truncated": 0, "rows_rejected": 1,
    "tokens_per_second": 2.5, "peak_rss_bytes": null, "elapsed_seconds": 1.5, "initial_eval": null, "final_eval": null, "best": null}"#;

const METRICS: &str = r#"{"event":"train","step":1,"loss":2.5,"lr":0.1}
{"event":"eval","step":2,"kl_mean":0.5,"student_perplexity":9.0}
{"event":"train","step":3,"loss":null}
{"event":"eval","step":3,"bucket_kl_mean":0.25}
{"event":"train","step":101,"loss":1e300}
"#;
