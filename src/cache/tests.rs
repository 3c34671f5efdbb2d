use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::record::Record;
use super::*;
use crate::corpus::{Batch, Row, RowRef, row_digest};
use crate::signal::{Needs, TeacherSignal};

const VOCAB: usize = 50;

/// Values without a pattern, from −4 to 4.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| 8.0 * next() - 4.0).collect()
}

fn header(codec: Codec, values: Values) -> Header {
    let teacher = TeacherId {
        architecture: "llama".into(),
        parameters: 1,
        dtype: "f32".into(),
        weights: "00".into(),
        tokenizer: "11".into(),
    };
    let data = DataId { chat_template: "none".into(), max_length: 64, loss_on: "completion".into() };
    Header::new(codec, values, VOCAB, &[2.0], teacher, data)
}

const SAMPLED: Codec = Codec::Sampled { draws: 16, temperature: 2.0, seed: 5 };
const CODECS: [Codec; 3] = [Codec::TopK { k: 7 }, SAMPLED, Codec::Dense];

fn row(n: u32) -> Row {
    let tokens: Vec<u32> = (0..7 + n % 7).map(|t| (t * 5 + n * (1 + t % 3) + n / 50) % VOCAB as u32).collect();
    let targets: Vec<bool> = (0..tokens.len()).map(|t| t > 1 + n as usize % 3).collect();
    let digest = row_digest(&tokens, &targets);
    Row { tokens, targets, source: RowRef { digest, file: Arc::new(PathBuf::from("rows.jsonl")), line: n as u64 + 1 } }
}

/// What a teacher says of `batch`: the same of the same row.
fn said(batch: &Batch) -> TeacherSignal {
    let of = |r: usize| {
        let seed = u64::from_le_bytes(std::array::from_fn(|i| batch.rows[r].digest[i]));
        noise((batch.cu_targets[r + 1] - batch.cu_targets[r]) * VOCAB, seed)
    };
    TeacherSignal::Dense { logits: (0..batch.rows.len()).flat_map(of).collect(), vocab_size: VOCAB }
}

fn block(header: &Header, rows: std::ops::Range<u32>) -> Vec<BlockRow> {
    let rows: Vec<Row> = rows.map(row).collect();
    let batch = Batch::new(&rows);
    let encoded = encode_batch(header, &said(&batch), &batch).unwrap();
    encoded.into_iter().map(|row| BlockRow::new(row.digest, row.targets, &row.bytes).unwrap()).collect()
}

fn part(rows: u64) -> Part {
    Part { corpus: "22".into(), rows, targets: 0, blocks: rows.div_ceil(ROWS_PER_BLOCK) }
}

/// Appends what is missing of `rows` rows, and finishes.
fn fill(mut writer: Writer, rows: u32) {
    let end = writer.header().shard.map_or(writer.header().blocks(), |shard| shard.of(writer.header().blocks()).end);
    for number in writer.next_block()..end {
        let start = (number * ROWS_PER_BLOCK) as u32;
        let rows = block(writer.header(), start..rows.min(start + ROWS_PER_BLOCK as u32));
        writer.append(&rows).unwrap();
    }
    writer.finish().unwrap();
}

fn write(dir: &Path, codec: Codec, rows: u32, shard: Option<Shard>) {
    let header = Header { parts: vec![part(rows as u64)], shard, ..header(codec, Values::F16) };
    fill(Writer::create(dir, header).unwrap(), rows);
}

fn files(dir: &Path) -> Vec<Vec<u8>> {
    [HEADER, SIGNAL, INDEX].map(|name| std::fs::read(dir.join(name)).unwrap()).to_vec()
}

/// Every row, by way of the index.
fn rows_of(dir: &Path) -> Result<Vec<Record>, crate::Error> {
    let reader = Reader::open(dir)?;
    (0..reader.len()).map(|i| reader.read(&reader.entry(i)?)).collect()
}

