//! `rollout.from = "teacher"`: sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947). The teacher answers the
//! corpus's prompts once, into responses.jsonl of the run's folder, and the run learns from these rows like from any others.
//!
//! Answers are appended in the corpus's order, so a file that was cut off anywhere is gone on with; what it was made from is
//! beside it, in responses.json, and nothing else is ever added to it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::signals::Watch;
use super::{build, fingerprints};
use crate::checkpoint::{RunLock, atomic, hash_file, layout};
use crate::config::plan::Plan;
use crate::config::{RolloutConfig, RolloutFrom, RunConfig, Word};
use crate::corpus::{Encoder, Message, OnBadRecord, Place, Record, Rejected};
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::model::{Decoder, Finish, Prompt, Sampling, generate, seed_of};
use crate::student::Companions;
use crate::units::{Count, hex};

/// Records answered side by side, and made durable together.
const TOGETHER: usize = 32;

/// responses.json.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Info {
    complete: bool,
    /// Records of the corpus that are done.
    records: u64,
    /// Of these, passed over: the prompt fills max_length, or the teacher said nothing.
    skipped: u64,
    /// Answers that ran into their limit.
    unfinished: u64,
    /// Records that were passed over, the first thousand: file, line and reason, as in rejected.jsonl.
    #[serde(default)]
    passed_over: Vec<Value>,
    /// SHA-256 of the finished file.
    #[serde(default)]
    sha256: Option<String>,
    /// What the answers are a function of, by name.
    made_from: BTreeMap<String, String>,
}

impl Info {
    fn pass_over(&mut self, line: Value) {
        if self.passed_over.len() < 1000 {
            self.passed_over.push(line);
        }
    }
}

/// Records that the teacher did not answer, as lines of rejected.jsonl.
pub fn passed_over(config: &RunConfig) -> Vec<String> {
    let info = wanted(config).and_then(|_| read_info(&config.output.dir).ok().flatten());
    info.map_or(vec![], |info| info.passed_over.iter().map(Value::to_string).collect())
}

/// What the responses of a run follow from, by name.
pub fn written_from(config: &RunConfig) -> Result<BTreeMap<String, String>> {
    Ok(read_info(&config.output.dir)?.map_or_else(BTreeMap::new, |info| info.made_from))
}

/// Whether the responses in a run's folder are all that the teacher wrote, and nothing else: None where there are none, or
/// not all yet, and why not where they are not.
pub fn changed(run_dir: &Path) -> Option<Result<()>> {
    let path = run_dir.join(layout::RESPONSES);
    let info = match read_info(run_dir) {
        Ok(None) if path.exists() => {
            return Some(Err(Error::run(format!("{} is missing", layout::RESPONSES_INFO))));
        }
        Ok(info) => info.filter(|info| info.complete)?,
        Err(error) => return Some(Err(error)),
    };
    let same = digest(&path).map(|digest| info.sha256 == Some(digest));
    Some(same.and_then(|same| match same {
        true => Ok(()),
        false => Err(Error::run("its content changed (SHA-256)")),
    }))
}

/// Whether the config asks the teacher for the responses.
pub fn wanted(config: &RunConfig) -> Option<&RolloutConfig> {
    config.rollout.as_ref().filter(|rollout| rollout.from == RolloutFrom::Teacher)
}

/// The file of a run's responses.
pub fn file(config: &RunConfig) -> PathBuf {
    config.output.dir.join(layout::RESPONSES)
}

/// Whether all responses are there already; they may be of another run then, which [`write`] finds out.
pub fn complete(config: &RunConfig) -> bool {
    wanted(config).is_some() && read_info(&config.output.dir).is_ok_and(|info| info.is_some_and(|info| info.complete))
}

