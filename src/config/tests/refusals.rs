//! What is refused, and what the message says about it.

use super::*;

/// `LEAST` with lines added to a section that it may have.
fn with(section: &str, lines: &str) -> String {
    let head = format!("[{section}]");
    match LEAST.contains(&head) {
        true => LEAST.replace(&head, &format!("{head}\n{lines}")),
        false => format!("{LEAST}{head}\n{lines}\n"),
    }
}

#[test]
fn every_range_is_checked_with_key_value_and_what_is_allowed() {
    for (section, line, allowed) in [
        ("loss", "temperature = 0", "a finite number > 0"),
        ("loss", "temperature = inf", "a finite number > 0"),
        ("loss", "temperature = nan", "a finite number > 0"),
        ("loss", "hard_label_weight = 1.5", "a number from 0 to 1"),
        ("loss", "hard_label_weight = -0.1", "a number from 0 to 1"),
        ("train", "learning_rate = 0.0", "a finite number > 0"),
        ("train", "beta1 = 1.0", "a number ≥ 0 and < 1"),
        ("train", "beta2 = -0.5", "a number ≥ 0 and < 1"),
        ("train", "epsilon = 0.0", "a finite number > 0"),
        ("train", "weight_decay = -1", "a finite number ≥ 0"),
        ("train", "max_grad_norm = 0", "a finite number > 0"),
        ("train", "batch_size = 0", "an integer ≥ 1"),
        ("train", "micro_batch_size = 0", "an integer ≥ 1"),
        ("train", "micro_batch_size = 17", "at most train.batch_size = 16"),
        ("train", "steps = 0", "an integer ≥ 1"),
        ("train", "epochs = 0", "an integer ≥ 1"),
        ("train", "warmup_steps = -1", "an integer ≥ 0"),
        ("train", "max_time = \"30\"", "a whole number > 0 and a unit"),
        ("train", "schedule = \"step\"", "constant | linear | cosine"),
        ("teacher", "device = \"gpu\"", "auto, cpu, cuda, or cuda:N with N from 0"),
        ("student", "device = \"cuda:-1\"", "auto, cpu, cuda, or cuda:N with N from 0"),
        ("data", "max_length = 1", "an integer ≥ 2"),
        ("data", "loss_on = \"prompt\"", "completion | all"),
        ("data", "on_bad_record = \"warn\"", "fail | skip"),
        ("eval", "every_steps = 0", "an integer ≥ 1"),
        ("eval", "max_rows = 0", "an integer ≥ 1"),
        ("checkpoint", "every_steps = 0", "an integer ≥ 1"),
        ("checkpoint", "keep_last = 1", "an integer ≥ 2"),
        ("checkpoint", "keep_every = 150", "multiples of checkpoint.every_steps = 100"),
        ("output", "dtype = \"f16\"", "f32 | bf16"),
    ] {
        let text = problem(&with(section, line), &[]);
        let key = format!("{section}.{}", line.split(' ').next().unwrap());
        assert!(text.contains(&format!("{key} = ")) && text.contains(&format!("allowed: {allowed}")), "{text}");
        assert!(text.contains("c.toml:"), "{text}");
    }
    assert!(problem(LEAST, &["seed=-1"]).contains("seed = -1: allowed: an integer ≥ 0"));
}

#[test]
fn an_unknown_key_is_refused_at_every_level_with_a_suggestion() {
    for (section, line, says) in [
        ("studnet", "", "unknown key studnet: did you mean `student`?"),
        ("teacher", "pth = 1", "unknown key teacher.pth: did you mean `path`?"),
        ("student", "layer = 1", "unknown key student.layer: did you mean `layers`?"),
        ("data", "max-length = 1", "unknown key data.max-length: did you mean `max_length`?"),
        ("loss", "temprature = 1", "unknown key loss.temprature: did you mean `temperature`?"),
        ("train", "learning_rat = 1", "unknown key train.learning_rat: did you mean `learning_rate`?"),
        (
            "train",
            "temperature = 1",
            "unknown key train.temperature: did you mean `rollout.temperature` or `loss.temperature`?",
        ),
        ("eval", "max_row = 1", "unknown key eval.max_row: did you mean `max_rows`?"),
        ("checkpoint", "keep = 1", "unknown key checkpoint.keep: "),
        ("output", "directory = 1", "unknown key output.directory: "),
        ("output", "seed = 1", "did you mean `seed` before the first section"),
        ("train", "xyzzy = 1", "known in [train]: steps, epochs"),
    ] {
        let text = problem(&with(section, line), &[]);
        assert!(text.contains(says), "{text}");
    }
    assert!(problem(&format!("steps = 3\n{LEAST}"), &[]).contains("did you mean `train.steps`?"));
    assert!(problem(&format!("sed = 3\n{LEAST}"), &[]).contains("did you mean `seed`?"));
}

