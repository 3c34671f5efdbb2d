//! Steps, packs, epochs and resuming.

use super::*;

/// Lengths 4 to 13 tokens with the template off: BOS, one letter, the response, EOS.
fn corpus(dir: &Path, rows: usize) -> Arc<CorpusIndex> {
    let line = |n: usize| format!("{{\"prompt\": \"p\", \"response\": \"{}\"}}\n", "r".repeat(1 + n * 7 % 10));
    let path = file(dir, "rows.jsonl", (0..rows).map(line).collect::<String>());
    Arc::new(CorpusIndex::open(&[path], OnBadRecord::Fail).unwrap())
}

fn all_steps(loader: &mut Loader, batch_size: usize, packing: bool) -> Vec<Step> {
    std::iter::from_fn(|| loader.next_step(batch_size, packing).unwrap()).collect()
}

#[test]
fn every_epoch_holds_every_row_once_in_an_order_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (index, encoder) = (corpus(dir.path(), 10), Arc::new(Setup::off().encoder()));
    let lines = |shuffle, seed| -> Vec<Vec<u64>> {
        let order = LoadOrder { seed, shuffle, epochs: Some(2) };
        let mut loader = Loader::new(index.clone(), encoder.clone(), order);
        let steps = all_steps(&mut loader, 4, false);
        // Distinct rows: the second epoch brings no new ones.
        assert_eq!(loader.state().rows_used, 10);
        assert_eq!(steps.iter().map(|s| s.epoch).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
        steps.iter().map(|s| s.items.iter().flatten().map(|r| r.source.line).collect()).collect()
    };
    assert_eq!(lines(false, 0)[..3], [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]]);
    assert_eq!(lines(false, 0)[..3], lines(false, 1)[3..]);
    let shuffled = lines(true, 1);
    assert_eq!(shuffled, lines(true, 1));
    assert_ne!(shuffled, lines(true, 2));
    assert_ne!(shuffled[..3], shuffled[3..]);
    for epoch in [&shuffled[..3], &shuffled[3..]] {
        let mut lines = epoch.concat();
        lines.sort();
        assert!(lines.into_iter().eq(1..=10));
    }
}

#[test]
fn the_commitment_to_the_order_is_that_of_the_steps_however_often_the_loader_was_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (index, encoder) = (corpus(dir.path(), 10), Arc::new(Setup::off().encoder()));
    let commitments = |seed, shuffle, batch_size, packing, restore: bool| -> Vec<String> {
        let order = LoadOrder { seed, shuffle, epochs: Some(2) };
        let mut loader = Loader::new(index.clone(), encoder.clone(), order);
        let mut all = vec![loader.state().order.clone()];
        while loader.next_step(batch_size, packing).unwrap().is_some() {
            all.push(loader.state().order.clone());
            if restore {
                let state = loader.state().clone();
                loader = Loader::new(index.clone(), encoder.clone(), order);
                loader.restore(state).unwrap();
            }
        }
        all
    };
    let plain = commitments(1, true, 4, false, false);
    assert_eq!((plain.len(), plain[0].as_str()), (7, ""));
    assert_eq!(plain, commitments(1, true, 4, false, true));
    assert_eq!(commitments(1, true, 2, true, false), commitments(1, true, 2, true, true));
    let others = [(2, true, 4, false), (1, false, 4, false), (1, true, 5, false), (1, true, 4, true)];
    for (seed, shuffle, batch_size, packing) in others {
        assert_ne!(plain[1], commitments(seed, shuffle, batch_size, packing, false)[1]);
    }
}

#[test]
fn packs_are_whole_rows_in_order_and_as_full_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let index = corpus(dir.path(), 50);
    let encoder = Arc::new(Setup { max_length: 20, ..Setup::off() }.encoder());
    let order = LoadOrder { seed: 5, shuffle: true, epochs: Some(2) };
    let rows: Vec<Row> = all_steps(&mut Loader::new(index.clone(), encoder.clone(), order), 3, false)
        .into_iter()
        .flat_map(|s| s.items.concat())
        .collect();
    let steps = all_steps(&mut Loader::new(index.clone(), encoder.clone(), order), 3, true);
    let packed: Vec<Row> = steps.iter().flat_map(|s| s.items.concat()).collect();
    assert_eq!(rows, packed);
    let length = |pack: &Vec<Row>| pack.iter().map(|r| r.tokens.len()).sum::<usize>();
    for epoch in 0..2 {
        let packs: Vec<_> = steps.iter().filter(|s| s.epoch == epoch).flat_map(|s| &s.items).collect();
        assert!(packs.iter().all(|p| length(p) <= 20));
        assert!(packs.windows(2).all(|p| length(p[0]) + p[1][0].tokens.len() > 20));
    }
    let scan = scan(&index, &encoder, None, |_, _, _| Ok(()), |_| {}).unwrap();
    assert_eq!(scan.count_steps(order, 3, true, 20).unwrap(), steps.len() as u64);
    assert_eq!((scan.rows_used, scan.exact), (50, true));
    let batches = steps[0].micro_batches(2);
    assert_eq!(batches.len(), 2);
    assert_eq!(batches.iter().map(|b| b.rows.len()).sum::<usize>(), steps[0].items.concat().len());
}