/// Has the teacher answer what it has not yet answered. False when it was interrupted: what is written stays.
///
/// Input errors: responses of another teacher, corpus or sampling.
pub fn write(config: &RunConfig, devices: Devices, screen: &Screen, signals: &Watch) -> Result<bool> {
    let Some(rollout) = wanted(config) else { return Ok(true) };
    let plan = Plan::new(config.clone(), devices, screen)?;
    let dir = &plan.config.output.dir;
    let made_from = made_from(&plan, rollout)?;
    let path = dir.join(layout::RESPONSES);
    let mut info = match read_info(dir)? {
        None if fs::metadata(&path).is_ok_and(|file| file.len() > 0) => {
            return Err(Error::input(format!(
                "{} is there, but not the {} that says what it was made from: bring both along, name the file as data.train of \
                 a run without [rollout], or remove it",
                path.display(),
                layout::RESPONSES_INFO
            )));
        }
        None => {
            let mut info = Info { made_from, ..Info::default() };
            plan.train.rejections().first.iter().for_each(|bad| info.pass_over(bad.json()));
            info
        }
        Some(info) => {
            if let Some(changed) = fingerprints::changed(&info.made_from, &made_from) {
                return Err(Error::input(format!(
                    "{} was written with other settings or data ({changed} changed): restore them, or take another --output",
                    dir.join(layout::RESPONSES).display()
                )));
            }
            info
        }
    };
    if info.complete {
        return match info.sha256 == Some(digest(&path)?) {
            true => Ok(true),
            false => Err(Error::input(format!(
                "{} is not what the teacher wrote any more: remove it and {} to have it written again, or name it as data.train \
                 of a run without [rollout]",
                path.display(),
                layout::RESPONSES_INFO
            ))),
        };
    }
    let teacher = build::teacher(&plan, screen)?;
    let teacher = teacher.as_ref().and_then(build::AnyTeacher::live).ok_or_else(|| Error::run("no live teacher"))?;
    signals.quit_at_once(None);
    // The answers hide it: they differ from what the held-out rows say.
    plan.notices.iter().filter(|n| n.code == "train_eval_overlap").for_each(|n| screen.line(&n.line()));
    let _lock = RunLock::acquire(dir)?;
    save_info(dir, &info)?;
    let mut out = append_to(&path, &mut info)?;
    let total = plan.train.len() as u64;
    let progress = screen.progress("the teacher answers", Some(total));
    progress.advance(info.records);
    let (began, mut tokens) = (Instant::now(), 0);
    while info.records < total {
        let until = total.min(info.records + TOGETHER as u64);
        let Some(answers) = answer(&plan, rollout, teacher.decoder(), info.records..until, signals.flag())? else {
            progress.finish();
            let (done, total) = (Count(info.records), Count(total));
            screen.line(&format!("stopped after {done} of {total} answers; the same command goes on from there"));
            return Ok(false);
        };
        let mut lines = String::new();
        for answer in &answers {
            lines += &answer.line;
            tokens += answer.tokens;
            if answer.line.is_empty() {
                info.skipped += 1;
                info.pass_over(Rejected { place: answer.place.clone(), fault: answer.reason.into() }.json());
            }
            info.unfinished += answer.unfinished as u64;
        }
        // Lines first: what is counted is there.
        out.write_all(lines.as_bytes()).and_then(|()| out.sync_data()).map_err(|e| Error::unwritable(&path, e))?;
        progress.advance(until - info.records);
        info.records = until;
        save_info(dir, &info)?;
    }
    progress.finish();
    if info.records == info.skipped {
        return Err(Error::input(
            "the teacher has answered nothing: every answer is empty or its prompt fills data.max_length; look at the data, or \
             at rollout.temperature",
        ));
    }
    (info.complete, info.sha256) = (true, Some(digest(&path)?));
    save_info(dir, &info)?;
    let speed = tokens as f64 / began.elapsed().as_secs_f64();
    screen.line(&format!(
        "{:<11}{} rows with the teacher's answers ({} cut off at their limit), {} passed over; {} tokens now, at {} tokens/s",
        "responses",
        Count(info.records - info.skipped),
        Count(info.unfinished),
        Count(info.skipped),
        Count(tokens as u64),
        Count(speed as u64)
    ));
    Ok(true)
}