#[test]
fn what_is_not_built_yet_is_refused_and_what_is_there_is_named() {
    let text = problem(LEAST, &["teacher.kind=api"]);
    assert!(text.contains("is not available in this version; available"), "{text}");
}

#[test]
fn adapters_belong_to_lora_and_their_numbers_are_checked() {
    for set in ["student.rank=8", "student.alpha=8", "student.targets=[\"q_proj\"]"] {
        assert!(problem(LEAST, &[set]).contains("is not used by student.kind = \"local\""));
    }
    let lora = LEAST.replace("kind = \"local\"\npath = \"student\"", "kind = \"lora\"");
    let source = load_text(&lora, &[]).unwrap().student.source;
    let StudentSource::Lora { from, rank: 16, alpha: 32.0, targets: None } = source else { panic!("{source:?}") };
    assert!(from.ends_with("teacher"));
    for (set, says) in [
        ("student.rank=0", "student.rank = 0: allowed: an integer ≥ 1"),
        ("student.alpha=0", "student.alpha = 0: allowed: a finite number > 0"),
        ("student.targets=[]", "allowed: at least one name"),
        ("student.targets=\"q_proj\"", "is a string, wanted a list of strings"),
        ("student.targets=[\"q_proj\", 1]", "student.targets[1] = 1 is an integer, wanted a string"),
        ("student.targets=[\"q_proj\", \"q_proj\"]", "student.targets[1] = \"q_proj\": allowed: each name once"),
        ("student.layers=[1]", "is not used by student.kind = \"lora\", which takes from, rank, alpha, targets"),
    ] {
        let text = problem(&lora, &[set]);
        assert!(text.contains(says), "{text}");
    }
    let gguf = lora.replace("path = \"teacher\"", "kind = \"gguf\"\npath = \"t.gguf\"");
    assert!(problem(&gguf, &[]).contains("student.from is missing: a GGUF teacher's quantised weights cannot learn"));
}

#[test]
fn a_bound_on_bad_rows_needs_that_they_are_passed_over() {
    assert_eq!(load_text(LEAST, &["data.on_bad_record=skip", "data.max_bad=0"]).unwrap().data.max_bad, Some(0));
    assert_eq!(load_text(LEAST, &["data.on_bad_record=skip"]).unwrap().data.max_bad, None);
    let below = problem(LEAST, &["data.on_bad_record=skip", "data.max_bad=-1"]);
    assert!(below.contains("data.max_bad = -1: allowed: an integer ≥ 0"), "{below}");
    for set in [vec!["data.max_bad=3"], vec!["data.max_bad=3", "data.on_bad_record=fail"]] {
        assert!(problem(LEAST, &set).contains("data.max_bad = 3 needs data.on_bad_record = \"skip\""));
    }
}

#[test]
fn layers_are_chosen_of_a_live_teacher_alone_and_with_their_number() {
    let pruned =
        |lines: &str| LEAST.replace("kind = \"local\"\npath = \"student\"", &format!("kind = \"pruned\"\n{lines}"));
    let auto = pruned("layers = \"auto\"\ncount = 2");
    assert_eq!(load_text(&auto, &[]).unwrap().student.search(), Some((2, 64)));
    assert_eq!(load_text(&auto, &["student.rows=9"]).unwrap().student.search(), Some((2, 9)));
    assert!(problem(&pruned("layers = \"auto\""), &[]).contains("student.count is missing: say how many layers"));
    assert!(problem(&pruned("layers = \"best\""), &[]).contains("allowed: a list of layers, or \"auto\""));
    assert!(problem(&auto, &["student.count=0"]).contains("student.count = 0: allowed: an integer ≥ 1"));
    for set in ["student.count=2", "student.rows=9"] {
        let said = problem(&pruned("layers = [0]"), &[set]);
        assert!(said.contains("is for student.layers = \"auto\" alone"), "{said}");
    }
    for (set, other) in
        [("student.from=x", &auto), ("teacher.path=t.gguf", &auto.replace("[teacher]", "[teacher]\nkind = \"gguf\""))]
    {
        let said = problem(other, &[set, "student.from=x"]);
        assert!(said.contains("the [teacher] has to be the model that is cut"), "{said}");
    }
}

