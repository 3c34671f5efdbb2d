//! Every reader of untrusted input as a function of bytes: what the fuzz targets of `fuzz/` drive, and `tests/fuzzed.rs` in a small
//! way without them. A reader answers with a value or an error; what is asserted here is what has to hold of the values.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use candle_core::Device;
use distill::cache::{self, Blocks, Codec, DataId, Header, Values, Writer};
use distill::checkpoint::{Checkpoint, Manifest, Provenance, find, latest_valid, layout, read_safetensors_f32};
use distill::commands::verify;
use distill::corpus::{Batch, CorpusIndex, Encoder, LossOn, Message, OnBadRecord, Place, Record, Row, TemplateChoice};
use distill::corpus::{RowRef, TextTokenizer, row_digest};
use distill::kernels::Precision;
use distill::metrics::{Jsonl, Screen, draw_curves};
use distill::model::{Decoder, Gguf, ModelConfig, load_weights, weight_files};
use distill::report::Summary;
use distill::signal::{Needs, Tail};
use distill::train::TrainState;
use distill::{config, student};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Whether the reader took the input.
pub type Reader = fn(&[u8]) -> bool;

/// By name, which is that of the fuzz target and of its folder in tests/fuzzed.
pub const READERS: [(&str, Reader); 15] = [
    ("row", row),
    ("corpus", corpus),
    ("config", run_config),
    ("template", template),
    ("tokenizer", tokenizer),
    ("model_config", model_config),
    ("weights", weights),
    ("weight_index", weight_index),
    ("gguf", gguf),
    ("cache", teacher_cache),
    ("record", cached_record),
    ("manifest", manifest),
    ("provenance", provenance),
    ("state", state),
    ("metrics", metrics),
];

const TOKENIZER: &[u8] = include_bytes!("../goldens/chat/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../goldens/chat/tokenizer_config.json");

/// A folder of these files, gone with the value.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.expect("a temporary folder");
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).expect("a temporary file");
    }
    dir
}

/// The parts of an input that are separated by a zero byte; as many as are wanted, the last ones empty where there are fewer.
fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |byte| *byte == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// A batch of one row of tokens that a model of `vocab` has.
fn batch(vocab: usize, length: usize) -> Batch {
    let tokens: Vec<u32> = (0..length).map(|t| (t * 5 % vocab) as u32).collect();
    let targets: Vec<bool> = (0..length).map(|t| t > 0).collect();
    let source = RowRef { digest: row_digest(&tokens, &targets), file: Arc::new("row".into()), line: 1 };
    Batch::new(&[Row { tokens, targets, source }])
}

/// What a model says of a few tokens; whatever it is, a number for each.
fn run(decoder: &Decoder) {
    let config = decoder.config();
    let length = if config.learned_positions { config.max_position_embeddings.min(5) } else { 5 };
    let batch = batch(config.vocab_size, length);
    let logits = decoder.hidden(&batch).and_then(|hidden| decoder.logits(&hidden));
    if let Ok(logits) = logits {
        assert_eq!(logits.dims(), [length - 1, config.vocab_size]);
    }
}

/// A line of JSONL.
pub fn row(data: &[u8]) -> bool {
    let record = Record::parse(data);
    if let Ok(record) = &record {
        record.content_hash();
        record.unanswered();
    }
    record.is_ok()
}

static CHAT: LazyLock<Arc<TextTokenizer>> = LazyLock::new(|| {
    let dir = folder(&[("tokenizer.json", TOKENIZER), ("tokenizer_config.json", TOKENIZER_CONFIG)]);
    Arc::new(TextTokenizer::from_dir(dir.path()).expect("the goldens' tokenizer"))
});

fn encode(encoder: &Encoder, record: &Record, place: &Place) {
    for row in encoder.encode(record, place).into_iter().flat_map(|encoded| encoded.rows).filter_map(|row| row.row) {
        assert!(row.tokens.len() == row.targets.len() && row.tokens.len() <= encoder.max_length());
        assert!(!row.targets[0]);
    }
}

