//! `distill eval`: how much of the teacher a student holds, as a table, as JSON, and as a gate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{Device, Tensor};
use serde::Serialize;

use super::build::AnyTeacher;
use super::{Outcome, build, out};
use crate::cache::Codec;
use crate::checkpoint::atomic;
use crate::cli::EvalArgs;
use crate::config::cached::{Lookup, cache_of_rows, fits_student};
use crate::config::plan::{HeldOut, Notice, TeacherFiles, covers, encoder, model_folder, same_tokenizer};
use crate::config::{self, ChatTemplate, Dtype, LossOn, RunConfig, TeacherConfig, TeacherKind};
use crate::corpus::{Batch, CorpusIndex, OnBadRecord, Row, TextTokenizer};
use crate::device::{DeviceChoice, Devices};
use crate::error::{Error, Result};
use crate::eval::{EvalReport, Interval, gap_closed};
use crate::hub;
use crate::metrics::Screen;
use crate::model::Decoder;
use crate::report::{Column, eval_table};
use crate::teacher::CacheTeacher;

/// What an evaluation works on: the config's values, over which the flags win.
struct Request {
    teacher: TeacherConfig,
    student_device: Option<DeviceChoice>,
    data: PathBuf,
    max_rows: usize,
    max_length: usize,
    loss_on: LossOn,
    chat_template: ChatTemplate,
    bad_rows: OnBadRecord,
    exact_match: bool,
}

impl Request {
    fn new(args: &EvalArgs) -> Result<Self> {
        let config = args.config.as_deref().map(|path| config::load_to_read(path, &[])).transpose()?;
        let from = |f: fn(&RunConfig) -> Option<PathBuf>| config.as_ref().and_then(f);
        let configured = config.as_ref().and_then(|c| c.teacher.clone());
        let teacher = match &args.teacher {
            Some(path) => {
                let path = hub::locate(path, Path::new(""))?;
                let dtype = configured.map_or(Dtype::F32, |teacher| teacher.dtype);
                Some(TeacherConfig { kind: TeacherKind::of(&path), path, tokenizer: None, dtype, device: None })
            }
            None => configured,
        };
        let data = args.data.clone().or_else(|| from(|c| c.data.eval.clone()));
        let missing = |what: &str| Error::input(format!("the config has no {what} to evaluate with; give --{what}"));
        let data_config = config.as_ref().map(|c| &c.data);
        Ok(Self {
            student_device: config.as_ref().and_then(|c| c.student.device),
            teacher: teacher.ok_or_else(|| missing("teacher"))?,
            data: data.ok_or_else(|| missing("data"))?,
            max_rows: args.max_rows.or(config.as_ref().map(|c| c.eval.max_rows)).unwrap_or(256),
            max_length: args.max_length.or(data_config.map(|d| d.max_length)).unwrap_or(512),
            loss_on: args.loss_on.or(data_config.map(|d| d.loss_on)).unwrap_or(LossOn::Completion),
            chat_template: (args.chat_template.clone())
                .or(data_config.map(|d| d.chat_template.clone()))
                .unwrap_or(ChatTemplate::Auto),
            bad_rows: data_config.map_or(OnBadRecord::Fail, |d| d.bad_rows()),
            exact_match: config.as_ref().is_some_and(|c| c.eval.exact_match),
        })
    }
}

/// The JSON of `--json`.
#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    student: &'a EvalReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<&'a EvalReport>,
    /// 1 − KL(student) / KL(baseline).
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_closed: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_closed_ci95: Option<Interval>,
}