#[test]
fn a_row_comes_back_as_it_was_stored_but_for_the_rounding() {
    let rows: Vec<Row> = (0..9).map(row).collect();
    let batch = Batch::new(&rows);
    for codec in CODECS {
        for values in [Values::F32, Values::F16] {
            let header = header(codec, values);
            let stored = store::store(&header, &said(&batch), &batch).unwrap();
            let encoded = encode_batch(&header, &said(&batch), &batch).unwrap();
            for (r, (row, encoded)) in rows.iter().zip(encoded).enumerate() {
                let record = header.decode(&encoded.bytes).unwrap();
                assert_eq!((&record.tokens, &record.targets), (&row.tokens, &row.targets));
                let targets = &stored[batch.cu_targets[r]..batch.cu_targets[r + 1]];
                assert_eq!(record.said.labels.len(), targets.len());
                assert!(encoded.bytes.len() <= header.most_bytes(row.target_count()).unwrap());
                for (n, target) in targets.iter().enumerate() {
                    let range = record.said.range(n);
                    let rounded: Vec<f32> = target.values.iter().map(|v| values.rounded(*v)).collect();
                    assert_eq!(record.said.values[range.clone()], rounded);
                    assert_eq!((record.said.labels[n], record.said.entropies[n]), (target.label, target.entropy));
                    let rests: Vec<f32> = record.said.rests.iter().map(|rest| rest[n]).collect();
                    assert_eq!(rests, target.rests);
                    if codec != Codec::Dense {
                        assert_eq!(record.said.ids[range.clone()], target.ids);
                    }
                    if codec == SAMPLED {
                        assert_eq!(record.said.counts[range], target.counts);
                    }
                }
            }
        }
    }
}

#[test]
fn ids_of_large_vocabularies_take_four_bytes() {
    let mut header = header(Codec::TopK { k: 3 }, Values::F32);
    header.vocab_size = 151_936;
    let stored =
        Stored { rests: vec![-1.0, -2.0], ids: vec![151_935, 7, 65_536], values: vec![-0.5; 3], ..Stored::default() };
    let record = header.decode(&header.encode(&[70_000, 2], &[false, true], &[stored])).unwrap();
    assert_eq!((record.said.ids, record.tokens), (vec![151_935, 7, 65_536], vec![70_000, 2]));
}

#[test]
fn rows_are_found_by_their_digest_in_any_order() {
    for codec in CODECS {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        write(&cache, codec, 100, None);
        let reader = Reader::open(&cache).unwrap();
        assert_eq!(reader.len(), 100);
        for n in (0..100).rev() {
            let row = row(n);
            let entry = reader.find(&row.source.digest).unwrap().unwrap();
            assert_eq!(reader.read(&entry).unwrap().tokens, row.tokens);
        }
        assert!(reader.find(&[7; 32]).unwrap().is_none());
    }
}

#[test]
fn a_cache_that_broke_off_anywhere_goes_on_after_its_last_whole_block_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    write(&whole, SAMPLED, 100, None);
    let files_of_whole = files(&whole);
    let signal = &files_of_whole[1];
    let header = Header { parts: vec![part(100)], ..header(SAMPLED, Values::F16) };
    for cut in (0..=signal.len()).step_by(signal.len() / 40) {
        let broken = dir.path().join(format!("broken-{cut}"));
        std::fs::create_dir(&broken).unwrap();
        std::fs::write(broken.join(HEADER), &files_of_whole[0]).unwrap();
        // A kill leaves a beginning, and a power cut one with zeros behind it.
        let mut bytes = signal[..cut].to_vec();
        bytes.extend(std::iter::repeat_n(0u8, cut % 3 * 100));
        std::fs::write(broken.join(SIGNAL), bytes).unwrap();
        assert!(Reader::open(&broken).unwrap_err().to_string().contains("--resume"));
        let writer = Writer::resume(&broken, &header).unwrap();
        assert!(writer.next_block() <= 4);
        fill(writer, 100);
        assert!(files(&broken) == files_of_whole, "cut at {cut}");
    }
}

