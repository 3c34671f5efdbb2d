use super::*;

const FILES: [(&str, &[u8]); 3] =
    [("model.safetensors", &[7; 5000]), ("optimizer.safetensors", &[9; 5000]), ("state.json", b"{}")];

/// A checkpoint of step 3.
fn checkpoint() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("step-00000003");
    fs::create_dir(&dir).unwrap();
    for (name, content) in FILES {
        fs::write(dir.join(name), content).unwrap();
    }
    fs::write(dir.join(MANIFEST), Manifest::of(&dir, 3, None).unwrap().to_bytes()).unwrap();
    (root, dir)
}

/// The same, then `harm` done to it, then verified.
fn verify_after(harm: impl FnOnce(&Path)) -> Result<Manifest, Damage> {
    let (_root, dir) = checkpoint();
    harm(&dir);
    verify(&dir)
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_untouched_checkpoint_verifies() {
    let manifest = verify_after(|_| {}).unwrap();
    assert_eq!((manifest.step, manifest.files.len()), (3, 3));
    assert_eq!(manifest.files["state.json"].sha256, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
}

#[test]
fn a_flipped_bit_is_a_digest_damage_of_that_file() {
    let damage = verify_after(|dir| edit(&dir.join("optimizer.safetensors"), |b| b[4321] ^= 1)).unwrap_err();
    assert!(matches!(damage, Damage::Digest { .. }));
    assert!(damage.to_string().contains("optimizer.safetensors"), "{damage}");
}

#[test]
fn a_truncated_file_is_a_size_damage() {
    let damage = verify_after(|dir| edit(&dir.join("model.safetensors"), |b| b.truncate(4096))).unwrap_err();
    assert!(matches!(damage, Damage::Size { expected: 5000, found: 4096, .. }));
    assert!(damage.file().ends_with("model.safetensors"));
}

#[test]
fn a_zeroed_tail_is_found_although_the_length_is_right() {
    let damage = verify_after(|dir| edit(&dir.join("model.safetensors"), |b| b[4096..].fill(0))).unwrap_err();
    assert!(matches!(damage, Damage::Digest { .. }));
}

#[test]
fn a_deleted_file_is_missing() {
    let damage = verify_after(|dir| fs::remove_file(dir.join("state.json")).unwrap()).unwrap_err();
    assert!(matches!(damage, Damage::Missing(file) if file.ends_with("state.json")));
    let damage = verify_after(|dir| fs::remove_file(dir.join(MANIFEST)).unwrap()).unwrap_err();
    assert!(matches!(damage, Damage::Missing(file) if file.ends_with(MANIFEST)));
    let damage = verify_after(|dir| fs::remove_dir_all(dir).unwrap()).unwrap_err();
    assert!(matches!(damage, Damage::Missing(file) if file.ends_with("step-00000003")));
}

#[test]
fn two_swapped_files_are_found_although_each_is_intact() {
    let damage = verify_after(|dir| {
        fs::rename(dir.join("model.safetensors"), dir.join("x")).unwrap();
        fs::rename(dir.join("optimizer.safetensors"), dir.join("model.safetensors")).unwrap();
        fs::rename(dir.join("x"), dir.join("optimizer.safetensors")).unwrap();
    });
    assert!(matches!(damage.unwrap_err(), Damage::Digest { file, .. } if file.ends_with("model.safetensors")));
}

#[test]
fn a_flipped_bit_in_any_byte_of_the_manifest_itself_is_found() {
    let (_root, dir) = checkpoint();
    let intact = fs::read(dir.join(MANIFEST)).unwrap();
    for at in 0..intact.len() {
        let mut bytes = intact.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(dir.join(MANIFEST), bytes).unwrap();
        let damage = verify(&dir).unwrap_err();
        assert!(damage.file().ends_with(MANIFEST), "byte {at}: {damage}");
    }
}

#[test]
fn a_manifest_of_another_step_is_refused() {
    let damage =
        verify_after(|dir| fs::write(dir.join(MANIFEST), Manifest::of(dir, 4, None).unwrap().to_bytes()).unwrap());
    assert!(matches!(damage.unwrap_err(), Damage::Step { found: 4, .. }));
}

#[test]
fn a_newer_format_is_refused_by_its_number() {
    let damage = verify_after(|dir| {
        let text = fs::read_to_string(dir.join(MANIFEST)).unwrap();
        fs::write(dir.join(MANIFEST), text.replace("\"format\": 2", "\"format\": 3")).unwrap();
    });
    assert!(matches!(damage.unwrap_err(), Damage::Format { found: 3, .. }));
}

#[test]
fn a_manifest_of_format_1_reads_and_has_neither_tool_nor_parent() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/format1/run/checkpoints/step-00000004");
    let manifest = verify(&golden).unwrap();
    assert_eq!((manifest.format, manifest.tool.clone(), manifest.parent.clone()), (1, None, None));
    // One that claims format 2 says what wrote it.
    let damage = verify_after(|dir| {
        let manifest = Manifest { tool: None, ..Manifest::of(dir, 3, None).unwrap() };
        fs::write(dir.join(MANIFEST), manifest.sealed().to_bytes()).unwrap();
    });
    assert!(matches!(damage.unwrap_err(), Damage::Manifest { .. }));
}

#[test]
fn a_sealed_manifest_cannot_name_a_file_outside_of_the_folder() {
    for name in ["../state.json", "/etc/hostname", "", "a/b", ".."] {
        let damage = verify_after(|dir| {
            let mut manifest = Manifest::of(dir, 3, None).unwrap();
            let entry = manifest.files["state.json"].clone();
            manifest.files.insert(name.to_owned(), entry);
            fs::write(dir.join(MANIFEST), manifest.sealed().to_bytes()).unwrap();
        });
        assert!(matches!(damage.unwrap_err(), Damage::Manifest { .. }), "{name}");
    }
}

#[test]
fn an_unreadable_file_is_named() {
    // A folder in a file's place, as it reads with an error for root too; its size differs on every file system.
    let damage = verify_after(|dir| {
        fs::remove_file(dir.join("state.json")).unwrap();
        fs::create_dir(dir.join("state.json")).unwrap();
    });
    assert!(damage.unwrap_err().file().ends_with("state.json"));
}

#[test]
fn an_empty_folder_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Manifest::of(dir.path(), 1, None).is_err());
    fs::create_dir(dir.path().join("nested")).unwrap();
    assert!(Manifest::of(dir.path(), 1, None).unwrap_err().to_string().contains("nested"));
}
