//! Files made by candle's writer, an implementation of the format that is not ours.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value as Written};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Gguf, Value, gguf_name, header};
use crate::corpus::{Batch, Row, RowRef};
use crate::kernels::Precision;
use crate::model::{Decoder, Family, ModelConfig, RopeScaling, load_weights};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/models").join(name)
}

/// The metadata of a model as llama.cpp's converter writes it.
fn metadata(config: &ModelConfig) -> Vec<(String, Written)> {
    let name = config.family.name();
    let size = |key: &str, n: usize| (format!("{name}.{key}"), Written::U32(n as u32));
    let float = |key: &str, x: f64| (format!("{name}.{key}"), Written::F32(x as f32));
    let tokens = (0..config.vocab_size).map(|i| Written::String(format!("t{i}"))).collect();
    vec![
        ("general.architecture".into(), Written::String(name.into())),
        size("block_count", config.layers),
        size("context_length", config.max_position_embeddings),
        size("embedding_length", config.hidden_size),
        size("feed_forward_length", config.intermediate_size),
        size("attention.head_count", config.heads),
        size("attention.head_count_kv", config.kv_heads),
        size("attention.key_length", config.head_dim),
        size("rope.dimension_count", config.head_dim),
        float("rope.freq_base", config.rotations[0].unwrap().theta),
        float("attention.layer_norm_rms_epsilon", config.norm_eps),
        ("tokenizer.ggml.tokens".into(), Written::Array(tokens)),
    ]
}

/// Rows of a llama's queries and keys as its files hold them: each head's halves interleaved.
fn interleave(tensor: &Tensor, head_dim: usize) -> Tensor {
    let heads = tensor.dim(0).unwrap() / head_dim;
    let mut shape = vec![heads, 2, head_dim / 2];
    shape.extend(&tensor.dims()[1..]);
    tensor.reshape(shape).unwrap().transpose(1, 2).unwrap().contiguous().unwrap().reshape(tensor.shape()).unwrap()
}

/// Writes a golden model as a GGUF file with its matrices in `dtype` where their rows allow it, f32 otherwise.
fn write(folder: &Path, dtype: GgmlDType, more: &[(&str, Written)]) -> Vec<u8> {
    let config = ModelConfig::read(folder).unwrap();
    let tensors: Vec<(String, QTensor)> = load_weights(folder, &config)
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| {
            let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
            let stored = match rotated && config.family == Family::Llama {
                true => interleave(&tensor, config.head_dim),
                false => tensor,
            };
            let whole = stored.dims().len() == 2 && stored.dim(1).unwrap() % dtype.block_size() == 0;
            let quantised = QTensor::quantize(&stored, if whole { dtype } else { GgmlDType::F32 }).unwrap();
            (gguf_name(&name).unwrap(), quantised)
        })
        .collect();
    let mut metadata = metadata(&config);
    metadata.retain(|(key, _)| !more.iter().any(|(other, _)| key == other));
    metadata.extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
    let metadata: Vec<(&str, &Written)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(vec![]);
    gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
    bytes.into_inner()
}

fn save(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn logits(model: &Decoder) -> Vec<f32> {
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % model.config().vocab_size as u32).collect();
    let targets = (0..20).map(|t| t > 0).collect();
    let source = RowRef { digest: [0; 32], file: std::sync::Arc::new("x".into()), line: 1 };
    let hidden = model.hidden(&Batch::new(&[Row { tokens, targets, source }])).unwrap();
    model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Golden models that a GGUF file can hold.
fn models() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path());
    let fits = |folder: &PathBuf| {
        let Ok(config) = ModelConfig::read(folder) else { return false };
        let plain = config.rotations.iter().all(|r| r.is_some_and(|r| r.scaling == RopeScaling::None));
        // A llama.cpp file of the llama family has no biases on queries, keys and values alone, and no sliding windows.
        let llama = config.family != Family::Llama || config.qkv_bias == config.output_bias;
        [Family::Llama, Family::Qwen2, Family::Qwen3].contains(&config.family)
            && plain
            && llama
            && config.windows.iter().all(Option::is_none)
    };
    let mut folders: Vec<PathBuf> = folders.filter(fits).collect();
    folders.sort();
    assert!(folders.len() >= 6, "{folders:?}");
    folders
}