#[test]
fn a_block_that_rotted_is_named_and_nothing_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    write(&cache, SAMPLED, 100, None);
    let [header, signal, index] = files(&cache).try_into().unwrap();
    let wanted = Header { parts: vec![part(100)], ..self::header(SAMPLED, Values::F16) };
    // In the head, the table, the records and the digest of each block, and what follows missing; complete or not.
    let starts: Vec<usize> = (0..signal.len() - 4).filter(|&at| signal[at..].starts_with(b"DTB1")).collect();
    assert_eq!(starts.len(), 4);
    for (block, &start) in starts.iter().enumerate() {
        for at in [0, 5, 37, 45, 50, 60, 100, 1000, 1500] {
            for complete in [true, false] {
                let mut damaged = signal.clone();
                damaged[start + at] ^= 0x20;
                std::fs::write(cache.join(SIGNAL), &damaged).unwrap();
                if !complete {
                    std::fs::remove_file(cache.join(INDEX)).unwrap();
                }
                match Writer::resume(&cache, &wanted) {
                    // The last one of an incomplete cache may be what a kill left.
                    Ok(_) => assert!(block == 3 && !complete),
                    Err(error) => {
                        // Of the last one nothing follows that could be lost.
                        let says = if block == 3 { "remove index.bin".into() } else { format!("block {block} ") };
                        assert!(error.to_string().contains(&says), "{error}");
                    }
                }
                assert!(std::fs::read(cache.join(SIGNAL)).unwrap() == damaged);
                std::fs::write(cache.join(INDEX), &index).unwrap();
            }
        }
    }
    std::fs::write(cache.join(SIGNAL), &signal[..starts[2]]).unwrap();
    assert!(Writer::resume(&cache, &wanted).err().unwrap().to_string().contains("remove index.bin"));
    assert!(Reader::open(&cache).unwrap_err().to_string().contains("its index says"));
    assert!(std::fs::read(cache.join(HEADER)).unwrap() == header);
}

#[test]
fn a_row_that_the_index_mistakes_for_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    for codec in CODECS {
        let _ = std::fs::remove_dir_all(&cache);
        write(&cache, codec, 5, None);
        // Every digest leads to the record of the first entry.
        forged(&cache, |bytes| {
            let first = bytes[52 + 32..52 + 52].to_vec();
            (52..bytes.len()).step_by(52).for_each(|entry| bytes[entry + 32..entry + 52].copy_from_slice(&first));
        });
        let reader = Reader::open(&cache).unwrap();
        let read = (0..5).map(|i| reader.read(&reader.entry(i).unwrap()));
        let errors: Vec<String> = read.filter_map(|row| row.err().map(|e| e.to_string())).collect();
        assert!(errors.len() == 4 && errors.iter().all(|e| e.contains("another row's")), "{errors:?}");
    }
}

#[test]
fn files_of_two_caches_never_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, mixed) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("mixed"));
    let with_seed = |seed| {
        let parts = vec![part(40)];
        Header { parts, ..header(Codec::Sampled { draws: 16, temperature: 2.0, seed }, Values::F16) }
    };
    fill(Writer::create(&a, with_seed(1)).unwrap(), 40);
    fill(Writer::create(&b, with_seed(2)).unwrap(), 40);
    for from_b in [&[HEADER][..], &[HEADER, INDEX], &[SIGNAL], &[SIGNAL, INDEX], &[INDEX]] {
        let _ = std::fs::remove_dir_all(&mixed);
        std::fs::create_dir(&mixed).unwrap();
        for name in [HEADER, SIGNAL, INDEX] {
            let from = if from_b.contains(&name) { &b } else { &a };
            std::fs::copy(from.join(name), mixed.join(name)).unwrap();
        }
        assert!(Reader::open(&mixed).is_err(), "{from_b:?}");
        let seed = if from_b.contains(&HEADER) { 2 } else { 1 };
        match Writer::resume(&mixed, &with_seed(seed)) {
            // An index is built again.
            Ok(writer) => {
                assert_eq!(from_b, [INDEX]);
                fill(writer, 40);
                assert!(files(&mixed) == files(&a));
            }
            Err(error) => assert!(error.to_string().contains("another header.json"), "{error}"),
        }
    }
    std::fs::write(a.join(INDEX), b"broken").unwrap();
    assert!(Reader::open(&a).unwrap_err().to_string().contains("remove it"));
    fill(Writer::resume(&a, &with_seed(1)).unwrap(), 40);
    assert!(Reader::open(&a).is_ok());
}

#[test]
fn a_cache_may_break_off_before_its_first_block() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    write(&whole, SAMPLED, 40, None);
    let wanted = Header { parts: vec![part(40)], ..header(SAMPLED, Values::F16) };
    let begun = dir.path().join("begun");
    std::fs::create_dir(&begun).unwrap();
    std::fs::copy(whole.join(HEADER), begun.join(HEADER)).unwrap();
    fill(Writer::resume(&begun, &wanted).unwrap(), 40);
    assert!(files(&begun) == files(&whole));
}

