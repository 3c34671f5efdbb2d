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

use super::{build, fingerprints};
use crate::checkpoint::{RunLock, atomic, layout};
use crate::config::plan::Plan;
use crate::config::{RolloutConfig, RolloutFrom, RunConfig};
use crate::corpus::{Encoder, Message, Record};
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
    /// What the answers are a function of, by name.
    made_from: BTreeMap<String, String>,
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
pub fn write(config: &RunConfig, devices: Devices, screen: &Screen, interrupted: &AtomicBool) -> Result<bool> {
    let Some(rollout) = wanted(config) else { return Ok(true) };
    let plan = Plan::new(config.clone(), devices, screen)?;
    let dir = &plan.config.output.dir;
    let made_from = made_from(&plan, rollout)?;
    let mut info = match read_info(dir)? {
        None => Info { made_from, ..Info::default() },
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
        return Ok(true);
    }
    let _lock = RunLock::acquire(dir)?;
    save_info(dir, &info)?;
    let path = dir.join(layout::RESPONSES);
    let mut out = append_to(&path, &mut info)?;
    let teacher = build::teacher(&plan, screen)?;
    let teacher = teacher.as_ref().and_then(build::AnyTeacher::live).ok_or_else(|| Error::run("no live teacher"))?;
    let total = plan.train.len() as u64;
    let progress = screen.progress("the teacher answers", Some(total));
    progress.advance(info.records);
    let (began, mut tokens) = (Instant::now(), 0);
    while info.records < total {
        let until = total.min(info.records + TOGETHER as u64);
        let Some(answers) = answer(&plan, rollout, teacher.decoder(), info.records..until, interrupted)? else {
            progress.finish();
            screen.line(&format!("stopped after {} of {} answers", Count(info.records), Count(total)));
            return Ok(false);
        };
        let mut lines = String::new();
        for answer in &answers {
            lines += &answer.line;
            tokens += answer.tokens;
            info.skipped += answer.line.is_empty() as u64;
            info.unfinished += answer.unfinished as u64;
        }
        // Lines first: what is counted is there.
        out.write_all(lines.as_bytes()).and_then(|()| out.sync_data()).map_err(|e| Error::unwritable(&path, e))?;
        progress.advance(until - info.records);
        info.records = until;
        save_info(dir, &info)?;
    }
    progress.finish();
    info.complete = true;
    save_info(dir, &info)?;
    let speed = tokens as f64 / began.elapsed().as_secs_f64();
    screen.line(&format!(
        "{:<11}{} answers of the teacher ({} cut off at their limit, {} rows passed over), {} tokens at {} tokens/s",
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

/// A record's new line; empty: none.
struct Answer {
    line: String,
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
        let ids = asked(&record, encoder).map_err(|e| e.context(format!("{}:{}", place.file.display(), place.line)))?;
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
        read.push(record);
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
        let text = encoder.tokenizer().decode(&tokens, true)?;
        let unfinished = !matches!(finish, Finish::Stop(_));
        answers[i] = Answer { line: line(&read[i], &text, unfinished), tokens: tokens.len(), unfinished };
    }
    Ok(Some(answers))
}

/// What stands for a record that is not answered: a text as it is, anything else not at all.
fn kept(record: &Record) -> Answer {
    let line = match record {
        Record::Text(text) => format!("{}\n", json!({ "text": text })),
        _ => String::new(),
    };
    Answer { line, tokens: 0, unfinished: false }
}

/// The prompt of a record, as a model is given it. None: it has none.
fn asked(record: &Record, encoder: &Encoder) -> Result<Option<Vec<u32>>> {
    Ok(match record {
        Record::Text(_) => None,
        Record::Unfinished(record) => return asked(record, encoder),
        Record::Prompt(prompt) | Record::Pair { prompt, .. } => Some(encoder.prompt_ids(prompt)?),
        Record::Chat(messages) => Some(encoder.conversation_ids(before_the_last_answer(messages))?),
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
