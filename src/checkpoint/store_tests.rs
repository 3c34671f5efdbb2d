use std::fs;

use super::*;
use crate::checkpoint::{Checkpoint, Dtype, Entry, Values, disk, latest_valid, write_safetensors};
use crate::error::Class;
use tempfile::TempDir;

impl Store {
    fn save(&self, step: u64, fill: impl FnOnce(&Path) -> Result<Unsynced>) -> Result<()> {
        self.commit(self.stage(step, fill)?)
    }
}

/// A run with valid checkpoints of these steps.
fn run(steps: &[u64]) -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for &step in steps {
        store.save(step, fill(&format!("model {step}"))).unwrap();
    }
    (dir, store)
}

fn fill(model: &str) -> impl FnOnce(&Path) -> Result<Unsynced> {
    move |dir| {
        fs::write(dir.join(layout::MODEL), model).unwrap();
        fs::write(dir.join(layout::STATE), "{}").unwrap();
        Ok(Unsynced::default())
    }
}

fn listing(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join(CHECKPOINTS)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn model(run: &Path, step: u64) -> PathBuf {
    run.join(CHECKPOINTS).join(layout::folder_name(step)).join(layout::MODEL)
}

fn damage(run: &Path, step: u64) {
    fs::write(model(run, step), "other").unwrap();
}

#[test]
fn a_run_without_checkpoints_has_no_latest_and_no_folder() {
    let (dir, store) = run(&[]);
    let found = latest_valid(store.run_dir()).unwrap();
    assert!(found.checkpoint.is_none() && found.damage.is_empty());
    assert!(!dir.path().join(CHECKPOINTS).exists());
}

#[test]
fn a_save_ends_with_latest_naming_a_valid_checkpoint() {
    let (dir, store) = run(&[100, 200]);
    let checkpoint = latest_valid(store.run_dir()).unwrap().checkpoint.unwrap();
    assert_eq!(checkpoint.step(), 200);
    assert_eq!(fs::read_to_string(checkpoint.file(layout::MODEL)).unwrap(), "model 200");
    assert!(checkpoint.has(layout::STATE) && !checkpoint.has(layout::OPTIMIZER));
    assert_eq!(fs::read_to_string(dir.path().join("checkpoints/latest")).unwrap(), "step-00000200\n");
}

#[test]
fn a_kill_at_any_point_of_a_save_leaves_a_valid_checkpoint_and_no_litter() {
    let (dir, store) = run(&[100]);
    let seen = disk::snapshots(dir.path(), || store.save(200, fill("model 200")).unwrap());
    assert!(seen.len() >= 9, "{} points", seen.len());
    for (nth, snapshot) in seen.iter().enumerate() {
        let reopened = Store::open(snapshot.path()).unwrap();
        let found = latest_valid(reopened.run_dir()).unwrap();
        let step = found.checkpoint.unwrap().step();
        assert!(found.damage.is_empty() && (step == 100 || step == 200), "point {nth}");
        for name in listing(snapshot.path()) {
            assert!(["latest", "step-00000100", "step-00000200"].contains(&name.as_str()), "point {nth}: {name}");
        }
    }
}

#[test]
fn a_kill_while_the_only_checkpoint_is_replaced_does_not_lose_it() {
    let (dir, store) = run(&[100]);
    for snapshot in disk::snapshots(dir.path(), || store.save(100, fill("again")).unwrap()) {
        let found = latest_valid(Store::open(snapshot.path()).unwrap().run_dir()).unwrap();
        let text = fs::read_to_string(found.checkpoint.unwrap().file(layout::MODEL)).unwrap();
        assert!(text == "model 100" || text == "again");
        assert_eq!(listing(snapshot.path()), ["latest", "step-00000100"]);
    }
    assert_eq!(fs::read_to_string(model(dir.path(), 100)).unwrap(), "again");
}

/// Writes a model whose handle is still open.
fn fill_open(dir: &Path) -> Result<Unsynced> {
    let entry = Entry { name: "w", shape: &[2], values: Values::F32(&[1.0, 2.0]) };
    write_safetensors(&dir.join(layout::MODEL), [entry], Dtype::F32, &Default::default())
}

#[test]
fn weights_are_synced_by_the_handle_that_wrote_them_before_they_are_described() {
    let (dir, store) = run(&[]);
    let done = disk::record(dir.path(), || store.save(1, fill_open).unwrap());
    let at = |operation: &str| done.iter().position(|done| done.contains(operation)).unwrap();
    assert!(at("sync checkpoints/.tmp-step-00000001/model") < at("write checkpoints/.tmp-step-00000001/manifest"));
    let staged = store.stage(2, fill_open).unwrap();
    let (result, _) = disk::fail_at(1, std::io::ErrorKind::StorageFull, || store.commit(staged));
    let message = result.unwrap_err().to_string();
    assert!(
        message.contains("step 2: cannot write ") && message.contains("model.safetensors: no storage"),
        "{message}"
    );
    assert_eq!(latest_valid(dir.path()).unwrap().checkpoint.unwrap().step(), 1);
}

#[test]
fn a_disk_that_refuses_any_operation_keeps_the_old_checkpoint_and_names_what_failed() {
    use std::io::ErrorKind;
    for cause in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::ReadOnlyFilesystem, ErrorKind::Other] {
        for nth in 1.. {
            let (dir, store) = run(&[100]);
            let (result, reached) = disk::fail_at(nth, cause, || store.save(200, fill("model 200")));
            if !reached {
                assert!(result.is_ok() && nth > 9);
                break;
            }
            let message = result.unwrap_err().to_string();
            assert!(message.starts_with("cannot save the checkpoint of step 200: cannot write "), "{message}");
            assert!(message.ends_with(&cause.to_string()), "{message}");
            assert!(!listing(dir.path()).iter().any(|name| name.starts_with(".tmp-")), "point {nth}");
            drop(store);
            let found = latest_valid(Store::open(dir.path()).unwrap().run_dir()).unwrap();
            assert!(found.checkpoint.is_some(), "point {nth}");
        }
    }
}