#[test]
fn logits_beyond_the_vocabulary_are_padding() {
    let batch = Batch::new(&[row(3)]);
    let mut short = header(Codec::TopK { k: 20 }, Values::F32);
    short.vocab_size = 20;
    let TeacherSignal::Dense { logits, .. } = said(&batch) else { panic!() };
    let cut: Vec<f32> = logits.chunks(VOCAB).flat_map(|row| &row[..20]).copied().collect();
    let labels = Batch { labels: batch.labels.iter().map(|label| label % 20).collect(), ..batch.clone() };
    let long = store::store(&short, &said(&batch), &labels).unwrap();
    assert_eq!(long, store::store(&short, &TeacherSignal::Dense { logits: cut, vocab_size: 20 }, &labels).unwrap());
    assert!(long.iter().all(|target| target.rests.iter().all(|rest| *rest == f32::NEG_INFINITY)));
}

#[test]
fn draws_at_a_low_temperature_in_f16_are_still_log_probabilities() {
    let batch = Batch::new(&[row(3), row(4)]);
    for temperature in [0.01, 0.1, 50.0] {
        let mut header = header(Codec::Sampled { draws: 30, temperature, seed: 1 }, Values::F16);
        header.temperatures = vec![1.0, temperature];
        let mut all = Targets::default();
        for row in encode_batch(&header, &said(&batch), &batch).unwrap() {
            all.append(&header.decode(&row.bytes).unwrap().said);
        }
        let TeacherSignal::Sampled { log_probabilities, weights, .. } =
            all.signal(&header, &Needs { temperature, ..Needs::default() }).unwrap()
        else {
            panic!()
        };
        assert!(log_probabilities.iter().all(|log_p| *log_p <= 0.0) && weights.iter().all(|w| (0.0..=1.0).contains(w)));
    }
}

#[test]
fn merged_shards_are_the_whole_cache_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // 11 blocks: shares of one and of two, and more shards than blocks.
    for count in [1, 2, 8, 16] {
        let rows = 11 * ROWS_PER_BLOCK as u32 - 5;
        let whole = at(&format!("whole-{count}"));
        write(&whole, Codec::TopK { k: 7 }, rows, None);
        let shards: Vec<PathBuf> = (0..count).map(|index| at(&format!("{index}-of-{count}"))).collect();
        for (index, shard) in shards.iter().enumerate() {
            write(shard, Codec::TopK { k: 7 }, rows, Some(Shard { index: index as u64, count }));
        }
        assert!(Reader::open(&shards[0]).unwrap_err().to_string().contains("merge"));
        let merged = at(&format!("merged-{count}"));
        let backwards: Vec<PathBuf> = shards.iter().rev().cloned().collect();
        merge(&backwards, &merged, |_, _| {}).unwrap();
        assert!(files(&merged) == files(&whole));
    }
}

#[test]
fn shards_that_are_missing_twice_or_of_others_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shard = |index, count| Some(Shard { index, count });
    for index in 0..3 {
        write(&at(&format!("{index}")), Codec::Dense, 100, shard(index, 3));
    }
    write(&at("again"), Codec::Dense, 100, shard(1, 3));
    write(&at("of four"), Codec::Dense, 100, shard(1, 4));
    write(&at("longer"), Codec::Dense, 101, shard(1, 3));
    write(&at("top_k"), Codec::TopK { k: 3 }, 100, shard(1, 3));
    write(&at("whole"), Codec::Dense, 100, None);
    let unfinished = Header { parts: vec![part(100)], shard: shard(1, 3), ..header(Codec::Dense, Values::F16) };
    drop(Writer::create(&at("unfinished"), unfinished).unwrap());
    for (names, says) in [
        (&["0", "2"][..], "shard 1 of 3 is missing"),
        (&["0", "1", "2", "again"], "shard 1 is there twice"),
        (&["0", "of four", "2"], "one is of 3 shards, the other of 4"),
        (&["0", "longer", "2"], "another corpus"),
        (&["0", "top_k", "2"], "codec: dense and top_k, k = 3"),
        (&["0", "whole", "2"], "a whole cache"),
        (&["0", "unfinished", "2"], "not complete"),
        (&["0", "nowhere", "2"], "no teacher cache"),
        (&[], "no shard"),
    ] {
        let dirs: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
        let error = merge(&dirs, &at("merged"), |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!at("merged").exists());
    }
    merge(&[at("0"), at("1"), at("2")], &at("merged"), |_, _| {}).unwrap();
    assert!(
        merge(&[at("0"), at("1"), at("2")], &at("merged"), |_, _| {}).unwrap_err().to_string().contains("not empty")
    );
}

