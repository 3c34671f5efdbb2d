//! Rows of an embedding that are no token, and tokens that stand for nothing, change nothing.

mod common;

use candle_core::{Device, Tensor, safetensors};
use common::Bench;

const TRAIN: [&str; 3] = ["train", "--config", "run.toml"];

/// The teacher with 40 rows behind its vocabulary that no text reaches, as vocabularies are filled up to a round number; they
/// are as likely as anything the teacher says.
fn pad(bench: &Bench, from: &str, to: &str) {
    std::fs::create_dir_all(bench.path(to)).unwrap();
    for entry in bench.path(from).read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), bench.path(to).join(entry.file_name())).unwrap();
    }
    let file = bench.path(to).join("model.safetensors");
    let mut weights = safetensors::load(&file, &Device::Cpu).unwrap();
    let embedding = &weights["model.embed_tokens.weight"];
    let noise: Vec<f32> = (0..40 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0).collect();
    let garbage = Tensor::from_vec(noise, (40, 32), &Device::Cpu).unwrap();
    let padded = Tensor::cat(&[embedding, &garbage], 0).unwrap();
    weights.insert("model.embed_tokens.weight".into(), padded);
    safetensors::save(&weights, &file).unwrap();
    let config = String::from_utf8(bench.read(&format!("{to}/config.json"))).unwrap();
    bench.write(&format!("{to}/config.json"), config.replace("\"vocab_size\": 400", "\"vocab_size\": 440"));
}

#[test]
fn a_teachers_padded_rows_change_no_bit_of_what_the_student_learns() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 6");
    pad(&bench, "teacher/student", "padded");
    for loss in ["forward_kl", "reverse_kl", "jsd", "tvd"] {
        let run = |name: &str, more: &[&str]| {
            let output = format!("{name}-{loss}");
            let loss = format!("loss.kind={loss}");
            bench.expect(&[&TRAIN[..], &["--output", &output, "--set", &loss], more].concat(), 0);
            (bench.read(&format!("{output}/student/model.safetensors")), bench.timeless_metrics(&output))
        };
        let (plain, padded) = (run("plain", &[]), run("padded", &["--set", "teacher.path=padded"]));
        assert_eq!(plain.1, padded.1, "{loss}: metrics, evaluations among them");
        assert!(plain.0 == padded.0, "{loss}: the weights");
    }
}

#[test]
fn a_students_padded_rows_are_unlearnt_and_never_said() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 30");
    bench.write("student.json", common::model_config(1, 16).replace("\"vocab_size\": 400", "\"vocab_size\": 440"));
    bench.expect(&TRAIN, 0);
    let weights = safetensors::load(bench.path("run/student/model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(weights["model.embed_tokens.weight"].dims(), [440, 16]);
    let metrics = bench.timeless_metrics("run");
    let kl: Vec<f64> = metrics.iter().filter_map(|event| event["kl_mean"].as_f64()).collect();
    assert!(kl.len() > 3 && kl.iter().all(|kl| kl.is_finite()) && kl.last() < kl.first(), "{kl:?}");
    // What the student says is text: a padded row's would be none.
    let said =
        bench.expect(&["generate", "--model", "run/student", "--prompt", "red 1?", "--raw", "--max-tokens", "20"], 0);
    assert!(!String::from_utf8(said.stdout).unwrap().contains('\u{fffd}'));
}

#[test]
fn a_pad_token_that_is_the_end_token_hides_no_end() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 4");
    let config = "teacher/student/tokenizer_config.json";
    let text = String::from_utf8(bench.read(config)).unwrap();
    let mut weights = vec![];
    // Rows of one to four words in a batch: whatever would be filled up would be filled up with ends.
    for pad in ["<|endoftext|>", "<|im_end|>"] {
        let mut named: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(named["eos_token"], "<|im_end|>");
        named["pad_token"] = pad.into();
        bench.write(config, named.to_string());
        let output = format!("run-{}", weights.len());
        let plan = bench.expect(&[&TRAIN[..], &["--dry-run"]].concat(), 0);
        let plan = String::from_utf8(plan.stdout).unwrap();
        assert!(plan.contains("«<|im_end|>»"), "the end is a target: {plan}");
        bench.expect(&[&TRAIN[..], &["--output", &output]].concat(), 0);
        weights.push((bench.read(&format!("{output}/student/model.safetensors")), bench.timeless_metrics(&output)));
    }
    assert!(weights[0] == weights[1]);
}