#[test]
fn a_save_is_durable_before_it_counts_and_counts_before_anything_old_is_deleted() {
    let (dir, store) = run(&[100]);
    let done = disk::record(dir.path(), || {
        store.save(200, fill("model 200")).unwrap();
        store.point_best_at(Some(200)).unwrap();
        store.retain(Retention { last: 1, every: None }).unwrap();
    });
    // The files of a folder are synced in no particular order.
    let (fill, rest) = done.split_at(5);
    let mut synced = fill[2..].to_vec();
    synced.sort();
    assert_eq!(
        fill[..2],
        ["create checkpoints/.tmp-step-00000200", "write checkpoints/.tmp-step-00000200/manifest.json"]
    );
    let file = |name: &str| format!("sync checkpoints/.tmp-step-00000200/{name}");
    assert_eq!(synced, ["manifest.json", "model.safetensors", "state.json"].map(file));
    let pointer = |name: &str| {
        let temporary = format!("checkpoints/.tmp-{name}");
        [
            format!("write {temporary}"),
            format!("sync {temporary}"),
            format!("rename {temporary} to checkpoints/{name}"),
            "sync checkpoints/".into(),
        ]
    };
    let [latest, best] = ["latest", "best"].map(pointer);
    let folder = [
        "sync checkpoints/.tmp-step-00000200/",
        "rename checkpoints/.tmp-step-00000200 to checkpoints/step-00000200",
        "sync checkpoints/",
    ]
    .map(String::from);
    let deletion = [
        "rename checkpoints/step-00000100 to checkpoints/.tmp-step-00000100",
        "sync checkpoints/",
        "delete checkpoints/.tmp-step-00000100",
    ]
    .map(String::from);
    assert_eq!(rest, [&folder[..], &latest, &best, &deletion].concat());
}

#[test]
fn a_failing_writer_leaves_the_older_checkpoint_and_no_litter() {
    let (dir, store) = run(&[100]);
    let result = store.save(200, |dir| {
        fs::write(dir.join(layout::MODEL), "half").unwrap();
        Err(Error::run("cannot write model.safetensors: no space left on device"))
    });
    assert!(result.unwrap_err().to_string().contains("no space left on device"));
    assert_eq!(listing(dir.path()), ["latest", "step-00000100"]);
    assert_eq!(latest_valid(store.run_dir()).unwrap().checkpoint.unwrap().step(), 100);
}