pub fn run(args: &EvalArgs) -> Result<Outcome> {
    let screen = Screen::stderr();
    let request = Request::new(args)?;
    let choice = args.device.choice;
    // The config's devices are those that the run had; a flag wins.
    let configured = |device: Option<DeviceChoice>| device.filter(|_| choice == DeviceChoice::Auto);
    let teacher_device = configured(request.teacher.device).unwrap_or(request.teacher.kind.device(choice));
    let devices = Devices::open(teacher_device, configured(request.student_device).unwrap_or(choice))?;
    let device = &devices.student.device;
    if let Some(devices) = devices.describe() {
        screen.line(&format!("{:<11}{devices}", "devices"));
    }
    // Found out before the work, not after it.
    for file in [&args.json, &args.dump_logits].into_iter().flatten() {
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Error::input(format!("cannot write {}: its folder does not exist", file.display())));
        }
    }
    let at = |path: &PathBuf| hub::locate(path, Path::new(""));
    let (student_dir, baseline_dir) = (at(&args.student)?, args.baseline.as_ref().map(at).transpose()?);
    let tokenizer = Arc::new(TextTokenizer::from_dir(model_folder(&student_dir)?)?);
    let theirs = TeacherFiles::read(request.teacher.kind, &request.teacher.path)?;
    theirs.same_tokenizer(&tokenizer).map_err(|e| e.context(request.teacher.path.display()))?;
    if let Some(other) = &baseline_dir {
        same_tokenizer(&TextTokenizer::from_dir(model_folder(other)?)?, &tokenizer)
            .map_err(|e| e.context(other.display()))?;
    }
    let encoder = Arc::new(encoder(tokenizer.clone(), &request.chat_template, request.max_length, request.loss_on)?);
    if let Some(cache) = &theirs.cache {
        cache_of_rows(cache, &encoder, request.loss_on).map_err(|e| e.context(request.teacher.path.display()))?;
        gates_can_be_answered(args, cache.header().codec)?;
    }
    let index = CorpusIndex::open(std::slice::from_ref(&request.data), request.bad_rows)?;
    let held_out =
        HeldOut::take(Arc::new(index), encoder, request.max_rows).map_err(|e| e.context(request.data.display()))?;
    if let Some(notice) = Notice::of_bf16((request.teacher.dtype, Dtype::F32), &devices) {
        screen.line(&notice.line());
    }
    let cache = theirs.cache.clone();
    let teacher = match theirs.cache {
        Some(cache) => {
            let mut rows = Lookup::default();
            held_out.rows.iter().try_for_each(|row| rows.look(&cache, row))?;
            rows.finish()?;
            AnyTeacher::Cached(CacheTeacher::new(cache))
        }
        None => AnyTeacher::Live(build::load_teacher(&request.teacher, &devices, &screen)?),
    };
    if let Some(live) = teacher.live() {
        covers(live.decoder().config(), &tokenizer, "teacher")?;
    }
    let evaluate = |folder: &Path| -> Result<(Decoder, EvalReport)> {
        let model = build::load_model(folder, false, device, &screen)?;
        covers(model.config(), &tokenizer, "student")?;
        cache.as_ref().map_or(Ok(()), |cache| fits_student(cache, model.config()))?;
        let never = AtomicBool::new(false);
        let report = build::evaluate_rows(Some(teacher.as_dyn()), &model, &held_out.rows, &never, &screen)?
            .ok_or_else(|| Error::run("the evaluation was interrupted"))?;
        Ok((model, if request.exact_match { report } else { report.without_exact_match() }))
    };
    let (student, report) = evaluate(&student_dir)?;
    let baseline = baseline_dir.map(|dir| evaluate(&dir)).transpose()?.map(|(_, report)| report);
    let gap = baseline.as_ref().map(|b| gap_closed(&report.row_sums, &b.row_sums)).filter(|_| report.kl_mean.is_some());
    // Files first: a closed terminal or a failed gate must not cost them.
    if let Some(file) = &args.json {
        let output = Output {
            student: &report,
            baseline: baseline.as_ref(),
            gap_closed: gap.map(|g| g.0),
            gap_closed_ci95: gap.map(|g| g.1),
        };
        let text = serde_json::to_string_pretty(&output).map_err(|e| Error::run(e.to_string()))?;
        atomic::write_file(file, (text + "\n").as_bytes())?;
    }
    if let Some(file) = &args.dump_logits {
        dump_logits(&student, &held_out.rows, file)?;
    }
    out::write(&show(&report, baseline.as_ref(), gap))?;
    if held_out.rejections.count > 0 {
        screen.line(&format!("{} bad records were passed over", held_out.rejections.count));
    }
    Ok(gates(args, &report, &screen))
}

