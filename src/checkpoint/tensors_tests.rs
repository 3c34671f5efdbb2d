use super::*;
use candle_core::{DType, Device};

fn entry<'a>(name: &'a str, shape: &'a [usize], values: &'a [f32]) -> Entry<'a> {
    Entry { name, shape, values: Values::F32(values) }
}

#[test]
fn candle_and_safetensors_load_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let weight: Vec<f32> = (0..6).map(|i| i as f32 * 0.1).collect();
    let entries = [entry("w", &[2, 3], &weight), entry("b", &[1], &[-1.5]), entry("empty", &[0, 4], &[])];
    write_safetensors(&path, entries, Dtype::F32, &BTreeMap::new()).unwrap().sync().unwrap();

    let loaded = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert_eq!(loaded["w"].to_vec2::<f32>().unwrap(), [weight[..3].to_vec(), weight[3..].to_vec()]);
    assert_eq!(loaded["b"].to_vec1::<f32>().unwrap(), [-1.5]);
    assert_eq!(loaded["empty"].dims(), [0, 4]);

    let bytes = std::fs::read(&path).unwrap();
    let (size, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(size % 8, 0);

    let back = read_safetensors_f32(&path).unwrap();
    assert_eq!(back["w"], (vec![2, 3], weight));
    assert_eq!(back.keys().collect::<Vec<_>>(), ["b", "empty", "w"]);
}

#[test]
fn the_same_tensors_give_the_same_bytes_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (entry("a", &[2], &[1.0, 2.0]), entry("b", &[1], &[3.0]));
    let metadata = (0..20).map(|i| (format!("key {i}"), i.to_string())).collect();
    for (file, entries) in [("one", [a.clone(), b.clone()]), ("two", [b, a])] {
        write_safetensors(&dir.path().join(file), entries, Dtype::F32, &metadata).unwrap().sync().unwrap();
    }
    assert_eq!(std::fs::read(dir.path().join("one")).unwrap(), std::fs::read(dir.path().join("two")).unwrap());
}

#[test]
fn bf16_is_rounded_to_nearest_even_whatever_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    // Halfway between two bf16 neighbours: ties go to the even one, down and up; a NaN stays one.
    let values = [f32::from_bits(0x3F80_8000), f32::from_bits(0x3F81_8000), f32::NAN];
    let tensor = Tensor::new(&values, &Device::Cpu).unwrap();
    let stored = tensor.to_dtype(DType::BF16).unwrap();
    let entries = [
        entry("slice", &[3], &values),
        Entry { name: "tensor", shape: &[3], values: Values::Tensor(&tensor) },
        Entry { name: "stored", shape: &[3], values: Values::Tensor(&stored) },
    ];
    write_safetensors(&path, entries, Dtype::Bf16, &BTreeMap::new()).unwrap().sync().unwrap();
    for (name, (_, back)) in read_safetensors_f32(&path).unwrap() {
        assert_eq!([back[0].to_bits(), back[1].to_bits()], [0x3F80_0000, 0x3F82_0000], "{name}");
        assert!(back[2].is_nan());
    }
}

#[test]
fn a_transposed_tensor_is_written_in_row_major_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let tensor = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap().t().unwrap();
    let entry = Entry { name: "t", shape: &[2, 2], values: Values::Tensor(&tensor) };
    write_safetensors(&path, [entry], Dtype::F32, &BTreeMap::new()).unwrap().sync().unwrap();
    assert_eq!(read_safetensors_f32(&path).unwrap()["t"].1, [1.0, 3.0, 2.0, 4.0]);
}

#[test]
fn tensors_longer_than_a_block_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let values: Vec<f32> = (0..100_003).map(|i| i as f32).collect();
    write_safetensors(&path, [entry("x", &[100_003], &values)], Dtype::F32, &BTreeMap::new()).unwrap().sync().unwrap();
    assert_eq!(read_safetensors_f32(&path).unwrap()["x"].1, values);
}

#[test]
fn contradictions_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let refuse =
        |entries: Vec<Entry>| write_safetensors(&path, entries, Dtype::F32, &BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(refuse(vec![entry("x", &[2], &[1.0])]), "tensor \"x\" has shape [2] but 1 values");
    assert_eq!(refuse(vec![entry("x", &[1], &[1.0]), entry("x", &[1], &[1.0])]), "two tensors are named \"x\"");
    let absent = dir.path().join("absent/m");
    let error = write_safetensors(&absent, [], Dtype::F32, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("absent/m"), "{error}");
}

#[test]
fn a_malformed_file_is_refused_without_a_large_allocation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let file = |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let cases = [
        vec![],
        u64::MAX.to_le_bytes().to_vec(),
        file("[]", &[]),
        file("{", &[]),
        file("{}", &[1]),
        file(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 3]),
        file(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, &[0; 4]),
        file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]),
        file(r#"{"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]),
        file(r#"{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, &[]),
        file(r#"{"x":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999996]}}"#, &[0; 4]),
        file(
            r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            &[0; 4],
        ),
    ];
    for case in cases {
        std::fs::write(&path, &case).unwrap();
        let error = read_safetensors_f32(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}