/// A JSONL file, under both policies, its rows read back and encoded.
pub fn corpus(data: &[u8]) -> bool {
    let dir = folder(&[("data.jsonl", data)]);
    let paths = [dir.path().join("data.jsonl")];
    let strict = CorpusIndex::open(&paths, OnBadRecord::Fail);
    let Ok(index) = CorpusIndex::open(&paths, OnBadRecord::SKIP) else {
        assert!(strict.is_err());
        return false;
    };
    assert_eq!(strict.is_ok(), index.rejections().count == 0);
    let encoder = Encoder::new(CHAT.clone(), &TemplateChoice::Off, 64, LossOn::Completion).expect("an encoder");
    for i in 0..index.len().min(16) {
        let (record, place) = index.read(i).expect("a row that was there");
        encode(&encoder, &record, &place);
    }
    true
}

/// A config, then `--set` overrides.
pub fn run_config(data: &[u8]) -> bool {
    let [file, first, second] = parts(data);
    let overrides: Vec<String> = [first, second]
        .into_iter()
        .filter(|text| !text.is_empty())
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect();
    let dir = folder(&[("run.toml", file)]);
    let path = dir.path().join("run.toml");
    let loose = config::load_to_read(&path, &overrides);
    let Ok(read) = config::load(&path, &overrides, None) else { return loose.is_ok() };
    assert_eq!(loose.expect("it asks for less"), read);
    let again = dir.path().join("again.toml");
    config::save(&read, &again).expect("a config that was read can be written");
    assert_eq!(config::load(&again, &[], None).expect("and read again"), read);
    true
}

/// A chat template, then the contents of a conversation.
pub fn template(data: &[u8]) -> bool {
    let [source, system, user, assistant, more] = parts(data);
    let dir = folder(&[("template.jinja", source)]);
    let choice = TemplateChoice::File(dir.path().join("template.jinja"));
    let Ok(encoder) = Encoder::new(CHAT.clone(), &choice, 256, LossOn::All) else { return false };
    let turn = |(role, content): (&str, &[u8])| Message::new(role, &String::from_utf8_lossy(content));
    let turns = [("system", system), ("user", user), ("assistant", assistant), ("user", more), ("assistant", more)];
    let place = Place { file: Arc::new("template".into()), line: 1 };
    encode(&encoder, &Record::Chat(turns.into_iter().map(turn).collect()), &place);
    encode(&encoder.with_prompts(), &Record::Prompt(String::from_utf8_lossy(user).into_owned()), &place);
    true
}

/// tokenizer.json, then a text, then the files beside it.
pub fn tokenizer(data: &[u8]) -> bool {
    let [json, text, config, generation] = parts(data);
    let dir = folder(&[("tokenizer.json", json)]);
    for (name, content) in [("tokenizer_config.json", config), ("generation_config.json", generation)] {
        if !content.is_empty() {
            std::fs::write(dir.path().join(name), content).expect("a temporary file");
        }
    }
    let Ok(tokenizer) = TextTokenizer::from_dir(dir.path()) else { return false };
    use_tokenizer(tokenizer, &String::from_utf8_lossy(text));
    true
}

fn use_tokenizer(tokenizer: TextTokenizer, text: &str) {
    for special in [false, true] {
        if let Ok(ids) = tokenizer.encode(text, special) {
            let _ = tokenizer.decode(&ids, special);
            ids.iter().take(8).for_each(|id| drop(tokenizer.token(*id)));
        }
    }
    tokenizer.vocabulary_digest();
    assert_eq!(tokenizer.vocabulary_difference(&tokenizer), None);
    let record = Record::Pair { prompt: text.into(), response: "a <|im_end|> b".into() };
    let place = Place { file: Arc::new("tokenizer".into()), line: 1 };
    let tokenizer = Arc::new(tokenizer);
    for choice in [TemplateChoice::Off, TemplateChoice::Auto] {
        if let Ok(encoder) = Encoder::new(tokenizer.clone(), &choice, 64, LossOn::Completion) {
            encode(&encoder, &record, &place);
        }
    }
}

