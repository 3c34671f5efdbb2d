//! The documented defaults, and that what is written is read back.

use super::*;

/// The documentation's example, with every default written out.
const DOCUMENTED: &str = r#"
seed = 42
[teacher]
kind = "local"
path = "models/SmolLM2-135M-Instruct/"
dtype = "f32"
[student]
kind = "pruned"
layers = [0, 1, 2, 6, 10, 14, 18, 22, 26, 29]
[data]
train = ["data/train.jsonl"]
eval = "data/held_out.jsonl"
max_length = 512
loss_on = "completion"
chat_template = "auto"
packing = false
shuffle = true
on_bad_record = "fail"
[loss]
kind = "forward_kl"
temperature = 1.0
hard_label_weight = 0.0
scale_by_temperature_squared = true
[train]
batch_size = 16
micro_batch_size = 16
learning_rate = 1e-4
schedule = "constant"
warmup_steps = 0
beta1 = 0.9
beta2 = 0.999
epsilon = 1e-8
weight_decay = 0.0
max_grad_norm = 1.0
[eval]
every_steps = 100
max_rows = 256
exact_match = false
[checkpoint]
every_steps = 100
keep_last = 2
keep_best = true
[output]
dir = "runs/smollm2"
dtype = "f32"
"#;

/// The same with only what has no default.
const SHORT: &str = r#"
[teacher]
path = "models/SmolLM2-135M-Instruct/"
[student]
kind = "pruned"
layers = [0, 1, 2, 6, 10, 14, 18, 22, 26, 29]
[data]
train = ["data/train.jsonl"]
eval = "data/held_out.jsonl"
[output]
dir = "runs/smollm2"
"#;

/// Every key away from its default, as far as one config can.
const FULL: &str = r#"
seed = 7
[teacher]
kind = "local"
path = "/m/big"
dtype = "f32"
device = "cuda:1"
[student]
kind = "pruned"
from = "/m/other"
layers = [0, 3]
device = "cpu"
[cache]
codec = "sampled"
draws = 7
values = "f32"
write_through = true
[data]
train = ["a.jsonl", "/b.jsonl"]
eval = "e.jsonl"
max_length = 33
loss_on = "completion"
chat_template = "chat.jinja"
packing = true
shuffle = false
on_bad_record = "skip"
max_bad = 3
[loss]
kind = "forward_kl"
temperature = 2
hard_label_weight = 0.3
scale_by_temperature_squared = false
tail = "renormalize"
[train]
steps = 50
max_time = "90s"
batch_size = 8
micro_batch_size = 2
learning_rate = 3.3e-5
schedule = "cosine"
warmup_steps = 5
beta1 = 0.8
beta2 = 0.95
epsilon = 1e-6
weight_decay = 0.1
max_grad_norm = 0.5
dtype = "bf16"
checkpoint_activations = true
tf32 = true
[eval]
every_steps = 9
max_rows = 11
exact_match = true
[checkpoint]
every_steps = 13
keep_last = 4
keep_every = 26
keep_best = false
[output]
dir = "/out"
dtype = "bf16"
"#;

#[test]
fn the_defaults_are_the_documented_ones() {
    let place = Place::with(DOCUMENTED);
    let documented = place.load(&[]).unwrap();
    std::fs::write(place.path("conf/c.toml"), SHORT).unwrap();
    let short = place.load(&[]).unwrap();
    assert_eq!(documented, short);
    assert_eq!((short.train.steps, short.train.epochs, &short.train.max_time), (None, None, &None));
    assert_eq!(short.train.length(), Length::Epochs(1));
    let teacher = place.path("conf/models/SmolLM2-135M-Instruct");
    let layers = vec![0, 1, 2, 6, 10, 14, 18, 22, 26, 29];
    assert_eq!(short.student.source, StudentSource::Pruned { from: teacher.clone(), layers: Layers::These(layers) });
    assert_eq!(
        short.teacher,
        Some(TeacherConfig {
            kind: TeacherKind::Local,
            path: teacher,
            tokenizer: None,
            dtype: Dtype::F32,
            device: None
        })
    );
}

