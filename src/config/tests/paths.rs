//! Where relative paths and hub ids lead, and what `--set` and `--output` replace.

use super::*;

#[test]
fn paths_in_the_file_start_at_its_folder_and_those_of_set_at_the_working_directory() {
    let place = Place::with(LEAST);
    let config = place.load(&[]).unwrap();
    assert_eq!(
        config.teacher,
        Some(TeacherConfig {
            kind: TeacherKind::Local,
            path: place.path("conf/teacher"),
            tokenizer: None,
            dtype: Dtype::F32,
            device: None
        })
    );
    assert_eq!(config.student.source, StudentSource::Local { path: place.path("conf/student") });
    assert_eq!(config.data.train, [place.path("conf/train.jsonl")]);
    assert_eq!(config.output.dir, place.path("conf/out"));
    let set = [
        "teacher.path=t",
        "student.path=\"s\"",
        "data.train=[\"a\", \"/b\"]",
        "data.eval=e",
        "output.dir=o",
        "data.chat_template=c.jinja",
    ];
    let config = place.load(&set).unwrap();
    assert_eq!(
        config.teacher,
        Some(TeacherConfig {
            kind: TeacherKind::Local,
            path: place.path("work/t"),
            tokenizer: None,
            dtype: Dtype::F32,
            device: None
        })
    );
    assert_eq!(config.student.source, StudentSource::Local { path: place.path("work/s") });
    assert_eq!(config.data.train, [place.path("work/a"), "/b".into()]);
    assert_eq!(config.data.eval, Some(place.path("work/e")));
    assert_eq!(config.output.dir, place.path("work/o"));
    assert_eq!(config.data.chat_template, ChatTemplate::File(place.path("work/c.jinja")));
}

#[test]
fn one_place_has_one_spelling() {
    let place = Place::with(LEAST);
    for spelling in ["./t", "t/", "../work/t", "../conf/../work/./t"] {
        let config = place.load(&[&format!("teacher.path={spelling}")]).unwrap();
        let Some(TeacherConfig { path, .. }) = config.teacher else { panic!() };
        assert_eq!(path.to_str(), place.path("work/t").to_str(), "{spelling}");
    }
}

#[test]
fn a_hub_id_leads_to_the_cache_unless_a_folder_has_its_name() {
    let place = Place::with(LEAST);
    let model = place.path("hub/models--org--tiny");
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::create_dir_all(model.join("snapshots/abc")).unwrap();
    std::fs::write(model.join("refs/main"), "abc").unwrap();
    let teacher = |set: &str| match place.load(&[set]).unwrap().teacher {
        Some(TeacherConfig { path, .. }) => path,
        None => panic!(),
    };
    assert_eq!(teacher("teacher.path=org/tiny"), model.join("snapshots/abc"));
    std::fs::create_dir_all(place.path("work/org/tiny")).unwrap();
    assert_eq!(teacher("teacher.path=org/tiny"), place.path("work/org/tiny"));
    // Only models have ids: data and output are paths, whatever they look like.
    let config = place.load(&["data.train=org/data", "output.dir=runs/a"]).unwrap();
    assert_eq!(config.data.train, [place.path("work/org/data")]);
    assert_eq!(config.output.dir, place.path("work/runs/a"));
}

#[test]
fn an_id_that_is_not_in_the_cache_is_refused_with_the_download_command() {
    let text = problem(LEAST, &["student.path=org/none"]);
    assert!(text.contains("student.path = \"org/none\"") && text.contains("`hf download org/none`"), "{text}");
}

#[test]
fn output_replaces_output_dir_and_one_of_them_is_needed() {
    let place = Place::with(LEAST);
    let config = place.load_from(OutputFrom::CommandLine(&place.path("x")), &["output.dir=y"]).unwrap();
    assert_eq!(config.output.dir, place.path("x"));
    let bare = LEAST.replace("dir = \"out\"", "");
    let text = problem(&bare, &[]);
    assert!(text.contains("--output DIR") && text.contains("output.dir"), "{text}");
    assert_eq!(Place::with(&bare).load_from(OutputFrom::Either, &[]).unwrap().output.dir, PathBuf::new());
}

#[test]
fn set_takes_any_type_and_the_last_one_wins() {
    let set = [
        "seed=1",
        "seed=2",
        "loss.temperature=2",
        "train.learning_rate=3e-4",
        "data.packing=true",
        "train.max_time=2h",
        "train.schedule=\"constant\"",
        "student={kind=\"pruned\", layers=[0, 2]}",
    ];
    let config = load_text(LEAST, &set).unwrap();
    assert_eq!((config.seed, config.loss.temperature.constant(), config.train.learning_rate), (2, Some(2.0), 3e-4));
    assert!(config.data.packing && config.train.max_time.is_some());
    assert!(
        matches!(config.student.source, StudentSource::Pruned { layers: Layers::These(layers), .. } if layers == [0, 2])
    );
}

#[test]
fn a_set_that_cannot_be_read_is_refused() {
    for (set, says) in [
        ("seed", "wanted KEY=VALUE"),
        ("=3", "is no key"),
        ("train..steps=3", "is no key"),
        ("train.a.b.c=3", "is no key"),
        ("data.train=[\"a", "not valid TOML"),
        ("seed.x=3", "seed = {…} is a table, wanted an integer"),
        ("train.learning_rat=3", "did you mean `learning_rate`?"),
        ("train=3", "wanted a section [train]"),
        ("train.steps=x", "wanted an integer"),
    ] {
        let text = problem(LEAST, &[set]);
        assert!(text.starts_with("command line: ") && text.contains(says), "{set}: {text}");
    }
    let text = problem(&format!("seed = 3\n{LEAST}"), &["seed.x=3"]);
    assert!(text.contains("seed is an integer, not a section"), "{text}");
}

#[test]
fn a_file_reached_through_a_parent_folder_is_that_file() {
    let place = Place::with(LEAST);
    std::fs::write(place.path("work/rows.jsonl"), "").unwrap();
    for spelling in ["../work/rows.jsonl", "../conf/../work/rows.jsonl", "../work/../work/rows.jsonl"] {
        let train = place.load(&[&format!("data.train={spelling}")]).unwrap().data.train;
        // As text: to a path a trailing slash is nothing, to the file system it is a folder.
        assert_eq!(train[0].to_str(), place.path("work/rows.jsonl").canonicalize().unwrap().to_str(), "{spelling}");
    }
}