fn made_from(plan: &Plan, rollout: &RolloutConfig) -> Result<BTreeMap<String, String>> {
    let companions = Companions::of(plan.encoder.tokenizer())?;
    let mut made = fingerprints::of(plan, &companions)?;
    made.retain(|name, _| ["the training data", "the teacher", "the student's tokenizer"].contains(&name.as_str()));
    let template = plan.encoder.template_digest().map_or("none".into(), |digest| hex(&digest));
    for (name, value) in [
        ("the chat template", template),
        ("teacher.dtype", plan.config.teacher_dtype().word().into()),
        ("seed", plan.config.seed.to_string()),
        ("data.max_length", plan.config.data.max_length.to_string()),
        ("rollout.max_new_tokens", rollout.max_new_tokens.to_string()),
        ("rollout.temperature", rollout.temperature.to_string()),
        ("rollout.top_p", rollout.top_p.to_string()),
    ] {
        made.insert(name.into(), value);
    }
    Ok(made)
}

/// A record's new line; empty: none, for a reason.
struct Answer {
    line: String,
    place: Place,
    reason: &'static str,
    tokens: usize,
    unfinished: bool,
}

/// None when interrupted.
fn answer(
    plan: &Plan,
    rollout: &RolloutConfig,
    teacher: &Decoder,
    records: std::ops::Range<u64>,
    interrupted: &AtomicBool,
) -> Result<Option<Vec<Answer>>> {
    let encoder = &plan.encoder;
    let (mut read, mut prompts, mut of) = (vec![], vec![], vec![]);
    for n in records {
        let (record, place) = plan.train.read(n as usize)?;
        let mut reason = "there is nothing to answer";
        let ids = match asked(&record, encoder) {
            Err(_) if plan.train.policy() != OnBadRecord::Fail => {
                reason = "the chat template refuses the prompt";
                None
            }
            asked => asked.map_err(|e| e.context(format!("{}:{}", place.file.display(), place.line)))?,
        };
        if ids.as_ref().is_some_and(|ids| ids.len() >= encoder.max_length()) {
            reason = "the prompt leaves no room for an answer within data.max_length";
        }
        let room = ids.as_ref().map_or(0, |ids| encoder.max_length().saturating_sub(ids.len()));
        if let Some(tokens) = ids.filter(|_| room > 0) {
            of.push(read.len());
            let max_tokens = room.min(rollout.max_new_tokens);
            prompts.push(Prompt {
                tokens,
                max_tokens,
                seed: seed_of(plan.config.seed ^ (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            });
        }
        read.push((record, place, reason));
    }
    let mut written: Vec<Vec<u32>> = vec![vec![]; prompts.len()];
    let stop = || interrupted.load(Ordering::Relaxed);
    let sampling = Sampling { temperature: rollout.temperature, top_p: rollout.top_p };
    let finishes = generate(teacher, &prompts, encoder.tokenizer().eos_ids(), sampling, |r, token| {
        written[r].push(token);
        if stop() { Err(Error::run("interrupted")) } else { Ok(()) }
    });
    if stop() {
        return Ok(None);
    }
    let finishes = finishes?;
    let mut answers: Vec<Answer> = read.iter().map(kept).collect();
    for ((i, tokens), finish) in of.into_iter().zip(written).zip(finishes) {
        let unfinished = !matches!(finish, Finish::Stop(_));
        let mut text = encoder.tokenizer().decode(&tokens, true)?;
        if unfinished {
            // Half of a character is no text to learn.
            text.truncate(text.trim_end_matches('\u{fffd}').len());
        }
        let (record, place, _) = &read[i];
        let (line, reason) = (line(record, &text, unfinished), "the teacher's answer is empty");
        answers[i] = Answer { line, place: place.clone(), reason, tokens: tokens.len(), unfinished };
    }
    Ok(Some(answers))
}

/// What stands for a record that is not answered: a text as it is, anything else not at all.
fn kept((record, place, reason): &(Record, Place, &'static str)) -> Answer {
    let line = match record {
        Record::Text(text) => format!("{}\n", json!({ "text": text })),
        _ => String::new(),
    };
    Answer { line, place: place.clone(), reason, tokens: 0, unfinished: false }
}

/// The prompt of a record, as a model is given it. None: it has none.
fn asked(record: &Record, encoder: &Encoder) -> Result<Option<Vec<u32>>> {
    Ok(match record {
        Record::Text(_) => None,
        Record::Unfinished(record) => return asked(record, encoder),
        Record::Prompt(prompt) | Record::Pair { prompt, .. } => Some(encoder.prompt_ids(prompt)?),
        // A conversation that begins with the answer asks nothing.
        Record::Chat(messages) => match before_the_last_answer(messages) {
            [] => None,
            before => Some(encoder.conversation_ids(before)?),
        },
    })
}

fn before_the_last_answer(messages: &[Message]) -> &[Message] {
    let last = messages.iter().rposition(|message| message.role == "assistant");
    &messages[..last.unwrap_or(messages.len())]
}

/// The row with its new answer; empty where the answer is.
fn line(record: &Record, answer: &str, unfinished: bool) -> String {
    if answer.trim().is_empty() {
        return String::new();
    }
    let mut row = match record {
        Record::Text(text) => json!({ "text": text }),
        Record::Unfinished(record) => return line(record, answer, unfinished),
        Record::Prompt(prompt) | Record::Pair { prompt, .. } => json!({ "prompt": prompt, "response": answer }),
        Record::Chat(messages) => {
            let mut messages = before_the_last_answer(messages).to_vec();
            messages.push(Message::new("assistant", answer));
            json!({ "messages": messages })
        }
    };
    if unfinished {
        row["unfinished"] = Value::Bool(true);
    }
    format!("{row}\n")
}

/// Brings the responses of a run along into `dir`, where a branch of it is to begin: the file first, so that what is
/// counted is there.
pub fn bring_along(from: &Path, dir: &Path) -> Result<()> {
    if !from.join(layout::RESPONSES_INFO).exists() || dir.join(layout::RESPONSES_INFO).exists() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(|e| Error::unwritable(dir, e))?;
    for name in [layout::RESPONSES, layout::RESPONSES_INFO] {
        let path = from.join(name);
        let content = fs::read(&path).map_err(|e| Error::unreadable(&path, e))?;
        atomic::write_file(&dir.join(name), &content)?;
    }
    Ok(())
}

fn digest(path: &Path) -> Result<String> {
    hash_file(path).map(|(_, sha256)| sha256).map_err(|e| Error::unreadable(path, e))
}

fn read_info(dir: &Path) -> Result<Option<Info>> {
    let path = dir.join(layout::RESPONSES_INFO);
    match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::unreadable(&path, e)),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            Error::input(format!(
                "{}: {e}; remove it and {} to have them written again",
                path.display(),
                layout::RESPONSES
            ))
        }),
    }
}

fn save_info(dir: &Path, info: &Info) -> Result<()> {
    let text = serde_json::to_string_pretty(info).map_err(|e| Error::run(format!("responses.json: {e}")))?;
    atomic::write_file(&dir.join(layout::RESPONSES_INFO), (text + "\n").as_bytes())
}

/// Opens the file behind the lines of the records that `info` counts: a kill may have left more.
fn append_to(path: &Path, info: &mut Info) -> Result<File> {
    let open = || OpenOptions::new().create(true).read(true).append(true).open(path);
    let out = open().map_err(|e| Error::unwritable(path, e))?;
    let wanted = info.records - info.skipped;
    let (mut lines, mut bytes, mut line) = (0, 0, vec![]);
    let mut reader = BufReader::new(&out);
    while lines < wanted {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).map_err(|e| Error::unreadable(path, e))?;
        if line.last() != Some(&b'\n') {
            return Err(Error::input(format!(
                "{} has {lines} of the {wanted} lines that {} counts: remove both to have them written again",
                path.display(),
                layout::RESPONSES_INFO
            )));
        }
        (lines, bytes) = (lines + 1, bytes + n as u64);
    }
    out.set_len(bytes).map_err(|e| Error::unwritable(path, e))?;
    Ok(out)
}
