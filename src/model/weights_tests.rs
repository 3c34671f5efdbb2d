//! What a folder's weights can be instead of weights.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{ModelConfig, load_weights};

const FOLDERS: [&str; 3] = ["llama_tied", "llama_bf16", "llama_f16"];

/// A copy of a golden model.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/models").join(name).read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// Why the folder is refused, without its path.
fn refusal(dir: &Path) -> String {
    let error = ModelConfig::read(dir).and_then(|config| load_weights(dir, &config)).unwrap_err();
    assert_eq!(error.class(), crate::error::Class::Input);
    error.to_string().replace(&dir.display().to_string(), "DIR")
}

/// The same with other weights.
fn refusal_of(weights: &[u8]) -> String {
    let dir = copy("llama_tied");
    std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    refusal(dir.path())
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn a_shard_cannot_lead_out_of_its_folder() {
    for name in ["../model.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "./x", "x/"] {
        let dir = copy("llama_sharded");
        let index = serde_json::json!({ "weight_map": { "lm_head.weight": name } }).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let said = refusal(dir.path());
        let expected = format!("DIR/model.safetensors.index.json: the shard name {name:?} is not a plain file name");
        assert_eq!(said, expected);
    }
    // A link is how the hub's cache holds every file.
    let dir = copy("llama_tied");
    let elsewhere = tempfile::tempdir().unwrap();
    let (here, there) = (dir.path().join("model.safetensors"), elsewhere.path().join("blob"));
    std::fs::rename(&here, &there).unwrap();
    std::os::unix::fs::symlink(&there, &here).unwrap();
    load_weights(dir.path(), &ModelConfig::read(dir.path()).unwrap()).unwrap();
    // One whose end is still on its way.
    std::fs::rename(&there, dir.path().join("blob.incomplete")).unwrap();
    let said = refusal(dir.path());
    assert!(
        said.starts_with(
            "DIR holds neither model.safetensors nor model.safetensors.index.json: a download broke off: DIR/blob"
        ),
        "{said}"
    );
}

#[test]
fn a_tensor_that_two_shards_hold_is_refused() {
    let dir = copy("llama_sharded");
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00003.safetensors");
    std::fs::copy(dir.path().join(first), dir.path().join(second)).unwrap();
    let index = std::fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
    let index =
        index.replacen(&format!("\"lm_head.weight\": \"{first}\""), &format!("\"lm_head.weight\": \"{second}\""), 1);
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let said = refusal(dir.path());
    assert!(said.ends_with(&format!(" stands in DIR/{first} and in DIR/{second}: which is meant?")), "{said}");
}

#[test]
fn pointers_and_files_that_broke_off_say_so_with_their_sizes() {
    let pointer = b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 4711\n";
    let said = "is a Git LFS pointer and not the file itself, of 4711 bytes: fetch that: git -C DIR lfs pull --include";
    for name in ["model.safetensors", "config.json"] {
        let dir = copy("llama_tied");
        std::fs::write(dir.path().join(name), pointer).unwrap();
        assert_eq!(refusal(dir.path()), format!("DIR/{name} {said} {name}"));
    }
    let dir = copy("llama_sharded");
    let (index, shard) = ("model.safetensors.index.json", "model-00002-of-00002.safetensors");
    std::fs::write(dir.path().join(shard), pointer).unwrap();
    assert_eq!(refusal(dir.path()), format!("DIR/{shard} {said} {shard}"));
    std::fs::remove_file(dir.path().join(shard)).unwrap();
    assert_eq!(refusal(dir.path()), format!("the weight file DIR/{shard} does not exist"));
    std::fs::write(dir.path().join(index), pointer).unwrap();
    assert_eq!(refusal(dir.path()), format!("DIR/{index} {said} {index}"));

    let whole = std::fs::read(copy("llama_tied").path().join("model.safetensors")).unwrap();
    let (all, header) = (whole.len(), u64::from_le_bytes(whole[..8].try_into().unwrap()));
    let prefix = "DIR/model.safetensors is not a whole safetensors file";
    for (bytes, what) in [
        (&whole[..0], "it has 0 bytes".to_owned()),
        (&whole[..7], "it has 7 bytes".to_owned()),
        (&whole[..100], format!("it has 100 bytes, and its header alone would take {header}")),
        (
            &whole[..all - 3],
            format!("it has {} of the {all} bytes that its header speaks of, as a download that broke off", all - 3),
        ),
        (
            &[&whole[..], b"x"].concat(),
            format!("it has {} bytes, where its header speaks of {all}: something else follows", all + 1),
        ),
    ] {
        assert_eq!(refusal_of(bytes), format!("{prefix}: {what}: fetch it again"));
    }
}

#[test]
fn impossible_headers_are_refused_before_anything_is_allocated() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"t\": {{\"dtype\": \"{dtype}\", \"shape\": {shape}, \"data_offsets\": {offsets}}}}}")
    };
    let most = u64::MAX;
    let quarter = most / 8 - 7;
    // Each alone is possible, and their sum is not.
    let chain: Vec<String> = (0..8)
        .map(|i| {
            let (from, to) = (quarter * i, quarter * (i + 1));
            format!("\"t{i}\": {{\"dtype\": \"U8\", \"shape\": [{quarter}], \"data_offsets\": [{from}, {to}]}}")
        })
        .collect();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (most.to_le_bytes().to_vec(), "would take 18446744073709551615"),
        ([&most.to_le_bytes()[..], b"{}"].concat(), "would take 18446744073709551615"),
        (with_header(&entry("F32", "[4]", "[0, 16]"), 12), "of the"),
        (with_header(&entry("F32", "[4]", &format!("[0, {most}]")), 16), "of the 18446744073709551615 bytes"),
        (with_header(&format!("{{{}}}", chain.join(", ")), 16), "of the "),
        (with_header(&entry("F32", &format!("[{most}, {most}]"), "[0, 16]"), 16), "no valid safetensors file"),
        (with_header(&entry("F32", "[3]", "[0, 16]"), 16), "no valid safetensors file"),
        (with_header(&entry("F32", "[4]", "[16, 0]"), 0), "no valid safetensors file"),
        (with_header(&entry("F32", "[4]", "[-1, 16]"), 16), "its header cannot be read"),
        (with_header(&entry("F99", "[4]", "[0, 16]"), 16), "no valid safetensors file"),
        (
            with_header(
                "{\"a\": {\"dtype\": \"U8\", \"shape\": [8], \"data_offsets\": [0, 8]}, \"b\": {\"dtype\": \"U8\", \"shape\": [8], \"data_offsets\": [4, 12]}}",
                12,
            ),
            "no valid safetensors file",
        ),
        (with_header(&"[".repeat(100_000), 0), "its header cannot be read"),
        (with_header("{}", 0), "the weights do not fit config.json"),
        (with_header("\u{1b}[2J", 0), "its header cannot be read"),
        ([&9u64.to_le_bytes()[..], b"\xff\xfe{}     "].concat(), "its header cannot be read"),
        ([&(40u64 << 20).to_le_bytes()[..], &vec![b' '; 40 << 20]].concat(), "at most 33554432 are read"),
    ];
    for (bytes, part) in cases {
        let said = refusal_of(&bytes);
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn damage_anywhere_in_a_safetensors_header_is_an_error_or_harmless_but_never_a_panic() {
    let dir = copy("llama_tied");
    let (path, config) = (dir.path().join("model.safetensors"), ModelConfig::read(dir.path()).unwrap());
    let whole = std::fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut draw = ChaCha8Rng::seed_from_u64(1);
    let mut refused = 0;
    for round in 0..1500 {
        let mut damaged = whole.clone();
        // In the length too, now and then.
        let first = if round % 4 == 0 { 0 } else { 8 };
        for _ in 0..draw.random_range(1..4) {
            damaged[draw.random_range(first..end)] = b"09{}[]\",:\x00\xff\x80"[draw.random_range(0..12)];
        }
        std::fs::write(&path, damaged).unwrap();
        refused += load_weights(dir.path(), &config).is_err() as usize;
    }
    assert!(refused > 1000, "only {refused} of 1500 were noticed");
}

#[test]
fn a_weight_that_is_not_finite_is_named_by_tensor_and_place() {
    for (folder, bits) in FOLDERS.into_iter().zip([0x7fc0_0000u32, 0xff80, 0x7c00]) {
        let dir = copy(folder);
        let path = dir.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let entries: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        let name = "model.layers.1.mlp.up_proj.weight";
        let (shape, offsets) = (&entries[name]["shape"], &entries[name]["data_offsets"]);
        let (columns, start) = (shape[1].as_u64().unwrap() as usize, offsets[0].as_u64().unwrap() as usize);
        let elements = shape[0].as_u64().unwrap() as usize * columns;
        let size = (offsets[1].as_u64().unwrap() as usize - start) / elements;
        let at = header + start + (2 * columns + 3) * size;
        bytes[at..at + size].copy_from_slice(&bits.to_le_bytes()[..size]);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(
            refusal(dir.path()),
            format!("DIR/model.safetensors: tensor {name} holds NaN or infinity at [2, 3]")
        );
    }
}