#[test]
fn the_micro_batch_is_the_batch_by_default() {
    let config = load_text(LEAST, &["train.batch_size=3"]).unwrap();
    assert_eq!(config.train.micro_batch_size, 3);
}

#[test]
fn what_is_saved_is_read_back_as_the_same_config() {
    let kinds = [
        (FULL, vec![]),
        (SHORT, vec![]),
        (LEAST, vec!["train.epochs=3", "data.chat_template=none"]),
        (LEAST, vec!["rollout.fraction=0.5", "rollout.every_steps=3", "rollout.top_p=0.9"]),
        (LEAST, vec!["loss.kind=cross_entropy", "data.eval=e.jsonl"]),
        (
            LEAST,
            vec![
                "loss.mix=[{kind=\"jsd\", weight=0.5, beta=0.3}, {kind=\"tvd\", weight=2}]",
                "loss.temperature={from=4, to=1, schedule=\"cosine\"}",
                "loss.hard_label_weight={from=0, to=0.5}",
                "loss.hidden={layers=[[1, 3], [0, 2]], kind=\"cosine\", weight=2}",
            ],
        ),
        (
            "[student]\nkind=\"fresh\"\nconfig=\"c.json\"\ntokenizer=\"t\"\n[data]\ntrain=\"d\"\n[output]\ndir=\"o\"\n\
          [loss]\nkind=\"cross_entropy\"",
            vec![],
        ),
        (
            "[teacher]\nkind=\"gguf\"\npath=\"t.gguf\"\ntokenizer=\"t\"\n[student]\nkind=\"fresh\"\nconfig=\"c.json\"\n\
          [data]\ntrain=\"d\"\n[output]\ndir=\"o\"",
            vec![],
        ),
    ];
    let lora = LEAST.replace("kind = \"local\"\npath = \"student\"", "kind = \"lora\"\nrank = 3\nalpha = 1.5");
    let adapted = [(&lora[..], vec![]), (&lora[..], vec!["student.targets=[\"q_proj\", \"c_attn\"]"])];
    let auto = [(SHORT, vec!["student.layers=auto", "student.count=3"])];
    for (text, set) in kinds.into_iter().chain(adapted).chain(auto) {
        let place = Place::with(text);
        let config = place.load(&set).unwrap();
        let file = place.path("saved.toml");
        save(&config, &file).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("# "));
        assert_eq!(load(&file, &[], None).unwrap(), config);
        assert!(!place.path("saved.toml.tmp").exists());
    }
}

#[test]
fn the_schema_lists_exactly_the_keys_that_are_read() {
    let mut written: Vec<String> = vec![];
    let others = ["local\"\npath=\"x\"", "fresh\"\nconfig=\"x\"\ntokenizer=\"t\""];
    let mut texts: Vec<String> = others.iter().map(|kind| {
        format!("[teacher]\npath=\"t\"\n[student]\nkind=\"{kind}\n[data]\ntrain=\"d\"\n[output]\ndir=\"o\"\n[train]\nepochs=2")
    }).collect();
    texts.push(LEAST.replace("kind = \"local\"\npath = \"student\"", "kind = \"lora\"\ntargets = [\"q_proj\"]"));
    texts.push(SHORT.replace("layers = [0, 1, 2, 6, 10, 14, 18, 22, 26, 29]", "layers = \"auto\"\ncount = 3"));
    texts.push(FULL.to_owned());
    texts.push(format!("{LEAST}[cache]\n"));
    texts.extend(["jsd", "skew_kl"].map(|kind| format!("{LEAST}[loss]\nkind = \"{kind}\"\n")));
    texts.push(format!("{LEAST}[rollout]\nfraction = 0.5\nevery_steps = 2\n"));
    texts.push(format!("{LEAST}[loss]\nhidden = {{ layers = \"auto\" }}\n"));
    texts.push(format!("{LEAST}[[loss.mix]]\nkind = \"tvd\"\nweight = 1\n"));
    texts.push(LEAST.replace("path = \"teacher\"", "kind = \"gguf\"\npath = \"t.gguf\"\ntokenizer = \"t\""));
    for text in texts {
        written.extend(resume::flat(&load_text(&text, &[]).unwrap()).unwrap().into_keys());
    }
    let mut known: Vec<String> = schema::TOP.iter().map(ToString::to_string).collect();
    known.extend(schema::SECTIONS.iter().flat_map(|s| s.keys.iter().map(|k| format!("{}.{k}", s.name))));
    written.sort();
    written.dedup();
    known.sort();
    assert_eq!(written, known);
}

