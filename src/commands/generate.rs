//! `distill generate`: a prompt in, text out as it comes.

use std::path::Path;
use std::sync::Arc;

use super::{Outcome, build, out};
use crate::cli::GenerateArgs;
use crate::config::Dtype;
use crate::config::{ChatTemplate, LossOn, plan};
use crate::corpus::TextTokenizer;
use crate::device;
use crate::error::Result;
use crate::hub;
use crate::metrics::Screen;
use crate::model::{Finish, Prompt, Sampling, generate, seed_of};

pub fn run(args: &GenerateArgs) -> Result<Outcome> {
    let device = device::open(args.device.choice)?.device;
    let screen = Screen::stderr();
    let folder = hub::locate(&args.model, Path::new(""))?;
    let tokenizer = Arc::new(TextTokenizer::from_dir(plan::model_folder(&folder)?)?);
    let template = if args.raw { ChatTemplate::None } else { args.chat_template.clone() };
    let encoder = plan::encoder(tokenizer.clone(), &template, 2, LossOn::Completion)?;
    let prompt = encoder.prompt_ids(&args.prompt).map_err(|e| e.context("--prompt"))?;
    let model = build::load_frozen(&folder, Dtype::F32, &device, &screen)?;
    plan::covers(model.config(), &tokenizer, "model")?;
    let sampling = Sampling { temperature: args.temperature, top_p: args.top_p };
    let prompt = Prompt { tokens: prompt, max_tokens: args.max_tokens, seed: seed_of(args.seed) };
    let mut text = Stream::new(&tokenizer);
    let finish = generate(&model, &[prompt], tokenizer.eos_ids(), sampling, |_, token| text.push(token))?;
    text.end()?;
    match finish[..] {
        [Finish::Length] => screen.line(&format!("(stopped at --max-tokens {})", args.max_tokens)),
        [Finish::Context] => screen.line("(stopped: the model's context is full)"),
        _ => {}
    }
    Ok(Outcome::Done)
}

/// Prints tokens as text as soon as it is certain: a character may span several tokens.
struct Stream<'a> {
    tokenizer: &'a TextTokenizer,
    tokens: Vec<u32>,
    printed: usize,
}

impl<'a> Stream<'a> {
    fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, tokens: vec![], printed: 0 }
    }

    fn push(&mut self, token: u32) -> Result<()> {
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens, true)?;
        match text.ends_with('\u{fffd}') {
            true => Ok(()),
            false => self.print(&text),
        }
    }

    fn end(&mut self) -> Result<()> {
        let text = self.tokenizer.decode(&self.tokens, true)? + "\n";
        self.print(&text)
    }

    fn print(&mut self, text: &str) -> Result<()> {
        let fresh = text.get(self.printed..).unwrap_or_default();
        self.printed = text.len();
        out::generated(fresh)
    }
}