/// Rows that split in two or three, rows that are dropped or cut, and rows that the template refuses.
fn mixed(dir: &Path) -> (Arc<CorpusIndex>, Arc<Encoder>) {
    let mut content = String::new();
    for n in 0..23 {
        let mut messages = vec![json!({"role": "user", "content": "q".repeat(n % 5)})];
        for turn in 0..1 + n % 3 {
            messages.push(json!({"role": "assistant", "content": format!("{}</think>{turn}", "t".repeat(n % 4))}));
            messages.push(json!({"role": "user", "content": if n % 11 == 3 { "raise" } else { "more" }}));
        }
        let long = json!({"prompt": "p".repeat(200), "response": "r"});
        content += &if n % 7 == 0 { long.to_string() } else { json!({ "messages": messages }).to_string() };
        content.push('\n');
    }
    let stripping = "{% for m in messages %}{% if m.content == 'raise' %}{{ raise_exception('no') }}{% endif %}\
                     {{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}\
                     {% if add_generation_prompt %}<think>{% endif %}";
    let index = CorpusIndex::open(&[file(dir, "mixed.jsonl", content)], OnBadRecord::SKIP).unwrap();
    (Arc::new(index), Arc::new(Setup { max_length: 30, ..Setup::with(stripping) }.encoder()))
}

#[test]
fn a_restart_at_any_step_goes_on_as_if_there_had_been_none() {
    let dir = tempfile::tempdir().unwrap();
    let (index, encoder) = mixed(dir.path());
    for (packing, shuffle, batch_size) in [(false, true, 1), (false, false, 3), (true, true, 2), (true, false, 1)] {
        let order = LoadOrder { seed: 9, shuffle, epochs: Some(3) };
        let fresh = || Loader::new(index.clone(), encoder.clone(), order);
        let mut loader = fresh();
        let mut states = vec![loader.state().clone()];
        let mut steps = vec![];
        while let Some(step) = loader.next_step(batch_size, packing).unwrap() {
            steps.push(step);
            states.push(loader.state().clone());
        }
        let last = loader.state().clone();
        assert!(last.rows_used > 0 && last.rows_dropped > 0 && last.rows_truncated > 0, "{last:?}");
        assert!(last.records_split > 0 && last.records_rejected > 0, "{last:?}");
        for (at, state) in states.iter().enumerate() {
            let json = serde_json::to_string(state).unwrap();
            let mut resumed = fresh();
            resumed.restore(serde_json::from_str(&json).unwrap()).unwrap();
            assert_eq!(all_steps(&mut resumed, batch_size, packing), steps[at..], "from step {at}");
            assert_eq!(resumed.state(), &last);
        }
        let scan = scan(&index, &encoder, None, |_, _, _| Ok(()), |_| {}).unwrap();
        assert_eq!(scan.count_steps(order, batch_size, packing, 30).unwrap(), steps.len() as u64);
        let counts =
            [scan.rows_used, scan.rows_dropped, scan.rows_truncated, scan.records_split, scan.records_rejected];
        let seen = [last.rows_used, last.rows_dropped, last.rows_truncated, last.records_split, last.records_rejected];
        assert_eq!(counts, seen);
    }
}

#[test]
fn an_epoch_without_a_target_is_an_error_not_an_endless_loop() {
    let dir = tempfile::tempdir().unwrap();
    let index = corpus(dir.path(), 3);
    let encoder = Arc::new(Setup { max_length: 2, ..Setup::off() }.encoder());
    let order = LoadOrder { seed: 1, shuffle: true, epochs: None };
    let message = "no target left: 3 rows have none within max_length = 2 tokens and 0 records were rejected: raise \
                   max_length, or check the data";
    let error = Loader::new(index.clone(), encoder.clone(), order).next_step(2, false).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.class()), (message, crate::error::Class::Input));
    assert_eq!(scan(&index, &encoder, None, |_, _, _| Ok(()), |_| {}).unwrap_err().to_string(), message);
}

#[test]
fn a_record_that_the_template_refuses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_, encoder) = mixed(dir.path());
    let bad = json!({"prompt": "raise", "response": "r"}).to_string();
    let path = file(dir.path(), "bad.jsonl", format!("{}\n{bad}\n", json!({"prompt": "p", "response": "r"})));
    let index = Arc::new(CorpusIndex::open(std::slice::from_ref(&path), OnBadRecord::Fail).unwrap());
    let message = format!("{}:2: the chat template refuses the conversation: no", path.display());
    let order = LoadOrder { seed: 1, shuffle: false, epochs: None };
    let by_loader = Loader::new(index.clone(), encoder.clone(), order).next_step(2, false).unwrap_err().to_string();
    let by_scan = scan(&index, &encoder, None, |_, _, _| Ok(()), |_| {}).unwrap_err().to_string();
    assert!(by_loader.contains(&message), "{by_loader}");
    assert_eq!(by_loader, by_scan);
}