#[test]
fn the_same_checkpoint_saved_again_is_left_alone_and_a_damaged_one_is_replaced() {
    let (dir, store) = run(&[100]);
    let written = fs::metadata(model(dir.path(), 100)).unwrap().modified().unwrap();
    store.save(100, fill("model 100")).unwrap();
    assert_eq!(fs::metadata(model(dir.path(), 100)).unwrap().modified().unwrap(), written);
    damage(dir.path(), 100);
    store.save(100, fill("model 100")).unwrap();
    assert_eq!(latest_valid(store.run_dir()).unwrap().checkpoint.unwrap().step(), 100);
    assert_eq!(listing(dir.path()), ["latest", "step-00000100"]);
}

#[test]
fn a_damaged_latest_is_named_and_the_previous_valid_one_is_used() {
    let (dir, store) = run(&[100, 200, 300]);
    damage(dir.path(), 300);
    fs::remove_file(model(dir.path(), 200)).unwrap();
    let found = latest_valid(store.run_dir()).unwrap();
    assert_eq!(found.checkpoint.unwrap().step(), 100);
    let files: Vec<_> = found.damage.iter().map(|damage| damage.file().to_owned()).collect();
    assert_eq!(files, [model(dir.path(), 300), model(dir.path(), 200)]);
}

#[test]
fn no_valid_checkpoint_is_an_error_and_never_a_fresh_start() {
    let (dir, store) = run(&[100, 200]);
    damage(dir.path(), 100);
    damage(dir.path(), 200);
    let error = latest_valid(store.run_dir()).unwrap_err();
    assert_eq!(error.class(), Class::Run);
    let message = error.to_string();
    assert!(message.starts_with("no valid checkpoint in "), "{message}");
    assert!(message.contains("step-00000100/model.safetensors") && message.contains("step-00000200/model.safetensors"));
    fs::remove_dir_all(dir.path().join("checkpoints/step-00000100")).unwrap();
    fs::remove_dir_all(dir.path().join("checkpoints/step-00000200")).unwrap();
    assert!(latest_valid(store.run_dir()).unwrap_err().to_string().contains("step-00000200 is missing"));
}

#[test]
fn a_lost_or_damaged_pointer_costs_no_training() {
    let (dir, store) = run(&[100, 200]);
    let latest = dir.path().join("checkpoints/latest");
    fs::write(&latest, "step-0000\u{0}").unwrap();
    let found = latest_valid(store.run_dir()).unwrap();
    assert_eq!(found.checkpoint.unwrap().step(), 200);
    assert!(matches!(&found.damage[..], [Damage::Pointer { .. }]));
    fs::remove_file(latest).unwrap();
    assert_eq!(latest_valid(store.run_dir()).unwrap().checkpoint.unwrap().step(), 200);
}

#[test]
fn an_explicit_path_is_verified_and_may_be_a_pointer() {
    let (dir, store) = run(&[100, 200]);
    store.point_best_at(Some(100)).unwrap();
    assert_eq!(Checkpoint::open(&dir.path().join("checkpoints/best")).unwrap().step(), 100);
    assert_eq!(Checkpoint::open(&dir.path().join("checkpoints/step-00000200")).unwrap().step(), 200);
    damage(dir.path(), 200);
    let error = Checkpoint::open(&dir.path().join("checkpoints/step-00000200")).unwrap_err();
    assert!(error.class() == Class::Run && error.to_string().contains("model.safetensors"), "{error}");
    assert_eq!(Checkpoint::open(&dir.path().join("checkpoints/step-00000300")).unwrap_err().class(), Class::Input);
}

#[test]
fn retention_keeps_the_last_ones_and_the_best() {
    let (dir, store) = run(&[100, 200, 300, 400]);
    store.point_best_at(Some(200)).unwrap();
    let done = store.retain(Retention { last: 2, every: None }).unwrap();
    assert_eq!(done.deleted, [dir.path().join("checkpoints/step-00000100")]);
    assert_eq!(listing(dir.path()), ["best", "latest", "step-00000200", "step-00000300", "step-00000400"]);
    assert_eq!(store.retain(Retention { last: 0, every: None }).unwrap().deleted.len(), 1);
    assert_eq!(listing(dir.path()), ["best", "latest", "step-00000200", "step-00000400"]);
    assert_eq!(find::best(store.run_dir()), Some(200));
}

