//! What the user sees on stderr while a run goes on. Nothing here decides anything.

mod screen;
mod text;

pub use screen::{Progress, Screen};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Event, Sink, Train};
use crate::error::Result;
use crate::units::{Count, Span};
use text::{eval_line, sample_line, train_line};

/// Without a terminal, a step is printed at the least this often.
const QUIET: Duration = Duration::from_secs(30);

/// Shows events: a bar for the steps on a terminal, now and then a line elsewhere; a line per evaluation; each kind of
/// warning once.
pub struct Console {
    screen: Screen,
    bar: Progress,
    pace: Pace,
    warned: BTreeMap<String, u64>,
}

impl Console {
    /// For a run of `total` optimizer steps, of which `start` were done before it was resumed.
    pub fn new(screen: Screen, start: u64, total: u64) -> Self {
        let bar = screen.steps(start, total);
        Self { screen, bar, pace: Pace::new(start, total, Instant::now()), warned: BTreeMap::new() }
    }

    fn train(&mut self, event: &Train) {
        self.bar.set(event.step, &train_line(event));
        if self.pace.last.is_none() {
            // The evaluation before the first step tells nothing of the speed of steps.
            let step = Span::from_seconds(event.student_seconds + event.teacher_seconds.unwrap_or(0.0)).0;
            self.pace.began = Instant::now().checked_sub(step).unwrap_or(self.pace.began);
        }
        if !self.screen.is_terminal() && self.pace.due(event.step, Instant::now()) {
            let left = Span(self.pace.remaining(event.step, Instant::now()));
            let (step, total) = (Count(event.step), Count(self.pace.total));
            self.screen.line(&format!("step {step}/{total}  {}  {left} left", train_line(event)));
        }
    }
}

impl Sink for Console {
    fn record(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Train(event) => self.train(event),
            Event::Eval(event) => self.screen.line(&eval_line(event)),
            Event::Sample(event) => self.screen.line(&sample_line(event)),
            Event::Checkpoint(event) => {
                let best = if event.best { " (best so far)" } else { "" };
                self.screen.line(&format!("step {}  saved {}{best}", Count(event.step), event.path));
            }
            Event::Warning(event) => {
                let times = self.warned.entry(event.code.clone()).or_default();
                *times += 1;
                if *times == 1 {
                    self.screen.line(&format!("warning[{}]: {}", event.code, event.message));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.bar.clear();
        for (code, &times) in self.warned.iter().filter(|(_, times)| **times > 1) {
            self.screen.line(&format!("warning[{code}] came {} times; metrics.jsonl has them all", Count(times)));
        }
    }
}

/// When a step deserves a line: the first, the last, every tenth of the run, and after a long silence.
struct Pace {
    start: u64,
    total: u64,
    began: Instant,
    last: Option<(u64, Instant)>,
}

impl Pace {
    fn new(start: u64, total: u64, now: Instant) -> Self {
        Self { start, total, began: now, last: None }
    }

    fn due(&mut self, step: u64, now: Instant) -> bool {
        let tenth = |step: u64| step.saturating_mul(10) / self.total.max(1);
        let due = match self.last {
            None => true,
            Some((last, at)) => {
                step >= self.total || tenth(step) > tenth(last) || now.saturating_duration_since(at) >= QUIET
            }
        };
        if due {
            self.last = Some((step, now));
        }
        due
    }

    /// At the mean speed since the first step of this process, evaluations between steps included.
    fn remaining(&self, step: u64, now: Instant) -> Duration {
        let done = step.saturating_sub(self.start).max(1) as f64;
        let per_step = now.saturating_duration_since(self.began).as_secs_f64() / done;
        Span::from_seconds(per_step * self.total.saturating_sub(step) as f64).0
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
