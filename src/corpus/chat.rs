//! Chat templates: Jinja as transformers renders it, under limits that no template can get round.
//!
//! A template comes with a model from anywhere, so it is untrusted: fuel bounds its time and its data, a thread with a
//! stack of its own bounds what nesting can do, and no loader, file or environment is within its reach.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, Value};
use sha2::{Digest, Sha256};

use super::jsonl::Message;
use super::sandbox;
use super::tokenizer_files::{CHAT_TEMPLATE, TOKENIZER_CONFIG, TokenizerFiles};
use crate::hub;
use crate::printable::excerpt;
use crate::{Error, Result};

/// Longest template and longest rendering, in bytes.
const LONGEST_TEMPLATE: usize = 1 << 20;
pub(super) const LONGEST_RENDERING: usize = 4 << 20;
/// One unit pays for an instruction or for 64 bytes made. A rendering gets this much, and more with the text it is given.
const FUEL: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 1_000;
/// Ten passes over every byte of the conversation and more.
const BYTES_PER_FUEL: usize = 4;
/// How many times 10 ms a conversation may take.
const PATIENCE: usize = 50;
/// Enough to drop or print the deepest value that the fuel can nest; untouched pages cost nothing.
const STACK: usize = 256 << 20;

/// The special tokens a template may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

/// A compiled chat template with the special tokens of its tokenizer. `strftime_now` tells one time, in UTC, for as long
/// as the template lives: a run renders the same rows before and after midnight.
#[derive(Debug)]
pub struct ChatTemplate {
    engine: Arc<Engine>,
    hung: AtomicBool,
    digest: [u8; 32],
}

#[derive(Debug)]
struct Engine {
    environment: Environment<'static>,
    special: SpecialTokens,
}

/// What the template made of a conversation, or why it made nothing.
pub(super) type Rendering = Result<String, String>;

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `source` as transformers does: trim_blocks, lstrip_blocks, loop controls, Python's string methods.
    ///
    /// An input error if it does not compile.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self> {
        if source.len() > LONGEST_TEMPLATE {
            return Err(Error::input(format!("the chat template is longer than {} MiB", LONGEST_TEMPLATE >> 20)));
        }
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().expect("the delimiters are Jinja's own"));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_debug(false);
        environment.set_unknown_method_callback(sandbox::method);
        environment.add_function("range", sandbox::range);
        environment.add_filter("join", sandbox::join_filter);
        environment.add_function("raise_exception", |message: String| -> Result<Value, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        });
        let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
        environment.add_function("strftime_now", move |state: &State, format: &str| {
            state.consume_fuel(format.len() as u64)?;
            jiff::fmt::strtime::format(format, &now)
                .map_err(|e| JinjaError::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
        });
        environment.add_filter("tojson", |state: &State, value: &Value, kwargs: Kwargs| {
            let json = sandbox::tojson(value, &kwargs)?;
            state.consume_fuel(json.len() as u64 / 8)?;
            Ok::<_, JinjaError>(json)
        });
        let digest = Sha256::digest(source).into();
        let source = without_generation_tags(source);
        let compile = move || match environment.add_template_owned(NAME, source) {
            Ok(()) => Ok(Engine { environment, special }),
            Err(e) => Err(reason(&e)),
        };
        match watched(compile).map_err(Stopped::reason).flatten() {
            Ok(engine) => Ok(Self { engine: Arc::new(engine), hung: AtomicBool::new(false), digest }),
            Err(reason) => Err(Error::input(format!("the chat template does not compile: {reason}"))),
        }
    }

    /// SHA-256 of its text.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The template among a tokenizer's files, chat_template.jinja before `chat_template` in tokenizer_config.json (a string,
    /// or a list of named ones of which `default` is taken). None if they have neither.
    pub fn of(files: &TokenizerFiles, special: SpecialTokens) -> Result<Option<Self>> {
        if let Some(bytes) = files.get(CHAT_TEMPLATE) {
            let file = files.path(CHAT_TEMPLATE);
            let source = std::str::from_utf8(bytes);
            let source = source.map_err(|_| Error::input(format!("{} is not UTF-8", file.display())))?;
            return Self::new(source, special).map(Some).map_err(|e| e.context(file.display()));
        }
        let config = files.path(TOKENIZER_CONFIG);
        let json = files.json(TOKENIZER_CONFIG)?;
        let source = match &json["chat_template"] {
            serde_json::Value::Null => return Ok(None),
            serde_json::Value::String(source) => source.as_str(),
            serde_json::Value::Array(named) => {
                let default = named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
                default.ok_or_else(|| {
                    Error::input(format!("{}: no chat_template is named \"default\"", config.display()))
                })?
            }
            _ => return Err(Error::input(format!("{}: chat_template must be a string or a list", config.display()))),
        };
        Self::new(source, special).map(Some).map_err(|e| e.context(config.display()))
    }

    /// The template in `file`.
    pub fn from_file(file: &Path, special: SpecialTokens) -> Result<Self> {
        let source = hub::read_text(file)?;
        Self::new(&source, special).map_err(|e| e.context(file.display()))
    }

    /// Renders a conversation, as `apply_chat_template(messages, tokenize=False)` does.
    ///
    /// An input error with the template's own words if it raises, or if it goes beyond a limit.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut all = self.render_parts(&Arc::new(messages.to_vec()), vec![(messages.len(), add_generation_prompt)]);
        all.remove(0).map_err(|reason| Error::input(format!("the chat template refuses the conversation: {reason}")))
    }

    /// Whether it once ran for so long that it was left behind: then every further rendering fails.
    pub(super) fn hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }

    /// Renders `messages[..n]` for each `(n, add_generation_prompt)`, in order; each is a text or a reason.
    pub(super) fn render_parts(&self, messages: &Arc<Vec<Message>>, parts: Vec<(usize, bool)>) -> Vec<Rendering> {
        let count = parts.len();
        let refuse = |reason: String| vec![Err(reason); count];
        // One thread left behind is enough: a template that hung once is not tried again.
        if self.hung() {
            return refuse(TOO_MUCH_WORK.into());
        }
        let (engine, messages) = (self.engine.clone(), messages.clone());
        let work = move || parts.into_iter().map(|(n, prompt)| engine.render(&messages[..n], prompt)).collect();
        watched(work).unwrap_or_else(|stopped| {
            self.hung.store(matches!(stopped, Stopped::Hung), Ordering::Relaxed);
            refuse(stopped.reason())
        })
    }
}