#[test]
fn a_file_of_f32_gives_the_logits_of_the_folder_in_every_family() {
    for folder in models() {
        let (_dir, path) = save(&write(&folder, GgmlDType::F32, &[]));
        let gguf = Gguf::open(&path).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let folder_config = ModelConfig::read(&folder).unwrap();
        assert_eq!(gguf.config.parameters(), folder_config.parameters(), "{}", folder.display());
        let want = logits(&Decoder::load(&folder, false, &Device::Cpu).unwrap());
        let got = logits(&gguf.decoder(Precision::F32).unwrap());
        let largest = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-5 && !got.iter().any(|x| x.is_nan()), "{}: {largest}", folder.display());
    }
}

#[test]
fn a_quantised_file_gives_the_logits_of_its_dequantised_weights_and_takes_less() {
    let folder = models().into_iter().find(|f| ModelConfig::read(f).unwrap().hidden_size.is_multiple_of(32)).unwrap();
    for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_1] {
        let bytes = write(&folder, dtype, &[]);
        let (_dir, path) = save(&bytes);
        let gguf = Gguf::open(&path).unwrap();
        let model = gguf.decoder(Precision::F32).unwrap();
        let weights = model.parameters().iter().map(|p| (p.name.clone(), p.weight.values().unwrap())).collect();
        let dense = Decoder::new(gguf.config.clone(), weights, false, &Device::Cpu).unwrap();
        for (got, want) in logits(&model).iter().zip(logits(&dense)) {
            assert!((got - want).abs() < 1e-5, "{dtype:?}: {got} instead of {want}");
        }
        assert!(model.parameters().bytes() < dense.parameters().bytes() * 2 / 5, "{dtype:?}");
        assert!(gguf.types_in_words().contains(&format!("{dtype:?}")), "{}", gguf.types_in_words());
    }
}

/// A small file, for damage.
fn small() -> Vec<u8> {
    let folder = models().into_iter().min_by_key(|f| ModelConfig::read(f).unwrap().parameters()).unwrap();
    write(&folder, GgmlDType::F32, &[])
}

fn refusal(bytes: &[u8]) -> String {
    let (_dir, path) = save(bytes);
    match Gguf::open(&path) {
        Ok(_) => panic!("it was taken"),
        Err(e) => e.to_string(),
    }
}

/// Little-endian numbers and texts, to build a header by hand.
fn by_hand(parts: &[&dyn AsRef<[u8]>]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.as_ref().to_vec()).collect()
}