#[test]
fn other_settings_are_refused_by_the_field_that_differs() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    write(&cache, SAMPLED, 10, None);
    let same = header(SAMPLED, Values::F16);
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = same.clone();
        change(&mut header);
        header
    };
    for (other, says) in [
        (with(&|h| h.codec = Codec::Dense), "codec: sampled, 16 draws at temperature 2, seed 5 and dense"),
        (with(&|h| h.values = Values::F32), "values: f16 and f32"),
        (with(&|h| h.vocab_size = 51), "vocab_size: 50 and 51"),
        (with(&|h| h.temperatures.push(3.0)), "temperatures: [1.0, 2.0] and [1.0, 2.0, 3.0]"),
        (with(&|h| h.teacher.weights = "01".into()), "teacher.weights: 00 and 01"),
        (with(&|h| h.teacher.tokenizer = "01".into()), "teacher.tokenizer: 11 and 01"),
        (with(&|h| h.teacher.dtype = "bf16".into()), "teacher.dtype: f32 and bf16"),
        (with(&|h| h.data.max_length = 8), "data.max_length: 64 and 8"),
        (with(&|h| h.data.loss_on = "all".into()), "data.loss_on: completion and all"),
        (with(&|h| h.data.chat_template = "33".into()), "data.chat_template: none and 33"),
        (with(&|h| h.shard = Some(Shard { index: 0, count: 2 })), "all of it, asked for was shard 0/2"),
    ] {
        let error = Writer::resume(&cache, &other).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(Writer::create(&cache, same).err().unwrap().to_string().contains("not empty"));
}

#[test]
fn a_flipped_byte_or_a_missing_end_never_passes_for_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    for codec in CODECS {
        let _ = std::fs::remove_dir_all(&cache);
        write(&cache, codec, 40, None);
        let right = rows_of(&cache).unwrap();
        for (name, content) in [HEADER, SIGNAL, INDEX].iter().zip(files(&cache)) {
            let path = cache.join(name);
            for at in (0..content.len()).step_by(1 + content.len() / 200) {
                let mut flipped = content.clone();
                flipped[at] ^= 1 << (at % 8);
                for bytes in [&flipped[..], &content[..at]] {
                    std::fs::write(&path, bytes).unwrap();
                    // A table in signal.bin is not read again: what is read is what was written, or an error.
                    assert!(rows_of(&cache).is_err() || (*name == SIGNAL && rows_of(&cache).unwrap() == right));
                    let mut blocks = Blocks::new(std::fs::File::open(&path).unwrap()).unwrap();
                    while let Ok(Some(Ok(_))) = blocks.next_block() {}
                    assert!(*name != SIGNAL || blocks.at() < content.len() as u64);
                }
            }
            std::fs::write(&path, content).unwrap();
        }
        assert!(rows_of(&cache).unwrap() == right);
    }
}

/// The index of `cache` with `change` made to its bytes and the digest set right again, as a forger would.
fn forged(cache: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(cache.join(INDEX)).unwrap();
    bytes.truncate(bytes.len() - 32);
    change(&mut bytes);
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend(sum);
    std::fs::write(cache.join(INDEX), bytes).unwrap();
}

#[test]
fn a_forged_index_is_an_error_and_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    write(&cache, Codec::TopK { k: 7 }, 5, None);
    let original = std::fs::read(cache.join(INDEX)).unwrap();
    // Bytes of signal.bin, the number of entries; of the first one (digest, offset, frame, length, targets) all but the digest.
    let entry = 52;
    let forgeries: [(usize, &[u8]); 8] = [
        (36, &[0xff; 8]),
        (44, &[0xff; 8]),
        (44, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        (entry + 32, &[0xff; 8]),
        (entry + 32, &[0x7f, 0xff, 0, 0, 0, 0, 0, 0]),
        (entry + 40, &[0xff; 4]),
        (entry + 44, &[0xff; 4]),
        (entry + 48, &[0xff; 4]),
    ];
    for (at, value) in forgeries {
        std::fs::write(cache.join(INDEX), &original).unwrap();
        forged(&cache, |bytes| bytes[at..at + value.len()].copy_from_slice(value));
        assert!(rows_of(&cache).is_err());
    }
}