#[test]
fn layers_that_a_run_has_chosen_are_kept_when_the_same_question_comes_again() {
    let place = Place::with(SHORT);
    let auto = |count: &str| place.load(&["student.layers=auto", &format!("student.count={count}")]).unwrap();
    let asked = auto("3");
    assert_eq!(asked.student.search(), Some((3, 64)));
    let mut run = asked.clone();
    run.student.choose(vec![0, 4, 9]);
    let mut again = place.load(&["student.layers=auto", "student.count=3", "student.rows=5"]).unwrap();
    again.student.keep_chosen(&run.student);
    assert_eq!(resume_differences(&run, &again).unwrap(), []);
    let mut other = auto("4");
    other.student.keep_chosen(&run.student);
    let keys: Vec<String> = resume_differences(&run, &other).unwrap().into_iter().map(|d| d.key).collect();
    assert_eq!(keys, ["student.count", "student.layers", "student.rows"]);
}

#[test]
fn a_wall_clock_limit_has_a_number_and_a_unit() {
    let seconds = |text: &str| MaxTime::parse(text).map(|t| t.duration().as_secs());
    assert_eq!((seconds("90s"), seconds("30m"), seconds("2h")), (Some(90), Some(1800), Some(7200)));
    for bad in ["", "30", "m", "0s", "-1s", "1.5h", "+3s", "3 h", "3d", "99999999999999999999h", "9999999999999999h"] {
        assert_eq!(seconds(bad), None, "{bad}");
    }
    assert_eq!(load_text(LEAST, &["train.max_time=30m"]).unwrap().train.max_time.unwrap().as_str(), "30m");
}

#[test]
fn a_resumed_run_may_change_its_length_output_and_cadences_only() {
    let place = Place::with(LEAST);
    let saved = place.load(&["train.steps=5"]).unwrap();
    let free = [
        "train.epochs=2",
        "train.max_time=2h",
        "output.dir=elsewhere",
        "output.dtype=bf16",
        "eval.every_steps=7",
        "checkpoint.every_steps=7",
        "checkpoint.keep_last=9",
        "checkpoint.keep_every=14",
        "checkpoint.keep_best=false",
    ];
    assert_eq!(resume_differences(&saved, &place.load(&free).unwrap()).unwrap(), []);
    for fixed in [
        "seed=1",
        "teacher.path=x",
        "student.path=x",
        "data.train=x",
        "data.eval=x",
        "data.max_length=9",
        "loss.temperature=2",
        "train.batch_size=2",
        "train.learning_rate=1.0",
        "train.dtype=bf16",
        "eval.max_rows=3",
    ] {
        let new = place.load(&["train.steps=5", fixed]).unwrap();
        let keys: Vec<String> = resume_differences(&saved, &new).unwrap().into_iter().map(|d| d.key).collect();
        assert_eq!(keys[0], fixed.split_once('=').unwrap().0);
    }
    let new = place.load(&["seed=1", "train.warmup_steps=3", "data.eval=x"]).unwrap();
    let all = resume_differences(&saved, &new).unwrap();
    assert_eq!(all.len(), 3);
    assert!(all[0].to_string().starts_with("data.eval: absent in the run, now \""), "{}", all[0]);
    assert_eq!(all[1].to_string(), "seed: 42 in the run, now 1");
}