fn show(report: &EvalReport, baseline: Option<&EvalReport>, gap: Option<(f64, Interval)>) -> String {
    let mut columns = vec![Column { title: "student", report }];
    columns.extend(baseline.map(|report| Column { title: "baseline", report }));
    let mut text = eval_table(&columns);
    if let (Some(ratio), Some(Interval(low, high))) = (report.perplexity_ratio, report.perplexity_ratio_ci95) {
        text += &format!("{:<34}{ratio:>14.4}  (95 % interval {low:.4} to {high:.4})\n", "perplexity ratio");
    }
    if let Some((gap, Interval(low, high))) = gap {
        let [gap, low, high] = [gap, low, high].map(|x| 100.0 * x);
        text += &format!("{:<34}{gap:>12.1} %  (95 % interval {low:.1} to {high:.1} %)\n", "gap closed");
    }
    let signal = match report.signal {
        Some("top_k") => ", from stored top_k: the KL of its tokens is at most the whole KL",
        Some("sampled") => ", from stored draws: KL and acceptance are estimates",
        _ => "",
    };
    text + &format!("on {} rows, {} target tokens{signal}\n", report.rows, report.tokens)
}

/// Refuses a gate on a figure that a stored signal does not have, or only guesses.
fn gates_can_be_answered(args: &EvalArgs, codec: Codec) -> Result<()> {
    let gate = match codec {
        Codec::Dense => None,
        Codec::TopK { .. } | Codec::Sampled { .. } if args.fail_above_kl.is_some() => Some("--fail-above-kl"),
        Codec::Sampled { .. } if args.fail_below_agreement.is_some() => Some("--fail-below-agreement"),
        Codec::TopK { .. } | Codec::Sampled { .. } => None,
    };
    match gate {
        None => Ok(()),
        Some(gate) => Err(Error::input(format!(
            "{gate} needs more than an estimate or a part of the teacher's word, and the cache has {codec}: give a live \
             teacher, or a cache with codec = \"dense\""
        ))),
    }
}

/// NaN fails every gate.
fn gates(args: &EvalArgs, report: &EvalReport, screen: &Screen) -> Outcome {
    let mut failed = vec![];
    let nan = f64::NAN;
    if let Some(limit) = args.fail_above_kl {
        let kl = report.kl_mean.unwrap_or(nan);
        if !matches!(kl.partial_cmp(&limit), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            failed.push(format!("kl_mean {kl:.6} is above --fail-above-kl {limit}"));
        }
    }
    if let Some(limit) = args.fail_below_agreement {
        let agreement = report.top1_agreement.unwrap_or(nan);
        if !matches!(agreement.partial_cmp(&limit), Some(std::cmp::Ordering::Greater | std::cmp::Ordering::Equal)) {
            failed.push(format!("top1_agreement {agreement:.6} is below --fail-below-agreement {limit}"));
        }
    }
    failed.iter().for_each(|f| screen.line(&format!("gate failed: {f}")));
    if failed.is_empty() { Outcome::Done } else { Outcome::GateFailed }
}

/// `input_ids` [1, T] and `logits` [1, T, V] of the first row, at every position.
fn dump_logits(model: &Decoder, rows: &[Row], file: &Path) -> Result<()> {
    let row = rows.first().ok_or_else(|| Error::input("there is no row to dump logits of"))?;
    let mut every = row.clone();
    // One more token, so that the last position predicts something too.
    every.tokens.push(0);
    every.targets = (0..every.tokens.len()).map(|t| t > 0).collect();
    let hidden = model.hidden(&Batch::new([&every]))?;
    let logits = model.logits(&hidden)?.unsqueeze(0)?;
    let ids: Vec<i64> = row.tokens.iter().map(|&id| id as i64).collect();
    let ids = Tensor::from_vec(ids, (1, row.tokens.len()), &Device::Cpu)?;
    let tensors: std::collections::HashMap<String, Tensor> =
        BTreeMap::from([("input_ids".to_string(), ids), ("logits".to_string(), logits)]).into_iter().collect();
    let bytes = safetensors::serialize(&tensors, None);
    atomic::write_file(file, &bytes.map_err(|e| Error::run(format!("cannot write {}: {e}", file.display())))?)
}