#[test]
fn a_frame_that_unpacks_to_more_than_a_row_can_be_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let header = Header { parts: vec![part(1)], ..header(Codec::TopK { k: 7 }, Values::F16) };
    let most = header.most_bytes(3).unwrap();
    let mut writer = Writer::create(&cache, header).unwrap();
    let bomb = BlockRow::new([1; 32], 3, &vec![0; 64 << 20]).unwrap();
    assert!(bomb.frame.len() < 1 << 16);
    // It claims the size of a row, or what it is.
    writer.append(&[BlockRow { length: most as u32, ..bomb.clone() }, BlockRow { digest: [2; 32], ..bomb }]).unwrap();
    writer.finish().unwrap();
    let reader = Reader::open(&cache).unwrap();
    for i in 0..2 {
        assert!(reader.read(&reader.entry(i).unwrap()).unwrap_err().to_string().contains("damaged"));
    }
}

#[test]
fn records_blocks_and_headers_of_any_bytes_are_errors_and_no_panics() {
    let rows: Vec<Row> = (0..4).map(row).collect();
    let batch = Batch::new(&rows);
    let mut tried = 0;
    for codec in CODECS {
        let header = header(codec, Values::F16);
        for encoded in encode_batch(&header, &said(&batch), &batch).unwrap() {
            for seed in 0..1500u64 {
                let mut bytes = encoded.bytes.clone();
                // A few bytes anywhere, the beginning more often, and another length now and then.
                for (i, x) in noise(3, seed + 7).into_iter().enumerate() {
                    let reach = if i == 0 { 16.min(bytes.len()) } else { bytes.len() };
                    let at = (((x + 4.0) / 8.0) * reach as f32) as usize % bytes.len().max(1);
                    bytes[at] = (seed as u8).wrapping_mul(31).wrapping_add(i as u8);
                }
                bytes.truncate(if seed % 5 == 0 { bytes.len() * (seed as usize % 97) / 97 } else { bytes.len() });
                if let Ok(record) = header.decode(&bytes) {
                    // What passes is whole: a loss can be told of it.
                    assert_eq!(record.said.bounds.len(), record.said.labels.len() + 1);
                    record.said.signal(&header, &Needs { temperature: 2.0, ..Needs::default() }).unwrap();
                }
                tried += 1;
            }
        }
        assert!(header.decode(&[]).is_err() && header.decode(&[0xff; 4]).is_err());
    }
    assert_eq!(tried, 3 * 4 * 1500);
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "{}", "[]", "null", "{\"format\": \"distill teacher cache\", \"version\": 2}", "\u{0}"] {
        std::fs::write(dir.path().join(HEADER), text).unwrap();
        let error = Header::read(dir.path()).unwrap_err();
        assert!(!text.contains("version") || error.to_string().contains("version 2"), "{error}");
    }
    let good = String::from_utf8(header(SAMPLED, Values::F16).to_bytes().unwrap()).unwrap();
    for (from, to) in [
        ("\"vocab_size\": 50", "\"vocab_size\": 0"),
        ("\"vocab_size\": 50", "\"vocab_size\": 18446744073709551615"),
        ("\"max_length\": 64", "\"max_length\": 18446744073709551615"),
        ("\"draws\": 16", "\"draws\": 0"),
        ("\"draws\": 16", "\"draws\": 70000"),
        ("\"temperature\": 2.0", "\"temperature\": 4.0"),
        ("1.0,\n", "0.0,\n"),
        ("1.0,\n", "1e999,\n"),
        ("\"values\": \"f16\"", "\"values\": \"f8\""),
        ("\"parts\": []", "\"parts\": [], \"shard\": {\"index\": 3, \"count\": 3}"),
        ("\"parts\": []", "\"parts\": [], \"shard\": {\"index\": 0, \"count\": 0}"),
    ] {
        assert!(good.contains(from), "{good}");
        std::fs::write(dir.path().join(HEADER), good.replace(from, to)).unwrap();
        assert!(Header::read(dir.path()).is_err(), "{to}");
    }
}