/// config.json of a model; one that is small is made and run.
pub fn model_config(data: &[u8]) -> bool {
    let Ok(config) = ModelConfig::from_json(&String::from_utf8_lossy(data)) else { return false };
    let again = ModelConfig::from_json(&config.to_json("float32")).expect("what was written can be read");
    assert_eq!(config.tensors().len(), again.tensors().len());
    config.stored_tensors();
    config.with_layers(&[config.layers - 1]);
    if config.tensors().iter().map(|spec| spec.elements()).sum::<usize>() > 1 << 14 {
        return true;
    }
    let model = student::fresh_weights(&config, 1).and_then(|w| Decoder::new(config, w, false, &Device::Cpu));
    let _ = model.map(|model| run(&model));
    true
}

/// Models of a few hundred numbers.
pub const TINY_LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 4,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "float32"}"#;
pub const TINY_GPT2: &str = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": 4,
    "n_head": 2, "n_layer": 1, "n_positions": 8, "vocab_size": 8, "layer_norm_epsilon": 1e-5}"#;

/// model.safetensors of a small model, as weights and as the arrays of a checkpoint.
pub fn weights(data: &[u8]) -> bool {
    let dir = folder(&[("model.safetensors", data)]);
    let _ = read_safetensors_f32(&dir.path().join("model.safetensors"));
    let mut taken = false;
    for json in [TINY_LLAMA, TINY_GPT2] {
        std::fs::write(dir.path().join("config.json"), json).expect("a temporary file");
        let config = ModelConfig::read(dir.path()).expect("a config");
        let loaded = load_weights(dir.path(), &config);
        let frozen = Decoder::load_frozen(dir.path(), Precision::Bf16, &Device::Cpu);
        assert_eq!(loaded.is_ok(), frozen.is_ok());
        if let Ok(model) = frozen {
            run(&model);
            taken = true;
        }
    }
    taken
}

/// model.safetensors.index.json: no name in it leads out of the folder.
pub fn weight_index(data: &[u8]) -> bool {
    // The smallest safetensors file: a header of two bytes, and no tensor.
    let empty = b"\x02\0\0\0\0\0\0\0{}";
    let shards =
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].map(|name| (name, &empty[..]));
    let dir = folder(&[("model.safetensors.index.json", data), shards[0], shards[1]]);
    let files = weight_files(dir.path());
    for file in files.iter().flatten() {
        assert_eq!(file.parent(), Some(dir.path()));
    }
    files.is_ok()
}

/// A GGUF file: header, tokenizer and weights.
pub fn gguf(data: &[u8]) -> bool {
    let dir = folder(&[("model.gguf", data)]);
    let Ok(file) = Gguf::open(&dir.path().join("model.gguf")) else { return false };
    file.types_in_words();
    let (tokenizer, model) = (file.tokenizer(None), file.decoder(Precision::F32));
    let taken = tokenizer.is_ok() && model.is_ok();
    let _ = tokenizer.map(|tokenizer| use_tokenizer(tokenizer, "The <|im_start|> ferry's 12 345\n\nläuft"));
    let _ = model.map(|model| run(&model));
    taken
}

/// The folder of a teacher's cache: one byte that says which digests are put right, the lengths of header.json (two bytes) and of the
/// index's entries (two), and the two, and signal.bin.
pub fn teacher_cache(data: &[u8]) -> bool {
    let Some((&[seals, h0, h1, e0, e1], rest)) = data.split_first_chunk() else { return false };
    let [header, entries] = [[h0, h1], [e0, e1]].map(|bytes| u16::from_le_bytes(bytes) as usize);
    let (header, rest) = rest.split_at(header.min(rest.len()));
    let (entries, signal) = rest.split_at(entries.min(rest.len()));
    let dir = folder(&[("header.json", header)]);
    let read = Header::read(dir.path());
    let mut signal = signal.to_vec();
    if seals & 1 == 0 {
        seal_blocks(&mut signal, read.as_ref().ok().and_then(|(header, _)| header.identity().ok()));
    }
    let mut index = match seals & 2 {
        0 => [b"DTI1", &Sha256::digest(header)[..], &(signal.len() as u64).to_le_bytes()].concat(),
        _ => vec![],
    };
    if seals & 2 == 0 {
        index.extend((entries.len() as u64 / 52).to_le_bytes());
    }
    index.extend(entries);
    if seals & 4 == 0 {
        let sum = Sha256::digest(&index);
        index.extend(sum);
    }
    let path = |name| dir.path().join(name);
    std::fs::write(path("signal.bin"), &signal).expect("a temporary file");
    std::fs::write(path("index.bin"), &index).expect("a temporary file");
    let mut taken = false;
    if let Ok(reader) = cache::Reader::open_shard(dir.path()) {
        for i in 0..reader.len().min(8) {
            let entry = reader.entry(i).expect("an entry of the index");
            let _ = reader.find(&entry.digest);
            if let Ok(record) = reader.read(&entry) {
                assert_eq!(row_digest(&record.tokens, &record.targets), entry.digest);
                taken = true;
            }
        }
    }
    let blocks = std::fs::File::open(path("signal.bin")).and_then(Blocks::new);
    let mut blocks = blocks.expect("a file that is there");
    while let Ok(Some(Ok(block))) = blocks.next_block() {
        assert!(block.bytes.len() <= signal.len());
    }
    if let Ok((header, _)) = read
        && let Ok(writer) = Writer::resume(dir.path(), &header)
    {
        writer.entries().iter().take(8).for_each(|entry| drop(writer.read(entry)));
    }
    taken
}

