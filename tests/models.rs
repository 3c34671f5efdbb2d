//! The decoder against transformers, on tiny random models of every family and variant (tests/goldens/README.md).

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use distill::corpus::{Batch, Row, RowRef};
use distill::kernels::Precision;
use distill::model::{Decoder, Keep, KvCache, ModelConfig};

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn row(tokens: Vec<u32>, targets: Vec<bool>) -> Row {
    let source = RowRef { digest: [0; 32], file: Arc::new(PathBuf::from("test.jsonl")), line: 1 };
    Row { tokens, targets, source }
}

/// All tokens but the first are targets, and one more follows the last, so that every position gives logits.
fn every_position(tokens: &[u32]) -> Batch {
    let mut tokens = tokens.to_vec();
    tokens.push(0);
    let targets = (0..tokens.len()).map(|t| t > 0).collect();
    Batch::new(&[row(tokens, targets)])
}

fn logits(model: &Decoder, hidden: &Tensor) -> Vec<f32> {
    model.logits(hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn expected(folder: &std::path::Path) -> (Vec<u32>, Vec<f32>) {
    let file = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids: Vec<i64> = file["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
    (ids.iter().map(|&i| i as u32).collect(), file["logits"].flatten_all().unwrap().to_vec1().unwrap())
}

/// All that `device` has kernels for.
fn variants(device: &Device) -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(goldens().join("models")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 27, "goldens are missing: {folders:?}");
    folders.retain(|f| device.is_cpu() || ModelConfig::read(f).unwrap().without_gpu_kernel().is_none());
    folders
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) })
}

distill::on_every_device! {
fn logits_equal_transformers_for_every_family_and_variant(device) {
    for folder in variants(device) {
        let model = Decoder::load(&folder, false, device).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let (ids, want) = expected(&folder);
        let got = logits(&model, &model.hidden(&every_position(&ids)).unwrap());
        let difference = largest_difference(&got, &want);
        assert!(difference <= 2e-5, "{}: logits differ by {difference}", folder.display());
    }
}

fn generation_with_the_cache_gives_the_logits_of_a_whole_forward(device) {
    for folder in variants(device) {
        let model = Decoder::load(&folder, false, device).unwrap();
        let (ids, want) = expected(&folder);
        let mut cache = KvCache::new(1);
        let vocab = model.config().vocab_size;
        // A prompt at once, then token by token.
        for (from, to) in std::iter::once((0, 9)).chain((9..ids.len()).map(|t| (t, t + 1))) {
            let got = logits(&model, &model.advance(&[(0, &ids[from..to])], &mut cache, 0).unwrap());
            let difference = largest_difference(&got, &want[(to - 1) * vocab..to * vocab]);
            assert!(difference <= 2e-5, "{}: logits of token {to} differ by {difference}", folder.display());
        }
    }
}

fn rows_in_one_batch_do_not_see_each_other(device) {
    for folder in variants(device) {
        let model = Decoder::load(&folder, false, device).unwrap();
        let (ids, want) = expected(&folder);
        let rows: Vec<Row> = [&ids[..5], &ids[..], &ids[..11]]
            .iter()
            .map(|ids| row([ids, &[0][..]].concat(), (0..=ids.len()).map(|t| t > 0).collect()))
            .collect();
        let got = logits(&model, &model.hidden(&Batch::new(&rows)).unwrap());
        let vocab = model.config().vocab_size;
        let want = [&want[..5 * vocab], &want[..], &want[..11 * vocab]].concat();
        assert!(largest_difference(&got, &want) <= 2e-5, "{}", folder.display());
    }
}

fn every_trainable_tensor_gets_a_gradient_in_every_family(device) {
    for folder in variants(device) {
        let model = Decoder::load(&folder, true, device).unwrap();
        let (ids, _) = expected(&folder);
        let batch = every_position(&ids);
        let trace = model.trace(&batch, Keep::Activations, Precision::F32, &[]).unwrap();
        let upstream = trace.hidden.affine(0.3, 0.1).unwrap();
        model.backward(trace, upstream, &[]).unwrap();
        for parameter in model.parameters().iter().filter(|p| p.name != "lm_head.weight") {
            let gradient = parameter.grad.as_ref().unwrap().tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(
                gradient.iter().any(|g| *g != 0.0) && gradient.iter().all(|g| g.is_finite()),
                "{}: {} has no gradient",
                folder.display(),
                parameter.name
            );
        }
    }
}
}