#[test]
fn a_wrong_type_names_what_was_found_and_what_is_wanted() {
    for (set, says) in [
        ("seed=1.5", "seed = 1.5 is a float, wanted an integer"),
        ("seed=99999999999999999999", "is an integer beyond 64 bits, wanted an integer"),
        ("train.batch_size=\"16\"", "train.batch_size = \"16\" is a string, wanted an integer"),
        ("train.beta1=true", "train.beta1 = true is a boolean, wanted a number"),
        ("data.packing=1", "data.packing = 1 is an integer, wanted a boolean"),
        ("data.train=[\"a\", 1]", "data.train[1] = 1 is an integer, wanted a string"),
        ("data.train=1", "data.train = 1 is an integer, wanted a string"),
        ("data.train=[]", "allowed: at least one file"),
        ("data.train=[\"\"]", "data.train[0] is empty"),
        ("output.dir=[1, 2, 3]", "output.dir = [1, 2, 3] is a list, wanted a string"),
        ("output.dir=\"\"", "output.dir = \"\" is empty"),
        ("output.dir=2020-01-01", "output.dir = 2020-01-01 is a date, wanted a string"),
        ("loss.kind={}", "loss.kind = {…} is a table, wanted a string"),
    ] {
        let text = problem(LEAST, &[set]);
        assert!(text.contains(says), "{text}");
    }
    assert!(problem(&format!("loss = 3\n{LEAST}"), &[]).contains("wanted a section [loss]"));
}

#[test]
fn every_problem_is_reported_at_once_in_the_order_of_the_file() {
    let text = "[train]\nbatch_size = 0\nlearning_rat = 1\nbeta1 = \"x\"\n[studnet]\n[loss]\ntemperature = 0\n";
    let all = problems(text, &["eval.max_rows=0"]);
    let starts = [
        "c.toml:2: train.batch_size",
        "c.toml:3: unknown key train.learning_rat",
        "c.toml:4: train.beta1",
        "c.toml:5: unknown key studnet",
        "c.toml:7: loss.temperature",
        "command line: eval.max_rows",
    ];
    for (line, start) in all.iter().zip(starts) {
        assert!(line.contains(start), "{line}");
    }
    let missing = ["student.kind is missing", "data.train is missing", "needs a [teacher]", "output.dir is missing"];
    for (line, says) in all[starts.len()..].iter().zip(missing) {
        assert!(line.contains(says), "{line}");
    }
    assert_eq!(all.len(), starts.len() + missing.len(), "{all:#?}");
}

