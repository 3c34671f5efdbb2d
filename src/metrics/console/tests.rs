use super::*;
use crate::metrics::{Checkpoint, Eval, Warning};
use std::io::Write;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The lines shown for these events of a run of 1000 steps.
fn shown(events: &[Event]) -> Vec<String> {
    let paper = Paper::default();
    let mut console = Console::new(Screen::plain(paper.clone()), 0, 1000);
    for event in events {
        console.record(event).unwrap();
    }
    drop(console);
    let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn train(step: u64) -> Event {
    Event::Train(Train {
        step,
        loss: 1.25,
        divergence: Some(1.0),
        parts: None,
        hidden: None,
        temperature: None,
        hard_label_weight: None,
        cross_entropy: None,
        learning_rate: 1e-4,
        grad_norm: 1.0,
        tokens: step,
        tokens_per_second: 1597.4,
        teacher_seconds: None,
        student_seconds: 0.1,
        elapsed_seconds: 1.0,
        rollout: None,
    })
}

fn eval() -> Eval {
    Eval {
        step: 100,
        kl_mean: Some(1.234),
        bucket_kl_mean: None,
        kl_median: None,
        kl_p99: None,
        top1_agreement: Some(0.712),
        student_perplexity: 12.3,
        teacher_perplexity: Some(9.9),
        tokens: 5,
        student_exact_match: None,
        teacher_exact_match: None,
    }
}

fn warning(code: &str, message: &str) -> Event {
    Event::Warning(Warning { step: 1, code: code.into(), message: message.into() })
}

#[test]
fn without_a_terminal_the_first_the_last_and_every_tenth_step_is_a_line() {
    let lines = shown(&(1..=1000).map(train).collect::<Vec<_>>());
    let steps: Vec<_> = lines.iter().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(steps.len(), 11, "{lines:?}");
    assert_eq!((steps[0], steps[1], steps[10]), ("1/1,000", "100/1,000", "1,000/1,000"));
    assert!(lines[0].contains("loss 1.2500  divergence 1.0000  1,597 tokens/s"), "{}", lines[0]);
}

#[test]
fn a_silence_of_half_a_minute_ends_with_a_line_and_the_rest_is_estimated() {
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut pace = Pace::new(500, 1_000_000, began);
    assert!(pace.due(501, at(1)));
    assert!(!pace.due(502, at(30)));
    assert!(pace.due(503, at(31)));
    assert!(!pace.due(504, at(32)));
    let pace = Pace::new(500, 1000, began);
    assert_eq!(pace.remaining(600, at(50)), Duration::from_secs(200));
    assert_eq!(pace.remaining(1000, at(50)), Duration::ZERO);
}

#[test]
fn an_evaluation_is_one_line_with_or_without_a_teacher() {
    let alone = Eval { kl_mean: None, top1_agreement: None, teacher_perplexity: None, ..eval() };
    let scored = Eval { student_exact_match: Some(0.5), teacher_exact_match: Some(1.0), ..eval() };
    assert_eq!(
        shown(&[Event::Eval(eval()), Event::Eval(alone), Event::Eval(scored)]),
        [
            "step 100  KL 1.2340  agreement 71.2 %  perplexity 12.30 (teacher 9.90)",
            "step 100  perplexity 12.30",
            "step 100  KL 1.2340  agreement 71.2 %  perplexity 12.30 (teacher 9.90)  exact match 50.0 % (teacher 100.0 %)"
        ]
    );
}

#[test]
fn each_kind_of_warning_is_shown_once_and_counted() {
    let lines = shown(&[warning("a", "first"), warning("b", "other"), warning("a", "second"), warning("a", "third")]);
    assert_eq!(
        lines,
        ["warning[a]: first", "warning[b]: other", "warning[a] came 3 times; metrics.jsonl has them all"]
    );
}

#[test]
fn a_checkpoint_is_a_line() {
    let event = Checkpoint { step: 1, path: "checkpoints/step-00000001".into(), best: true };
    assert_eq!(shown(&[Event::Checkpoint(event)]), ["step 1  saved checkpoints/step-00000001 (best so far)"]);
}

#[test]
fn no_byte_of_data_reaches_the_terminal_as_a_command() {
    let lines = shown(&[warning("a\u{1b}[2J", "\r\n\u{9b}31m\u{202E}ok — ä")]);
    assert_eq!(lines, ["warning[a\\u{1b}[2J]: \\r\\n\\u{9b}31m\\u{202e}ok — ä"]);
}

#[test]
fn brief_work_leaves_no_line_in_a_log() {
    let paper = Paper::default();
    let screen = Screen::plain(paper.clone());
    let progress = screen.progress("loading", None);
    progress.advance(3);
    progress.finish();
    assert!(paper.0.lock().unwrap().is_empty());
}