#[test]
fn impossible_counts_sizes_and_offsets_are_refused_before_anything_is_allocated() {
    let head = |tensors: u64, entries: u64| {
        by_hand(&[b"GGUF", &3u32.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()])
    };
    let text = |s: &str| by_hand(&[&(s.len() as u64).to_le_bytes(), &s]);
    let entry = |key: &str, kind: u32, value: &[u8]| by_hand(&[&text(key), &kind.to_le_bytes(), &value]);
    let tensor = |dims: &[u64], kind: u32, offset: u64| {
        let shape: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        by_hand(&[
            &text("t"),
            &(dims.len() as u32).to_le_bytes(),
            &shape,
            &kind.to_le_bytes(),
            &offset.to_le_bytes(),
            &[0u8; 64],
        ])
    };
    let array = |kind: u32, n: u64| by_hand(&[&kind.to_le_bytes(), &n.to_le_bytes(), &[0u8; 16]]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGU".to_vec(), "beyond the file's 3 bytes"),
        (b"GGML\0\0\0\0".to_vec(), "does not begin with GGUF"),
        (by_hand(&[b"GGUF", &1u32.to_le_bytes(), &[0u8; 16]]), "version 1"),
        (by_hand(&[b"GGUF", &3u32.to_be_bytes(), &[0u8; 16]]), "big-endian"),
        (head(u64::MAX, 0), "tensors"),
        (head(0, u64::MAX), "metadata entries"),
        (by_hand(&[&head(0, 1), &u64::MAX.to_le_bytes()]), "a metadata key of"),
        ([head(0, 1), entry("k", 8, &u64::MAX.to_le_bytes())].concat(), "k of"),
        ([head(0, 1), entry("k", 99, &[])].concat(), "unknown type 99"),
        ([head(0, 1), entry("k", 7, &[7])].concat(), "the boolean 7"),
        ([head(0, 1), entry("k", 9, &array(9, 1))].concat(), "array of arrays"),
        ([head(0, 1), entry("k", 9, &array(4, u64::MAX))].concat(), "elements in \"k\""),
        ([head(0, 1), entry("k", 9, &array(44, 2))].concat(), "unknown type 44"),
        ([head(0, 1), entry("general.alignment", 4, &0u32.to_le_bytes())].concat(), "general.alignment"),
        ([head(0, 1), entry("general.alignment", 4, &24u32.to_le_bytes())].concat(), "general.alignment"),
        ([head(0, 1), entry("general.alignment", 8, &text("32"))].concat(), "general.alignment"),
        ([head(1, 0), tensor(&[], 0, 0)].concat(), "0 dimensions"),
        ([head(1, 0), tensor(&[1; 5], 0, 0)].concat(), "5 dimensions"),
        ([head(1, 0), tensor(&[u64::MAX, u64::MAX], 0, 0)].concat(), "has the shape"),
        ([head(1, 0), tensor(&[0, 4], 0, 0)].concat(), "has the shape"),
        ([head(1, 0), tensor(&[33], 8, 0)].concat(), "blocks of 32"),
        ([head(1, 0), tensor(&[32], 16, 0)].concat(), "an IQ quantisation"),
        ([head(1, 0), tensor(&[1 << 30], 0, 0)].concat(), "takes 4294967296 bytes"),
        ([head(1, 0), tensor(&[4], 0, u64::MAX - 31)].concat(), "ends beyond"),
        ([head(1, 0), tensor(&[4], 0, 7)].concat(), "no multiple of 32"),
        ([head(0, 2), entry("k", 7, &[1]), entry("k", 7, &[1])].concat(), "twice"),
        ([head(0, 1), entry("general.architecture", 8, &text("gpt2"))].concat(), "supported are llama, qwen2, qwen3"),
        (head(0, 0), "general.architecture is missing"),
    ];
    for (bytes, part) in cases {
        let said = refusal(&bytes);
        assert!(said.contains(part) && said.contains("model.gguf"), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused() {
    let bytes = small();
    for end in (0..bytes.len()).step_by(bytes.len() / 97 + 1) {
        refusal(&bytes[..end]);
    }
}

#[test]
fn damage_anywhere_in_a_header_is_an_error_or_harmless_but_never_a_panic() {
    let bytes = small();
    let end = header::read(Cursor::new(&bytes), bytes.len() as u64).unwrap();
    let end = end.tensors.values().map(|t| t.offset).min().unwrap() as usize;
    let mut draw = ChaCha8Rng::seed_from_u64(1);
    let mut refused = 0;
    for _ in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..draw.random_range(1..4) {
            let values = [0, 1, 0x7f, 0x80, 0xff, draw.random::<u8>()];
            damaged[draw.random_range(0..end)] = values[draw.random_range(0..values.len())];
        }
        if let Ok(header) = header::read(Cursor::new(&damaged), damaged.len() as u64) {
            drop(super::config::read(&header, None));
        } else {
            refused += 1;
        }
    }
    assert!(refused > 500, "only {refused} of 3000 were noticed");
}

#[test]
fn a_pointer_and_a_cut_file_are_told_from_a_damaged_one() {
    let said = refusal(b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 4711\n");
    assert!(
        said.contains("model.gguf is a Git LFS pointer and not the file itself, of 4711 bytes: fetch that: git -C "),
        "{said}"
    );
    let bytes = small();
    let said = refusal(&bytes[..bytes.len() - 1]);
    let (has, needs) = (bytes.len() - 1, bytes.len());
    assert!(said.contains(&format!("ends beyond the file's {has} bytes, of ")), "{said}");
    // candle pads the last tensor.
    let of: usize = said.split(" bytes, of ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(of > has && of <= needs, "{said}");
}

#[test]
fn a_scale_that_is_not_finite_is_named_by_tensor_and_place() {
    let folder = models().into_iter().find(|f| ModelConfig::read(f).unwrap().family == Family::Llama).unwrap();
    for (dtype, nan, place) in
        [(GgmlDType::Q8_0, 0x7e00u16, "in the block that begins at"), (GgmlDType::F32, 0x7f80, "at")]
    {
        let mut bytes = write(&folder, dtype, &[]);
        let header = header::read(Cursor::new(&bytes), bytes.len() as u64).unwrap();
        let (name, info) = header.tensors.iter().find(|(_, t)| t.dtype == dtype && t.shape.len() == 2).unwrap();
        // The second block of the second row.
        let (block, size) = (dtype.block_size(), dtype.type_size());
        let per_row = info.shape[1] / block;
        let column = 1.min(per_row - 1);
        let at = info.offset as usize + (per_row + column) * size + if dtype == GgmlDType::F32 { 2 } else { 0 };
        bytes[at..at + 2].copy_from_slice(&nan.to_le_bytes());
        let (_dir, path) = save(&bytes);
        let said = Gguf::open(&path).unwrap().decoder(Precision::F32).err().unwrap().to_string();
        let expected = format!("tensor {name} holds NaN or infinity {place} [1, {}]", column * block);
        assert!(said.ends_with(&expected), "{said} ({expected})");
    }
}

#[test]
fn rows_that_do_not_fit_the_metadata_are_all_named() {
    let folder = models()[0].clone();
    let name = ModelConfig::read(&folder).unwrap().family.name();
    let bytes = write(&folder, GgmlDType::F32, &[(&format!("{name}.feed_forward_length"), Written::U32(4))]);
    let said = refusal(&bytes);
    assert!(said.contains("misshapen: blk.0.ffn_gate.weight") && said.contains("ffn_down"), "{said}");
}

#[test]
fn llama_3s_frequency_factors_are_recognised_and_others_refused() {
    let folder = models().into_iter().find(|f| ModelConfig::read(f).unwrap().family == Family::Llama).unwrap();
    let bytes = write(&folder, GgmlDType::F32, &[]);
    let mut header = header::read(Cursor::new(&bytes), bytes.len() as u64).unwrap();
    let (theta, head_dim) = (500_000.0, 64);
    header.metadata.insert("llama.rope.freq_base".into(), Value::Float(theta));
    for key in ["llama.attention.key_length", "llama.rope.dimension_count"] {
        header.metadata.insert(key.into(), Value::Unsigned(head_dim as u64));
    }
    let (factor, low_freq_factor, high_freq_factor, original_max_positions) = (32.0, 1.0, 4.0, 8192.0);
    let llama3 = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions };
    let plain = RopeScaling::None.inverse_frequencies(theta, head_dim);
    let scaled = llama3.inverse_frequencies(theta, head_dim);
    let factors: Vec<f32> = plain.iter().zip(&scaled).map(|(a, b)| a / b).collect();
    let read = |factors: &[f32]| super::config::read(&header, Some(factors)).map(|c| c.rotations[0].unwrap().scaling);
    assert_eq!(read(&factors).unwrap(), llama3);
    assert_eq!(read(&vec![1.0; plain.len()]).unwrap(), RopeScaling::None);
    assert!(read(&vec![1.7; plain.len()]).is_err());
}

#[test]
fn interleaving_is_what_candles_reader_of_such_files_undoes() {
    let x = Tensor::arange(0u32, 8, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(interleave(&x, 8).to_vec1::<f32>().unwrap(), [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
}