/// Gives the blocks of a signal.bin their cache's identity and the digests of what they hold.
fn seal_blocks(signal: &mut [u8], identity: Option<[u8; 32]>) {
    let mut rest = signal;
    while rest.len() >= 56 {
        if let Some(identity) = identity {
            rest[4..36].copy_from_slice(&identity);
        }
        let rows = u32::from_le_bytes(std::array::from_fn(|i| rest[44 + i])) as usize;
        let records = u64::from_le_bytes(std::array::from_fn(|i| rest[48 + i]));
        let Some(end) = rows.checked_mul(44).and_then(|table| usize::try_from(records).ok()?.checked_add(table + 56))
        else {
            return;
        };
        let Some((block, more)) = end.checked_add(32).and_then(|whole| rest.split_at_mut_checked(whole)) else {
            return;
        };
        let sum = Sha256::digest(&block[..end]);
        block[end..].copy_from_slice(&sum);
        rest = more;
    }
}

/// A row of a cache, unpacked: one byte that says of which codec it is.
pub fn cached_record(data: &[u8]) -> bool {
    let Some((&kind, record)) = data.split_first() else { return false };
    let header = cache_header(kind);
    let Ok(record) = header.decode(record) else { return false };
    assert_eq!(record.targets.iter().filter(|target| **target).count(), record.said.labels.len());
    let tail = if kind & 64 == 0 { Tail::Bucket } else { Tail::Renormalize };
    let temperature = if kind & 128 == 0 { 1.0 } else { 2.0 };
    record.said.signal(&header, &Needs { temperature, tail, ..Needs::default() }).is_ok()
}

/// Three codecs, two widths of values and of ids.
pub fn cache_header(kind: u8) -> Header {
    let codec = match kind % 4 {
        0 => Codec::TopK { k: 3 },
        1 => Codec::Sampled { draws: 5, temperature: 1.0, seed: 1 },
        2 => Codec::Sampled { draws: 4, temperature: 2.0, seed: 1 },
        _ => Codec::Dense,
    };
    let values = if kind & 4 == 0 { Values::F32 } else { Values::F16 };
    let vocab = if kind & 8 == 0 { 7 } else { 100_000 };
    let teacher = cache::TeacherId {
        architecture: "llama".into(),
        parameters: 1,
        dtype: "f32".into(),
        weights: "0".into(),
        tokenizer: "0".into(),
    };
    let data = DataId { chat_template: "none".into(), max_length: 64, loss_on: "completion".into() };
    Header::new(codec, values, vocab, &[2.0], teacher, data)
}