#[test]
fn a_student_takes_the_keys_of_its_kind_only() {
    for (student, says) in [
        ("kind = \"local\"", "student.path is missing"),
        ("kind = \"fresh\"", "student.config is missing"),
        ("kind = \"pruned\"", "student.layers is missing"),
        ("kind = \"pruned\"\nlayers = []", "allowed: at least one layer"),
        ("kind = \"pruned\"\nlayers = [0, 0]", "student.layers[1] = 0: allowed: ascending order, each once"),
        ("kind = \"pruned\"\nlayers = [-1]", "student.layers[0] = -1: allowed: an integer ≥ 0"),
        ("kind = \"pruned\"\nlayers = [\"a\"]", "student.layers[0] = \"a\" is a string, wanted an integer"),
        ("kind = \"pruned\"\nlayers = 3", "wanted a list of integers"),
        (
            "kind = \"fresh\"\nconfig = \"c\"\npath = \"p\"",
            "student.path = \"p\" is not used by student.kind = \"fresh\"",
        ),
        ("kind = \"local\"\npath = \"p\"\nlayers = [1]", "student.layers = [1] is not used"),
        ("kind = \"prunde\"", "did you mean \"pruned\"?"),
    ] {
        let text = LEAST.replace("kind = \"local\"\npath = \"student\"", student);
        let text = problem(&text, &[]);
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_cache_takes_the_keys_of_its_codec_and_a_cached_teacher_none_of_a_live_ones() {
    let cache = |lines: &str| format!("{LEAST}[cache]\n{lines}");
    for (lines, says) in [
        ("draws = 3", "cache.draws = 3 is not used by cache.codec = \"top_k\": draws is for \"sampled\""),
        ("codec = \"dense\"\nk = 3", "cache.k = 3 is not used by cache.codec = \"dense\": k is for \"top_k\""),
        ("k = 0", "cache.k = 0: allowed: an integer ≥ 1"),
        ("codec = \"sampled\"\ndraws = 65536", "cache.draws = 65536: allowed: an integer from 1 to 65535"),
        ("values = \"f8\"", "cache.values = \"f8\""),
        ("codec = \"topk\"", "did you mean \"top_k\"?"),
    ] {
        let text = problem(&cache(lines), &[]);
        assert!(text.contains(says), "{text}");
    }
    for (set, says) in [
        ("teacher.dtype=bf16", "teacher.dtype = \"bf16\" is not for teacher.kind = \"cache\""),
        ("teacher.device=cpu", "teacher.device = \"cpu\" is not for teacher.kind = \"cache\""),
        ("teacher.tokenizer=t", "teacher.tokenizer"),
        ("cache.write_through=true", "cache.write_through = true wants a live teacher"),
    ] {
        let text = problem(LEAST, &["teacher.kind=cache", set]);
        assert!(text.contains(says), "{text}");
    }
    let hard = ["loss.kind=cross_entropy", "data.eval=e.jsonl", "cache.write_through=true"];
    assert!(problem(LEAST, &hard).contains("cache.write_through = true has no effect with loss.kind"));
}

#[test]
fn a_loss_takes_the_keys_of_its_kind_in_their_ranges() {
    for (sets, says) in [
        (&["loss.beta=0.5"][..], "loss.beta = 0.5 is not used by loss.kind = \"forward_kl\", but by \"jsd\""),
        (&["loss.kind=skew_kl", "loss.normalize=true"], "loss.normalize = true is not used by loss.kind = \"skew_kl\""),
        (&["loss.kind=jsd", "loss.lambda=0.1"], "loss.lambda = 0.1 is not used by loss.kind = \"jsd\""),
        (&["loss.kind=jsd", "loss.beta=0"], "loss.beta = 0: allowed: a number from 0.01 to 0.99"),
        (&["loss.kind=jsd", "loss.beta=1"], "loss.beta = 1: allowed: a number from 0.01 to 0.99"),
        (&["loss.kind=skew_reverse_kl", "loss.lambda=1"], "loss.lambda = 1: allowed: a number from 0.01 to 0.99"),
        (&["loss.kind=reverse-kl"], "did you mean \"reverse_kl\"?"),
    ] {
        let text = problem(LEAST, sets);
        assert!(text.contains(says), "{text}");
    }
    let loss = |sets: &[&str]| load_text(LEAST, sets).unwrap().loss.divergence.unwrap();
    let jsd = loss(&["loss.kind=jsd"]);
    assert_eq!((jsd.beta, jsd.normalize, jsd.lambda), (Some(0.5), Some(false), None));
    assert_eq!(loss(&["loss.kind=skew_kl"]).lambda, Some(0.1));
    assert_eq!(loss(&["loss.kind=tvd"]).lambda, None);
}

#[test]
fn a_mixture_says_of_each_part_what_is_wrong_with_it() {
    let mix = |parts: &str| format!("{LEAST}[loss]\n{parts}");
    let part = "[[loss.mix]]\nkind = \"reverse_kl\"\nweight = 0.5\n";
    for (text, says) in [
        (mix(&format!("kind = \"jsd\"\n{part}")), "loss.kind = \"jsd\" excludes [[loss.mix]]"),
        (mix("[[loss.mix]]\nkind = \"tvd\"\n"), "loss.mix[0].weight is missing"),
        (mix(&format!("{part}[[loss.mix]]\nweight = 1\n")), "loss.mix[1].kind is missing"),
        (mix("[[loss.mix]]\nkind = \"tvd\"\nweight = 0\n"), "c.toml:14: loss.mix[0].weight = 0: allowed"),
        (
            mix(&format!("{part}beta = 0.5\n")),
            "loss.mix[0].beta = 0.5 is not used by loss.mix[0].kind = \"reverse_kl\"",
        ),
        (mix(&format!("{part}lamda = 0.5\n")), "unknown key loss.mix[0].lamda: did you mean `lambda`?"),
        (mix("[[loss.mix]]\nkind = \"cross_entropy\"\nweight = 1\n"), "is no divergence: loss.hard_label_weight"),
        (mix("mix = []\n"), "loss.mix = []: allowed: a list of tables"),
        (mix("mix = [3]\n"), "loss.mix = [3]: allowed: a list of tables"),
        (mix(&part.repeat(9)), "loss.mix = [9 items]: allowed: up to 8 parts"),
    ] {
        let said = problem(&text, &[]);
        assert!(said.contains(says), "{said} does not say {says}");
    }
}

#[test]
fn hidden_states_are_named_by_pairs_of_layers_that_exist() {
    for (set, says) in [
        ("loss.hidden=1", "loss.hidden = 1: allowed: a table"),
        ("loss.hidden={kind=\"mse\"}", "loss.hidden.layers is missing: give \"auto\", or pairs"),
        ("loss.hidden={layers=[[0]]}", "loss.hidden.layers = [[0]]: allowed"),
        ("loss.hidden={layers=[[0, 1], [0, 2]]}", "loss.hidden.layers = [[0, 1], [0, 2]]: allowed"),
        ("loss.hidden={layers=[[0, -1]]}", "loss.hidden.layers = [[0, -1]]: allowed"),
        ("loss.hidden={layers=\"auto\", kind=\"l1\"}", "loss.hidden.kind = \"l1\": allowed: mse | cosine"),
        ("loss.hidden={layers=\"auto\", weight=0}", "loss.hidden.weight = 0: allowed"),
        ("loss.hidden={layers=\"auto\", wieght=1}", "unknown key loss.hidden.wieght: did you mean `weight`?"),
    ] {
        let said = problem(LEAST, &[set]);
        assert!(said.contains(says), "{said} does not say {says}");
    }
    let hidden = |set: &str| load_text(LEAST, &[set]).unwrap().loss.hidden.unwrap();
    let source = |layers: &[usize]| StudentSource::Pruned { from: "f".into(), layers: Layers::These(layers.to_vec()) };
    let local = StudentSource::Local { path: "p".into() };
    let auto = hidden("loss.hidden={layers=\"auto\"}");
    assert_eq!((auto.kind, auto.weight), (HiddenKind::Mse, 1.0));
    assert_eq!(auto.pairs(&source(&[0, 3, 9]), Some(Path::new("f")), 3, 10).unwrap(), [[0, 0], [1, 3], [2, 9]]);
    assert_eq!(auto.pairs(&local, None, 3, 10).unwrap(), [[0, 3], [1, 6], [2, 9]]);
    assert_eq!(auto.pairs(&local, None, 2, 2).unwrap(), [[0, 0], [1, 1]]);
    // A cut of another model is paired by depth.
    assert_eq!(auto.pairs(&source(&[1]), Some(Path::new("t")), 1, 4).unwrap(), [[0, 3]]);
    let named = hidden("loss.hidden={layers=[[2, 9], [0, 1]]}");
    assert_eq!(named.pairs(&local, None, 3, 10).unwrap(), [[0, 1], [2, 9]]);
    assert!(named.pairs(&local, None, 2, 10).unwrap_err().to_string().contains("names layer 2 of the student"));
    assert!(named.pairs(&local, None, 3, 9).unwrap_err().to_string().contains("names layer 9 of the teacher"));
}

#[test]
fn rollouts_are_refused_where_they_would_do_nothing_or_something_else() {
    for (sets, says) in [
        (&["rollout.top_p=0.9"][..], "rollout.fraction is missing: give the share of rows"),
        (&["rollout.fraction=1.5"], "rollout.fraction = 1.5: allowed: a number from 0 to 1"),
        (&["rollout.fraction=1", "rollout.top_p=0"], "rollout.top_p = 0: allowed: a number > 0 and ≤ 1"),
        (&["rollout.fraction=1", "rollout.buffer=9"], "rollout.buffer = 9 is not used with rollout.every_steps = 1"),
        (&["rollout.fraction=1", "data.packing=true"], "data.packing = true does not go with rollout.fraction > 0"),
        (&["rollout.fraction=1", "data.loss_on=all"], "data.loss_on = \"all\" does not go with rollout.fraction > 0"),
        (&["rollout.fraction=1", "teacher.kind=cache"], "rollout.fraction = 1 wants a teacher that can be asked"),
        (&["rollout.fraction=1", "cache.write_through=true"], "cache.write_through = true would store rows"),
        (
            &["rollout.fraction=1", "loss.kind=cross_entropy", "data.eval=e.jsonl"],
            "rollout.fraction = 1 wants a divergence",
        ),
    ] {
        let text = problem(LEAST, sets);
        assert!(text.contains(says), "{text}");
    }
    let rollout = |sets: &[&str]| load_text(LEAST, sets).unwrap().rollout.unwrap();
    assert!(!rollout(&["rollout.fraction=0", "data.packing=true"]).on_policy());
    let often = rollout(&["rollout.fraction=1", "rollout.every_steps=4"]);
    assert_eq!((often.every_steps, often.buffer, often.max_new_tokens), (Some(4), Some(256), 128));
}

#[test]
fn a_moving_number_has_two_ends_in_range_and_a_path() {
    for (set, says) in [
        ("loss.temperature={from=0, to=1}", "loss.temperature.from = 0: allowed"),
        ("loss.temperature={to=1}", "loss.temperature.from is missing: give a finite number > 0"),
        ("loss.hard_label_weight={from=0, to=1.5}", "loss.hard_label_weight.to = 1.5: allowed: a number from 0 to 1"),
        (
            "loss.temperature={from=1, to=2, schedule=\"constant\"}",
            "loss.temperature.schedule = \"constant\": allowed: linear | cosine",
        ),
        ("loss.temperature={from=1, to=2, steps=3}", "unknown key loss.temperature.steps"),
        ("loss.temperature=\"warm\"", "loss.temperature = \"warm\" is a string"),
    ] {
        let said = problem(LEAST, &[set]);
        assert!(said.contains(says), "{said} does not say {says}");
    }
    let loss = load_text(LEAST, &["loss.temperature={from=4, to=1}"]).unwrap().loss;
    assert_eq!(loss.temperature, Scheduled::Moving { from: 4.0, to: 1.0, schedule: Schedule::Linear });
}

#[test]
fn without_a_teacher_the_student_must_name_what_it_would_take_from_it() {
    let text = LEAST.replace("[teacher]\npath = \"teacher\"", "[loss]\nkind = \"cross_entropy\"");
    assert_eq!(load_text(&text, &[]).unwrap().teacher, None);
    let student = |s: &str| text.replace("kind = \"local\"\npath = \"student\"", s);
    for (lines, key) in [
        ("kind = \"pruned\"\nlayers = [0]", "student.from is missing"),
        ("kind = \"fresh\"\nconfig = \"c\"", "student.tokenizer is missing"),
    ] {
        assert!(problem(&student(lines), &[]).contains(key));
    }
    let text = problem(&text, &["loss.kind=forward_kl"]);
    assert!(text.contains("needs a [teacher]") && text.contains("cross_entropy"), "{text}");
}

#[test]
fn a_gguf_teacher_lends_its_tokenizer_to_a_fresh_student_but_no_weights_to_a_pruned_one() {
    let text = LEAST.replace("path = \"teacher\"", "kind = \"gguf\"\npath = \"t.gguf\"");
    let student = |s: &str| text.replace("kind = \"local\"\npath = \"student\"", s);
    let fresh = student("kind = \"fresh\"\nconfig = \"c\"");
    for (set, from) in [
        (&[][..], "conf/t.gguf"),
        (&["teacher.tokenizer=of_teacher"], "work/of_teacher"),
        (&["teacher.tokenizer=of_teacher", "student.tokenizer=of_student"], "work/of_student"),
    ] {
        let StudentSource::Fresh { tokenizer, .. } = load_text(&fresh, set).unwrap().student.source else { panic!() };
        assert!(tokenizer.ends_with(from), "{} is not {from}", tokenizer.display());
    }
    let said = problem(&student("kind = \"pruned\"\nlayers = [0]"), &[]);
    assert!(
        said.contains("student.from is missing") && said.contains("distill export FILE.gguf --dequantize"),
        "{said}"
    );
    let said = problem(LEAST, &["teacher.tokenizer=x"]);
    assert!(said.contains("teacher.tokenizer = \"x\" is for teacher.kind = \"gguf\" alone"), "{said}");
}

#[test]
fn hard_labels_take_no_temperature_and_no_weight_but_may_have_a_teacher_to_evaluate_against() {
    let held_out = "data.eval=held_out.jsonl";
    assert!(load_text(LEAST, &["loss.kind=cross_entropy", held_out]).unwrap().teacher.is_some());
    assert!(problem(LEAST, &["loss.kind=cross_entropy"]).contains("teacher.path"));
    let all = problem(LEAST, &["data.loss_on=all", "eval.exact_match=true"]);
    assert!(all.contains("eval.exact_match"), "{all}");
    for set in [
        "loss.temperature=2",
        "loss.hard_label_weight=0.5",
        "loss.scale_by_temperature_squared=false",
        "loss.tail=bucket",
    ] {
        let text = problem(LEAST, &["loss.kind=cross_entropy", held_out, set]);
        assert!(text.contains("has no effect with loss.kind = \"cross_entropy\""), "{text}");
    }
}

#[test]
fn the_length_of_a_run_is_given_once() {
    assert!(problem(LEAST, &["train.steps=3", "train.epochs=1"]).contains("excludes train.steps"));
    let text = problem(LEAST, &["train.max_time=1h", "train.schedule=cosine"]);
    assert!(text.contains("train.schedule = \"cosine\" spans train.steps or train.epochs"), "{text}");
    assert!(load_text(LEAST, &["train.max_time=1h", "train.schedule=cosine", "train.steps=9"]).is_ok());
    assert_eq!(load_text(LEAST, &["train.steps=9"]).unwrap().train.length(), Length::Steps(9));
}

#[test]
fn a_file_that_is_no_config_is_an_input_error() {
    let all = problems("seed = \n[train\n", &[]);
    assert!(all.len() == 2 && all.iter().all(|line| line.contains("not valid TOML")), "{all:?}");
    assert!(problem("seed = 1\nseed = 2\n", &[]).contains("c.toml:2: not valid TOML: duplicate key"));
    let place = Place::with("");
    for bytes in [&b"seed = 1\n\xff"[..], &vec![b'#'; (1 << 20) + 1]] {
        std::fs::write(place.path("conf/c.toml"), bytes).unwrap();
        assert_eq!(place.load(&[]).unwrap_err().class(), crate::error::Class::Input);
    }
    let error = load(&place.path("absent.toml"), &[], None).unwrap_err();
    assert!(error.class() == crate::error::Class::Input && error.to_string().contains("absent.toml"));
}

#[test]
fn no_control_character_of_the_file_reaches_the_message() {
    let text = "\"a\\u001b[31m\" = 1\n[train]\nschedule = \"\\u001b[31m\"\n\"\\u0007\" = 1\n";
    assert!(!problems(text, &[]).iter().any(|line| line.contains(char::is_control)));
}

#[test]
fn deep_nesting_and_long_words_end_in_an_error() {
    for text in [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        "a.".repeat(100_000) + "a = 1",
        format!("{} = 1", "k".repeat(900_000)),
        format!("[loss]\nkind = \"{}\"", "k".repeat(900_000)),
    ] {
        let all = problems(&text, &[]);
        assert!(all.iter().all(|line| line.len() < 1000));
    }
}
