//! Lines and progress bars that share one stderr without tearing each other.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::QUIET;
use crate::printable::printable;
use crate::units::{Count, Span};

/// Work shorter than this is not worth a line in a log.
const BRIEF: Duration = Duration::from_secs(2);

/// Where lines and bars go. Clones are the same screen: use one per process, or bars overwrite each other.
#[derive(Clone)]
pub struct Screen(Arc<Output>);

enum Output {
    Terminal(MultiProgress),
    Plain(Mutex<Box<dyn Write + Send>>),
}

impl Screen {
    /// Stderr: with bars where it is a terminal that can move its cursor, lines alone elsewhere.
    pub fn stderr() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if io::stderr().is_terminal() && !dumb {
            Self(Arc::new(Output::Terminal(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)))))
        } else {
            Self::plain(io::stderr())
        }
    }

    /// Lines alone, to `target`.
    pub fn plain(target: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Output::Plain(Mutex::new(Box::new(target)))))
    }

    pub fn is_terminal(&self) -> bool {
        matches!(*self.0, Output::Terminal(_))
    }

    /// Prints one line, above the bars. Control characters in it are escaped, new lines too. A closed stderr is no error.
    pub fn line(&self, text: &str) {
        let text = printable(text);
        match &*self.0 {
            Output::Terminal(bars) => drop(bars.println(text)),
            Output::Plain(target) => {
                let mut target = target.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let _ = writeln!(target, "{text}").and_then(|()| target.flush());
            }
        }
    }

    /// Shows work in progress, such as `loading` or `evaluating`: a bar of `total` units, or a spinner without a total.
    /// Without a terminal: a line after each half minute, and one at the end of what was not brief.
    pub fn progress(&self, label: &str, total: Option<u64>) -> Progress {
        let bar = self.bar(match total {
            Some(_) => "{prefix}  {bar:28.cyan/dim}  {human_pos}/{human_len}  {msg}  {eta} left",
            None => "{spinner:.cyan} {prefix}  {msg}",
        });
        let label = printable(label).into_owned();
        if let Some(bar) = &bar {
            bar.set_prefix(label.clone());
            match total {
                Some(total) => bar.set_length(total),
                // A spinner turns by itself: what it stands for may not report anything for seconds.
                None => bar.enable_steady_tick(Duration::from_millis(120)),
            }
        }
        let silent = false;
        Progress { screen: self.clone(), bar, label, total, silent, plain: Mutex::new(PlainState::new()) }
    }

    /// The bar of a run's steps, which prints nothing by itself.
    pub(super) fn steps(&self, start: u64, total: u64) -> Progress {
        let bar = self.bar("{bar:28.cyan/dim}  {human_pos}/{human_len}  {msg}  {eta} left");
        if let Some(bar) = &bar {
            bar.set_length(total);
            bar.set_position(start);
            bar.reset_eta();
        }
        let (label, silent) = (String::new(), true);
        let plain = Mutex::new(PlainState::new());
        Progress { screen: self.clone(), bar, label, total: Some(total), silent, plain }
    }

    fn bar(&self, template: &str) -> Option<ProgressBar> {
        let Output::Terminal(bars) = &*self.0 else { return None };
        let style = ProgressStyle::with_template(template).expect("the template is a constant");
        Some(bars.add(ProgressBar::no_length().with_style(style.progress_chars("━━─"))))
    }
}

/// Work in progress on a [`Screen`]; it disappears when finished or dropped.
pub struct Progress {
    screen: Screen,
    bar: Option<ProgressBar>,
    label: String,
    total: Option<u64>,
    silent: bool,
    plain: Mutex<PlainState>,
}

struct PlainState {
    done: u64,
    began: Instant,
    printed: Option<Instant>,
}

impl PlainState {
    fn new() -> Self {
        Self { done: 0, began: Instant::now(), printed: None }
    }
}

impl Progress {
    /// `n` more units are done.
    pub fn advance(&self, n: u64) {
        match &self.bar {
            Some(bar) => bar.inc(n),
            None => self.update(|done| done + n),
        }
    }

    /// `done` units are done in all, with a note beside the bar.
    pub fn set(&self, done: u64, note: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(printable(note).into_owned());
                bar.set_position(done);
            }
            None => self.update(|_| done),
        }
    }

    /// Done: the bar goes.
    pub fn finish(self) {
        self.clear();
        let state = self.state();
        let took = state.began.elapsed();
        if self.bar.is_none() && !self.silent && (state.printed.is_some() || took >= BRIEF) {
            let count = if state.done > 0 { format!("{} ", Count(state.done)) } else { String::new() };
            self.screen.line(&format!("{}: {count}done in {}", self.label, Span(took)));
        }
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn update(&self, done: impl FnOnce(u64) -> u64) {
        let mut state = self.state();
        state.done = done(state.done);
        if !self.silent && state.printed.unwrap_or(state.began).elapsed() >= QUIET {
            state.printed = Some(Instant::now());
            let of = self.total.map(|total| format!(" of {}", Count(total))).unwrap_or_default();
            self.screen.line(&format!("{}: {}{of}", self.label, Count(state.done)));
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, PlainState> {
        self.plain.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