#[test]
fn milestones_stay_however_old_they_are() {
    let (dir, store) = run(&[0, 100, 200, 300, 400, 500, 600]);
    store.retain(Retention { last: 2, every: Some(200) }).unwrap();
    let left: Vec<String> = listing(dir.path()).into_iter().filter(|name| name.starts_with("step")).collect();
    assert_eq!(left, ["step-00000200", "step-00000400", "step-00000500", "step-00000600"]);
}

#[test]
fn retention_deletes_nothing_when_the_newest_does_not_read_back() {
    let (dir, store) = run(&[100, 200, 300]);
    damage(dir.path(), 300);
    let done = store.retain(Retention { last: 1, every: None }).unwrap();
    assert!(done.deleted.is_empty());
    assert!(done.damage.unwrap().to_string().contains("step-00000300/model.safetensors"));
    assert_eq!(latest_valid(store.run_dir()).unwrap().checkpoint.unwrap().step(), 200);
}

#[test]
fn a_run_resumed_from_an_older_step_does_not_count_the_abandoned_future() {
    let (dir, store) = run(&[100, 200, 300]);
    store.save(150, fill("model 150")).unwrap();
    store.retain(Retention { last: 1, every: None }).unwrap();
    assert_eq!(listing(dir.path()), ["latest", "step-00000150", "step-00000200", "step-00000300"]);
    assert_eq!(latest_valid(store.run_dir()).unwrap().checkpoint.unwrap().step(), 150);
}

#[test]
fn a_kill_while_deleting_leaves_no_half_checkpoint() {
    let (dir, store) = run(&[100, 200]);
    for snapshot in disk::snapshots(dir.path(), || drop(store.retain(Retention { last: 1, every: None }).unwrap())) {
        let reopened = Store::open(snapshot.path()).unwrap();
        for step in find::steps(snapshot.path()).unwrap() {
            verify(&snapshot.path().join(CHECKPOINTS).join(layout::folder_name(step))).unwrap();
        }
        assert!(latest_valid(reopened.run_dir()).unwrap().damage.is_empty());
    }
}

#[test]
fn the_best_must_exist() {
    let (_dir, store) = run(&[100]);
    store.point_best_at(Some(7)).unwrap();
    assert_eq!(find::best(store.run_dir()), None);
}

#[test]
fn a_second_store_on_the_same_run_is_refused() {
    let (dir, _store) = run(&[]);
    assert!(Store::open(dir.path()).unwrap_err().to_string().contains(&format!("PID {}", std::process::id())));
}

/// The parent of a checkpoint's manifest: the step of its folder, once its digest is that of the manifest there.
fn parent(run: &Path, step: u64) -> Option<u64> {
    let dir = |step| run.join(CHECKPOINTS).join(layout::folder_name(step));
    let parent = Manifest::read(&dir(step)).unwrap().parent?;
    let step = layout::parse_folder_name(&parent.folder).unwrap();
    assert_eq!(parent, Manifest::read(&dir(step)).unwrap().as_parent());
    Some(step)
}

#[test]
fn a_checkpoint_names_the_one_it_went_on_from_and_never_itself() {
    let (dir, store) = run(&[100, 200]);
    assert_eq!((parent(dir.path(), 100), parent(dir.path(), 200)), (None, Some(100)));
    // One that only gained its evaluation replaces itself.
    store.save(200, fill("evaluated")).unwrap();
    store.save(300, fill("model 300")).unwrap();
    assert_eq!((parent(dir.path(), 200), parent(dir.path(), 300)), (Some(100), Some(200)));
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    store.go_on_from(&Manifest::read(&dir.path().join("checkpoints/step-00000100")).unwrap());
    store.save(150, fill("model 150")).unwrap();
    assert_eq!(parent(dir.path(), 150), Some(100));
    // The same checkpoint come by from elsewhere is left as it is.
    store.save(300, fill("model 300")).unwrap();
    assert_eq!(parent(dir.path(), 300), Some(200));
}