impl Engine {
    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Rendering {
        let bytes: usize = messages.iter().map(|m| m.content.len().min(LONGEST_RENDERING)).sum();
        let fuel =
            FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + (bytes.min(LONGEST_RENDERING) / BYTES_PER_FUEL) as u64;
        // A few counted pointers; the compiled template is shared.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(NAME).map_err(|e| reason(&e))?;
        let mut context = vec![
            ("messages", messages.iter().map(turn).collect()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            // As transformers passes them when there are none.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        let SpecialTokens { bos, eos, unk, pad } = &self.special;
        for (name, token) in [("bos_token", bos), ("eos_token", eos), ("unk_token", unk), ("pad_token", pad)] {
            context.extend(token.as_ref().map(|token| (name, Value::from(token.as_str()))));
        }
        let context = Value::from_pairs(context);
        let mut output = Limited(Vec::new());
        template.render_captured_to(context, &mut output).map_err(|e| reason(&e))?;
        String::from_utf8(output.0).map_err(|_| "its output is not UTF-8".into())
    }
}

fn turn(message: &Message) -> Value {
    Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
}

/// A writer that stops at [`LONGEST_RENDERING`].
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST_RENDERING {
            return Err(std::io::Error::other(format!("its output is longer than {} MiB", LONGEST_RENDERING >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `work` where deeply nested values can be printed and dropped (both recurse, and a worker's stack is small), for
/// [`PATIENCE`] ticks at most: comparing values that share their parts costs no fuel and can take for ever. A thread that
/// does so cannot be stopped, only left behind.
fn watched<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let worker = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
    // The receiver is gone if nobody waits any more: then the result has no reader, which is fine.
    worker.spawn(move || sender.send(work()).ok()).map_err(|_| Stopped::Crashed)?;
    // Ticks, not one long wait: a process that was suspended must not find its template late.
    for _ in 0..PATIENCE {
        match receiver.recv_timeout(Duration::from_millis(10)) {
            Ok(result) => return Ok(result),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Stopped::Crashed),
        }
    }
    Err(Stopped::Hung)
}

#[derive(Debug, Clone, Copy)]
enum Stopped {
    Crashed,
    Hung,
}

impl Stopped {
    fn reason(self) -> String {
        match self {
            Stopped::Crashed => "the template engine failed".into(),
            Stopped::Hung => TOO_MUCH_WORK.into(),
        }
    }
}

const TOO_MUCH_WORK: &str = "it does more work than a chat template may";

/// What went wrong, in the template's own words where it raised, safe to print.
fn reason(error: &JinjaError) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return TOO_MUCH_WORK.into();
    }
    let source = std::error::Error::source(error).map(|s| s.to_string());
    let text = match (error.kind(), source) {
        (ErrorKind::WriteFailure, Some(source)) => source,
        _ => error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
    };
    match error.line() {
        Some(line) => format!("{} (line {line} of the template)", excerpt(&text)),
        None => excerpt(&text),
    }
}

/// `{% generation %}` marks what transformers' assistant mask covers and renders as nothing. A condition that holds does
/// the same and keeps the tag's handling of white space.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        // Of `{%}` the percent sign is no end.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else { break };
        out.push_str(before);
        let inner = tag[2..end].trim_matches(|c| c == '-' || c == '+').trim();
        let replacement = match inner {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => inner,
        };
        if replacement == inner {
            out.push_str(&tag[..end + 2]);
        } else {
            out.push_str(&tag[..end + 2].replace(inner, replacement));
        }
        rest = &tag[end + 2..];
    }
    out + rest
}