/// A run's checkpoints: a manifest, whose digest is put right, and the pointer to it.
pub fn manifest(data: &[u8]) -> bool {
    let [json, pointer] = parts(data);
    let dir = folder(&[]);
    let checkpoint = dir.path().join(layout::CHECKPOINTS).join(layout::folder_name(1));
    std::fs::create_dir_all(&checkpoint).expect("a temporary folder");
    let with_digest = |digest: &str| -> Option<Vec<u8>> {
        let mut json: serde_json::Value = serde_json::from_slice(json).ok()?;
        *json.get_mut("digest")? = digest.into();
        serde_json::from_value(json).ok().map(|manifest: Manifest| manifest.to_bytes())
    };
    let hex = |bytes: Vec<u8>| -> String { Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    let sealed = with_digest("").and_then(|bytes| with_digest(&hex(bytes)));
    let content = [
        (layout::MANIFEST, sealed.as_deref().unwrap_or(json)),
        (layout::STATE, b"{}"),
        ("../latest", pointer),
        ("../best", pointer),
    ];
    for (name, content) in content {
        std::fs::write(checkpoint.join(name), content).expect("a temporary file");
    }
    if let Ok(manifest) = Manifest::read(&checkpoint) {
        assert!(manifest.files.keys().all(|name| Path::new(name).file_name() == Some(name.as_ref())));
    }
    let _ = latest_valid(dir.path());
    let _ = find::best(dir.path());
    Checkpoint::open(&dir.path().join(layout::CHECKPOINTS).join(layout::LATEST)).is_ok()
}

/// What a provenance.json names, beside it.
pub const PROVENANCE_FOLDER: [(&str, &[u8]); 3] = [
    ("tokenizer.json", TOKENIZER),
    ("tokenizer_config.json", TOKENIZER_CONFIG),
    (
        "data.jsonl",
        b"{\"text\": \"a b c d\"}\n{\"text\": \"The ferry leaves.\"}\n{\"prompt\": \"p\", \"response\": \"r\"}\n",
    ),
];

/// provenance.json of a model, whose digest is put right and in which `$DIR` stands for the model's folder, and all that is verified by
/// it.
pub fn provenance(data: &[u8]) -> bool {
    let dir = folder(&PROVENANCE_FOLDER);
    let text = String::from_utf8_lossy(data).replace("$DIR", dir.path().to_str().expect("a plain path"));
    let Ok(provenance) = serde_json::from_str::<Provenance>(&text) else {
        std::fs::write(dir.path().join(layout::PROVENANCE), data).expect("a temporary file");
        assert!(Provenance::read(dir.path()).is_err());
        return false;
    };
    // Reading so many steps again takes as long as it says.
    if provenance.training.as_ref().is_some_and(|training| training.steps > 100) {
        return false;
    }
    provenance.write(dir.path()).expect("what was read can be written");
    if let Ok(read) = Provenance::read(dir.path()) {
        assert!(read.files.iter().flatten().all(|(name, _)| !name.contains('/')));
    }
    let report = verify::check(dir.path(), &Screen::plain(std::io::sink())).expect("a folder with a provenance");
    report.differing().next().is_none()
}

/// state.json of a checkpoint that is whole, then summary.json and responses' neighbours that are plain JSON.
pub fn state(data: &[u8]) -> bool {
    let dir =
        folder(&[(layout::STATE, data), ("summary.json", data), (layout::OPTIMIZER, data), (layout::TIMES, data)]);
    let summary = Summary::read(dir.path());
    let manifest = Manifest::of(dir.path(), 1, None).expect("a manifest");
    std::fs::write(dir.path().join(layout::MANIFEST), manifest.to_bytes()).expect("a temporary file");
    let checkpoint = Checkpoint::open(dir.path()).expect("a checkpoint that was just made");
    let state = TrainState::read(&checkpoint);
    if let Ok(state) = &state {
        serde_json::to_string(state).expect("what was read can be written");
    }
    state.is_ok() || summary.is_ok() || TrainState::read_moments(&checkpoint).is_ok()
}

/// metrics.jsonl of a run that is resumed and drawn.
pub fn metrics(data: &[u8]) -> bool {
    let dir = folder(&[("metrics.jsonl", data)]);
    let path = dir.path().join("metrics.jsonl");
    let drawn = draw_curves(&path, &dir.path().join("curves.svg"), "a run");
    Jsonl::resume(&path, 100, true).expect("lines that are no events are dropped");
    let kept = std::fs::read(&path).expect("metrics");
    assert!(kept.is_empty() || kept.ends_with(b"\n"));
    drawn.is_ok()
}