#[test]
fn a_sample_is_extrapolated_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (index, encoder) = (corpus(dir.path(), 1000), Setup::off().encoder());
    let mut told = 0;
    let sample = scan(&index, &encoder, Some(index.bytes() / 7), |_, _, _| Ok(()), |n| told = n).unwrap();
    let exact = scan(&index, &encoder, None, |_, _, _| Ok(()), |_| {}).unwrap();
    assert!(!sample.exact && exact.exact);
    assert_eq!(told, sample.records_read);
    assert_eq!(sample.rows_used, 1000);
    assert!((sample.tokens as f64 / exact.tokens as f64 - 1.0).abs() < 0.1);
}

#[test]
fn steps_states_and_rejections_read_ahead_are_those_of_a_plain_loader() {
    let dir = tempfile::tempdir().unwrap();
    let (index, encoder) = mixed(dir.path());
    for (packing, shuffle, batch_size) in [(false, true, 1), (false, false, 3), (true, true, 2), (true, false, 1)] {
        let order = LoadOrder { seed: 9, shuffle, epochs: Some(3) };
        let fresh = || Loader::new(index.clone(), encoder.clone(), order);
        let shape = StepShape { batch_size, packing };
        let mut plain = fresh();
        let mut ahead = ReadAhead::new(fresh(), shape).unwrap();
        assert_eq!(ahead.state(), plain.state());
        // Once more after the end, whose state counts the epochs that are done.
        let mut ended = 0;
        while ended < 2 {
            let before = plain.state().clone();
            let step = plain.next_step(batch_size, packing).unwrap();
            ended += step.is_none() as u64;
            assert_eq!(ahead.state(), &before);
            assert_eq!(ahead.next_step().unwrap(), step);
            assert_eq!((ahead.state(), ahead.rejections()), (plain.state(), plain.rejections()));
            // A run that is resumed here reads on as this one does.
            let mut resumed = fresh();
            resumed.restore(ahead.state().clone()).unwrap();
            let next = ReadAhead::new(resumed, shape).unwrap().next_step().unwrap();
            let mut after = fresh();
            after.restore(plain.state().clone()).unwrap();
            assert_eq!(next, after.next_step(batch_size, packing).unwrap());
        }
        assert_eq!(plain.state().epoch, 3);
    }
}

#[test]
fn reading_ahead_ends_with_whoever_asked_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (index, encoder) = (corpus(dir.path(), 10), Arc::new(Setup::off().encoder()));
    let order = LoadOrder { seed: 1, shuffle: true, epochs: None };
    for taken in 0..4 {
        let loader = Loader::new(index.clone(), encoder.clone(), order);
        let shape = StepShape { batch_size: 4, packing: false };
        let mut steps = ReadAhead::new(loader, shape).unwrap();
        (0..taken).for_each(|_| assert!(steps.next_step().unwrap().is_some()));
        assert_eq!(Arc::strong_count(&index), 2);
        drop(steps);
        assert_eq!(Arc::strong_count(&index), 1, "the thread still holds its loader");
    }
}

#[test]
fn an_error_met_while_reading_ahead_arrives_at_its_own_step() {
    let dir = tempfile::tempdir().unwrap();
    let (_, encoder) = mixed(dir.path());
    let row = |n: u64| json!({"prompt": if n == 6 { "raise" } else { "p" }, "response": "r"}).to_string() + "\n";
    let path = file(dir.path(), "late.jsonl", (1..=8).map(row).collect::<String>());
    let index = Arc::new(CorpusIndex::open(&[path], OnBadRecord::Fail).unwrap());
    let order = LoadOrder { seed: 1, shuffle: false, epochs: None };
    let fresh = || Loader::new(index.clone(), encoder.clone(), order);
    let (mut plain, shape) = (fresh(), StepShape { batch_size: 2, packing: false });
    let mut ahead = ReadAhead::new(fresh(), shape).unwrap();
    // Long enough for the thread to have met it, if it reads further than it may.
    std::thread::sleep(std::time::Duration::from_millis(50));
    for _ in 0..2 {
        plain.next_step(2, false).unwrap();
        assert!(ahead.next_step().unwrap().is_some());
    }
    let good = plain.state().clone();
    let (error, plain) = (ahead.next_step().unwrap_err(), plain.next_step(2, false).unwrap_err());
    assert_eq!((error.to_string(), error.class()), (plain.to_string(), plain.class()));
    assert_eq!(ahead.state(), &good, "the position is that of the last good step");
}
